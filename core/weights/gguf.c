/* core/weights/gguf.c: see gguf.h. The checks stand in the order in which each makes the next one safe. */
#include "weights/gguf.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "util/checked.h"
#include "util/err.h"
#include "util/file.h"
#include "util/utf8.h"
#include "weights/gguf_blocks.h"

#define MAX_TENSORS 100000u
#define MAX_KEYS 65536u
#define MAX_KEY 65535u /* of the format */
#define MAX_NAME 512u
#define MAX_DIM ((uint64_t)1 << 48)
#define MIN_KEY_BYTES 13u /* length, type and a value of one byte */
#define MIN_TENSOR_BYTES 32u /* length, dimensions, one of them, type, offset */
#define DEFAULT_ALIGNMENT 32u

struct turbod_gguf {
    char name[256];
    int fd;
    struct stat stat;
    uint8_t *map;
    uint64_t size, data_at;
    turbod_gguf_value *values; /* sorted by key */
    size_t n_values;
    turbod_st_tensor *tensors; /* sorted by name */
    size_t n_tensors;
    char *names; /* of tensors, one behind the other */
};

#define FAULT(...) turbod_err(err, TURBO_EDATA, __VA_ARGS__)

/* ---- reading ---------------------------------------------------------------------------------------- */

/* Text of the file in messages. */
static const char *shown(const char *p, uint64_t n, char out[80])
{
    n = n < 79 ? n : 79;
    memcpy(out, p, n);
    out[n] = '\0';
    for (size_t i = 0; i < n; i++)
        if (out[i] < ' ' || out[i] > '~')
            out[i] = '?';
    return out;
}

static turbo_status read_array(const turbod_gguf *g, turbo_gguf_cursor *c, const char *key,
                               turbod_gguf_value *v, turbo_err *err)
{
    v->elem = (uint32_t)turbo_gguf_uint(c, 4);
    v->n = turbo_gguf_uint(c, 8);
    v->at = c->p;
    uint32_t w = turbo_gguf_width(v->elem);
    uint64_t size, left = (uint64_t)(c->end - c->p);
    if (c->bad)
        return FAULT("%s: key %s: the file ends inside its array", g->name, key);
    if (!w && v->elem != TURBO_GGUF_STRING)
        return FAULT("%s: key %s is an array of the type %u; numbers, truth values and strings are "
                     "possible",
                     g->name, key, v->elem);
    if (__builtin_mul_overflow(v->n, w ? w : 8, &size) || size > left)
        return FAULT("%s: key %s is an array of %llu elements; the file has %llu bytes left",
                     g->name, key, (unsigned long long)v->n, (unsigned long long)left);
    if (w)
        turbo_gguf_bytes(c, size);
    for (uint64_t i = 0; !w && i < v->n; i++) {
        uint64_t n = turbo_gguf_uint(c, 8);
        if (!turbo_gguf_bytes(c, n))
            return FAULT("%s: key %s: string %llu of its array reaches past the end of the file",
                         g->name, key, (unsigned long long)i);
    }
    for (uint64_t i = 0; v->elem == TURBO_GGUF_BOOL && i < v->n; i++)
        if (v->at[i] > 1)
            return FAULT("%s: key %s: a truth value is %u", g->name, key, v->at[i]);
    return TURBO_OK;
}

static turbo_status read_value(const turbod_gguf *g, turbo_gguf_cursor *c, size_t i,
                               turbod_gguf_value *v, turbo_err *err)
{
    char key[80];
    v->key_len = turbo_gguf_uint(c, 8);
    v->key = (const char *)turbo_gguf_bytes(c, v->key_len);
    v->type = (uint32_t)turbo_gguf_uint(c, 4);
    if (c->bad || !v->key)
        return FAULT("%s: the file ends inside metadata key %zu", g->name, i);
    shown(v->key, v->key_len, key);
    if (!v->key_len || v->key_len > MAX_KEY || !turbod_utf8_valid(v->key, v->key_len) ||
        memchr(v->key, 0, v->key_len))
        return FAULT("%s: metadata key %zu (%s) is no text of 1 to %u bytes", g->name, i, key,
                     MAX_KEY);
    if (v->type == TURBO_GGUF_ARRAY)
        return read_array(g, c, key, v, err);
    if (v->type == TURBO_GGUF_STRING) {
        v->n = turbo_gguf_uint(c, 8);
        v->at = turbo_gguf_bytes(c, v->n);
        return v->at
                   ? TURBO_OK
                   : FAULT("%s: key %s: its string of %llu bytes reaches past the end of the file",
                           g->name, key, (unsigned long long)v->n);
    }
    if (!turbo_gguf_width(v->type))
        return FAULT("%s: key %s has the unknown type %u", g->name, key, v->type);
    v->at = turbo_gguf_bytes(c, turbo_gguf_width(v->type));
    if (!v->at)
        return FAULT("%s: the file ends inside key %s", g->name, key);
    if (v->type == TURBO_GGUF_BOOL && *v->at > 1)
        return FAULT("%s: key %s: a truth value is %u", g->name, key, *v->at);
    return TURBO_OK;
}

