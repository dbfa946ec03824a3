/* core/engine/load.c: what an engine takes from the machine, in order: model files, weights, workspaces,
 * KV pool. Main thread, during turbod_engine_open. How much of each is the plan's to say (plan/plan.h):
 * no size is computed here. Whatever can be refused is refused before memory is taken; a failure
 * half-way is undone by turbod_engine_close. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/state.h"
#include "plugin/host.h"
#include "util/err.h"
#include "util/log.h"
#include "weights/config.h"
#include "weights/weights.h"

/* The one that the conf names, and one that runs programs: the same when it can. */
static turbo_status open_samplers(turbod_engine *e, const turbod_engine_opts *o, turbo_err *err)
{
    struct turbod_sampler *s = e->samplers;
    s[0].vtbl = turbod_registry_sampler(o->registry, o->sampler);
    if (!s[0].vtbl)
        return turbod_err(err, TURBO_ENOENT,
                          "no plugin offers the sampler \"%.40s\"; check sampler and plugin_path",
                          o->sampler);
    s[1].vtbl = s[0].vtbl->programs ? s[0].vtbl : turbod_registry_programs(o->registry);
    turbo_status st = TURBO_OK;
    for (int i = 0; i < 2 && !st && s[i].vtbl; i++)
        st = s[i].vtbl->open(turbod_host_table(), e->facts.model.vocab, &s[i].self, err);
    return st;
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
    st = turbod_media_describe(o->registry, e->model_vtbl, e->config, f->model.vocab, &f->media,
                               err);
    if (st)
        return st;
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
    return open_samplers(e, o, err);
}

static turbo_status open_device(turbod_engine *e, const turbod_engine_opts *o, turbo_err *err)
{
    turbo_status st = turbod_engine_open_device(o, e->facts.model.dtype, &e->device, NULL, err);
    const char *as = st ? NULL : turbok_draws_as(e->device);
    e->device_draws = as && !strcmp(as, e->samplers[0].vtbl->id);
    if (!st)
        e->facts.device = turbok_device_name(e->device);
    return st;
}

/* Headers are compared with the architecture and everything is counted before a weight is read. */
static turbo_status make_plan(turbod_engine *e, const turbod_engine_opts *o, turbo_err *err)
{
    const turbo_host *host = turbod_host_table();
    turbod_engine_facts *f = &e->facts;
    turbod_weights_sums sums;
    turbod_weights_opts w = {
        .device = e->device,
        .progress = o->progress,
        .progress_ctx = o->progress_ctx,
        .allow_nonfinite = o->allow_nonfinite,
        .model_format = o->model_format,
        .quantize = o->quantize,
        .cache_dir = o->cache_dir,
        .cache_dir_size = o->cache_dir_size,
        .later = true, /* open_weights waits */
    };
    turbo_status st = turbod_weights_open(o->model_dir, &w, &e->weights, err);
    if (!st)
        st = turbod_weights_check(e->weights, host, e->model_vtbl, e->config, err);
    if (!st)
        st = turbod_weights_count(e->weights, host, e->model_vtbl, e->config, f->model.vocab, &sums,
                                  err);
    if (st)
        return st;
    e->quantised = sums.quantised;
    turbod_plan_in in = {.info = &f->model, .vtbl = e->model_vtbl, .weights = &sums};
    turbod_engine_plan_in(o, &in);
    if (o->swap_bytes && turbok_device_on_host(e->device))
        return turbod_err(
            err, TURBO_EUNSUPPORTED,
            "swap_space is host memory for the KV cache of a card; on a CPU the cache "
            "is in host memory: set swap_space = 0");
    in.images = turbod_media_bytes(&f->media, o->image_bytes);
    turbod_engine_plan_device(e->device, o, &f->model, &f->media, sums.quantised, &in);
    st = turbod_plan_make(&in, &f->plan, err);
    if (st)
        return st;
    e->max_batch = f->plan.max_batch;
    e->max_step_tokens = f->plan.max_step_tokens;
    f->session_len = f->plan.session_len;
    f->kv_blocks = f->plan.blocks;
    f->block_tokens = o->block_tokens;
    f->kv_type = turbok_kv_type_name(f->plan.dims.dtype);
    if (f->session_len > f->model.max_position)
        turbod_log(TURBO_LOG_WARN,
                   "session_len %d is beyond the %d positions the model was made for; long answers "
                   "may turn to noise",
                   f->session_len, f->model.max_position);
    return TURBO_OK;
}

/* Since *t, to the stage; *t becomes now. */
static void clocked(turbod_engine *e, int stage, int64_t *t)
{
    int64_t now = turbod_now();
    e->metrics.load_seconds[stage] = (double)(now - *t) * 1e-9;
    *t = now;
}

