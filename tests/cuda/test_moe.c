/* tests/cuda/test_moe.c: a layer of experts against a model in double precision: numbers of each type and codes of 4
 * and 8 bits, with odd shapes, experts that nobody chose, and equal logits; and the published vector of routing. */
#include "cuda/moe.h"
#include "cuda/wq.h"
#include "internal.h"
#include "q_kit.h"

enum { MOST_CHOSEN = 16 };

typedef struct layer {
    turbok_cu_moe m;
    int32_t act, T;
    float *w; /* [n] gate [I,E], up [I,E], down [E,I], as they are multiplied */
    void *x;
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

/* Matrix part (0 gate, 1 up, 2 down) of expert e. */
static float *matrix(const layer *a, int64_t e, int64_t part)
{
    return a->w + (e * 3 + part) * a->m.E * a->m.I;
}

/* ---- how matrices are stored --------------------------------------------------------------------- */

typedef struct storage {
    int32_t bits; /* 0: numbers of dtype */
    int32_t dtype, group;
    int kind; /* codes: 0 an offset, 1 zeros, 2 minima, 3 a table */
} storage;

/* Numbers of one matrix into `to`, and as they are multiplied into w. */
static size_t put_numbers(const storage *s, int64_t out, int64_t in, float *w, char *to)
{
    for (int64_t i = 0; i < out * in; i++) {
        act_put(s->dtype, to, i, uniform(-0.3f, 0.3f));
        w[i] = act_get(s->dtype, to, i);
    }
    return ((size_t)(out * in) * act_size(s->dtype) + 255) / 256 * 256;
}

/* The same of codes; the format of the image, which does not depend on the numbers. */
static turbok_cu_wq put_codes(const storage *s, int32_t act, int64_t out, int64_t in, float *w,
                              char *to)
{
    static uint8_t codes[80 * 1024], zero[8192];
    static float scale[8192], min[8192], table[256];
    turbo_err err = {{0}};
    turbok_cu_wq q;
    int64_t groups = in / s->group * out;
    assert_true(groups <= 8192 && out * in <= (int64_t)sizeof codes);
    turbok_grid g = {.bits = s->bits,
                     .group = s->group,
                     .scale_dtype = TURBO_F32,
                     .offset = s->bits == 8 ? 128 : 8,
                     .codes = codes,
                     .scale = scale,
                     .zero = s->kind == 1 ? zero : NULL,
                     .min = s->kind == 2 ? min : NULL,
                     .table = s->kind == 3 ? table : NULL};
    for (int64_t i = 0; i < out * in; i++)
        codes[i] = (uint8_t)rnd();
    for (int64_t i = 0; i < groups; i++) {
        scale[i] = uniform(0.1f, 0.4f) / (s->kind == 3 ? 1.0f : s->bits == 8 ? 128.0f : 8.0f);
        zero[i] = (uint8_t)between(0, s->bits == 8 ? 255 : 15);
        min[i] = uniform(-0.1f, 0.1f);
    }
    for (int i = 0; i < 256; i++)
        table[i] = uniform(-1, 1);
    must(turbok_cu_wq_plan(&g, out, in, false, &q, &err), &err);
    memset(to, 0xff, q.bytes);
    turbok_cu_wq_pack(&q, &g, 0, out, NULL, TURBO_F32, 0, q.tiles, to);
    for (int64_t o = 0; o < out; o++) {
        turbok_grid_row(&g, o, in, w + o * in);
        for (int64_t k = 0; k < in; k++) /* numbers meet the activations in their type */
            w[o * in + k] = act_round(act, w[o * in + k]);
    }
    return q;
}

/* All matrices of a layer, in one piece of device memory, and the table of where each is. */
static void put_layer(layer *a, const storage *s)
{
    const int64_t n = a->m.n, E = a->m.E, I = a->m.I;
    size_t each = (size_t)(E * I) * 8 + 65536, at = 0;
    char *image = malloc(each * 3 * (size_t)n);
    turbok_cu_wq *q = calloc(3 * (size_t)n, sizeof *q);
    size_t *place = calloc(3 * (size_t)n, sizeof *place);
    turbok_cu_qmat *table = calloc(3 * (size_t)n, sizeof *table);
    a->w = malloc((size_t)(3 * n * E * I) * sizeof *a->w);
    assert_true(image && q && place && table && a->w);
    for (int64_t i = 0; i < 3 * n; i++) {
        int64_t out = i % 3 < 2 ? I : E, in = i % 3 < 2 ? E : I;
        float *w = matrix(a, i / 3, i % 3);
        place[i] = at;
        if (s->bits) {
            q[i] = put_codes(s, a->act, out, in, w, image + at);
            at += q[i].bytes;
        } else {
            at += put_numbers(s, out, in, w, image + at);
        }
    }
    char *base = device_put(image, at);
    for (int64_t i = 0; i < 3 * n; i++) {
        turbok_cu_wq_place(&q[i], turbok_cu_at(base + place[i]));
        table[i] = q[i].m;
        if (!s->bits)
            table[i] = (turbok_cu_qmat){.codes = base + place[i]};
        turbok_cu_moe_format f = {.dtype = s->dtype};
        if (s->bits)
            f = (turbok_cu_moe_format){.bits = q[i].bits,
                                       .group = q[i].group,
                                       .kind = q[i].kind,
                                       .scale_dtype = q[i].scale_dtype,
                                       .offset = q[i].offset,
                                       .steps = q[i].steps};
        *(i % 3 < 2 ? &a->m.up : &a->m.down) = f;
    }
    a->m.w = device_put(table, 3 * (size_t)n * sizeof *table);
    free(image);
    free(q);
    free(place);
    free(table);
}

/* ---- the model ------------------------------------------------------------------------------------- */

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

static double dot(const float *w, const double *x, int32_t n, double *size)
{
    double sum = 0;
    *size = 0;
    for (int32_t i = 0; i < n; i++) {
        double v = (double)w[i] * x[i];
        sum += v;
        *size += fabs(v);
    }
    return sum;
}

static void compare_token(const layer *a, int32_t t, const void *out)
{
    const int32_t E = a->m.E, I = a->m.I, act = a->act;
    int32_t experts[MOST_CHOSEN];
    double weights[MOST_CHOSEN], size;
    double *x = malloc((size_t)E * sizeof *x), *h = malloc((size_t)I * sizeof *h);
    double *y = calloc((size_t)E, sizeof *y), *bound = calloc((size_t)E, sizeof *bound);
    double *slack = malloc((size_t)I * sizeof *slack);
    route(a, t, experts, weights);
    for (int32_t i = 0; i < E; i++)
        x[i] = (double)act_get(act, a->x, (int64_t)t * E + i);
    for (int32_t j = 0; j < a->m.k; j++) {
        const float *up_rows = matrix(a, experts[j], 1), *gate_rows = matrix(a, experts[j], 0);
        const float *down = matrix(a, experts[j], 2);
        for (int32_t i = 0; i < I; i++) {
            double gate = dot(gate_rows + (int64_t)i * E, x, E, &size), off = size * E * 0x1p-22;
            double up = dot(up_rows + (int64_t)i * E, x, E, &size);
            h[i] = gate / (1 + exp(-gate)) * up;
            slack[i] = 1.2 * off * fabs(up) + fabs(gate) * size * E * 0x1p-22 +
                       2 * act_half(act, h[i]) + 1e-6;
        }
        for (int32_t o = 0; o < E; o++) {
            double v = dot(down + (int64_t)o * I, h, I, &size), off = size * I * 0x1p-22;
            for (int32_t i = 0; i < I; i++)
                off += slack[i] * fabs((double)down[(int64_t)o * I + i]);
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

static void run_layer(layer *a, const storage *s)
{
    const int64_t n = a->m.n, E = a->m.E;
    size_t bytes = (size_t)a->T * (size_t)E * act_size(a->act);
    put_layer(a, s);
    a->x = numbers(a->act, a->T * E, 1);
    a->logits = malloc((size_t)a->T * (size_t)n * sizeof *a->logits);
    for (int64_t i = 0; i < a->T * n; i++)
        a->logits[i] = i % 5 ? uniform(-3, 3) : 1; /* equal ones */
    void *dx = device_put(a->x, bytes), *dy = device_new(bytes), *out = malloc(bytes);
    void *dl = device_put(a->logits, (size_t)a->T * (size_t)n * sizeof *a->logits);
    uint64_t need = turbok_cu_moe_bytes(&a->m, a->act, a->T);
    const turbo_moe of_host = {.n_experts = a->m.n,
                               .n_chosen = a->m.k,
                               .inner = a->m.I,
                               .width = a->m.E};
    assert_true(need + 4 * (uint64_t)(a->T * n) + 256 <=
                turbo_moe_scratch(&of_host, a->T, (int32_t)act_size(a->act)));
    turbok_cu_moe_layer(cu, a->act, &a->m, dl, dx, a->T, dy, device_new(need));
    device_get(out, dy, bytes);
    for (int32_t t = 0; t < a->T; t++)
        compare_token(a, t, out);
    device_end();
    free(out);
    free(a->w);
    free(a->x);
    free(a->logits);
}

static layer any_layer(int i, int32_t act, int unit)
{
    layer a = {.act = act, .T = i % 4 ? between(1, 9) : between(60, 140)};
    a.m = (turbok_cu_moe){
        .n = i % 3 ? between(1, 9) : between(33, 70),
        .E = unit * between(1, 80 / unit),
        .I = unit * between(1, 80 / unit),
        .fn = TURBO_ACT_SILU,
        .normalise = i % 3 != 1,
    };
    a.m.k = between(1, a.m.n < 8 ? a.m.n : 8);
    return a;
}

static void test_layers(void)
{
    for (int i = 0; i < (on_a_card() ? 60 : 8); i++) {
        int32_t act = i % 2 ? TURBO_BF16 : TURBO_F16;
        layer a = any_layer(i, act, 8);
        run_layer(&a, &(storage){.dtype = act});
    }
}

/* What tensor cores do not take: fp32, other types than the activations', odd sizes. */
static void test_any(void)
{
    for (int i = 0; i < (on_a_card() ? 30 : 4); i++) {
        layer a = any_layer(i + 1, i % 3, i % 2 ? 1 : 8);
        a.T = on_a_card() ? a.T : between(1, 9);
        run_layer(&a, &(storage){.dtype = (i + i / 3) % 3});
    }
}

static void test_codes(void)
{
    for (int i = 0; i < (on_a_card() ? 60 : 12); i++) {
        static const int32_t acts[] = {TURBO_BF16, TURBO_F16, TURBO_BF16, TURBO_F32};
        storage s = {.bits = i % 2 ? 8 : 4, .kind = i / 2 % 4};
        layer a = any_layer(i, acts[i / 3 % 4], 16);
        a.T = on_a_card() || a.act != TURBO_F32 ? a.T : between(1, 9);
        s.group = a.m.E % 32 || a.m.I % 32 ? 16 : 32;
        s.kind = s.kind == 1 && s.bits == 8 ? 0 : s.kind;
        run_layer(&a, &s);
    }
}

int main(void)
{
    device_open();
    RUN(test_layers);
    RUN(test_any);
    RUN(test_codes);
    turbok_cu_close(cu);
    return 0;
}
