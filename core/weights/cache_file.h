/* core/weights/cache_file.h: what a cache file looks like, and how one is written; for cache.c and cache_file.c. */
#ifndef TURBOD_CACHE_FILE_H
#define TURBOD_CACHE_FILE_H

#include "weights/cache.h"

/* A file: front [FRONT], images on 4 KiB, table on 4 KiB. Numbers are those of this machine: the identity has the
 * build. */
#define TURBOD_CACHE_FRONT 4096u
#define TURBOD_CACHE_PIECE ((uint64_t)1 << 20) /* what has a checksum of its own */

typedef struct turbod_cache_front {
    char magic[8]; /* "turbo-w" */
    uint64_t size, table_at; /* of the file; bytes up to it have checksums */
    uint64_t n_records, n_sums;
    uint8_t identity[32];
    uint8_t digest[32]; /* SHA-256 of the table: records, then sums */
} turbod_cache_front;

typedef struct turbod_cache_record {
    uint8_t key[32];
    uint64_t at, bytes;
} turbod_cache_record;

/* Names of files in cache_dir: "turbo-", 32 hexadecimal digits, and one of these. */
#define TURBOD_CACHE_SUFFIX ".weights"
#define TURBOD_CACHE_PART ".part" /* while it is written; its writer holds a lock */

/* Of the bytes of a file from `from` on, at most up to the next multiple of TURBOD_CACHE_PIECE. */
uint64_t turbod_cache_sum(const void *p, uint64_t n);

typedef struct turbod_cache_writer turbod_cache_writer;

/* Removes parts that a process which is gone left in the folder; one whose writer lives stays. */
void turbod_cache_sweep(int dir);

/* name: without suffix. NULL, and a line in the log, when it cannot be written now. */
turbod_cache_writer *turbod_cache_writer_open(int dir, const char *name,
                                              const turbod_cache_opts *o);
/* False, and a line in the log: it failed, and the writer is to be closed. */
bool turbod_cache_writer_add(turbod_cache_writer *w, const uint8_t key[32],
                             const turbo_linear *matrix);
bool turbod_cache_writer_end(turbod_cache_writer *w, const uint8_t identity[32]);
void turbod_cache_writer_close(turbod_cache_writer *w); /* NULL allowed */

#endif
