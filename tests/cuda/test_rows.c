/* tests/cuda/test_rows.c: the kernels of rows.cu at random odd shapes against formulas in double precision. */
#include "dev.h"

#define MANY 40000
static float x[MANY], y[MANY], z[MANY], w[MANY], v[MANY], got[MANY];

static double act_of(int fn, double a)
{
    switch (fn) {
    case TURBO_ACT_GELU_ERF: return 0.5 * a * (1 + erf(a / sqrt(2)));
    case TURBO_ACT_GELU_TANH:
        return 0.5 * a * (1 + tanh(sqrt(2 / M_PI) * (a + 0.044715 * a * a * a)));
    case TURBO_ACT_QUICK_GELU: return a / (1 + exp(-1.702 * a));
    default: return a / (1 + exp(-a));
    }
}

static void norms(int32_t act, int32_t T, int32_t E, bool layer, bool delta, bool in_place)
{
    size_t n = (size_t)T * (size_t)E;
    char what[96];
    snprintf(what, sizeof what, "%s %s T %d E %d", layer ? "layernorm" : "rmsnorm", dev_type(act),
             T, E);
    void *h = dev_numbers(act, n, 2, x), *d = dev_numbers(act, n, 1, y);
    const float *weight = dev_numbers(TURBO_F32, (size_t)E, 1, w);
    const float *bias = dev_numbers(TURBO_F32, (size_t)E, 1, v);
    void *out = in_place ? d : dev_new(n * turbok_dtype_size(act), NULL);
    if (layer)
        turbok_cu_layernorm(dev, act, h, delta ? d : NULL, weight, bias, 1e-5f, T, E, out);
    else
        turbok_cu_rmsnorm(dev, act, h, delta ? d : NULL, weight, 1e-5f, T, E, out);
    dev_get_numbers(act, h, n, got);
    for (size_t i = 0; i < n; i++) {
        x[i] = delta ? dev_round(act, x[i] + y[i]) : x[i];
        dev_near(what, i, (double)got[i], (double)x[i], 0);
    }
    dev_get_numbers(act, out, n, got);
    for (int32_t t = 0; t < T; t++) {
        double mean = 0, sq = 0;
        const float *r = x + (size_t)t * (size_t)E;
        for (int32_t i = 0; i < E && layer; i++)
            mean += (double)r[i] / E;
        for (int32_t i = 0; i < E; i++)
            sq += ((double)r[i] - mean) * ((double)r[i] - mean) / E;
        for (int32_t i = 0; i < E; i++) {
            double want = ((double)r[i] - mean) / sqrt(sq + 1e-5) * (double)w[i];
            double tol = 4e-6 * (fabs(want) + fabs((double)w[i])), at = want;
            if (layer)
                at += (double)v[i];
            dev_near(what, (size_t)t * (size_t)E + (size_t)i,
                     (double)got[(size_t)t * (size_t)E + (size_t)i], at,
                     tol + 1.1 * dev_ulp(act, at));
        }
    }
    dev_drop();
}

static void activations(int32_t act, int32_t fn, int32_t n, bool gated, int shift)
{
    size_t es = turbok_dtype_size(act), N = (size_t)n, s = (size_t)shift;
    char what[64];
    snprintf(what, sizeof what, "activation %d %s n %d", fn, dev_type(act), n);
    char *g = dev_numbers(act, N, 3, x), *u = dev_numbers(act, N + s, 1, y);
    void *out = dev_new(N * es, NULL);
    turbok_cu_activate(dev, act, fn, g, gated ? u + s * es : NULL, n, out);
    dev_get_numbers(act, out, N, got);
    for (size_t i = 0; i < N; i++) {
        double want = act_of(fn, (double)x[i]) * (gated ? (double)y[i + s] : 1);
        dev_near(what, i, (double)got[i], want,
                 4e-6 * (fabs(want) + (gated ? fabs((double)y[i + s]) : 1)) +
                     1.1 * dev_ulp(act, want));
    }
    dev_drop();
}

static void biased(int32_t act, int32_t fn, int32_t T, int32_t out, bool some)
{
    size_t n = (size_t)T * (size_t)out;
    void *in = dev_numbers(act, n, 2, x);
    const float *bias = dev_numbers(TURBO_F32, (size_t)out, 1, w);
    turbok_cu_bias_activate(dev, act, fn, in, some ? bias : NULL, T, out);
    dev_get_numbers(act, in, n, got);
    for (size_t i = 0; i < n; i++) {
        double want = act_of(fn, (double)(x[i] + (some ? w[i % (size_t)out] : 0)));
        dev_near("bias and activation", i, (double)got[i], want,
                 4e-6 * (fabs(want) + 1) + 1.1 * dev_ulp(act, want));
    }
    dev_drop();
}

