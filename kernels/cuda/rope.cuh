/* kernels/cuda/rope.cuh: what the kernels that turn heads share: rope.cu and gemm_turn.cuh. */
#ifndef TURBOK_CUDA_ROPE_CUH
#define TURBOK_CUDA_ROPE_CUH

#include "cuda/kv.cuh"

/* Two numbers turned by an angle; no fused operation, so that all kernels give the same bits. */
DEVICE float2 turned_by(float x, float y, float c, float s)
{
    return make_float2(__fadd_rn(__fmul_rn(x, c), -__fmul_rn(y, s)),
                       __fadd_rn(__fmul_rn(y, c), __fmul_rn(x, s)));
}

/* Head h (0..H+2K-1: Q, K, V) of a token: first column in the row of the product. */
DEVICE int64_t column(const turbok_cu_attn &at, int h)
{
    int H = at.n_heads, K = at.kv.n_kv, g = H / K, kind = h < H ? 0 : h < H + K ? 1 : 2;
    if (at.layout == 0)
        return static_cast<int64_t>(h) * at.kv.head_dim;
    int group = kind == 0 ? h / g : kind == 1 ? h - H : h - H - K;
    int slot = kind == 0 ? h % g : g + kind - 1;
    return (static_cast<int64_t>(group) * (g + 2) + slot) * at.kv.head_dim;
}
/* The other way round: which head begins at column n * head_dim. kind: 0 Q, 1 K, 2 V. */
DEVICE int head_of(const turbok_cu_attn &at, int n, int *kind)
{
    const int H = at.n_heads, K = at.kv.n_kv, g = H / K;
    if (at.layout == 0) {
        *kind = n < H ? 0 : n < H + K ? 1 : 2;
        return n - (n < H ? 0 : n < H + K ? H : H + K);
    }
    const int group = n / (g + 2), slot = n - group * (g + 2);
    *kind = slot < g ? 0 : slot - g + 1;
    return slot < g ? group * g + slot : group;
}

#endif
