/* core/weights/gguf_map.c: tensors by the names of the model; see gguf_map.h. Reads descriptions, and data
 * only in turbod_gguf_order. */
#include "weights/gguf_map.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/err.h"
#include "weights/gguf_blocks.h"

#define MAX_NAME 640
#define FAULT(...) turbod_err(err, TURBO_EDATA, __VA_ARGS__)

/* ---- rows ------------------------------------------------------------------------------------------- */

/* Lane c of a head is stored as this one. */
static uint64_t lane(uint64_t c, uint64_t head_dim)
{
    uint64_t half = head_dim / 2;
    return c < half ? 2 * c : 2 * (c - half) + 1;
}

const uint8_t *turbod_gguf_row_at(const turbod_st_tensor *t, uint64_t r,
                                  const turbod_st_tensor **from)
{
    const turbod_gguf_rows *m = t->rows;
    int32_t part = 0;
    uint64_t D = m ? (uint64_t)m->head_dim : 1, head = r / D, c = r % D;
    if (m && m->n == 3) {
        uint64_t group = (uint64_t)(m->n_heads / m->n_kv), slots = group + 2, slot = head % slots;
        part = slot < group ? 0 : slot == group ? 1 : 2;
        head = part ? head / slots : head / slots * group + slot;
    }
    const turbod_st_tensor *p = m ? m->part[part] : t;
    if (m)
        r = head * D + (m->alternate[part] ? lane(c, D) : c);
    *from = p;
    return p->data + r * (p->bytes / p->dims[0]);
}

turbo_status turbod_gguf_order(turbod_gguf_ordered **list, const turbod_st_tensor **t,
                               turbo_err *err)
{
    const turbod_st_tensor *of = *t, *from;
    if (!of->rows || of->block)
        return TURBO_OK;
    turbod_gguf_ordered *o = calloc(1, sizeof *o);
    uint8_t *data = malloc(of->bytes);
    if (!o || !data) {
        free(o);
        free(data);
        return turbod_err(err, TURBO_ENOMEM, "no memory for tensor %.100s", of->name);
    }
    uint64_t size = of->bytes / of->dims[0];
    for (uint64_t r = 0; r < of->dims[0]; r++)
        memcpy(data + r * size, turbod_gguf_row_at(of, r, &from), size);
    *o = (turbod_gguf_ordered){*of, of, *list};
    o->t.rows = NULL;
    o->t.data = data;
    o->t.at = 0;
    *list = o;
    *t = &o->t;
    return TURBO_OK;
}

void turbod_gguf_release(const turbod_gguf_ordered *list, const turbod_st_tensor *t)
{
    for (; list; list = list->next)
        t = t == &list->t ? list->of : t;
    for (int32_t i = 0; t->rows && i < t->rows->n; i++)
        turbod_st_release(t->rows->part[i]);
    if (!t->rows)
        turbod_st_release(t);
}

void turbod_gguf_drop(turbod_gguf_ordered **list)
{
    while (*list) {
        turbod_gguf_ordered *o = *list;
        *list = o->next;
        free((uint8_t *)(uintptr_t)o->t.data);
        free(o);
    }
}

/* ---- names ------------------------------------------------------------------------------------------ */

/* A tensor of the file on its way. */
typedef struct entry {
    char *name;
    const turbod_st_tensor *t;
    int32_t rule;
} entry;

/* Does name match pattern, in which '#' is a number? Then *digits, *n are those of the number. */
static bool match(const char *pattern, const char *name, size_t len, const char **digits, size_t *n)
{
    const char *end = name + len;
    *n = 0;
    for (; *pattern; pattern++) {
        if (*pattern != '#') {
            if (name == end || *name++ != *pattern)
                return false;
            continue;
        }
        *digits = name;
        while (name < end && *name >= '0' && *name <= '9')
            name++;
        *n = (size_t)(name - *digits);
        if (!*n || *n > 6)
            return false;
    }
    return name == end;
}

/* ".weight", ".bias" or "", which name ends in; *len: of what is before it. */
static const char *suffix_of(const char *name, size_t *len)
{
    static const char *const suffixes[] = {".weight", ".bias"};
    *len = strlen(name);
    for (int i = 0; i < 2; i++) {
        size_t k = strlen(suffixes[i]);
        if (*len > k && !strcmp(name + *len - k, suffixes[i])) {
            *len -= k;
            return suffixes[i];
        }
    }
    return "";
}

/* The pattern with the number in place of its '#'. */
static void put_number(const char *pattern, const char *digits, size_t n, const char *suffix,
                       char *out, size_t cap)
{
    const char *hash = strchr(pattern, '#');
    size_t before = hash ? (size_t)(hash - pattern) : strlen(pattern);
    snprintf(out, cap, "%.*s%.*s%s%s", (int)before, pattern, (int)n, digits, hash ? hash + 1 : "",
             suffix);
}

const char *turbod_gguf_file_name(const turbo_gguf *table, const char *name, char out[160])
{
    size_t len, n = 0;
    const char *digits = "", *suffix = suffix_of(name, &len);
    for (const turbo_gguf_row *r = table->tensors; r->from && *suffix; r++)
        if (match(r->to, name, len, &digits, &n)) {
            put_number(r->from, digits, n, suffix, out, 160);
            return out;
        }
    return NULL;
}

/* The name of t for the model; NULL: no memory. */
static char *rename_one(const turbo_gguf *table, const turbod_st_tensor *t, int32_t *rule)
{
    size_t len, n = 0;
    const char *digits = "", *suffix = suffix_of(t->name, &len);
    *rule = TURBO_GGUF_PLAIN;
    for (const turbo_gguf_row *r = table->tensors; r->from && *suffix; r++) {
        char name[MAX_NAME];
        if (!match(r->from, t->name, len, &digits, &n))
            continue;
        put_number(r->to, digits, n, suffix, name, sizeof name);
        *rule = r->rule;
        return strdup(name);
    }
    return strdup(t->name);
}

