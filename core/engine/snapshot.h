/* core/engine/snapshot.h: the KV cache of a text, written to a file and read back.
 *
 * A snapshot fits only the model, the KV format and the instruction set it was made with; anything else is
 * refused by name. What is read back becomes cached text, found like any other and evicted like any other.
 * Any thread but the engine's; the engine goes on meanwhile. */
#ifndef TURBOD_SNAPSHOT_H
#define TURBOD_SNAPSHOT_H

#include "engine/engine.h"

typedef struct turbod_snapshot {
    const char *tenant; /* whose; another's is not found */
    int32_t *ids; /* [n_ids] */
    size_t n_ids;
    char *note; /* [n_note] the caller's, kept as it is */
    size_t n_note;
    /* out */
    size_t n_kept; /* tokens whose keys and values are in the file, or in the cache now */
    uint64_t bytes; /* of the file */
} turbod_snapshot;

/* Writes folder/name; either the old file or the whole new one is there afterwards. name: letters, digits,
 * '.', '_', '-', not beginning with '.'. Tokens whose KV is no longer cached are saved without it. */
turbo_status turbod_snapshot_save(turbod_engine *e, const char *folder, const char *name,
                                  turbod_snapshot *s, turbo_err *err);
/* s->tenant is given; the rest is filled, ids and note are the caller's, free(). ENOENT: no such file of
 * this tenant; EDATA: damaged, or of another model or format. Nothing is changed then. */
turbo_status turbod_snapshot_load(turbod_engine *e, const char *folder, const char *name,
                                  turbod_snapshot *s, turbo_err *err);

#endif
