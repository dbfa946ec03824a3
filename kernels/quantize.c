/* kernels/quantize.c: rows of floats to a grid, for weights that come without one: all rows at once, or some into
 * a caller's memory. Caller's thread and the pool. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/half.h"
#include "internal.h"

size_t turbok_quantize_scratch(int64_t in)
{
    return ((size_t)in * (sizeof(float) + 1 + sizeof(float)) + 63) / 64 * 64;
}

bool turbok_quantize_rows(const turbok_prim *prim, const turbok_grid *g, int32_t dtype,
                          const void *data, int64_t rows, int64_t in, void *scratch, uint8_t *codes,
                          void *scale)
{
    float *w = scratch, *s = w + in;
    uint8_t *code = (uint8_t *)(s + in);
    int64_t groups = in / g->group;
    size_t row_bytes = (size_t)in * turbok_dtype_size(dtype);
    for (int64_t r = 0; r < rows; r++) {
        const char *row = (const char *)data + (size_t)r * row_bytes;
        uint8_t *to = codes + (size_t)r * (size_t)in * (size_t)g->bits / 8;
        bool whole = g->group == in; /* one scale a row stays fp32 */
        if (!turbok_all_finite(dtype, row, row_bytes))
            return false;
        prim->widen(dtype, row, in, w);
        prim->encode(g->bits, !whole, w, groups, g->group, g->bits == 8 ? to : code, s);
        for (int64_t i = 0; g->bits == 4 && i < in / 2; i++)
            to[i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
        if (whole)
            memcpy((float *)scale + r, s, sizeof *s);
        else
            prim->narrow(TURBO_BF16, s, groups, (uint16_t *)scale + r * groups);
    }
    return true;
}

typedef struct quantize_job {
    const turbok_prim *prim;
    const turbok_grid *g;
    const char *data; /* [rows,in] of dtype */
    int32_t dtype;
    int64_t in;
    size_t row_bytes, code_bytes, scale_bytes; /* of a row */
    uint8_t *codes;
    char *scale;
    char *scratch; /* [threads] */
    _Atomic int64_t bad; /* a row that is not finite, or -1 */
} quantize_job;

static void quantize_some(void *ctx, int64_t from, int64_t to, int thread)
{
    quantize_job *j = ctx;
    for (int64_t r = from; r < to; r++)
        if (!turbok_quantize_rows(j->prim, j->g, j->dtype, j->data + (size_t)r * j->row_bytes, 1,
                                  j->in,
                                  j->scratch + (size_t)thread * turbok_quantize_scratch(j->in),
                                  j->codes + (size_t)r * j->code_bytes,
                                  j->scale + (size_t)r * j->scale_bytes))
            atomic_store(&j->bad, r);
}

bool turbok_quantizable(const turbok_part *part, int64_t in)
{
    const turbok_grid *g = part->grid;
    return (part->dtype == TURBO_F32 || part->dtype == TURBO_F16 || part->dtype == TURBO_BF16) &&
           part->rows >= 1 && part->rows <= INT32_MAX && in >= 1 && in <= TURBOK_GRID_IN &&
           (g->bits == 8 || g->bits == 4) && g->group >= 1 && in % g->group == 0 &&
           (g->group == in || g->group % 16 == 0) && (g->bits == 8 || in % 2 == 0);
}

turbo_status turbok_grid_quantize(turbok_device *d, int32_t dtype, const void *data, int64_t rows,
                                  int64_t in, int32_t bits, int32_t group, turbok_grid *g,
                                  turbo_err *err)
{
    const turbok_grid form = {
        .bits = bits,
        .group = group,
        .scale_dtype = group == in ? TURBO_F32 : TURBO_BF16,
        .offset = bits == 8 ? 128 : 8,
    };
    if (!turbok_quantizable(&(turbok_part){.rows = rows, .grid = &form, .dtype = dtype}, in))
        return turbok_fail(
            err, TURBO_EINVAL,
            "%lld x %lld numbers of type %d cannot become %d bits in groups of %d: f32, "
            "f16 and bf16 can, 8 and 4 bits, groups a multiple of 16 that divides the inputs",
            (long long)rows, (long long)in, dtype, bits, group);
    quantize_job j = {
        .prim = d->exec.prim,
        .g = &form,
        .data = data,
        .dtype = dtype,
        .in = in,
        .row_bytes = (size_t)in * turbok_dtype_size(dtype),
        .code_bytes = (size_t)in * (size_t)bits / 8,
        .scale_bytes = (size_t)(in / group) * turbok_dtype_size(form.scale_dtype),
        .bad = -1,
    };
    size_t at = ((size_t)rows * j.code_bytes + 63) / 64 * 64;
    j.codes = calloc(1, at + (size_t)rows * j.scale_bytes);
    j.scratch = calloc((size_t)turbok_pool_threads(d->exec.pool), turbok_quantize_scratch(in));
    if (!j.codes || !j.scratch) {
        free(j.codes);
        free(j.scratch);
        return turbok_fail(err, TURBO_ENOMEM, "no memory to quantise %lld x %lld numbers",
                           (long long)rows, (long long)in);
    }
    j.scale = (char *)j.codes + at;
    turbok_pool_for(d->exec.pool, rows, 8, quantize_some, &j);
    free(j.scratch);
    int64_t bad = atomic_load(&j.bad);
    if (bad >= 0) {
        free(j.codes);
        return turbok_fail(err, TURBO_EDATA, "row %lld holds a number that is not finite",
                           (long long)bad);
    }
    *g = form;
    g->codes = j.codes;
    g->scale = j.scale;
    return TURBO_OK;
}

void turbok_grid_quantize_free(turbok_grid *g)
{
    free((void *)(uintptr_t)g->codes); /* one block: turbok_grid_quantize */
    *g = (turbok_grid){0};
}

bool turbok_rows_to_code(const turbok_part *parts, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        if (parts[i].grid && !parts[i].grid->codes && parts[i].data)
            return true;
    return false;
}

turbo_status turbok_rows_coded_new(turbok_device *d, int32_t dtype, const turbok_part *parts,
                                   int32_t n, int64_t in, uint32_t flags, turbo_linear **res,
                                   turbo_err *err)
{
    turbok_part *coded = calloc((size_t)n, sizeof *coded);
    turbok_grid *made = calloc((size_t)n, sizeof *made);
    turbo_status st =
        coded && made ? TURBO_OK : turbok_fail(err, TURBO_ENOMEM, "no memory for a weight handle");
    for (int32_t i = 0; i < n && !st; i++) {
        const turbok_grid *g = parts[i].grid;
        coded[i] = parts[i];
        if (!turbok_rows_to_code(&parts[i], 1))
            continue;
        st = turbok_grid_quantize(d, parts[i].dtype, parts[i].data, parts[i].rows, in, g->bits,
                                  g->group, &made[i], err);
        coded[i].data = NULL;
        coded[i].grid = &made[i];
    }
    if (!st)
        st = turbok_linear_rows_new(d, dtype, coded, n, in, flags, res, err);
    for (int32_t i = 0; made && i < n; i++)
        turbok_grid_quantize_free(&made[i]);
    free(made);
    free(coded);
    return st;
}
