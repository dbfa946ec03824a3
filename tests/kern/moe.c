/* tests/kern/moe.c: see moe.h. The op of a layer of experts is held against its own definition in double precision
 * over gated_mlp, which test_ops holds against a model: for floats and quantised matrices alike, with equal
 * logits, experts that nobody chooses, and each token alone. */
#include "moe.h"

#include <math.h>

#include "model.h"

static const int32_t sizes[] = {16, 32, 48, 64, 96, 176};
#define MOST 24 /* experts */

typedef struct layer {
    turbok_device *d;
    turbo_moe m;
    turbo_linear *router, *w[3 * MOST];
    turbo_experts *x;
} layer;

/* [out,in] as dtype, or as a grid of `bits` bits made of it. */
static turbo_linear *matrix(turbok_device *d, kit_rng *r, int32_t out, int32_t in, int32_t dtype,
                            int bits, bool twins)
{
    turbo_linear *w = NULL;
    turbo_err err = {{0}};
    size_t n = (size_t)out * (size_t)in;
    float *f = malloc(n * sizeof *f);
    assert_non_null(f);
    kit_floats(r, f, n);
    if (twins && out > 2) /* equal logits */
        memcpy(f + 2 * (size_t)in, f, (size_t)in * sizeof *f);
    void *stored = kit_store(dtype, f, n);
    turbok_grid g = {.bits = bits, .group = 16};
    g.scale_dtype = in == g.group ? TURBO_F32 : TURBO_BF16;
    g.offset = bits == 8 ? 128 : 8;
    turbok_part part = {.data = stored, .rows = out, .dtype = dtype, .grid = bits ? &g : NULL};
    if (turbok_linear_rows_new(d, dtype, &part, 1, in, TURBOK_LINEAR_EXPERT, &w, &err))
        fail_msg("%s", err.text);
    free(stored);
    free(f);
    return w;
}

static void open_layer(layer *l, turbok_device *d, kit_rng *r, const turbo_moe *m, int32_t dtype,
                       int bits)
{
    turbo_err err = {{0}};
    *l = (layer){.d = d, .m = *m};
    l->router = matrix(d, r, m->n_experts, m->width, TURBO_F32, 0, true);
    for (int32_t i = 0; i < 3 * m->n_experts; i++)
        l->w[i] = matrix(d, r, i % 3 < 2 ? m->inner : m->width, i % 3 < 2 ? m->width : m->inner,
                         dtype, bits, false);
    uint64_t before = turbok_device_alloc_bytes(d);
    const turbo_linear *view[3 * MOST];
    for (int32_t i = 0; i < 3 * m->n_experts; i++)
        view[i] = l->w[i];
    if (turbok_experts_new(d, m, view, &l->x, &err))
        fail_msg("%s", err.text);
    assert_int_equal(turbok_device_alloc_bytes(d) - before, turbok_experts_bytes(d, m));
}

static void close_layer(layer *l)
{
    turbok_experts_free(l->d, l->x);
    for (int32_t i = 0; i < 3 * l->m.n_experts; i++)
        turbok_linear_free(l->d, l->w[i]);
    turbok_linear_free(l->d, l->router);
}

static void run_layer(const layer *l, kit_mem *mem, const float *in, int32_t T, float *out)
{
    void *scratch = kit_new(mem, turbo_moe_scratch(&l->m, T, 4));
    turbok_device_ops(l->d)->moe(turbok_device_exec(l->d), l->router, l->x, in, T, scratch, out);
}

/* The k best of l [n], and their scores. */
static void route(const turbo_moe *m, const float *l, int32_t *expert, double *score)
{
    double sum = 0, chosen = 0;
    bool taken[MOST] = {false};
    for (int32_t e = 0; e < m->n_experts; e++)
        sum += exp((double)l[e]);
    for (int32_t j = 0; j < m->n_chosen; j++) {
        int32_t best = -1;
        for (int32_t e = m->n_experts - 1; e >= 0; e--)
            if (!taken[e] && (best < 0 || l[e] >= l[best]))
                best = e;
        taken[best] = true;
        expert[j] = best;
        score[j] = exp((double)l[best]) / sum;
        chosen += score[j];
    }
    for (int32_t j = 0; j < m->n_chosen && m->normalise; j++)
        score[j] /= chosen;
}