static void gated(int32_t act, int32_t T, int32_t E)
{
    size_t n = (size_t)T * (size_t)E;
    void *h = dev_numbers(act, n, 2, x), *delta = dev_numbers(act, n, 1, y);
    void *in = dev_numbers(act, n, 1, z);
    const float *weight = dev_numbers(TURBO_F32, (size_t)E, 1, w);
    turbok_cu_add_gated(dev, act, h, delta, weight, in, T, E);
    dev_get_numbers(act, h, n, got);
    for (size_t i = 0; i < n; i++) {
        double sum = 0, size = 0;
        for (int32_t e = 0; e < E; e++) {
            double each = (double)z[i / (size_t)E * (size_t)E + (size_t)e] * (double)w[e];
            sum += each;
            size += fabs(each);
        }
        double add = (double)y[i] / (1 + exp(-sum)), want = (double)x[i] + add;
        dev_near("add_gated", i, (double)got[i], want,
                 fabs((double)y[i]) * (size * E * 0x1p-23 + 1e-6) + 1e-6 * fabs(want) +
                     1.1 * dev_ulp(act, want));
    }
    dev_drop();
}

static void head_norms(int32_t act, int32_t layout, int32_t H, int32_t K, int32_t D, int32_t T)
{
    const turbo_attn a = {.n_heads = H, .n_kv = K, .head_dim = D, .layout = layout};
    int32_t heads = H + 2 * K, each = H / K;
    size_t n = (size_t)(T * heads) * (size_t)D;
    void *qkv = dev_numbers(act, n, 2, x);
    const float *q = dev_numbers(TURBO_F32, (size_t)D, 1, w);
    const float *k = dev_numbers(TURBO_F32, (size_t)D, 1, v);
    turbok_cu_head_norm(dev, act, &a, q, k, 1e-6f, T, qkv);
    dev_get_numbers(act, qkv, n, got);
    for (int32_t i = 0; i < T * heads; i++) {
        int32_t at = i % heads, in_group = at % (each + 2);
        int key = layout == TURBO_QKV_PLAIN ? at >= H : in_group == each;
        int value = layout == TURBO_QKV_PLAIN ? at >= H + K : in_group > each;
        double squares = 0;
        for (int32_t d = 0; d < D; d++)
            squares += (double)x[i * D + d] * (double)x[i * D + d] / D;
        for (int32_t d = 0; d < D; d++) {
            double from = (double)x[i * D + d];
            double want = value ? from : from / sqrt(squares + 1e-6) * (double)(key ? v[d] : w[d]);
            dev_near("head_norm", (size_t)(i * D + d), (double)got[i * D + d], want,
                     value ? 0 : 4e-6 * fabs(want) + 1.1 * dev_ulp(act, want));
        }
    }
    dev_drop();
}

static void rows_moved(int32_t act, int32_t T, int32_t E)
{
    size_t es = turbok_dtype_size(act), n = (size_t)T * (size_t)E;
    enum { V = 37 };
    int32_t index[64], tokens[64], asked[64], drawn[64], which[64], back[64];
    for (int i = 0; i < 64; i++) {
        drawn[i] = dev_range(-1, V - 1); /* -1: nothing could be drawn */
        index[i] = dev_range(0, T - 1);
        tokens[i] = asked[i] = dev_range(0, V - 1);
    }
    for (int i = 0; i < 64; i++) {
        int32_t row = dev_range(0, 63);
        if (i % 3 == 0) { /* what a row of the step before drew */
            asked[i] = ~row;
            tokens[i] = drawn[row] < 0 ? 0 : drawn[row];
        }
        which[i] = dev_range(-1, T - 1);
    }
    void *in = dev_numbers(act, n, 1, x), *out = dev_new(n * es, NULL);
    turbok_cu_gather(dev, act, in, dev_new(sizeof index, index), T, E, out);
    dev_get_numbers(act, out, n, got);
    for (size_t i = 0; i < n; i++)
        dev_near("gather", i, (double)got[i],
                 (double)x[(size_t)index[i / (size_t)E] * (size_t)E + i % (size_t)E], 0);
    for (int k = 0; k < 3; k++) {
        int32_t dtype = dev_act(k);
        void *table = dev_numbers(dtype, (size_t)V * (size_t)E, 1, y), *res = dev_new(n * es, NULL);
        turbok_cu_batch b = {.tokens = dev_new(sizeof asked, asked),
                             .drawn = dev_new(sizeof drawn, drawn),
                             .embed_index = k ? dev_new(sizeof which, which) : NULL,
                             .embed_rows = in,
                             .T = T,
                             .S = 1};
        turbok_cu_embed(dev, act, table, dtype, E, &b, res);
        dev_get_numbers(act, res, n, got);
        for (size_t i = 0; i < n; i++) {
            size_t t = i / (size_t)E, e = i % (size_t)E;
            float want = k && which[t] >= 0 ? x[(size_t)which[t] * (size_t)E + e]
                                            : dev_round(act, y[(size_t)tokens[t] * (size_t)E + e]);
            dev_near("embed", i, (double)got[i], (double)want, 0);
        }
        turbok_cu_resolve(dev, &b);
        dev_get(b.tokens, back, (size_t)T * sizeof *tokens);
        for (int32_t t = 0; t < T; t++)
            dev_near("resolve", (size_t)t, back[t], tokens[t], 0);
    }
    void *d = dev_numbers(act, n, 1, y);
    const float *bias = dev_numbers(TURBO_F32, (size_t)E, 1, w);
    turbok_cu_add(dev, act, in, d, (int64_t)n);
    dev_get_numbers(act, in, n, got);
    for (size_t i = 0; i < n; i++)
        dev_near("add", i, (double)got[i], (double)dev_round(act, x[i] + y[i]), 0);
    turbok_cu_add_bias(dev, act, d, bias, T, E);
    dev_get_numbers(act, d, n, got);
    for (size_t i = 0; i < n; i++)
        dev_near("add_bias", i, (double)got[i], (double)dev_round(act, y[i] + w[i % (size_t)E]), 0);
    dev_drop();
}

