/* tests/cuda/test_linear.c: matrix products at random odd shapes against sums in double precision. The bound is
 * that of a chain of `in` fused multiply-adds and of storing the result. */
#include "dev.h"

static double act_of(double a)
{
    return a / (1 + exp(-a));
}

static void product(int32_t act, int32_t w_dtype, int32_t out_dtype, int32_t out, int32_t in,
                    int32_t T, bool has_bias, bool many)
{
    size_t O = (size_t)out, I = (size_t)in, N = (size_t)T;
    float *w = malloc(O * I * 4), *x = malloc(N * I * 4), *b = malloc(O * 4),
          *got = malloc(N * O * 4);
    char what[128];
    snprintf(what, sizeof what, "%s w %s act %s -> %s, %d x %d, T %d", many ? "gemm" : "gemv",
             dev_type(w_dtype), dev_type(act), dev_type(out_dtype), out, in, T);
    void *dw = dev_numbers(w_dtype, O * I, 0.5f, w), *dx = dev_numbers(act, N * I, 1, x);
    const float *db = dev_numbers(TURBO_F32, O, 1, b);
    void *dy = dev_new(N * O * turbok_dtype_size(out_dtype), NULL);
    (many ? turbok_cu_gemm : turbok_cu_gemv)(dev, act, dw, w_dtype, has_bias ? db : NULL, out, in,
                                             dx, T, out_dtype, dy);
    dev_get_numbers(out_dtype, dy, N * O, got);
    for (size_t t = 0; t < N; t++)
        for (size_t o = 0; o < O; o++) {
            double sum = has_bias ? (double)b[o] : 0, size = fabs(sum);
            for (size_t k = 0; k < I; k++) {
                double p = (double)w[o * I + k] * (double)x[t * I + k];
                sum += p;
                size += fabs(p);
            }
            dev_near(what, t * O + o, (double)got[t * O + o], sum,
                     (in + 2) * 0x1p-23 * size + 1.01 * dev_ulp(out_dtype, sum));
        }
    free(w), free(x), free(b), free(got);
    dev_drop();
}

static void gated(int32_t act, int32_t out, int32_t in, int32_t T)
{
    size_t O = (size_t)out, I = (size_t)in, N = (size_t)T;
    float *g = malloc(O * I * 4), *u = malloc(O * I * 4), *x = malloc(N * I * 4),
          *got = malloc(N * O * 4);
    char what[96];
    snprintf(what, sizeof what, "gated %s, %d x %d, T %d", dev_type(act), out, in, T);
    void *dg = dev_numbers(act, O * I, 0.3f, g), *du = dev_numbers(act, O * I, 0.3f, u);
    void *dx = dev_numbers(act, N * I, 1, x), *dy = dev_new(N * O * turbok_dtype_size(act), NULL);
    if (!turbok_cu_gemv_gated(dev, act, dg, du, act, TURBO_ACT_SILU, out, in, dx, T, dy, NULL))
        dev_fail("%s: not taken", what);
    dev_get_numbers(act, dy, N * O, got);
    for (size_t t = 0; t < N; t++)
        for (size_t o = 0; o < O; o++) {
            double a = 0, b = 0, size = 0;
            for (size_t k = 0; k < I; k++) {
                a += (double)g[o * I + k] * (double)x[t * I + k];
                b += (double)u[o * I + k] * (double)x[t * I + k];
                size += fabs((double)g[o * I + k] * (double)x[t * I + k]) +
                        fabs((double)u[o * I + k] * (double)x[t * I + k]);
            }
            /* both products are rounded to the activation type before they meet */
            double ea = dev_ulp(act, a) + (in + 2) * 0x1p-23 * size;
            double eb = dev_ulp(act, b) + (in + 2) * 0x1p-23 * size, want = act_of(a) * b;
            dev_near(what, t * O + o, (double)got[t * O + o], want,
                     1.2 * ea * (fabs(b) + eb) + eb * fabs(act_of(a)) + 1.1 * dev_ulp(act, want) +
                         1e-6);
        }
    free(g), free(u), free(x), free(got);
    dev_drop();
}

static void equal(const char *what, int32_t act, const void *a, const void *b, size_t n)
{
    float *x = malloc(n * 4), *y = malloc(n * 4);
    dev_get_numbers(act, a, n, x);
    dev_get_numbers(act, b, n, y);
    if (memcmp(x, y, n * 4))
        dev_fail("%s: other bits", what);
    free(x), free(y);
}

