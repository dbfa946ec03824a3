/* kernels/cuda/decode_f16.cu: instances of decode.cuh and decode_brief.cuh for activations in f16: heads of up to 64 and 128, a
 * cache of the same type, of int8 and of int4. */
#include "cuda/decode_brief.cuh"

#define INSTANCE(size, D, bits)                                                                    \
    TURBOK_KERNEL(decode##size##_f16, decode, 32 * WARPS, TURBOK_CU_DECODE_BLOCKS)                 \
    {                                                                                              \
        decode_body<f16, D, bits>(a);                                                              \
    }                                                                                              \
    TURBOK_KERNEL(brief##size##_f16, decode, 32 * WARPS, TURBOK_CU_DECODE_BLOCKS)                  \
    {                                                                                              \
        brief_body<f16, D, bits>(a);                                                               \
    }
INSTANCE(64, 64, 16)
INSTANCE(128, 128, 16)
INSTANCE(64q8, 64, 8)
INSTANCE(128q8, 128, 8)
INSTANCE(64q4, 64, 4)
INSTANCE(128q4, 128, 4)
