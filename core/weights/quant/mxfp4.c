/* core/weights/quant/mxfp4.c: MXFP4: floats of 4 bits (E2M1), the first of two in the lower half of a byte; 32
 * of them share a power of two, stored as its exponent + 127. */
#include "weights/quant/format.h"

#include <math.h>

enum { CODES, SCALES };

/* X_blocks [N,K/32,16] with X_scales [N,K/32], or compressed-tensors' weight_packed [N,K/2]. */
static turbo_status find(const turbod_quant *q, const turbod_index *ix, const char *base,
                         turbod_quant_part *p, turbo_err *err)
{
    static const char *const suffixes[][2] = {{"_blocks", "_scales"},
                                              {".weight_blocks", ".weight_scales"},
                                              {".weight_packed", ".weight_scale"}};
    int64_t G = p->in / 32;
    size_t i = 0;
    (void)q;
    while (i < 2 && !quant_tensor(ix, base, suffixes[i][0]))
        i++;
    const turbod_st_tensor *w = quant_tensor(ix, base, suffixes[i][0]),
                           *s = quant_tensor(ix, base, suffixes[i][1]);
    if (!w || !s)
        return turbod_err(err, TURBO_EDATA, "tensor %.150s%s is missing", base,
                          suffixes[i][w ? 1 : 0]);
    p->t[CODES] = w;
    p->t[SCALES] = s;
    turbo_status st = quant_typed(w, TURBO_U8, err);
    if (!st)
        st = quant_group(p, w, 32, err);
    bool blocks = w->ndim == 3 && w->dims[0] == (uint64_t)p->rows && w->dims[1] == (uint64_t)G &&
                  w->dims[2] == 16;
    if (!st && !blocks)
        st = quant_shaped(w, p->rows, p->in / 2, err);
    if (!st && s->dtype != TURBO_U8 && strcmp(s->dtype_name, "F8_E8M0"))
        st = quant_typed(s, TURBO_U8, err);
    if (!st)
        st = quant_shaped(s, p->rows, G, err);
    p->bits = 4;
    p->exponents = true;
    p->finite_codes = true;
    p->grid.bits = 4;
    p->grid.scale_dtype = TURBO_F32;
    p->grid.table = QUANT_THERE;
    return st;
}

static void table(const turbod_quant_part *p, float *out)
{
    static const float e2m1[8] = {0, .5f, 1, 1.5f, 2, 3, 4, 6};
    (void)p;
    for (int i = 0; i < 16; i++)
        out[i] = i < 8 ? e2m1[i] : -e2m1[i - 8];
}

static void rows(const turbod_quant_part *p, int64_t r0, int64_t r1, const turbod_quant_rows *to)
{
    int64_t half = p->in / 2, G = p->in / 32;
    memcpy(to->codes + r0 * half, p->t[CODES]->data + r0 * half, (size_t)((r1 - r0) * half));
    for (int64_t i = r0 * G; i < r1 * G; i++)
        ((float *)to->scale)[i] = ldexpf(1, p->t[SCALES]->data[i] - 127);
}

const turbod_quant_format turbod_quant_mxfp4 = {
    .name = "mxfp4",
    .find = find,
    .table = table,
    .rows = rows,
};