/* A norm before a product and a sum after it, in one launch, have the bits that they have as three. */
static void beside(int32_t act, int32_t out, int32_t in, int32_t T)
{
    size_t N = (size_t)T, all = N * (size_t)out, weights = (size_t)out * (size_t)in;
    float *w = malloc(weights * 4), *x = malloc(N * (size_t)in * 4),
          *v = malloc((size_t)(in + out) * 4);
    char what[96];
    snprintf(what, sizeof what, "%s with a norm, %d x %d, T %d", dev_type(act), out, in, T);
    void *dw = dev_numbers(act, weights, 0.3f, w), *dx = dev_numbers(act, N * (size_t)in, 1, x);
    const float *norm = dev_numbers(TURBO_F32, (size_t)in, 1, v),
                *last = dev_numbers(TURBO_F32, (size_t)out, 1, v);
    void *normed = dev_new(N * (size_t)in * 2, NULL), *rest = dev_new(all * 2, NULL), *y[2], *h[2];
    char *start = malloc(all * 2);
    h[0] = dev_numbers(act, all, 1, v = realloc(v, (all + (size_t)in + (size_t)out) * 4));
    dev_get(h[0], start, all * 2);
    h[1] = dev_new(all * 2, start);
    for (int i = 0; i < 2; i++)
        y[i] = dev_new(all * 2, NULL);
    const turbok_cu_beside b = {.h = h[1], .norm = norm, .eps = 1e-6f}, only = {.norm = norm};
    turbok_cu_rmsnorm(dev, act, dx, NULL, norm, 1e-6f, T, in, normed);
    turbok_cu_gemv(dev, act, dw, act, NULL, out, in, normed, T, act, y[0]);
    turbok_cu_rmsnorm(dev, act, h[0], y[0], last, 1, T, out, rest);
    if (!turbok_cu_gemv_beside(dev, act, dw, act, NULL, out, in, dx, T, act, y[1], &b))
        dev_fail("%s: not taken", what);
    equal(what, act, y[0], y[1], all);
    equal(what, act, h[0], h[1], all);
    turbok_cu_rmsnorm(dev, act, dx, NULL, norm, 0, T, in, normed);
    if (!turbok_cu_gemv_gated(dev, act, dw, dw, act, TURBO_ACT_SILU, out, in, normed, T, y[0],
                              NULL) ||
        !turbok_cu_gemv_gated(dev, act, dw, dw, act, TURBO_ACT_SILU, out, in, dx, T, y[1], &only))
        dev_fail("%s: not taken", what);
    equal(what, act, y[0], y[1], all);
    free(w), free(x), free(v), free(start);
    dev_drop();
}

/* The products that stream weights: several tiles a block, rows of several entries with rests. */
static void streamed(int32_t act)
{
    static const int32_t rows[] = {1, 2, 7, 8};
    for (size_t k = 0; k < 4; k++)
        product(act, act, k % 2 ? TURBO_F32 : act, 33 + (int32_t)k, 2056, rows[k], k > 1, false);
    product(act, act, act, 16, 8, 1, false, false);
    product(act, act, act, 150, 4104, 2, true, false);
    product(act, act, act, 2300, 72, 1, false, false);
    product(act, act, act, 40, 2600, 13, true, true);
    gated(act, 21, 2056, 3);
    gated(act, 8, 40, 8);
    gated(act, 75, 4360, 1);
}

/* The same with what is beside them. */
static void fused(int32_t act)
{
    beside(act, 72, 72, 2);
    beside(act, 20, 1032, 1);
    beside(act, 136, 264, 2);
    beside(act, 16, 4360, 1);
    beside(act, 40, 8192, 1);
}

/* Products by warp groups: pieces of all widths; rows that lie alone have the same bits. */
static void wide(int32_t act, int32_t out_dtype, int32_t out, int32_t in, int32_t T, bool has_bias,
                 bool is_gated, const turbok_cu_gemm_plan *plan)
{
    size_t O = (size_t)out, I = (size_t)in, N = (size_t)T, size = turbok_dtype_size(out_dtype);
    float *w = malloc(O * I * 4), *u = malloc(O * I * 4), *x = malloc(N * I * 4),
          *b = malloc(O * 4), *got = malloc(N * O * 4);
    char what[160];
    /* of a row alone: as wide as can be, with as many parts of a sum */
    const turbok_cu_gemm_plan other = {{128, 128},
                                       {(out - 1) / (128 >> is_gated) + 1, 0},
                                       plan->shares};
    snprintf(what, sizeof what, "wide %s%s -> %s, %d x %d, T %d, %d of %d, %d of %d, %d",
             is_gated ? "gated " : "", dev_type(act), dev_type(out_dtype), out, in, T,
             plan->columns[0], plan->outs[0], plan->columns[1], plan->outs[1], plan->shares);
    void *dw = dev_numbers(act, O * I, 0.3f, w), *du = dev_numbers(act, O * I, 0.3f, u),
         *dx = dev_numbers(act, N * I, 1, x), *dy = dev_new(N * O * size, NULL),
         *alone = dev_new(O * size, NULL);
    const float *db = dev_numbers(TURBO_F32, O, 1, b);
    const size_t last = N - 1;
    if (!turbok_cu_gemm_wide(dev, act, dw, is_gated ? du : NULL, act, has_bias ? db : NULL, out, in,
                             dx, T, out_dtype, dy, plan) ||
        !turbok_cu_gemm_wide(dev, act, dw, is_gated ? du : NULL, act, has_bias ? db : NULL, out, in,
                             (char *)dx + last * I * 2, 1, out_dtype, alone, &other))
        dev_fail("%s: not taken", what);
    equal(what, out_dtype, (char *)dy + last * O * size, alone, O);
    dev_get_numbers(out_dtype, dy, N * O, got);
    for (size_t t = 0; t < N; t++)
        for (size_t o = 0; o < O; o++) {
            double s = has_bias ? (double)b[o] : 0, up = 0, largest = fabs(s);
            for (size_t k = 0; k < I; k++) {
                double p = (double)w[o * I + k] * (double)x[t * I + k],
                       q = is_gated ? (double)u[o * I + k] * (double)x[t * I + k] : 0;
                s += p;
                up += q;
                largest += fabs(p) + fabs(q);
            }
            double e = (in + 2) * 0x1p-23 * largest;
            if (is_gated) { /* both products are rounded before they meet */
                double es = dev_ulp(act, s) + e, eu = dev_ulp(act, up) + e, want = act_of(s) * up;
                dev_near(what, t * O + o, (double)got[t * O + o], want,
                         1.2 * es * (fabs(up) + eu) + eu * fabs(act_of(s)) +
                             1.1 * dev_ulp(act, want) + 1e-6);
            } else {
                dev_near(what, t * O + o, (double)got[t * O + o], s,
                         e + 1.01 * dev_ulp(out_dtype, s));
            }
        }
    free(w), free(u), free(x), free(b), free(got);
    dev_drop();
}

