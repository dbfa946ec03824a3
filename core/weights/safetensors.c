/* core/weights/safetensors.c: see safetensors.h. The checks stand in the order in which each makes
 * the next one safe. */
#include "weights/safetensors.h"

#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "util/checked.h"
#include "util/err.h"
#include "util/file.h"
#include "util/json.h"

#define MAX_HEADER 100000000u /* the reference implementation's limit */
#define MAX_TENSORS 100000u
#define MAX_NAME 512u
#define MAX_DIM ((int64_t)1 << 48)

struct turbod_st {
    char name[256];
    int fd;
    bool in_memory;
    struct stat stat;
    uint8_t *map;
    uint64_t size;
    cJSON *header; /* owns the tensors' names */
    turbod_st_tensor *tensors;
    size_t n;
};

static const struct {
    const char *name;
    uint32_t bits;
    int32_t dtype;
} dtypes[] = {
    {"F32", 32, TURBO_F32}, {"F16", 16, TURBO_F16}, {"BF16", 16, TURBO_BF16}, {"I8", 8, TURBO_I8},
    {"U8", 8, TURBO_U8},    {"I32", 32, TURBO_I32}, {"I64", 64, TURBO_I64},   {"BOOL", 8, -1},
    {"F64", 64, -1},        {"U16", 16, -1},        {"I16", 16, -1},          {"U32", 32, -1},
    {"U64", 64, -1},        {"C64", 64, -1},        {"F8_E5M2", 8, -1},       {"F8_E4M3", 8, -1},
    {"F8_E8M0", 8, -1},     {"F8_E4M3FNUZ", 8, -1}, {"F8_E5M2FNUZ", 8, -1},   {"F4", 4, -1},
    {"F6_E2M3", 6, -1},     {"F6_E3M2", 6, -1},
};

#define FAULT(...) turbod_err(err, TURBO_EDATA, __VA_ARGS__)

static turbo_status read_shape(const turbod_st *f, const cJSON *shape, turbod_st_tensor *t,
                               turbo_err *err)
{
    if (!cJSON_IsArray(shape))
        return FAULT("%s: tensor %.100s: shape is not a list", f->name, t->name);
    for (const cJSON *d = shape->child; d; d = d->next) {
        int64_t v;
        if (t->ndim == 8)
            return FAULT("%s: tensor %.100s has more than 8 dimensions", f->name, t->name);
        if (!turbod_json_int(d, 0, MAX_DIM, &v))
            return FAULT("%s: tensor %.100s: a dimension is not an integer of 0 to 2^48", f->name,
                         t->name);
        t->dims[t->ndim++] = (uint64_t)v;
    }
    return TURBO_OK;
}

static turbo_status read_dtype(const turbod_st *f, const cJSON *v, turbod_st_tensor *t,
                               uint32_t *bits, turbo_err *err)
{
    if (!cJSON_IsString(v))
        return FAULT("%s: tensor %.100s: dtype is not a string", f->name, t->name);
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (!strcmp(v->valuestring, dtypes[i].name)) {
            t->dtype = dtypes[i].dtype;
            *bits = dtypes[i].bits;
            memcpy(t->dtype_name, dtypes[i].name, strlen(dtypes[i].name) + 1);
            return TURBO_OK;
        }
    return FAULT("%s: tensor %.100s has the unknown dtype \"%.20s\"", f->name, t->name,
                 v->valuestring);
}

