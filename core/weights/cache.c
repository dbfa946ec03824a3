/* core/weights/cache.c: see cache.h. Main thread; checksums are compared on the device's threads. */
#include "weights/cache.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/checked.h"
#include "util/err.h"
#include "util/log.h"
#include "util/sha256.h"
#include "weights/cache_file.h"
#include "weights/fingerprint.h"

struct turbod_cache {
    turbod_cache_opts o;
    int dir;
    char name[64]; /* of the file, without suffix */
    uint8_t identity[32];
    /* A file that is used. */
    uint8_t *map;
    uint64_t size;
    const turbod_cache_record *records;
    uint64_t n_records, n_used;
    bool lacking; /* a matrix was asked for that it does not have */
    turbod_cache_writer *writer; /* or one that is written */
};

static uint64_t pieces_of(uint64_t bytes)
{
    return bytes / TURBOD_CACHE_PIECE + (bytes % TURBOD_CACHE_PIECE != 0);
}

/* ---- whose file ------------------------------------------------------------------------------------------------ */

static bool identify(turbod_cache *c)
{
    uint8_t model[32];
    char kind[256], text[1024];
    turbo_err err = {{0}};
    if (!turbok_image_kind(c->o.device, kind, sizeof kind)) {
        turbod_log(TURBO_LOG_INFO, "cache_dir: %s keeps no repacked weights on disk",
                   turbok_device_name(c->o.device));
        return false;
    }
    if (turbod_fingerprint_dated(c->o.folder, model, &err)) {
        turbod_log(TURBO_LOG_WARN, "cache_dir is not used: %s", err.text);
        return false;
    }
    int n = snprintf(text, sizeof text, "turbo weights 1\n%s\n%s\n", kind, c->o.options);
    if (n < 0 || (size_t)n + sizeof model > sizeof text)
        return false;
    memcpy(text + n, model, sizeof model);
    turbod_sha256(text, (size_t)n + sizeof model, c->identity);
    n = snprintf(c->name, sizeof c->name, "turbo-");
    for (int i = 0; i < 16; i++)
        n += snprintf(c->name + n, sizeof c->name - (size_t)n, "%02x", c->identity[i]);
    return true;
}

