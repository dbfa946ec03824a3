/* kernels/quantize.c: rows of floats to a grid, for weights that come without one. Caller's thread and the
 * pool. Plain rounding: nothing is known of the activations. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/half.h"
#include "internal.h"

typedef struct quantizer {
    const char *data; /* [rows,in] of dtype */
    int32_t dtype, bits, group;
    int64_t in;
    uint8_t *codes;
    void *scale;
    _Atomic int64_t bad; /* a row that is not finite, or -1 */
} quantizer;

/* Codes of n numbers for scale s, at most `top` from `middle`; returns the sum of squared errors. */
static float round_to(const float *w, int64_t n, float s, int middle, int top, uint8_t *code)
{
    float inverse = s == 0.0f ? 0.0f : 1.0f / s, error = 0;
    for (int64_t i = 0; i < n; i++) {
        float v = w[i] * inverse, most = (float)top, least = (float)-middle;
        v = v > most ? most : v < least ? least : v;
        v = v + 12582912.0f - 12582912.0f; /* to the nearest integer: 1.5 * 2^23 */
        code[i] = (uint8_t)((int)v + middle);
        float e = w[i] - v * s;
        error += e * e;
    }
    return error;
}

/* The scale with which codes fit w best, in the sense of least squares. */
static float fitted(const float *w, int64_t n, int middle, const uint8_t *code, float fallback)
{
    float up = 0, down = 0;
    for (int64_t i = 0; i < n; i++) {
        float c = (float)(code[i] - middle);
        up += w[i] * c;
        down += c * c;
    }
    return down > 0 ? up / down : fallback;
}

/* Symmetric 8 bits: no code is clipped, an element is off by half a scale at most. The scale is rounded up
 * to bf16 except where one stands for a whole row. */
static float eight_bits(const quantizer *z, const float *w, uint8_t *code)
{
    float most = 0;
    for (int64_t i = 0; i < z->group; i++)
        most = fabsf(w[i]) > most ? fabsf(w[i]) : most;
    float s = most / 127.0f;
    if (z->group != z->in)
        s = turbok_bf16_to_f32(turbok_bf16_above(s));
    (void)round_to(w, z->group, s, 128, 127, code);
    return s;
}

/* Codes -8..7: the largest number becomes -8 or something near, whichever of some scales has the least
 * squared error, each once as it is and once fitted. */
static float four_bits(const quantizer *z, const float *w, uint8_t *code, uint8_t *try)
{
    static const float ends[] = {-8.0f, -7.4f, -6.8f, 7.4f};
    float most = 0, best = INFINITY, s = 0;
    for (int64_t i = 0; i < z->group; i++)
        most = fabsf(w[i]) > fabsf(most) ? w[i] : most;
    (void)round_to(w, z->group, 0, 8, 7, code); /* of zeros */
    for (int k = 0; k < 8 && most != 0.0f; k++) {
        float t = k % 2 ? fitted(w, z->group, 8, try, most / ends[k / 2]) : most / ends[k / 2];
        t = turbok_bf16_to_f32(turbok_f32_to_bf16(t));
        float error = round_to(w, z->group, t, 8, 7, try);
        if (error < best) {
            best = error;
            s = t;
            memcpy(code, try, (uint32_t)z->group);
        }
    }
    return s;
}

