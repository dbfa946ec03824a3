/* kernels/nn/rope.c: rotary tables, and the op that splits a projection, rotates and stores it.
 *
 * Source: RoFormer, arXiv 2104.09864. Frequencies are rounded to fp32 and the angle is an fp32
 * product, as the reference implementations have it: at position 100,000 that rounding is visible. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define TABLE_MAX 32768 /* positions of the precomputed table; later ones are computed as they come */

double turbok_rope_base(const turbo_rope_spec *s, int64_t rope_len)
{
    if (s->scaling != TURBO_ROPE_DYNAMIC || rope_len <= s->max_position || s->dim <= 2)
        return s->base;
    double f = (double)s->factor;
    double grow = f * (double)rope_len / (double)s->max_position - (f - 1.0);
    return s->base * pow(grow, (double)s->dim / (double)(s->dim - 2));
}

static void frequencies(const turbo_rope_spec *s, double base, float *inv)
{
    for (int32_t i = 0; i < s->dim / 2; i++) {
        float f = (float)pow(base, -2.0 * (double)i / (double)s->dim);
        inv[i] = s->scaling == TURBO_ROPE_LINEAR ? f / s->factor : f;
    }
}

void turbok_rope_inv(const turbo_rope *r, int32_t rope_len, float *inv)
{
    double base = turbok_rope_base(&r->spec, rope_len);
    if (base > r->spec.base || base < r->spec.base)
        frequencies(&r->spec, base, inv);
    else
        memcpy(inv, r->inv, (size_t)(r->spec.dim / 2) * sizeof *inv);
}

static int32_t table_len(const turbo_rope_spec *s)
{
    return s->max_position < TABLE_MAX ? s->max_position : TABLE_MAX;
}

static bool possible(const turbo_rope_spec *s)
{
    return s->dim >= 2 && s->dim % 2 == 0 && s->max_position >= 1 && s->base > 0 && s->factor > 0;
}

/* Floats of a table of one handle: cosines or sines. */
static size_t table_floats(const turbo_rope_spec *s)
{
    return (size_t)table_len(s) * (size_t)(s->dim / 2);
}

uint64_t turbok_rope_bytes(const turbo_rope_spec *s)
{
    if (!possible(s))
        return 0;
    return turbok_alloc_size((size_t)(s->dim / 2) * sizeof(float)) +
           2 * (uint64_t)turbok_alloc_size(table_floats(s) * sizeof(float));
}

turbo_status turbok_rope_new(turbok_device *d, const turbo_rope_spec *spec, turbo_rope **out,
                             turbo_err *err)
{
    if (!possible(spec))
        return turbok_fail(err, TURBO_EINVAL, "RoPE of dimension %d, base %g, factor %g is not possible",
                           spec->dim, spec->base, (double)spec->factor);
    turbo_rope *r = calloc(1, sizeof *r);
    if (!r)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for RoPE");
    r->spec = *spec;
    r->table_len = table_len(spec);
    size_t half = (size_t)spec->dim / 2, n = table_floats(spec);
    r->inv = turbok_alloc(d, TURBOK_MEM_ROPE, half * sizeof(float));
    r->cosine = turbok_alloc(d, TURBOK_MEM_ROPE, n * sizeof(float));
    r->sine = turbok_alloc(d, TURBOK_MEM_ROPE, n * sizeof(float));
    if (!r->inv || !r->cosine || !r->sine) {
        turbok_rope_free(d, r);
        return turbok_fail(err, TURBO_ENOMEM, "no memory for RoPE tables");
    }
    frequencies(spec, spec->base, r->inv);
    for (int32_t pos = 0; pos < r->table_len; pos++)
        for (size_t i = 0; i < half; i++) {
            float angle = (float)pos * r->inv[i];
            r->cosine[(size_t)pos * half + i] = (float)cos((double)angle);
            r->sine[(size_t)pos * half + i] = (float)sin((double)angle);
        }
    *out = r;
    return TURBO_OK;
}

void turbok_rope_free(turbok_device *d, turbo_rope *r)
{
    if (!r)
        return;
    size_t n = table_floats(&r->spec) * sizeof(float);
    turbok_release(d, TURBOK_MEM_ROPE, r->inv, (size_t)(r->spec.dim / 2) * sizeof(float));
    turbok_release(d, TURBOK_MEM_ROPE, r->cosine, n);
    turbok_release(d, TURBOK_MEM_ROPE, r->sine, n);
    free(r);
}

