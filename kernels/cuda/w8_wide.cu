/* kernels/cuda/w8_wide.cu: instances of wq_wide.cuh for 8 bits. Compiled for sm_90a; what
 * else the file is compiled for only has the names, and the host does not launch them there. */
#include "cuda/wq_wide.cuh"

#if WGMMA_HERE
#define BODY(...) wq_wide::product<__VA_ARGS__>(a)
#else
#define BODY(...) __trap()
#endif
#define KIND(T, name, n, mt, rows, mode) \
    TURBOK_KERNEL(w8_##name##_##T, wq_wide, 384, n) { BODY(T, 8, mt, rows, wq_wide::mode); }
#define FOR(T) \
    KIND(T, wide32, 2, 1, 32, SUMS) \
    KIND(T, wide64, 1, 1, 64, SUMS) \
    KIND(T, wide128, 1, 1, 128, SUMS) \
    KIND(T, tall, 1, 2, 128, SUMS) \
    KIND(T, wide32r, 2, 1, 32, ROWS) \
    KIND(T, wide64r, 1, 1, 64, ROWS) \
    KIND(T, wide128r, 1, 1, 128, ROWS) \
    KIND(T, tallr, 1, 2, 128, ROWS) \
    KIND(T, wide32g, 2, 1, 32, NUMBERS) \
    KIND(T, wide64g, 1, 1, 64, NUMBERS) \
    KIND(T, wide128g, 1, 1, 128, NUMBERS) \
    KIND(T, wide64x, 1, 1, 64, GENERAL32) \
    KIND(T, wide128x, 1, 1, 128, GENERAL32) \
    KIND(T, wide64s, 1, 1, 64, GENERAL16) \
    KIND(T, wide128s, 1, 1, 128, GENERAL16)

FOR(f16)
FOR(bf16)
