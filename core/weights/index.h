/* core/weights/index.h: the tensors of a model folder by name, over one file or many shards, or those of a
 * GGUF file.
 * Main thread opens; look-ups from any thread. */
#ifndef TURBOD_INDEX_H
#define TURBOD_INDEX_H

#include "turbo/ext/gguf.h"
#include "weights/safetensors.h"

typedef struct turbod_index turbod_index;

/* model.safetensors.index.json when it exists, else model.safetensors. A folder without weights of
 * any format gives an index of nothing: whether that will do is the architecture's to say. */
turbo_status turbod_index_open(const char *folder, turbod_index **out, turbo_err *err);
/* Bytes of all tensors, as the folder's model.safetensors.index.json has them, which may be there without the files
 * it names; 0: it does not say. *more: how many it names that ix does not have. */
uint64_t turbod_index_said(const turbod_index *ix, const char *folder, int *more);
/* The tensors that an architecture expects, all of one type, without a file and without data: for a plan
 * made from config.json alone. */
turbo_status turbod_index_expected(const turbo_host *host, const turbo_model_vtbl *vtbl,
                                   const turbo_config *config, int32_t dtype, turbod_index **out,
                                   turbo_err *err);
/* The tensors of a GGUF file under the names of a model, as table and info say; once. Of a folder: nothing
 * happens. */
turbo_status turbod_index_map(turbod_index *ix, const turbo_gguf *table,
                              const turbo_model_info *info, turbo_err *err);
void turbod_index_close(turbod_index *ix); /* NULL allowed */
const turbod_st_tensor *turbod_index_find(const turbod_index *ix, const char *name);
size_t turbod_index_count(const turbod_index *ix);
/* Which of them has that name; turbod_index_count when none has. */
size_t turbod_index_place(const turbod_index *ix, const char *name);
const turbod_st_tensor *turbod_index_at(const turbod_index *ix, size_t i); /* sorted by name */
bool turbod_index_absent(const turbod_index *ix); /* the folder has no weight file */
uint64_t turbod_index_bytes(const turbod_index *ix);
turbo_status turbod_index_unchanged(const turbod_index *ix, turbo_err *err);

#endif