static void pictures(int32_t act)
{
    enum { N = 2, H = 13, W = 17, S = 4, R = H / S, C = W / S, P = R * C, ROW = 3 * S * S };
    unsigned char pixels[N * H * W * 3];
    for (size_t i = 0; i < sizeof pixels; i++)
        pixels[i] = (unsigned char)dev_next();
    const float *value = dev_numbers(TURBO_F32, 3 * 256, 1, w);
    void *out = dev_new(N * P * ROW * turbok_dtype_size(act), NULL);
    turbok_cu_patches(dev, act, dev_new(sizeof pixels, pixels), N, H, W, S, value, out);
    dev_get_numbers(act, out, N * P * ROW, got);
    for (int i = 0; i < N * P * ROW; i++) {
        int c = i % ROW / (S * S), a = i % (S * S) / S, b = i % S, p = i / ROW % P, n = i / ROW / P;
        int at = ((n * H + p / C * S + a) * W + p % C * S + b) * 3 + c;
        dev_near("patches", (size_t)i, (double)got[i],
                 (double)dev_round(act, w[c * 256 + pixels[at]]), 0);
    }
    enum { E = 19 };
    void *in = dev_numbers(act, N * P * E, 1, x);
    const float *first = dev_numbers(TURBO_F32, E, 1, y);
    const float *position = dev_numbers(TURBO_F32, (1 + P) * E, 1, z);
    void *to = dev_new(N * (1 + P) * E * turbok_dtype_size(act), NULL);
    turbok_cu_position_rows(dev, act, in, first, position, N, P, E, to);
    dev_get_numbers(act, to, N * (1 + P) * E, got);
    for (int i = 0; i < N * (1 + P) * E; i++) {
        int e = i % E, p = i / E % (1 + P), n = i / E / (1 + P);
        float v0 = p ? x[(n * P + p - 1) * E + e] : y[e];
        dev_near("position_rows", (size_t)i, (double)got[i],
                 (double)dev_round(act, v0 + z[p * E + e]), 0);
    }
    dev_drop();
}

int main(void)
{
    dev_begin("rows");
    for (int i = 0; i < 3; i++) {
        int32_t act = dev_act(i);
        static const int32_t sizes[] = {8, 96, 13, 520, 1000, 2048, 8200};
        for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++)
            norms(act, sizes[k] < 1000 ? 5 : 2, sizes[k], k % 2, k % 3 > 0, k % 3 == 2);
        for (int32_t fn = 0; fn < 4; fn++) {
            activations(act, fn, 1003, fn % 2 == 0, 0);
            activations(act, fn, 77, true, 3);
            biased(act, fn, 5, fn % 2 ? 24 : 19, fn != 2);
        }
        rows_moved(act, 9, 24);
        rows_moved(act, 7, 11);
        rows_moved(act, 50, 16);
        pictures(act);
        gated(act, 5, 40);
        gated(act, 3, 515);
        head_norms(act, TURBO_QKV_PLAIN, 6, 2, 16, 5);
        head_norms(act, TURBO_QKV_GROUPED, 6, 2, 18, 5);
        head_norms(act, TURBO_QKV_GROUPED, 3, 3, 128, 2);
    }
    return dev_end();
}
