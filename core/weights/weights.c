/* core/weights/weights.c: see weights.h. */
#include "weights/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/checked.h"
#include "util/err.h"
#include "util/file.h"
#include "util/log.h"
#include "weights/index.h"

#define MAX_LISTED 20
#define MAX_PARTS 8 /* of linear_rows */
#define MAX_RENAMES 16

typedef enum { LINEAR, VECTOR, ROPE } handle_kind;

typedef struct handle {
    handle_kind kind;
    void *ptr;
    struct handle *next;
} handle;

/* Names of a view that begin with from begin with to in the folder. */
typedef struct rename_rule {
    char *from, *to;
} rename_rule;

/* A folder, or a view of one under other names: then base is the folder, and everything but the rules
 * belongs to it. */
struct turbo_weights {
    struct turbo_weights *base, *next; /* next: views and further folders of a folder */
    struct turbo_weights *owned;
    rename_rule rules[MAX_RENAMES];
    int32_t n_rules;
    char *folder;
    turbod_weights_opts opts;
    turbod_index *index; /* NULL after unmap */
    handle *handles;
    uint64_t device_bytes;
    uint64_t done, total; /* file bytes turned into handles, for progress */
};

turbo_status turbod_weights_open(const char *folder, const turbod_weights_opts *opts,
                                 turbo_weights **out, turbo_err *err)
{
    turbo_weights *w = calloc(1, sizeof *w);
    if (!w)
        return turbod_err(err, TURBO_ENOMEM, "no memory for weights");
    w->opts = *opts;
    w->folder = strdup(folder);
    turbo_status st = w->folder ? turbod_index_open(folder, &w->index, err)
                                : turbod_err(err, TURBO_ENOMEM, "no memory for weights");
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
    if (w->opts.progress)
        w->opts.progress(w->opts.progress_ctx, w->total, w->total);
    return st;
}

uint64_t turbod_weights_bytes(const turbo_weights *w)
{
    uint64_t n = w->device_bytes;
    for (const turbo_weights *v = w->owned; v; v = v->next)
        n += v->device_bytes;
    return n;
}

void turbod_weights_close(turbo_weights *w)
{
    if (!w)
        return;
    while (w->owned) {
        turbo_weights *v = w->owned;
        w->owned = v->next;
        turbod_weights_close(v);
    }
    while (w->handles) {
        handle *h = w->handles;
        w->handles = h->next;
        if (h->kind == LINEAR)
            turbok_linear_free(w->opts.device, h->ptr);
        else if (h->kind == VECTOR)
            turbok_vector_free(w->opts.device, h->ptr);
        else
            turbok_rope_free(w->opts.device, h->ptr);
        free(h);
    }
    turbod_index_close(w->index);
    for (int32_t i = 0; i < w->n_rules; i++) {
        free(w->rules[i].from);
        free(w->rules[i].to);
    }
    free(w->folder);
    free(w);
}

/* The folder a view shows. */
static turbo_weights *base_of(turbo_weights *w)
{
    while (w->base)
        w = w->base;
    return w;
}

/* name as the folder has it; false when it is too long. */
static bool real_name(const turbo_weights *w, const char *name, char *out, size_t cap)
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

/* ---- comparing the folder with the architecture -----------------------------------------------
 */

