/* core/weights/weights.c: see weights.h. */
#include "weights/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/checked.h"
#include "util/err.h"
#include "util/file.h"
#include "util/log.h"
#include "weights/check.h"
#include "weights/gguf_map.h"
#include "weights/state.h"

static turbo_status set_bits(turbo_weights *w, const char *quantize, turbo_err *err)
{
    const char *q = quantize ? quantize : "";
    w->bits = !strcmp(q, "int8") ? 8 : !strcmp(q, "int4") ? 4 : 0;
    return w->bits || !*q
               ? TURBO_OK
               : turbod_err(err, TURBO_EINVAL, "quantize is \"%.32s\"; use int8 or int4", q);
}

turbo_status turbod_weights_open(const char *folder, const turbod_weights_opts *opts,
                                 turbo_weights **out, turbo_err *err)
{
    turbo_weights *w = calloc(1, sizeof *w);
    if (!w)
        return turbod_err(err, TURBO_ENOMEM, "no memory for weights");
    w->opts = *opts;
    w->folder = strdup(folder);
    turbo_status st = w->folder ? set_bits(w, opts->quantize, err)
                                : turbod_err(err, TURBO_ENOMEM, "no memory for weights");
    if (!st)
        st = turbod_index_open(folder, &w->index, err);
    if (!st)
        st = turbod_quant_open(folder, opts->model_format, &w->quant, err);
    if (st) {
        turbod_weights_close(w);
        return st;
    }
    w->total = turbod_index_bytes(w->index);
    *out = w;
    return TURBO_OK;
}

turbo_status turbod_weights_unmap(turbo_weights *w, turbo_err *err)
{
    turbo_status st = turbod_index_unchanged(w->index, err);
    turbod_index_close(w->index);
    w->index = NULL;
    for (turbo_weights *v = w->owned; v; v = v->next)
        if (v->index) {
            st = st ? st : turbod_index_unchanged(v->index, err);
            turbod_index_close(v->index);
            v->index = NULL;
        }
    for (turbo_weights *v = st ? NULL : w->owned; v; v = v->next)
        turbod_cache_keep(v->cache);
    if (!st)
        turbod_cache_keep(w->cache);
    if (w->opts.progress)
        w->opts.progress(w->opts.progress_ctx, w->total, w->total);
    return st;
}

turbo_status turbod_weights_expected(const turbo_host *host, const turbo_model_vtbl *vtbl,
                                     const turbo_config *config, const char *folder, int32_t dtype,
                                     const turbod_weights_opts *opts, turbo_weights **out,
                                     turbo_err *err)
{
    turbo_weights *w = calloc(1, sizeof *w);
    if (!w)
        return turbod_err(err, TURBO_ENOMEM, "no memory for weights");
    turbo_status st = set_bits(w, opts->quantize, err);
    if (!st)
        st = turbod_index_expected(host, vtbl, config, dtype, &w->index, err);
    if (!st)
        st = turbod_quant_open(folder, opts->model_format, &w->quant, err);
    if (st)
        turbod_weights_close(w);
    else
        *out = w;
    return st;
}

turbod_index *turbod_weights_index(turbo_weights *w)
{
    return w->index;
}

const turbod_quant *turbod_weights_quant(const turbo_weights *w)
{
    return w->quant;
}

bool turbod_weights_reads(const turbo_weights *w)
{
    return w->opts.device != NULL;
}

bool turbod_weights_reads_all(const turbo_weights *w)
{
    return w->opts.all_scales;
}

bool turbod_weights_absent(const turbo_weights *w)
{
    return w->index && turbod_index_absent(w->index);
}

uint64_t turbod_weights_said(const turbo_weights *w, const char *folder, int *more)
{
    *more = 0;
    return w->index ? turbod_index_said(w->index, folder, more) : 0;
}

uint64_t turbod_weights_bytes(const turbo_weights *w)
{
    return w->index ? turbod_index_bytes(w->index) : 0;
}

static void close_owned(turbo_weights *w)
{
    while (w->owned) {
        turbo_weights *v = w->owned;
        w->owned = v->next;
        turbod_weights_close(v);
    }
}

