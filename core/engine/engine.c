/* core/engine/engine.c: opening, running and closing an engine. open and close run on the main
 * thread, the loop on the engine thread, submit and drain anywhere. */
#include "engine/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/state.h"
#include "sched/holding.h"
#include "sched/steer.h"
#include "util/err.h"
#include "util/log.h"
#include "weights/config.h"
#include "weights/fingerprint.h"
#include "weights/weights.h"

#define RESERVE 16 /* a tenant may have 1/16 of the queue when others filled it */
#define IDLE_BEAT_NS 1000000000 /* an idle engine proves that it lives once a second */

void turbod_engine_defaults(turbod_engine_opts *o)
{
    *o = (turbod_engine_opts){
        .cache_fraction = 0.8,
        .block_tokens = 64,
        .kv_dtype = -1,
        .max_batch = 64,
        .max_step_tokens = 256, /* a CPU is as fast with 64 rows as with thousands */
        .queue_size = 1024,
        .max_step_stretch = 4,
        .image_bytes = (uint64_t)256 << 20,
        .prefix_caching = true,
        .cache_per_tenant = true,
        .isa = "auto",
        .device = "cpu",
        .device_precision = "auto",
        .sampler = "std",
    };
}

void turbod_visit(turbod_engine *e)
{
    pthread_mutex_lock(&e->turn_mu);
    pthread_mutex_lock(&e->step_mu);
    pthread_mutex_unlock(&e->turn_mu);
}

void turbod_leave(turbod_engine *e)
{
    pthread_mutex_unlock(&e->step_mu);
}

static void *engine_main(void *arg)
{
    turbod_engine *e = arg;
    bool busy = false;
    pthread_setname_np(pthread_self(), "turbo-engine");
    while (!atomic_load(&e->stopping)) {
        turbod_take_arrivals(e, busy ? 0 : IDLE_BEAT_NS);
        turbod_visit(e);
        busy = turbod_engine_step(e);
        turbod_leave(e);
    }
    if (e->flight) { /* nothing may use memory that is about to be given back */
        turbo_err err;
        (void)turbok_step_wait(e->device, e->flight->drawn, e->flight->n_rows, &err);
        e->flight = NULL;
    }
    turbod_take_arrivals(e, 0);
    turbod_fail_all(e, TURBO_ECANCELLED, "the server is shutting down");
    return NULL;
}

static turbo_status open_scheduler(turbod_engine *e, const turbod_engine_opts *o, turbo_err *err)
{
    turbo_status st = o->prefix_caching ? turbok_kv_prefix_enable(e->pool, err) : TURBO_OK;
    e->prefix_caching = o->prefix_caching;
    e->cache_per_tenant = o->cache_per_tenant;
    e->next_deadline = INT64_MAX;
    if (!st)
        st = turbod_sched_init(&e->sched, e->pool, &e->metrics, e->max_batch, e->max_step_tokens,
                               o->max_step_stretch, err);
    if (!st)
        st = turbod_batch_init(&e->batch, e->pool, e->max_batch, e->max_step_tokens, e->workspace,
                               e->workspace_bytes, e->media, err);
    if (!st)
        st = turbod_inbox_init(&e->inbox, err);
    if (st)
        return st;
    e->inbox_ready = true;
    atomic_store(&e->last_beat, turbod_now());
    if (pthread_create(&e->thread, NULL, engine_main, e))
        return turbod_err(err, TURBO_ENOMEM, "cannot start the engine thread");
    e->thread_started = true;
    return TURBO_OK;
}

turbo_status turbod_engine_open(const turbod_engine_opts *o, turbod_engine **out, turbo_err *err)
{
    int64_t t0 = turbod_now();
    turbod_engine *e = calloc(1, sizeof *e);
    if (!e)
        return turbod_err(err, TURBO_ENOMEM, "no memory for an engine");
    pthread_mutex_init(&e->turn_mu, NULL);
    pthread_mutex_init(&e->step_mu, NULL);
    pthread_mutex_init(&e->admit_mu, NULL);
    turbod_metrics_init(&e->metrics);
    e->queue_size = o->queue_size;

    turbo_status st = turbod_engine_load(e, o, err);
    if (!st)
        st = open_scheduler(e, o, err);
    if (st) {
        turbod_engine_close(e);
        return st;
    }
    turbo_err no_print;
    e->has_fingerprint = turbod_fingerprint(o->model_dir, e->fingerprint, &no_print) == TURBO_OK;
    e->facts.load_seconds = (double)(turbod_now() - t0) * 1e-9;
    e->metrics.load_seconds[TURBOD_LOAD_REST] = e->facts.load_seconds;
    for (int i = 0; i < TURBOD_LOAD_REST; i++)
        e->metrics.load_seconds[TURBOD_LOAD_REST] -= e->metrics.load_seconds[i];
    turbod_engine_audit(e);
    char summary[256];
    turbod_plan_summary(&e->facts.plan, summary, sizeof summary);
    atomic_store(&e->metrics.kv_total, turbok_kv_pool_total(e->pool));
    atomic_store(&e->metrics.kv_free, turbok_kv_pool_free_count(e->pool));
    atomic_store(&e->metrics.swap_total, turbok_kv_swap_total(e->pool));
    turbod_log(TURBO_LOG_INFO,
               "model %s: %d layers, vocabulary %d, %s; %s, loaded in %.2f s, %.2f of them weights",
               e->facts.model.arch, e->facts.model.n_layers, e->facts.model.vocab, summary,
               e->facts.device, e->facts.load_seconds,
               e->metrics.load_seconds[TURBOD_LOAD_WEIGHTS]);
    *out = e;
    return TURBO_OK;
}

