/* core/weights/quant/bnb4.c: bitsandbytes' codes of 4 bits (NF4, FP4): the matrix as one row of numbers, the
 * first of two in the upper half of a byte; each block of blocksize numbers is quant_map[code] * absmax.
 * Double quantisation stores absmax as codes of 8 bits: nested_quant_map[code] * nested_absmax[block / 256]
 * + nested_offset. A block may run over the end of a row. */
#include "weights/quant/format.h"

enum { CODES, SCALES, MAP, OUTER, OUTER_MAP, STATE };

/* The JSON that bitsandbytes keeps in a tensor of bytes. */
static turbo_status read_state(turbod_quant_part *p, int64_t *outer, turbo_err *err)
{
    const turbod_st_tensor *t = p->t[STATE];
    turbo_config *c = NULL;
    int64_t block = 0, rows = 0, in = 0;
    turbo_err why = {{0}};
    turbo_status st = turbod_config_parse((const char *)t->data, t->bytes, "quant_state", &c, &why);
    if (!st)
        st = turbod_host_cfg_int(c, "blocksize", 64, 16, 1 << 20, &block, &why);
    if (!st)
        st = turbod_host_cfg_int(c, "nested_blocksize", 256, 1, 1 << 20, outer, &why);
    if (!st)
        st = turbod_host_cfg_num(c, "nested_offset", 0, -1e30, 1e30, &p->base, &why);
    if (!st)
        st = turbod_host_cfg_int(c, "shape.0", 0, 0, INT64_MAX / 2, &rows, &why);
    if (!st)
        st = turbod_host_cfg_int(c, "shape.1", 0, 0, INT64_MAX / 2, &in, &why);
    turbod_config_close(c);
    if (st)
        return turbod_err(err, st, "tensor %.100s: %.100s", t->name, why.text);
    if (rows != p->rows || in != p->in)
        return turbod_err(err, TURBO_EDATA,
                          "tensor %.100s says [%lld,%lld], config.json [%lld,%lld]", t->name,
                          (long long)rows, (long long)in, (long long)p->rows, (long long)p->in);
    p->span = block;
    return TURBO_OK;
}

static turbo_status find_scales(const turbod_index *ix, const char *base, turbod_quant_part *p,
                                int64_t outer, turbo_err *err)
{
    int64_t blocks = (p->rows * p->in + p->span - 1) / p->span;
    const turbod_st_tensor *s = quant_tensor(ix, base, ".weight.absmax");
    if (!s)
        return turbod_err(err, TURBO_EDATA, "tensor %.150s.weight.absmax is missing", base);
    p->t[SCALES] = s;
    turbo_status st = quant_shaped(s, blocks, -1, err);
    if (st || s->dtype == TURBO_F32)
        return st;
    st = quant_typed(s, TURBO_U8, err);
    if (!st)
        st = quant_need(ix, base, ".weight.nested_absmax", TURBO_F32, (blocks + outer - 1) / outer,
                        -1, &p->t[OUTER], err);
    if (!st)
        st = quant_need(ix, base, ".weight.nested_quant_map", TURBO_F32, 256, -1, &p->t[OUTER_MAP],
                        err);
    return st;
}

static turbo_status find(const turbod_quant *q, const turbod_index *ix, const char *base,
                         turbod_quant_part *p, turbo_err *err)
{
    int64_t outer = 256, numbers = p->rows * p->in;
    const turbod_st_tensor *w = quant_tensor(ix, base, ".weight");
    (void)q;
    p->t[CODES] = w;
    p->t[STATE] = quant_tensor(ix, base, ".weight.quant_state.bitsandbytes__nf4");
    if (!p->t[STATE])
        p->t[STATE] = quant_tensor(ix, base, ".weight.quant_state.bitsandbytes__fp4");
    if (!w || !p->t[STATE])
        return turbod_err(err, TURBO_EDATA, "tensor %.120s.weight%s is missing", base,
                          w ? ".quant_state.bitsandbytes__nf4" : "");
    turbo_status st = quant_typed(w, TURBO_U8, err);
    if (!st && w->bytes != (uint64_t)((numbers + 1) / 2))
        st = turbod_err(err, TURBO_EDATA,
                        "tensor %.120s has %llu bytes; a matrix of [%lld,%lld] in 4 bits has %lld",
                        w->name, (unsigned long long)w->bytes, (long long)p->rows, (long long)p->in,
                        (long long)((numbers + 1) / 2));
    if (!st)
        st = read_state(p, &outer, err);
    if (!st)
        st = quant_need(ix, base, ".weight.quant_map", TURBO_F32, 16, -1, &p->t[MAP], err);
    if (!st)
        st = find_scales(ix, base, p, outer, err);
    if (st)
        return st;
    int64_t group = p->span, rest = p->in;
    while (rest) { /* what divides blocks and rows both */
        int64_t r = group % rest;
        group = rest;
        rest = r;
    }
    if (group % 16)
        return turbod_err(
            err, TURBO_EUNSUPPORTED,
            "tensor %.120s: blocks of %lld end inside sixteen inputs of a row of %lld", w->name,
            (long long)p->span, (long long)p->in);
    p->bits = 4;
    p->shift = (int32_t)outer;
    p->zero_scales = true;
    p->finite_codes = true;
    p->grid.bits = 4;
    p->grid.group = (int32_t)group;
    p->grid.scale_dtype = TURBO_F32;
    p->grid.table = QUANT_THERE;
    return TURBO_OK;
}

static void table(const turbod_quant_part *p, float *out)
{
    memcpy(out, p->t[MAP]->data, 16 * sizeof *out);
}

static float absmax(const turbod_quant_part *p, int64_t block)
{
    if (!p->t[OUTER])
        return quant_f32(p->t[SCALES]->data, block);
    float v = quant_f32(p->t[OUTER_MAP]->data, p->t[SCALES]->data[block]);
    v *= quant_f32(p->t[OUTER]->data, block / p->shift);
    return v + (float)p->base;
}

static void rows(const turbod_quant_part *p, int64_t r0, int64_t r1, const turbod_quant_rows *to)
{
    const uint8_t *from = p->t[CODES]->data;
    int64_t half = p->in / 2, G = p->in / p->grid.group;
    for (int64_t i = r0 * half; i < r1 * half; i++)
        to->codes[i] = (uint8_t)(from[i] >> 4 | from[i] << 4);
    for (int64_t i = r0 * G; i < r1 * G; i++)
        ((float *)to->scale)[i] = absmax(p, i * p->grid.group / p->span);
}

const turbod_quant_format turbod_quant_bnb4 = {
    .name = "bitsandbytes",
    .find = find,
    .table = table,
    .rows = rows,
};
