/* kernels/cuda/ops.c: the op table of a CUDA device: what a model calls, in terms of the launchers. Engine
 * thread. */
#include "cuda/state.h"

/* n rows [E] act of `from`, beginning with row first, to out's from row at on. */
static void copy_rows(turbok_cuda *s, const void *from, int32_t first, int32_t n, int64_t E,
                      void *out, int32_t at, const char *what)
{
    size_t row = (size_t)E * turbok_dtype_size(s->act);
    if (!turbok_cu_bad(s->cu))
        turbok_cu_note(s->cu,
                       s->cu->drv.copy_on_device(turbok_cu_at(out) + (size_t)at * row,
                                                 turbok_cu_at(from) + (size_t)first * row,
                                                 (size_t)n * row, s->cu->stream),
                       what);
}

/* Rows of another modality over the rows of a table: each stretch of neighbours is one copy. A step that has
 * some is never replayed, so what b says on the host is what the device has. */
static void put_embed_rows(turbok_cuda *s, const turbo_batch *b, int64_t E, void *out)
{
    for (int32_t t = 0, n; b->embed_rows && t < b->n_tokens; t += n) {
        int32_t from = b->embed_index[t];
        n = 1;
        while (t + n < b->n_tokens && from >= 0 && b->embed_index[t + n] == from + n)
            n++;
        if (from >= 0)
            copy_rows(s, b->embed_rows, from, n, E, out, t, "embedding of pictures");
    }
}

static void op_embed(turbo_exec *x, const turbo_linear *table, const turbo_batch *b, void *out)
{
    turbok_cuda *s = turbok_cuda_of(x);
    turbok_cuda_writes(s, turbok_cuda_rows(s, out, s->batch.T, table->in));
    if (turbok_cuda_coded(table)) {
        turbok_cu_resolve(s->cu, &s->batch);
        turbok_cuda_coded_rows(s, table, s->batch.tokens, s->batch.T, out);
        put_embed_rows(s, b, table->in, out);
        return;
    }
    turbok_cu_embed(s->cu, s->act, table->data, table->dtype, (int32_t)table->in, &s->batch, out);
}

static void op_rmsnorm(turbo_exec *x, void *h, const void *delta, const turbo_vector *w, float eps,
                       int32_t T, int32_t E, void *out)
{
    turbok_cuda *s = turbok_cuda_of(x);
    turbok_cuda_rmsnorm(s, h, delta, w->data, eps, T, E, out);
}

/* Is a product kept for qkv_rope_store, with which it may be one launch? Of a step, that is: nobody would miss what was kept
 * between two of them. */
static bool turns(const turbok_cuda *s, const turbo_linear *w, int32_t T)
{
    const int64_t heads = (int64_t)s->steps.n_heads + 2 * s->kv.n_kv;
    return s->stepping && T == s->batch.T && w->out == heads * s->kv.head_dim && !w->parts &&
           !turbok_cuda_coded(w) && w->dtype == s->act && s->kv.dtype == s->act &&
           s->kv.head_dim == TURBOK_CU_GEMM_WIDE_HEAD && turbok_cu_gemm_turns(s->cu, T, w->out);
}

static void op_linear(turbo_exec *x, const turbo_linear *w, const void *in, int32_t T, void *out)
{
    turbok_cuda *s = turbok_cuda_of(x);
    if (!turns(s, w, T)) {
        turbok_cuda_product_of(s, w, in, T, s->act, out);
        return;
    }
    turbok_cuda_writes(s, turbok_cuda_rows(s, out, T, w->out));
    turbok_cuda_reads(s, turbok_cuda_rows(s, in, T, w->in));
    s->kept = (turbok_cuda_product){.w = w, .x = in, .y = out, .T = T};
}

