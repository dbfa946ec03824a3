/* kernels/cuda/decode_place.cuh: where the keys and values of an item of decode.cuh lie. */
#ifndef TURBOK_CUDA_DECODE_PLACE_CUH
#define TURBOK_CUDA_DECODE_PLACE_CUH

#include "cuda/kv.cuh"

struct key_place {
    const turbok_cu_kv *kv;
    const char *planes; /* of block 0, layer, K, head */
    const int32_t *table;
    int shift; /* log2 of block_tokens; -1: no power of two */
    int from, to; /* keys from..to-1 exist for this item */

    DEVICE_METHOD const char *plane(int pos, int *slot) const
    {
        int block = shift >= 0 ? pos >> shift : pos / kv->block_tokens;
        *slot = pos - block * kv->block_tokens;
        return planes + table[block] * static_cast<int64_t>(kv->block_bytes);
    }
    DEVICE_METHOD int64_t value_offset() const
    {
        return kv->n_kv * static_cast<int64_t>(kv->plane_bytes);
    }
};

#endif
