/* kernels/cpu/grid.c: the scalar reference of the kernels for quantised matrices, written to be read.
 * Compiled without contraction: what stands here is what is computed. */
#include <math.h>
#include <string.h>

#include "internal.h"

static void quantize(const turbok_tiles *w, const float *x, int8_t *q, float *scale, int32_t *start,
                     float *sum)
{
    int64_t n = w->block, per = w->group / w->block;
    for (int64_t b = 0; b < w->blocks; b++, x += n, q += n) {
        float most = 0, strange = 0;
        int32_t total = 0;
        for (int64_t i = 0; i < n; i++) {
            most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
            strange += x[i] - x[i];
        }
        bool some = most >= TURBOK_ACT_LEAST && strange == 0.0f;
        float inverse = some ? 127.0f / most : 0.0f;
        for (int64_t i = 0; i < n; i++) {
            q[i] = some ? (int8_t)rintf(x[i] * inverse) : 0;
            total += q[i];
        }
        scale[b] = some ? most / 127.0f : strange == 0.0f ? 0.0f : NAN;
        start[b] = w->kind == TURBOK_GRID_U4 ? -8 * total : 0;
        if (sum)
            sum[b / per] = fmaf((float)total, scale[b], b % per ? sum[b / per] : 0.0f);
    }
}

static int value(const turbok_tiles *w, uint8_t code)
{
    return w->kind == TURBOK_GRID_S8   ? (int8_t)code
           : w->kind == TURBOK_GRID_U4 ? code
                                       : w->itable[code];
}

/* part += what block b of the row adds, for the 32 outputs. */
static void add_block(const turbok_tiles *w, const char *stripe, int64_t b, const turbok_acts *a,
                      int64_t row, float *part)
{
    int32_t dot[TURBOK_STRIPE];
    uint8_t code[TURBOK_STRIPE];
    for (int l = 0; l < TURBOK_STRIPE; l++)
        dot[l] = w->kind == TURBOK_GRID_F ? 0 : a->start[row * w->blocks + b];
    for (int64_t k = b * w->block; k < (b + 1) * w->block; k++) {
        turbok_tiles_codes(w, stripe, k, code);
        for (int l = 0; l < TURBOK_STRIPE; l++)
            if (w->kind == TURBOK_GRID_F)
                part[l] = fmaf(a->x[row * w->depth + k], w->table[code[l]], part[l]);
            else
                dot[l] += value(w, code[l]) * a->q[row * w->depth + k];
    }
    for (int l = 0; l < TURBOK_STRIPE && w->kind != TURBOK_GRID_F; l++)
        part[l] = fmaf((float)dot[l], a->scale[row * w->blocks + b], part[l]);
}

static void stripe(const turbok_tiles *w, const char *stripe, const turbok_acts *a, int64_t first,
                   int64_t rows, float *acc)
{
    int64_t per = w->group / w->block;
    memset(acc, 0, (size_t)rows * TURBOK_STRIPE * sizeof *acc);
    for (int64_t g = 0; g < w->groups; g++) {
        const char *group = stripe + (size_t)g * w->group_bytes;
        float s[TURBOK_STRIPE], shift[TURBOK_STRIPE];
        turbok_tiles_scales(w, group, s);
        turbok_tiles_shift(w, group, s, shift);
        for (int64_t r = 0; r < rows; r++) {
            float part[TURBOK_STRIPE] = {0}, *to = acc + r * TURBOK_STRIPE;
            for (int64_t b = g * per; b < (g + 1) * per; b++)
                add_block(w, stripe, b, a, first + r, part);
            for (int l = 0; l < TURBOK_STRIPE; l++) {
                to[l] = fmaf(part[l], s[l], to[l]);
                if (turbok_tiles_shifted(w))
                    to[l] = fmaf(-shift[l], a->sum[(first + r) * w->groups + g], to[l]);
            }
        }
    }
}

const turbok_grid_prim turbok_grid_scalar = {.quantize = quantize, .stripe = stripe};
