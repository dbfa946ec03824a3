/* kernels/cuda/prefill_f16.cu: instances of prefill.cuh for activations in f16: heads of up to 64 and 128, a
 * cache of the same type, of int8 and of int4. */
#include "cuda/prefill.cuh"

#define INSTANCE(name, D, bits)                                                                    \
    TURBOK_KERNEL(name##_f16, prefill, 32 * WARPS, 1)                                              \
    {                                                                                              \
        prefill_body<f16, D, bits>(a);                                                             \
    }
INSTANCE(prefill64, 64, 16)
INSTANCE(prefill128, 128, 16)
INSTANCE(prefill64q8, 64, 8)
INSTANCE(prefill128q8, 128, 8)
INSTANCE(prefill64q4, 64, 4)
INSTANCE(prefill128q4, 128, 4)