/* One head: in [D] to out [D]; dimensions beyond spec.dim pass through. */
static void rotate(const turbo_rope_spec *s, const float *c, const float *sn, const float *in,
                   int32_t D, float *out)
{
    int32_t half = s->dim / 2;
    for (int32_t i = 0; i < half; i++) {
        int32_t a = s->style == TURBO_ROPE_HALF ? i : 2 * i;
        int32_t b = s->style == TURBO_ROPE_HALF ? i + half : 2 * i + 1;
        float x = in[a], y = in[b];
        out[a] = x * c[i] - y * sn[i];
        out[b] = y * c[i] + x * sn[i];
    }
    for (int32_t i = s->dim; i < D; i++)
        out[i] = in[i];
}

typedef struct store_job {
    turbo_exec *x;
    const turbo_attn *a;
    const turbo_batch *b;
    const float *qkv; /* [T,(H+2K)*D] */
    float *q;         /* [T,H,D] */
} store_job;

/* Column of the projection where head h of Q (kind 0), K (1) or V (2) begins. */
static int64_t column(const turbo_attn *a, int kind, int32_t h)
{
    int64_t D = a->head_dim, g = a->n_heads / a->n_kv;
    if (a->layout == TURBO_QKV_GROUPED) {
        int64_t group = kind ? h : h / g, slot = kind == 0 ? h % g : g + kind - 1;
        return (group * (g + 2) + slot) * D;
    }
    int64_t before = kind == 0 ? 0 : kind == 1 ? a->n_heads : a->n_heads + a->n_kv;
    return (before + h) * D;
}

/* cos and sin of position pos, from the table or computed into tmp [dim]. */
static void angles(const turbo_rope *r, bool plain, const float *inv, int32_t pos, float *tmp,
                   const float **c, const float **s)
{
    int32_t half = r->spec.dim / 2;
    if (plain && pos < r->table_len) {
        *c = r->cosine + (size_t)pos * (size_t)half;
        *s = r->sine + (size_t)pos * (size_t)half;
        return;
    }
    for (int32_t i = 0; i < half; i++) {
        float angle = (float)pos * inv[i];
        tmp[i] = (float)cos((double)angle);
        tmp[half + i] = (float)sin((double)angle);
    }
    *c = tmp;
    *s = tmp + half;
}

static void store_token(const store_job *j, int32_t t, int32_t seq, const float *c, const float *s,
                        float *tmp)
{
    const turbo_attn *a = j->a;
    const turbok_kv_pool *pool = j->b->kv->pool;
    const turbok_kv_table *table = j->b->kv->tables[seq];
    int32_t D = a->head_dim, pos = j->b->positions[t];
    const float *row = j->qkv + (size_t)t * (size_t)(a->n_heads + 2 * a->n_kv) * (size_t)D;
    for (int32_t h = 0; h < a->n_heads; h++) {
        float *out = j->q + ((size_t)t * (size_t)a->n_heads + (size_t)h) * (size_t)D;
        if (a->rope)
            rotate(&a->rope->spec, c, s, row + column(a, 0, h), D, out);
        else
            memcpy(out, row + column(a, 0, h), (size_t)D * sizeof *out);
    }
    for (int32_t h = 0; h < a->n_kv; h++) {
        const float *k = row + column(a, 1, h);
        if (a->rope) {
            rotate(&a->rope->spec, c, s, k, D, tmp);
            k = tmp;
        }
        turbok_kv_write(j->x->prim, pool, table, a->layer, false, h, pos, k, tmp + D);
        turbok_kv_write(j->x->prim, pool, table, a->layer, true, h, pos, row + column(a, 2, h),
                        tmp + D);
    }
}

static void store_range(void *ctx, int64_t from, int64_t to, int thread)
{
    const store_job *j = ctx;
    const turbo_rope *r = j->a->rope;
    turbok_scratch *sc = &j->x->scratch[thread];
    int32_t seq = 0, ready = -1;
    for (int64_t t = from; t < to; t++) {
        while (t >= j->b->cu_seqlens[seq + 1])
            seq++;
        const float *c = NULL, *s = NULL;
        if (r) {
            int32_t len = j->b->rope_lens[seq];
            bool plain = r->spec.scaling != TURBO_ROPE_DYNAMIC || len <= r->spec.max_position;
            if (ready != seq && (!plain || j->b->positions[t] >= r->table_len)) {
                turbok_rope_inv(r, len, sc->inv);
                ready = seq;
            }
            angles(r, plain, sc->inv, j->b->positions[t], sc->acc, &c, &s);
        }
        store_token(j, (int32_t)t, seq, c, s, sc->k);
    }
}

void turbok_op_qkv_rope_store(turbo_exec *x, const turbo_attn *a, const turbo_batch *b,
                              const void *qkv, void *q)
{
    store_job j = {x, a, b, qkv, q};
    turbok_pool_for(x->pool, b->n_tokens, 8, store_range, &j);
}
