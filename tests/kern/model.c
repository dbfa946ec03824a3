/* tests/kern/model.c: see model.h. */
#include "model.h"

#include <math.h>

void model_linear(const float *w, const float *bias, int64_t out, int64_t in, const float *x,
                  int64_t T, bounded *y)
{
    for (int64_t t = 0; t < T; t++)
        for (int64_t o = 0; o < out; o++) {
            double sum = bias ? (double)bias[o] : 0, mag = fabs(sum);
            for (int64_t k = 0; k < in; k++) {
                double p = (double)x[t * in + k] * (double)w[o * in + k];
                sum += p;
                mag += fabs(p);
            }
            y[t * out + o] = (bounded){sum, ((double)in + 2) * KIT_U * mag + 1e-37};
        }
}

double model_act(int32_t act, double x)
{
    switch (act) {
    case TURBO_ACT_GELU_ERF: return 0.5 * x * (1 + erf(x / sqrt(2.0)));
    case TURBO_ACT_GELU_TANH:
        return 0.5 * x * (1 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case TURBO_ACT_QUICK_GELU: return x / (1 + exp(-1.702 * x));
    default: return x / (1 + exp(-x));
    }
}

void model_rmsnorm(const float *h, const float *w, double eps, int64_t E, bounded *out)
{
    double sum = 0;
    for (int64_t i = 0; i < E; i++)
        sum += (double)h[i] * (double)h[i];
    double r = 1 / sqrt(sum / (double)E + eps);
    for (int64_t i = 0; i < E; i++) {
        double v = (double)h[i] * r * (double)w[i];
        /* The sum runs in at least 4 lanes; half of its relative error reaches the root. Six more
         * roundings: mean, + eps, root, quotient, two products. */
        out[i] = (bounded){v, ((double)E / 8 + 8) * KIT_U * fabs(v) + 1e-37};
    }
}

void model_gated_mlp(const float *gate, const float *up, const float *down, int32_t act, int64_t I,
                     int64_t E, const float *x, int64_t T, bounded *y)
{
    size_t n = (size_t)(T * I);
    bounded *g = calloc(n, sizeof *g), *u = calloc(n, sizeof *u);
    assert_true(g && u);
    model_linear(gate, NULL, I, E, x, T, g);
    model_linear(up, NULL, I, E, x, T, u);
    for (size_t i = 0; i < n; i++) {
        double a = model_act(act, g[i].v);
        /* No activation is steeper than 1.14. exp, tanh and erf of the library and of libm are good
         * to 4 ulp; GELU adds up to |x| before it cancels, hence max(|a|, |x|). */
        double slip = 1.14 * g[i].tol + 8 * KIT_U * fmax(fabs(a), fabs(g[i].v));
        g[i].tol = slip * fabs(u[i].v) + fabs(a) * u[i].tol + 2 * KIT_U * fabs(a * u[i].v) +
                   slip * u[i].tol;
        g[i].v = a * u[i].v;
    }
    for (int64_t t = 0; t < T; t++)
        for (int64_t e = 0; e < E; e++) {
            double sum = 0, mag = 0, in = 0;
            for (int64_t i = 0; i < I; i++) {
                double w = (double)down[e * I + i];
                sum += w * g[t * I + i].v;
                mag += fabs(w * g[t * I + i].v);
                in += fabs(w) * g[t * I + i].tol;
            }
            y[t * E + e] = (bounded){sum, 1.01 * in + ((double)I + 2) * KIT_U * mag + 1e-37};
        }
    free(g);
    free(u);
}

void model_rope(const turbo_rope_spec *s, double base, int32_t pos, const float *in, int32_t D,
                bounded *out)
{
    int32_t half = s->dim / 2;
    for (int32_t i = 0; i < D; i++)
        out[i] = (bounded){(double)in[i], 0};
    for (int32_t i = 0; i < half; i++) {
        /* The frequency is an fp32 number and the angle an fp32 product, by definition. */
        float inv = (float)pow(base, -2.0 * i / s->dim);
        if (s->scaling == TURBO_ROPE_LINEAR)
            inv /= s->factor;
        float angle = (float)pos * inv;
        double c = cos((double)angle), sn = sin((double)angle);
        int32_t a = s->style == TURBO_ROPE_HALF ? i : 2 * i;
        int32_t b = s->style == TURBO_ROPE_HALF ? i + half : 2 * i + 1;
        double x = (double)in[a], y = (double)in[b], tol = 4 * KIT_U * (fabs(x) + fabs(y));
        out[a] = (bounded){x * c - y * sn, tol};
        out[b] = (bounded){y * c + x * sn, tol};
    }
}

static double largest(const float *x, int32_t n)
{
    double most = 0;
    for (int32_t i = 0; i < n; i++)
        most = fabs((double)x[i]) > most ? fabs((double)x[i]) : most;
    return most;
}

void model_attention(const float *q, const float *k, const float *v, int64_t n, int64_t stride,
                     int32_t D, double scale, bool coded, bounded *out)
{
    double *s = calloc((size_t)n, sizeof *s), top = -INFINITY, sum = 0, slip = 0, high = 0;
    assert_non_null(s);
    for (int64_t j = 0; j < n; j++) {
        double mag = 0, most = largest(k + j * stride, D);
        for (int32_t i = 0; i < D; i++) {
            s[j] += (double)q[i] * (double)k[j * stride + i];
            mag += fabs((double)q[i]) * (coded ? 4 * most : fabs((double)k[j * stride + i]));
        }
        s[j] *= scale;
        top = s[j] > top ? s[j] : top;
        high = fabs(s[j]) > high ? fabs(s[j]) : high;
        slip = fabs(scale) * mag > slip ? fabs(scale) * mag : slip;
    }
    for (int64_t j = 0; j < n; j++)
        sum += s[j] = exp(s[j] - top);
    /* With codes, q.k = scale (q.u) + zero sum(q) adds terms of up to |q| (255 scale + |zero|) instead of
     * |q k|. The code of the largest element is 0.99 * 255 or more, zero is -1.01 max|k| - scale or
     * more: 255 scale + |zero| is below 4 max|k|, for 15 instead of 255 too. The values likewise.
     * A score is off by at most (D + 3) u sum |q k| + 2 u |s|, each weight by the same relative
     * amount and by 4 ulp of exp, the quotient by twice that; a sum of n weights by n u more, and
     * each of the n/64 steps of the running softmax rescales once. */
    double rel = 2 * ((D + 3) * KIT_U * slip + 4 * KIT_U * high + 8 * KIT_U) +
                 (2.0 * (double)n + 16) * KIT_U;
    for (int32_t i = 0; i < D; i++) {
        double o = 0, mag = 0;
        for (int64_t j = 0; j < n; j++) {
            o += s[j] / sum * (double)v[j * stride + i];
            mag += s[j] / sum *
                   (coded ? 4 * largest(v + j * stride, D) : fabs((double)v[j * stride + i]));
        }
        out[i] = (bounded){o, rel * mag + 1e-37};
    }
    free(s);
}
