/* core/engine/load.c: what an engine takes from the machine, in order: model files, weights, workspaces,
 * KV pool. Main thread, during turbod_engine_open. Whatever can be refused is refused before memory is
 * taken for it; a failure half-way is undone by turbod_engine_close. */
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

static turbo_status open_workspace(turbod_engine *e, const turbod_engine_opts *o, turbo_err *err)
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
    e->row_req = calloc(B, sizeof *e->row_req);
    e->tops = calloc(B * 20, sizeof *e->tops);
    if (!e->workspace || !e->logits || !e->rows || !e->row_req || !e->tops)
        return turbod_err(err, TURBO_ENOMEM,
                          "no memory for workspaces (%zu MiB); lower max_batch_size or "
                          "max_prefill_token_num",
                          (bytes + e->workspace_bytes) >> 20);
    e->facts.workspace_bytes = e->workspace_bytes + bytes;
    if (!e->facts.media.n_rows)
        return TURBO_OK;
    turbo_status st =
        turbod_media_open(o->registry, e->model_vtbl, e->model, &e->facts.media,
                          e->facts.model.embed_dim, o->image_bytes, &e->metrics, &e->media, err);
    if (!st)
        e->facts.workspace_bytes += turbod_media_bytes(e->media);
    return st;
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
    if (e->media) /* what the store will take is not taken yet */
        vacant -= vacant < o->image_bytes ? vacant : o->image_bytes;
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

turbo_status turbod_engine_load(turbod_engine *e, const turbod_engine_opts *o, turbo_err *err)
{
    turbo_status st = open_model_files(e, o, err);
    if (!st)
        st = open_weights(e, o, err);
    if (!st)
        st = open_workspace(e, o, err);
    if (!st)
        st = open_kv(e, o, err);
    return st;
}
