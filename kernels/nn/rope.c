/* kernels/nn/rope.c: rotary tables, and the op that splits a projection, rotates and stores it.
 *
 * Sources: RoFormer, arXiv 2104.09864; YaRN, arXiv 2309.00071; the formulas stand in turbo/plugin.h.
 * Frequencies are rounded to fp32 and the angle is an fp32 product, as the reference implementations
 * have it: at position 100,000 that rounding is visible. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define TABLE_MAX 32768 /* positions of the precomputed table; later ones are computed as they come */
#define TABLE_GRAIN 64 /* of them that a thread takes at a time */

double turbok_rope_base(const turbo_rope_spec *s, int64_t rope_len)
{
    if (s->scaling != TURBO_ROPE_DYNAMIC || rope_len <= s->max_position || s->dim <= 2)
        return s->base;
    double f = (double)s->factor;
    double grow = f * (double)rope_len / (double)s->max_position - (f - 1.0);
    return s->base * pow(grow, (double)s->dim / (double)(s->dim - 2));
}

/* YARN: frequencies of index up to a stay, those from b on are divided by the factor. */
static void yarn_limits(const turbo_rope_spec *s, double *a, double *b)
{
    const double turns[2] = {(double)s->beta_fast, (double)s->beta_slow};
    double at[2];
    for (int i = 0; i < 2; i++)
        at[i] = s->dim * log(s->original_max / (turns[i] * 2 * M_PI)) / (2 * log(s->base));
    if (s->truncate) {
        at[0] = floor(at[0]);
        at[1] = ceil(at[1]);
    }
    *a = fmax(at[0], 0);
    *b = fmin(at[1], s->dim - 1);
    if (!(*b > *a || *b < *a))
        *b += 0.001;
}

/* BANDS, what config files call llama3: wavelengths well inside the original length stay. */
static double banded(const turbo_rope_spec *s, double f)
{
    double O = s->original_max, w = 2 * M_PI / f, factor = (double)s->factor;
    double low = (double)s->low_freq, high = (double)s->high_freq;
    if (w < O / high)
        return f;
    if (w > O / low)
        return f / factor;
    double t = (O / w - low) / (high - low);
    return (1 - t) * f / factor + t * f;
}

static void frequencies(const turbo_rope_spec *s, double base, float *inv)
{
    double a = 0, b = 0;
    if (s->scaling == TURBO_ROPE_YARN)
        yarn_limits(s, &a, &b);
    for (int32_t i = 0; i < s->dim / 2; i++) {
        float f = (float)pow(base, -2.0 * (double)i / (double)s->dim);
        inv[i] = f;
        if (s->scaling == TURBO_ROPE_LINEAR) {
            inv[i] = f / s->factor;
        } else if (s->scaling == TURBO_ROPE_BANDS) {
            inv[i] = (float)banded(s, (double)f);
        } else if (s->scaling == TURBO_ROPE_YARN) {
            double r = fmin(fmax((i - a) / (b - a), 0), 1);
            inv[i] = (float)((double)f / (double)s->factor * r + (double)f * (1 - r));
        }
    }
}

static float cos_sin_scale(const turbo_rope_spec *s)
{
    if (s->scaling != TURBO_ROPE_YARN)
        return 1;
    if (s->attention_factor > 0)
        return s->attention_factor;
    return s->factor > 1 ? (float)(0.1 * log((double)s->factor) + 1.0) : 1.0f;
}

void turbok_rope_inv(const turbo_rope *r, int32_t rope_len, float *inv)
{
    double base = turbok_rope_base(&r->spec, rope_len);
    if (base > r->spec.base || base < r->spec.base)
        frequencies(&r->spec, base, inv);
    else
        memcpy(inv, r->inv, (size_t)(r->spec.dim / 2) * sizeof *inv);
}

static turbo_status check_spec(const turbo_rope_spec *s, turbo_err *err)
{
    if (s->dim < 2 || s->dim % 2 || s->max_position < 1 || !(s->base > 0) || !(s->factor > 0))
        return turbok_fail(err, TURBO_EINVAL,
                           "RoPE of dimension %d, base %g, factor %g is not possible", s->dim,
                           s->base, (double)s->factor);
    if (s->scaling < TURBO_ROPE_PLAIN || s->scaling > TURBO_ROPE_YARN)
        return turbok_fail(err, TURBO_EUNSUPPORTED, "RoPE scaling %d is not known; 0 to %d are",
                           s->scaling, TURBO_ROPE_YARN);
    if (s->scaling == TURBO_ROPE_BANDS &&
        (s->original_max < 1 || !(s->low_freq > 0) || !(s->high_freq > s->low_freq)))
        return turbok_fail(
            err, TURBO_EINVAL,
            "RoPE by bands with low_freq %g, high_freq %g, original length %d is not "
            "possible; 0 < low < high and a length of 1 or more are",
            (double)s->low_freq, (double)s->high_freq, s->original_max);
    if (s->scaling == TURBO_ROPE_YARN &&
        (s->original_max < 1 || !(s->beta_fast > 0) || !(s->beta_slow > 0) || !(s->base > 1) ||
         !(s->attention_factor >= 0)))
        return turbok_fail(
            err, TURBO_EINVAL,
            "RoPE yarn with beta_fast %g, beta_slow %g, base %g, attention factor %g, "
            "original length %d is not possible",
            (double)s->beta_fast, (double)s->beta_slow, s->base, (double)s->attention_factor,
            s->original_max);
    return TURBO_OK;
}

