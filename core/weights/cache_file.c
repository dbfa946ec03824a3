/* core/weights/cache_file.c: see cache_file.h. Main thread; pieces are summed and written on the device's threads. */
#include "weights/cache_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "util/err.h"
#include "util/log.h"
#include "util/sha256.h"

/* Writes begin and end on this, so that the page cache can hold a file in pages as large. */
#define STAGE ((uint64_t)2 << 20)

struct turbod_cache_writer {
    int dir, fd;
    char part[80], file[80]; /* its name while it is written, and then */
    const turbod_cache_opts *o;
    uint64_t at; /* bytes of the file so far, with those on the stage */
    uint8_t *stage; /* [STAGE] the last at % STAGE of them */
    turbod_cache_record *records;
    uint64_t *sums;
    uint64_t n_records, n_sums, cap_records, cap_sums;
    int error; /* errno of the first write that failed */
};

/* ---- checksum ----------------------------------------------------------------------------------------------- */

typedef uint32_t word8 __attribute__((vector_size(32)));
typedef uint64_t lane8 __attribute__((vector_size(64)));

/* Sums of words and sums of these sums (Fletcher 1982), 8 lanes beside each other; of a piece none overflows. What
 * both leave over goes through SHA-256. */
uint64_t turbod_cache_sum(const void *data, uint64_t n)
{
    const uint8_t *p = data;
    lane8 sums[2] = {{0}, {0}};
    for (; n >= 32; n -= 32, p += 32) {
        word8 w;
        memcpy(&w, p, sizeof w);
        sums[0] += __builtin_convertvector(w, lane8);
        sums[1] += sums[0];
    }
    uint8_t rest[sizeof sums + 40] = {0}, digest[32];
    memcpy(rest, sums, sizeof sums);
    memcpy(rest + sizeof sums, p, n);
    rest[sizeof rest - 1] = (uint8_t)n;
    turbod_sha256(rest, sizeof rest, digest);
    uint64_t sum;
    memcpy(&sum, digest, sizeof sum);
    return sum;
}

/* ---- writing ------------------------------------------------------------------------------------------------- */

static bool write_at(int fd, const uint8_t *p, uint64_t n, uint64_t at)
{
    while (n) {
        ssize_t k = pwrite(fd, p, n, (off_t)at);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0) {
            errno = k ? errno : ENOSPC;
            return false;
        }
        p += k;
        n -= (uint64_t)k;
        at += (uint64_t)k;
    }
    return true;
}

static bool grow(void **p, uint64_t *cap, uint64_t need, size_t size)
{
    if (need <= *cap)
        return true;
    uint64_t more = need > 2 * *cap ? need : 2 * *cap;
    void *q = more > SIZE_MAX / size ? NULL : realloc(*p, more * size);
    if (!q)
        return false;
    *p = q;
    *cap = more;
    return true;
}

typedef struct batch {
    turbod_cache_writer *w;
    const uint8_t *p;
    uint64_t n, at, first; /* first: number of its first sum; the batch begins on a STAGE */
    _Atomic int error;
} batch;

static void write_part(void *ctx, int i, int n)
{
    batch *b = ctx;
    uint64_t stages = (b->n + STAGE - 1) / STAGE;
    for (uint64_t s = stages * (uint64_t)i / (uint64_t)n;
         s < stages * ((uint64_t)i + 1) / (uint64_t)n && !b->error; s++) {
        uint64_t from = s * STAGE, size = b->n - from < STAGE ? b->n - from : STAGE;
        for (uint64_t k = 0; k < size; k += TURBOD_CACHE_PIECE) {
            uint64_t skip = b->at + from + k ? 0 : TURBOD_CACHE_FRONT; /* the front has a digest */
            uint64_t m = size - k < TURBOD_CACHE_PIECE ? size - k : TURBOD_CACHE_PIECE;
            b->w->sums[b->first + (from + k) / TURBOD_CACHE_PIECE] =
                turbod_cache_sum(b->p + from + k + skip, m - skip);
        }
        if (!write_at(b->w->fd, b->p + from, size, b->at + from))
            b->error = errno;
    }
}

/* Bytes that begin on a STAGE of the file, at `at`: their sums, and to the disk. */
static bool write_batch(turbod_cache_writer *w, const uint8_t *p, uint64_t n, uint64_t at)
{
    uint64_t pieces = (n + TURBOD_CACHE_PIECE - 1) / TURBOD_CACHE_PIECE;
    batch b = {.w = w, .p = p, .n = n, .at = at, .first = w->n_sums};
    if (!grow((void **)&w->sums, &w->cap_sums, w->n_sums + pieces, sizeof *w->sums)) {
        w->error = ENOMEM;
        return false;
    }
    turbok_parallel(w->o->device, write_part, &b);
    w->n_sums += pieces;
    w->error = b.error;
    return !w->error;
}