void turbod_weights_close(turbo_weights *w)
{
    if (!w)
        return;
    close_owned(w);
    while (w->handles) {
        handle *h = w->handles;
        w->handles = h->next;
        if (h->kind == HANDLE_LINEAR)
            turbok_linear_free(w->opts.device, h->ptr);
        else if (h->kind == HANDLE_VECTOR)
            turbok_vector_free(w->opts.device, h->ptr);
        else if (h->kind == HANDLE_EXPERTS)
            turbok_experts_free(w->opts.device, h->ptr);
        else
            turbok_rope_free(w->opts.device, h->ptr);
        free(h);
    }
    turbod_gguf_drop(&w->ordered);
    turbod_cache_close(w->cache); /* handles pointed into it */
    turbod_index_close(w->index);
    turbod_quant_close(w->quant);
    for (int32_t i = 0; i < w->n_rules; i++) {
        free(w->rules[i].from);
        free(w->rules[i].to);
    }
    free(w->folder);
    free(w);
}

turbo_weights *weights_base(turbo_weights *w)
{
    while (w->base)
        w = w->base;
    return w;
}

turbod_cache *weights_cache(turbo_weights *w)
{
    char options[160];
    const char *format = w->opts.model_format ? w->opts.model_format : "";
    const char *quantize = w->opts.quantize ? w->opts.quantize : "";
    if (w->cache_tried || !w->index || !w->folder || !w->opts.cache_dir || !*w->opts.cache_dir)
        return w->cache;
    w->cache_tried = true;
    int n = snprintf(options, sizeof options, "model_format %s, quantize %s, nonfinite %d", format,
                     quantize, w->opts.allow_nonfinite);
    if (n > 0 && (size_t)n < sizeof options)
        w->cache =
            turbod_cache_open(&(turbod_cache_opts){.dir = w->opts.cache_dir,
                                                   .most = w->opts.cache_dir_size,
                                                   .folder = w->folder,
                                                   .options = options,
                                                   .expected = w->linear ? w->linear : w->total,
                                                   .device = w->opts.device});
    return w->cache;
}

bool weights_real_name(const turbo_weights *w, const char *name, char *out, size_t cap)
{
    char tmp[640];
    int k = snprintf(out, cap, "%s", name);
    for (; w->base; w = w->base)
        for (int32_t i = 0; i < w->n_rules && k >= 0 && (size_t)k < cap; i++) {
            size_t n = strlen(w->rules[i].from);
            if (strncmp(out, w->rules[i].from, n))
                continue;
            k = snprintf(tmp, sizeof tmp, "%s%s", w->rules[i].to, out + n);
            if (k >= 0 && (size_t)k < sizeof tmp)
                k = snprintf(out, cap, "%s", tmp);
            break;
        }
    return k >= 0 && (size_t)k < cap;
}

/* ---- handles ------------------------------------------------------------------------------------
 */

/* A vector of d0 elements (ndim 1), a matrix of d0 rows of d1 elements (2), which may have more
 * dimensions in the file, or d0 elements of any shape (0). */
static bool fits(const turbod_st_tensor *t, uint32_t ndim, int64_t d0, int64_t d1)
{
    uint64_t all;
    if (!turbod_numel(t->dims, t->ndim, &all))
        return false;
    if (ndim == 0)
        return all == (uint64_t)d0;
    if (ndim == 1)
        return t->ndim == 1 && t->dims[0] == (uint64_t)d0;
    return t->ndim >= 2 && d0 > 0 && t->dims[0] == (uint64_t)d0 && all % (uint64_t)d0 == 0 &&
           all / (uint64_t)d0 == (uint64_t)d1;
}

turbo_status weights_find(turbo_weights *view, const char *name, const char *suffix, uint32_t ndim,
                          int64_t d0, int64_t d1, const turbod_st_tensor **out, turbo_err *err)
{
    char asked[640], full[640];
    turbo_weights *w = weights_base(view);
    int k = snprintf(asked, sizeof asked, "%s%s", name, suffix);
    if (k < 0 || (size_t)k >= sizeof asked || !weights_real_name(view, asked, full, sizeof full))
        return turbod_err(err, TURBO_EINVAL, "a tensor name is too long");
    if (!w->index || (!w->opts.device && !w->sums))
        return turbod_err(err, TURBO_EINTERNAL, "weights are read only while a model opens");
    const turbod_st_tensor *t = turbod_index_find(w->index, full);
    if (!t)
        return turbod_err(err, TURBO_ENOENT, "tensor %.200s is missing", full);
    if (!fits(t, ndim, d0, d1))
        return turbod_err(err, TURBO_EDATA,
                          "tensor %.150s does not have the shape its model asks for", full);
    if (t->dtype != TURBO_F32 && t->dtype != TURBO_F16 && t->dtype != TURBO_BF16)
        return turbod_err(err, TURBO_EUNSUPPORTED,
                          "tensor %.100s is %s; F32, F16 or BF16 is needed", full, t->dtype_name);
    turbo_status st = w->sums ? TURBO_OK : turbod_gguf_order(&w->ordered, &t, err);
    if (!st)
        *out = t;
    return st;
}

