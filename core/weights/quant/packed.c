/* core/weights/quant/packed.c: compressed-tensors, pack-quantized: integers of 4 or 8 bits along the inputs of
 * a row, stored with half their range added, lowest bits of a word first. w = (u - z) * s, z half the range
 * or, packed along the outputs, weight_zero_point. */
#include "weights/quant/format.h"

enum { CODES, SCALES, SHAPE, ZEROS, GROUPS };

/* weight_shape [2]: what the words do not say. */
static turbo_status check_shape(const turbod_quant_part *p, turbo_err *err)
{
    const turbod_st_tensor *t = p->t[SHAPE];
    int64_t said[2];
    if ((t->dtype != TURBO_I64 && t->dtype != TURBO_I32) || t->ndim != 1 || t->dims[0] != 2)
        return turbod_err(err, TURBO_EDATA, "tensor %.150s does not hold two integers", t->name);
    for (int i = 0; i < 2; i++)
        if (t->dtype == TURBO_I64)
            memcpy(&said[i], t->data + 8 * i, 8);
        else
            said[i] = (int32_t)quant_u32(t->data, i);
    if (said[0] != p->rows || said[1] != p->in)
        return turbod_err(err, TURBO_EDATA,
                          "tensor %.120s says [%lld,%lld], config.json [%lld,%lld]", t->name,
                          (long long)said[0], (long long)said[1], (long long)p->rows,
                          (long long)p->in);
    return TURBO_OK;
}

/* Scales [N,G], [N,1], [N], or one number. */
turbo_status quant_row_scales(const turbod_quant *q, turbod_quant_part *p,
                              const turbod_st_tensor *s, turbo_err *err)
{
    turbo_status st = quant_typed(s, -1, err);
    if (st)
        return st;
    p->grid.scale_dtype = s->dtype;
    if (s->ndim == 2 && s->dims[0] == (uint64_t)p->rows)
        return quant_groups(q, p, s, s->dims[1], err);
    if (quant_has_shape(s, p->rows, -1) || s->bytes == (uint64_t)quant_dtype_size(s->dtype))
        return quant_group(p, s, p->in, err);
    return turbod_err(err, TURBO_EDATA,
                      "tensor %.120s does not have the shape of scales of a [%lld,%lld] matrix",
                      s->name, (long long)p->rows, (long long)p->in);
}

static turbo_status find(const turbod_quant *q, const turbod_index *ix, const char *base,
                         turbod_quant_part *p, turbo_err *err)
{
    bool ordered = true;
    const turbod_st_tensor *w = quant_tensor(ix, base, ".weight_packed"),
                           *s = quant_tensor(ix, base, ".weight_scale"),
                           *g = quant_tensor(ix, base, ".weight_g_idx");
    if (!w || !s)
        return turbod_err(err, TURBO_EDATA, "tensor %.150s.%s is missing", base,
                          w ? "weight_scale" : "weight_packed");
    p->t[CODES] = w;
    p->t[SCALES] = s;
    turbo_status st = quant_typed(w, TURBO_I32, err);
    p->bits = quant_has_shape(w, p->rows, (p->in + 7) / 8) ? 4 : 8;
    if (!st && p->bits == 8)
        st = quant_shaped(w, p->rows, (p->in + 3) / 4, err);
    if (!st && q->bits && q->bits != p->bits)
        st = turbod_err(err, TURBO_EDATA,
                        "tensor %.120s has codes of %d bits, quantization_config says %d", w->name,
                        p->bits, q->bits);
    if (!st)
        st = quant_row_scales(q, p, s, err);
    if (!st && (p->t[SHAPE] = quant_tensor(ix, base, ".weight_shape")))
        st = check_shape(p, err);
    int64_t per_word = 32 / p->bits;
    if (!st && (p->t[ZEROS] = quant_tensor(ix, base, ".weight_zero_point"))) {
        st = quant_typed(p->t[ZEROS], TURBO_I32, err);
        if (!st)
            st = quant_shaped(p->t[ZEROS], (p->rows + per_word - 1) / per_word, p->in / p->span,
                              err);
        p->grid.zero = QUANT_THERE;
    }
    if (!st)
        st = quant_announced(p->t[ZEROS], q->asymmetric, "weights.symmetric = false", base,
                             ".weight_zero_point", err);
    if (!st)
        st = quant_announced(g, q->reordered, "weights.actorder = group", base, ".weight_g_idx",
                             err);
    if (!st && g && g->bytes) {
        st = quant_need(ix, base, ".weight_g_idx", TURBO_I32, p->in, -1, &p->t[GROUPS], err);
        if (!st)
            st = quant_g_idx(p, g, &ordered, err);
        p->grid.perm = ordered ? NULL : QUANT_THERE;
    }
    p->finite_codes = true;
    p->grid.bits = p->bits;
    p->grid.offset = p->grid.zero ? 0 : 1 << (p->bits - 1);
    return st;
}

static void perm(const turbod_quant_part *p, int32_t *out)
{
    quant_perm(p, p->t[GROUPS], out);
}

static void rows(const turbod_quant_part *p, int64_t r0, int64_t r1, const turbod_quant_rows *to)
{
    int64_t K = p->in, bytes = K * p->bits / 8, stride = (int64_t)p->t[CODES]->dims[1] * 4;
    for (int64_t n = r0; n < r1; n++) {
        const uint8_t *from = p->t[CODES]->data + n * stride;
        uint8_t *codes = to->codes + n * bytes;
        if (!to->perm) {
            memcpy(codes, from, (size_t)bytes);
            continue;
        }
        for (int64_t j = 0; j < K; j++) {
            int64_t k = to->perm[j];
            if (p->bits == 8)
                codes[j] = from[k];
            else if (j % 2)
                codes[j / 2] |= (uint8_t)((from[k / 2] >> 4 * (k % 2) & 15) << 4);
            else
                codes[j / 2] = from[k / 2] >> 4 * (k % 2) & 15;
        }
    }
    int64_t G = K / p->span, per_word = 32 / p->bits;
    for (int64_t n = r0; n < r1 && to->zero; n++)
        for (int64_t g = 0; g < G; g++)
            to->zero[n * G + g] = (uint8_t)(quant_u32(p->t[ZEROS]->data, n / per_word * G + g) >>
                                                p->bits * (int)(n % per_word) &
                                            ((1u << p->bits) - 1));
    quant_scale_rows(p, r0, r1, to);
}

const turbod_quant_format turbod_quant_packed = {
    .name = "compressed-tensors",
    .find = find,
    .perm = perm,
    .rows = rows,
};
