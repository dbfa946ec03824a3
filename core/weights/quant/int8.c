/* core/weights/quant/int8.c: signed bytes [N,K] with a scale a row: compressed-tensors' int-quantized and its
 * kin, w = q * weight_scale, and LLM.int8 (arXiv 2208.07339), w = q * SCB / 127, which multiplies large
 * inputs in full precision. */
#include "weights/quant/format.h"

enum { CODES, SCALES, ZEROS, LAYOUT };

static turbo_status find_codes(const turbod_index *ix, const char *base, turbod_quant_part *p,
                               turbo_err *err)
{
    p->bits = 8;
    p->finite_codes = true;
    p->grid.bits = 8;
    p->grid.offset = 128;
    return quant_need(ix, base, ".weight", TURBO_I8, p->rows, p->in, &p->t[CODES], err);
}

static turbo_status find(const turbod_quant *q, const turbod_index *ix, const char *base,
                         turbod_quant_part *p, turbo_err *err)
{
    turbo_status st = find_codes(ix, base, p, err);
    const turbod_st_tensor *s = quant_tensor(ix, base, ".weight_scale");
    p->t[SCALES] = s = s ? s : quant_tensor(ix, base, ".scale");
    p->grid.coded_inputs = q->coded_inputs;
    if (!st && !s)
        st = turbod_err(err, TURBO_EDATA, "tensor %.150s.weight_scale is missing", base);
    if (!st)
        st = quant_row_scales(q, p, s, err);
    if (!st && (p->t[ZEROS] = quant_tensor(ix, base, ".weight_zero_point"))) {
        int64_t G = p->in / p->span;
        st = quant_typed(p->t[ZEROS], TURBO_I8, err);
        if (!st && !(G == 1 && quant_has_shape(p->t[ZEROS], p->rows, -1)))
            st = quant_shaped(p->t[ZEROS], p->rows, G, err);
        p->grid.zero = QUANT_THERE;
        p->grid.offset = 0;
    }
    return st ? st
              : quant_announced(p->t[ZEROS], q->asymmetric, "weights.symmetric = false", base,
                                ".weight_zero_point", err);
}

static void rows(const turbod_quant_part *p, int64_t r0, int64_t r1, const turbod_quant_rows *to)
{
    int64_t G = p->in / p->span;
    for (int64_t i = r0 * p->in; i < r1 * p->in; i++)
        to->codes[i] = p->t[CODES]->data[i] ^ 0x80;
    for (int64_t i = r0 * G; i < r1 * G && to->zero; i++)
        to->zero[i] = p->t[ZEROS]->data[i] ^ 0x80;
    quant_scale_rows(p, r0, r1, to);
}

const turbod_quant_format turbod_quant_int8 = {
    .name = "int8",
    .find = find,
    .rows = rows,
};

static turbo_status find_llm_int8(const turbod_quant *q, const turbod_index *ix, const char *base,
                                  turbod_quant_part *p, turbo_err *err)
{
    turbo_status st = find_codes(ix, base, p, err);
    p->t[LAYOUT] = quant_tensor(ix, base, ".weight_format");
    const turbod_st_tensor *f = p->t[LAYOUT];
    if (!st && f && (f->dtype != TURBO_U8 || f->bytes != 1 || f->data[0]))
        st = turbod_err(
            err, TURBO_EUNSUPPORTED,
            "tensor %.120s: the matrix is stored in tiles of a GPU; save the model again "
            "with a current bitsandbytes, which keeps rows",
            f->name);
    if (!st)
        st = quant_need(ix, base, ".SCB", TURBO_F32, p->rows, -1, &p->t[SCALES], err);
    if (!st)
        st = quant_group(p, p->t[SCALES], p->in, err);
    p->grid.scale_dtype = TURBO_F32;
    p->grid.outlier = q->outlier;
    p->zero_scales = true;
    return st;
}

static void llm_int8_rows(const turbod_quant_part *p, int64_t r0, int64_t r1,
                          const turbod_quant_rows *to)
{
    for (int64_t i = r0 * p->in; i < r1 * p->in; i++)
        to->codes[i] = p->t[CODES]->data[i] ^ 0x80;
    for (int64_t n = r0; n < r1; n++)
        ((float *)to->scale)[n] = quant_f32(p->t[SCALES]->data, n) / 127.0f;
}

const turbod_quant_format turbod_quant_llm_int8 = {
    .name = "bitsandbytes",
    .find = find_llm_int8,
    .rows = llm_int8_rows,
};
