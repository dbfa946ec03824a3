/* core/weights/quant/find.c: which format a matrix is stored in, and the checks that formats share. Main
 * thread. Must not know the layout of any format. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "weights/quant/format.h"

const uint8_t quant_there[8];

const turbod_st_tensor *quant_tensor(const turbod_index *ix, const char *base, const char *suffix)
{
    char name[640];
    int k = snprintf(name, sizeof name, "%s%s", base, suffix);
    return k > 0 && (size_t)k < sizeof name ? turbod_index_find(ix, name) : NULL;
}

turbo_status quant_typed(const turbod_st_tensor *t, int32_t dtype, turbo_err *err)
{
    static const char *const names[] = {
        [TURBO_F32] = "F32", [TURBO_F16] = "F16", [TURBO_BF16] = "BF16", [TURBO_I8] = "I8",
        [TURBO_I32] = "I32", [TURBO_U8] = "U8",   [TURBO_I64] = "I64",
    };
    bool is_float = t->dtype == TURBO_F32 || t->dtype == TURBO_F16 || t->dtype == TURBO_BF16;
    if (dtype < 0 ? is_float : t->dtype == dtype)
        return TURBO_OK;
    return turbod_err(err, TURBO_EDATA, "tensor %.140s is %s; its format has %s there", t->name,
                      t->dtype_name, dtype < 0 ? "F32, F16 or BF16" : names[dtype]);
}

bool quant_has_shape(const turbod_st_tensor *t, int64_t d0, int64_t d1)
{
    return t->ndim == (d1 < 0 ? 1u : 2u) && t->dims[0] == (uint64_t)d0 &&
           (d1 < 0 || t->dims[1] == (uint64_t)d1);
}

turbo_status quant_shaped(const turbod_st_tensor *t, int64_t d0, int64_t d1, turbo_err *err)
{
    char want[64], found[96] = "";
    if (quant_has_shape(t, d0, d1))
        return TURBO_OK;
    if (d1 < 0)
        snprintf(want, sizeof want, "%lld", (long long)d0);
    else
        snprintf(want, sizeof want, "%lld,%lld", (long long)d0, (long long)d1);
    size_t at = 0;
    for (uint32_t i = 0; i < t->ndim && at < sizeof found; i++) {
        int k = snprintf(found + at, sizeof found - at, "%s%llu", i ? "," : "",
                         (unsigned long long)t->dims[i]);
        at += k > 0 ? (size_t)k : 0;
    }
    return turbod_err(err, TURBO_EDATA,
                      "tensor %.100s has the shape [%s]; by config.json it is [%s]", t->name, found,
                      want);
}

turbo_status quant_need(const turbod_index *ix, const char *base, const char *suffix, int32_t dtype,
                        int64_t d0, int64_t d1, const turbod_st_tensor **out, turbo_err *err)
{
    const turbod_st_tensor *t = quant_tensor(ix, base, suffix);
    if (!t)
        return turbod_err(err, TURBO_EDATA, "tensor %.150s%s is missing", base, suffix);
    *out = t;
    turbo_status st = quant_typed(t, dtype, err);
    return st ? st : quant_shaped(t, d0, d1, err);
}

turbo_status quant_group(turbod_quant_part *p, const turbod_st_tensor *t, int64_t span,
                         turbo_err *err)
{
    if (span < 1 || p->in % span)
        return turbod_err(
            err, TURBO_EDATA,
            "tensor %.120s: groups of %lld do not divide the %lld inputs of the matrix", t->name,
            (long long)span, (long long)p->in);
    if (span != p->in && span % 16)
        return turbod_err(err, TURBO_EUNSUPPORTED,
                          "tensor %.120s has groups of %lld inputs; a multiple of 16 is needed",
                          t->name, (long long)span);
    if (p->in > INT32_MAX || p->in % 2)
        return turbod_err(err, TURBO_EUNSUPPORTED,
                          "tensor %.120s: a row of %lld inputs is not computed", t->name,
                          (long long)p->in);
    p->span = span;
    p->grid.group = (int32_t)span;
    return TURBO_OK;
}

turbo_status quant_groups(const turbod_quant *q, turbod_quant_part *p, const turbod_st_tensor *t,
                          uint64_t n, turbo_err *err)
{
    if (!n || (uint64_t)p->in % n)
        return turbod_err(
            err, TURBO_EDATA,
            "tensor %.120s has %llu groups, which do not divide the %lld inputs of the "
            "matrix",
            t->name, (unsigned long long)n, (long long)p->in);
    int64_t span = p->in / (int64_t)n, said = q->group < 0 ? p->in : q->group;
    if (said && said != span && !q->varies)
        return turbod_err(err, TURBO_EDATA,
                          "tensor %.120s has groups of %lld inputs, quantization_config says %lld",
                          t->name, (long long)span, (long long)said);
    return quant_group(p, t, span, err);
}

turbo_status quant_g_idx(const turbod_quant_part *p, const turbod_st_tensor *t, bool *ordered,
                         turbo_err *err)
{
    int64_t G = p->in / p->span;
    int32_t *count = calloc((size_t)G, sizeof *count);
    turbo_status st = TURBO_OK;
    if (!count)
        return turbod_err(err, TURBO_ENOMEM, "no memory for %lld groups", (long long)G);
    *ordered = true;
    for (int64_t k = 0; k < p->in && !st; k++) {
        int64_t g = (int32_t)quant_u32(t->data, k);
        if (g < 0 || g >= G)
            st = turbod_err(err, TURBO_EDATA, "tensor %.120s: input %lld is in group %lld of %lld",
                            t->name, (long long)k, (long long)g, (long long)G);
        else if (++count[g] > p->span)
            st = turbod_err(err, TURBO_EDATA, "tensor %.120s: group %lld has more than %lld inputs",
                            t->name, (long long)g, (long long)p->span);
        *ordered = *ordered && g == k / p->span;
    }
    free(count);
    return st;
}

void quant_perm(const turbod_quant_part *p, const turbod_st_tensor *t, int32_t *perm)
{
    int64_t n = 0, *next = NULL, G = p->in / p->span;
    /* Every group has span inputs: find() counted. */
    if (G > 1 && (next = calloc((size_t)G, sizeof *next))) {
        for (int64_t k = 0; k < p->in; k++) {
            int64_t g = (int32_t)quant_u32(t->data, k);
            perm[g * p->span + next[g]++] = (int32_t)k;
        }
        free(next);
        return;
    }
    for (int64_t g = 0; g < G; g++)
        for (int64_t k = 0; k < p->in; k++)
            if ((int32_t)quant_u32(t->data, k) == g)
                perm[n++] = (int32_t)k;
}

