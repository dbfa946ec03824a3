/* plugins/internlm2/model.c: InternLM2 and InternLM2.5: weights, forward pass, descriptor.
 *
 * A pre-norm decoder: h += wo(attention(rope(wqkv(norm(h))))); h += w2(silu(w1 n) * w3 n), n = norm(h).
 * wqkv is packed by KV head: its query heads, then K, then V (TURBO_QKV_GROUPED). forward runs on the
 * engine thread and only calls kernels. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "internlm2.h"

typedef struct layer {
    const turbo_vector *attention_norm, *ffn_norm;
    const turbo_linear *wqkv, *wo, *w1, *w2, *w3;
} layer;

typedef struct model {
    internlm2_config cfg;
    const turbo_ops *ops;
    const turbo_linear *embeddings, *output;
    const turbo_vector *norm;
    const turbo_rope *rope;
    layer layers[];
} model;

/* Offsets of the activations inside the workspace, in elements; all [T, ...]. */
typedef struct layout {
    uint64_t h;    /* [T,E] residual stream */
    uint64_t x;    /* [T,E] normalised input, also the output of a block */
    uint64_t qkv;  /* [T,(H+2K)*D], then the MLP's [T,2*I] in the same place */
    uint64_t q;    /* [T,H*D] */
    uint64_t attn; /* [T,max(H*D,E)] output of attention, then of the MLP */
    uint64_t rows; /* [R,E] rows that need logits */
    uint64_t total;
} layout;

static uint64_t up16(uint64_t n)
{
    return (n + 15) / 16 * 16; /* 64 bytes for 4-byte activations */
}

static layout plan(const turbo_model_info *m, int32_t T, int32_t R)
{
    uint64_t t = (uint64_t)T, E = (uint64_t)m->embed_dim, D = (uint64_t)m->head_dim;
    uint64_t qkv = ((uint64_t)m->n_heads + 2 * (uint64_t)m->n_kv) * D, mlp = 2 * (uint64_t)m->mlp_dim;
    layout o = {0};
    o.x = up16(t * E);
    o.qkv = o.x + up16(t * E);
    o.q = o.qkv + up16(t * (qkv > mlp ? qkv : mlp));
    o.attn = o.q + up16(t * (uint64_t)m->n_heads * D);
    uint64_t Q = (uint64_t)m->n_heads * D;
    o.rows = o.attn + up16(t * (Q > E ? Q : E));
    o.total = o.rows + up16((uint64_t)R * E);
    return o;
}

static turbo_status describe(const turbo_host *h, const turbo_config *c, turbo_model_info *out,
                             turbo_err *err)
{
    internlm2_config cfg;
    turbo_status st = internlm2_read(h, c, &cfg, err);
    if (!st)
        *out = cfg.info;
    return st;
}

static uint64_t workspace(const turbo_model_info *info, int32_t max_T, int32_t max_R,
                          int32_t act_bytes)
{
    return plan(info, max_T, max_R).total * (uint64_t)act_bytes;
}

static turbo_status open_layer(const turbo_host *h, turbo_weights *w, const internlm2_config *c,
                               int32_t l, layer *out, turbo_err *err)
{
    const turbo_model_info *m = &c->info;
    int64_t E = m->embed_dim, D = m->head_dim, I = m->mlp_dim, Q = m->n_heads * D;
    uint32_t bias = c->bias ? (uint32_t)TURBO_LINEAR_BIAS : 0;
    const struct {
        const char *name;
        int64_t out_dim, in_dim;
        uint32_t flags;
        const turbo_linear **to;
    } mats[] = {
        {"attention.wqkv", Q + 2 * m->n_kv * D, E, bias, &out->wqkv},
        {"attention.wo", E, Q, bias, &out->wo},
        {"feed_forward.w1", I, E, 0, &out->w1},
        {"feed_forward.w3", I, E, 0, &out->w3},
        {"feed_forward.w2", E, I, 0, &out->w2},
    };
    char name[96];
    turbo_status st = TURBO_OK;
    for (size_t i = 0; i < sizeof mats / sizeof mats[0] && !st; i++) {
        snprintf(name, sizeof name, "model.layers.%d.%s", l, mats[i].name);
        st = h->linear(w, name, mats[i].out_dim, mats[i].in_dim, mats[i].flags, mats[i].to, err);
    }
    if (!st) {
        snprintf(name, sizeof name, "model.layers.%d.attention_norm", l);
        st = h->vector(w, name, E, &out->attention_norm, err);
    }
    if (!st) {
        snprintf(name, sizeof name, "model.layers.%d.ffn_norm", l);
        st = h->vector(w, name, E, &out->ffn_norm, err);
    }
    return st;
}

