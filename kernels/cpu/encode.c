/* kernels/cpu/encode.c: floats to codes of quantised weights: the scalar reference of the primitive `encode`. Plain
 * rounding: nothing is known of the activations. Pure. */
#include <math.h>
#include <string.h>

#include "cpu/half.h"
#include "prim.h"

/* Codes of n numbers times `by`, a power of two, for scale s, at most `top` from `middle`; returns the sum of squared
 * errors. */
static float round_to(const float *w, int64_t n, float by, float s, int middle, int top,
                      uint8_t *code)
{
    float inverse = s == 0.0f ? 0.0f : 1.0f / s, error = 0;
    for (int64_t i = 0; i < n; i++) {
        float x = w[i] * by, v = x * inverse, most = (float)top, least = (float)-middle;
        v = v > most ? most : v < least ? least : v;
        v = v + 12582912.0f - 12582912.0f; /* to the nearest integer: 1.5 * 2^23 */
        /* 0 times the inverse of a scale too small to have one is no number; it stands for 0. */
        code[i] = (uint8_t)((v == v ? (int)v : 0) + middle);
        float e = x - v * s;
        error += e * e;
    }
    return error;
}

/* The scale with which codes around 8 fit w times `by` best, in the sense of least squares. */
static float fitted(const float *w, int64_t n, float by, const uint8_t *code, float fallback)
{
    float up = 0, down = 0;
    for (int64_t i = 0; i < n; i++) {
        float c = (float)(code[i] - 8);
        up += w[i] * by * c;
        down += c * c;
    }
    return down > 0 ? up / down : fallback;
}

/* Symmetric 8 bits: no code is clipped, an element is off by half a scale at most. */
static float eight_bits(const float *w, int64_t n, bool rounded, uint8_t *code)
{
    float most = 0;
    for (int64_t i = 0; i < n; i++)
        most = fabsf(w[i]) > most ? fabsf(w[i]) : most;
    float s = most / 127.0f;
    if (rounded)
        s = turbok_bf16_to_f32(turbok_bf16_above(s));
    (void)round_to(w, n, 1, s, 128, 127, code);
    return s;
}

/* Codes -8..7: the largest number becomes -8 or something near, whichever of some scales has the least
 * squared error, each once as it is and once fitted. Those of one candidate are made again when it is
 * the best: so nothing is kept beside `code`. */
static float four_bits(const float *w, int64_t n, uint8_t *code)
{
    static const float ends[] = TURBOK_ENCODE_ENDS;
    float most = 0, best = INFINITY, s = 0;
    for (int64_t i = 0; i < n; i++)
        most = fabsf(w[i]) > fabsf(most) ? w[i] : most;
    float by = fabsf(most) > TURBOK_ENCODE_FAR ? TURBOK_ENCODE_NEAR : 1;
    most *= by;
    for (int k = 0; k < 4 && most != 0.0f; k++) {
        float t = turbok_bf16_to_f32(turbok_f32_to_bf16(most / ends[k]));
        for (int fit = 0; fit < 2; fit++) {
            if (fit)
                t = turbok_bf16_to_f32(turbok_f32_to_bf16(fitted(w, n, by, code, most / ends[k])));
            float error = round_to(w, n, by, t, 8, 7, code);
            s = error < best ? t : s;
            best = error < best ? error : best;
        }
    }
    (void)round_to(w, n, by, s, 8, 7, code);
    return s / by;
}

void turbok_encode(int bits, bool rounded, const float *w, int64_t groups, int64_t group,
                   uint8_t *codes, float *scale)
{
    for (int64_t g = 0; g < groups; g++)
        scale[g] = bits == 8 ? eight_bits(w + g * group, group, rounded, codes + g * group)
                             : four_bits(w + g * group, group, codes + g * group);
}