/* One entry of the header. data_bytes is the size of the part behind it. */
static turbo_status read_tensor(const turbod_st *f, const cJSON *v, uint64_t data_at,
                                uint64_t data_bytes, turbod_st_tensor *t, turbo_err *err)
{
    t->name = v->string;
    size_t len = strlen(t->name);
    if (len < 1 || len > MAX_NAME)
        return FAULT("%s: a tensor name has %zu bytes; 1 to %u are possible", f->name, len,
                     MAX_NAME);
    if (!cJSON_IsObject(v))
        return FAULT("%s: tensor %.100s is not an object", f->name, t->name);
    for (const cJSON *m = v->child; m; m = m->next)
        if (strcmp(m->string, "dtype") && strcmp(m->string, "shape") &&
            strcmp(m->string, "data_offsets"))
            return FAULT("%s: tensor %.100s has the unknown key \"%.32s\"", f->name, t->name,
                         m->string);
    uint32_t bits = 0;
    turbo_status st = read_dtype(f, turbod_json_get(v, "dtype"), t, &bits, err);
    if (!st)
        st = read_shape(f, turbod_json_get(v, "shape"), t, err);
    if (st)
        return st;
    uint64_t n, total_bits;
    if (!turbod_numel(t->dims, t->ndim, &n) || __builtin_mul_overflow(n, bits, &total_bits))
        return FAULT("%s: tensor %.100s: the product of its dimensions overflows", f->name,
                     t->name);
    if (total_bits % 8)
        return FAULT("%s: tensor %.100s does not fill whole bytes", f->name, t->name);
    const cJSON *off = turbod_json_get(v, "data_offsets");
    int64_t b, e;
    if (cJSON_GetArraySize(off) != 2 || !cJSON_IsArray(off) ||
        !turbod_json_int(off->child, 0, INT64_MAX >> 10, &b) ||
        !turbod_json_int(off->child->next, 0, INT64_MAX >> 10, &e))
        return FAULT("%s: tensor %.100s: data_offsets are not two integers", f->name, t->name);
    if (b > e || (uint64_t)e > data_bytes)
        return FAULT("%s: tensor %.100s lies at %lld..%lld, the file holds %llu bytes of data",
                     f->name, t->name, (long long)b, (long long)e, (unsigned long long)data_bytes);
    t->bytes = (uint64_t)(e - b);
    if (t->bytes != total_bits / 8)
        return FAULT("%s: tensor %.100s has %llu bytes of data, its shape needs %llu", f->name,
                     t->name, (unsigned long long)t->bytes, (unsigned long long)(total_bits / 8));
    t->data = f->map + data_at + b;
    t->fd = f->fd;
    t->in_memory = f->in_memory;
    t->at = data_at + (uint64_t)b;
    return TURBO_OK;
}

static int by_data(const void *a, const void *b)
{
    const turbod_st_tensor *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; /* empty tensors first */
}

/* The tensors tile the data: no hole, no overlap, no tail. */
static turbo_status check_tiling(const turbod_st *f, uint64_t data_at, turbo_err *err)
{
    const uint8_t *at = f->map + data_at;
    for (size_t i = 0; i < f->n; i++) {
        const turbod_st_tensor *t = &f->tensors[i];
        if (t->data != at)
            return FAULT("%s: tensor %.100s %s the one before it", f->name, t->name,
                         t->data < at ? "overlaps" : "leaves a hole behind");
        at += t->bytes;
    }
    if (at != f->map + f->size)
        return FAULT("%s: %llu bytes at the end belong to no tensor", f->name,
                     (unsigned long long)(f->map + f->size - at));
    return TURBO_OK;
}

static turbo_status check_metadata(const turbod_st *f, const cJSON *m, turbo_err *err)
{
    size_t total = 0;
    if (!cJSON_IsObject(m))
        return FAULT("%s: __metadata__ is not an object", f->name);
    for (const cJSON *v = m->child; v; v = v->next) {
        if (!cJSON_IsString(v))
            return FAULT("%s: __metadata__ may hold strings only", f->name);
        total += strlen(v->string) + strlen(v->valuestring);
        if (total > 1u << 20)
            return FAULT("%s: __metadata__ is larger than 1 MiB", f->name);
    }
    return TURBO_OK;
}

