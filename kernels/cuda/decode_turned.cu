/* kernels/cuda/decode_turned.cu: instances of decode_turned.cuh for heads of 64 and 128. Where there are no clusters the file only has the
 * names, and the host does not launch them. */
#include "cuda/decode_turned.cuh"

#if CLUSTER_HERE
#define BODY(...) turned::body<__VA_ARGS__>(a)
#else
#define BODY(...) __trap()
#endif
#define INSTANCE(D, T)                                                                             \
    TURBOK_KERNEL(turned##D##_##T, turned, TURBOK_CU_TURNED_ROOMY, 1)                              \
    {                                                                                              \
        BODY(T, D);                                                                                \
    }
INSTANCE(64, f16)
INSTANCE(128, f16)
INSTANCE(64, bf16)
INSTANCE(128, bf16)
