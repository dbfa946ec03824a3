/* core/weights/check.c: what an architecture expects, compared with the headers of a folder, and the scales of
 * quantised matrices. Main thread. Reads no weight. */
#include "weights/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/err.h"
#include "util/log.h"
#include "weights/config.h"
#include "weights/gguf_map.h"
#include "weights/weights.h"

#define MAX_LISTED 20

typedef struct checker {
    turbod_index *index;
    const turbod_quant *quant;
    bool reads; /* scales may be looked at */
    bool blocks; /* also those between codes */
    turbo_err first;
    turbo_err *err; /* for defects of the plugin, which end the check */
    bool absent; /* there is no weight file: the first tensor asked for ends the check */
    int faults;
    const turbo_gguf *table; /* of a GGUF file */
    const turbo_tensor_spec *spec; /* that is looked at */
    bool *named; /* [count of the index] the architecture names it */
    int32_t group; /* of the last matrix, with its type and name */
    int32_t group_dtype;
    char group_name[120];
} checker;

static void shape_text(char *out, size_t cap, const uint64_t *dims, uint32_t n)
{
    size_t at = 0;
    for (uint32_t i = 0; i < n && at < cap; i++) {
        int k = snprintf(out + at, cap - at, "%s%llu", i ? "," : "", (unsigned long long)dims[i]);
        at += k > 0 ? (size_t)k : 0;
    }
    if (!n)
        out[0] = '\0';
}

/* Of a GGUF file: " (name in the file)", or nothing. */
static const char *in_file(const checker *c, const char *name, char out[180])
{
    char own[160];
    *out = '\0';
    if (c->table && turbod_gguf_file_name(c->table, name, own))
        snprintf(out, 180, " (%s in the file)", own);
    return out;
}

static void report(checker *c, const char *what)
{
    char own[180], text[700];
    snprintf(text, sizeof text, "%s%s", what, in_file(c, c->spec->name, own));
    if (!c->faults)
        turbod_err(&c->first, TURBO_EDATA, "%s", text);
    if (c->faults++ < MAX_LISTED)
        turbod_log(TURBO_LOG_ERROR, "%s", text);
}

static void name_it(checker *c, const turbod_st_tensor *t)
{
    c->named[turbod_index_place(c->index, t->name)] =
        true; /* there is one place more than tensors */
}

/* Matrices of one group are stored as one: those that are not quantised need one type. */
static void check_group(checker *c, const turbo_tensor_spec *spec, const turbod_st_tensor *t)
{
    char text[512];
    if (spec->group <= 0 || spec->ndim != 2)
        return;
    if (spec->group != c->group) {
        c->group = spec->group;
        c->group_dtype = t->dtype;
        snprintf(c->group_name, sizeof c->group_name, "%s", spec->name);
    } else if (t->dtype != c->group_dtype) {
        snprintf(text, sizeof text,
                 "tensor %.90s is %s and %.90s is not; they form one matrix and need one type",
                 spec->name, t->dtype_name, c->group_name);
        report(c, text);
    }
}

/* A matrix under one of its names in a quantised form: all of its tensors are checked. False when it is
 * stored otherwise. */
static bool check_quant(checker *c, const turbo_tensor_spec *spec)
{
    const char *const names[] = {spec->name, spec->alias, spec->alias2};
    turbod_quant_part part = {0};
    turbo_err err;
    char base[512];
    for (size_t i = 0; i < 3 && spec->ndim == 2 && !part.format; i++) {
        size_t n = names[i] ? strlen(names[i]) : 0;
        if (n < 8 || n > sizeof base || strcmp(names[i] + n - 7, ".weight"))
            continue;
        memcpy(base, names[i], n - 7);
        base[n - 7] = '\0';
        const turbod_st_tensor *t = turbod_index_find(c->index, names[i]);
        if (c->table && t && !t->block)
            continue; /* such a file has scales in blocks only */
        turbo_status st =
            turbod_quant_find(c->quant, c->index, base, spec->dims[0], spec->dims[1], &part, &err);
        if (!st && part.format && c->reads)
            st = turbod_quant_scan(&part, c->blocks, &err);
        if (st) {
            report(c, err.text);
            return true;
        }
    }
    for (int k = 0; k < TURBOD_QUANT_TENSORS; k++)
        if (part.t[k])
            name_it(c, part.t[k]);
    return part.format != NULL;
}