turbo_status weights_finite(const turbo_weights *w, const turbod_st_tensor *t, turbo_err *err)
{
    if (w->sums || w->opts.allow_nonfinite || turbok_all_finite(t->dtype, t->data, t->bytes))
        return TURBO_OK;
    return turbod_err(err, TURBO_EDATA, TURBOK_NOT_FINITE "%s", t->name,
                      w->bits ? "" : " (allow_nonfinite = true loads it all the same)");
}

turbo_status weights_take(turbo_weights *view, const char *name, const char *suffix, uint32_t ndim,
                          int64_t d0, int64_t d1, const turbod_st_tensor **out, turbo_err *err)
{
    turbo_status st = weights_find(view, name, suffix, ndim, d0, d1, out, err);
    return st ? st : weights_finite(weights_base(view), *out, err);
}

void weights_done(turbo_weights *w, uint64_t bytes)
{
    w->done = bytes < w->total - w->done ? w->done + bytes : w->total;
    if (w->opts.progress)
        w->opts.progress(w->opts.progress_ctx, w->done, w->total);
}

void weights_used(turbo_weights *w, const turbod_st_tensor *t)
{
    turbod_gguf_release(w->ordered, t);
    weights_done(w, t->bytes);
}

turbo_status weights_keep(turbo_weights *w, handle_kind kind, void *ptr, turbo_err *err)
{
    handle *h = calloc(1, sizeof *h);
    if (!h)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a weight handle");
    *h = (handle){kind, ptr, w->handles};
    w->handles = h;
    return TURBO_OK;
}

/* ---- counting --------------------------------------------------------------------------------- */

const uint64_t weights_stand_in[8];

turbo_status weights_add(uint64_t *sum, uint64_t n, turbo_err *err)
{
    return __builtin_add_overflow(*sum, n, sum)
               ? turbod_err(err, TURBO_ELIMIT, "the model takes more bytes than a number holds")
               : TURBO_OK;
}

turbo_status weights_count_stored(turbod_weights_sums *s, const turbod_st_tensor *t, turbo_err *err)
{
    turbo_status st = weights_add(&s->stored, t->bytes, err);
    return st ? st : weights_add(&s->params, t->bytes / (t->dtype == TURBO_F32 ? 4 : 2), err);
}

/* Options that change nothing are mistaken. */
static turbo_status check_options(const turbo_weights *w, const turbod_weights_sums *s,
                                  turbo_err *err)
{
    const char *format = w->opts.model_format ? w->opts.model_format : "";
    if (!w->folder) /* no files: nothing is known of them */
        return TURBO_OK;
    if (w->bits && !s->grids_made)
        return turbod_err(
            err, TURBO_EINVAL,
            s->grids_stored
                ? "quantize = \"%s\": every matrix is quantised already; remove quantize"
                : "quantize = \"%s\": no matrix has a multiple of 16 inputs; remove "
                  "quantize",
            w->opts.quantize);
    if (*format && strcmp(format, "hf") && !s->grids_stored)
        return turbod_err(err, TURBO_EINVAL,
                          "model_format = \"%.32s\": no matrix of the folder is quantised; remove "
                          "model_format",
                          format);
    return TURBO_OK;
}

turbo_status turbod_weights_count(turbo_weights *w, const turbo_host *host,
                                  const turbo_model_vtbl *vtbl, const turbo_config *config,
                                  int32_t vocab, turbod_weights_sums *sums, turbo_err *err)
{
    void *model = NULL;
    *sums = (turbod_weights_sums){0};
    w->sums = sums;
    w->vocab = vocab;
    turbo_status st = vtbl->open(host, config, w, turbok_cpu_ops(), &model, err);
    if (!st)
        vtbl->close(model);
    w->sums = NULL;
    w->linear = sums->linear;
    close_owned(w); /* opening the model asks for its views again */
    return st ? st : check_options(w, sums, err);
}

/* ---- the host's functions --------------------------------------------------------------------- */

