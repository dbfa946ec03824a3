/* core/engine/engine.c: opening, running and closing an engine. open and close run on the main
 * thread, the loop on the engine thread, submit and drain anywhere. */
#include "engine/engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/state.h"
#include "plugin/host.h"
#include "util/checked.h"
#include "util/err.h"
#include "util/log.h"
#include "util/memory.h"
#include "weights/config.h"
#include "weights/weights.h"

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
        .isa = "auto",
        .sampler = "std",
    };
}

static turbo_status parse_isa(const char *name, turbok_isa *isa, turbo_err *err)
{
    static const struct {
        const char *name;
        turbok_isa isa;
    } names[] = {
        {"auto", TURBOK_ISA_AUTO},
        {"scalar", TURBOK_ISA_SCALAR},
        {"avx2", TURBOK_ISA_AVX2},
        {"avx512", TURBOK_ISA_AVX512},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!strcmp(name, names[i].name)) {
            *isa = names[i].isa;
            return TURBO_OK;
        }
    return turbod_err(err, TURBO_EINVAL, "isa is \"%s\"; use auto, scalar, avx2 or avx512", name);
}

/* Config, plugin and tokenizer: everything that can be refused before memory is taken. */
static turbo_status open_model_files(turbod_engine *e, const turbod_engine_opts *o, turbo_err *err)
{
    turbod_engine_facts *f = &e->facts;
    const turbo_host *host = turbod_host_table();
    turbo_status st = turbod_config_open(o->model_dir, &e->config, err);
    if (st)
        return st;
    f->config = e->config;
    st = turbod_registry_model_for(o->registry, e->config, &e->model_vtbl, err);
    if (st)
        return st;
    f->model_plugin = e->model_vtbl->id;
    f->model.size = sizeof f->model;
    st = e->model_vtbl->describe(host, e->config, &f->model, err);
    if (st)
        return st;

    const turbo_tokenizer_vtbl *tv = NULL;
    turbo_err none = {{0}};
    if (turbod_registry_tokenizer_for(o->registry, o->model_dir, &tv, &none) == TURBO_OK) {
        st = tv->open(host, o->model_dir, &e->tok, err);
        if (st)
            return st;
        f->tok_vtbl = tv;
        f->tok = e->tok;
        f->tok_info.size = sizeof f->tok_info;
        tv->info(e->tok, &f->tok_info);
        if (f->tok_info.n_vocab > f->model.vocab)
            return turbod_err(err, TURBO_EDATA,
                              "the tokenizer has %d tokens, config.json's vocab_size is %d; the "
                              "files belong to different models",
                              f->tok_info.n_vocab, f->model.vocab);
    } else {
        turbod_log(TURBO_LOG_WARN, "no tokenizer: %s; only token ids can be used", none.text);
    }
    e->sampler_vtbl = turbod_registry_sampler(o->registry, o->sampler);
    if (!e->sampler_vtbl)
        return turbod_err(err, TURBO_ENOENT,
                          "no plugin offers the sampler \"%.40s\"; check sampler and plugin_path",
                          o->sampler);
    return e->sampler_vtbl->open(host, f->model.vocab, &e->sampler, err);
}

static turbo_status open_weights(turbod_engine *e, const turbod_engine_opts *o, turbo_err *err)
{
    const turbo_host *host = turbod_host_table();
    turbok_device_opts dev = {.threads = o->threads, .pin = o->pin, .spin_us = -1};
    turbo_status st = parse_isa(o->isa, &dev.isa, err);
    if (!st)
        st = turbok_device_open(&dev, &e->device, err);
    if (st)
        return st;
    e->facts.device = turbok_device_name(e->device);
    turbod_weights_opts w = {
        .device = e->device,
        .progress = o->progress,
        .progress_ctx = o->progress_ctx,
        .allow_nonfinite = o->allow_nonfinite,
    };
    st = turbod_weights_open(o->model_dir, &w, &e->weights, err);
    if (!st)
        st = turbod_weights_check(e->weights, host, e->model_vtbl, e->config, err);
    if (!st)
        st = e->model_vtbl->open(host, e->config, e->weights, turbok_device_ops(e->device),
                                 &e->model, err);
    if (!st)
        st = turbod_weights_unmap(e->weights, err);
    if (!st)
        e->facts.weight_bytes = turbod_weights_bytes(e->weights);
    return st;
}