static void expect_token(const layer *l, kit_mem *mem, const float *in, bounded *out)
{
    const turbo_ops *ops = turbok_device_ops(l->d);
    turbo_exec *x = turbok_device_exec(l->d);
    const turbo_moe *m = &l->m;
    float logits[MOST], *y = kit_new_floats(mem, (size_t)m->width);
    float *hidden = kit_new_floats(mem, 2 * (size_t)m->inner);
    int32_t expert[MOST];
    double score[MOST], magnitude[176] = {0};
    ops->logits(x, l->router, in, 1, logits);
    route(m, logits, expert, score);
    for (int32_t e = 0; e < m->width; e++)
        out[e] = (bounded){0, 1e-37};
    for (int32_t j = 0; j < m->n_chosen; j++) {
        turbo_linear *const *w = l->w + 3 * expert[j];
        ops->gated_mlp(x, w[0], w[1], w[2], m->act, in, 1, hidden, y);
        for (int32_t e = 0; e < m->width; e++) {
            out[e].v += score[j] * (double)y[e];
            magnitude[e] += score[j] * fabs((double)y[e]);
        }
    }
    /* Differences of logits of up to 2 size, n terms of a softmax, k products and sums. */
    double size = 0;
    for (int32_t e = 0; e < m->n_experts; e++)
        size = fmax(size, fabs((double)logits[e]));
    for (int32_t e = 0; e < m->width; e++)
        out[e].tol += magnitude[e] * KIT_U * (4 * size + 2 * m->n_experts + 2 * m->n_chosen + 16);
}

static void one_layer(turbok_device *d, kit_rng *r, const turbo_moe *m, int32_t T, int32_t dtype,
                      int bits)
{
    layer l;
    size_t E = (size_t)m->width;
    bounded *want = malloc(E * sizeof *want);
    kit_mem mem = {0};
    float *in = kit_new_floats(&mem, (size_t)T * E), *out = kit_new_floats(&mem, (size_t)T * E);
    assert_non_null(want);
    kit_floats(r, in, (size_t)T * E);
    kit_freeze(&mem, in);
    open_layer(&l, d, r, m, dtype, bits);
    run_layer(&l, &mem, in, T, out);
    for (int32_t t = 0; t < T; t++) {
        kit_mem own = {0};
        float *alone = kit_new_floats(&own, E);
        run_layer(&l, &own, in + (size_t)t * E, 1, alone);
        kit_equal("a token alone", alone, out + (size_t)t * E, E * sizeof *alone);
        expect_token(&l, &own, in + (size_t)t * E, want);
        for (size_t e = 0; e < E; e++)
            kit_near(turbok_device_name(d), (size_t)t * E + e, (double)alone[e], want[e].v,
                     want[e].tol);
        kit_verify(&own);
        kit_drop(&own);
    }
    kit_verify(&mem);
    kit_drop(&mem);
    close_layer(&l);
    free(want);
}

/* The published vector of routing: each expert answers with its own number's unit vector. */
static void check_vector(turbok_device *d, int32_t normalise, double first, double second)
{
    static const float logits[] = {0.2f, -1.0f, 1.5f, 0.3f, 0.9f, 0.8f, -0.5f, 2.0f};
    const turbo_moe m = {.size = sizeof m,
                         .n_experts = 8,
                         .n_chosen = 2,
                         .inner = 1,
                         .width = 8,
                         .normalise = normalise};
    const float x[8] = {1};
    float router[64] = {0}, row[8] = {1}, out[8], scratch[16384];
    layer l = {.d = d, .m = m};
    turbo_err err;
    assert_true(turbo_moe_scratch(&m, 1, 4) <= sizeof scratch);
    for (int e = 0; e < 8; e++)
        router[8 * e] = logits[e];
    assert_int_equal(turbok_linear_new(d, TURBO_F32, router, 8, 8, NULL, 0, 0, &l.router, &err), 0);
    const turbo_linear *view[24];
    for (int i = 0; i < 24; i++) {
        float column[8] = {0};
        column[i / 3] = (float)(1 + exp(-1)); /* 1 / silu(1) */
        bool down = i % 3 == 2;
        assert_int_equal(turbok_linear_new(d, TURBO_F32, down ? column : row, down ? 8 : 1,
                                           down ? 1 : 8, NULL, 0, 0, &l.w[i], &err),
                         0);
        view[i] = l.w[i];
    }
    assert_int_equal(turbok_experts_new(d, &m, view, &l.x, &err), 0);
    turbok_device_ops(d)->moe(turbok_device_exec(d), l.router, l.x, x, 1, scratch, out);
    for (int e = 0; e < 8; e++)
        kit_near("routing", (size_t)e, (double)out[e], e == 7 ? first : e == 2 ? second : 0, 1e-6);
    close_layer(&l);
}

