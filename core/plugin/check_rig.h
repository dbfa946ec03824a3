/* core/plugin/check_rig.h: a model plugin opened on a checkpoint made for the test, with a device of one
 * thread, a KV pool and room for batches. Between the check_*.c files; runs in a child process of
 * `turbo plugin check`, which ends with the test, so memory is given back by its end. */
#ifndef TURBOD_CHECK_RIG_H
#define TURBOD_CHECK_RIG_H

#include "plugin/check_guard.h"
#include "weights/weights.h"

#define RIG_SEQS 2 /* sequences in a batch at most */
#define RIG_TOKENS 32 /* tokens of a sequence, and of a batch, at most */

/* A config that most decoders understand; every test of models uses it. */
extern const char check_generic[];

/* New tokens of one sequence: ids [n], which follow the `done` tokens in the cache. */
typedef struct rig_piece {
    int32_t seq, n, done;
    const int32_t *ids;
} rig_piece;

typedef struct rig {
    const turbo_model_vtbl *v;
    turbo_model_info info;
    turbo_config *config;
    turbok_device *device;
    turbo_weights *weights;
    void *model;
    turbok_kv_pool *pool;
    turbok_kv_table table[RIG_SEQS];
    guard guard;
} rig;

/* CHECK_SKIPPED with why when the generic config is not enough. */
int rig_open(const turbo_model_vtbl *v, rig **out, turbo_err *why);
/* Forgets what the cache of the sequences holds. */
void rig_forget(rig *r);
/* One forward of n pieces. rows: token indices of the batch [R]. logits [R,V]. fill: what every byte of the
 * workspace is beforehand. CHECK_FAILED with why when the plugin wrote where it must not, left logits
 * unwritten, misused a kernel or failed. */
int rig_forward(rig *r, const rig_piece *p, int32_t n, const int32_t *rows, int32_t R, int fill,
                float *logits, turbo_err *why);

#endif
