/* tests/kern/picture.c: see picture.h. patches, position_rows and add must give the very bits of the
 * reference; layernorm, mlp and attention_full are held to the error bound of a double-precision model. */
#include "picture.h"

#include <math.h>

#include "model.h"

static const int32_t sizes[] = {1, 2, 3, 17, 63, 64, 65, 128, 172, 300};

static turbo_vector *vector(turbok_device *d, const float *f, int64_t n)
{
    turbo_vector *v = NULL;
    turbo_err err = {{0}};
    if (turbok_vector_new(d, TURBO_F32, f, n, &v, &err))
        fail_msg("turbok_vector_new: %s", err.text);
    return v;
}

static turbo_linear *linear(turbok_device *d, const float *f, int32_t out, int32_t in,
                            const float *b)
{
    turbo_linear *w = NULL;
    turbo_err err = {{0}};
    if (turbok_linear_new(d, TURBO_F32, f, out, in, b, TURBO_F32, 0, &w, &err))
        fail_msg("turbok_linear_new: %s", err.text);
    return w;
}

static void within(const char *what, const float *got, const bounded *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        kit_near(what, i, (double)got[i], want[i].v, want[i].tol);
}

static float *floats(kit_mem *m, kit_rng *r, size_t n)
{
    float *f = kit_new_floats(m, n);
    kit_floats(r, f, n);
    kit_freeze(m, f);
    return f;
}

static bounded *bounds(size_t n)
{
    bounded *b = calloc(n, sizeof *b);
    assert_non_null(b);
    return b;
}

/* h [E] after the addition of delta. An error of the mean moves every difference from it; their squares
 * sum in at least 4 lanes, and half of that relative error reaches the root. */
static void model_layernorm(const float *h, const float *w, const float *b, double eps, int64_t E,
                            bounded *out)
{
    double sum = 0, mag = 0, squares = 0, away = 0;
    for (int64_t i = 0; i < E; i++) {
        sum += (double)h[i];
        mag += fabs((double)h[i]);
    }
    double mean = sum / (double)E, slip = ((double)E / 4 + 4) * KIT_U * mag / (double)E;
    for (int64_t i = 0; i < E; i++) {
        double d = (double)h[i] - mean;
        squares += d * d;
        away += fabs(d);
    }
    double var = squares / (double)E + eps, r = 1 / sqrt(var);
    double rel = ((double)E / 8 + 8) * KIT_U + (slip + KIT_U * mag) * away / (double)E / var +
                 slip * slip / var;
    for (int64_t i = 0; i < E; i++) {
        double d = (double)h[i] - mean, v = d * r * (double)w[i];
        double off = slip + KIT_U * (fabs((double)h[i]) + fabs(mean));
        out[i].v = v + (double)b[i];
        out[i].tol = fabs((double)w[i]) * r * off * (1 + rel) + fabs(v) * rel +
                     4 * KIT_U * (fabs(v) + fabs((double)b[i])) + 1e-37;
    }
}

void check_layernorm(const kit_devices *k, kit_rng *r)
{
    for (int round = 0; round < KIT_ROUNDS(40); round++) {
        kit_mem m = {0};
        int32_t T = kit_range(r, 1, 40), E = kit_pick(r, sizes);
        size_t n = (size_t)T * (size_t)E;
        float *h0 = kit_new_floats(&m, n), *delta = floats(&m, r, n), *sum = kit_new_floats(&m, n);
        float *w = floats(&m, r, (size_t)E), *b = floats(&m, r, (size_t)E);
        int kind = kit_range(r, 0, 2); /* no delta, delta, out == delta */
        bounded *model = bounds(n);
        kit_floats(r, h0, n);
        for (size_t i = 0; i < n; i++) {
            h0[i] += round % 4 ? 0.0f : 50.0f; /* a mean that must not drown the differences */
            sum[i] = kind ? h0[i] + delta[i] : h0[i];
        }
        for (int32_t t = 0; t < T; t++)
            model_layernorm(sum + t * E, w, b, (double)1e-5f, E, model + t * E);
        for (int d = 0; d < k->n; d++) {
            turbo_vector *vw = vector(k->d[d], w, E), *vb = vector(k->d[d], b, E);
            float *h = kit_new_floats(&m, n), *y = kit_new_floats(&m, n);
            memcpy(h, h0, n * 4);
            if (kind == 2)
                memcpy(y, delta, n * 4);
            turbok_device_ops(k->d[d])->layernorm(turbok_device_exec(k->d[d]), h,
                                                  kind == 0   ? NULL
                                                  : kind == 1 ? delta
                                                              : y,
                                                  vw, vb, 1e-5f, T, E, y);
            kit_equal("h of layernorm", h, sum, n * 4);
            within(turbok_device_name(k->d[d]), y, model, n);
            turbok_vector_free(k->d[d], vw);
            turbok_vector_free(k->d[d], vb);
        }
        kit_verify(&m);
        kit_drop(&m);
        free(model);
    }
}