/* p NULL: zeros. */
static bool append(void *ctx, const void *p, uint64_t n)
{
    turbod_cache_writer *w = ctx;
    while (n) {
        uint64_t staged = w->at % STAGE, k = STAGE - staged;
        if (!staged && p && n >= STAGE) {
            k = n / STAGE * STAGE;
            if (!write_batch(w, p, k, w->at))
                return false;
        } else {
            k = n < k ? n : k;
            if (p)
                memcpy(w->stage + staged, p, k);
            else
                memset(w->stage + staged, 0, k);
            if (staged + k == STAGE && !write_batch(w, w->stage, STAGE, w->at - staged))
                return false;
        }
        p = p ? (const uint8_t *)p + k : NULL;
        n -= k;
        w->at += k;
    }
    return true;
}

static bool align(turbod_cache_writer *w)
{
    return append(w, NULL, (TURBOD_CACHE_FRONT - w->at % TURBOD_CACHE_FRONT) % TURBOD_CACHE_FRONT);
}

static bool failed(turbod_cache_writer *w)
{
    turbod_log(TURBO_LOG_WARN,
               "cache_dir: %s cannot be written: %s; the model will be repacked at the next start",
               w->file, strerror(w->error ? w->error : ENOMEM));
    return false;
}

bool turbod_cache_writer_add(turbod_cache_writer *w, const uint8_t key[32],
                             const turbo_linear *matrix)
{
    if (!grow((void **)&w->records, &w->cap_records, w->n_records + 1, sizeof *w->records) ||
        !align(w))
        return failed(w);
    turbod_cache_record r = {.at = w->at, .bytes = turbok_image_bytes(matrix)};
    memcpy(r.key, key, 32);
    w->records[w->n_records++] = r;
    return turbok_image_write(matrix, append, w) || failed(w);
}

/* ---- the folder ---------------------------------------------------------------------------------------------- */

static bool ours(const char *name, const char *suffix)
{
    return !strncmp(name, "turbo-", 6) && strspn(name + 6, "0123456789abcdef") == 32 &&
           !strcmp(name + 38, suffix);
}

static DIR *list(int dir)
{
    int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d && fd >= 0)
        close(fd);
    return d;
}

/* Takes the lock of a writer; the file still has that name then, and keeps it until the lock goes. */
static bool lock_part(int dir, const char *part, int fd, struct stat *held)
{
    struct stat named;
    return !flock(fd, LOCK_EX | LOCK_NB) && !fstat(fd, held) &&
           !fstatat(dir, part, &named, AT_SYMLINK_NOFOLLOW) && held->st_ino == named.st_ino;
}

