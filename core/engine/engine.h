/* core/engine/engine.h: one model at work: weights, KV pool, scheduler and the engine thread.
 *
 * turbod_engine_open loads everything and starts the thread; submit and cancel may come from any
 * thread. One step of the thread: take arrivals and cancels, admit, choose the batch, forward,
 * sample, stop-check, emit. Must not know: HTTP, JSON bodies, Lua. */
#ifndef TURBOD_ENGINE_H
#define TURBOD_ENGINE_H

#include "engine/metrics.h"
#include "plan/plan.h"
#include "plugin/registry.h"
#include "sched/request.h"

typedef struct turbod_engine turbod_engine;

typedef struct turbod_engine_opts {
    const char *model_dir;
    const turbod_registry *registry;
    int64_t session_len; /* 0: the model's, at most what the KV pool holds */
    double
        cache_fraction; /* of what is free after weights and workspaces; used when cache_bytes 0 */
    uint64_t cache_bytes; /* absolute size of the KV pool, or 0 */
    uint64_t memory_free; /* plan as if so many bytes were free; 0: measure */
    int32_t block_tokens;
    int32_t kv_dtype; /* TURBO_*, TURBOK_KV_*, -1: the model's */
    int32_t max_batch;
    int32_t max_step_tokens;
    int32_t queue_size;
    double
        max_step_stretch; /* how much longer than a plain decode step one with prompts may take */
    uint64_t swap_bytes; /* host memory for KV blocks of a device with memory of its own */
    uint64_t image_bytes; /* pictures and what the model made of them, of models that take some */
    bool prefix_caching;
    bool cache_per_tenant; /* tenants do not find each other's text in the cache */
    int32_t threads; /* 0: all */
    const char *isa; /* "auto" ... */
    const char *device; /* "cpu", "cuda", "cuda:1", "auto"; NULL: cpu */
    const char *device_precision; /* of CUDA: "auto" ... */
    const char *backend_path; /* folders of turbok-cuda.so */
    bool deterministic;
    const char *sampler; /* id of the sampler: "std" */
    bool pin;
    bool allow_nonfinite;
    const char *model_format, *quantize; /* NULL or ""; see turbod_weights_opts */
    const char *cache_dir; /* NULL or "": none */
    uint64_t cache_dir_size;
    void (*progress)(void *ctx, uint64_t done, uint64_t total); /* bytes of weights; may be NULL */
    void *progress_ctx;
} turbod_engine_opts;

void turbod_engine_defaults(turbod_engine_opts *o);

/* ---- device.c: before an engine is opened ---- */

turbo_status turbod_engine_isa(const char *name, turbok_isa *isa, turbo_err *err); /* "avx2" */
turbok_kv_dims turbod_engine_kv(const turbod_engine_opts *o); /* KV blocks as they are wanted */
/* The type of activations on a card: that of the model unless device_precision, `name`, says otherwise. */
turbo_status turbod_engine_precision(const char *name, int32_t model, int32_t *act, turbo_err *err);
/* The device that o names, for a model of that type; with "auto" the CPU when there is no card. To be closed by the
 * caller. place NULL: which it is goes to the log; else only a plan is made, and *place is whose memory it has, as in
 * turbod_plan_share. */
turbo_status turbod_engine_open_device(const turbod_engine_opts *o, int32_t model_dtype,
                                       turbok_device **out, int32_t *place, turbo_err *err);
/* The part of the options that a memory plan depends on, and the free memory of this moment. */
void turbod_engine_plan_in(const turbod_engine_opts *o, turbod_plan_in *in);
/* After it and `images`, of a device with memory of its own: what it has and takes beside what any engine takes.
 * quantised: some matrix is a grid. On a CPU nothing. */
void turbod_engine_plan_device(turbok_device *d, const turbod_engine_opts *o,
                               const turbo_model_info *m, const turbod_media_facts *media,
                               bool quantised, turbod_plan_in *in);

turbo_status turbod_engine_open(const turbod_engine_opts *o, turbod_engine **out, turbo_err *err);
/* Cancels what runs, joins the thread, frees everything. NULL allowed. */
void turbod_engine_close(turbod_engine *e);

/* Facts, constant after open; pointers live as long as the engine. */
typedef struct turbod_engine_facts {
    turbo_model_info model;
    const char *model_plugin; /* id of the model vtable */
    const turbo_tokenizer_vtbl *tok_vtbl; /* NULL when the folder has no tokenizer */
    const void *tok;
    turbo_tokenizer_info tok_info;
    const turbo_config *config;
    turbod_media_facts media; /* n_rows 0: the model takes no pictures */
    int32_t session_len;
    int32_t kv_blocks, block_tokens;
    const char *kv_type; /* of cached keys and values: "bf16", "int8" ... */
    const char *device; /* "cpu avx512, 2 threads" */
    turbod_plan plan; /* what was to be taken */
    uint64_t alloc[TURBOD_MEM_KINDS]; /* what was */
    double load_seconds;
} turbod_engine_facts;
const turbod_engine_facts *turbod_engine_facts_of(const turbod_engine *e);

/* Queues a request. TURBO_EBUSY: queue full, or draining; EINVAL: out of the documented ranges;
 * ELIMIT: longer than session_len or than the whole KV pool. *out holds the submitter's reference. */
turbo_status turbod_engine_submit(turbod_engine *e, const turbod_request_spec *spec,
                                  turbod_request **out, turbo_err *err);
/* No new requests; running and waiting ones go on. */
void turbod_engine_drain(turbod_engine *e);
/* True when nothing runs or waits. */
bool turbod_engine_idle(const turbod_engine *e);
/* Seconds since the engine last completed a step or an idle self-check; negative after a failure. */
double turbod_engine_age(const turbod_engine *e);

/* Forward pass without sampling: logits of every token of ids (all = true, [n,V]) or of the last one
 * ([1,V]). Runs on the caller's thread while the engine is idle; EBUSY otherwise. For tools. */
turbo_status turbod_engine_logits(turbod_engine *e, const int32_t *ids, int32_t n, bool all,
                                  float *logits, turbo_err *err);

turbod_metrics *turbod_engine_metrics(turbod_engine *e);
/* turbok_device_gaps of its device; while it is idle. */
int32_t turbod_engine_gaps(const turbod_engine *e, const float **us);

/* Text to ids; a leading bos when add_bos is set and the tokenizer's configuration wants one. trusted:
 * names of special tokens become those tokens. *ids is the caller's, free(). [any] */
turbo_status turbod_encode_text(const turbo_tokenizer_vtbl *v, const void *tok, const char *text,
                                size_t len, bool add_bos, bool trusted, int32_t **ids,
                                size_t *n_ids, turbo_err *err);

/* Incremental detokeniser of one token stream; text comes out as soon as it is complete UTF-8. */
typedef struct turbod_detok turbod_detok;
turbod_detok *turbod_detok_new(const turbo_tokenizer_vtbl *v, const void *tok, bool keep_special);
void turbod_detok_free(turbod_detok *d);
/* The stream continues a text (a prompt), so its first piece keeps its leading space. */
void turbod_detok_continue(turbod_detok *d);
/* *text is owned by the detokeniser, valid until the next call. */
void turbod_detok_push(turbod_detok *d, int32_t id, const char **text, size_t *len);
void turbod_detok_flush(turbod_detok *d, const char **text, size_t *len);

#endif
