/* kernels/cpu/ref.c: the scalar reference of every primitive, written to be read. Everything faster
 * is checked against this file. Compiled without contraction: what stands here is what is computed. */
#include <math.h>
#include <string.h>

#include "cpu/half.h"
#include "cpu/quant.h"
#include "prim.h"

static inline float element(int32_t dtype, const void *p, int64_t i)
{
    if (dtype == TURBO_F32) {
        float f;
        memcpy(&f, (const char *)p + 4 * i, 4);
        return f;
    }
    uint16_t h;
    memcpy(&h, (const char *)p + 2 * i, 2);
    return dtype == TURBO_F16 ? turbok_f16_to_f32(h) : turbok_bf16_to_f32(h);
}

/* The 64 lanes of step k. */
static void tile_line(int32_t dtype, const void *w, int64_t ldw, int64_t k, float *v)
{
    const uint8_t *codes = w;
    for (int lane = 0; lane < TURBOK_TILE && dtype == TURBO_U8; lane++)
        v[lane] = (float)codes[k * ldw + lane];
    for (int lane = 0; lane < TURBOK_TILE && dtype == TURBOK_U4_PAIR; lane++)
        v[lane] = (float)(codes[k / 2 * ldw + lane] >> 4 * (k % 2) & 15);
    for (int lane = 0; lane < TURBOK_TILE && dtype == TURBOK_U4_SPLIT; lane++)
        v[lane] = (float)(codes[k * ldw / 2 + lane % 32] >> 4 * (lane / 32) & 15);
    if (dtype == TURBO_BF16)
        for (int lane = 0; lane < TURBOK_TILE; lane++)
            v[lane] = element(TURBO_BF16, w, k * ldw + lane);
    else if (dtype <= TURBO_F16)
        for (int lane = 0; lane < TURBOK_TILE; lane++)
            v[lane] = element(dtype, w, k * ldw + lane);
}

static void gemm_tile(int32_t dtype, const void *w, int64_t ldw, const float *x, int64_t ldx,
                      int rows, int64_t n, float *acc, const void *ahead)
{
    (void)ahead;
    for (int64_t k = 0; k < n; k++) {
        float v[TURBOK_TILE];
        tile_line(dtype, w, ldw, k, v);
        for (int lane = 0; lane < TURBOK_TILE; lane++)
            for (int r = 0; r < rows; r++)
                acc[r * TURBOK_TILE + lane] =
                    fmaf(x[r * ldx + k], v[lane], acc[r * TURBOK_TILE + lane]);
    }
}

static void rmsnorm(float *h, const float *delta, const float *w, float eps, int64_t n, float *out)
{
    float lanes[16] = {0};
    for (int64_t i = 0; i < n; i++) {
        if (delta)
            h[i] += delta[i];
        lanes[i % 16] = fmaf(h[i], h[i], lanes[i % 16]);
    }
    double sum = 0;
    for (int l = 0; l < 16; l++)
        sum += (double)lanes[l];
    float r = 1.0f / sqrtf((float)(sum / (double)n) + eps);
    for (int64_t i = 0; i < n; i++)
        out[i] = w[i] * (h[i] * r);
}

static float activate(int32_t act, float x)
{
    switch (act) {
    case TURBO_ACT_GELU_ERF: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case TURBO_ACT_GELU_TANH:
        return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case TURBO_ACT_QUICK_GELU: return x / (1.0f + expf(-1.702f * x));
    default: return x / (1.0f + expf(-x));
    }
}

static void layernorm(float *h, const float *delta, const float *w, const float *bias, float eps,
                      int64_t n, float *out)
{
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) {
        if (delta)
            h[i] += delta[i];
        sum += (double)h[i];
    }
    float mean = (float)(sum / (double)n);
    for (int64_t i = 0; i < n; i++) {
        float d = h[i] - mean;
        squares += (double)d * (double)d;
    }
    float r = 1.0f / sqrtf((float)(squares / (double)n) + eps);
    for (int64_t i = 0; i < n; i++)
        out[i] = w[i] * ((h[i] - mean) * r) + bias[i];
}

static void activate_all(int32_t act, const float *in, int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = activate(act, in[i]);
}

static void gated(int32_t act, const float *gate, const float *up, int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = activate(act, gate[i]) * up[i];
}

static void widen(int32_t dtype, const void *in, int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = element(dtype, in, i);
}

static void narrow(int32_t dtype, const float *in, int64_t n, void *out)
{
    for (int64_t i = 0; i < n; i++) {
        if (dtype == TURBO_F32) {
            memcpy((char *)out + 4 * i, &in[i], 4);
        } else {
            uint16_t h = dtype == TURBO_F16 ? turbok_f32_to_f16(in[i]) : turbok_f32_to_bf16(in[i]);
            memcpy((char *)out + 2 * i, &h, 2);
        }
    }
}

static float softmax(float *s, int64_t n, float scale, float *m)
{
    float sum = 0;
    for (int64_t j = 0; j < n; j++) {
        s[j] *= scale;
        if (s[j] > *m)
            *m = s[j];
    }
    for (int64_t j = 0; j < n; j++) {
        s[j] = expf(s[j] - *m);
        sum += s[j];
    }
    return sum;
}

static void quantize(int bits, const float *in, int64_t n, uint8_t *codes, uint16_t par[2])
{
    float top = bits == 8 ? 255.0f : 15.0f, lo = in[0], hi = in[0];
    bool finite = true;
    for (int64_t i = 0; i < n; i++) {
        lo = in[i] < lo ? in[i] : lo;
        hi = in[i] > hi ? in[i] : hi;
        finite &= in[i] - in[i] == 0.0f;
    }
    turbok_quant q = turbok_quant_of(lo, hi, finite, top);
    for (int64_t i = 0; i < n; i++)
        codes[i] = turbok_quant_flat(&q) ? 0 : turbok_quant_code(&q, in[i], top);
    memcpy(par, q.par, sizeof q.par);
}

static void scores(float *s, const float *scale, const float *zero, float qsum)
{
    for (int j = 0; j < TURBOK_TILE; j++)
        s[j] = fmaf(s[j], scale[j], qsum * zero[j]);
}

static float weights(float *p, int64_t n, const float *scale, const float *zero)
{
    float sum = 0;
    for (int64_t j = 0; j < n; j++) {
        sum = fmaf(p[j], zero[j], sum);
        p[j] *= scale[j];
    }
    return sum;
}

const turbok_prim turbok_prim_scalar = {
    .name = "scalar",
    .gemm_tile = gemm_tile,
    .rmsnorm = rmsnorm,
    .layernorm = layernorm,
    .activate = activate_all,
    .gated = gated,
    .widen = widen,
    .encode = turbok_encode,
    .narrow = narrow,
    .softmax = softmax,
    .quantize = quantize,
    .scores = scores,
    .weights = weights,
    .grid = &turbok_grid_scalar,
};
