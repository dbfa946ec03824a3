/* kernels/cuda/kv.cuh: how device code finds and reads keys and values; layout in doc/kernels.md. */
#ifndef TURBOK_CUDA_KV_CUH
#define TURBOK_CUDA_KV_CUH

#include "cuda/kernels.h"
#include "cuda/prims.cuh"

enum { KV_INT8 = 0x108, KV_INT4 = 0x104 };

DEVICE char *kv_plane(const turbok_cu_kv &kv, int64_t block, int layer, int value, int head)
{
    int64_t row = (static_cast<int64_t>(layer) * 2 + value) * kv.n_kv + head;
    return kv.base + block * static_cast<int64_t>(kv.block_bytes) +
           row * static_cast<int64_t>(kv.plane_bytes);
}
/* Bytes of the codes of a quantised plane: scales stand behind them, then zeros. */
DEVICE int64_t kv_code_bytes(const turbok_cu_kv &kv)
{
    int64_t n = static_cast<int64_t>(kv.block_tokens) * kv.head_dim;
    return kv.dtype == KV_INT8 ? n : n / 2;
}
DEVICE float kv_element(const turbok_cu_kv &kv, const char *plane, int slot, int d)
{
    int64_t at = static_cast<int64_t>(slot) * kv.head_dim + d;
    if (kv.dtype < KV_INT4)
        return element_of(kv.dtype, plane, at);
    const bf16 *par = reinterpret_cast<const bf16 *>(plane + kv_code_bytes(kv)) + slot;
    const uint8_t *codes = reinterpret_cast<const uint8_t *>(plane);
    int u = kv.dtype == KV_INT8 ? codes[at] : codes[at / 2] >> 4 * (d & 1) & 15;
    return fmaf(to_f(par[0]), static_cast<float>(u), to_f(par[kv.block_tokens]));
}

/* Rows [width] of tokens that are padding become zero; by all blocks of x. */
template <class T> DEVICE void clear_padding(const turbok_cu_batch &b, void *rows, int64_t width)
{
    for (int64_t t = blockIdx.x; t < b.T; t += gridDim.x)
        for (int64_t i = threadIdx.x; i < width && b.seq_of[t] < 0; i += blockDim.x)
            static_cast<T *>(rows)[t * width + i] = from_f<T>(0.0f);
}

#endif