static turbo_status open_workspace(turbod_engine *e, turbo_err *err)
{
    size_t V = (size_t)e->facts.model.vocab, B = (size_t)e->max_batch, n, bytes;
    e->workspace_bytes = e->model_vtbl->workspace(&e->facts.model, e->max_step_tokens, e->max_batch,
                                                  (int32_t)sizeof(float));
    if (!turbod_mul(V, B, &n) || !turbod_mul(n, sizeof(float), &bytes) ||
        !turbod_round_up(bytes, 64, &bytes) ||
        !turbod_round_up(e->workspace_bytes, 64, &e->workspace_bytes))
        return turbod_err(err, TURBO_ELIMIT, "max_batch_size %d is too large for this model",
                          e->max_batch);
    e->workspace = aligned_alloc(64, e->workspace_bytes ? e->workspace_bytes : 64);
    e->logits = aligned_alloc(64, bytes);
    e->rows = calloc(B, sizeof *e->rows);
    e->tops = calloc(B * 20, sizeof *e->tops);
    if (!e->workspace || !e->logits || !e->rows || !e->tops)
        return turbod_err(err, TURBO_ENOMEM,
                          "no memory for workspaces (%zu MiB); lower max_batch_size or "
                          "max_prefill_token_num",
                          (bytes + e->workspace_bytes) >> 20);
    e->facts.workspace_bytes = e->workspace_bytes + bytes;
    return TURBO_OK;
}

/* The KV pool: what the conf allows, but never more than max_batch sequences of full length can
 * fill, because nothing would use the rest. */
static turbo_status open_kv(turbod_engine *e, const turbod_engine_opts *o, turbo_err *err)
{
    turbod_engine_facts *f = &e->facts;
    turbok_kv_dims dims = {
        .n_layers = f->model.n_layers,
        .n_kv = f->model.n_kv,
        .head_dim = f->model.head_dim,
        .block_tokens = o->block_tokens,
        .dtype = o->kv_dtype >= 0 ? o->kv_dtype : f->model.dtype,
    };
    uint64_t block = turbok_kv_block_bytes(&dims);
    if (!block)
        return turbod_err(err, TURBO_EINVAL,
                          "cache_block_seq_len %d does not work with this model; use 64",
                          o->block_tokens);
    uint64_t vacant = turbod_memory_free(), bytes = o->cache_bytes;
    if (!bytes)
        bytes = (uint64_t)((double)vacant * o->cache_fraction);
    else if (vacant && bytes > vacant)
        return turbod_err(err, TURBO_ENOMEM,
                          "cache_max_entry_count asks for %.1f GiB, %.1f GiB are free; lower it",
                          (double)bytes / 0x1p30, (double)vacant / 0x1p30);
    int64_t want_len = o->session_len ? o->session_len : f->model.max_position;
    int64_t seq_blocks = (want_len + o->block_tokens - 1) / o->block_tokens;
    uint64_t n = bytes / block, useful = (uint64_t)seq_blocks * (uint64_t)o->max_batch;
    n = n < useful ? n : useful;
    n = n < INT32_MAX / (uint64_t)o->block_tokens ? n : INT32_MAX / (uint64_t)o->block_tokens;
    if (!n)
        return turbod_err(err, TURBO_ENOMEM,
                          "the KV cache needs at least %.1f MiB for one block, %.1f MiB are "
                          "allowed; raise cache_max_entry_count",
                          (double)block / 0x1p20, (double)bytes / 0x1p20);
    int64_t pool_tokens = (int64_t)n * o->block_tokens;
    if (o->session_len > pool_tokens)
        return turbod_err(err, TURBO_ENOMEM,
                          "session_len %lld needs %.1f GiB of KV cache, %.1f GiB are allowed: "
                          "lower session_len to %lld or raise cache_max_entry_count",
                          (long long)o->session_len, (double)(uint64_t)seq_blocks * (double)block / 0x1p30,
                          (double)bytes / 0x1p30, (long long)pool_tokens);
    f->session_len = (int32_t)(want_len < pool_tokens ? want_len : pool_tokens);
    if (f->session_len > f->model.max_position)
        turbod_log(TURBO_LOG_WARN,
                   "session_len %d is beyond the %d positions the model was made for; long answers "
                   "may turn to noise",
                   f->session_len, f->model.max_position);
    turbo_status st = turbok_kv_pool_new(e->device, &dims, (int32_t)n, &e->pool, err);
    if (st)
        return st;
    f->kv_blocks = (int32_t)n;
    f->block_tokens = o->block_tokens;
    f->kv_bytes = n * block;
    return TURBO_OK;
}

static void *engine_main(void *arg)
{
    turbod_engine *e = arg;
    bool busy = false;
    while (!atomic_load(&e->stopping)) {
        turbod_take_arrivals(e, busy ? 0 : IDLE_BEAT_NS);
        pthread_mutex_lock(&e->step_mu);
        busy = turbod_step(e);
        pthread_mutex_unlock(&e->step_mu);
    }
    turbod_take_arrivals(e, 0);
    while (e->sched.n_running)
        turbod_fail(e, e->sched.running[0], TURBO_ECANCELLED, "the server is shutting down");
    while (e->sched.waiting.head)
        turbod_fail(e, e->sched.waiting.head, TURBO_ECANCELLED, "the server is shutting down");
    return NULL;
}

