/* kernels/cuda/l_rows.c: launches of rows.cu and rope.cu, see ops.h. */
#include "cuda/ops.h"

#include "prim.h"

static unsigned blocks_of(const turbok_cu *cu, int64_t items, int64_t per_block)
{
    int64_t n = (items + per_block - 1) / per_block, most = (int64_t)cu->sm_count * 16;
    return (unsigned)(n < most ? n : most);
}

void turbok_cu_embed(turbok_cu *cu, int32_t act, const void *table, int32_t dtype, int32_t E,
                     const turbok_cu_batch *b, void *out)
{
    struct turbok_cu_embed_args a = {.table = table, .b = *b, .out = out, .E = E, .dtype = dtype};
    turbok_cu_launch(cu, TURBOK_CU_embed_f32 + act, TURBOK_CU_DIM((unsigned)b->T),
                     TURBOK_CU_DIM(256), 0, TURBOK_CU_PDL, &a);
}

void turbok_cu_resolve(turbok_cu *cu, const turbok_cu_batch *b)
{
    struct turbok_cu_resolve_args a = {.b = *b, .tokens = (int32_t *)(uintptr_t)b->tokens};
    turbok_cu_launch(cu, TURBOK_CU_resolve, TURBOK_CU_DIM(blocks_of(cu, b->T, 256)),
                     TURBOK_CU_DIM(256), 0, TURBOK_CU_PDL, &a);
}

static void norm(turbok_cu *cu, int32_t act, const struct turbok_cu_rmsnorm_args *a, int32_t T)
{
    /* A thread keeps 8 numbers in registers; rows that do not fit are read twice. */
    int64_t threads = a->E % 8 == 0 && a->E <= 8192 ? (a->E / 8 + 31) / 32 * 32 : 512;
    int kernel = TURBOK_CU_rmsnorm_f32 + act;
    if (T >= cu->sm_count && act != TURBO_F32 && !a->bias && a->E % 8 == 0 &&
        threads <= TURBOK_CU_NORM_ROWS)
        kernel = act == TURBO_BF16 ? TURBOK_CU_rmsnorm_rows_bf16 : TURBOK_CU_rmsnorm_rows_f16;
    turbok_cu_launch(cu, kernel, TURBOK_CU_DIM((unsigned)T), TURBOK_CU_DIM((unsigned)threads), 0,
                     TURBOK_CU_PDL, a);
}

void turbok_cu_rmsnorm(turbok_cu *cu, int32_t act, void *h, const void *delta, const float *w,
                       float eps, int32_t T, int32_t E, void *out)
{
    struct turbok_cu_rmsnorm_args a = {
        .h = h, .delta = delta, .w = w, .out = out, .E = E, .eps = eps};
    norm(cu, act, &a, T);
}

void turbok_cu_layernorm(turbok_cu *cu, int32_t act, void *h, const void *delta, const float *w,
                         const float *bias, float eps, int32_t T, int32_t E, void *out)
{
    struct turbok_cu_rmsnorm_args a = {
        .h = h, .delta = delta, .w = w, .bias = bias, .out = out, .E = E, .eps = eps};
    norm(cu, act, &a, T);
}

void turbok_cu_gather(turbok_cu *cu, int32_t act, const void *in, const int32_t *index, int32_t R,
                      int32_t E, void *out)
{
    struct turbok_cu_gather_args a = {.in = in, .index = index, .out = out, .E = E};
    turbok_cu_launch(cu, TURBOK_CU_gather_f32 + act, TURBOK_CU_DIM((unsigned)R), TURBOK_CU_DIM(256),
                     0, TURBOK_CU_PDL, &a);
}

void turbok_cu_activate(turbok_cu *cu, int32_t act, int32_t fn, const void *gate, const void *up,
                        int64_t n, void *out)
{
    struct turbok_cu_activate_args a = {.gate = gate, .up = up, .out = out, .n = n, .fn = fn};
    turbok_cu_launch(cu, TURBOK_CU_activate_f32 + act,
                     TURBOK_CU_DIM((unsigned)((n + 256 * 8 - 1) / (256 * 8))), TURBOK_CU_DIM(256),
                     0, TURBOK_CU_PDL, &a);
}

void turbok_cu_bias_activate(turbok_cu *cu, int32_t act, int32_t fn, void *y, const float *bias,
                             int32_t T, int32_t out)
{
    struct turbok_cu_activate_args a = {
        .gate = y, .bias = bias, .out = y, .n = (int64_t)T * out, .width = out, .fn = fn};
    turbok_cu_launch(cu, TURBOK_CU_activate_f32 + act, TURBOK_CU_DIM(blocks_of(cu, a.n, 256 * 8)),
                     TURBOK_CU_DIM(256), 0, TURBOK_CU_PDL, &a);
}

void turbok_cu_add(turbok_cu *cu, int32_t act, void *h, const void *delta, int64_t n)
{
    struct turbok_cu_add_args a = {.h = h, .delta = delta, .n = n};
    turbok_cu_launch(cu, TURBOK_CU_add_f32 + act, TURBOK_CU_DIM(blocks_of(cu, n, 256)),
                     TURBOK_CU_DIM(256), 0, TURBOK_CU_PDL, &a);
}

