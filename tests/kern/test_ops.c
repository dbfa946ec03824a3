/* tests/kern/test_ops.c: the generic harness. Every row of kernels/ops.def has a check here, or this
 * file does not compile. A check makes random, odd shapes, runs the op on the scalar reference, holds
 * that against a double-precision model, then runs it on every instruction set of this CPU with
 * several thread counts. Outputs start as NaN, all memory lies between guard bands, inputs must stay
 * as they were.
 *
 * embed, linear, logits, gather and qkv_rope_store must give the very bits of the reference: every
 * element is one chain of operations whose order is fixed. rmsnorm, gated_mlp and attention sum in
 * lanes or use a vector exponential, so they are held to the error bound of the model instead. */
#include <math.h>

#include "model.h"
#include "moe.h"
#include "paged.h"
#include "picture.h"

static const int32_t sizes[] = {1, 2, 3, 17, 63, 64, 65, 128, 172, 300};

typedef struct matrix {
    float *f;     /* [out,in] as stored */
    void *stored;
    float *bias;  /* [out] or NULL */
    int32_t out, in, dtype;
} matrix;

static matrix random_matrix(kit_rng *r, int32_t out, int32_t in, bool bias)
{
    matrix m = {.out = out, .in = in, .dtype = kit_range(r, 0, 2)};
    size_t n = (size_t)out * (size_t)in;
    m.f = malloc(n * sizeof(float));
    assert_non_null(m.f);
    kit_floats(r, m.f, n);
    m.stored = kit_store(m.dtype, m.f, n);
    if (bias) {
        m.bias = malloc((size_t)out * sizeof(float));
        assert_non_null(m.bias);
        kit_floats(r, m.bias, (size_t)out);
    }
    return m;
}

static void drop_matrix(matrix *m)
{
    free(m->f);
    free(m->stored);
    free(m->bias);
}

/* The handle, made from an odd address; its size must be what turbok_linear_bytes says. */
static turbo_linear *handle(turbok_device *d, const matrix *m)
{
    size_t es = m->dtype == TURBO_F32 ? 4 : 2, bytes = (size_t)m->out * (size_t)m->in * es;
    char *odd = malloc(bytes + 1);
    turbo_linear *w = NULL;
    turbo_err err = {{0}};
    assert_non_null(odd);
    memcpy(odd + 1, m->stored, bytes);
    uint64_t before = turbok_device_alloc_bytes(d);
    if (turbok_linear_new(d, m->dtype, odd + 1, m->out, m->in, m->bias, TURBO_F32,
                          TURBO_LINEAR_TABLE, &w, &err))
        fail_msg("turbok_linear_new: %s", err.text);
    assert_int_equal(turbok_device_alloc_bytes(d) - before,
                     turbok_linear_bytes(d, m->dtype, m->out, m->in, m->bias != NULL,
                                         TURBO_LINEAR_TABLE));
    assert_int_equal(turbok_linear_out(w), m->out);
    assert_int_equal(turbok_linear_in(w), m->in);
    free(odd);
    return w;
}

