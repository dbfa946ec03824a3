/* core/engine/state.h: the inside of an engine, for the .c files of this folder only. */
#ifndef TURBOD_ENGINE_STATE_H
#define TURBOD_ENGINE_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "engine/engine.h"
#include "engine/media.h"
#include "sched/batch.h"

/* A step from its launch until its rows have become tokens. */
typedef struct turbod_flight {
    turbod_request **rows; /* [max_batch] whose row it is; NULL: nobody's any more */
    turbok_row *drawn; /* [max_batch] the rows as the device sees them */
    int32_t n_rows;
    turbod_request **items; /* [max_batch] whose tokens it computes; NULL: it has ended */
    int32_t n_items;
    int32_t n_decodes, n_prompt; /* tokens */
    bool ahead; /* the device draws all rows: the next step can be launched before this one lands */
    int64_t t0;
} turbod_flight;

struct turbod_engine {
    turbod_engine_facts facts;
    char *model_dir;
    turbo_config *config;
    turbo_weights *weights;
    turbok_device *device;
    turbok_kv_pool *pool;
    const turbo_model_vtbl *model_vtbl;
    void *model;
    /* Who draws: [0] for requests without a program, [1] for those that have one or may get one. Both may
     * be the same; [1].vtbl is NULL when no plugin runs programs. */
    struct turbod_sampler {
        const turbo_sampler_vtbl *vtbl;
        void *self;
    } samplers[2];
    void *tok; /* owner of facts.tok */
    void *workspace;
    uint64_t workspace_bytes;
    turbod_media *media; /* NULL: the model takes no pictures */
    float *logits; /* [max_batch, V] host memory */
    float *device_logits; /* the same where the model writes them; of a CPU: logits */
    bool device_draws; /* the tokens of samplers[0], for requests that it can */
    turbod_flight flights[2], *flight; /* the one that is on its way between two passes, or NULL */
    int64_t t_landed;
    turbo_sample_row *rows; /* [max_batch] */
    turbod_request **row_req; /* [max_batch] whose row it is */
    turbo_logprob *tops; /* [max_batch, 20] */
    int32_t max_batch, max_step_tokens, queue_size;
    bool prefix_caching, cache_per_tenant;
    bool quantised; /* some matrix of the model is */

    turbod_inbox inbox;
    turbod_sched sched;
    turbod_batch batch;
    turbod_metrics metrics;

    pthread_t thread;
    bool thread_started, inbox_ready;
    /* step_mu is held during a step and by visitors of the engine's state; who wants it takes turn_mu
     * first, so that a visitor is not kept out by an engine that takes it again and again. */
    pthread_mutex_t turn_mu, step_mu;
    pthread_mutex_t admit_mu; /* guards flows, and n_open against two submitters at the limit */
    uint8_t fingerprint[32]; /* of the model folder */
    bool has_fingerprint;
    turbod_flow *flows; /* one a tenant, made at its first request, kept for ever */
    int32_t n_flows;
    uint64_t seen_cancels;
    int64_t next_deadline; /* the earliest of any request, or earlier */
    _Atomic int n_open; /* requests submitted and not ended */
    _Atomic int n_queued; /* of them never started */
    _Atomic bool stopping, draining, failed;
    _Atomic int64_t last_beat; /* monotonic ns of the last step or idle self-check */
};

/* device.c: what the steps of an engine with these options are at most. */
turbok_steps turbod_engine_steps(const turbod_engine_opts *o, const turbo_model_info *m,
                                 const turbod_media_facts *media, bool quantised);

/* load.c: fills everything up to pool; turbod_engine_close undoes a part of it. */
turbo_status turbod_engine_load(turbod_engine *e, const turbod_engine_opts *o, turbo_err *err);
/* Gives the workspaces back; the device is still there, or was never opened. */
void turbod_engine_unload(turbod_engine *e);
/* load.c: starts one batch: logits [n_rows,V] into host, but for rows [n_rows] that the device draws. They are
 * there after turbok_step_wait. */
turbo_status turbod_engine_forward(turbod_engine *e, const turbo_batch *b, turbok_row *rows,
                                   float *host, turbo_err *err);
/* Counts what was taken, kind by kind, into facts and metrics, beside what was planned. */
void turbod_engine_audit(turbod_engine *e);

/* step.c: one pass of the engine thread. False when there was nothing to do. */
bool turbod_engine_step(turbod_engine *e);
void turbod_take_arrivals(turbod_engine *e, int64_t wait_ns);
/* Ends a request, or all, with an error event. */
void turbod_fail(turbod_engine *e, turbod_request *r, turbo_status status, const char *message);
void turbod_fail_all(turbod_engine *e, turbo_status status, const char *message);
/* engine.c: into the engine's state and out again, between two steps. Any thread but the engine's. */
void turbod_visit(turbod_engine *e);
void turbod_leave(turbod_engine *e);

/* engine.c: the key that cached text of this tenant, salt and rope class begins with. */
turbok_kv_key turbod_engine_root(const turbod_engine *e, const char *tenant, const char *salt,
                                 int32_t rope_class);
/* step.c: the pool's counts to the metrics. */
void turbod_publish_gauges(turbod_engine *e);

/* sample.c: the rows of the batch become those of f, and who draws them; a device is told what it does not know
 * yet. */
turbo_status turbod_place_rows(turbod_engine *e, turbod_flight *f, turbo_err *err);
/* The rows' tokens, before they are drawn, as ~row. */
void turbod_expect_rows(turbod_flight *f);
/* Samples the rows and advances their requests. */
void turbod_sample_rows(turbod_engine *e, turbod_flight *f);
void turbod_end(turbod_engine *e, turbod_request *r, const turbod_event *ev, int end_kind);

#endif