static turbok_cu_attn layer_of(const turbok_cuda *s, const turbo_attn *a)
{
    turbok_cu_attn out = {
        .kv = s->kv,
        .layer = a->layer,
        .n_heads = a->n_heads,
        .layout = a->layout,
        .window = a->window,
        .scale = a->scale,
    };
    const turbo_rope *r = a->rope;
    if (r) {
        out.rope_dim = r->spec.dim;
        out.rope_style = r->spec.style;
        out.rope_table = r->table_len;
        out.cosine = r->cosine;
        out.sine = r->sine;
        out.inv = r->inv;
        out.rope_scale = r->scale;
        /* Of a length that no prompt can have the base does not depend. */
        const bool grows =
            r->spec.scaling == TURBO_ROPE_DYNAMIC && s->steps.max_len > r->spec.max_position;
        out.rope_factor = grows ? r->spec.factor : 0;
        out.rope_base = r->spec.base;
        out.rope_max = r->spec.max_position;
    }
    return out;
}

static void op_qkv_rope_store(turbo_exec *x, const turbo_attn *a, const turbo_batch *b,
                              const void *qkv, void *q)
{
    turbok_cuda *s = turbok_cuda_of(x);
    turbok_cu_attn layer = layer_of(s, a);
    const turbok_cuda_product p = s->kept;
    (void)b;
    if (p.w && p.y == qkv && turns(s, p.w, p.T) && layer.n_heads == s->steps.n_heads) {
        const turbok_cuda_span to =
            turbok_cuda_rows(s, q, p.T, (int64_t)layer.n_heads * layer.kv.head_dim);
        s->kept.w = NULL;
        turbok_cuda_writes(s, to);
        /* Queries may come where the inputs of the product were, as two ops one after the other allow. */
        if (turbok_cuda_apart(turbok_cuda_rows(s, p.x, p.T, p.w->in), to) &&
            turbok_cu_gemm_turned(s->cu, s->act, p.w->data, p.w->dtype, p.w->bias, (int32_t)p.w->in,
                                  p.x, &layer, &s->batch, q))
            return;
        turbok_cuda_multiply(s, p.w, p.x, p.T, s->act, p.y);
    }
    turbok_cuda_turn(s, &layer, qkv, q);
}

static void op_attention(turbo_exec *x, const turbo_attn *a, const turbo_batch *b, const void *q,
                         void *out)
{
    turbok_cuda *s = turbok_cuda_of(x);
    turbok_cu_attn layer = layer_of(s, a);
    (void)b;
    turbok_cuda_attend(s, &layer, q, out);
}

/* Gate and up in one launch, where one covers it; false: nothing was done. */
static bool gated_in_one(turbok_cuda *s, const turbo_linear *gate, const turbo_linear *up,
                         int32_t act, const void *in, int32_t T, void *out,
                         const turbok_cu_beside *b)
{
    const turbok_cu_wq *g = turbok_cuda_coded(gate), *u = turbok_cuda_coded(up);
    if (gate->parts || up->parts || !g != !u || (g && s->cu->deterministic) ||
        (b && !turbok_cuda_fuses(s, gate, T)))
        return false;
    if (g)
        return turbok_cuda_coded_gated(s, g, u, act, in, T, out, b);
    if (gate->bias || up->bias || gate->dtype != up->dtype)
        return false;
    if (!s->cu->deterministic && T <= TURBOK_CU_GEMV_ROWS)
        return turbok_cu_gemv_gated(s->cu, s->act, gate->data, up->data, gate->dtype, act,
                                    (int32_t)gate->out, (int32_t)gate->in, in, T, out, b);
    return !b && act == TURBO_ACT_SILU && turbok_cu_gemm_joins(s->cu, T, s->blas) &&
           turbok_cu_gemm_wide(s->cu, s->act, gate->data, up->data, gate->dtype, NULL,
                               (int32_t)gate->out, (int32_t)gate->in, in, T, s->act, out, NULL);
}