/* Where the time of the weights went, in the order of t: begin, memory, model and copies, files. */
static void tell_weights(const turbod_engine *e, const int64_t t[4])
{
    const turbok_copied c = turbok_device_copied(e->device);
    double open = (double)(t[2] - t[1]) * 1e-9;
    turbod_log(TURBO_LOG_DEBUG,
               "weights: %.3f GB to the device; memory %.4f s; threads read, check and pack %.4f, "
               "waits for copies %.4f, tables, names and the rest %.4f; closing files %.4f",
               (double)c.bytes * 1e-9, (double)(t[1] - t[0]) * 1e-9, c.filling, c.waiting,
               open - c.filling - c.waiting, (double)(t[3] - t[2]) * 1e-9);
}

static turbo_status open_weights(turbod_engine *e, turbo_err *err)
{
    const uint64_t *bytes = e->facts.plan.bytes;
    int64_t t[4] = {turbod_now()};
    turbo_status st = turbok_device_expect(e->device,
                                           bytes[TURBOD_MEM_WEIGHTS] + bytes[TURBOD_MEM_VECTORS] +
                                               bytes[TURBOD_MEM_ROPE],
                                           err);
    t[1] = turbod_now();
    if (!st)
        st = e->model_vtbl->open(turbod_host_table(), e->config, e->weights,
                                 turbok_device_ops(e->device), &e->model, err);
    if (!st) /* it may read files until then */
        st = turbok_device_wait(e->device, err);
    t[2] = turbod_now();
    if (!st)
        st = turbod_weights_unmap(e->weights, err);
    t[3] = turbod_now();
    if (!st && !turbok_device_on_host(e->device))
        tell_weights(e, t);
    return st;
}

/* Zeroed memory of the engine itself, counted under its kind. */
static turbo_status take(turbod_engine *e, turbod_mem kind, uint64_t bytes, void **out,
                         turbo_err *err)
{
    *out = turbok_space_new(e->device, bytes);
    if (!*out)
        return turbod_err(err, TURBO_ENOMEM,
                          "no memory for workspaces (%llu MiB); lower max_batch_size or "
                          "max_prefill_token_num",
                          (unsigned long long)(bytes >> 20));
    e->facts.alloc[kind] += bytes;
    return TURBO_OK;
}

/* The same for sampling, which runs on the host. */
static turbo_status take_host(turbod_engine *e, uint64_t bytes, void **out, turbo_err *err)
{
    *out = aligned_alloc(64, bytes ? bytes : 64);
    if (!*out)
        return turbod_err(err, TURBO_ENOMEM, "no memory for sampling; lower max_batch_size");
    memset(*out, 0, bytes);
    e->facts.alloc[TURBOD_MEM_SAMPLING] += bytes;
    return TURBO_OK;
}

void turbod_engine_unload(turbod_engine *e)
{
    if (!e->device)
        return;
    const turbod_plan *p = &e->facts.plan;
    if (e->logits != e->device_logits)
        turbok_pinned_free(e->device, e->logits, p->logits);
    turbok_space_free(e->device, e->device_logits, p->logits);
    turbok_space_free(e->device, e->workspace, e->workspace_bytes);
    e->logits = e->device_logits = NULL;
    e->workspace = NULL;
}

turbo_status turbod_engine_forward(turbod_engine *e, const turbo_batch *b, turbok_row *rows,
                                   float *host, turbo_err *err)
{
    turbo_batch as;
    bool replay, direct = turbok_device_on_host(e->device);
    turbo_status st = turbok_step_begin(e->device, b, rows, &as, &replay, err);
    if (!st && !replay)
        st = e->model_vtbl->forward(e->model, turbok_device_exec(e->device), &as,
                                    direct ? host : e->device_logits, err);
    if (!st)
        return turbok_step_end(e->device, e->device_logits, rows, b->n_rows, host, err);
    turbok_step_drop(e->device);
    return st;
}

