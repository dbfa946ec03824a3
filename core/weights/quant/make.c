/* core/weights/quant/make.c: from the tensors of a matrix to its grid in memory. Main thread; rows are unpacked by
 * all threads of a device. Must not know the layout of any format. */
#include <stdatomic.h>
#include <stdlib.h>

#include "util/checked.h"
#include "weights/quant/format.h"

#define SLICE 64 /* rows of a task begin at a multiple of this */

typedef struct grid_size {
    size_t codes, groups, scale;
} grid_size;

static bool measure(const turbok_grid *g, int64_t rows, int64_t in, grid_size *s)
{
    size_t n;
    if (!turbod_mul((size_t)rows, (size_t)in, &n))
        return false;
    s->codes = g->bits == 4 ? n / 2 : n;
    s->groups = n / (size_t)g->group;
    return turbod_mul(s->groups, (size_t)quant_dtype_size(g->scale_dtype), &s->scale);
}

void turbod_quant_grid_free(turbok_grid *g)
{
    free((void *)(uintptr_t)g->codes);
    free((void *)(uintptr_t)g->scale);
    free((void *)(uintptr_t)g->zero);
    free((void *)(uintptr_t)g->min);
    free((void *)(uintptr_t)g->table);
    free((void *)(uintptr_t)g->perm);
    *g = (turbok_grid){0};
}

/* Memory for the form of p, its table and its order; what has none stays NULL. */
static turbo_status new_grid(const turbod_quant_part *p, turbok_grid *out, turbo_err *err)
{
    const turbok_grid *g = &p->grid;
    grid_size s;
    *out = *g;
    out->codes = NULL;
    out->scale = NULL;
    out->zero = NULL;
    out->min = NULL;
    out->table = NULL;
    out->perm = NULL;
    bool ok = measure(g, p->rows, p->in, &s) && (out->codes = malloc(s.codes)) &&
              (out->scale = malloc(s.scale)) && (!g->zero || (out->zero = malloc(s.groups))) &&
              (!g->min || (out->min = calloc(s.groups, sizeof *out->min))) &&
              (!g->table || (out->table = calloc((size_t)1 << g->bits, sizeof *out->table))) &&
              (!g->perm || (out->perm = calloc((size_t)p->in, sizeof *out->perm)));
    if (!ok) {
        turbod_quant_grid_free(out);
        return turbod_err(err, TURBO_ENOMEM, "no memory to unpack %.120s", p->t[0]->name);
    }
    if (g->table)
        p->format->table(p, (float *)(uintptr_t)out->table);
    if (g->perm)
        p->format->perm(p, (int32_t *)(uintptr_t)out->perm);
    return TURBO_OK;
}

typedef struct job {
    const turbod_quant_part *p;
    turbod_quant_rows to;
} job;

static void unpack_slice(void *ctx, int i, int n)
{
    const job *j = ctx;
    int64_t slices = (j->p->rows + SLICE - 1) / SLICE, r0 = slices * i / n * SLICE,
            r1 = slices * (i + 1) / n * SLICE;
    r1 = r1 < j->p->rows ? r1 : j->p->rows;
    if (r0 < r1)
        j->p->format->rows(j->p, r0, r1, &j->to);
}

static turbo_status unpack(turbok_device *d, const turbod_quant_part *p, const turbok_grid *g,
                           bool allow_nonfinite, turbo_err *err)
{
    _Atomic bool bad = false;
    job j = {.p = p,
             .to = {.codes = (uint8_t *)(uintptr_t)g->codes,
                    .scale = (void *)(uintptr_t)g->scale,
                    .zero = (uint8_t *)(uintptr_t)g->zero,
                    .min = (float *)(uintptr_t)g->min,
                    .perm = g->perm,
                    .bad = &bad}};
    if (d)
        turbok_parallel(d, unpack_slice, &j);
    else
        unpack_slice(&j, 0, 1);
    if (!bad || (allow_nonfinite && !p->finite_codes && p->format != &turbod_quant_gguf))
        return TURBO_OK;
    if (p->format == &turbod_quant_gguf)
        return turbod_err(
            err, TURBO_EDATA,
            "tensor %.120s: a scale is NaN or infinite; the file is damaged: take it again",
            p->t[0]->name);
    return turbod_err(
        err, TURBO_EDATA,
        p->finite_codes ? "tensor %.120s: a zero does not fit into 8 bits; quantise the model again"
                        : "tensor %.120s holds NaN or infinity; the file is damaged "
                          "(allow_nonfinite = true loads it all the same)",
        p->t[0]->name);
}

turbo_status turbod_quant_grid(const turbod_quant_part *p, turbok_device *d, bool allow_nonfinite,
                               turbok_grid *out, turbo_err *err)
{
    turbo_status st = new_grid(p, out, err);
    if (st)
        return st;
    st = unpack(d, p, out, allow_nonfinite, err);
    if (st)
        turbod_quant_grid_free(out);
    return st;
}