static void check_refusals(turbok_device *d)
{
    static const turbo_moe wrong[] = {
        {.n_experts = 0, .n_chosen = 1, .inner = 1, .width = 1},
        {.n_experts = TURBO_MOE_EXPERTS + 1, .n_chosen = 1, .inner = 1, .width = 1},
        {.n_experts = 4, .n_chosen = 5, .inner = 1, .width = 1},
        {.n_experts = 4, .n_chosen = 0, .inner = 1, .width = 1},
        {.n_experts = 200, .n_chosen = TURBO_MOE_CHOSEN + 1, .inner = 1, .width = 1},
        {.n_experts = 4, .n_chosen = 2, .inner = 0, .width = 1},
        {.n_experts = 4, .n_chosen = 2, .inner = 1, .width = 1, .act = 9},
    };
    turbo_experts *x = NULL;
    turbo_err err;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(turbok_experts_new(d, &wrong[i], NULL, &x, &err), TURBO_EINVAL);
    kit_rng r = {7};
    const turbo_moe m = {.n_experts = 1, .n_chosen = 1, .inner = 16, .width = 32};
    turbo_linear *w = matrix(d, &r, 16, 32, TURBO_F32, 0, false);
    const turbo_linear *view[] = {w, w, w}; /* the last one should be [32,16] */
    assert_int_equal(turbok_experts_new(d, &m, view, &x, &err), TURBO_EINVAL);
    assert_non_null(strstr(err.text, "matrix 2 of 3"));
    assert_true(!x);
    turbok_linear_free(d, w);
    turbok_experts_free(d, NULL);
}

void check_moe(const kit_devices *k, kit_rng *r)
{
    static const int bits[] = {0, 0, 8, 4};
    check_refusals(k->d[0]);
    for (int round = 0; round < KIT_ROUNDS(24); round++) {
        turbo_moe m = {.size = sizeof m,
                       .n_experts = kit_range(r, 1, round % 2 ? MOST : 4),
                       .inner = kit_pick(r, sizes),
                       .width = kit_pick(r, sizes),
                       .act = round % 3 ? TURBO_ACT_SILU : TURBO_ACT_GELU_TANH,
                       .normalise = kit_range(r, 0, 1)};
        m.n_chosen = kit_range(r, 1, m.n_experts < 6 ? m.n_experts : 6);
        int32_t T = round % 4 ? kit_range(r, 1, 9) : kit_range(r, 20, 70);
        for (int d = 0; d < k->n; d++) {
            kit_rng own = {(uint64_t)round + 1};
            one_layer(k->d[d], &own, &m, T, round % 3, bits[round % 4]);
        }
    }
    for (int d = 0; d < k->n; d++) {
        check_vector(k->d[d], 1, 0.622459, 0.377541);
        check_vector(k->d[d], 0, 0.367586, 0.222952);
    }
}

/* ---- rows ---------------------------------------------------------------------------------------- */