void turbod_engine_close(turbod_engine *e)
{
    if (!e)
        return;
    atomic_store(&e->stopping, true);
    if (e->thread_started) {
        turbod_inbox_poke(&e->inbox);
        pthread_join(e->thread, NULL);
    }
    if (e->inbox_ready)
        turbod_inbox_destroy(&e->inbox);
    turbod_batch_free(&e->batch);
    turbod_sched_free(&e->sched);
    turbok_kv_pool_free(e->pool);
    turbod_media_free(e->media);
    turbod_engine_unload(e);
    if (e->model)
        e->model_vtbl->close(e->model);
    turbod_weights_close(e->weights);
    for (int i = 0; i < 2; i++)
        if (e->samplers[i].self)
            e->samplers[i].vtbl->close(e->samplers[i].self);
    if (e->tok)
        e->facts.tok_vtbl ? e->facts.tok_vtbl->close(e->tok) : (void)0;
    turbok_device_close(e->device);
    turbod_config_close(e->config);
    free(e->rows);
    for (int i = 0; i < 2; i++) {
        free(e->flights[i].rows);
        free(e->flights[i].drawn);
        free(e->flights[i].items);
    }
    free(e->row_req);
    free(e->tops);
    for (turbod_flow *f = e->flows, *next; f; f = next) {
        next = f->next;
        free(f);
    }
    pthread_mutex_destroy(&e->turn_mu);
    pthread_mutex_destroy(&e->step_mu);
    pthread_mutex_destroy(&e->admit_mu);
    free(e);
}

const turbod_engine_facts *turbod_engine_facts_of(const turbod_engine *e)
{
    return &e->facts;
}

turbod_metrics *turbod_engine_metrics(turbod_engine *e)
{
    return &e->metrics;
}

int32_t turbod_engine_gaps(const turbod_engine *e, const float **us)
{
    return turbok_device_gaps(e->device, us);
}

void turbod_engine_drain(turbod_engine *e)
{
    atomic_store(&e->draining, true);
}

bool turbod_engine_idle(const turbod_engine *e)
{
    return atomic_load(&e->n_open) == 0;
}

double turbod_engine_age(const turbod_engine *e)
{
    if (atomic_load(&e->failed))
        return -1;
    return (double)(turbod_now() - atomic_load(&e->last_beat)) * 1e-9;
}

/* The tenant's flow; NULL: no memory. */
static turbod_flow *flow_of(turbod_engine *e, const char *tenant)
{
    pthread_mutex_lock(&e->admit_mu);
    turbod_flow *f = e->flows;
    while (f && strncmp(f->label, tenant, sizeof f->label - 1))
        f = f->next;
    if (!f && (f = calloc(1, sizeof *f)) != NULL) {
        strncpy(f->label, tenant, sizeof f->label - 1);
        f->next = e->flows;
        e->flows = f;
        e->n_flows++;
    }
    pthread_mutex_unlock(&e->admit_mu);
    return f;
}

turbok_kv_key turbod_engine_root(const turbod_engine *e, const char *tenant, const char *salt,
                                 int32_t rope_class)
{
    struct {
        int32_t rope_class;
        char tenant[72], salt[TURBOD_MAX_SALT + 4];
    } scope;
    memset(&scope, 0, sizeof scope);
    scope.rope_class = rope_class;
    if (e->cache_per_tenant)
        strncpy(scope.tenant, tenant, sizeof scope.tenant - 1);
    strncpy(scope.salt, salt, sizeof scope.salt - 1);
    return turbok_kv_root(e->pool, &scope, sizeof scope);
}

/* Two requests share cached text only when they may see each other's and their keys are rotated alike:
 * beyond the trained length a length-dependent base makes keys of another prompt length differ. */
static void name_prompt(const turbod_engine *e, turbod_request *r, const turbod_request_spec *spec)
{
    int32_t rope_class = r->rope_len > e->facts.model.max_position ? r->rope_len : 0;
    r->keys[0] =
        turbod_engine_root(e, r->flow->label, spec->cache_salt ? spec->cache_salt : "", rope_class);
    turbod_holding_name(r, e->pool);
}

