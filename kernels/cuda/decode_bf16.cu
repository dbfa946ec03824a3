/* kernels/cuda/decode_bf16.cu: instances of decode.cuh for activations in bf16: heads of up to 64 and 128, a
 * cache of the same type, of int8 and of int4. */
#include "cuda/decode.cuh"

#define INSTANCE(name, D, bits)                                                                    \
    TURBOK_KERNEL(name##_bf16, decode, 32 * WARPS, TURBOK_CU_DECODE_BLOCKS)                        \
    {                                                                                              \
        decode_body<bf16, D, bits>(a);                                                             \
    }
INSTANCE(decode64, 64, 16)
INSTANCE(decode128, 128, 16)
INSTANCE(decode64q8, 64, 8)
INSTANCE(decode128q8, 128, 8)
INSTANCE(decode64q4, 64, 4)
INSTANCE(decode128q4, 128, 4)
