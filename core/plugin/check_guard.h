/* core/plugin/check_guard.h: a kernel table and a host table that look at every argument before they pass
 * it on, for the conformance tests of models. Between the check_*.c files; runs in a child process of
 * `turbo plugin check`. The plugin gets the guard as its turbo_exec and as its turbo_weights: both are
 * handles it may not look into. */
#ifndef TURBOD_CHECK_GUARD_H
#define TURBOD_CHECK_GUARD_H

#include <stdbool.h>

#include "turbok.h"

#define GUARD_MAX_HANDLES 4096
#define GUARD_MAX_LAYERS 512

typedef struct guard_handle {
    const void *at;
    int64_t out, in; /* a vector: n and 0 */
    uint32_t flags;
    int32_t experts; /* of a layer of experts: its number in guard.moe, from 1 on */
} guard_handle;

typedef struct guard {
    turbo_ops ops;
    turbo_host host;
    const turbo_ops *real;
    turbo_exec *exec;
    turbo_weights *weights;
    const turbo_model_info *info;
    const turbo_batch *batch; /* of the forward that runs */
    float *logits; /* [R,V] */
    uint8_t stored[GUARD_MAX_LAYERS]; /* of this forward: times that the layer was stored */
    uint64_t workspace_bytes; /* what workspace() asked for */
    turbo_err why; /* the first finding; no kernel runs behind it */
    int32_t n_handles;
    guard_handle handles[GUARD_MAX_HANDLES];
    const turbo_rope *rope[GUARD_MAX_LAYERS];
    int32_t n_ropes;
    turbo_moe moe[GUARD_MAX_LAYERS];
    int32_t n_moe;
} guard;

void guard_init(guard *g, const turbo_ops *real, turbo_exec *exec, turbo_weights *weights,
                const turbo_model_info *info);
/* Before each forward. */
void guard_begin(guard *g, const turbo_batch *b, float *logits);

#endif