/* All outputs in pieces of `first`, but for those of `columns` and more, in pieces of `second`. */
static turbok_cu_gemm_plan cut(int32_t out, bool is_gated, int32_t first, int32_t columns,
                               int32_t second)
{
    int32_t a = first >> is_gated, b = second >> is_gated, all = (out + a - 1) / a;
    if (columns >= all)
        return (turbok_cu_gemm_plan){{first, first}, {all, 0}, 1};
    return (turbok_cu_gemm_plan){{first, second}, {columns, (out - columns * a + b - 1) / b}, 1};
}

static void wides(int32_t act)
{
    static const struct {
        int32_t out, in, T, first, columns, second;
        bool bias, gated, floats;
        int32_t shares;
    } cases[] = {
        {270, 200, 150, 256, 9, 64, true, false, false, 1},
        {130, 8, 1, 192, 9, 64, false, true, false, 1},
        {200, 328, 129, 128, 1, 64, true, false, true, 1},
        {65, 72, 300, 64, 9, 64, false, false, true, 1},
        {296, 136, 130, 256, 1, 128, false, true, false, 1},
        {88, 264, 70, 64, 1, 64, false, true, false, 1},
        {417, 64, 257, 192, 2, 128, true, false, false, 1},
        {1, 40, 3, 128, 9, 64, true, false, false, 1},
        {270, 200, 150, 128, 9, 0, true, false, false, 2},
        {130, 72, 1, 64, 9, 0, false, false, false, 2},
        {200, 648, 129, 128, 9, 0, true, false, true, 2},
        {65, 1096, 300, 64, 9, 0, true, false, true, 2},
        {417, 64 * 20, 257, 128, 9, 0, false, false, false, 2},
        {61, 64 * 13, 70, 64, 9, 0, true, false, false, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        turbok_cu_gemm_plan p =
            cut(cases[i].out, cases[i].gated, cases[i].first, cases[i].columns, cases[i].second);
        p.shares = cases[i].shares;
        wide(act, cases[i].floats ? TURBO_F32 : act, cases[i].out, cases[i].in, cases[i].T,
             cases[i].bias, cases[i].gated, &p);
    }
    /* As it is chosen: cards of few multiprocessors cut in two widths. */
    for (int k = 0; k < 4; k++) {
        const int32_t out = dev_range(1, 700), T = dev_range(1, 400), in = 8 * dev_range(1, 20);
        const turbok_cu_gemm_plan p = turbok_cu_gemm_choose(dev, T, out, in, k % 2);
        wide(act, act, out, in, T, k == 2, k % 2, &p);
    }
}

int main(void)
{
    dev_begin("linear");
    int all = dev->shared_optin;
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 3; k++) { /* all types of weights with all of activations */
            product(dev_act(i), dev_act(k), dev_act(i), 19, 40, 3, k == 1, false);
            product(dev_act(i), dev_act(k), TURBO_F32, 21, 13, 5, false, k == 0);
            product(dev_act(i), dev_act(k), dev_act(i), 70, 24, 67, true, true);
        }
    for (int i = 0; i < 2; i++) {
        streamed(dev_act(i));
        fused(dev_act(i));
        dev->shared_optin = 99 << 10; /* as if the device had room for small queues only */
        streamed(dev_act(i));
        dev->shared_optin = 115 << 10; /* and for rows beside them */
        fused(dev_act(i));
        dev->shared_optin = all;
        if (dev->warp_groups)
            wides(dev_act(i));
        product(dev_act(i), dev_act(i), dev_act(i), 150, 136, 40, true, true);
        product(dev_act(i), dev_act(i), TURBO_F32, 136, 72, 150, false, true);
        product(dev_act(i), dev_act(i), dev_act(i), 130, 264, 129, true, true);
    }
    return dev_end();
}