static int by_key(const void *a, const void *b)
{
    const turbod_gguf_value *x = a, *y = b;
    int c = memcmp(x->key, y->key, x->key_len < y->key_len ? x->key_len : y->key_len);
    return c ? c : (x->key_len > y->key_len) - (x->key_len < y->key_len);
}

static turbo_status read_values(turbod_gguf *g, turbo_gguf_cursor *c, uint64_t n, turbo_err *err)
{
    char key[80];
    g->values = calloc(n + 1, sizeof *g->values);
    if (!g->values)
        return turbod_err(err, TURBO_ENOMEM, "no memory for %llu keys", (unsigned long long)n);
    for (size_t i = 0; i < n; i++) {
        turbo_status st = read_value(g, c, i, &g->values[i], err);
        if (st)
            return st;
    }
    g->n_values = n;
    qsort(g->values, n, sizeof *g->values, by_key);
    for (size_t i = 1; i < n; i++)
        if (!by_key(&g->values[i - 1], &g->values[i]))
            return FAULT("%s: key %s stands there twice", g->name,
                         shown(g->values[i].key, g->values[i].key_len, key));
    return TURBO_OK;
}

/* ---- tensors ---------------------------------------------------------------------------------------- */

/* How many bytes a tensor of these numbers has. t has name and dims. */
static turbo_status size_tensor(const turbod_gguf *g, turbod_st_tensor *t, uint32_t id,
                                turbo_err *err)
{
    const turbod_gguf_type *type = turbod_gguf_type_of(id);
    uint64_t all;
    if (!type)
        return FAULT("%s: tensor %.80s has the unknown type %u", g->name, t->name, id);
    if (!type->block)
        return turbod_err(err, TURBO_EUNSUPPORTED,
                          "%s: tensor %.80s is %s, which is not read; F32, F16, BF16, Q4_0, Q4_1, "
                          "Q5_0, Q5_1, Q8_0, Q2_K to Q6_K and IQ4_NL are",
                          g->name, t->name, type->name);
    if (!turbod_numel(t->dims, t->ndim, &all))
        return FAULT("%s: tensor %.80s: the product of its dimensions overflows", g->name, t->name);
    if (t->dims[t->ndim - 1] % type->block)
        return FAULT("%s: tensor %.80s is %s in rows of %llu; blocks of %u do not divide that",
                     g->name, t->name, type->name, (unsigned long long)t->dims[t->ndim - 1],
                     type->block);
    if (__builtin_mul_overflow(all / type->block, type->bytes, &t->bytes))
        return FAULT("%s: tensor %.80s: the product of its dimensions overflows", g->name, t->name);
    t->dtype = type->dtype;
    t->block = type->bits ? type : NULL;
    memcpy(t->dtype_name, type->name, strlen(type->name) + 1);
    return TURBO_OK;
}

