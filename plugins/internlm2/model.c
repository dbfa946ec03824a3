/* plugins/internlm2/model.c: InternLM2 and InternLM2.5: weights, forward pass, descriptor.
 *
 * A pre-norm decoder: h += wo(attention(rope(wqkv(norm(h))))); h += w2(silu(w1 n) * w3 n), n =
 * norm(h). wqkv is packed by KV head: its query heads, then K, then V (TURBO_QKV_GROUPED). forward
 * runs on the engine thread and only calls kernels. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internlm2.h"

typedef struct layer {
    const turbo_vector *attention_norm, *ffn_norm;
    const turbo_linear *wqkv, *wo, *w1, *w2, *w3;
} layer;

typedef struct model {
    internlm2_config cfg;
    const turbo_ops *ops;
    int32_t act_bytes;
    const turbo_linear *embeddings, *output;
    const turbo_vector *norm;
    const turbo_rope *rope;
    layer layers[];
} model;

/* Byte offsets of the activations inside the workspace. N = max(T, R). */
typedef struct layout {
    uint64_t h; /* [T,E] residual stream                                             */
    uint64_t x; /* [N,E] normalised input, also the output of wo                     */
    uint64_t wide; /* [T,(H+2K)*D] projection, then [N,2*I] of the MLP in the same place */
    uint64_t q; /* [T,H*D]                                                           */
    uint64_t o; /* [N,max(H*D,E)] output of attention, then of the MLP               */
    uint64_t h_rows; /* [R,E] residual stream of the rows that need logits                */
    uint64_t o_rows; /* [R,H*D] their attention output                                    */
    uint64_t total;
} layout;

/* Gives the next region its place; every region begins on a cache line. */
static uint64_t region(uint64_t *at, int32_t rows, uint64_t width, int32_t act_bytes)
{
    uint64_t start = *at, bytes = (uint64_t)rows * width * (uint64_t)act_bytes;
    *at = start + (bytes + 63) / 64 * 64;
    return start;
}

static layout plan(const turbo_model_info *m, int32_t T, int32_t R, int32_t act_bytes)
{
    uint64_t E = (uint64_t)m->embed_dim, D = (uint64_t)m->head_dim, Q = (uint64_t)m->n_heads * D;
    uint64_t qkv = Q + 2 * (uint64_t)m->n_kv * D, mlp = 2 * (uint64_t)m->mlp_dim;
    int32_t N = T > R ? T : R;
    layout o = {0};
    o.h = region(&o.total, T, E, act_bytes);
    o.x = region(&o.total, N, E, act_bytes);
    o.wide = region(&o.total, N, qkv > mlp ? qkv : mlp, act_bytes);
    o.q = region(&o.total, T, Q, act_bytes);
    o.o = region(&o.total, N, Q > E ? Q : E, act_bytes);
    o.h_rows = region(&o.total, R, E, act_bytes);
    o.o_rows = region(&o.total, R, Q, act_bytes);
    return o;
}

static turbo_status describe(const turbo_host *h, const turbo_config *c, turbo_model_info *out,
                             turbo_err *err)
{
    internlm2_config cfg;
    turbo_status st = internlm2_read(h, c, &cfg, err);
    if (st)
        return st;
    /* A host built against another header has another size; what it does not have is not written.
     */
    uint32_t host_size = out->size ? out->size : (uint32_t)sizeof *out;
    memcpy(out, &cfg.info, host_size < sizeof *out ? host_size : sizeof *out);
    out->size = host_size;
    return TURBO_OK;
}

static uint64_t workspace(const turbo_model_info *info, int32_t max_T, int32_t max_R,
                          int32_t act_bytes)
{
    return plan(info, max_T, max_R, act_bytes).total;
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
    m->act_bytes = ops->act_dtype == TURBO_F32 ? 4 : 2;
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
    int32_t T = b->n_tokens, R = b->n_rows, E = info->embed_dim, last = info->n_layers - 1;
    layout at = plan(info, T, R, m->act_bytes);
    if (at.total > b->workspace_bytes)
        return internlm2_fail(err, TURBO_EINTERNAL, "the workspace is too small for %d tokens", T);
    char *base = b->workspace;
    void *h = base + at.h, *n = base + at.x, *wide = base + at.wide, *q = base + at.q;
    void *o = base + at.o, *delta = NULL; /* delta: output of the last block, not yet added to h */
    turbo_attn attn = {
        .size = sizeof attn,
        .n_heads = info->n_heads,
        .n_kv = info->n_kv,
        .head_dim = info->head_dim,
        .layout = TURBO_QKV_GROUPED,
        .scale = 1.0f / sqrtf((float)info->head_dim),
        .rope = m->rope,
    };
    ops->embed(x, m->embeddings, b, h);
    for (int32_t l = 0; l <= last; l++) {
        const layer *y = &m->layers[l];
        void *attended = o;
        attn.layer = l;
        ops->rmsnorm(x, h, delta, y->attention_norm, m->cfg.eps, T, E, n);
        ops->linear(x, y->wqkv, n, T, wide);
        ops->qkv_rope_store(x, &attn, b, wide, q);
        if (l == last && !R)
            return TURBO_OK; /* a chunk of a prompt: its keys and values were all it is for */
        ops->attention(x, &attn, b, q, o);
        if (l == last) { /* nothing mixes tokens from here on: only the wanted rows go further */
            ops->gather(x, h, b->row_index, R, E, base + at.h_rows);
            ops->gather(x, o, b->row_index, R, info->n_heads * info->head_dim, base + at.o_rows);
            h = base + at.h_rows;
            attended = base + at.o_rows;
            T = R;
        }
        ops->linear(x, y->wo, attended, T, n);
        ops->rmsnorm(x, h, n, y->ffn_norm, m->cfg.eps, T, E, n);
        ops->gated_mlp(x, y->w1, y->w3, y->w2, TURBO_ACT_SILU, n, T, wide, o);
        delta = o;
    }
    ops->rmsnorm(x, h, delta, m->norm, m->cfg.eps, T, E, n);
    ops->logits(x, m->output, n, T, logits);
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
