/* core/weights/index.c: see index.h. */
#include "weights/index.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/checked.h"
#include "util/err.h"
#include "util/file.h"
#include "util/json.h"
#include "util/log.h"
#include "weights/gguf_map.h"

#define MAX_SHARDS 1024
#define MAX_INDEX (64u << 20)

struct turbod_index {
    turbod_st *shards[MAX_SHARDS];
    size_t n_shards;
    const turbod_st_tensor **tensors; /* sorted by name */
    size_t n;
    uint64_t bytes;
    turbod_st_tensor
        *expected; /* [n] tensors without a file, or mapped ones; they own their names */
    turbod_gguf *gguf; /* instead of shards */
    turbod_gguf_rows *rows; /* of mapped tensors; not NULL: they are mapped */
};

static int by_name(const void *a, const void *b)
{
    const turbod_st_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static turbo_status collect(turbod_index *ix, turbo_err *err)
{
    size_t total = 0, bytes;
    for (size_t s = 0; s < ix->n_shards; s++)
        total += turbod_st_count(ix->shards[s]);
    if (!turbod_mul(total + 1, sizeof *ix->tensors, &bytes) || !(ix->tensors = malloc(bytes)))
        return turbod_err(err, TURBO_ENOMEM, "no memory for %zu tensors", total);
    for (size_t s = 0; s < ix->n_shards; s++)
        for (size_t i = 0; i < turbod_st_count(ix->shards[s]); i++) {
            ix->tensors[ix->n] = turbod_st_at(ix->shards[s], i);
            ix->bytes += ix->tensors[ix->n++]->bytes;
        }
    qsort(ix->tensors, ix->n, sizeof *ix->tensors, by_name);
    for (size_t i = 1; i < ix->n; i++)
        if (!strcmp(ix->tensors[i - 1]->name, ix->tensors[i]->name))
            return turbod_err(err, TURBO_EDATA, "tensor %.100s is in two files",
                              ix->tensors[i]->name);
    return TURBO_OK;
}

static turbo_status open_shard(turbod_index *ix, const char *folder, const char *name,
                               turbo_err *err)
{
    for (size_t s = 0; s < ix->n_shards; s++)
        if (!strcmp(turbod_st_name(ix->shards[s]), name))
            return TURBO_OK;
    if (ix->n_shards == MAX_SHARDS)
        return turbod_err(err, TURBO_EDATA, "the index names more than %d files", MAX_SHARDS);
    turbo_status st = turbod_st_open(folder, name, &ix->shards[ix->n_shards], err);
    ix->n_shards += !st;
    return st;
}

/* Every name the map promises must be in the file it names. */
static turbo_status check_map(const turbod_index *ix, const cJSON *map, turbo_err *err)
{
    for (const cJSON *v = map->child; v; v = v->next) {
        const turbod_st_tensor *t = turbod_index_find(ix, v->string);
        const turbod_st *home = NULL;
        for (size_t s = 0; s < ix->n_shards && t; s++) {
            const turbod_st_tensor *first = turbod_st_at(ix->shards[s], 0);
            if (t >= first && t < first + turbod_st_count(ix->shards[s]))
                home = ix->shards[s];
        }
        if (!home || strcmp(turbod_st_name(home), v->valuestring))
            return turbod_err(err, TURBO_EDATA,
                              "model.safetensors.index.json: tensor %.100s is not in %.60s",
                              v->string, v->valuestring);
    }
    return TURBO_OK;
}

static const char index_file[] = "model.safetensors.index.json";

static turbo_status read_index(const char *folder, cJSON **root, turbo_err *err)
{
    uint8_t *text;
    uint64_t len;
    turbo_err why;
    turbo_status st = turbod_file_read(folder, index_file, MAX_INDEX, &text, &len, err);
    if (st)
        return st;
    st = turbod_json_parse((const char *)text, len, &turbod_json_file, root, &why);
    free(text);
    return !st ? st
               : turbod_err(err, st == TURBO_ENOMEM ? st : TURBO_EDATA, "%s: %s", index_file,
                            why.text);
}

/* Bytes of all tensors, as the index has them; 0: it does not say. */
static uint64_t total_size(const cJSON *root)
{
    double total;
    return turbod_json_num(turbod_json_get(turbod_json_get(root, "metadata"), "total_size"), 0,
                           9e15, &total)
               ? (uint64_t)total
               : 0;
}

static turbo_status open_sharded(turbod_index *ix, const char *folder, turbo_err *err)
{
    cJSON *root = NULL;
    turbo_err why;
    turbo_status st = read_index(folder, &root, err);
    if (st)
        return st;
    const cJSON *map = turbod_json_get(root, "weight_map");
    if (!cJSON_IsObject(map) || !map->child)
        st = turbod_err(err, TURBO_EDATA, "%s: weight_map is missing or empty", index_file);
    /* A file that is missing is told before what is wrong with others, in whatever order they are named. */
    for (const cJSON *v = map ? map->child : NULL; v && st != TURBO_ENOENT; v = v->next) {
        turbo_status one =
            cJSON_IsString(v)
                ? open_shard(ix, folder, v->valuestring, &why)
                : turbod_err(&why, TURBO_EDATA, "%s: %.100s names no file", index_file, v->string);
        if (one == TURBO_ENOENT)
            turbod_err(&why, one, "%s names %.80s, which is not in the folder: download it",
                       index_file, v->valuestring);
        if (one && (!st || one == TURBO_ENOENT))
            st = one, *err = why;
    }
    if (!st)
        st = collect(ix, err);
    if (!st)
        st = check_map(ix, map, err);
    const uint64_t total = total_size(root);
    if (!st && total && total != ix->bytes)
        turbod_log(TURBO_LOG_WARN, "%s: total_size says %llu bytes, the files hold %llu",
                   index_file, (unsigned long long)total, (unsigned long long)ix->bytes);
    cJSON_Delete(root);
    return st;
}

uint64_t turbod_index_said(const turbod_index *ix, const char *folder, int *more)
{
    cJSON *root = NULL;
    turbo_err err;
    const uint64_t total = read_index(folder, &root, &err) ? 0 : total_size(root);
    const cJSON *map = turbod_json_get(root, "weight_map");
    *more = 0;
    for (const cJSON *v = cJSON_IsObject(map) ? map->child : NULL; v; v = v->next)
        *more += !turbod_index_find(ix, v->string);
    cJSON_Delete(root);
    return total;
}

static bool exists(const char *folder, const char *name)
{
    char path[4096];
    struct stat st;
    size_t n = strlen(folder), m = strlen(name);
    if (n + m + 2 > sizeof path)
        return false;
    memcpy(path, folder, n);
    path[n] = '/';
    memcpy(path + n + 1, name, m + 1);
    return lstat(path, &st) == 0;
}

static turbo_status open_gguf(turbod_index *ix, const char *path, turbo_err *err)
{
    turbo_status st = turbod_gguf_open(path, &ix->gguf, err);
    if (st)
        return st;
    ix->n = turbod_gguf_count(ix->gguf);
    ix->tensors = calloc(ix->n + 1, sizeof *ix->tensors);
    if (!ix->tensors)
        return turbod_err(err, TURBO_ENOMEM, "no memory for %zu tensors", ix->n);
    for (size_t i = 0; i < ix->n; i++) {
        ix->tensors[i] = turbod_gguf_at(ix->gguf, i);
        ix->bytes += ix->tensors[i]->bytes;
    }
    return TURBO_OK;
}

turbo_status turbod_index_map(turbod_index *ix, const turbo_gguf *table,
                              const turbo_model_info *info, turbo_err *err)
{
    if (!ix->gguf || ix->rows)
        return TURBO_OK;
    if (!table)
        return turbod_err(err, TURBO_EINTERNAL, "%.100s was opened without its model",
                          turbod_gguf_name(ix->gguf));
    turbo_status st = turbod_gguf_map(ix->gguf, table, info, &ix->expected, &ix->n, &ix->rows, err);
    if (st) {
        ix->n = 0;
        return st;
    }
    ix->bytes = 0;
    for (size_t i = 0; i < ix->n; i++) { /* no more than there were, and sorted by name */
        ix->tensors[i] = &ix->expected[i];
        ix->bytes += ix->expected[i].bytes;
    }
    return TURBO_OK;
}

turbo_status turbod_index_open(const char *folder, turbod_index **out, turbo_err *err)
{
    turbod_index *ix = calloc(1, sizeof *ix);
    if (!ix)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a tensor index");
    turbo_status st;
    if (turbod_gguf_is(folder)) {
        st = open_gguf(ix, folder, err);
    } else if (exists(folder, index_file)) {
        st = open_sharded(ix, folder, err);
    } else if (exists(folder, "model.safetensors")) {
        st = open_shard(ix, folder, "model.safetensors", err);
        if (!st)
            st = collect(ix, err);
    } else if (exists(folder, "pytorch_model.bin") ||
               exists(folder, "pytorch_model.bin.index.json")) {
        st = turbod_err(err, TURBO_EUNSUPPORTED,
                        "the folder has pytorch_model.bin only; pickle files can run code and are "
                        "not read: convert the model to safetensors");
    } else {
        st = collect(ix, err);
    }
    if (st)
        turbod_index_close(ix);
    else
        *out = ix;
    return st;
}

typedef struct expected_list {
    turbod_index *ix;
    size_t cap;
    int32_t dtype;
    turbo_err *err;
} expected_list;

static turbo_status add_expected(void *ctx, const turbo_tensor_spec *theirs)
{
    turbo_tensor_spec known = {0}; /* a plugin of an older ABI has a shorter one */
    const turbo_tensor_spec *spec = &known;
    memcpy(&known, theirs, theirs->size < sizeof known ? theirs->size : sizeof known);
    expected_list *l = ctx;
    turbod_index *ix = l->ix;
    turbod_st_tensor t = {.dtype = l->dtype, .ndim = (uint32_t)spec->ndim};
    uint64_t elements, bytes, most;
    if (!spec->name || spec->ndim < 1 || spec->ndim > 4)
        return turbod_err(l->err, TURBO_EINTERNAL,
                          "the model plugin expects a tensor of %d dimensions", spec->ndim);
    if (spec->optional) /* nothing says that it will be there */
        return TURBO_OK;
    if (ix->n == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 256, size;
        turbod_st_tensor *more =
            turbod_mul(cap, sizeof *more, &size) ? realloc(ix->expected, size) : NULL;
        if (!more)
            return turbod_err(l->err, TURBO_ENOMEM, "no memory for %zu tensors", cap);
        ix->expected = more;
        l->cap = cap;
    }
    for (int32_t i = 0; i < spec->ndim; i++)
        t.dims[i] = (uint64_t)spec->dims[i];
    uint64_t size = l->dtype == TURBO_F32 ? 4 : 2;
    if (!turbod_numel(t.dims, t.ndim, &elements) || !turbod_mul(elements, size, &bytes) ||
        !turbod_add(ix->bytes, bytes, &most))
        return turbod_err(l->err, TURBO_EDATA, "tensor %.100s has more elements than fit",
                          spec->name);
    t.bytes = bytes;
    t.name = strdup(spec->name);
    if (!t.name)
        return turbod_err(l->err, TURBO_ENOMEM, "no memory for a tensor's name");
    ix->expected[ix->n++] = t;
    ix->bytes = most;
    return TURBO_OK;
}

turbo_status turbod_index_expected(const turbo_host *host, const turbo_model_vtbl *vtbl,
                                   const turbo_config *config, int32_t dtype, turbod_index **out,
                                   turbo_err *err)
{
    turbod_index *ix = calloc(1, sizeof *ix);
    if (!ix)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a tensor index");
    expected_list l = {.ix = ix, .dtype = dtype, .err = err};
    size_t bytes;
    turbo_status st = vtbl->expect(host, config, add_expected, &l, err);
    if (!st &&
        (!turbod_mul(ix->n + 1, sizeof *ix->tensors, &bytes) || !(ix->tensors = malloc(bytes))))
        st = turbod_err(err, TURBO_ENOMEM, "no memory for %zu tensors", ix->n);
    if (st) {
        turbod_index_close(ix);
        return st;
    }
    for (size_t i = 0; i < ix->n; i++)
        ix->tensors[i] = &ix->expected[i];
    qsort(ix->tensors, ix->n, sizeof *ix->tensors, by_name);
    *out = ix;
    return TURBO_OK;
}

void turbod_index_close(turbod_index *ix)
{
    if (!ix)
        return;
    for (size_t i = 0; i < ix->n && ix->expected; i++)
        free((char *)(uintptr_t)ix->expected[i].name);
    free(ix->expected);
    for (size_t s = 0; s < ix->n_shards; s++)
        turbod_st_close(ix->shards[s]);
    turbod_gguf_close(ix->gguf);
    free(ix->rows);
    free(ix->tensors);
    free(ix);
}

size_t turbod_index_place(const turbod_index *ix, const char *name)
{
    size_t lo = 0, hi = ix->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(name, ix->tensors[mid]->name);
        if (!c)
            return mid;
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return ix->n;
}

const turbod_st_tensor *turbod_index_find(const turbod_index *ix, const char *name)
{
    size_t at = turbod_index_place(ix, name);
    return at < ix->n ? ix->tensors[at] : NULL;
}

size_t turbod_index_count(const turbod_index *ix)
{
    return ix->n;
}

bool turbod_index_absent(const turbod_index *ix)
{
    return !ix->n_shards && !ix->gguf;
}

const turbod_st_tensor *turbod_index_at(const turbod_index *ix, size_t i)
{
    return ix->tensors[i];
}

uint64_t turbod_index_bytes(const turbod_index *ix)
{
    return ix->bytes;
}

turbo_status turbod_index_unchanged(const turbod_index *ix, turbo_err *err)
{
    turbo_status st = ix->gguf ? turbod_gguf_unchanged(ix->gguf, err) : TURBO_OK;
    for (size_t s = 0; s < ix->n_shards && !st; s++)
        st = turbod_st_unchanged(ix->shards[s], err);
    return st;
}