/* The same matrix out of up to 8 parts, some of them without a bias, is the same handle to the byte. */
static void check_parts(turbok_device *d, kit_rng *r, const matrix *whole)
{
    turbok_part parts[8];
    matrix m = *whole;
    turbo_linear *w = NULL;
    turbo_err err = {{0}};
    int32_t n = 0, at = 0;
    size_t row = (size_t)m.in * (m.dtype == TURBO_F32 ? 4 : 2);
    while (at < m.out) {
        int32_t rows = n == 7 ? m.out - at : kit_range(r, 1, m.out - at);
        bool none = m.bias && kit_range(r, 0, 2) == 0;
        parts[n] = (turbok_part){.data = (char *)m.stored + (size_t)at * row,
                                 .rows = rows,
                                 .bias = none || !m.bias ? NULL : m.bias + at};
        if (none)
            memset(m.bias + at, 0, (size_t)rows * sizeof *m.bias);
        at += rows;
        n++;
    }
    bool any = false;
    for (int32_t i = 0; i < n; i++)
        any = any || parts[i].bias;
    m.bias = any ? m.bias : NULL;
    turbo_linear *want = handle(d, &m);
    uint64_t before = turbok_device_alloc_bytes(d);
    if (turbok_linear_rows_new(d, m.dtype, parts, n, m.in, 0, &w, &err))
        fail_msg("turbok_linear_rows_new: %s", err.text);
    assert_int_equal(turbok_device_alloc_bytes(d) - before,
                     turbok_linear_bytes(d, m.dtype, m.out, m.in, any, 0));
    assert_int_equal(w->out, want->out);
    assert_int_equal(w->bias != NULL, any);
    assert_memory_equal(w->data, want->data, want->data_bytes);
    if (any)
        assert_memory_equal(w->bias, want->bias, (size_t)want->tiles * TURBOK_TILE * sizeof(float));
    turbok_linear_free(d, w);
    turbok_linear_free(d, want);
}

static turbo_vector *vector(turbok_device *d, const float *f, int32_t n)
{
    turbo_vector *v = NULL;
    turbo_err err = {{0}};
    if (turbok_vector_new(d, TURBO_F32, f, n, &v, &err))
        fail_msg("turbok_vector_new: %s", err.text);
    return v;
}

static void within(const char *what, const float *got, const bounded *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        kit_near(what, i, (double)got[i], want[i].v, want[i].tol);
}

/* ---- one check for each op; they differ in shapes, so each makes its own ---- */

static void linear_like(const kit_devices *k, kit_rng *r, bool logits)
{
    for (int round = 0; round < KIT_ROUNDS(40); round++) {
        kit_mem m = {0};
        int32_t out = kit_pick(r, sizes), in = kit_pick(r, sizes), T = kit_range(r, 1, 40);
        if (round == 7)
            in = 2500; /* longer than the pieces of k that linear works in */
        if (round == 8)
            T = 100;
        matrix w = random_matrix(r, out, in, kit_range(r, 0, 1) != 0);
        size_t n = (size_t)T * (size_t)out;
        float *x = kit_new_floats(&m, (size_t)T * (size_t)in), *ref = NULL;
        bounded *model = malloc(n * sizeof *model);
        assert_non_null(model);
        kit_floats(r, x, (size_t)T * (size_t)in);
        kit_freeze(&m, x);
        model_linear(w.f, w.bias, out, in, x, T, model);
        for (int d = 0; d < k->n; d++) {
            const turbo_ops *ops = turbok_device_ops(k->d[d]);
            turbo_linear *h = handle(k->d[d], &w);
            float *y = kit_new_floats(&m, n);
            (logits ? ops->logits(turbok_device_exec(k->d[d]), h, x, T, y)
                    : ops->linear(turbok_device_exec(k->d[d]), h, x, T, y));
            if (d == 0) {
                ref = y;
                within("linear of the reference", y, model, n);
            }
            kit_equal(turbok_device_name(k->d[d]), y, ref, n * sizeof *y);
            turbok_linear_free(k->d[d], h);
        }
        check_parts(k->d[0], r, &w);
        kit_verify(&m);
        kit_drop(&m);
        drop_matrix(&w);
        free(model);
    }
}

static void check_linear(const kit_devices *k, kit_rng *r)
{
    linear_like(k, r, false);
}

static void check_logits(const kit_devices *k, kit_rng *r)
{
    linear_like(k, r, true);
}