/* One description. *offset: of its data in the data section, which nobody has found yet. */
static turbo_status read_tensor(const turbod_gguf *g, turbo_gguf_cursor *c, size_t i, char **to,
                                turbod_st_tensor *t, uint64_t *offset, turbo_err *err)
{
    char name[80];
    uint64_t len = turbo_gguf_uint(c, 8);
    const char *p = (const char *)turbo_gguf_bytes(c, len);
    uint32_t n = (uint32_t)turbo_gguf_uint(c, 4);
    if (c->bad || !p)
        return FAULT("%s: the file ends inside the description of tensor %zu", g->name, i);
    shown(p, len, name);
    if (!len || len > MAX_NAME || !turbod_utf8_valid(p, len) || memchr(p, 0, len))
        return FAULT("%s: the name of tensor %zu (%s) is no text of 1 to %u bytes", g->name, i,
                     name, MAX_NAME);
    if (n < 1 || n > 4)
        return FAULT("%s: tensor %s has %u dimensions; 1 to 4 are possible", g->name, name, n);
    t->ndim = n;
    for (uint32_t d = n; d-- > 0;) {
        t->dims[d] = turbo_gguf_uint(c, 8);
        if (t->dims[d] < 1 || t->dims[d] > MAX_DIM)
            return c->bad ? FAULT("%s: the file ends inside the description of tensor %s", g->name,
                                  name)
                          : FAULT("%s: tensor %s has a dimension of %llu; 1 to 2^48 are possible",
                                  g->name, name, (unsigned long long)t->dims[d]);
    }
    uint32_t id = (uint32_t)turbo_gguf_uint(c, 4);
    *offset = turbo_gguf_uint(c, 8);
    if (c->bad)
        return FAULT("%s: the file ends inside the description of tensor %s", g->name, name);
    memcpy(*to, p, len);
    t->name = *to; /* zeroed memory: a NUL follows */
    *to += len + 1;
    return size_tensor(g, t, id, err);
}

