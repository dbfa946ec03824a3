/* tests/model/runner.c: see runner.h. */
#include "runner.h"

#include <stdlib.h>
#include <string.h>

#include "plugin/host.h"
#include "util/err.h"

#define GUARD 64 /* bytes behind the workspace that must stay as they are */

static size_t logits_bytes(const runner *r)
{
    return (size_t)r->max_tokens * (size_t)r->info.vocab * sizeof(float);
}

static turbo_status open_steps(runner *r, const runner_opts *o, turbo_err *err)
{
    const turbok_steps steps = {.max_tokens = o->max_tokens,
                                .max_seqs = o->max_tokens, /* every row of a step may be wanted */
                                .max_len = o->max_tokens,
                                .n_heads = r->info.n_heads,
                                .head_dim = r->info.head_dim,
                                .embed_dim = r->info.embed_dim,
                                .vocab = r->info.vocab,
                                .block_tokens = 16,
                                .picture_bytes = o->picture_bytes};
    r->device_logits = turbok_space_new(r->device, logits_bytes(r));
    return r->device_logits ? turbok_steps_open(r->device, &steps, err)
                            : turbod_err(err, TURBO_ENOMEM, "no memory for logits");
}

turbo_status runner_open(runner *r, const turbo_model_vtbl *vtbl, const char *folder,
                         const runner_opts *o, turbo_err *err)
{
    const turbo_host *host = turbod_host_table();
    *r = (runner){.vtbl = vtbl, .max_tokens = o->max_tokens, .info = {.size = sizeof r->info}};
    turbok_device_opts d = {.on = o->cuda ? TURBOK_ON_CUDA : TURBOK_ON_CPU,
                            .path = o->cuda,
                            .act_dtype = o->act_dtype,
                            .isa = o->isa,
                            .threads = o->threads,
                            .spin_us = -1,
                            .exact = o->exact};
    turbo_status st = turbok_device_open(&d, &r->device, err);
    if (!st)
        st = turbod_config_open(folder, &r->config, err);
    const turbo_model_vtbl *found;
    if (!st && o->registry)
        st = turbod_registry_model_for(o->registry, r->config, &found, err);
    if (!st && !vtbl->probe(host, r->config))
        st = turbod_err(err, TURBO_EUNSUPPORTED, "the plugin does not know this config.json");
    if (!st)
        st = vtbl->describe(host, r->config, &r->info, err);
    turbod_weights_opts w = {.device = r->device,
                             .quantize = o->quantize,
                             .cache_dir = o->cache_dir,
                             .cache_dir_size = UINT64_MAX};
    if (!st)
        st = turbod_weights_open(folder, &w, &r->weights, err);
    if (!st)
        st = turbod_weights_check(r->weights, host, vtbl, r->config, err);
    turbod_weights_sums sums; /* counting tells a head from other matrices */
    if (!st)
        st = turbod_weights_count(r->weights, host, vtbl, r->config, r->info.vocab, &sums, err);
    if (!st)
        st = vtbl->open(host, r->config, r->weights, turbok_device_ops(r->device), &r->model, err);
    if (!st)
        st = turbod_weights_unmap(r->weights, err);
    turbok_kv_dims dims = {r->info.n_layers, r->info.n_kv, r->info.head_dim, 16, o->kv_dtype};
    if (!st)
        st = turbok_kv_pool_new(r->device, &dims, o->max_tokens / 16 + 1, &r->pool, err);
    if (!st)
        st = turbok_kv_table_init(&r->table, r->pool, o->max_tokens, err);
    if (st)
        return st;
    r->act_bytes = turbok_device_ops(r->device)->act_dtype == TURBO_F32 ? 4 : 2;
    r->workspace_bytes = vtbl->workspace(&r->info, o->max_tokens, o->max_tokens, r->act_bytes);
    r->workspace = turbok_space_new(r->device, r->workspace_bytes + GUARD);
    if (!r->workspace)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a workspace");
    return o->cuda ? open_steps(r, o, err) : TURBO_OK;
}

