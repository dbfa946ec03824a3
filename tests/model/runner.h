/* tests/model/runner.h: a model plugin on a real device and KV pool, without the engine: what the
 * engine computes can be compared with what the plugin computes. One thread. */
#ifndef TESTS_RUNNER_H
#define TESTS_RUNNER_H

#include "plugin/registry.h"
#include "turbok.h"
#include "weights/config.h"
#include "weights/weights.h"

typedef struct runner_opts {
    turbok_isa isa;
    int threads;
    int32_t kv_dtype;
    int32_t max_tokens; /* of the sequence, and of one step */
    const char *cache_dir; /* NULL: none */
    const char *quantize; /* see turbod_weights_opts */
    bool exact; /* grids of quantised matrices are multiplied in fp32 */
    const turbod_registry *registry; /* for models that hold another one, or NULL */
    const char *cuda; /* folder of the backend: a card instead of the CPU; NULL: the CPU */
    int32_t act_dtype; /* of a card */
    uint64_t picture_bytes; /* of a card: pixels of a picture */
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
    int32_t max_tokens, act_bytes;
    float *device_logits; /* [max_tokens,V] of a card */
    /* the test's: rows in the place of tokens, and which row each position of a sequence takes, -1 none */
    const void *embed_rows; /* act, the device's memory */
    const int32_t *embed_at;
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
/* The same into another folder, under other names, from which the numbers do not follow; name is what
 * expect() says, "" from rename leaves a tensor out. config may need a registry. */
typedef void (*checkpoint_rename)(const char *name, char out[256]);
bool checkpoint_write_as(const turbo_model_vtbl *vtbl, const char *folder,
                         const turbo_config *config, checkpoint_rename rename, turbo_err *err);
/* Number i of the stream that starts at seed. */
uint32_t checkpoint_stream(uint32_t seed, uint32_t i);

#endif
