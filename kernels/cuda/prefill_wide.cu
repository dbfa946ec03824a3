/* kernels/cuda/prefill_wide.cu: instances of prefill_wide.cuh: heads of up to 64 and 128. Compiled for sm_90a; what else the
 * file is compiled for only has the names, and the host does not launch them there. */
#include "cuda/prefill_wide.cuh"

#if WGMMA_HERE
#define BODY(T, D) prefill_wide_body<T, D, TURBOK_CU_WIDE_KEYS, TURBOK_CU_WIDE_STAGES>(a)
#else
#define BODY(T, D) __trap()
#endif
#define INSTANCE(name, T, D)                                                                       \
    TURBOK_KERNEL(name, prefill, TURBOK_CU_WIDE_THREADS, 1)                                        \
    {                                                                                              \
        BODY(T, D);                                                                                \
    }
INSTANCE(prefill_wide64_f16, f16, 64)
INSTANCE(prefill_wide128_f16, f16, 128)
INSTANCE(prefill_wide64_bf16, bf16, 64)
INSTANCE(prefill_wide128_bf16, bf16, 128)