static turbo_status open_model(const turbo_host *h, const turbo_config *c, turbo_weights *w,
                               const turbo_ops *ops, void **out, turbo_err *err)
{
    internlm2_config cfg;
    turbo_status st = internlm2_read(h, c, &cfg, err);
    if (st)
        return st;
    const turbo_model_info *info = &cfg.info;
    model *m = calloc(1, sizeof *m + (size_t)info->n_layers * sizeof m->layers[0]);
    if (!m)
        return internlm2_fail(err, TURBO_ENOMEM, "no memory for a model of %d layers",
                              info->n_layers);
    m->cfg = cfg;
    m->ops = ops;
    st = h->linear(w, "model.tok_embeddings", info->vocab, info->embed_dim, TURBO_LINEAR_TABLE,
                   &m->embeddings, err);
    for (int32_t l = 0; l < info->n_layers && !st; l++)
        st = open_layer(h, w, &m->cfg, l, &m->layers[l], err);
    if (!st)
        st = h->vector(w, "model.norm", info->embed_dim, &m->norm, err);
    if (!st && !cfg.tied)
        st = h->linear(w, "output", info->vocab, info->embed_dim, 0, &m->output, err);
    else if (!st)
        m->output = m->embeddings;
    if (!st)
        st = h->rope(w, &m->cfg.rope, &m->rope, err);
    if (st) {
        free(m);
        return st;
    }
    *out = m;
    return TURBO_OK;
}

static void close_model(void *p)
{
    free(p);
}

static turbo_status forward(void *p, turbo_exec *x, const turbo_batch *b, float *logits,
                            turbo_err *err)
{
    const model *m = p;
    const turbo_model_info *info = &m->cfg.info;
    const turbo_ops *ops = m->ops;
    int32_t T = b->n_tokens, E = info->embed_dim;
    layout at = plan(info, T, b->n_rows);
    if (at.total * sizeof(float) > b->workspace_bytes)
        return internlm2_fail(err, TURBO_EINTERNAL, "the workspace is too small for %d tokens", T);
    float *base = b->workspace;
    float *h = base, *n = base + at.x, *wide = base + at.qkv, *q = base + at.q, *o = base + at.attn;
    float *rows = base + at.rows;
    turbo_attn attn = {
        .size = sizeof attn,
        .n_heads = info->n_heads,
        .n_kv = info->n_kv,
        .head_dim = info->head_dim,
        .layout = TURBO_QKV_GROUPED,
        .scale = 1.0f / sqrtf((float)info->head_dim),
        .rope = m->rope,
    };
    const float *delta = NULL; /* output of the last block, not yet added to h */
    ops->embed(x, m->embeddings, b, h);
    for (int32_t l = 0; l < info->n_layers; l++) {
        const layer *y = &m->layers[l];
        attn.layer = l;
        ops->rmsnorm(x, h, delta, y->attention_norm, m->cfg.eps, T, E, n);
        ops->linear(x, y->wqkv, n, T, wide);
        ops->qkv_rope_store(x, &attn, b, wide, q);
        ops->attention(x, &attn, b, q, o);
        ops->linear(x, y->wo, o, T, n);
        ops->rmsnorm(x, h, n, y->ffn_norm, m->cfg.eps, T, E, n);
        ops->gated_mlp(x, y->w1, y->w3, y->w2, TURBO_ACT_SILU, n, T, wide, o);
        delta = o;
    }
    ops->rmsnorm(x, h, delta, m->norm, m->cfg.eps, T, E, n);
    ops->gather(x, n, b->row_index, b->n_rows, E, rows);
    ops->logits(x, m->output, rows, b->n_rows, logits);
    return TURBO_OK;
}

static const turbo_model_vtbl internlm2_vtbl = {
    .size = sizeof internlm2_vtbl,
    .id = "internlm2",
    .probe = internlm2_probe,
    .describe = describe,
    .expect = internlm2_expect,
    .workspace = workspace,
    .open = open_model,
    .close = close_model,
    .forward = forward,
};

static const turbo_model_vtbl *const models[] = {&internlm2_vtbl, NULL};

static const turbo_plugin plugin = {
    .magic = TURBO_PLUGIN_MAGIC,
    .abi_major = TURBO_ABI_MAJOR,
    .abi_minor = TURBO_ABI_MINOR,
    .size = sizeof plugin,
    .id = "internlm2",
    .version = "1.0",
    .license = "Apache-2.0",
    .build = "gcc " __VERSION__,
    .models = models,
};

const turbo_plugin *turbo_plugin_entry(uint32_t host_abi)
{
    (void)host_abi;
    return &plugin;
}