static void op_gated_mlp(turbo_exec *x, const turbo_linear *gate, const turbo_linear *up,
                         const turbo_linear *down, int32_t act, const void *in, int32_t T,
                         void *scratch, void *out)
{
    turbok_cuda *s = turbok_cuda_of(x);
    size_t half = (size_t)T * (size_t)gate->out * turbok_dtype_size(s->act);
    char *other = (char *)scratch + half;
    turbok_cu_beside b;
    turbok_cuda_writes(s, turbok_cuda_rows(s, scratch, T, 2 * gate->out));
    if (!turbok_cuda_normed(s, in, T, gate->in, &b) ||
        !gated_in_one(s, gate, up, act, s->norm.h, T, scratch, &b)) {
        turbok_cuda_reads(s, turbok_cuda_rows(s, in, T, gate->in));
        if (!gated_in_one(s, gate, up, act, in, T, scratch, NULL)) {
            turbok_cuda_multiply(s, gate, in, T, s->act, scratch);
            turbok_cuda_multiply(s, up, in, T, s->act, other);
            turbok_cu_activate(s->cu, s->act, act, scratch, other, (int64_t)T * gate->out, scratch);
        }
    }
    turbok_cuda_product_of(s, down, scratch, T, s->act, out);
}

static void op_mlp(turbo_exec *x, const turbo_linear *up, const turbo_linear *down, int32_t act,
                   const void *in, int32_t T, void *scratch, void *out)
{
    turbok_cuda *s = turbok_cuda_of(x);
    turbok_cuda_flush(s);
    const float *bias = turbok_cuda_multiply_bare(s, up, in, T, scratch);
    turbok_cu_bias_activate(s->cu, s->act, act, scratch, bias, T, (int32_t)up->out);
    turbok_cuda_multiply(s, down, scratch, T, s->act, out);
}

/* A model gathers the rows whose logits are wanted; their indices are on the device already. */
static void op_gather(turbo_exec *x, const void *in, const int32_t *index, int32_t R, int32_t E,
                      void *out)
{
    turbok_cuda *s = turbok_cuda_of(x);
    int32_t rows = index == s->row_index ? s->batch.T : 0;
    for (int32_t r = 0; index != s->row_index && r < R; r++)
        rows = index[r] >= rows ? index[r] + 1 : rows;
    turbok_cuda_reads(s, turbok_cuda_rows(s, in, rows, E));
    turbok_cuda_writes(s, turbok_cuda_rows(s, out, R, E));
    if (index == s->row_index) {
        turbok_cu_gather(s->cu, s->act, in, s->batch.row_index, R, E, out);
        return;
    }
    for (int32_t r = 0, n; r < R; r += n) { /* indices on the host: each stretch of neighbours */
        n = 1;
        while (r + n < R && index[r + n] == index[r] + n)
            n++;
        copy_rows(s, in, index[r], n, E, out, r, "gather");
    }
}

static void op_logits(turbo_exec *x, const turbo_linear *head, const void *in, int32_t R,
                      float *out)
{
    turbok_cuda_product_of(turbok_cuda_of(x), head, in, R, TURBO_F32, out);
}

static void op_layernorm(turbo_exec *x, void *h, const void *delta, const turbo_vector *w,
                         const turbo_vector *bias, float eps, int32_t T, int32_t E, void *out)
{
    turbok_cuda *s = turbok_cuda_of(x);
    turbok_cuda_flush(s);
    turbok_cu_layernorm(s->cu, s->act, h, delta, w->data, bias->data, eps, T, E, out);
}

static void op_attention_full(turbo_exec *x, const void *qkv, int32_t N, int32_t T, int32_t H,
                              int32_t D, float scale, void *out)
{
    turbok_cuda *s = turbok_cuda_of(x);
    turbok_cuda_flush(s);
    turbok_cu_attention_full(s->cu, s->act, qkv, N, T, H, D, scale, out);
}

