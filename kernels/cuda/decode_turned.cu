/* kernels/cuda/decode_turned.cu: instances of decode_turned.cuh for heads of 64 and 128. */
#include "cuda/decode_turned.cuh"

#define INSTANCE(D, T)                                                                             \
    TURBOK_KERNEL(turned##D##_##T, turned, TURBOK_CU_TURNED_ROOMY, 1)                              \
    {                                                                                              \
        turned::body<T, D>(a);                                                                     \
    }
INSTANCE(64, f16)
INSTANCE(128, f16)
INSTANCE(64, bf16)
INSTANCE(128, bf16)
