/* tests/cuda/test_moe.c: a layer of experts against a model in double precision, with odd shapes, experts that
 * nobody chose, and equal logits. */
#include "cuda/moe.h"
#include "internal.h"
#include "q_kit.h"

typedef struct layer {
    turbok_cu_moe m;
    int32_t act, T;
    void *up, *down, *x;
    float *logits;
} layer;

static void *numbers(int32_t act, int64_t n, float width)
{
    void *p = malloc((size_t)n * 4);
    assert_non_null(p);
    for (int64_t i = 0; i < n; i++)
        act_put(act, p, i, uniform(-width, width));
    return p;
}

/* The k best experts of a token by the definition, and their weights. */
static void route(const layer *a, int32_t t, int32_t *experts, double *weights)
{
    const float *l = a->logits + (int64_t)t * a->m.n;
    double top = -INFINITY, sum = 0, chosen = 0;
    for (int32_t e = 0; e < a->m.n; e++)
        top = fmax(top, (double)l[e]);
    for (int32_t e = 0; e < a->m.n; e++)
        sum += exp((double)l[e] - top);
    for (int32_t j = 0; j < a->m.k; j++) {
        int32_t best = -1;
        for (int32_t e = 0; e < a->m.n; e++) {
            bool taken = false;
            for (int32_t i = 0; i < j; i++)
                taken = taken || experts[i] == e;
            if (!taken && (best < 0 || l[e] > l[best]))
                best = e;
        }
        experts[j] = best;
        weights[j] = exp((double)l[best] - top) / sum;
        chosen += weights[j];
    }
    for (int32_t j = 0; a->m.normalise && j < a->m.k; j++)
        weights[j] /= chosen;
}

static double dot(int32_t act, const void *w, int64_t at, const double *x, int32_t n, double *size)
{
    double sum = 0;
    *size = 0;
    for (int32_t i = 0; i < n; i++) {
        double v = (double)act_get(act, w, at + i) * x[i];
        sum += v;
        *size += fabs(v);
    }
    return sum;
}

static void compare_token(const layer *a, int32_t t, const void *out)
{
    const int32_t E = a->m.E, I = a->m.I, act = a->act;
    int32_t experts[16];
    double weights[16], size;
    double *x = malloc((size_t)E * sizeof *x), *h = malloc((size_t)I * sizeof *h);
    double *y = calloc((size_t)E, sizeof *y), *bound = calloc((size_t)E, sizeof *bound);
    double *slack = malloc((size_t)I * sizeof *slack);
    route(a, t, experts, weights);
    for (int32_t i = 0; i < E; i++)
        x[i] = (double)act_get(act, a->x, (int64_t)t * E + i);
    for (int32_t j = 0; j < a->m.k; j++) {
        const int64_t e = experts[j];
        for (int32_t i = 0; i < I; i++) {
            double gate = dot(act, a->up, (e * 2 * I + i) * E, x, E, &size),
                   off = size * E * 0x1p-22;
            double up = dot(act, a->up, (e * 2 * I + I + i) * E, x, E, &size);
            h[i] = gate / (1 + exp(-gate)) * up;
            slack[i] = 1.2 * off * fabs(up) + fabs(gate) * size * E * 0x1p-22 +
                       2 * act_half(act, h[i]) + 1e-6;
        }
        for (int32_t o = 0; o < E; o++) {
            double v = dot(act, a->down, (e * E + o) * I, h, I, &size), off = size * I * 0x1p-22;
            for (int32_t i = 0; i < I; i++)
                off += slack[i] * fabs((double)act_get(act, a->down, (e * E + o) * I + i));
            y[o] += weights[j] * v;
            bound[o] += weights[j] * (off + 2 * act_half(act, v)) + 1e-6 * fabs(v);
        }
    }
    for (int32_t o = 0; o < E; o++) {
        double got = (double)act_get(act, out, (int64_t)t * E + o);
        if (!(fabs(got - y[o]) <= bound[o] + act_half(act, y[o])))
            printf("token %d output %d is %g, not %g\n", t, o, got, y[o]);
        assert_true(fabs(got - y[o]) <= bound[o] + act_half(act, y[o]));
    }
    free(x);
    free(h);
    free(y);
    free(bound);
    free(slack);
}

static void run_layer(layer *a)
{
    turbo_err err = {{0}};
    const int64_t n = a->m.n, E = a->m.E, I = a->m.I;
    size_t size = act_size(a->act), bytes = (size_t)a->T * (size_t)E * size;
    a->up = numbers(a->act, n * 2 * I * E, 0.3f);
    a->down = numbers(a->act, n * E * I, 0.3f);
    a->x = numbers(a->act, a->T * E, 1);
    a->logits = malloc((size_t)a->T * (size_t)n * sizeof *a->logits);
    for (int64_t i = 0; i < a->T * n; i++)
        a->logits[i] = i % 5 ? uniform(-3, 3) : 1; /* equal ones */
    a->m.up = device_put(a->up, (size_t)(n * 2 * I * E) * size);
    a->m.down = device_put(a->down, (size_t)(n * E * I) * size);
    void *dx = device_put(a->x, bytes), *dy = device_new(bytes), *out = malloc(bytes);
    void *dl = device_put(a->logits, (size_t)a->T * (size_t)n * sizeof *a->logits);
    void *scratch = device_new(turbok_cu_moe_bytes(&a->m, a->T));
    must(turbok_cu_moe_layer(cu, a->act, &a->m, dl, dx, a->T, dy, scratch, &err), &err);
    device_get(out, dy, bytes);
    for (int32_t t = 0; t < a->T; t++)
        compare_token(a, t, out);
    device_end();
    free(out);
    free(a->up);
    free(a->down);
    free(a->x);
    free(a->logits);
}

static void test_layers(void)
{
    for (int i = 0; i < (on_a_card() ? 60 : 12); i++) {
        layer a = {.act = i % 2 ? TURBO_BF16 : TURBO_F16,
                   .T = i % 4 ? between(1, 9) : between(60, 140)};
        a.m = (turbok_cu_moe){
            .n = i % 3 ? between(1, 9) : between(33, 70),
            .E = 8 * between(1, 10),
            .I = 8 * between(1, 10),
            .fn = TURBO_ACT_SILU,
            .normalise = i % 3 != 1,
        };
        a.m.k = between(1, a.m.n < 8 ? a.m.n : 8);
        run_layer(&a);
    }
}

static void test_refusals(void)
{
    turbo_err err = {{0}};
    turbok_cu_moe m = {.n = 4, .k = 5, .E = 8, .I = 8};
    assert_int_equal(turbok_cu_moe_layer(cu, TURBO_BF16, &m, NULL, NULL, 1, NULL, NULL, &err),
                     TURBO_EUNSUPPORTED);
    m.k = 2;
    m.E = 12;
    assert_int_equal(turbok_cu_moe_layer(cu, TURBO_BF16, &m, NULL, NULL, 1, NULL, NULL, &err),
                     TURBO_EUNSUPPORTED);
    m.E = 8;
    assert_int_equal(turbok_cu_moe_layer(cu, TURBO_F32, &m, NULL, NULL, 1, NULL, NULL, &err),
                     TURBO_EUNSUPPORTED);
}

int main(void)
{
    device_open();
    RUN(test_layers);
    RUN(test_refusals);
    turbok_cu_close(cu);
    return 0;
}