static int by_name(const void *a, const void *b)
{
    const turbod_st_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int by_data(const void *a, const void *b)
{
    const turbod_st_tensor *x = a, *y = b;
    return (x->data > y->data) - (x->data < y->data);
}

/* Puts each tensor to its place: aligned, inside the file, no two in one. offsets are in order of tensors. */
static turbo_status place(turbod_gguf *g, const uint64_t *offsets, uint64_t alignment,
                          turbo_err *err)
{
    for (size_t i = 0; i < g->n_tensors; i++) {
        turbod_st_tensor *t = &g->tensors[i];
        if (offsets[i] % alignment)
            return FAULT("%s: tensor %.80s begins at %llu, which is no multiple of the alignment "
                         "%llu",
                         g->name, t->name, (unsigned long long)offsets[i],
                         (unsigned long long)alignment);
        if (!turbod_range(offsets[i], t->bytes, g->size - g->data_at))
            return FAULT("%s: tensor %.80s has %llu bytes at %llu, the file holds %llu bytes of "
                         "data; it is truncated",
                         g->name, t->name, (unsigned long long)t->bytes,
                         (unsigned long long)offsets[i],
                         (unsigned long long)(g->size - g->data_at));
        t->data = g->map + g->data_at + offsets[i];
    }
    qsort(g->tensors, g->n_tensors, sizeof *g->tensors, by_data);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (g->tensors[i].data < g->tensors[i - 1].data + g->tensors[i - 1].bytes)
            return FAULT("%s: tensor %.80s lies upon tensor %.80s", g->name, g->tensors[i].name,
                         g->tensors[i - 1].name);
    qsort(g->tensors, g->n_tensors, sizeof *g->tensors, by_name);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (!strcmp(g->tensors[i - 1].name, g->tensors[i].name))
            return FAULT("%s: tensor %.80s stands there twice", g->name, g->tensors[i].name);
    return TURBO_OK;
}

static turbo_status read_alignment(const turbod_gguf *g, uint64_t *out, turbo_err *err)
{
    const turbod_gguf_value *v = turbod_gguf_find(g, "general.alignment");
    double a = DEFAULT_ALIGNMENT;
    int64_t n = 0;
    if (v && (!turbod_gguf_number(v, 0, &a) || v->type == TURBO_GGUF_ARRAY ||
              !turbod_d2i(a, 8, 1 << 20, &n) || (n & (n - 1))))
        return FAULT("%s: general.alignment is not a power of two of 8 to 2^20", g->name);
    *out = v ? (uint64_t)n : DEFAULT_ALIGNMENT;
    return TURBO_OK;
}

static turbo_status read_tensors(turbod_gguf *g, turbo_gguf_cursor *c, uint64_t n, turbo_err *err)
{
    uint64_t alignment = 0;
    /* Names take no more than the rest of the file, nor than the longest ones. */
    uint64_t most = n * (MAX_NAME + 1), left = (uint64_t)(c->end - c->p);
    uint64_t *offsets = calloc(n + 1, sizeof *offsets);
    g->tensors = calloc(n + 1, sizeof *g->tensors);
    g->names = calloc(1, (most < left ? most : left) + 1);
    turbo_status st =
        offsets && g->tensors && g->names
            ? read_alignment(g, &alignment, err)
            : turbod_err(err, TURBO_ENOMEM, "no memory for %llu tensors", (unsigned long long)n);
    char *to = g->names;
    for (size_t i = 0; i < n && !st; i++) {
        st = read_tensor(g, c, i, &to, &g->tensors[i], &offsets[i], err);
        g->n_tensors += !st;
    }
    size_t at = (size_t)(c->p - g->map);
    if (!st && (!turbod_round_up(at, alignment, &at) || at > g->size))
        st = g->n_tensors ? FAULT("%s: the file ends before its tensors; it is truncated", g->name)
                          : TURBO_OK;
    g->data_at = at < g->size ? at : g->size;
    if (!st)
        st = place(g, offsets, alignment, err);
    free(offsets);
    return st;
}

static turbo_status read_file(turbod_gguf *g, turbo_err *err)
{
    turbo_gguf_cursor c = {g->map, g->map + g->size, false};
    const uint8_t *magic = turbo_gguf_bytes(&c, 4);
    uint32_t version = (uint32_t)turbo_gguf_uint(&c, 4);
    uint64_t tensors = turbo_gguf_uint(&c, 8), keys = turbo_gguf_uint(&c, 8),
             left = (uint64_t)(c.end - c.p);
    if (!magic || memcmp(magic, "GGUF", 4) != 0)
        return FAULT("%s is no GGUF file; a model is a folder or such a file", g->name);
    if (c.bad)
        return FAULT("%s has %llu bytes; it is truncated", g->name, (unsigned long long)g->size);
    if (version != 3)
        return turbod_err(err, TURBO_EUNSUPPORTED,
                          "%s is of version %u%s of the format; version 3 is read: convert the "
                          "model again",
                          g->name, version, version == 0x03000000 ? " or big-endian" : "");
    if (keys > MAX_KEYS || tensors > MAX_TENSORS)
        return FAULT("%s says it has %llu keys and %llu tensors; at most %u and %u are read",
                     g->name, (unsigned long long)keys, (unsigned long long)tensors, MAX_KEYS,
                     MAX_TENSORS);
    if (keys > left / MIN_KEY_BYTES || tensors > left / MIN_TENSOR_BYTES)
        return FAULT("%s says it has %llu keys and %llu tensors, which %llu bytes cannot hold; it "
                     "is truncated",
                     g->name, (unsigned long long)keys, (unsigned long long)tensors,
                     (unsigned long long)g->size);
    turbo_status st = read_values(g, &c, keys, err);
    const turbod_gguf_value *split = st ? NULL : turbod_gguf_find(g, "split.count");
    double parts = 1;
    if (split && (!turbod_gguf_number(split, 0, &parts) || parts > 1))
        return turbod_err(err, TURBO_EUNSUPPORTED,
                          "%s is one of %.0f parts of a model; merge them into one file", g->name,
                          parts);
    return st ? st : read_tensors(g, &c, tensors, err);
}

/* ---- opening ---------------------------------------------------------------------------------------- */

bool turbod_gguf_is(const char *path)
{
    struct stat st;
    return !stat(path, &st) && S_ISREG(st.st_mode);
}

turbo_status turbod_gguf_open(const char *path, turbod_gguf **out, turbo_err *err)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    turbod_gguf *g = calloc(1, sizeof *g);
    char *folder = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    turbo_status st = TURBO_OK;
    if (!g || !folder) {
        free(folder);
        free(g);
        return turbod_err(err, TURBO_ENOMEM, "no memory for %.100s", name);
    }
    g->fd = -1;
    st = turbod_file_open(folder, name, &g->fd, &g->stat, err);
    if (!st) {
        strncpy(g->name, name, sizeof g->name - 1);
        g->size = (uint64_t)g->stat.st_size;
        void *map = g->size ? mmap(NULL, g->size, PROT_READ, MAP_PRIVATE, g->fd, 0) : MAP_FAILED;
        if (!g->size)
            st = FAULT("%s is empty", g->name);
        else if (map == MAP_FAILED)
            st = turbod_err(err, TURBO_ENOMEM, "%s: cannot map %llu bytes", g->name,
                            (unsigned long long)g->size);
        else
            g->map = map;
    }
    if (!st)
        st = read_file(g, err);
    free(folder);
    if (st)
        turbod_gguf_close(g);
    else
        *out = g;
    return st;
}

turbo_status turbod_gguf_unchanged(const turbod_gguf *g, turbo_err *err)
{
    struct stat now;
    if (fstat(g->fd, &now) || now.st_size != g->stat.st_size || now.st_ino != g->stat.st_ino ||
        now.st_mtim.tv_sec != g->stat.st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != g->stat.st_mtim.tv_nsec)
        return FAULT("%s was changed while it was being loaded; start again", g->name);
    return TURBO_OK;
}