static turbo_status read_header(turbod_st *f, turbo_err *err)
{
    uint64_t len = 0;
    for (unsigned i = 0; i < 8; i++)
        len |= (uint64_t)f->map[i] << (8 * i);
    if (len < 2 || len > MAX_HEADER || len > f->size - 8)
        return FAULT("%s: the header says it has %llu bytes; the file has %llu. It is truncated or "
                     "no safetensors file",
                     f->name, (unsigned long long)len, (unsigned long long)f->size);
    const char *text = (const char *)f->map + 8;
    if (text[0] != '{')
        return FAULT("%s: the header does not begin with '{'", f->name);
    size_t used = len;
    while (used && text[used - 1] == ' ')
        used--;
    if (text[used - 1] != '}')
        return FAULT("%s: the header does not end with '}' and spaces", f->name);
    turbo_err why;
    turbo_status st = turbod_json_parse(text, used, &turbod_json_file, &f->header, &why);
    if (st)
        return turbod_err(err, st == TURBO_ENOMEM ? st : TURBO_EDATA, "%s: header: %s", f->name,
                          why.text);
    size_t count = 0;
    for (const cJSON *v = f->header->child; v; v = v->next)
        count++;
    if (count > MAX_TENSORS)
        return FAULT("%s: %zu tensors; at most %u", f->name, count, MAX_TENSORS);
    f->tensors = calloc(count + 1, sizeof *f->tensors);
    if (!f->tensors)
        return turbod_err(err, TURBO_ENOMEM, "no memory for %zu tensors", count);
    for (const cJSON *v = f->header->child; v; v = v->next) {
        st = strcmp(v->string, "__metadata__")
                 ? read_tensor(f, v, 8 + len, f->size - 8 - len, &f->tensors[f->n++], err)
                 : check_metadata(f, v, err);
        if (st)
            return st;
    }
    qsort(f->tensors, f->n, sizeof *f->tensors, by_data);
    return check_tiling(f, 8 + len, err);
}

turbo_status turbod_st_open(const char *folder, const char *name, turbod_st **out, turbo_err *err)
{
    turbod_st *f = calloc(1, sizeof *f);
    if (!f)
        return turbod_err(err, TURBO_ENOMEM, "no memory for %s", name);
    f->fd = -1;
    turbo_status st = turbod_file_open(folder, name, &f->fd, &f->stat, err);
    if (st)
        goto out;
    strncpy(f->name, name, sizeof f->name - 1);
    if (f->stat.st_size < 10) {
        st = FAULT("%s has %lld bytes; it is truncated or no safetensors file", f->name,
                   (long long)f->stat.st_size);
        goto out;
    }
    f->size = (uint64_t)f->stat.st_size;
    void *map = mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, f->fd, 0);
    if (map == MAP_FAILED) {
        st = turbod_err(err, TURBO_ENOMEM, "%s: cannot map %llu bytes", f->name,
                        (unsigned long long)f->size);
        goto out;
    }
    f->map = map;
    madvise(map, f->size, MADV_SEQUENTIAL); /* each tensor is read once, front to back */
    struct statfs fs;
    f->in_memory = !fstatfs(f->fd, &fs) && fs.f_type == TMPFS_MAGIC;
    st = read_header(f, err);
out:
    if (st)
        turbod_st_close(f);
    else
        *out = f;
    return st;
}

turbo_status turbod_st_unchanged(const turbod_st *f, turbo_err *err)
{
    struct stat now;
    if (fstat(f->fd, &now) || now.st_size != f->stat.st_size || now.st_ino != f->stat.st_ino ||
        now.st_mtim.tv_sec != f->stat.st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != f->stat.st_mtim.tv_nsec)
        return FAULT("%s was changed while it was being loaded; start again", f->name);
    return TURBO_OK;
}

void turbod_st_close(turbod_st *f)
{
    if (!f)
        return;
    if (f->map)
        munmap(f->map, f->size);
    if (f->fd >= 0)
        close(f->fd);
    cJSON_Delete(f->header);
    free(f->tensors);
    free(f);
}

size_t turbod_st_count(const turbod_st *f)
{
    return f->n;
}

const turbod_st_tensor *turbod_st_at(const turbod_st *f, size_t i)
{
    return &f->tensors[i];
}

const char *turbod_st_name(const turbod_st *f)
{
    return f->name;
}

void turbod_st_release(const turbod_st_tensor *t)
{
    /* Whole pages inside the tensor only: its neighbours may not have been read yet. */
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)t->data + page - 1) & ~(page - 1);
    uintptr_t to = ((uintptr_t)t->data + t->bytes) & ~(page - 1);
    if (to > from)
        madvise((void *)from, to - from, MADV_DONTNEED); /* advice only: failure costs memory */
}
