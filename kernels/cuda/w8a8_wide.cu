/* kernels/cuda/w8a8_wide.cu: instances of w8a8_wide.cuh. Compiled for sm_90a; what else the file is compiled for only has
 * the names, and the host does not launch them there. */
#include "cuda/w8a8_wide.cuh"

#if WGMMA_HERE
#define BODY(...) w8a8_wide::product<__VA_ARGS__>(a)
#else
#define BODY(...) __trap()
#endif
#define INSTANCES(n)                                                                               \
    TURBOK_KERNEL(w8a8_wide##n##_s8, w8a8, 384, 1)                                                 \
    {                                                                                              \
        BODY(n, false, int, int);                                                                  \
    }                                                                                              \
    TURBOK_KERNEL(w8a8_wide##n##_s8_blocks, w8a8, 384, 1)                                          \
    {                                                                                              \
        BODY(n, true, int, float);                                                                 \
    }                                                                                              \
    TURBOK_KERNEL(w8a8_wide##n##_e4m3, w8a8, 384, 1)                                               \
    {                                                                                              \
        BODY(n, false, float, float);                                                              \
    }                                                                                              \
    TURBOK_KERNEL(w8a8_wide##n##_e4m3_blocks, w8a8, 384, 1)                                        \
    {                                                                                              \
        BODY(n, true, float, float);                                                               \
    }
INSTANCES(32)
INSTANCES(64)
INSTANCES(128)
INSTANCES(256)