static void quantize_row(quantizer *z, int64_t row, float *w, uint8_t *code, uint8_t *try)
{
    int64_t groups = z->in / z->group;
    turbok_prim_scalar.widen(z->dtype,
                             z->data + (size_t)(row * z->in) * turbok_dtype_size(z->dtype), z->in,
                             w);
    float strange = 0;
    for (int64_t i = 0; i < z->in; i++)
        strange += w[i] - w[i];
    if (strange != 0.0f) {
        atomic_store(&z->bad, row);
        return;
    }
    for (int64_t g = 0; g < groups; g++) {
        const float *part = w + g * z->group;
        uint8_t *to = code + g * z->group;
        float s = z->bits == 8 ? eight_bits(z, part, to) : four_bits(z, part, to, try);
        size_t at = (size_t)(row * groups + g);
        if (z->group == z->in) {
            memcpy((float *)z->scale + at, &s, sizeof s);
        } else {
            uint16_t h = turbok_f32_to_bf16(s);
            memcpy((uint16_t *)z->scale + at, &h, sizeof h);
        }
    }
    uint8_t *out = z->codes + (size_t)row * (size_t)z->in * (size_t)z->bits / 8;
    if (z->bits == 8)
        memcpy(out, code, (size_t)z->in);
    else
        for (int64_t i = 0; i < z->in / 2; i++)
            out[i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
}

typedef struct quantize_job {
    quantizer z;
    char *scratch; /* [threads] of row_bytes */
    size_t row_bytes;
} quantize_job;

static void quantize_rows(void *ctx, int64_t from, int64_t to, int thread)
{
    quantize_job *j = ctx;
    char *mine = j->scratch + (size_t)thread * j->row_bytes;
    uint8_t *code = (uint8_t *)mine + (size_t)j->z.in * sizeof(float);
    for (int64_t r = from; r < to; r++)
        quantize_row(&j->z, r, (float *)(void *)mine, code, code + j->z.in);
}

turbo_status turbok_grid_quantize(turbok_device *d, int32_t dtype, const void *data, int64_t rows,
                                  int64_t in, int32_t bits, int32_t group, turbok_grid *g,
                                  turbo_err *err)
{
    if ((dtype != TURBO_F32 && dtype != TURBO_F16 && dtype != TURBO_BF16) || rows < 1 || in < 1 ||
        rows > INT32_MAX || in > TURBOK_GRID_IN || (bits != 8 && bits != 4) || group < 1 ||
        in % group || (group != in && group % 16) || (bits == 4 && in % 2))
        return turbok_fail(
            err, TURBO_EINVAL,
            "%lld x %lld numbers of type %d cannot become %d bits in groups of %d: f32, "
            "f16 and bf16 can, 8 and 4 bits, groups a multiple of 16 that divides the inputs",
            (long long)rows, (long long)in, dtype, bits, group);
    size_t codes = (size_t)rows * (size_t)in * (size_t)bits / 8;
    size_t scales = (size_t)rows * (size_t)(in / group) * (group == in ? 4 : 2);
    size_t at = (codes + 63) / 64 * 64, threads = (size_t)turbok_pool_threads(d->exec.pool);
    quantize_job j = {
        .z = {data, dtype, bits, group, in, malloc(at + scales), NULL, -1},
        .row_bytes = ((size_t)in * 6 + 63) / 64 * 64,
    };
    j.scratch = calloc(threads, j.row_bytes);
    if (!j.z.codes || !j.scratch) {
        free(j.z.codes);
        free(j.scratch);
        return turbok_fail(err, TURBO_ENOMEM, "no memory to quantise %lld x %lld numbers",
                           (long long)rows, (long long)in);
    }
    j.z.scale = j.z.codes + at;
    turbok_pool_for(d->exec.pool, rows, 8, quantize_rows, &j);
    free(j.scratch);
    int64_t bad = atomic_load(&j.z.bad);
    if (bad >= 0) {
        free(j.z.codes);
        return turbok_fail(err, TURBO_EDATA, "row %lld holds a number that is not finite",
                           (long long)bad);
    }
    *g = (turbok_grid){.bits = bits,
                       .group = group,
                       .scale_dtype = group == in ? TURBO_F32 : TURBO_BF16,
                       .offset = bits == 8 ? 128 : 8,
                       .codes = j.z.codes,
                       .scale = j.z.scale};
    return TURBO_OK;
}

void turbok_grid_quantize_free(turbok_grid *g)
{
    free((void *)(uintptr_t)g->codes); /* one block: turbok_grid_quantize */
    *g = (turbok_grid){0};
}
