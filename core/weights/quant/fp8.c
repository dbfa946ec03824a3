/* core/weights/quant/fp8.c: floats of 8 bits [N,K], E4M3 without infinities or E5M2, times a scale for the
 * tensor, for each row, or for each block of rows and inputs (weight_scale_inv, which multiplies in spite
 * of its name). */
#include "weights/quant/format.h"

#include <math.h>

enum { CODES, SCALES };
enum { E4M3, E5M2 }; /* p->shift */

static int64_t common(int64_t a, int64_t b)
{
    while (b) {
        int64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

/* Rows and inputs of a block, 128 each unless the config says otherwise. */
static turbo_status block_size(const turbod_quant *q, int64_t block[2], turbo_err *err)
{
    static const char *const paths[] = {"weight_block_size.0", "weight_block_size.1",
                                        "config_groups.group_0.weights.block_structure.0",
                                        "config_groups.group_0.weights.block_structure.1"};
    block[0] = block[1] = 128;
    for (int i = 0; i < 4 && q->config; i++) {
        turbo_status st =
            turbod_host_cfg_int(q->config, paths[i], block[i % 2], 1, 1 << 24, &block[i % 2], err);
        if (st)
            return st;
    }
    return TURBO_OK;
}

static turbo_status find_blocks(const turbod_quant *q, turbod_quant_part *p,
                                const turbod_st_tensor *s, turbo_err *err)
{
    int64_t block[2];
    turbo_status st = block_size(q, block, err);
    if (!st)
        st = quant_shaped(s, (p->rows + block[0] - 1) / block[0], (p->in + block[1] - 1) / block[1],
                          err);
    if (st)
        return st;
    p->tall = block[0];
    p->span = block[1] < p->in ? block[1] : p->in;
    p->grid.group = (int32_t)common(p->in, p->span);
    if (p->grid.group % 16 && p->grid.group != p->in)
        return turbod_err(
            err, TURBO_EUNSUPPORTED,
            "tensor %.120s: blocks of %lld inputs end inside sixteen inputs of a row of "
            "%lld",
            s->name, (long long)p->span, (long long)p->in);
    return TURBO_OK;
}

static turbo_status find(const turbod_quant *q, const turbod_index *ix, const char *base,
                         turbod_quant_part *p, turbo_err *err)
{
    static const char *const suffixes[] = {".weight_scale_inv", ".weight_scale", ".scale"};
    const turbod_st_tensor *w = quant_tensor(ix, base, ".weight"), *s = NULL;
    for (size_t i = 0; i < 3 && !s; i++)
        s = quant_tensor(ix, base, suffixes[i]);
    if (!w || !s)
        return turbod_err(err, TURBO_EDATA, "tensor %.150s.%s is missing", base,
                          w ? "weight_scale_inv" : "weight");
    p->t[CODES] = w;
    p->t[SCALES] = s;
    turbo_status st = quant_typed(s, -1, err);
    if (!st)
        st = quant_shaped(w, p->rows, p->in, err);
    if (st)
        return st;
    p->shift = strcmp(w->dtype_name, "F8_E5M2") ? E4M3 : E5M2;
    p->bits = 8;
    p->grid.bits = 8;
    p->grid.table = QUANT_THERE;
    p->grid.coded_inputs = q->coded_inputs;
    p->grid.scale_dtype = s->dtype;
    bool rows = quant_has_shape(s, p->rows, 1) || quant_has_shape(s, p->rows, -1);
    bool one = s->bytes == (uint64_t)quant_dtype_size(s->dtype);
    if (!rows && !one)
        return find_blocks(q, p, s, err);
    return quant_group(p, s, p->in, err);
}

static void table(const turbod_quant_part *p, float *out)
{
    int mantissa = p->shift == E5M2 ? 2 : 3, bias = p->shift == E5M2 ? 15 : 7;
    for (int c = 0; c < 256; c++) {
        int e = c >> mantissa & (0x7f >> mantissa), m = c & ((1 << mantissa) - 1);
        float v = e ? ldexpf((float)(m + (1 << mantissa)), e - bias - mantissa)
                    : ldexpf((float)m, 1 - bias - mantissa);
        if (p->shift == E4M3 ? (c & 0x7f) == 0x7f : e == 31)
            v = p->shift == E5M2 && !m ? INFINITY : NAN;
        out[c] = c & 0x80 ? -v : v;
    }
}

static void rows(const turbod_quant_part *p, int64_t r0, int64_t r1, const turbod_quant_rows *to)
{
    int worst = p->shift == E5M2 ? 0x7c : 0x7f; /* the first code that is no number */
    const uint8_t *from = p->t[CODES]->data;
    bool bad = false;
    memcpy(to->codes + r0 * p->in, from + r0 * p->in, (size_t)((r1 - r0) * p->in));
    for (int64_t i = r0 * p->in; i < r1 * p->in; i++)
        bad |= (from[i] & 0x7f) >= worst;
    if (bad)
        *to->bad = true;
    quant_scale_rows(p, r0, r1, to);
}

const turbod_quant_format turbod_quant_fp8 = {
    .name = "fp8",
    .find = find,
    .table = table,
    .rows = rows,
};
