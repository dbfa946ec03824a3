/* core/weights/quant/gguf.c: matrices of a GGUF file. The blocks are gguf_blocks.c's matter, the order of rows
 * gguf_map.c's; a matrix whose parts have several types gets a grid that each fits into. */
#include "weights/gguf_blocks.h"
#include "weights/gguf_map.h"
#include "weights/quant/format.h"

static turbod_gguf_form form_of(const turbod_st_tensor *t)
{
    const turbod_gguf_type *types[3] = {t->block, NULL, NULL};
    int32_t n = t->rows ? t->rows->n : 1;
    for (int32_t i = 0; t->rows && i < n; i++)
        types[i] = t->rows->part[i]->block;
    return turbod_gguf_form_of(types, n);
}

static turbo_status find(const turbod_quant *q, const turbod_index *ix, const char *base,
                         turbod_quant_part *p, turbo_err *err)
{
    const turbod_st_tensor *t = quant_tensor(ix, base, ".weight");
    (void)q;
    p->t[0] = t;
    turbo_status st = quant_shaped(t, p->rows, p->in, err);
    if (st)
        return st;
    turbod_gguf_form f = form_of(t);
    p->grid = f.g;
    p->grid.min = f.min ? QUANT_THERE : NULL;
    p->bits = f.g.bits;
    return quant_group(p, t, f.g.group, err);
}

static void table(const turbod_quant_part *p, float *out)
{
    memcpy(out, form_of(p->t[0]).g.table, sizeof *out << p->grid.bits);
}

static void rows(const turbod_quant_part *p, int64_t r0, int64_t r1, const turbod_quant_rows *to)
{
    turbod_gguf_form f = form_of(p->t[0]);
    int64_t G = p->in / f.g.group, size = quant_dtype_size(f.g.scale_dtype);
    bool good = true;
    for (int64_t r = r0; r < r1; r++) {
        const turbod_st_tensor *from = NULL;
        const uint8_t *row = turbod_gguf_row_at(p->t[0], (uint64_t)r, &from);
        good &=
            turbod_gguf_unpack(from->block, row, p->in, &f, to->codes + r * p->in * f.g.bits / 8,
                               (uint8_t *)to->scale + r * G * size,
                               to->min ? to->min + r * G : NULL);
    }
    if (!good)
        *to->bad = true;
}

static int64_t bad_row(const turbod_quant_part *p)
{
    for (int64_t r = 0; r < p->rows; r++) {
        const turbod_st_tensor *from = NULL;
        const uint8_t *row = turbod_gguf_row_at(p->t[0], (uint64_t)r, &from);
        if (!turbod_gguf_finite(from->block, row, p->in))
            return r;
    }
    return -1;
}

const turbod_quant_format turbod_quant_gguf = {
    .name = "gguf",
    .find = find,
    .table = table,
    .rows = rows,
    .bad_row = bad_row,
};