static turbo_status open_scheduler(turbod_engine *e, turbo_err *err)
{
    turbo_status st = turbod_sched_init(&e->sched, e->pool, &e->metrics, e->max_batch,
                                        e->max_step_tokens, err);
    e->sched.plain_len = e->facts.model.max_position;
    if (!st)
        st = turbod_batch_init(&e->batch, e->pool, e->max_batch, e->max_step_tokens, e->workspace,
                               e->workspace_bytes, err);
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
    pthread_mutex_init(&e->step_mu, NULL);
    pthread_mutex_init(&e->admit_mu, NULL);
    turbod_metrics_init(&e->metrics);
    e->max_batch = o->max_batch;
    /* A step must hold one token of every running sequence. */
    e->max_step_tokens = o->max_step_tokens > o->max_batch ? o->max_step_tokens : o->max_batch;
    e->queue_size = o->queue_size;

    turbo_status st = open_model_files(e, o, err);
    if (!st)
        st = open_weights(e, o, err);
    if (!st)
        st = open_workspace(e, err);
    if (!st)
        st = open_kv(e, o, err);
    if (!st)
        st = open_scheduler(e, err);
    if (st) {
        turbod_engine_close(e);
        return st;
    }
    e->facts.load_seconds = (double)(turbod_now() - t0) * 1e-9;
    e->metrics.load_seconds = e->facts.load_seconds;
    e->metrics.weight_bytes = e->facts.weight_bytes;
    e->metrics.kv_bytes = e->facts.kv_bytes;
    e->metrics.workspace_bytes = e->facts.workspace_bytes;
    atomic_store(&e->metrics.kv_total, turbok_kv_pool_total(e->pool));
    atomic_store(&e->metrics.kv_free, turbok_kv_pool_free_count(e->pool));
    turbod_log(TURBO_LOG_INFO,
               "model %s: %d layers, vocabulary %d, weights %.1f MiB, KV %.1f MiB in %d blocks of "
               "%d tokens, session_len %d, %s, loaded in %.2f s",
               e->facts.model.arch, e->facts.model.n_layers, e->facts.model.vocab,
               (double)e->facts.weight_bytes / 0x1p20, (double)e->facts.kv_bytes / 0x1p20,
               e->facts.kv_blocks, e->facts.block_tokens, e->facts.session_len, e->facts.device,
               e->facts.load_seconds);
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
    if (e->model)
        e->model_vtbl->close(e->model);
    turbod_weights_close(e->weights);
    if (e->sampler)
        e->sampler_vtbl->close(e->sampler);
    if (e->tok)
        e->facts.tok_vtbl ? e->facts.tok_vtbl->close(e->tok) : (void)0;
    turbok_device_close(e->device);
    turbod_config_close(e->config);
    free(e->workspace);
    free(e->logits);
    free(e->rows);
    free(e->tops);
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

/* Everything a request needs beyond its copy of the spec: KV table, sampler state, detokeniser. */
static turbo_status equip(turbod_engine *e, turbod_request *r, const turbod_request_spec *spec,
                          turbo_err *err)
{
    int32_t len = r->n_prompt + r->max_tokens;
    turbo_status st = turbok_kv_table_init(&r->table, e->pool,
                                           spec->session ? e->facts.session_len : len, err);
    if (st)
        return st;
    uint64_t bytes = e->sampler_vtbl->state_bytes(e->sampler, len);
    r->sampler_state = calloc(1, bytes ? bytes : 1);
    if (!r->sampler_state)
        return turbod_err(err, TURBO_ENOMEM, "no memory for the sampler's state");
    st = e->sampler_vtbl->begin(e->sampler, r->sampler_state, len, &r->params, r->tokens,
                                r->n_prompt, err);
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
    if (atomic_load(&e->draining) || atomic_load(&e->failed))
        return turbod_err(err, TURBO_EBUSY, atomic_load(&e->failed)
                                                ? "the engine has failed; the server needs a restart"
                                                : "the server is shutting down");
    if (spec->n_stops && !e->facts.tok_vtbl)
        return turbod_err(err, TURBO_EUNSUPPORTED, "stop strings need a tokenizer; use stop ids");
    turbod_request_limits lim = {
        .vocab = e->facts.model.vocab,
        .session_len = e->facts.session_len,
        .pool_tokens = e->facts.kv_blocks * e->facts.block_tokens,
        .n_eos = e->facts.model.n_eos,
        .eos = e->facts.model.eos,
    };
    turbod_request *r = NULL;
    turbo_status st = turbod_request_new(spec, &lim, &r, err);
    if (st)
        return st;
    st = equip(e, r, spec, err);
    pthread_mutex_lock(&e->admit_mu);
    if (!st && atomic_load(&e->n_queued) >= e->queue_size)
        st = turbod_err(err, TURBO_EBUSY, "%d requests are waiting; try again later",
                        e->queue_size);
    if (!st) {
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