static bool open_dir(turbod_cache *c)
{
    if (mkdir(c->o.dir, 0700) && errno != EEXIST)
        turbod_log(TURBO_LOG_WARN, "cache_dir: %s cannot be made: %s", c->o.dir, strerror(errno));
    c->dir = open(c->o.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (c->dir < 0)
        turbod_log(TURBO_LOG_WARN, "cache_dir: %s cannot be opened: %s; it is not used", c->o.dir,
                   strerror(errno));
    return c->dir >= 0;
}

/* ---- checking --------------------------------------------------------------------------------------------------- */

typedef struct verify {
    const uint8_t *map;
    const uint64_t *sums;
    uint64_t end; /* of what has sums */
    _Atomic uint64_t next;
    _Atomic bool bad;
} verify;

/* Mapping a piece at once is cheaper than a fault for every few pages. */
static void populate(const uint8_t *p, uint64_t n)
{
#ifdef MADV_POPULATE_READ
    madvise((void *)(uintptr_t)p, n, MADV_POPULATE_READ); /* older kernels: the faults do it */
#else
    (void)p;
    (void)n;
#endif
}

static void verify_part(void *ctx, int i, int n)
{
    verify *v = ctx;
    const uint64_t at_once = 8;
    uint64_t count = pieces_of(v->end), k;
    (void)i;
    (void)n;
    while (!v->bad && (k = atomic_fetch_add(&v->next, at_once)) < count) {
        uint64_t stop = k + at_once < count ? k + at_once : count;
        uint64_t from = k * TURBOD_CACHE_PIECE, to = stop * TURBOD_CACHE_PIECE;
        populate(v->map + from, (to < v->end ? to : v->end) - from);
        for (; k < stop; k++) {
            from = k ? k * TURBOD_CACHE_PIECE : TURBOD_CACHE_FRONT;
            to = (k + 1) * TURBOD_CACHE_PIECE < v->end ? (k + 1) * TURBOD_CACHE_PIECE : v->end;
            if (turbod_cache_sum(v->map + from, to - from) != v->sums[k])
                v->bad = true;
        }
    }
}

/* NULL: the mapped file is what its writer wrote, for this identity. */
static const char *fault(turbod_cache *c)
{
    turbod_cache_front f;
    uint8_t digest[32];
    memcpy(&f, c->map, sizeof f);
    if (memcmp(f.magic, "turbo-w", 8) != 0)
        return "it is no file of repacked weights";
    if (!turbod_equal32(f.identity, c->identity))
        return "it is of another model, build or set of options";
    uint64_t table = c->size - f.table_at;
    if (f.size != c->size || f.table_at > c->size || f.table_at < TURBOD_CACHE_FRONT ||
        f.table_at % TURBOD_CACHE_FRONT || f.n_sums != pieces_of(f.table_at) ||
        f.n_sums > table / sizeof(uint64_t) ||
        f.n_records != (table - f.n_sums * sizeof(uint64_t)) / sizeof(turbod_cache_record) ||
        table != f.n_records * sizeof(turbod_cache_record) + f.n_sums * sizeof(uint64_t))
        return "it is truncated or damaged";
    turbod_sha256(c->map + f.table_at, table, digest);
    if (!turbod_equal32(digest, f.digest))
        return "its table is damaged";
    c->records = (const turbod_cache_record *)(const void *)(c->map + f.table_at);
    c->n_records = f.n_records;
    for (uint64_t i = 0; i < c->n_records; i++)
        if (!turbod_range(c->records[i].at, c->records[i].bytes, f.table_at) ||
            c->records[i].at % TURBOD_CACHE_FRONT)
            return "its table is damaged";
    verify v = {.map = c->map,
                .sums = (const uint64_t *)(const void *)(c->records + c->n_records),
                .end = f.table_at};
    turbok_parallel(c->o.device, verify_part, &v);
    return v.bad ? "its contents are damaged" : NULL;
}

static void unmap(turbod_cache *c)
{
    if (c->map)
        munmap(c->map, c->size);
    c->map = NULL;
    c->records = NULL;
    c->n_records = 0;
}

/* Maps the file when there is one that may be used. */
static bool map_file(turbod_cache *c)
{
    char file[80];
    struct stat st;
    const char *why = NULL;
    snprintf(file, sizeof file, "%s" TURBOD_CACHE_SUFFIX, c->name);
    int fd = openat(c->dir, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return false;
    if (fd < 0 || fstat(fd, &st))
        why = strerror(errno);
    else if (!S_ISREG(st.st_mode) || (st.st_uid != geteuid() && st.st_uid != 0) ||
             (st.st_mode & (S_IWGRP | S_IWOTH)))
        why = "it is another user's, or others may write it";
    else if (st.st_size < (off_t)TURBOD_CACHE_FRONT)
        why = "it is truncated or damaged";
    if (!why) {
        c->size = (uint64_t)st.st_size;
        void *map = mmap(NULL, c->size, PROT_READ, MAP_SHARED, fd, 0);
        c->map = map == MAP_FAILED ? NULL : map;
        if (!c->map) {
            why = strerror(errno);
        } else {
            madvise(map, c->size, MADV_HUGEPAGE); /* advice: where the page cache has such pages */
            why = fault(c);
        }
    }
    if (!why)
        futimens(fd, NULL); /* used now; of a folder that cannot be written it stays as it is */
    if (fd >= 0)
        close(fd);
    if (why) {
        unmap(c);
        turbod_log(TURBO_LOG_WARN, "cache_dir: %s/%s is not used: %s; the weights are repacked",
                   c->o.dir, file, why);
    }
    return !why;
}

turbod_cache *turbod_cache_open(const turbod_cache_opts *o)
{
    turbod_cache *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->o = *o;
    c->dir = -1;
    if (!identify(c) || !open_dir(c)) {
        turbod_cache_close(c);
        return NULL;
    }
    turbod_cache_sweep(c->dir);
    if (!map_file(c) && !(c->writer = turbod_cache_writer_open(c->dir, c->name, &c->o))) {
        turbod_cache_close(c);
        return NULL;
    }
    return c;
}

bool turbod_cache_get(turbod_cache *c, const uint8_t key[32], turbo_linear **w, uint64_t *bytes)
{
    turbo_err err = {{0}};
    if (!c || !c->map)
        return false;
    for (uint64_t k = 0; k < c->n_records;
         k++) { /* asked for in the order in which they were put */
        const turbod_cache_record *r = &c->records[(c->n_used + k) % c->n_records];
        uint64_t used;
        if (!turbod_equal32(r->key, key))
            continue;
        if (turbok_image_open(c->o.device, c->map + r->at, r->bytes, &used, w, &err)) {
            turbod_log(TURBO_LOG_WARN, "cache_dir: %s: %s", c->name, err.text);
            break;
        }
        *bytes = r->bytes;
        c->n_used += k + 1;
        return true;
    }
    c->lacking = true;
    return false;
}

void turbod_cache_put(turbod_cache *c, const uint8_t key[32], const turbo_linear *w)
{
    if (!c || !c->writer || turbod_cache_writer_add(c->writer, key, w))
        return;
    turbod_cache_writer_close(c->writer);
    c->writer = NULL;
}

void turbod_cache_keep(turbod_cache *c)
{
    char file[80];
    if (!c)
        return;
    if (c->writer) {
        turbod_cache_writer_end(c->writer, c->identity);
        turbod_cache_writer_close(c->writer);
        c->writer = NULL;
    }
    if (c->map)
        turbod_log(TURBO_LOG_INFO, "cache_dir: %llu matrices of %s/%s" TURBOD_CACHE_SUFFIX,
                   (unsigned long long)c->n_used, c->o.dir, c->name);
    if (!c->lacking)
        return;
    turbod_log(
        TURBO_LOG_WARN,
        "cache_dir: %s lacks matrices that the model plugin asks for; it is removed, and made "
        "anew at the next start",
        c->name);
    snprintf(file, sizeof file, "%s" TURBOD_CACHE_SUFFIX, c->name);
    unlinkat(c->dir, file, 0);
}

void turbod_cache_close(turbod_cache *c)
{
    if (!c)
        return;
    turbod_cache_writer_close(c->writer);
    unmap(c);
    if (c->dir >= 0)
        close(c->dir);
    free(c);
}