static void check_embed(const kit_devices *k, kit_rng *r)
{
    for (int round = 0; round < KIT_ROUNDS(30); round++) {
        kit_mem m = {0};
        int32_t V = kit_pick(r, sizes), E = kit_pick(r, sizes), T = kit_range(r, 1, 40), n_rows = 5;
        matrix w = random_matrix(r, V, E, false);
        int32_t *tokens = kit_new(&m, (size_t)T * 4), *index = kit_new(&m, (size_t)T * 4);
        float *rows = kit_new_floats(&m, (size_t)n_rows * (size_t)E);
        bool media = kit_range(r, 0, 1) != 0;
        kit_floats(r, rows, (size_t)n_rows * (size_t)E);
        for (int32_t t = 0; t < T; t++) {
            tokens[t] = kit_range(r, 0, V - 1);
            index[t] = kit_range(r, -2, n_rows - 1) < 0 ? -1 : kit_range(r, 0, n_rows - 1);
            if (media && index[t] >= 0)
                tokens[t] = INT32_MAX; /* must not be looked at */
        }
        kit_freeze(&m, tokens);
        kit_freeze(&m, index);
        kit_freeze(&m, rows);
        turbo_batch b = {.size = sizeof b, .n_tokens = T, .tokens = tokens,
                         .embed_rows = media ? rows : NULL, .embed_index = media ? index : NULL};
        for (int d = 0; d < k->n; d++) {
            turbo_linear *h = handle(k->d[d], &w);
            float *y = kit_new_floats(&m, (size_t)T * (size_t)E);
            turbok_device_ops(k->d[d])->embed(turbok_device_exec(k->d[d]), h, &b, y);
            for (int32_t t = 0; t < T; t++)
                kit_equal(turbok_device_name(k->d[d]), y + (size_t)t * (size_t)E,
                          media && index[t] >= 0 ? rows + (size_t)index[t] * (size_t)E
                                                 : w.f + (size_t)tokens[t] * (size_t)E,
                          (size_t)E * 4);
            turbok_linear_free(k->d[d], h);
        }
        kit_verify(&m);
        kit_drop(&m);
        drop_matrix(&w);
    }
}

static void check_gather(const kit_devices *k, kit_rng *r)
{
    for (int round = 0; round < KIT_ROUNDS(20); round++) {
        kit_mem m = {0};
        int32_t T = kit_range(r, 1, 40), R = kit_range(r, 0, T), E = kit_pick(r, sizes);
        float *in = kit_new_floats(&m, (size_t)T * (size_t)E);
        int32_t *index = kit_new(&m, (size_t)R * 4);
        kit_floats(r, in, (size_t)T * (size_t)E);
        for (int32_t i = 0; i < R; i++)
            index[i] = kit_range(r, 0, T - 1);
        kit_freeze(&m, in);
        kit_freeze(&m, index);
        for (int d = 0; d < k->n; d++) {
            float *y = kit_new_floats(&m, (size_t)R * (size_t)E);
            turbok_device_ops(k->d[d])->gather(turbok_device_exec(k->d[d]), in, index, R, E, y);
            for (int32_t i = 0; i < R; i++)
                kit_equal(turbok_device_name(k->d[d]), y + (size_t)i * (size_t)E,
                          in + (size_t)index[i] * (size_t)E, (size_t)E * 4);
        }
        kit_verify(&m);
        kit_drop(&m);
    }
}