static turbo_status hold_pictures(turbod_engine *e, turbod_request *r,
                                  const turbod_request_spec *spec, turbo_err *err)
{
    int32_t end = 0, n_rows = e->facts.media.n_rows;
    if (!spec->n_images)
        return TURBO_OK;
    if (!e->media)
        return turbod_err(err, TURBO_EUNSUPPORTED, "this model takes no images; send text");
    for (int32_t i = 0; i < spec->n_images; i++) {
        if (spec->images[i].at < end || spec->images[i].at > r->n_prompt - n_rows)
            return turbod_err(err, TURBO_EINVAL, "image %d does not lie inside the prompt", i + 1);
        end = spec->images[i].at + n_rows;
    }
    r->seen = calloc((size_t)spec->n_images, sizeof *r->seen);
    if (!r->seen)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a request");
    turbo_status st = turbod_media_take(e->media, spec->images, spec->n_images, r->seen, err);
    if (!st) {
        r->media = e->media;
        r->n_seen = spec->n_images;
    }
    return st;
}

/* Everything a request needs beyond its copy of the spec: KV table, sampler state, detokeniser. */
static turbo_status equip(turbod_engine *e, turbod_request *r, const turbod_request_spec *spec,
                          turbo_err *err)
{
    int32_t len = r->n_prompt + r->max_tokens;
    turbo_status st = hold_pictures(e, r, spec, err);
    if (!st)
        st = turbok_kv_table_init(&r->table, e->pool, len, err);
    if (st)
        return st;
    r->keys = calloc((size_t)(len / e->facts.block_tokens) + 1, sizeof *r->keys);
    if (e->facts.plan.swap_blocks && !(r->slots = calloc((size_t)r->table.cap, sizeof *r->slots)))
        return turbod_err(err, TURBO_ENOMEM, "no memory for a request of %d tokens", len);
    r->flow = flow_of(e, spec->tenant ? spec->tenant : "");
    if (!r->keys || !r->flow)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a request of %d tokens", len);
    name_prompt(e, r, spec);
    r->programs = spec->params.n_program || spec->steer;
    r->by_device = e->device_draws && !r->programs && turbok_draws(e->device, &r->params);
    const struct turbod_sampler *s = &e->samplers[r->programs];
    if (!s->vtbl)
        return turbod_err(err, TURBO_EUNSUPPORTED,
                          "no plugin runs sampling programs; add samp-lua to plugin_path");
    uint64_t bytes = s->vtbl->state_bytes(s->self, len);
    r->sampler_state = calloc(1, bytes ? bytes : 1);
    if (!r->sampler_state)
        return turbod_err(err, TURBO_ENOMEM, "no memory for the sampler's state");
    st = s->vtbl->begin(s->self, r->sampler_state, len, &r->params, r->tokens, r->n_prompt, err);
    if (st || !e->facts.tok_vtbl)
        return st;
    r->detok = turbod_detok_new(e->facts.tok_vtbl, e->facts.tok, spec->keep_special);
    if (!r->detok)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a detokeniser");
    for (int32_t i = 0; i < r->n_prompt; i++)
        if (!(e->facts.tok_vtbl->attr(e->facts.tok, r->tokens[i]) & TURBO_TOKEN_CONTROL)) {
            turbod_detok_continue(r->detok);
            break;
        }
    return TURBO_OK;
}

turbo_status turbod_engine_submit(turbod_engine *e, const turbod_request_spec *spec,
                                  turbod_request **out, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    if (atomic_load(&e->draining) || atomic_load(&e->failed))
        st =
            turbod_err(err, TURBO_EBUSY,
                       atomic_load(&e->failed) ? "the engine has failed; the server needs a restart"
                                               : "the server is shutting down");
    else if (spec->n_stops && !e->facts.tok_vtbl)
        st = turbod_err(err, TURBO_EUNSUPPORTED, "stop strings need a tokenizer; use stop ids");
    if (st) {
        if (spec->steer)
            spec->steer->free(spec->steer);
        return st;
    }
    turbod_request_limits lim = {
        .vocab = e->facts.model.vocab,
        .session_len = e->facts.session_len,
        .pool_tokens = e->facts.kv_blocks * e->facts.block_tokens,
        .n_eos = e->facts.model.n_eos,
        .eos = e->facts.model.eos,
    };
    turbod_request *r = NULL;
    st = turbod_request_new(spec, &lim, &r, err);
    if (st)
        return st;
    st = equip(e, r, spec, err);
    pthread_mutex_lock(&e->admit_mu);
    /* A full queue of one tenant leaves a few places to each of the others. */
    if (!st && atomic_load(&e->n_queued) >= e->queue_size &&
        (e->n_flows < 2 || atomic_load(&r->flow->n_queued) > e->queue_size / RESERVE))
        st = turbod_err(err, TURBO_EBUSY, "%d requests are waiting; try again later",
                        atomic_load(&e->n_queued));
    if (!st) {
        atomic_fetch_add(&r->flow->n_queued, 1);
        atomic_fetch_add(&e->n_queued, 1);
        atomic_fetch_add(&e->n_open, 1);
    }
    pthread_mutex_unlock(&e->admit_mu);
    if (st) {
        turbok_kv_table_free(&r->table, e->pool);
        turbod_request_release(r);
        return st;
    }
    r->inbox = &e->inbox;
    turbod_request_ref(r);
    *out = r; /* before the push: the first event may come before this function returns */
    turbod_inbox_push(&e->inbox, r);
    return TURBO_OK;
}