typedef struct checker {
    turbo_weights *w;
    turbo_err first;
    turbo_err *err; /* for defects of the plugin, which end the check */
    bool absent; /* there is no weight file: the first tensor asked for ends the check */
    int faults;
    size_t found; /* tensors of the folder that the architecture names */
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

static void report(checker *c, const char *text)
{
    if (!c->faults)
        turbod_err(&c->first, TURBO_EDATA, "%s", text);
    if (c->faults++ < MAX_LISTED)
        turbod_log(TURBO_LOG_ERROR, "%s", text);
}

/* Matrices of one group are stored as one: they need one type. */
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
    const turbod_st_tensor *t = turbod_index_find(c->w->index, spec->name);
    if (!t && spec->alias)
        t = turbod_index_find(c->w->index, spec->alias);
    if (!t && spec->alias2)
        t = turbod_index_find(c->w->index, spec->alias2);
    for (int32_t i = 0; i < spec->ndim; i++)
        dims[i] = (uint64_t)spec->dims[i];
    if (!t) {
        if (!spec->optional && c->absent)
            return turbod_err(c->err, TURBO_ENOENT,
                              "the model folder has neither model.safetensors nor "
                              "model.safetensors.index.json");
        if (!spec->optional) {
            snprintf(text, sizeof text, "tensor %.120s is missing", spec->name);
            report(c, text);
        }
        return TURBO_OK;
    }
    c->found++;
    shape_text(want, sizeof want, dims, (uint32_t)spec->ndim);
    shape_text(found, sizeof found, t->dims, t->ndim);
    if (t->ndim != (uint32_t)spec->ndim || memcmp(t->dims, dims, t->ndim * sizeof dims[0])) {
        snprintf(text, sizeof text, "tensor %.80s has the shape [%s], config.json says [%s]",
                 spec->name, found, want);
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
    checker c = {.w = w, .err = err, .absent = turbod_index_absent(w->index)};
    turbo_status st = vtbl->expect(host, config, expect_one, &c, err);
    if (st)
        return st;
    if (c.faults > 1)
        return turbod_err(err, TURBO_EDATA, "%.180s (and %d more)", c.first.text, c.faults - 1);
    if (c.faults)
        return turbod_err(err, TURBO_EDATA, "%s", c.first.text);
    size_t count = turbod_index_count(w->index), extra = count > c.found ? count - c.found : 0;
    if (extra)
        turbod_log(TURBO_LOG_WARN, "%zu tensors of the folder are not used by %s", extra, vtbl->id);
    return TURBO_OK;
}

/* ---- handles ------------------------------------------------------------------------------------
 */

typedef struct finite_scan {
    const turbod_st_tensor *t;
    _Atomic bool bad;
} finite_scan;

/* A number is NaN or infinite exactly when its exponent bits are all set. Four or two numbers at a
 * time: the exponent plus its lowest bit carries into the place of the sign just then, and never
 * further. Data may be unaligned; n is in bytes. */
static bool any_nonfinite(const uint8_t *p, uint64_t n, int32_t dtype)
{
    const uint64_t ones = dtype == TURBO_F32 ? 0x0000000100000001u : 0x0001000100010001u;
    const uint64_t exponent = ones * (dtype == TURBO_F32   ? 0x7f800000u
                                      : dtype == TURBO_F16 ? 0x7c00u
                                                           : 0x7f80u);
    const uint64_t lowest = ones * (dtype == TURBO_F32   ? 0x00800000u
                                    : dtype == TURBO_F16 ? 0x0400u
                                                         : 0x0080u);
    const uint64_t sign = ones * (dtype == TURBO_F32 ? 0x80000000u : 0x8000u);
    uint64_t carry = 0, i = 0;
    for (; n - i >= 8; i += 8) {
        uint64_t v;
        memcpy(&v, p + i, 8);
        carry |= (v & exponent) + lowest;
    }
    if (i < n) { /* the rest, filled up with zeros */
        uint64_t v = 0;
        memcpy(&v, p + i, n - i);
        carry |= (v & exponent) + lowest;
    }
    return (carry & sign) != 0;
}

static void scan_part(void *ctx, int i, int n)
{
    finite_scan *s = ctx;
    uint64_t size = s->t->dtype == TURBO_F32 ? 4 : 2, count = s->t->bytes / size;
    uint64_t from = count / (uint64_t)n * (uint64_t)i;
    uint64_t to = i == n - 1 ? count : count / (uint64_t)n * (uint64_t)(i + 1);
    if (any_nonfinite(s->t->data + from * size, (to - from) * size, s->t->dtype))
        s->bad = true;
}

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

static turbo_status take(turbo_weights *view, const char *name, const char *suffix, uint32_t ndim,
                         int64_t d0, int64_t d1, const turbod_st_tensor **out, turbo_err *err)
{
    char asked[640], full[640];
    turbo_weights *w = base_of(view);
    int k = snprintf(asked, sizeof asked, "%s%s", name, suffix);
    if (k < 0 || (size_t)k >= sizeof asked || !real_name(view, asked, full, sizeof full))
        return turbod_err(err, TURBO_EINVAL, "a tensor name is too long");
    if (!w->index || !w->opts.device)
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
    finite_scan scan = {.t = t};
    if (!w->opts.allow_nonfinite)
        turbok_parallel(w->opts.device, scan_part, &scan);
    if (scan.bad)
        return turbod_err(err, TURBO_EDATA,
                          "tensor %.120s holds NaN or infinity; the file is damaged "
                          "(allow_nonfinite = true loads it all the same)",
                          full);
    *out = t;
    return TURBO_OK;
}

static void used(turbo_weights *w, const turbod_st_tensor *t)
{
    turbod_st_release(t);
    w->done += t->bytes;
    if (w->opts.progress)
        w->opts.progress(w->opts.progress_ctx, w->done, w->total);
}

static turbo_status keep(turbo_weights *w, handle_kind kind, void *ptr, turbo_err *err)
{
    handle *h = calloc(1, sizeof *h);
    if (!h)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a weight handle");
    *h = (handle){kind, ptr, w->handles};
    w->handles = h;
    return TURBO_OK;
}

/* A bias is NULL when it may be absent and is. */
static turbo_status take_part(turbo_weights *w, const char *name, int64_t rows, int64_t in_dim,
                              uint32_t flags, const turbod_st_tensor **t,
                              const turbod_st_tensor **bias, turbo_err *err)
{
    *bias = NULL;
    turbo_status st = take(w, name, ".weight", 2, rows, in_dim, t, err);
    if (st || !(flags & (TURBO_LINEAR_BIAS | TURBO_LINEAR_OPTIONAL_BIAS)))
        return st;
    st = take(w, name, ".bias", 1, rows, 0, bias, err);
    return st == TURBO_ENOENT && !(flags & TURBO_LINEAR_BIAS) ? TURBO_OK : st;
}

turbo_status turbod_host_linear_rows(turbo_weights *w, const char *const *names,
                                     const int64_t *rows, int32_t n, int64_t in_dim, uint32_t flags,
                                     const turbo_linear **out, turbo_err *err)
{
    const turbod_st_tensor *t[MAX_PARTS], *bias[MAX_PARTS];
    turbok_part parts[MAX_PARTS] = {0};
    bool has_bias = false;
    int64_t total = 0;
    if (n < 1 || n > MAX_PARTS)
        return turbod_err(err, TURBO_EINVAL, "a matrix of %d parts; 1 to %d are possible", n,
                          MAX_PARTS);
    for (int32_t i = 0; i < n; i++) {
        turbo_status st = take_part(w, names[i], rows[i], in_dim, flags, &t[i], &bias[i], err);
        if (st)
            return st;
        if (t[i]->dtype != t[0]->dtype)
            return turbod_err(err, TURBO_EUNSUPPORTED,
                              "%.90s.weight is %s and %.90s.weight is %s; they form one matrix and "
                              "need one type",
                              names[0], t[0]->dtype_name, names[i], t[i]->dtype_name);
        parts[i] = (turbok_part){.data = t[i]->data, .rows = rows[i]};
        if (bias[i]) {
            has_bias = true;
            parts[i].bias = bias[i]->data;
            parts[i].bias_dtype = bias[i]->dtype;
        }
        total += rows[i]; /* each is a dimension of a tensor that exists */
    }
    turbo_linear *l = NULL;
    w = base_of(w);
    turbo_status st =
        turbok_linear_rows_new(w->opts.device, t[0]->dtype, parts, n, in_dim, flags, &l, err);
    if (!st && (st = keep(w, LINEAR, l, err)))
        turbok_linear_free(w->opts.device, l);
    if (st)
        return st;
    w->device_bytes +=
        turbok_linear_bytes(w->opts.device, t[0]->dtype, total, in_dim, has_bias, flags);
    for (int32_t i = 0; i < n; i++) {
        used(w, t[i]);
        if (bias[i])
            used(w, bias[i]);
    }
    *out = l;
    return TURBO_OK;
}

turbo_status turbod_host_linear(turbo_weights *w, const char *name, int64_t out_dim, int64_t in_dim,
                                uint32_t flags, const turbo_linear **out, turbo_err *err)
{
    return turbod_host_linear_rows(w, &name, &out_dim, 1, in_dim, flags, out, err);
}

static turbo_status make_vector(turbo_weights *w, const char *name, const char *suffix,
                                uint32_t ndim, int64_t n, const turbo_vector **out, turbo_err *err)
{
    const turbod_st_tensor *t;
    turbo_vector *v = NULL;
    turbo_status st = take(w, name, suffix, ndim, n, 0, &t, err);
    w = base_of(w);
    if (!st)
        st = turbok_vector_new(w->opts.device, t->dtype, t->data, n, &v, err);
    if (!st && (st = keep(w, VECTOR, v, err)))
        turbok_vector_free(w->opts.device, v);
    if (st)
        return st;
    w->device_bytes += (uint64_t)n * sizeof(float);
    used(w, t);
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
    adopt(base_of(w), v);
    *out = v;
    return TURBO_OK;
}

turbo_status turbod_host_weights_beside(turbo_weights *w, const char *folder, turbo_weights **out,
                                        turbo_err *err)
{
    char path[4096];
    turbo_weights *base = base_of(w), *v = NULL;
    turbod_weights_opts opts = base->opts;
    opts.progress = NULL; /* counts the bytes of one folder */
    turbo_status st = turbod_file_folder(base->folder, folder, path, sizeof path, err);
    if (!st)
        st = turbod_weights_open(path, &opts, &v, err);
    if (st)
        return st;
    adopt(base, v);
    *out = v;
    return TURBO_OK;
}

turbo_status turbod_host_rope(turbo_weights *w, const turbo_rope_spec *spec, const turbo_rope **out,
                              turbo_err *err)
{
    turbo_rope *r = NULL;
    w = base_of(w);
    turbo_status st = turbok_rope_new(w->opts.device, spec, &r, err);
    if (!st && (st = keep(w, ROPE, r, err)))
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
    return base->index && real_name(w, name, full, sizeof full) &&
           turbod_index_find(base->index, full) != NULL;
}