/* One picture after the other through the same memory: the device does this in order. */
static void op_patches(turbo_exec *x, const uint8_t *pixels, int32_t N, int32_t height,
                       int32_t width, int32_t size, const float *value, void *out)
{
    turbok_cuda *s = turbok_cuda_of(x);
    size_t bytes = (size_t)height * (size_t)width * 3;
    size_t rows = (size_t)(height / size) * (size_t)(width / size);
    size_t each = rows * 3 * (size_t)size * (size_t)size * turbok_dtype_size(s->act);
    if (bytes > s->steps.picture_bytes) {
        turbok_cu_note(s->cu, TURBOK_CU_LAUNCH_FAILED,
                       "the model looks at larger pictures than it described");
        return;
    }
    uint8_t *at = (uint8_t *)s->pictures + TURBOK_CUDA_VALUES;
    turbok_cuda_flush(s);
    turbok_cuda_put(s, s->pictures, value, TURBOK_CUDA_VALUES);
    for (int32_t n = 0; n < N; n++) {
        turbok_cuda_put(s, at, pixels + (size_t)n * bytes, bytes);
        turbok_cu_patches(s->cu, s->act, at, 1, height, width, size,
                          (const float *)(const void *)s->pictures, (char *)out + (size_t)n * each);
    }
}

static void op_position_rows(turbo_exec *x, const void *in, const turbo_vector *first,
                             const turbo_vector *position, int32_t N, int32_t P, int32_t E,
                             void *out)
{
    turbok_cuda *s = turbok_cuda_of(x);
    turbok_cuda_flush(s);
    turbok_cu_position_rows(s->cu, s->act, in, first->data, position->data, N, P, E, out);
}

static void op_add(turbo_exec *x, void *h, const void *delta, int32_t T, int32_t E)
{
    turbok_cuda *s = turbok_cuda_of(x);
    turbok_cuda_flush(s);
    turbok_cu_add(s->cu, s->act, h, delta, (int64_t)T * E);
}

static void op_add_gated(turbo_exec *x, void *h, const void *delta, const turbo_vector *w,
                         const void *in, int32_t T, int32_t E)
{
    turbok_cuda *s = turbok_cuda_of(x);
    turbok_cuda_flush(s);
    turbok_cu_add_gated(s->cu, s->act, h, delta, w->data, in, T, E);
}

static void op_head_norm(turbo_exec *x, const turbo_attn *a, const turbo_vector *q,
                         const turbo_vector *k, float eps, int32_t T, void *qkv)
{
    turbok_cuda *s = turbok_cuda_of(x);
    const turbok_cuda_span heads =
        turbok_cuda_rows(s, qkv, T, ((int64_t)a->n_heads + 2 * a->n_kv) * a->head_dim);
    turbok_cuda_reads(s, heads);
    turbok_cuda_writes(s, heads);
    turbok_cu_head_norm(s->cu, s->act, a, q->data, k->data, eps, T, qkv);
}

#define TABLE(type)                                                                                \
    {                                                                                              \
        .size = sizeof(turbo_ops), .act_dtype = type, .embed = op_embed, .rmsnorm = op_rmsnorm,    \
        .linear = op_linear, .qkv_rope_store = op_qkv_rope_store, .attention = op_attention,       \
        .gated_mlp = op_gated_mlp, .gather = op_gather, .logits = op_logits,                       \
        .layernorm = op_layernorm, .mlp = op_mlp, .attention_full = op_attention_full,             \
        .patches = op_patches, .position_rows = op_position_rows, .add = op_add,                   \
        .moe = turbok_cuda_op_moe, .add_gated = op_add_gated, .head_norm = op_head_norm,           \
    }

const turbo_ops *turbok_cuda_ops(const turbok_device *d)
{
    static const turbo_ops tables[] = {
        [TURBO_F32] = TABLE(TURBO_F32),
        [TURBO_F16] = TABLE(TURBO_F16),
        [TURBO_BF16] = TABLE(TURBO_BF16),
    };
    const turbok_cuda *s = d->exec.self;
    return &tables[s->act];
}
