/* kernels/cuda/l_attention.c: launches of attention, see ops.h. */
#include "cuda/ops.h"

void turbok_cu_attention_full(turbok_cu *cu, int32_t act, const void *qkv, int32_t N, int32_t T,
                              int32_t H, int32_t D, float scale, void *out)
{
    struct turbok_cu_attend_full_args a = {
        .qkv = qkv, .out = out, .T = T, .H = H, .D = D, .scale = scale};
    turbok_cu_launch(cu, TURBOK_CU_attend_full_f32 + act,
                     TURBOK_CU_DIM((unsigned)T, (unsigned)H, (unsigned)N), TURBOK_CU_DIM(128),
                     (size_t)D * sizeof(float), TURBOK_CU_PDL, &a);
}

uint64_t turbok_cu_attention_bytes(int32_t max_T, int32_t max_B, int32_t n_heads, int32_t head_dim,
                                   int32_t max_kv)
{
    (void)max_T;
    (void)max_B;
    (void)n_heads;
    (void)head_dim;
    (void)max_kv;
    return 256;
}

void turbok_cu_attention(turbok_cu *cu, int32_t act, const turbok_cu_attn *at,
                         const turbok_cu_batch *b, const void *q, void *out, void *scratch,
                         uint64_t scratch_bytes)
{
    struct turbok_cu_attend_args a = {.at = *at, .b = *b, .q = q, .out = out};
    (void)scratch;
    (void)scratch_bytes;
    turbok_cu_launch(cu, TURBOK_CU_attend_f32 + act,
                     TURBOK_CU_DIM((unsigned)b->T, (unsigned)at->n_heads), TURBOK_CU_DIM(128),
                     (size_t)at->kv.head_dim * sizeof(float), TURBOK_CU_PDL, &a);
}