static void check_rmsnorm(const kit_devices *k, kit_rng *r)
{
    for (int round = 0; round < KIT_ROUNDS(40); round++) {
        kit_mem m = {0};
        int32_t T = kit_range(r, 1, 40), E = kit_pick(r, sizes);
        size_t n = (size_t)T * (size_t)E;
        float *h0 = kit_new_floats(&m, n), *delta = kit_new_floats(&m, n);
        float *w = kit_new_floats(&m, (size_t)E), *sum = kit_new_floats(&m, n);
        int kind = kit_range(r, 0, 2); /* no delta, delta, out == delta */
        float eps = kit_range(r, 0, 1) ? 1e-5f : 1e-6f;
        bounded *model = malloc(n * sizeof *model);
        assert_non_null(model);
        kit_floats(r, h0, n);
        kit_floats(r, delta, n);
        kit_floats(r, w, (size_t)E);
        for (size_t i = 0; i < n; i++)
            sum[i] = kind ? h0[i] + delta[i] : h0[i];
        kit_freeze(&m, delta);
        kit_freeze(&m, w);
        for (int32_t t = 0; t < T; t++)
            model_rmsnorm(sum + t * E, w, (double)eps, E, model + t * E);
        for (int d = 0; d < k->n; d++) {
            turbo_vector *v = vector(k->d[d], w, E);
            float *h = kit_new_floats(&m, n), *y = kit_new_floats(&m, n);
            memcpy(h, h0, n * 4);
            if (kind == 2)
                memcpy(y, delta, n * 4);
            turbok_device_ops(k->d[d])->rmsnorm(turbok_device_exec(k->d[d]), h,
                                                kind == 0 ? NULL : kind == 1 ? delta : y, v, eps, T,
                                                E, y);
            kit_equal("h of rmsnorm", h, sum, n * 4);
            within(turbok_device_name(k->d[d]), y, model, n);
            turbok_vector_free(k->d[d], v);
        }
        kit_verify(&m);
        kit_drop(&m);
        free(model);
    }
}

static void check_gated_mlp(const kit_devices *k, kit_rng *r)
{
    for (int round = 0; round < KIT_ROUNDS(24); round++) {
        kit_mem m = {0};
        int32_t E = kit_pick(r, sizes), I = kit_pick(r, sizes), T = kit_range(r, 1, 20);
        int32_t act = round % 4;
        matrix g = random_matrix(r, I, E, false), u = random_matrix(r, I, E, false);
        matrix w = random_matrix(r, E, I, false);
        size_t n = (size_t)T * (size_t)E;
        float *x = kit_new_floats(&m, n);
        bounded *model = malloc(n * sizeof *model);
        assert_non_null(model);
        kit_floats(r, x, n);
        if (round % 3 == 0) /* far into the tails of the activation */
            for (size_t i = 0; i < n; i++)
                x[i] *= 200;
        kit_freeze(&m, x);
        model_gated_mlp(g.f, u.f, w.f, act, I, E, x, T, model);
        for (int d = 0; d < k->n; d++) {
            turbo_linear *hg = handle(k->d[d], &g), *hu = handle(k->d[d], &u);
            turbo_linear *hw = handle(k->d[d], &w);
            float *y = kit_new_floats(&m, n), *s = kit_new_floats(&m, 2 * (size_t)T * (size_t)I);
            turbok_device_ops(k->d[d])->gated_mlp(turbok_device_exec(k->d[d]), hg, hu, hw, act, x, T,
                                                  s, y);
            within(turbok_device_name(k->d[d]), y, model, n);
            turbok_linear_free(k->d[d], hg);
            turbok_linear_free(k->d[d], hu);
            turbok_linear_free(k->d[d], hw);
        }
        kit_verify(&m);
        kit_drop(&m);
        drop_matrix(&g);
        drop_matrix(&u);
        drop_matrix(&w);
        free(model);
    }
}

/* First column of head h of Q (part 0), K (1), V (2) in a row of the projection. */
static int32_t column(const paged_shape *s, int part, int32_t h)
{
    int32_t g = s->H / s->K;
    if (s->layout == TURBO_QKV_PLAIN)
        return (part == 0 ? h : part == 1 ? s->H + h : s->H + s->K + h) * s->D;
    return part == 0 ? (h / g * (g + 2) + h % g) * s->D : (h * (g + 2) + g + part - 1) * s->D;
}

/* Rotated head, or the head as it is. */
static void expect_head(const paged_shape *s, int32_t seq, int32_t pos, const float *in, bounded *out)
{
    if (s->rotate) {
        model_rope(&s->rope, turbok_rope_base(&s->rope, s->rope_len[seq]), pos, in, s->D, out);
        return;
    }
    for (int32_t i = 0; i < s->D; i++)
        out[i] = (bounded){(double)in[i], 0};
}

