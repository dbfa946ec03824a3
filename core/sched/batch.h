/* core/sched/batch.h: turns a plan into the ragged arrays a model reads. Engine thread only.
 * All arrays are taken once, for the largest batch. */
#ifndef TURBOD_BATCH_H
#define TURBOD_BATCH_H

#include "engine/media.h"
#include "sched/scheduler.h"

typedef struct turbod_batch {
    turbo_batch b; /* what the model sees */
    turbo_kv kv;
    int32_t *tokens, *positions, *embed_index; /* [max_T] */
    const turbod_media *media; /* NULL: no pictures */
    int32_t *cu_seqlens, *kv_lens, *rope_lens, *row_index; /* [max_B + 1] */
    turbok_kv_table **tables;                          /* [max_B] */
    turbod_request **rows;                             /* [max_B] whose logits row r is */
} turbod_batch;

turbo_status turbod_batch_init(turbod_batch *b, turbok_kv_pool *pool, int32_t max_batch,
                               int32_t max_step_tokens, void *workspace, uint64_t workspace_bytes,
                               const turbod_media *media, turbo_err *err);
void turbod_batch_free(turbod_batch *b);
void turbod_batch_build(turbod_batch *b, const turbod_sched *s);

#endif