static turbo_status expect_one(void *ctx, const turbo_tensor_spec *theirs)
{
    checker *c = ctx;
    char text[512], want[96], found[96];
    uint64_t dims[4] = {0};
    turbo_tensor_spec known = {0}; /* a plugin of an older ABI has a shorter one */
    const turbo_tensor_spec *spec = &known;
    memcpy(&known, theirs, theirs->size < sizeof known ? theirs->size : sizeof known);
    if (!spec->name || spec->ndim < 1 || spec->ndim > 4)
        return turbod_err(c->err, TURBO_EINTERNAL,
                          "the model plugin expects a tensor of %d dimensions", spec->ndim);
    c->spec = spec;
    if (check_quant(c, spec))
        return TURBO_OK;
    const turbod_st_tensor *t = turbod_index_find(c->index, spec->name);
    if (!t && spec->alias)
        t = turbod_index_find(c->index, spec->alias);
    if (!t && spec->alias2)
        t = turbod_index_find(c->index, spec->alias2);
    for (int32_t i = 0; i < spec->ndim; i++)
        dims[i] = (uint64_t)spec->dims[i];
    if (!t) {
        if (!spec->optional && c->absent)
            return turbod_err(c->err, TURBO_ENOENT,
                              "the model folder has neither model.safetensors nor "
                              "model.safetensors.index.json: download the weights");
        if (!spec->optional) {
            snprintf(text, sizeof text, "tensor %.120s is missing", spec->name);
            report(c, text);
        }
        return TURBO_OK;
    }
    name_it(c, t);
    shape_text(want, sizeof want, dims, (uint32_t)spec->ndim);
    shape_text(found, sizeof found, t->dims, t->ndim);
    if (t->ndim != (uint32_t)spec->ndim || memcmp(t->dims, dims, t->ndim * sizeof dims[0])) {
        snprintf(text, sizeof text, "tensor %.80s has the shape [%s], %s says [%s]", spec->name,
                 found, c->table ? "the header" : "config.json", want);
        report(c, text);
    } else if (t->dtype != TURBO_F32 && t->dtype != TURBO_F16 && t->dtype != TURBO_BF16) {
        snprintf(text, sizeof text, "tensor %.80s is %s; F32, F16 and BF16 are computed here",
                 spec->name, t->dtype_name);
        report(c, text);
    } else {
        check_group(c, spec, t);
    }
    return TURBO_OK;
}

turbo_status turbod_weights_check(turbo_weights *w, const turbo_host *host,
                                  const turbo_model_vtbl *vtbl, const turbo_config *config,
                                  turbo_err *err)
{
    turbod_index *index = turbod_weights_index(w);
    checker c = {.index = index,
                 .quant = turbod_weights_quant(w),
                 .reads = turbod_weights_reads(w),
                 .blocks = turbod_weights_reads_all(w),
                 .err = err,
                 .table = turbod_config_gguf(config),
                 .absent = turbod_index_absent(index)};
    turbo_model_info info = {.size = sizeof info};
    turbo_status st = vtbl->describe(host, config, &info, err);
    if (!st)
        st = turbod_index_map(index, turbod_config_gguf(config), &info, err);
    size_t count = turbod_index_count(index), extra = 0, first = 0;
    if (!st && !(c.named = calloc(count + 1, sizeof *c.named)))
        st = turbod_err(err, TURBO_ENOMEM, "no memory for %zu tensors", count);
    if (!st)
        st = vtbl->expect(host, config, expect_one, &c, err);
    for (size_t i = count; !st && i-- > 0;)
        if (!c.named[i]) {
            extra++;
            first = i;
        }
    free(c.named);
    if (st)
        return st;
    if (c.faults > 1)
        return turbod_err(err, TURBO_EDATA, "%.220s (and %d more)", c.first.text, c.faults - 1);
    if (c.faults)
        return turbod_err(err, TURBO_EDATA, "%s", c.first.text);
    char own[180];
    if (extra)
        turbod_log(TURBO_LOG_WARN,
                   "%zu tensors of the %s are not used by %s; the first is %.150s%s", extra,
                   c.table ? "file" : "folder", vtbl->id, turbod_index_at(index, first)->name,
                   in_file(&c, turbod_index_at(index, first)->name, own));
    return TURBO_OK;
}