/* What storing may add to an element of a row: half a scale, see test_quant.c. */
static double storing(const paged_shape *s, const bounded *row, double f)
{
    double lo = row[0].v, hi = lo, tol = 0;
    if (!turbok_kv_coded(s->dtype))
        return kit_half_ulp(s->dtype, f);
    for (int32_t i = 0; i < s->D; i++) {
        lo = fmin(lo, row[i].v);
        hi = fmax(hi, row[i].v);
        tol = fmax(tol, row[i].tol);
    }
    double range = hi - lo + 2 * tol + 0x1p-7 * (fabs(lo) + tol);
    return range * (1 + 0x1p-6) / (s->dtype == TURBOK_KV_INT8 ? 255 : 15) / 2 + KIT_U * f;
}

static void check_cache(const paged *p, const paged_data *data, const paged_shape *s)
{
    bounded want[192];
    float *got = malloc((size_t)(s->K * s->D) * sizeof *got);
    assert_non_null(got);
    for (int32_t i = 0; i < s->S; i++)
        for (int32_t t = 0; t < s->history[i] + s->fresh[i]; t++) {
            const float *row = data->qkv[i] + (size_t)t * (size_t)paged_row(s);
            turbok_kv_read(p->pool, &p->table[i], s->layer, t, false, got);
            for (int32_t h = 0; h < s->K; h++) {
                expect_head(s, i, t, row + column(s, 1, h), want);
                for (int32_t e = 0; e < s->D; e++)
                    kit_near("key", (size_t)e, (double)got[h * s->D + e], want[e].v,
                             want[e].tol + storing(s, want, fabs(want[e].v) + want[e].tol));
            }
            turbok_kv_read(p->pool, &p->table[i], s->layer, t, true, got);
            for (int32_t h = 0; h < s->K; h++) {
                for (int32_t e = 0; e < s->D; e++)
                    want[e] = (bounded){(double)row[column(s, 2, h) + e], 0};
                for (int32_t e = 0; e < s->D; e++) {
                    float v = kit_round(s->dtype, row[column(s, 2, h) + e]);
                    if (turbok_kv_coded(s->dtype))
                        kit_near("value", (size_t)e, (double)got[h * s->D + e], want[e].v,
                                 storing(s, want, fabs(want[e].v)));
                    else
                        kit_equal("value", &got[h * s->D + e], &v, 4);
                }
            }
        }
    free(got);
}

static void check_queries(const paged *p, const paged_data *data, const paged_shape *s,
                          const float *q)
{
    bounded want[192];
    for (int32_t i = 0; i < s->S; i++)
        for (int32_t t = p->cu[i]; t < p->cu[i + 1]; t++)
            for (int32_t h = 0; h < s->H; h++) {
                const float *row = data->qkv[i] + (size_t)p->positions[t] * (size_t)paged_row(s);
                expect_head(s, i, p->positions[t], row + column(s, 0, h), want);
                within("query", q + ((size_t)t * (size_t)s->H + (size_t)h) * (size_t)s->D, want,
                       (size_t)s->D);
            }
}

static void model_rows(const paged *p, const paged_shape *s, const float *q, bounded *out)
{
    size_t stride = (size_t)s->K * (size_t)s->D;
    for (int32_t i = 0; i < s->S; i++) {
        int32_t n = s->history[i] + s->fresh[i], g = s->H / s->K;
        float *k = malloc((size_t)n * stride * sizeof *k), *v = malloc((size_t)n * stride * sizeof *v);
        assert_true(k && v);
        for (int32_t t = 0; t < n; t++) {
            turbok_kv_read(p->pool, &p->table[i], s->layer, t, false, k + (size_t)t * stride);
            turbok_kv_read(p->pool, &p->table[i], s->layer, t, true, v + (size_t)t * stride);
        }
        for (int32_t t = p->cu[i]; t < p->cu[i + 1]; t++)
            for (int32_t h = 0; h < s->H; h++) {
                int32_t pos = p->positions[t];
                int32_t lo = s->window && pos + 1 > s->window ? pos + 1 - s->window : 0;
                size_t at = ((size_t)t * (size_t)s->H + (size_t)h) * (size_t)s->D;
                size_t first = (size_t)lo * stride + (size_t)(h / g) * (size_t)s->D;
                model_attention(q + at, k + first, v + first, pos + 1 - lo, (int64_t)stride, s->D,
                                (double)s->scale, turbok_kv_coded(s->dtype), out + at);
            }
        free(k);
        free(v);
    }
}