static void model_mlp(const float *up, const float *ub, const float *down, const float *db,
                      int32_t act, int32_t E, int32_t I, int32_t O, const float *x, int32_t T,
                      bounded *y)
{
    bounded *u = bounds((size_t)T * (size_t)I);
    model_linear(up, ub, I, E, x, T, u);
    for (int64_t i = 0; i < (int64_t)T * I; i++) { /* as in model_gated_mlp */
        double a = model_act(act, u[i].v);
        u[i].tol = 1.14 * u[i].tol + 8 * KIT_U * fmax(fabs(a), fabs(u[i].v));
        u[i].v = a;
    }
    for (int32_t t = 0; t < T; t++)
        for (int32_t o = 0; o < O; o++) {
            double sum = (double)db[o], mag = fabs(sum), in = 0;
            for (int32_t i = 0; i < I; i++) {
                double w = (double)down[o * I + i];
                sum += w * u[t * I + i].v;
                mag += fabs(w * u[t * I + i].v);
                in += fabs(w) * u[t * I + i].tol;
            }
            y[t * O + o] = (bounded){sum, 1.01 * in + ((double)I + 2) * KIT_U * mag + 1e-37};
        }
    free(u);
}

void check_mlp(const kit_devices *k, kit_rng *r)
{
    for (int round = 0; round < KIT_ROUNDS(24); round++) {
        kit_mem m = {0};
        int32_t E = kit_pick(r, sizes), I = kit_pick(r, sizes), O = kit_pick(r, sizes);
        int32_t T = kit_range(r, 1, 20), act = round % 4;
        size_t n = (size_t)T * (size_t)O;
        float *up = floats(&m, r, (size_t)I * (size_t)E), *ub = floats(&m, r, (size_t)I);
        float *down = floats(&m, r, (size_t)O * (size_t)I), *db = floats(&m, r, (size_t)O);
        float *x = kit_new_floats(&m, (size_t)T * (size_t)E);
        bounded *model = bounds(n);
        kit_floats(r, x, (size_t)T * (size_t)E);
        for (int32_t i = 0; i < T * E && round % 3 == 0; i++)
            x[i] *= 200; /* far into the tails of the activation */
        kit_freeze(&m, x);
        model_mlp(up, ub, down, db, act, E, I, O, x, T, model);
        for (int d = 0; d < k->n; d++) {
            turbo_linear *hu = linear(k->d[d], up, I, E, ub), *hd = linear(k->d[d], down, O, I, db);
            float *y = kit_new_floats(&m, n), *s = kit_new_floats(&m, (size_t)T * (size_t)I);
            turbok_device_ops(k->d[d])->mlp(turbok_device_exec(k->d[d]), hu, hd, act, x, T, s, y);
            within(turbok_device_name(k->d[d]), y, model, n);
            turbok_linear_free(k->d[d], hu);
            turbok_linear_free(k->d[d], hd);
        }
        kit_verify(&m);
        kit_drop(&m);
        free(model);
    }
}

void check_attention_full(const kit_devices *k, kit_rng *r)
{
    static const int32_t lengths[] = {1, 5, 17, 63, 64, 65, 130, 200},
                         dims[] = {2, 8, 64, 72, 80, 256};
    for (int round = 0; round < KIT_ROUNDS(30); round++) {
        kit_mem m = {0};
        int32_t N = kit_range(r, 1, 3), T = kit_pick(r, lengths), H = kit_range(r, 1, 3);
        int32_t D = kit_pick(r, dims), row = 3 * H * D;
        size_t n = (size_t)(N * T * H) * (size_t)D;
        float *qkv = floats(&m, r, 3 * n), *ref = NULL, *alone = kit_new_floats(&m, n);
        float scale = 1 / sqrtf((float)D);
        bounded *model = bounds(n);
        for (int32_t i = 0; i < N * T * H; i++) {
            int32_t token = i / H, h = i % H;
            const float *picture = qkv + (size_t)(token / T * T) * (size_t)row + h * D;
            model_attention(qkv + (size_t)token * (size_t)row + h * D, picture + H * D,
                            picture + 2 * H * D, T, row, D, (double)scale, false,
                            model + (size_t)i * (size_t)D);
        }
        for (int d = 0; d < k->n; d++) {
            const turbo_ops *ops = turbok_device_ops(k->d[d]);
            turbo_exec *x = turbok_device_exec(k->d[d]);
            float *y = kit_new_floats(&m, n);
            ops->attention_full(x, qkv, N, T, H, D, scale, y);
            within(turbok_device_name(k->d[d]), y, model, n);
            ref = d ? ref : y;
            /* a picture alone has the same bits */
            for (int32_t p = 0; p < N; p++)
                ops->attention_full(x, qkv + (size_t)(p * T) * (size_t)row, 1, T, H, D, scale,
                                    alone + (size_t)(p * T * H) * (size_t)D);
            kit_equal("a picture alone", alone, y, n * 4);
        }
        kit_verify(&m);
        kit_drop(&m);
        free(model);
    }
}

