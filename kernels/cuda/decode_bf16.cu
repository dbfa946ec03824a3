/* kernels/cuda/decode_bf16.cu: instances of decode.cuh for activations in bf16: heads of up to 64 and 128, a
 * cache of the same type, of int8 and of int4. */
#include "cuda/decode.cuh"

/* blocks: of a multiprocessor, as l_attention.c counts them too */
#define INSTANCE(name, D, bits, blocks)                                                            \
    TURBOK_KERNEL(name##_bf16, decode, 32 * WARPS, blocks)                                         \
    {                                                                                              \
        decode_body<bf16, D, bits>(a);                                                             \
    }
INSTANCE(decode64, 64, 16, 3)
INSTANCE(decode128, 128, 16, 2)
INSTANCE(decode64q8, 64, 8, 3)
INSTANCE(decode128q8, 128, 8, 2)
INSTANCE(decode64q4, 64, 4, 3)
INSTANCE(decode128q4, 128, 4, 2)
