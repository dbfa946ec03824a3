/* kernels/cuda/prefill_wide.cu: instances of prefill_wide.cuh: heads of up to 64 and 128, few and many keys. Compiled for sm_90a; what else the
 * file is compiled for only has the names, and the host does not launch them there. */
#include "cuda/prefill_wide.cuh"

#if WGMMA_HERE
#define BODY(...) prefill_wide_body<__VA_ARGS__>(a)
#else
#define BODY(...) __trap()
#endif
#define TILED(what, T, D, keys, SHARES)                                                            \
    TURBOK_KERNEL(prefill_##what, prefill, TURBOK_CU_WIDE_THREADS, 1)                              \
    {                                                                                              \
        BODY(T, D, TURBOK_CU_##keys##_KEYS, TURBOK_CU_##keys##_STAGES, SHARES);                    \
    }
#define INSTANCE(what, T, D, SHARES) TILED(what, T, D, WIDE, SHARES)
INSTANCE(wide64_f16, f16, 64, 1)
INSTANCE(wide128_f16, f16, 128, 1)
INSTANCE(wide64_bf16, bf16, 64, 1)
INSTANCE(wide128_bf16, bf16, 128, 1)
TILED(long128_f16, f16, 128, LONG, 1)
TILED(long128_bf16, bf16, 128, LONG, 1)
INSTANCE(brief64_f16, f16, 64, 2)
INSTANCE(brief128_f16, f16, 128, 2)
INSTANCE(brief64_bf16, bf16, 64, 2)
INSTANCE(brief128_bf16, bf16, 128, 2)