/* ---- which format ------------------------------------------------------------------------------- */

/* What the tensors of base look like; NULL: no format's. */
static const turbod_quant_format *looks(const turbod_quant *q, const turbod_index *ix,
                                        const char *base, const turbod_quant_part *p)
{
    const turbod_st_tensor *t = quant_tensor(ix, base, ".qweight"),
                           *w = quant_tensor(ix, base, ".weight");
    if (t && (q->method == METHOD_AWQ || q->method == METHOD_GPTQ))
        return q->method == METHOD_AWQ ? &turbod_quant_awq : &turbod_quant_gptq;
    if (t)
        return t->ndim == 2 && t->dims[0] == (uint64_t)p->in ? &turbod_quant_awq
                                                             : &turbod_quant_gptq;
    if ((t = quant_tensor(ix, base, ".weight_packed")))
        return t->dtype == TURBO_U8 ? &turbod_quant_mxfp4 : &turbod_quant_packed;
    if (quant_tensor(ix, base, ".weight_blocks") || (!w && quant_tensor(ix, base, "_blocks")))
        return &turbod_quant_mxfp4;
    if (!w)
        return NULL;
    if (w->block)
        return &turbod_quant_gguf;
    if (w->dtype == TURBO_I8)
        return quant_tensor(ix, base, ".SCB") ? &turbod_quant_llm_int8 : &turbod_quant_int8;
    if (w->dtype == TURBO_U8)
        return &turbod_quant_bnb4;
    return !strcmp(w->dtype_name, "F8_E4M3") || !strcmp(w->dtype_name, "F8_E5M2")
               ? &turbod_quant_fp8
               : NULL;
}

bool turbod_quant_has(const turbod_quant *q, const turbod_index *ix, const char *base)
{
    turbod_quant_part none = {0};
    return looks(q, ix, base, &none) != NULL;
}

/* May a folder of that method hold matrices of that format? */
static bool belongs(const turbod_quant *q, const turbod_quant_format *f)
{
    if (f == &turbod_quant_gguf)
        return true; /* the file says what it is */
    switch (q->method) {
    case METHOD_ANY: return true;
    case METHOD_HF: return false;
    case METHOD_AWQ: return f == &turbod_quant_awq;
    case METHOD_GPTQ: return f == &turbod_quant_gptq;
    case METHOD_COMPRESSED:
        return f == &turbod_quant_packed || f == &turbod_quant_int8 || f == &turbod_quant_fp8 ||
               f == &turbod_quant_mxfp4;
    case METHOD_BNB: return f == &turbod_quant_bnb4 || f == &turbod_quant_llm_int8;
    case METHOD_FP8: return f == &turbod_quant_fp8;
    case METHOD_MXFP4: return f == &turbod_quant_mxfp4;
    case METHOD_INT8: return f == &turbod_quant_int8 || f == &turbod_quant_fp8;
    }
    return false;
}

/* The same matrix in two forms: whichever were taken, the other might be meant. */
static turbo_status refuse_twice(const turbod_index *ix, const char *base, turbo_err *err)
{
    static const char *const forms[] = {".weight", ".qweight", ".weight_packed", "_blocks",
                                        ".weight_blocks"};
    const turbod_st_tensor *first = NULL;
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        const turbod_st_tensor *t = quant_tensor(ix, base, forms[i]);
        if (t && first)
            return turbod_err(err, TURBO_EDATA,
                              "tensor %.100s is a second form of %.100s; the formats of the folder "
                              "are mixed",
                              t->name, first->name);
        first = first ? first : t;
    }
    return TURBO_OK;
}