static turbo_status open_workspace(turbod_engine *e, turbo_err *err)
{
    const turbod_plan *p = &e->facts.plan;
    void *logits = NULL, *rows = NULL, *tops = NULL;
    turbo_status st =
        take(e, TURBOD_MEM_WORKSPACE, p->bytes[TURBOD_MEM_WORKSPACE], &e->workspace, err);
    e->workspace_bytes = p->bytes[TURBOD_MEM_WORKSPACE];
    if (!st)
        st = take(e, TURBOD_MEM_SAMPLING, p->logits, &logits, err);
    e->device_logits = logits;
    e->logits = logits;
    if (!st && !turbok_device_on_host(e->device)) {
        e->logits = turbok_pinned_new(e->device, p->logits);
        if (!e->logits)
            st = turbod_err(err, TURBO_ENOMEM, "no pinned memory for logits; lower max_batch_size");
    }
    if (!st)
        st = take_host(e, p->rows, &rows, err);
    if (!st)
        st = take_host(e, p->tops, &tops, err);
    e->row_req = calloc((size_t)p->max_batch, sizeof *e->row_req);
    bool room = e->row_req;
    for (int i = 0; i < 2; i++) {
        turbod_flight *f = &e->flights[i];
        f->rows = calloc((size_t)p->max_batch, sizeof *f->rows);
        f->drawn = calloc((size_t)p->max_batch, sizeof *f->drawn);
        f->items = calloc((size_t)p->max_batch, sizeof *f->items);
        room = room && f->rows && f->drawn && f->items;
    }
    if (!st && !room)
        st = turbod_err(err, TURBO_ENOMEM, "no memory for %d sampling rows", p->max_batch);
    e->rows = rows;
    e->tops = tops;
    return st;
}

void turbod_engine_audit(turbod_engine *e)
{
    static const turbod_mem of_device[TURBOK_MEM_KINDS] = {
        [TURBOK_MEM_LINEAR] = TURBOD_MEM_WEIGHTS,    [TURBOK_MEM_VECTOR] = TURBOD_MEM_VECTORS,
        [TURBOK_MEM_ROPE] = TURBOD_MEM_ROPE,         [TURBOK_MEM_KV] = TURBOD_MEM_KV,
        [TURBOK_MEM_KV_INDEX] = TURBOD_MEM_KV_INDEX, [TURBOK_MEM_SCRATCH] = TURBOD_MEM_SCRATCH,
    };
    turbod_engine_facts *f = &e->facts;
    f->alloc[TURBOD_MEM_CONTEXT] = turbok_device_context(e->device);
    f->alloc[TURBOD_MEM_GRAPHS] = f->plan.bytes[TURBOD_MEM_GRAPHS]; /* left free for them */
    for (int k = 0; k < TURBOK_MEM_KINDS; k++)
        f->alloc[of_device[k]] = turbok_device_mem(e->device, (turbok_mem)k);
    for (int k = 0; k < TURBOD_MEM_KINDS; k++) {
        e->metrics.plan_bytes[k] = f->plan.bytes[k];
        e->metrics.alloc_bytes[k] = f->alloc[k];
        if (f->plan.bytes[k] != f->alloc[k])
            turbod_log(
                TURBO_LOG_WARN,
                "memory: %s took %llu bytes, %llu were planned; the model plugin %s asks for "
                "other tensors than it did while it was counted",
                turbod_mem_names[k], (unsigned long long)f->alloc[k],
                (unsigned long long)f->plan.bytes[k], f->model_plugin);
    }
}

turbo_status turbod_engine_load(turbod_engine *e, const turbod_engine_opts *o, turbo_err *err)
{
    int64_t t = turbod_now();
    turbo_status st = open_model_files(e, o, err);
    clocked(e, TURBOD_LOAD_FILES, &t);
    if (!st)
        st = open_device(e, o, err);
    if (!st)
        st = make_plan(e, o, err);
    clocked(e, TURBOD_LOAD_DEVICE, &t);
    if (!st)
        st = open_weights(e, err);
    clocked(e, TURBOD_LOAD_WEIGHTS, &t);
    if (!st)
        st = open_workspace(e, err);
    if (!st && e->facts.media.n_rows)
        st = turbod_media_open(o->registry, e->model_vtbl, e->model, e->device, &e->facts.media,
                               e->facts.model.embed_dim, o->image_bytes, &e->metrics, &e->media,
                               err);
    if (!st && e->media)
        e->facts.alloc[TURBOD_MEM_IMAGES] = turbod_media_reserved(e->media);
    clocked(e, TURBOD_LOAD_WORKSPACE, &t);
    if (!st && !turbok_device_on_host(e->device)) {
        const turbok_steps steps =
            turbod_engine_steps(o, &e->facts.model, &e->facts.media, e->quantised);
        st = turbok_steps_open(e->device, &steps, err);
    }
    if (!st)
        st =
            turbok_kv_pool_new(e->device, &e->facts.plan.dims, e->facts.plan.blocks, &e->pool, err);
    if (!st && e->facts.plan.swap_blocks) {
        st = turbok_kv_swap_new(e->pool, e->facts.plan.swap_blocks, err);
        e->facts.alloc[TURBOD_MEM_SWAP] =
            st ? 0 : (uint64_t)turbok_kv_swap_total(e->pool) * e->facts.plan.block_bytes;
    }
    if (!st) /* the zeros of its memory, too */
        st = turbok_device_wait(e->device, err);
    clocked(e, TURBOD_LOAD_KV, &t);
    return st;
}
