/* core/weights/cache.h: the matrices of a model as a device repacked them, kept in a file of cache_dir and mapped
 * read-only at the next start.
 *
 * A file is used when all of it is what was written (sizes, digest of its table, a checksum of every MiB) for the
 * same model files (turbod_fingerprint with times), layout, instruction set and options; any other is warned
 * about and made anew. It is written beside and renamed at the end, so a file in cache_dir is complete. Nothing
 * here fails a start: whatever goes wrong is a warning, and the model loads as without a cache.
 * Main thread; the device's threads help. Must not know: architectures, formats of weights. */
#ifndef TURBOD_CACHE_H
#define TURBOD_CACHE_H

#include <stdbool.h>

#include "turbok.h"

typedef struct turbod_cache turbod_cache;

typedef struct turbod_cache_opts {
    const char *dir; /* made when it is not there */
    uint64_t most; /* bytes of all cache files there together; those used longest ago make room */
    const char *folder; /* of the model, or its GGUF file */
    const char *options; /* everything else that decides what matrices hold */
    uint64_t expected; /* about what will be written; a disk with less room is left alone */
    turbok_device *device;
} turbod_cache_opts;

/* NULL: there is none to use or to write. */
turbod_cache *turbod_cache_open(const turbod_cache_opts *o);
/* Makes the matrix of that key from the cache; false when it has to be made otherwise. *bytes: of its image. The
 * handle is to be freed before the cache is closed. */
bool turbod_cache_get(turbod_cache *c, const uint8_t key[32], turbo_linear **w, uint64_t *bytes);
/* The matrix that was made otherwise, for the next start. */
void turbod_cache_put(turbod_cache *c, const uint8_t key[32], const turbo_linear *w);
/* The model has loaded: what was put becomes a file. NULL allowed, as below. */
void turbod_cache_keep(turbod_cache *c);
void turbod_cache_close(turbod_cache *c);
/* Before an _exit: the file that this process has begun and will not end goes. Any thread; also from a handler of a
 * signal. */
void turbod_cache_abandon(void);

#endif