void runner_close(runner *r)
{
    if (r->pool)
        turbok_kv_table_free(&r->table, r->pool);
    turbok_kv_pool_free(r->pool);
    r->vtbl->close(r->model);
    turbod_weights_close(r->weights);
    turbod_config_close(r->config);
    if (r->device) {
        turbok_space_free(r->device, r->workspace, r->workspace_bytes + GUARD);
        turbok_space_free(r->device, r->device_logits, logits_bytes(r));
    }
    turbok_device_close(r->device);
    *r = (runner){0};
}

void runner_reset(runner *r)
{
    turbok_kv_table_truncate(&r->table, r->pool, 0);
    r->table.len = 0;
}

/* What is behind the bytes the plugin asked for must stay as it is; what is inside is poison. */
static turbo_status on_host(runner *r, const turbo_batch *b, float *logits, turbo_err *err)
{
    uint8_t *end = (uint8_t *)r->workspace + b->workspace_bytes;
    memset(r->workspace, 0xff, b->workspace_bytes);
    memset(end, 0xa5, GUARD);
    turbo_status st = r->vtbl->forward(r->model, turbok_device_exec(r->device), b, logits, err);
    for (int i = 0; i < GUARD && !st; i++)
        if (end[i] != 0xa5)
            st = turbod_err(err, TURBO_EINTERNAL, "forward wrote behind its workspace");
    return st;
}

static turbo_status on_card(runner *r, const turbo_batch *b, float *logits, turbo_err *err)
{
    turbo_batch as;
    bool replay;
    turbo_status st = turbok_step_begin(r->device, b, NULL, &as, &replay, err);
    if (!st && !replay)
        st = r->vtbl->forward(r->model, turbok_device_exec(r->device), &as, r->device_logits, err);
    if (st)
        turbok_step_drop(r->device);
    else
        st = turbok_step_end(r->device, r->device_logits, NULL, b->n_rows, logits, err);
    return st ? st : turbok_step_wait(r->device, NULL, b->n_rows, err);
}

turbo_status runner_step(runner *r, const int32_t *ids, int32_t n, int32_t rope_len, int32_t n_rows,
                         float *logits, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    int32_t *positions = calloc((size_t)n, sizeof *positions);
    int32_t *rows = calloc((size_t)n, sizeof *rows);
    int32_t cu[2] = {0, n}, kv_len = r->table.len + n;
    if (!positions || !rows || n > r->max_tokens ||
        !turbok_kv_table_reserve(&r->table, r->pool, kv_len)) {
        st = turbod_err(err, TURBO_ENOMEM, "no room for %d tokens", n);
        goto out;
    }
    for (int32_t i = 0; i < n; i++)
        positions[i] = r->table.len + i;
    for (int32_t i = 0; i < n_rows; i++)
        rows[i] = n - n_rows + i;
    turbok_kv_table *tables[1] = {&r->table};
    struct turbo_kv kv = {r->pool, tables};
    turbo_batch b = {
        .size = sizeof b,
        .n_tokens = n,
        .n_seqs = 1,
        .n_rows = n_rows,
        .tokens = ids,
        .positions = positions,
        .cu_seqlens = cu,
        .kv_lens = &kv_len,
        .rope_lens = &rope_len,
        .row_index = rows,
        .embed_rows = r->embed_rows,
        .embed_index = r->embed_rows ? r->embed_at + r->table.len : NULL,
        .kv = &kv,
        .workspace = r->workspace,
        .workspace_bytes = r->vtbl->workspace(&r->info, n, n_rows, r->act_bytes),
    };
    st = r->device_logits ? on_card(r, &b, logits, err) : on_host(r, &b, logits, err);
    r->table.len = kv_len;
out:
    free(positions);
    free(rows);
    return st;
}