void check_patches(const kit_devices *k, kit_rng *r)
{
    for (int round = 0; round < KIT_ROUNDS(20); round++) {
        kit_mem m = {0};
        int32_t N = kit_range(r, 1, 3), size = kit_range(r, 1, 14), down = kit_range(r, 1, 4);
        int32_t across = kit_range(r, 1, 4);
        int32_t height = down * size + kit_range(r, 0, size - 1);
        int32_t width = across * size + kit_range(r, 0, size - 1);
        size_t in = (size_t)(N * height) * (size_t)width * 3;
        size_t n = (size_t)(N * down * across) * 3 * (size_t)(size * size);
        float *value = floats(&m, r, 3 * 256);
        uint8_t *pixels = kit_new(&m, in);
        for (size_t i = 0; i < in; i++)
            pixels[i] = (uint8_t)kit_next(r);
        kit_freeze(&m, pixels);
        for (int d = 0; d < k->n; d++) {
            float *y = kit_new_floats(&m, n), *at = y;
            turbok_device_ops(k->d[d])->patches(turbok_device_exec(k->d[d]), pixels, N, height,
                                                width, size, value, y);
            for (int32_t p = 0; p < N * down * across; p++)
                for (int32_t i = 0; i < 3 * size * size; i++, at++) {
                    int32_t y0 = p / across % down * size + i / size % size;
                    int32_t x0 = p % across * size + i % size, c = i / (size * size);
                    int32_t px = ((p / (down * across) * height + y0) * width + x0) * 3 + c;
                    kit_near("patches", (size_t)(at - y), (double)*at,
                             (double)value[c * 256 + pixels[px]], 0);
                }
        }
        kit_verify(&m);
        kit_drop(&m);
    }
}

void check_position_rows(const kit_devices *k, kit_rng *r)
{
    for (int round = 0; round < KIT_ROUNDS(20); round++) {
        kit_mem m = {0};
        int32_t N = kit_range(r, 1, 3), P = kit_range(r, 1, 70), E = kit_pick(r, sizes);
        size_t n = (size_t)(N * (P + 1)) * (size_t)E;
        float *in = floats(&m, r, (size_t)(N * P) * (size_t)E), *first = floats(&m, r, (size_t)E);
        float *position = floats(&m, r, (size_t)(P + 1) * (size_t)E);
        for (int d = 0; d < k->n; d++) {
            turbo_vector *vf = vector(k->d[d], first, E);
            turbo_vector *vp = vector(k->d[d], position, (int64_t)(P + 1) * E);
            float *y = kit_new_floats(&m, n);
            turbok_device_ops(k->d[d])->position_rows(turbok_device_exec(k->d[d]), in, vf, vp, N, P,
                                                      E, y);
            for (int32_t i = 0; i < N * (P + 1) * E; i++) {
                int32_t p = i / E % (P + 1), e = i % E;
                float from = p ? in[(i / E / (P + 1) * P + p - 1) * E + e] : first[e];
                kit_near("position_rows", (size_t)i, (double)y[i],
                         (double)(from + position[p * E + e]), 0);
            }
            turbok_vector_free(k->d[d], vf);
            turbok_vector_free(k->d[d], vp);
        }
        kit_verify(&m);
        kit_drop(&m);
    }
}

void check_add(const kit_devices *k, kit_rng *r)
{
    for (int round = 0; round < KIT_ROUNDS(10); round++) {
        kit_mem m = {0};
        int32_t T = kit_range(r, 1, 40), E = kit_pick(r, sizes);
        size_t n = (size_t)T * (size_t)E;
        float *h0 = floats(&m, r, n), *delta = floats(&m, r, n);
        for (int d = 0; d < k->n; d++) {
            float *h = kit_new_floats(&m, n);
            memcpy(h, h0, n * 4);
            turbok_device_ops(k->d[d])->add(turbok_device_exec(k->d[d]), h, delta, T, E);
            for (size_t i = 0; i < n; i++)
                kit_near("add", i, (double)h[i], (double)(h0[i] + delta[i]), 0);
        }
        kit_verify(&m);
        kit_drop(&m);
    }
}
