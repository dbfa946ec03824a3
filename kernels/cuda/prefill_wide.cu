/* kernels/cuda/prefill_wide.cu: instances of prefill_wide.cuh: heads of up to 64 and 128. Compiled for sm_90a; what else the
 * file is compiled for only has the names, and the host does not launch them there. */
#include "cuda/prefill_wide.cuh"

#if WGMMA_HERE
#define BODY(T, D, SHARES)                                                                         \
    prefill_wide_body<T, D, TURBOK_CU_WIDE_KEYS, TURBOK_CU_WIDE_STAGES, SHARES>(a)
#else
#define BODY(T, D, SHARES) __trap()
#endif
#define INSTANCE(name, T, D, SHARES)                                                               \
    TURBOK_KERNEL(name, prefill, TURBOK_CU_WIDE_THREADS, 1)                                        \
    {                                                                                              \
        BODY(T, D, SHARES);                                                                        \
    }
INSTANCE(prefill_wide64_f16, f16, 64, 1)
INSTANCE(prefill_wide128_f16, f16, 128, 1)
INSTANCE(prefill_wide64_bf16, bf16, 64, 1)
INSTANCE(prefill_wide128_bf16, bf16, 128, 1)
INSTANCE(prefill_brief64_f16, f16, 64, 2)
INSTANCE(prefill_brief128_f16, f16, 128, 2)
INSTANCE(prefill_brief64_bf16, bf16, 64, 2)
INSTANCE(prefill_brief128_bf16, bf16, 128, 2)