void turbod_gguf_close(turbod_gguf *g)
{
    if (!g)
        return;
    if (g->map)
        munmap(g->map, g->size);
    if (g->fd >= 0)
        close(g->fd);
    free(g->values);
    free(g->tensors);
    free(g->names);
    free(g);
}

/* ---- look-ups --------------------------------------------------------------------------------------- */

const char *turbod_gguf_name(const turbod_gguf *g)
{
    return g->name;
}

const turbod_gguf_value *turbod_gguf_find(const turbod_gguf *g, const char *key)
{
    turbod_gguf_value k = {.key = key, .key_len = strlen(key)};
    return bsearch(&k, g->values, g->n_values, sizeof k, by_key);
}

bool turbod_gguf_is_string(const turbod_gguf_value *v, const char *text)
{
    return v && v->type == TURBO_GGUF_STRING && v->n == strlen(text) && !memcmp(v->at, text, v->n);
}

bool turbod_gguf_number(const turbod_gguf_value *v, uint64_t i, double *out)
{
    bool array = v->type == TURBO_GGUF_ARRAY;
    uint32_t type = array ? v->elem : v->type, w = turbo_gguf_width(type);
    if (!w || i >= (array ? v->n : 1))
        return false;
    turbo_gguf_cursor c = {v->at + i * w, v->at + (i + 1) * w, false};
    uint64_t u = turbo_gguf_uint(&c, w);
    uint32_t low = (uint32_t)u;
    float f;
    switch (type) {
    case TURBO_GGUF_I8: *out = (int8_t)u; break;
    case TURBO_GGUF_I16: *out = (int16_t)u; break;
    case TURBO_GGUF_I32: *out = (int32_t)u; break;
    case TURBO_GGUF_I64: *out = (double)(int64_t)u; break;
    case TURBO_GGUF_F64: memcpy(out, &u, sizeof u); break;
    case TURBO_GGUF_F32:
        memcpy(&f, &low, sizeof f);
        *out = (double)f;
        break;
    default: *out = (double)u; break;
    }
    return true;
}

size_t turbod_gguf_count(const turbod_gguf *g)
{
    return g->n_tensors;
}

const turbod_st_tensor *turbod_gguf_at(const turbod_gguf *g, size_t i)
{
    return &g->tensors[i];
}

const turbod_st_tensor *turbod_gguf_tensor(const turbod_gguf *g, const char *name)
{
    turbod_st_tensor k = {.name = name};
    return g->n_tensors ? bsearch(&k, g->tensors, g->n_tensors, sizeof k, by_name) : NULL;
}

turbo_status turbod_gguf_header(const char *path, uint64_t max_bytes, uint8_t **out, uint64_t *len,
                                turbo_err *err)
{
    turbod_gguf *g = NULL;
    turbo_status st = turbod_gguf_open(path, &g, err);
    if (st)
        return st;
    if (g->data_at > max_bytes)
        st = turbod_err(err, TURBO_ELIMIT, "%s: its header has %llu bytes; at most %llu are read",
                        g->name, (unsigned long long)g->data_at, (unsigned long long)max_bytes);
    else if (!(*out = malloc(g->data_at + 1)))
        st = turbod_err(err, TURBO_ENOMEM, "no memory for %llu bytes of %s",
                        (unsigned long long)g->data_at, g->name);
    if (!st) {
        memcpy(*out, g->map, g->data_at);
        (*out)[g->data_at] = 0;
        *len = g->data_at;
    }
    turbod_gguf_close(g);
    return st;
}

turbo_status turbod_gguf_text(const char *path, const char *key, char **text, uint64_t *len,
                              turbo_err *err)
{
    turbod_gguf *g = NULL;
    turbo_status st = turbod_gguf_open(path, &g, err);
    if (st)
        return st;
    const turbod_gguf_value *v = turbod_gguf_find(g, key);
    if (!v || v->type != TURBO_GGUF_STRING)
        st = turbod_err(err, TURBO_ENOENT, "%s has no text %s", g->name, key);
    else if (!(*text = malloc(v->n + 1)))
        st = turbod_err(err, TURBO_ENOMEM, "no memory for %s", key);
    if (!st) {
        memcpy(*text, v->at, v->n);
        (*text)[v->n] = '\0';
        *len = v->n;
    }
    turbod_gguf_close(g);
    return st;
}