/* The config was made from it, and nothing else needs it. */
static bool is_key(const turbo_gguf *table, const char *name)
{
    for (const turbo_gguf_row *r = table->keys; r->from; r++)
        if (r->rule == TURBO_GGUF_BANDS && !strcmp(r->from, name))
            return true;
    return false;
}

static int by_name(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    int c = strcmp(x->name, y->name);
    return c ? c : (x->rule > y->rule) - (x->rule < y->rule);
}

/* ---- mapping ---------------------------------------------------------------------------------------- */

static bool is_group(int32_t rule)
{
    return rule >= TURBO_GGUF_GROUP_Q && rule <= TURBO_GGUF_GROUP_V;
}

/* Three tensors as one matrix; e[0..2] are Q, K and V of one name. */
static turbo_status join(const entry *e, size_t left, const turbo_model_info *info,
                         turbod_st_tensor *out, turbod_gguf_rows *rows, turbo_err *err)
{
    const uint64_t D = (uint64_t)info->head_dim;
    const uint64_t want[3] = {(uint64_t)info->n_heads * D, (uint64_t)info->n_kv * D,
                              (uint64_t)info->n_kv * D};
    rows->n = 3;
    for (int32_t i = 0; i < 3; i++) {
        if ((size_t)i >= left || strcmp(e[i].name, e[0].name) ||
            e[i].rule != TURBO_GGUF_GROUP_Q + i)
            return FAULT("tensor %.80s is to be one of three that form one matrix, Q, K and V; the "
                         "file does not have each of them once",
                         e[0].t->name);
        const turbod_st_tensor *t = e[i].t, *q = e[0].t;
        if (t->dims[0] != want[i] || t->ndim != q->ndim ||
            (t->ndim == 2 && t->dims[1] != q->dims[1]) || t->ndim > 2)
            return FAULT("tensor %.80s has %llu rows; its heads need %llu", t->name,
                         (unsigned long long)t->dims[0], (unsigned long long)want[i]);
        if (t->dtype != q->dtype || !t->block != !q->block)
            return turbod_err(err, TURBO_EUNSUPPORTED,
                              "tensor %.80s is %s and %.80s is %s; they form one matrix and need "
                              "one type",
                              t->name, t->dtype_name, q->name, q->dtype_name);
        rows->part[i] = t;
        rows->alternate[i] = i < 2;
    }
    out->dims[0] = want[0] + want[1] + want[2];
    out->bytes = e[0].t->bytes + e[1].t->bytes + e[2].t->bytes;
    out->data = NULL;
    return TURBO_OK;
}

static turbo_status map_one(const entry *e, size_t left, const turbo_model_info *info,
                            turbod_st_tensor *out, turbod_gguf_rows *rows, size_t *used,
                            turbo_err *err)
{
    *out = *e->t;
    *rows = (turbod_gguf_rows){.n = 1,
                               .n_heads = info->n_heads,
                               .n_kv = info->n_kv,
                               .head_dim = info->head_dim,
                               .part = {e->t},
                               .alternate = {true}};
    *used = 1;
    if (is_group(e->rule)) {
        *used = 3;
        out->rows = rows;
        return join(e, left, info, out, rows, err);
    }
    uint64_t heads = (uint64_t)(e->rule == TURBO_GGUF_Q   ? info->n_heads
                                : e->rule == TURBO_GGUF_K ? info->n_kv
                                                          : 0);
    /* Another number of rows is refused where shapes are compared. */
    if (heads && e->t->dims[0] == heads * (uint64_t)info->head_dim)
        out->rows = rows;
    return left > 1 && !strcmp(e[0].name, e[1].name)
               ? FAULT("tensors %.80s and %.80s are both %.60s of the model", e[0].t->name,
                       e[1].t->name, e[0].name)
               : TURBO_OK;
}

turbo_status turbod_gguf_map(const turbod_gguf *g, const turbo_gguf *table,
                             const turbo_model_info *info, turbod_st_tensor **out, size_t *n,
                             turbod_gguf_rows **rows, turbo_err *err)
{
    size_t count = turbod_gguf_count(g), k = 0, used = 0;
    entry *e = calloc(count + 1, sizeof *e);
    turbod_st_tensor *t = calloc(count + 1, sizeof *t);
    turbod_gguf_rows *r = calloc(count + 1, sizeof *r);
    turbo_status st = e && t && r ? TURBO_OK : TURBO_ENOMEM;
    for (size_t i = 0; i < count && !st; i++) {
        const turbod_st_tensor *s = turbod_gguf_at(g, i);
        if (is_key(table, s->name))
            continue;
        e[k].t = s;
        e[k].name = rename_one(table, s, &e[k].rule);
        st = e[k].name ? TURBO_OK : TURBO_ENOMEM;
        k += !st;
    }
    if (st)
        turbod_err(err, st, "no memory for %zu tensors", count);
    if (k)
        qsort(e, k, sizeof *e, by_name);
    *n = 0;
    for (size_t i = 0; i < k && !st; i += used) {
        st = map_one(&e[i], k - i, info, &t[*n], &r[*n], &used, err);
        if (st)
            break;
        t[(*n)++].name = e[i].name;
        e[i].name = NULL; /* the tensor's now */
    }
    for (size_t i = 0; i < k; i++)
        free(e[i].name);
    free(e);
    if (st) {
        for (size_t i = 0; t && i < *n; i++)
            free((char *)(uintptr_t)t[i].name);
        free(t);
        free(r);
        return st;
    }
    *out = t;
    *rows = r;
    return TURBO_OK;
}
