/* core/weights/quant/awq.c: AWQ, the GEMM layout. Codes lie along the outputs: word c of input k holds outputs
 * 8c to 8c+7 in the order 0 2 4 6 1 3 5 7, lowest bits first. w[k,n] = (q - z) * s. */
#include "weights/quant/format.h"

enum { CODES, SCALES, ZEROS };

static turbo_status find(const turbod_quant *q, const turbod_index *ix, const char *base,
                         turbod_quant_part *p, turbo_err *err)
{
    int64_t N = p->rows, K = p->in;
    if (N % 8)
        return turbod_err(err, TURBO_EDATA,
                          "%.150s has %lld outputs; AWQ packs eight of them in a word", base,
                          (long long)N);
    turbo_status st = quant_need(ix, base, ".qweight", TURBO_I32, K, N / 8, &p->t[CODES], err);
    const turbod_st_tensor *s = quant_tensor(ix, base, ".scales");
    if (!st)
        st = s ? quant_groups(q, p, s, s->ndim == 2 ? s->dims[0] : 0, err)
               : turbod_err(err, TURBO_EDATA, "tensor %.150s.scales is missing", base);
    if (st)
        return st;
    int64_t G = K / p->span;
    st = quant_need(ix, base, ".scales", -1, G, N, &p->t[SCALES], err);
    if (!st)
        st = quant_need(ix, base, ".qzeros", TURBO_I32, G, N / 8, &p->t[ZEROS], err);
    if (st)
        return st;
    p->bits = 4;
    p->finite_codes = true;
    p->grid.bits = 4;
    p->grid.scale_dtype = p->t[SCALES]->dtype;
    p->grid.zero = QUANT_THERE;
    return TURBO_OK;
}

/* Output of the word that each slot of four bits belongs to. */
static const uint8_t output_of[8] = {0, 2, 4, 6, 1, 3, 5, 7};

/* Inputs k0 to k1 of word column c; words of two inputs make a byte of each of eight rows. */
static void unpack_words(const uint8_t *words, int64_t stride, int64_t c, int64_t k0, int64_t k1,
                         uint8_t *codes, int64_t row_bytes)
{
    uint8_t *row[8];
    for (int i = 0; i < 8; i++)
        row[i] = codes + (8 * c + output_of[i]) * row_bytes;
    for (int64_t k = k0; k < k1; k += 2) {
        uint32_t a = quant_u32(words, k * stride + c), b = quant_u32(words, (k + 1) * stride + c);
        uint32_t even = (a & 0x0f0f0f0fu) | (b & 0x0f0f0f0fu) << 4;
        uint32_t odd = (a >> 4 & 0x0f0f0f0fu) | (b & 0xf0f0f0f0u);
        for (int i = 0; i < 4; i++) {
            row[2 * i][k / 2] = (uint8_t)(even >> 8 * i);
            row[2 * i + 1][k / 2] = (uint8_t)(odd >> 8 * i);
        }
    }
}

static void rows(const turbod_quant_part *p, int64_t r0, int64_t r1, const turbod_quant_rows *to)
{
    enum { COLUMNS = 16, INPUTS = 128 }; /* a cache line of words; the lines of so many inputs */
    int64_t K = p->in, words = p->rows / 8, G = K / p->span;
    for (int64_t c0 = r0 / 8; c0 < r1 / 8; c0 += COLUMNS)
        for (int64_t k = 0; k < K; k += INPUTS)
            for (int64_t c = c0; c < c0 + COLUMNS && c < r1 / 8; c++)
                unpack_words(p->t[CODES]->data, words, c, k, k + INPUTS < K ? k + INPUTS : K,
                             to->codes, K / 2);
    for (int64_t n = r0; n < r1; n++) {
        int slot = 0;
        while (output_of[slot] != n % 8)
            slot++;
        for (int64_t g = 0; g < G; g++)
            to->zero[n * G + g] = quant_u32(p->t[ZEROS]->data, g * words + n / 8) >> 4 * slot & 15;
    }
    quant_scale_columns(p, r0, r1, to);
}

const turbod_quant_format turbod_quant_awq = {
    .name = "awq",
    .find = find,
    .rows = rows,
};