void check_add_gated(const kit_devices *k, kit_rng *r)
{
    for (int round = 0; round < KIT_ROUNDS(20); round++) {
        kit_mem m = {0};
        int32_t T = kit_range(r, 1, 40), E = kit_range(r, 1, 300);
        size_t n = (size_t)T * (size_t)E;
        float *h0 = kit_new_floats(&m, n), *delta = kit_new_floats(&m, n);
        float *in = kit_new_floats(&m, n), *w = kit_new_floats(&m, (size_t)E);
        kit_floats(r, h0, n);
        kit_floats(r, delta, n);
        kit_floats(r, in, n);
        kit_floats(r, w, (size_t)E);
        kit_freeze(&m, delta);
        kit_freeze(&m, in);
        for (int d = 0; d < k->n; d++) {
            turbo_vector *v = NULL;
            turbo_err err;
            float *h = kit_new_floats(&m, n);
            assert_int_equal(turbok_vector_new(k->d[d], TURBO_F32, w, E, &v, &err), 0);
            memcpy(h, h0, n * sizeof *h);
            turbok_device_ops(k->d[d])->add_gated(turbok_device_exec(k->d[d]), h, delta, v, in, T,
                                                  E);
            for (size_t i = 0; i < n; i++) {
                double sum = 0;
                for (int32_t e = 0; e < E; e++)
                    sum += (double)in[i / (size_t)E * (size_t)E + (size_t)e] * (double)w[e];
                double add = (double)delta[i] / (1 + exp(-sum));
                kit_near("add_gated", i, (double)h[i], (double)h0[i] + add,
                         KIT_U * (4 * fabs(add) + fabs((double)h0[i])) + 1e-37);
            }
            turbok_vector_free(k->d[d], v);
        }
        kit_verify(&m);
        kit_drop(&m);
    }
}

/* Which norm the head at place i of a row has; NULL: it is a value. */
static const float *norm_of(const turbo_attn *a, int32_t i, const float *q, const float *k)
{
    if (a->layout == TURBO_QKV_PLAIN)
        return i < a->n_heads ? q : i < a->n_heads + a->n_kv ? k : NULL;
    int32_t each = a->n_heads / a->n_kv, at = i % (each + 2);
    return at < each ? q : at == each ? k : NULL;
}

void check_head_norm(const kit_devices *k, kit_rng *r)
{
    for (int round = 0; round < KIT_ROUNDS(30); round++) {
        kit_mem m = {0};
        turbo_attn a = {.size = sizeof a, .n_kv = kit_range(r, 1, 3)};
        a.n_heads = a.n_kv * kit_range(r, 1, 3);
        a.head_dim = 2 * kit_range(r, 1, 40);
        a.layout = round % 2 ? TURBO_QKV_PLAIN : TURBO_QKV_GROUPED;
        int32_t T = kit_range(r, 1, 20), heads = a.n_heads + 2 * a.n_kv, D = a.head_dim;
        size_t n = (size_t)(T * heads) * (size_t)D;
        float *from = kit_new_floats(&m, n), *q = kit_new_floats(&m, (size_t)D);
        float *key = kit_new_floats(&m, (size_t)D);
        bounded want[80];
        kit_floats(r, from, n);
        kit_floats(r, q, (size_t)D);
        kit_floats(r, key, (size_t)D);
        kit_freeze(&m, from);
        for (int d = 0; d < k->n; d++) {
            turbo_vector *vq = NULL, *vk = NULL;
            turbo_err err;
            float *qkv = kit_new_floats(&m, n);
            memcpy(qkv, from, n * sizeof *qkv);
            assert_int_equal(turbok_vector_new(k->d[d], TURBO_F32, q, D, &vq, &err), 0);
            assert_int_equal(turbok_vector_new(k->d[d], TURBO_F32, key, D, &vk, &err), 0);
            turbok_device_ops(k->d[d])->head_norm(turbok_device_exec(k->d[d]), &a, vq, vk, 1e-6f, T,
                                                  qkv);
            for (int32_t i = 0; i < T * heads; i++) {
                const float *w = norm_of(&a, i % heads, q, key), *at = from + i * D;
                if (w)
                    model_rmsnorm(at, w, (double)1e-6f, D, want);
                for (int32_t e = 0; e < D; e++)
                    kit_near("head_norm", (size_t)(i * D + e), (double)qkv[i * D + e],
                             w ? want[e].v : (double)at[e], w ? want[e].tol : 0);
            }
            turbok_vector_free(k->d[d], vq);
            turbok_vector_free(k->d[d], vk);
        }
        kit_verify(&m);
        kit_drop(&m);
    }
}
