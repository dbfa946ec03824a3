/* kernels/nn/rows.c: the ops that go row by row: embedding, norms, gather, gated sums. */
#include <math.h>
#include <string.h>

#include "cpu/half.h"
#include "internal.h"

typedef struct embed_job {
    const turbo_linear *table;
    const turbo_batch *b;
    float *out; /* [T,E] */
} embed_job;

/* Row of a table out of its tile: elements lie a tile's width apart, so no vector can be loaded. */
static void read_lane(int32_t dtype, const char *lane, size_t n, float *out)
{
    if (dtype == TURBO_F32) {
        for (size_t k = 0; k < n; k++)
            memcpy(&out[k], lane + k * TURBOK_TILE * 4, 4);
        return;
    }
    for (size_t k = 0; k < n; k++) {
        uint16_t h;
        memcpy(&h, lane + k * TURBOK_TILE * 2, 2);
        out[k] = dtype == TURBO_F16 ? turbok_f16_to_f32(h) : turbok_bf16_to_f32(h);
    }
}

void turbok_float_row(const turbo_linear *w, int64_t row, float *out)
{
    size_t id = (size_t)row, n = (size_t)w->in;
    const char *lane =
        (const char *)w->data +
        (id / TURBOK_TILE * n * TURBOK_TILE + id % TURBOK_TILE) * turbok_dtype_size(w->dtype);
    read_lane(w->dtype, lane, n, out);
}

static void embed_range(void *ctx, int64_t from, int64_t to, int thread)
{
    const embed_job *j = ctx;
    const turbo_linear *w = j->table;
    size_t E = (size_t)w->in;
    (void)thread;
    for (int64_t t = from; t < to; t++) {
        float *out = j->out + (size_t)t * E;
        if (j->b->embed_rows && j->b->embed_index[t] >= 0) {
            memcpy(out, (const float *)j->b->embed_rows + (size_t)j->b->embed_index[t] * E,
                   E * sizeof *out);
            continue;
        }
        if (turbok_coded(w))
            turbok_grid_embed(w, j->b->tokens[t], out);
        else
            turbok_float_row(w, j->b->tokens[t], out);
    }
}

void turbok_op_embed(turbo_exec *x, const turbo_linear *table, const turbo_batch *b, void *out)
{
    embed_job j = {table, b, out};
    turbok_pool_for(x->pool, b->n_tokens, 16, embed_range, &j);
}

typedef struct norm_job {
    const turbok_prim *prim;
    float *h;
    const float *delta;
    const turbo_vector *w, *bias; /* bias: LayerNorm */
    float eps;
    int32_t E;
    float *out;
} norm_job;

static void norm_range(void *ctx, int64_t from, int64_t to, int thread)
{
    const norm_job *j = ctx;
    (void)thread;
    for (int64_t t = from; t < to; t++) {
        size_t at = (size_t)t * (size_t)j->E;
        const float *delta = j->delta ? j->delta + at : NULL;
        if (j->bias)
            j->prim->layernorm(j->h + at, delta, j->w->data, j->bias->data, j->eps, j->E,
                               j->out + at);
        else
            j->prim->rmsnorm(j->h + at, delta, j->w->data, j->eps, j->E, j->out + at);
    }
}

void turbok_op_rmsnorm(turbo_exec *x, void *h, const void *delta, const turbo_vector *w, float eps,
                       int32_t T, int32_t E, void *out)
{
    norm_job j = {x->prim, h, delta, w, NULL, eps, E, out};
    turbok_pool_for(x->pool, T, 16, norm_range, &j);
}

void turbok_op_layernorm(turbo_exec *x, void *h, const void *delta, const turbo_vector *w,
                         const turbo_vector *bias, float eps, int32_t T, int32_t E, void *out)
{
    norm_job j = {x->prim, h, delta, w, bias, eps, E, out};
    turbok_pool_for(x->pool, T, 16, norm_range, &j);
}

void turbok_op_gather(turbo_exec *x, const void *in, const int32_t *index, int32_t R, int32_t E,
                      void *out)
{
    (void)x;
    for (int32_t r = 0; r < R; r++)
        memcpy((float *)out + (size_t)r * (size_t)E,
               (const float *)in + (size_t)index[r] * (size_t)E, (size_t)E * sizeof(float));
}

typedef struct gate_job {
    float *h;
    const float *delta, *w, *in;
    size_t E;
} gate_job;

/* Four sums in double: their order, and so the bits, are the same everywhere. */
static float gate_of(const float *in, const float *w, size_t E)
{
    double sum[4] = {0};
    for (size_t i = 0; i < E; i++)
        sum[i % 4] += (double)in[i] * (double)w[i];
    return (float)(1 / (1 + exp(-(sum[0] + sum[1] + (sum[2] + sum[3])))));
}

static void gate_range(void *ctx, int64_t from, int64_t to, int thread)
{
    const gate_job *j = ctx;
    (void)thread;
    for (int64_t t = from; t < to; t++) {
        size_t at = (size_t)t * j->E;
        float gate = gate_of(j->in + at, j->w, j->E);
        for (size_t i = 0; i < j->E; i++)
            j->h[at + i] += gate * j->delta[at + i];
    }
}

void turbok_op_add_gated(turbo_exec *x, void *h, const void *delta, const turbo_vector *w,
                         const void *in, int32_t T, int32_t E)
{
    gate_job j = {h, delta, w->data, in, (size_t)E};
    turbok_pool_for(x->pool, T, 16, gate_range, &j);
}

typedef struct head_job {
    const turbok_prim *prim;
    const turbo_attn *a;
    const float *q, *k; /* [D] */
    float eps;
    float *qkv; /* [T,(H+2K)*D] */
} head_job;

static void head_range(void *ctx, int64_t from, int64_t to, int thread)
{
    const head_job *j = ctx;
    const turbo_attn *a = j->a;
    /* Heads of queries, a key, a value: once for each KV head, or once for all of them. */
    int32_t groups = a->layout == TURBO_QKV_GROUPED ? a->n_kv : 1;
    int32_t heads = a->n_heads / groups, keys = a->n_kv / groups;
    (void)thread;
    for (int64_t t = from; t < to; t++) {
        float *row = j->qkv + t * (a->n_heads + 2 * a->n_kv) * a->head_dim;
        for (int32_t g = 0; g < groups; g++, row += keys * a->head_dim)
            for (int32_t i = 0; i < heads + keys; i++, row += a->head_dim)
                j->prim->rmsnorm(row, NULL, i < heads ? j->q : j->k, j->eps, a->head_dim, row);
    }
}

void turbok_op_head_norm(turbo_exec *x, const turbo_attn *a, const turbo_vector *q,
                         const turbo_vector *k, float eps, int32_t T, void *qkv)
{
    head_job j = {x->prim, a, q->data, k->data, eps, qkv};
    turbok_pool_for(x->pool, T, 16, head_range, &j);
}