static int32_t table_len(const turbo_rope_spec *s)
{
    return s->max_position < TABLE_MAX ? s->max_position : TABLE_MAX;
}

/* Floats of a table of one handle: cosines or sines. */
static size_t table_floats(const turbo_rope_spec *s)
{
    return (size_t)table_len(s) * (size_t)(s->dim / 2);
}

/* A plugin of an older ABI has a shorter spec: what it does not know is 0. */
static turbo_rope_spec known_spec(const turbo_rope_spec *theirs)
{
    turbo_rope_spec known = {0};
    memcpy(&known, theirs, theirs->size < sizeof known ? theirs->size : sizeof known);
    return known;
}

uint64_t turbok_rope_bytes(const turbo_rope_spec *theirs)
{
    const turbo_rope_spec s = known_spec(theirs);
    if (check_spec(&s, NULL))
        return 0;
    return turbok_alloc_size((size_t)(s.dim / 2) * sizeof(float)) +
           2 * (uint64_t)turbok_alloc_size(table_floats(&s) * sizeof(float));
}

typedef struct tables {
    const turbo_rope *r;
    float *inv, *cosine, *sine;
} tables;

static void fill_positions(void *ctx, int64_t from, int64_t to, int thread)
{
    enum { SOME = 64 };
    const tables *t = ctx;
    size_t half = (size_t)t->r->spec.dim / 2;
    float angle[SOME];
    (void)thread;
    for (int64_t pos = from; pos < to; pos++)
        for (size_t at = 0; at < half; at += SOME) {
            size_t n = half - at < SOME ? half - at : SOME;
            float *c = t->cosine + (size_t)pos * half + at, *s = t->sine + (size_t)pos * half + at;
            for (size_t i = 0; i < n; i++)
                angle[i] = (float)pos * t->inv[at + i];
            turbok_turns(angle, n, c, s);
            for (size_t i = 0; i < n; i++) {
                c[i] *= t->r->scale;
                s[i] *= t->r->scale;
            }
        }
}

/* Two million cosines and sines of a usual model: one thread alone takes longer than a card takes for its weights. */
static void fill_tables(turbok_device *d, tables t)
{
    frequencies(&t.r->spec, t.r->spec.base, t.inv);
    turbok_pool_for(d->exec.pool, t.r->table_len, TABLE_GRAIN, fill_positions, &t);
}

static turbo_status upload_tables(turbok_device *d, const turbo_rope *r, turbo_err *err)
{
    size_t half = (size_t)r->spec.dim / 2, n = table_floats(&r->spec);
    float *all = calloc(half + 2 * n, sizeof *all);
    if (!all)
        return turbok_fail(
            err, TURBO_ENOMEM,
            "no memory for RoPE tables; use a smaller model, or end what else uses the memory");
    fill_tables(d, (tables){r, all, all + half, all + half + n});
    d->backend->upload(d, r->inv, all, half * sizeof *all);
    d->backend->upload(d, r->cosine, all + half, n * sizeof *all);
    d->backend->upload(d, r->sine, all + half + n, n * sizeof *all);
    free(all);
    return TURBO_OK;
}

turbo_status turbok_rope_new(turbok_device *d, const turbo_rope_spec *theirs, turbo_rope **out,
                             turbo_err *err)
{
    const turbo_rope_spec known = known_spec(theirs), *spec = &known;
    turbo_status st = check_spec(spec, err);
    if (st)
        return st;
    turbo_rope *r = calloc(1, sizeof *r);
    if (!r)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for RoPE");
    r->spec = *spec;
    r->scale = cos_sin_scale(spec);
    r->table_len = table_len(spec);
    size_t half = (size_t)spec->dim / 2, n = table_floats(spec);
    r->inv = turbok_alloc(d, TURBOK_MEM_ROPE, half * sizeof(float));
    r->cosine = turbok_alloc(d, TURBOK_MEM_ROPE, n * sizeof(float));
    r->sine = turbok_alloc(d, TURBOK_MEM_ROPE, n * sizeof(float));
    if (!r->inv || !r->cosine || !r->sine) {
        turbok_rope_free(d, r);
        return turbok_fail(
            err, TURBO_ENOMEM,
            "no memory for RoPE tables; use a smaller model, or end what else uses the memory");
    }
    if (d->backend) {
        st = upload_tables(d, r, err);
        if (st)
            turbok_rope_free(d, r);
        else
            *out = r;
        return st;
    }
    fill_tables(d, (tables){r, r->inv, r->cosine, r->sine});
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
        tmp[i] = (float)cos((double)angle) * r->scale;
        tmp[half + i] = (float)sin((double)angle) * r->scale;
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