void turbok_cu_add_gated(turbok_cu *cu, int32_t act, void *h, const void *delta, const float *w,
                         const void *in, int32_t T, int32_t E)
{
    struct turbok_cu_add_gated_args a = {.h = h, .delta = delta, .in = in, .w = w, .E = E};
    turbok_cu_launch(cu, TURBOK_CU_add_gated_f32 + act, TURBOK_CU_DIM((unsigned)T),
                     TURBOK_CU_DIM(256), 0, TURBOK_CU_PDL, &a);
}

void turbok_cu_head_norm(turbok_cu *cu, int32_t act, const turbo_attn *at, const float *q,
                         const float *k, float eps, int32_t T, void *qkv)
{
    enum { WARPS = 8 };
    struct turbok_cu_head_norm_args a = {
        .qkv = qkv,
        .q = q,
        .k = k,
        .heads = (int64_t)T * (at->n_heads + at->n_kv),
        .H = at->n_heads,
        .K = at->n_kv,
        .D = at->head_dim,
        .groups = at->layout == TURBO_QKV_GROUPED ? at->n_kv : 1,
        .eps = eps,
    };
    turbok_cu_launch(cu, TURBOK_CU_head_norm_f32 + act,
                     TURBOK_CU_DIM((unsigned)((a.heads + WARPS - 1) / WARPS)),
                     TURBOK_CU_DIM(32 * WARPS), 0, TURBOK_CU_PDL, &a);
}

void turbok_cu_add_bias(turbok_cu *cu, int32_t out_dtype, void *y, const float *bias, int32_t T,
                        int32_t out)
{
    struct turbok_cu_add_bias_args a = {.y = y, .bias = bias, .n = (int64_t)T * out, .out = out};
    turbok_cu_launch(cu, TURBOK_CU_add_bias_f32 + out_dtype,
                     TURBOK_CU_DIM(blocks_of(cu, a.n, out % 8 ? 256 : 256 * 8)), TURBOK_CU_DIM(256),
                     0, TURBOK_CU_PDL, &a);
}

void turbok_cu_patches(turbok_cu *cu, int32_t act, const uint8_t *pixels, int32_t N, int32_t height,
                       int32_t width, int32_t size, const float *value, void *out)
{
    struct turbok_cu_patches_args a = {.pixels = pixels,
                                       .value = value,
                                       .out = out,
                                       .height = height,
                                       .width = width,
                                       .size = size,
                                       .rows = height / size,
                                       .cols = width / size};
    a.n = (int64_t)N * a.rows * a.cols * 3 * size * size;
    turbok_cu_launch(cu, TURBOK_CU_patches_f32 + act, TURBOK_CU_DIM(blocks_of(cu, a.n, 256)),
                     TURBOK_CU_DIM(256), 0, TURBOK_CU_PDL, &a);
}

void turbok_cu_position_rows(turbok_cu *cu, int32_t act, const void *in, const float *first,
                             const float *position, int32_t N, int32_t P, int32_t E, void *out)
{
    struct turbok_cu_position_rows_args a = {.in = in,
                                             .first = first,
                                             .position = position,
                                             .out = out,
                                             .n = (int64_t)N * (1 + P) * E,
                                             .P = P,
                                             .E = E};
    turbok_cu_launch(cu, TURBOK_CU_position_rows_f32 + act, TURBOK_CU_DIM(blocks_of(cu, a.n, 256)),
                     TURBOK_CU_DIM(256), 0, TURBOK_CU_PDL, &a);
}

void turbok_cu_rope_store(turbok_cu *cu, int32_t act, const turbok_cu_attn *at,
                          const turbok_cu_batch *b, const void *qkv, void *q)
{
    enum { WARPS = 8, MANY = 128 };
    int32_t heads = at->n_heads + 2 * at->kv.n_kv;
    struct turbok_cu_rope_store_args a = {.at = *at, .b = *b, .qkv = qkv, .q = q};
    bool wide = act != TURBO_F32 && at->kv.dtype == act && at->kv.head_dim % 16 == 0 &&
                at->rope_dim % 16 == 0 && (uintptr_t)qkv % 16 == 0 && (uintptr_t)q % 16 == 0;
    if (wide && b->T >= cu->sm_count) {
        turbok_cu_launch(cu, act == TURBO_BF16 ? TURBOK_CU_rope_rows_bf16 : TURBOK_CU_rope_rows_f16,
                         TURBOK_CU_DIM((unsigned)b->T), TURBOK_CU_DIM(MANY),
                         (size_t)at->rope_dim * sizeof(float), TURBOK_CU_PDL, &a);
        return;
    }
    /* With few tokens a warp has one head, so that the heads of a token fill the device; with many a
     * block does all heads, so that angles are computed once. */
    a.per_block = b->T < cu->sm_count ? WARPS : heads;
    size_t shared = ((size_t)at->rope_dim + WARPS * (size_t)at->kv.head_dim) * sizeof(float);
    turbok_cu_launch(cu, TURBOK_CU_rope_store_f32 + act,
                     TURBOK_CU_DIM((unsigned)b->T,
                                   (unsigned)((heads + a.per_block - 1) / a.per_block)),
                     TURBOK_CU_DIM(32 * WARPS), shared, TURBOK_CU_PDL, &a);
}