static turbo_status make_vector(turbo_weights *w, const char *name, const char *suffix,
                                uint32_t ndim, int64_t n, const turbo_vector **out, turbo_err *err)
{
    const turbod_st_tensor *t;
    turbo_vector *v = NULL;
    turbo_status st = weights_take(w, name, suffix, ndim, n, 0, &t, err);
    w = weights_base(w);
    if (!st && w->sums) {
        *out = (const turbo_vector *)(const void *)weights_stand_in;
        st = weights_add(&w->sums->vector, turbok_vector_bytes(n), err);
        return st ? st : weights_count_stored(w->sums, t, err);
    }
    if (!st)
        st = turbok_vector_new(w->opts.device, t->dtype, t->data, n, &v, err);
    if (!st && (st = weights_keep(w, HANDLE_VECTOR, v, err)))
        turbok_vector_free(w->opts.device, v);
    if (st)
        return st;
    weights_used(w, t);
    turbod_gguf_drop(&w->ordered);
    *out = v;
    return TURBO_OK;
}

turbo_status turbod_host_vector(turbo_weights *w, const char *name, int64_t n,
                                const turbo_vector **out, turbo_err *err)
{
    return make_vector(w, name, ".weight", 1, n, out, err);
}

turbo_status turbod_host_vector_of(turbo_weights *w, const char *tensor, int64_t n,
                                   const turbo_vector **out, turbo_err *err)
{
    return make_vector(w, tensor, "", 0, n, out, err);
}

/* From here on w belongs to owner. */
static void adopt(turbo_weights *owner, turbo_weights *w)
{
    w->next = owner->owned;
    owner->owned = w;
}

turbo_status turbod_host_weights_view(turbo_weights *w, const char *const *from,
                                      const char *const *to, int32_t n, turbo_weights **out,
                                      turbo_err *err)
{
    if (n < 0 || n > MAX_RENAMES)
        return turbod_err(err, TURBO_EINVAL, "a view of weights has %d names; at most %d", n,
                          MAX_RENAMES);
    turbo_weights *v = calloc(1, sizeof *v);
    bool ok = v != NULL;
    for (; ok && v->n_rules < n; v->n_rules++) {
        rename_rule *r = &v->rules[v->n_rules];
        r->from = strdup(from[v->n_rules]);
        r->to = strdup(to[v->n_rules]);
        ok = r->from && r->to;
    }
    if (!ok) {
        turbod_weights_close(v);
        return turbod_err(err, TURBO_ENOMEM, "no memory for weights");
    }
    v->base = w;
    adopt(weights_base(w), v);
    *out = v;
    return TURBO_OK;
}

turbo_status turbod_host_weights_beside(turbo_weights *w, const char *folder, turbo_weights **out,
                                        turbo_err *err)
{
    char path[4096];
    turbo_weights *base = weights_base(w), *v = NULL;
    turbod_weights_opts opts = base->opts;
    opts.progress = NULL; /* counts the bytes of one folder */
    if (!base->folder)
        return turbod_err(err, TURBO_ENOENT,
                          "the model folder has no weight files, and folder %.64s beside it is not "
                          "looked for",
                          folder);
    turbo_status st = turbod_file_folder(base->folder, folder, path, sizeof path, err);
    if (!st)
        st = turbod_weights_open(path, &opts, &v, err);
    if (st)
        return st;
    v->sums = base->sums;
    v->vocab = base->vocab;
    adopt(base, v);
    *out = v;
    return TURBO_OK;
}

turbo_status turbod_host_rope(turbo_weights *w, const turbo_rope_spec *spec, const turbo_rope **out,
                              turbo_err *err)
{
    turbo_rope *r = NULL;
    w = weights_base(w);
    if (w->sums) {
        uint64_t bytes = turbok_rope_bytes(spec);
        *out = (const turbo_rope *)(const void *)weights_stand_in;
        return bytes ? weights_add(&w->sums->rope, bytes, err)
                     : turbod_err(err, TURBO_EINVAL, "RoPE of dimension %d is not possible",
                                  spec->dim);
    }
    turbo_status st = turbok_rope_new(w->opts.device, spec, &r, err);
    if (!st && (st = weights_keep(w, HANDLE_ROPE, r, err)))
        turbok_rope_free(w->opts.device, r);
    if (!st)
        *out = r;
    return st;
}

int32_t turbod_host_has_tensor(const turbo_weights *w, const char *name)
{
    char full[640];
    const turbo_weights *base = w;
    while (base->base)
        base = base->base;
    if (!base->index || !weights_real_name(w, name, full, sizeof full))
        return 0;
    size_t n = strlen(full);
    if (turbod_index_find(base->index, full))
        return 1;
    if (n < 7 || strcmp(full + n - 7, ".weight"))
        return 0;
    full[n - 7] = '\0'; /* a quantised matrix has other names */
    return turbod_quant_has(base->quant, base->index, full);
}