/* qkv_rope_store and attention share their shapes: each round stores a ragged batch behind a history
 * and then lets every new token look back. */
static void paged_rounds(const kit_devices *k, kit_rng *r, int rounds, bool attend)
{
    for (int round = 0; round < rounds; round++) {
        kit_mem m = {0};
        paged_shape s;
        paged_data data;
        paged_random(r, &s);
        paged_fill(r, &s, &data);
        int32_t T = paged_total(&s), to[PAGED_SEQS] = {0};
        size_t n = (size_t)T * (size_t)s.H * (size_t)s.D;
        float *qkv = kit_new_floats(&m, (size_t)T * (size_t)paged_row(&s)), *ref = NULL;
        bounded *model = malloc(n * sizeof *model);
        assert_non_null(model);
        for (int32_t i = 0; i < s.S; i++)
            to[i] = s.history[i] + s.fresh[i];
        for (int d = 0; d < k->n; d++) {
            const turbo_ops *ops = turbok_device_ops(k->d[d]);
            turbo_exec *x = turbok_device_exec(k->d[d]);
            paged p;
            float *q = kit_new_floats(&m, n), *y = kit_new_floats(&m, n);
            paged_open(&p, &s, &data, k->d[d], r);
            paged_batch(&p, &data, s.history, to, qkv);
            if (d == 0)
                kit_freeze(&m, qkv);
            ops->qkv_rope_store(x, &p.attn, &p.batch, qkv, q);
            if (d == 0) {
                ref = q;
                check_queries(&p, &data, &s, q);
            }
            kit_equal(turbok_device_name(k->d[d]), q, ref, n * 4);
            if (attend) {
                if (d == 0)
                    model_rows(&p, &s, q, model);
                kit_freeze(&m, q);
                ops->attention(x, &p.attn, &p.batch, q, y);
                within(turbok_device_name(k->d[d]), y, model, n);
            } else {
                check_cache(&p, &data, &s);
            }
            paged_verify(&p);
            paged_close(&p);
        }
        kit_verify(&m);
        kit_drop(&m);
        paged_free(&data);
        free(model);
    }
}

static void check_qkv_rope_store(const kit_devices *k, kit_rng *r)
{
    paged_rounds(k, r, KIT_ROUNDS(25), false);
}

static void check_attention(const kit_devices *k, kit_rng *r)
{
    paged_rounds(k, r, KIT_ROUNDS(40), true);
}

/* ---- the list ---- */

static const struct row {
    const char *name;
    void (*check)(const kit_devices *k, kit_rng *r);
} table[] = {
#define OP(name, ret, args) {#name, check_##name},
#include "ops.def"
#undef OP
};

static void run(void **state)
{
    const struct row *row = *state;
    static const int threads[] = {1, 3};
    kit_devices k;
    kit_rng r = {0x9e3779b97f4a7c15ull};
    kit_open(&k, threads, 2);
    row->check(&k, &r);
    kit_close(&k);
}

int main(void)
{
    struct CMUnitTest tests[sizeof table / sizeof *table];
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        tests[i] = (struct CMUnitTest){.name = table[i].name, .test_func = run,
                                       .initial_state = (void *)(uintptr_t)&table[i]};
    return cmocka_run_group_tests_name("kernel ops", tests, NULL, NULL);
}
