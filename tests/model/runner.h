/* tests/model/runner.h: a model plugin on a real device and KV pool, without the engine: what the
 * engine computes can be compared with what the plugin computes. One thread. */
#ifndef TESTS_RUNNER_H
#define TESTS_RUNNER_H

#include "turbok.h"
#include "weights/config.h"
#include "weights/weights.h"

typedef struct runner_opts {
    turbok_isa isa;
    int threads;
    int32_t kv_dtype;
    int32_t max_tokens; /* of the sequence, and of one step */
} runner_opts;

typedef struct runner {
    const turbo_model_vtbl *vtbl;
    turbo_model_info info;
    turbok_device *device;
    turbo_config *config;
    turbo_weights *weights;
    void *model;
    turbok_kv_pool *pool;
    turbok_kv_table table; /* of the one sequence */
    void *workspace;
    uint64_t workspace_bytes;
    int32_t max_tokens;
} runner;

/* Opens a folder as the engine does: config, describe, check, open, unmap. */
turbo_status runner_open(runner *r, const turbo_model_vtbl *vtbl, const char *folder,
                         const runner_opts *opts, turbo_err *err);
void runner_close(runner *r);
/* Forgets the sequence. */
void runner_reset(runner *r);
/* Appends n tokens to the sequence; logits [n_rows,V] of the last n_rows of them. The workspace is
 * exactly what the plugin asks for, and what lies behind it is watched. */
turbo_status runner_step(runner *r, const int32_t *ids, int32_t n, int32_t rope_len, int32_t n_rows,
                         float *logits, turbo_err *err);

/* Number of a tensor; a vector has one column. */
typedef float (*checkpoint_value)(const turbo_tensor_spec *s, int32_t row, int32_t col);
/* Writes model.safetensors into a folder that has a config.json. Without value the numbers follow from
 * the tensors' names by the rule of tests/golden/internlm2-tiny/wide.py. False: cannot write. */
bool checkpoint_write(const turbo_model_vtbl *vtbl, const char *folder, checkpoint_value value,
                      turbo_err *err);
/* Number i of the stream that starts at seed. */
uint32_t checkpoint_stream(uint32_t seed, uint32_t i);

#endif
