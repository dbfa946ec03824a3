/* core/weights/quant/gptq.c: GPTQ. Codes lie along the inputs: the codes of an output are a stream of bits over
 * the words of its column, lowest bits first; zeros the same along the outputs. w[k,n] = (q - z) * s with
 * the scale of group g_idx[k]. The first version of the format stores z - 1, the second z. */
#include "weights/quant/format.h"

enum { CODES, SCALES, ZEROS, GROUPS };

/* Bits of a code by the shape of its tensor; 0: none fits. */
static int32_t bits_of(const turbod_quant_part *p)
{
    static const int32_t known[] = {2, 3, 4, 8};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (p->in * known[i] % 32 == 0 &&
            quant_has_shape(p->t[CODES], p->in * known[i] / 32, p->rows))
            return known[i];
    return 0;
}

static turbo_status find_codes(const turbod_quant *q, const turbod_index *ix, const char *base,
                               turbod_quant_part *p, turbo_err *err)
{
    p->t[CODES] = quant_tensor(ix, base, ".qweight");
    if (!p->t[CODES])
        return turbod_err(err, TURBO_EDATA, "tensor %.150s.qweight is missing", base);
    turbo_status st = quant_typed(p->t[CODES], TURBO_I32, err);
    if (st)
        return st;
    p->bits = bits_of(p);
    if (!p->bits)
        return turbod_err(
            err, TURBO_EDATA,
            "tensor %.120s.qweight does not have the shape that GPTQ gives a matrix of "
            "[%lld,%lld] in 2, 3, 4 or 8 bits",
            base, (long long)p->rows, (long long)p->in);
    if (q->bits && q->bits != p->bits && !q->varies)
        return turbod_err(err, TURBO_EDATA,
                          "tensor %.120s.qweight has codes of %d bits, quantization_config says %d",
                          base, p->bits, q->bits);
    if (p->rows * p->bits % 32)
        return turbod_err(err, TURBO_EDATA, "%.150s: zeros of %lld outputs do not fill whole words",
                          base, (long long)p->rows);
    return TURBO_OK;
}

static turbo_status find(const turbod_quant *q, const turbod_index *ix, const char *base,
                         turbod_quant_part *p, turbo_err *err)
{
    bool ordered = true;
    turbo_status st = find_codes(q, ix, base, p, err);
    const turbod_st_tensor *s = quant_tensor(ix, base, ".scales");
    if (!st)
        st = s ? quant_groups(q, p, s, s->ndim == 2 ? s->dims[0] : 0, err)
               : turbod_err(err, TURBO_EDATA, "tensor %.150s.scales is missing", base);
    if (st)
        return st;
    int64_t G = p->in / p->span;
    st = quant_need(ix, base, ".scales", -1, G, p->rows, &p->t[SCALES], err);
    if (!st)
        st = quant_need(ix, base, ".qzeros", TURBO_I32, G, p->rows * p->bits / 32, &p->t[ZEROS],
                        err);
    const turbod_st_tensor *g = quant_tensor(ix, base, ".g_idx");
    if (!st)
        st = quant_announced(g, q->reordered, "desc_act", base, ".g_idx", err);
    if (!st && g && g->bytes) {
        st = quant_need(ix, base, ".g_idx", TURBO_I32, p->in, -1, &p->t[GROUPS], err);
        if (!st)
            st = quant_g_idx(p, g, &ordered, err);
    }
    if (st)
        return st;
    p->finite_codes = true;
    p->shift = q->zeros_as_stored ? 0 : 1;
    p->grid.bits = p->bits == 8 ? 8 : 4;
    p->grid.scale_dtype = p->t[SCALES]->dtype;
    p->grid.zero = QUANT_THERE;
    p->grid.perm = ordered ? NULL : QUANT_THERE;
    return TURBO_OK;
}

static void perm(const turbod_quant_part *p, int32_t *out)
{
    quant_perm(p, p->t[GROUPS], out);
}

/* Number i of a stream of bits over words that lie stride apart. */
static uint32_t in_stream(const uint8_t *words, int64_t first, int64_t stride, int64_t i, int bits)
{
    int64_t at = i * bits;
    int low = (int)(at % 32);
    uint64_t v = quant_u32(words, first + at / 32 * stride);
    if (low + bits > 32)
        v |= (uint64_t)quant_u32(words, first + (at / 32 + 1) * stride) << 32;
    return (uint32_t)(v >> low) & ((1u << bits) - 1);
}

/* Words of four or eight bits hold the codes as a grid does. */
static void copy_words(const turbod_quant_part *p, int64_t r0, int64_t r1, uint8_t *codes)
{
    int64_t words = p->in * p->bits / 32;
    for (int64_t c0 = r0; c0 < r1; c0 += 16)
        for (int64_t w = 0; w < words; w++)
            for (int64_t n = c0; n < c0 + 16 && n < r1; n++)
                memcpy(codes + (n * words + w) * 4, p->t[CODES]->data + (w * p->rows + n) * 4, 4);
}

/* Any bits and any order of inputs; rows of one cache line of words together. */
static void copy_codes(const turbod_quant_part *p, int64_t r0, int64_t r1,
                       const turbod_quant_rows *to)
{
    for (int64_t c0 = r0; c0 < r1; c0 += 16)
        for (int64_t j = 0; j < p->in; j++)
            for (int64_t n = c0; n < c0 + 16 && n < r1; n++) {
                int64_t k = to->perm ? to->perm[j] : j, at = n * p->in + j;
                uint32_t c = in_stream(p->t[CODES]->data, n, p->rows, k, p->bits);
                if (p->bits == 8)
                    to->codes[at] = (uint8_t)c;
                else if (j % 2)
                    to->codes[at / 2] |= (uint8_t)(c << 4);
                else
                    to->codes[at / 2] = (uint8_t)c;
            }
}

static void rows(const turbod_quant_part *p, int64_t r0, int64_t r1, const turbod_quant_rows *to)
{
    int64_t N = p->rows, G = p->in / p->span;
    if (!to->perm && (p->bits == 4 || p->bits == 8))
        copy_words(p, r0, r1, to->codes);
    else
        copy_codes(p, r0, r1, to);
    for (int64_t n = r0; n < r1; n++)
        for (int64_t g = 0; g < G; g++) {
            uint32_t z = in_stream(p->t[ZEROS]->data, g * (N * p->bits / 32), 1, n, p->bits) +
                         (uint32_t)p->shift;
            if (z > 255)
                *to->bad = true;
            to->zero[n * G + g] = (uint8_t)z;
        }
    quant_scale_columns(p, r0, r1, to);
}

const turbod_quant_format turbod_quant_gptq = {
    .name = "gptq",
    .find = find,
    .perm = perm,
    .rows = rows,
};