void turbod_cache_sweep(int dir)
{
    DIR *d = list(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        struct stat st;
        int fd = ours(e->d_name, TURBOD_CACHE_PART)
                     ? openat(dir, e->d_name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
                     : -1;
        if (fd >= 0 && lock_part(dir, e->d_name, fd, &st))
            unlinkat(dir, e->d_name, 0);
        if (fd >= 0)
            close(fd);
    }
    if (d)
        closedir(d);
}

/* Bytes of cache files, and the one used longest ago, in *old; "" when there is none. */
static uint64_t survey(int dir, char old[256])
{
    DIR *d = list(dir);
    struct timespec oldest = {0};
    uint64_t sum = 0;
    *old = '\0';
    for (struct dirent *e; d && (e = readdir(d));) {
        struct stat st;
        if (!ours(e->d_name, TURBOD_CACHE_SUFFIX) ||
            fstatat(dir, e->d_name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
            continue;
        sum += (uint64_t)st.st_size;
        if (!*old || st.st_mtim.tv_sec < oldest.tv_sec ||
            (st.st_mtim.tv_sec == oldest.tv_sec && st.st_mtim.tv_nsec < oldest.tv_nsec)) {
            oldest = st.st_mtim;
            snprintf(old, 256, "%s", e->d_name);
        }
    }
    if (d)
        closedir(d);
    return sum;
}

/* Removes files until `need` bytes more stay below the bound. Who has one of them mapped keeps it. */
static void make_room(int dir, uint64_t need, uint64_t most)
{
    char old[256];
    while (survey(dir, old) + need > most && *old) {
        turbod_log(TURBO_LOG_INFO, "cache_dir: %s makes room", old);
        if (unlinkat(dir, old, 0))
            return;
    }
}

/* The part of this process, for turbod_cache_abandon: the name is there before the folder is. Models load one after
 * the other, so one place is enough. */
static char begun[80];
static _Atomic int begun_in = -1;

void turbod_cache_abandon(void)
{
    int dir = begun_in;
    if (dir >= 0)
        unlinkat(dir, begun, 0);
}

/* The part file, locked: nobody else writes it. -1: somebody does, or it cannot be. */
static int open_part(int dir, const char *part)
{
    struct stat held;
    int fd = openat(dir, part, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0)
        return -1;
    if (lock_part(dir, part, fd, &held) && S_ISREG(held.st_mode) && held.st_uid == geteuid() &&
        !ftruncate(fd, 0))
        return fd;
    close(fd);
    errno = EWOULDBLOCK; /* it was another's, or is gone by now */
    return -1;
}

turbod_cache_writer *turbod_cache_writer_open(int dir, const char *name, const turbod_cache_opts *o)
{
    char part[80];
    struct statvfs disk;
    snprintf(part, sizeof part, "%.64s" TURBOD_CACHE_PART, name);
    if (o->expected > o->most) {
        turbod_log(
            TURBO_LOG_WARN,
            "cache_dir: the model takes about %llu MiB, cache_dir_size is %llu MiB; it is not "
            "kept",
            (unsigned long long)(o->expected >> 20), (unsigned long long)(o->most >> 20));
        return NULL;
    }
    make_room(dir, o->expected, o->most);
    if (!fstatvfs(dir, &disk) && (uint64_t)disk.f_bavail * disk.f_frsize < o->expected) {
        turbod_log(
            TURBO_LOG_WARN,
            "cache_dir: %s has %llu MiB free, the model takes about %llu MiB; it is not kept",
            o->dir, (unsigned long long)((uint64_t)disk.f_bavail * disk.f_frsize >> 20),
            (unsigned long long)(o->expected >> 20));
        return NULL;
    }
    int fd = open_part(dir, part);
    if (fd < 0 && errno == EWOULDBLOCK) {
        turbod_log(TURBO_LOG_INFO, "cache_dir: another process writes %s", name);
        return NULL;
    }
    turbod_cache_writer *w = fd < 0 ? NULL : calloc(1, sizeof *w);
    if (w)
        w->stage = malloc(STAGE);
    if (!w || !w->stage) {
        turbod_log(TURBO_LOG_WARN, "cache_dir: %s/%s cannot be made: %s; the model is not kept",
                   o->dir, part, strerror(fd < 0 ? errno : ENOMEM));
        if (fd >= 0)
            close(fd);
        free(w);
        return NULL;
    }
    w->dir = dir;
    w->fd = fd;
    w->o = o;
    snprintf(w->part, sizeof w->part, "%s", part);
    snprintf(w->file, sizeof w->file, "%.64s" TURBOD_CACHE_SUFFIX, name);
    memcpy(begun, w->part, sizeof begun);
    begun_in = dir;
    append(w, NULL, TURBOD_CACHE_FRONT); /* the stage holds it */
    return w;
}

/* Nothing is synced: a file that lost some of its pages fails its checksums and is made anew. */
bool turbod_cache_writer_end(turbod_cache_writer *w, const uint8_t identity[32])
{
    if (!align(w))
        return failed(w);
    uint64_t table_at = w->at, staged = w->at % STAGE;
    if (staged && !write_batch(w, w->stage, staged, w->at - staged))
        return failed(w);
    size_t records = w->n_records * sizeof *w->records, sums = w->n_sums * sizeof *w->sums;
    uint8_t *table = malloc(records + sums + 1);
    if (!table)
        return failed(w);
    if (records)
        memcpy(table, w->records, records);
    if (sums)
        memcpy(table + records, w->sums, sums);
    turbod_cache_front f = {.magic = "turbo-w",
                            .size = table_at + records + sums,
                            .table_at = table_at,
                            .n_records = w->n_records,
                            .n_sums = w->n_sums};
    memcpy(f.identity, identity, 32);
    turbod_sha256(table, records + sums, f.digest);
    bool ok = write_at(w->fd, table, records + sums, table_at) &&
              write_at(w->fd, (const uint8_t *)&f, sizeof f, 0);
    free(table);
    if (ok && f.size > w->o->most) {
        ok = false;
        errno = EFBIG;
    }
    if (ok)
        make_room(w->dir, f.size, w->o->most);
    if (!ok || renameat(w->dir, w->part, w->dir, w->file)) {
        w->error = errno;
        return failed(w);
    }
    begun_in = -1;
    close(w->fd); /* there is no part to remove any more */
    w->fd = -1;
    turbod_log(TURBO_LOG_INFO, "cache_dir: %s/%s holds the repacked weights (%llu MiB)", w->o->dir,
               w->file, (unsigned long long)(f.size >> 20));
    return true;
}

void turbod_cache_writer_close(turbod_cache_writer *w)
{
    if (!w)
        return;
    if (w->fd >= 0) {
        unlinkat(w->dir, w->part, 0); /* before the lock goes */
        begun_in = -1;
        close(w->fd);
    }
    free(w->stage);
    free(w->records);
    free(w->sums);
    free(w);
}
