/* kernels/cuda/prefill_wide.cu: instances of prefill_wide.cuh: heads of up to 64 and 128. Compiled for sm_90a; what else the
 * file is compiled for only has the names, and the host does not launch them there. */
#include "cuda/prefill_wide.cuh"

#if WGMMA_HERE
#define BODY(T, D, N) prefill_wide_body<T, D, N>(a)
#else
#define BODY(T, D, N) __trap()
#endif
#define INSTANCE(name, T, D, N)                                                                    \
    TURBOK_KERNEL(name, prefill, 32 * WARPS, 1)                                                    \
    {                                                                                              \
        BODY(T, D, N);                                                                             \
    }
INSTANCE(prefill_wide64_f16, f16, 64, 128)
INSTANCE(prefill_wide128_f16, f16, 128, 128)
INSTANCE(prefill_wide64_bf16, bf16, 64, 128)
INSTANCE(prefill_wide128_bf16, bf16, 128, 128)
