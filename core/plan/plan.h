/* core/plan/plan.h: the bytes an engine will take, before it takes them.
 *
 * turbod_plan_make is pure arithmetic over what a model asks for, the engine's options and one figure of
 * free memory. The engine allocates what the plan says and counts what it got; `turbo plan`, turbod -t
 * and /metrics show the same numbers. Any thread. Must not know: requests, HTTP, how a file is read. */
#ifndef TURBOD_PLAN_H
#define TURBOD_PLAN_H

#include "plugin/registry.h"
#include "weights/weights.h"

/* Kinds of memory. What takes kilobytes (requests, tokenizer, scheduler's lists) is no kind. */
typedef enum {
    TURBOD_MEM_WEIGHTS, /* matrices and their biases, repacked for the backend */
    TURBOD_MEM_VECTORS, /* norm weights */
    TURBOD_MEM_ROPE, /* rotary tables */
    TURBOD_MEM_WORKSPACE, /* activations of the largest step */
    TURBOD_MEM_SAMPLING, /* logits and sampling rows of max_batch_size sequences */
    TURBOD_MEM_SCRATCH, /* attention scratch of the compute threads */
    TURBOD_MEM_IMAGES, /* pictures and what a model made of them, the most they may take */
    TURBOD_MEM_CONTEXT, /* driver and kernels of a device, as measured */
    TURBOD_MEM_GRAPHS, /* left free for the captured steps of a device; a CPU has none */
    TURBOD_MEM_KV, /* KV blocks */
    TURBOD_MEM_KV_INDEX, /* reference counts and prefix cache of the blocks */
    TURBOD_MEM_SWAP, /* host memory for KV blocks of a device: of no sum */
    TURBOD_MEM_KINDS
} turbod_mem;
extern const char *const turbod_mem_names[TURBOD_MEM_KINDS]; /* "weights", as in /metrics */

typedef struct turbod_plan_in {
    const turbo_model_info *info;
    const turbo_model_vtbl *vtbl; /* workspace() is asked */
    const turbod_weights_sums *weights;
    bool as_stored; /* weights as files hold them: for a backend that is not this build's */
    int threads; /* of the device */
    /* A device with memory of its own; zero: a CPU. */
    int32_t act_bytes; /* of an activation */
    uint64_t steps; /* what it takes for steps (turbok_steps_bytes) */
    uint64_t later; /* what it takes while it runs (turbok_later_bytes) */
    uint64_t context; /* what its driver took when it was opened; in vacant no more */
    uint64_t vacant; /* bytes free before anything is taken; 0: unknown */
    int64_t session_len; /* 0: the model's, at most what the pool holds */
    double cache_fraction; /* r, used when cache_bytes is 0 */
    uint64_t cache_bytes;
    uint64_t images; /* bytes for pictures; 0: the model takes none */
    uint64_t swap; /* bytes of host memory for blocks, rounded down to whole ones; 0: none */
    turbok_kv_dims kv; /* how blocks are wanted: block_tokens, dtype (-1: the model's) */
    int32_t max_batch, max_step_tokens;
    bool prefix_caching;
} turbod_plan_in;

/* used = B + r F: fixed is B, left is F, and the KV blocks are the most that fit into r F. */
typedef struct turbod_plan {
    uint64_t bytes[TURBOD_MEM_KINDS];
    uint64_t fixed; /* all kinds but KV and its index */
    uint64_t total; /* all kinds but swap, which is memory of the host */
    uint64_t vacant; /* as given */
    uint64_t left; /* vacant less fixed */
    uint64_t allowed; /* for KV blocks: r F, or cache_bytes */
    uint64_t logits, rows, tops; /* the parts of sampling */
    turbok_kv_dims dims;
    uint64_t block_bytes;
    int32_t blocks;
    int32_t swap_blocks;
    int32_t most_blocks; /* max_batch sequences of full length: more would never be used */
    int32_t session_len;
    int32_t max_batch, max_step_tokens;
} turbod_plan;

/* The blocks that are wanted with the model's dimensions filled in. */
turbok_kv_dims turbod_plan_kv_dims(const turbo_model_info *info, const turbok_kv_dims *wanted);
/* ENOMEM and EINVAL say what is needed, what is there and what to change. *out is filled as far as it
 * could be computed, also then: bytes of all kinds but KV, fixed, block_bytes. */
turbo_status turbod_plan_make(const turbod_plan_in *in, turbod_plan *out, turbo_err *err);
int64_t turbod_plan_tokens(const turbod_plan *p); /* that the KV blocks hold */
/* KV bytes of a token over all layers. */
double turbod_plan_token_bytes(const turbod_plan *p);
/* Sequences of len tokens whose KV fits at the same time, max_batch aside. */
int64_t turbod_plan_at_once(const turbod_plan *p, int64_t len);
/* "1.50 GiB" or, of less than one, "750.0 MiB". */
const char *turbod_plan_size(double bytes, char text[32]);
/* "weights 37.0 GiB, ...": one line for people, into text [cap]. */
void turbod_plan_summary(const turbod_plan *p, char *text, size_t cap);

/* ---- share.c: several models on one machine ---- */

enum { TURBOD_PLAN_ON_HOST = -1 };

typedef struct turbod_plan_share {
    turbod_plan_in in; /* vacant is set: pass it to the engine, and it plans the same */
    int32_t place; /* whose memory it takes: the host's, or that of the card with this number */
    double
        share; /* above 0: part of what is left, in proportion to the others'; of models with a fraction */
    turbod_plan plan;
} turbod_plan_share;

/* Divides vacant bytes (0: unknown) and plans each model. On an error *which is the model it is about, n
 * when it is about all of them. */
turbo_status turbod_plan_divide(turbod_plan_share *at, size_t n, uint64_t vacant, size_t *which,
                                turbo_err *err);
/* The same for models in different places, each place by itself. in.vacant as turbod_engine_plan_in and _device set it
 * while all devices were open, each place's the same but for the context. */
turbo_status turbod_plan_divide_places(turbod_plan_share *at, size_t n, size_t *which,
                                       turbo_err *err);

/* ---- model.c: a model folder, as far as a plan needs it ---- */

typedef struct turbod_plan_model {
    turbo_config *config;
    const turbo_model_vtbl *vtbl;
    turbo_model_info info;
    turbod_weights_sums weights;
    bool from_config; /* weight files are missing: shapes and type come from config.json */
    uint64_t config_bytes; /* then: of all tensors as config.json has them */
    uint64_t index_bytes; /* and as the index of the files has them; 0: it does not say */
    int index_more; /* tensors that the index names and the architecture does not load */
} turbod_plan_model;

/* config.json: everything but weights. */
turbo_status turbod_plan_model_open(const char *folder, const turbod_registry *registry,
                                    turbod_plan_model *out, turbo_err *err);
/* weights, from the headers of its files where there are some. opts: how matrices are stored, and on what device. */
turbo_status turbod_plan_model_count(const char *folder, const turbod_weights_opts *opts,
                                     turbod_plan_model *m, turbo_err *err);
/* Both. */
turbo_status turbod_plan_model_read(const char *folder, const turbod_registry *registry,
                                    const turbod_weights_opts *opts, turbod_plan_model *out,
                                    turbo_err *err);
void turbod_plan_model_free(turbod_plan_model *m); /* zeroed allowed */

#endif