turbo_status turbod_quant_find(const turbod_quant *q, const turbod_index *ix, const char *base,
                               int64_t rows, int64_t in, turbod_quant_part *p, turbo_err *err)
{
    *p = (turbod_quant_part){.rows = rows, .in = in, .tall = 1};
    turbo_status st = refuse_twice(ix, base, err);
    const turbod_quant_format *f = st ? NULL : looks(q, ix, base, p);
    if (!f)
        return st;
    const char *list = quant_left_alone(q, base);
    if (list)
        return turbod_err(err, TURBO_EDATA,
                          "%.120s is in quantization_config.%s, but the folder has it quantised",
                          base, list);
    if (!belongs(q, f))
        return turbod_err(err, TURBO_EDATA,
                          "%.120s is stored as %s, %s says %s; the formats are mixed, or "
                          "model_format = \"%s\" is meant",
                          base, f->name, q->overridden ? "model_format" : "quantization_config",
                          q->method_name, f->name);
    if (rows < 1 || in < 2 || in > INT32_MAX || rows > INT32_MAX)
        return turbod_err(err, TURBO_EUNSUPPORTED,
                          "%.120s: a matrix of [%lld,%lld] is not computed", base, (long long)rows,
                          (long long)in);
    p->format = f;
    return f->find(q, ix, base, p, err);
}

turbo_status quant_announced(const turbod_st_tensor *t, bool said, const char *key,
                             const char *base, const char *suffix, turbo_err *err)
{
    return t || !said ? TURBO_OK
                      : turbod_err(err, TURBO_EDATA,
                                   "tensor %.150s%s is missing, which config.json announces (%s); "
                                   "take the model's files again",
                                   base, suffix, key);
}

/* ---- scales ------------------------------------------------------------------------------------- */

static turbo_status bad_scale(const turbod_st_tensor *t, uint64_t i, const char *what,
                              turbo_err *err)
{
    return turbod_err(err, TURBO_EDATA, "tensor %.120s: scale %llu is %s; the file is damaged",
                      t->name, (unsigned long long)i, what);
}

turbo_status turbod_quant_scan(const turbod_quant_part *p, bool blocks, turbo_err *err)
{
    int64_t row = blocks && p->format->bad_row ? p->format->bad_row(p) : -1;
    if (row >= 0)
        return turbod_err(err, TURBO_EDATA,
                          "tensor %.120s: a scale of row %lld is NaN or infinite; the file is "
                          "damaged",
                          p->t[0]->name, (long long)row);
    for (int k = 1; k < TURBOD_QUANT_TENSORS; k++) {
        const turbod_st_tensor *t = p->t[k];
        bool wide = t && t->dtype == TURBO_F32, half = t && t->dtype == TURBO_F16,
             brain = t && t->dtype == TURBO_BF16;
        for (uint64_t i = 0; p->exponents && k == 1 && i < t->bytes; i++)
            if (t->data[i] == 255)
                return bad_scale(t, i, "no number", err);
        if (!wide && !half && !brain)
            continue;
        for (uint64_t i = 0, n = t->bytes / (wide ? 4 : 2); i < n; i++) {
            uint32_t v = 0, exponent = wide ? 0x7f800000u : half ? 0x7c00u : 0x7f80u;
            memcpy(&v, t->data + i * (wide ? 4 : 2), wide ? 4 : 2);
            if ((v & exponent) == exponent)
                return bad_scale(t, i, "NaN or infinite", err);
            if (k == 1 && !p->zero_scales && !(v & (wide ? 0x7fffffffu : 0x7fffu)))
                return bad_scale(t, i, "zero", err);
        }
    }
    return TURBO_OK;
}

void quant_scale_columns(const turbod_quant_part *p, int64_t r0, int64_t r1,
                         const turbod_quant_rows *to)
{
    int64_t G = p->in / p->grid.group, size = quant_dtype_size(p->grid.scale_dtype);
    for (int64_t c0 = r0; c0 < r1; c0 += 32)
        for (int64_t g = 0; g < G; g++)
            for (int64_t n = c0; n < c0 + 32 && n < r1; n++)
                memcpy((uint8_t *)to->scale + (n * G + g) * size,
                       p->t[1]->data + (g * p->rows + n) * size, (size_t)size);
}

void quant_scale_rows(const turbod_quant_part *p, int64_t r0, int64_t r1,
                      const turbod_quant_rows *to)
{
    int64_t G = p->in / p->grid.group, size = quant_dtype_size(p->grid.scale_dtype);
    int64_t stored = (p->in + p->span - 1) / p->span;
    bool one = p->t[1]->bytes == (uint64_t)size; /* for the whole tensor */
    for (int64_t n = r0; n < r1; n++)
        for (int64_t g = 0; g < G; g++) {
            int64_t i = one ? 0 : n / p->tall * stored + g * p->grid.group / p->span;
            memcpy((uint8_t *)to->scale + (n * G + g) * size, p->t[1]->data + i * size,
                   (size_t)size);
        }
}
