/* plugins/decoder/model.c: the tensors of a decoder, its weights and its forward pass. forward runs on
 * the engine thread and only calls kernels. Must not know a family: names come from its table. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "decoder.h"

typedef struct layer {
    const turbo_vector *attn_norm, *mlp_norm;
    const turbo_vector *q_norm, *k_norm; /* or NULL */
    const turbo_linear *qkv, *o;
    const turbo_linear *gate, *up, *down; /* NULL in a layer of nothing but experts */
    const turbo_linear *router;
    const turbo_experts *experts; /* NULL: gate, up and down are all there is */
    const turbo_vector *shared_gate; /* what they are multiplied by beside experts */
} layer;

typedef struct model {
    decoder_config cfg;
    const turbo_ops *ops;
    int32_t act_bytes, layout;
    const turbo_linear *embed, *head;
    const turbo_vector *norm;
    const turbo_rope *rope;
    layer layers[];
} model;

/* ---- names -------------------------------------------------------------------------------------- */

#define MAX_NAME 160

const decoder_names decoder_common_names = {DECODER_COMMON_NAMES};

/* The name of a part of layer l. */
static const char *part_name(char *out, const decoder_names *n, int32_t l, const char *part)
{
    snprintf(out, MAX_NAME, "%s%d.%s", n->layer, l, part);
    return out;
}

/* Rows of q, k and v; a matrix that holds all three is the first. */
static int32_t qkv_rows(const decoder_family *f, const turbo_model_info *m, int64_t rows[3])
{
    int64_t D = m->head_dim;
    if (!f->names->qkv[1]) {
        rows[0] = (m->n_heads + 2 * (int64_t)m->n_kv) * D;
        return 1;
    }
    rows[0] = m->n_heads * D;
    rows[1] = rows[2] = m->n_kv * D;
    return 3;
}

/* A gated MLP that every token of a layer passes. */
typedef struct mlp {
    const char *name[3]; /* gate, up, down; NULL: there is none */
    int64_t inner;
} mlp;

static mlp mlp_of(const decoder_names *n, const decoder_config *c, int32_t l)
{
    if (!decoder_sparse(c, l))
        return (mlp){{n->gate, n->up, n->down}, c->info.mlp_dim};
    if (c->info.shared_dim)
        return (mlp){{n->shared[0], n->shared[1], n->shared[2]}, c->info.shared_dim};
    return (mlp){{NULL}, 0};
}

typedef struct emitter {
    turbo_expect_fn emit;
    void *ctx;
    const decoder_names *names;
    turbo_status st;
} emitter;

static void want(emitter *e, turbo_tensor_spec s)
{
    s.size = sizeof s;
    s.ndim = s.dims[1] ? 2 : 1;
    if (!e->st)
        e->st = e->emit(e->ctx, &s);
}

/* A tensor of layer l; d1 = 0: a vector. */
static void want_part(emitter *e, int32_t l, const char *part, const char *suffix, int64_t d0,
                      int64_t d1, int32_t group)
{
    char name[MAX_NAME], full[MAX_NAME + 16];
    snprintf(full, sizeof full, "%s%s", part_name(name, e->names, l, part), suffix);
    want(e, (turbo_tensor_spec){.dims = {d0, d1}, .name = full, .group = group});
}

/* Router, experts, and what multiplies the MLP beside them. */
static void want_experts(emitter *e, const decoder_config *o, int32_t l)
{
    const decoder_names *n = e->names;
    const int64_t E = o->info.embed_dim, I = o->moe.inner;
    char name[MAX_NAME];
    want_part(e, l, n->router, ".weight", o->moe.n_experts, E, 0);
    for (int32_t i = 0; i < o->moe.n_experts && !e->st; i++)
        for (int32_t k = 0; k < 3; k++) {
            const char *mark = strchr(n->expert[k], '#');
            snprintf(name, sizeof name, "%.*s%d%s", (int)(mark - n->expert[k]), n->expert[k], i,
                     mark + 1);
            want_part(e, l, name, ".weight", k < 2 ? I : E, k < 2 ? E : I, 0);
        }
    if (o->info.shared_dim)
        want_part(e, l, n->shared_gate, ".weight", 1, E, 0);
}

static void want_layer(emitter *e, const decoder_family *f, const decoder_config *o, int32_t l)
{
    const turbo_model_info *m = &o->info;
    const decoder_names *n = f->names;
    int64_t E = m->embed_dim, Q = (int64_t)m->n_heads * m->head_dim, rows[3];
    int32_t parts = qkv_rows(f, m, rows), group = parts > 1 ? l + 1 : 0;
    const mlp ff = mlp_of(n, o, l);
    want_part(e, l, n->attn_norm, ".weight", E, 0, 0);
    for (int32_t i = 0; i < parts; i++)
        want_part(e, l, n->qkv[i], ".weight", rows[i], E, group);
    for (int32_t i = 0; i < parts && o->qkv_bias; i++)
        want_part(e, l, n->qkv[i], ".bias", rows[i], 0, group);
    for (int32_t i = 0; i < 2 && o->head_norm; i++)
        want_part(e, l, i ? n->k_norm : n->q_norm, ".weight", m->head_dim, 0, 0);
    want_part(e, l, n->o, ".weight", E, Q, 0);
    if (o->o_bias)
        want_part(e, l, n->o, ".bias", E, 0, 0);
    want_part(e, l, n->mlp_norm, ".weight", E, 0, 0);
    for (int32_t i = 0; i < 3 && ff.name[0]; i++) {
        want_part(e, l, ff.name[i], ".weight", i < 2 ? ff.inner : E, i < 2 ? E : ff.inner, 0);
        if (o->mlp_bias)
            want_part(e, l, ff.name[i], ".bias", i < 2 ? ff.inner : E, 0, 0);
    }
    if (decoder_sparse(o, l))
        want_experts(e, o, l);
}

turbo_status decoder_expect(const decoder_family *f, const turbo_host *h, const turbo_config *c,
                            turbo_expect_fn emit, void *ctx, turbo_err *err)
{
    decoder_config o;
    char embed[MAX_NAME], norm[MAX_NAME], head[MAX_NAME];
    turbo_status st = decoder_read(f, h, c, &o, err);
    if (st)
        return st;
    emitter e = {emit, ctx, f->names, TURBO_OK};
    const turbo_model_info *m = &o.info;
    snprintf(embed, sizeof embed, "%s.weight", f->names->embed);
    snprintf(norm, sizeof norm, "%s.weight", f->names->norm);
    snprintf(head, sizeof head, "%s.weight", f->names->head);
    /* Writers that drop shared tensors sometimes keep a tied matrix under the name of the head. */
    want(&e, (turbo_tensor_spec){.dims = {m->vocab, m->embed_dim},
                                 .name = embed,
                                 .alias = o.tied ? head : NULL});
    for (int32_t l = 0; l < m->n_layers && !e.st; l++)
        want_layer(&e, f, &o, l);
    want(&e, (turbo_tensor_spec){.dims = {m->embed_dim}, .name = norm});
    if (!o.tied)
        want(&e, (turbo_tensor_spec){.dims = {m->vocab, m->embed_dim}, .name = head});
    return e.st;
}

turbo_status decoder_describe(const decoder_family *f, const turbo_host *h, const turbo_config *c,
                              turbo_model_info *out, turbo_err *err)
{
    decoder_config cfg;
    turbo_status st = decoder_read(f, h, c, &cfg, err);
    if (st)
        return st;
    /* A host built against another header has another size; what it does not have is not written. */
    uint32_t host_size = out->size ? out->size : (uint32_t)sizeof *out;
    memcpy(out, &cfg.info, host_size < sizeof *out ? host_size : sizeof *out);
    out->size = host_size;
    return TURBO_OK;
}

/* ---- weights -------------------------------------------------------------------------------------- */

static turbo_status open_qkv(const decoder_family *f, const turbo_host *h, turbo_weights *w,
                             const decoder_config *c, int32_t l, layer *out, turbo_err *err)
{
    char text[3][MAX_NAME];
    const char *names[3];
    int64_t rows[3];
    uint32_t flags = c->qkv_bias ? (uint32_t)TURBO_LINEAR_BIAS : 0;
    int32_t n = qkv_rows(f, &c->info, rows);
    for (int32_t i = 0; i < n; i++)
        names[i] = part_name(text[i], f->names, l, f->names->qkv[i]);
    if (n == 1)
        return h->linear(w, names[0], rows[0], c->info.embed_dim, flags, &out->qkv, err);
    return h->linear_rows(w, names, rows, n, c->info.embed_dim, flags, &out->qkv, err);
}

static turbo_status open_experts(const decoder_family *f, const turbo_host *h, turbo_weights *w,
                                 const decoder_config *c, int32_t l, layer *out, turbo_err *err)
{
    const decoder_names *n = f->names;
    char name[3][MAX_NAME];
    int64_t E = c->info.embed_dim;
    /* Rounding a router changes which experts a token gets. */
    turbo_status st = h->linear(w, part_name(name[0], n, l, n->router), c->moe.n_experts, E,
                                TURBO_LINEAR_AS_STORED, &out->router, err);
    for (int i = 0; i < 3; i++)
        part_name(name[i], n, l, n->expert[i]);
    if (!st)
        st = h->experts(w, &c->moe, name[0], name[1], name[2], &out->experts, err);
    if (st || !c->info.shared_dim)
        return st;
    snprintf(name[0], MAX_NAME, "%s%d.%s.weight", n->layer, l, n->shared_gate);
    return h->vector_of(w, name[0], E, &out->shared_gate, err);
}

static turbo_status open_layer(const decoder_family *f, const turbo_host *h, turbo_weights *w,
                               const decoder_config *c, int32_t l, layer *out, turbo_err *err)
{
    const turbo_model_info *m = &c->info;
    const decoder_names *n = f->names;
    int64_t E = m->embed_dim, Q = (int64_t)m->n_heads * m->head_dim;
    const mlp ff = mlp_of(n, c, l);
    const struct {
        const char *name;
        int64_t out_dim, in_dim;
        int32_t bias;
        const turbo_linear **to;
    } mats[] = {
        {n->o, E, Q, c->o_bias, &out->o},
        {ff.name[0], ff.inner, E, c->mlp_bias, &out->gate},
        {ff.name[1], ff.inner, E, c->mlp_bias, &out->up},
        {ff.name[2], E, ff.inner, c->mlp_bias, &out->down},
    };
    const struct {
        const char *name;
        int64_t n;
        const turbo_vector **to;
    } norms[] = {
        {n->attn_norm, E, &out->attn_norm},
        {n->mlp_norm, E, &out->mlp_norm},
        {c->head_norm ? n->q_norm : NULL, m->head_dim, &out->q_norm},
        {c->head_norm ? n->k_norm : NULL, m->head_dim, &out->k_norm},
    };
    char name[MAX_NAME];
    turbo_status st = open_qkv(f, h, w, c, l, out, err);
    for (size_t i = 0; i < sizeof mats / sizeof mats[0] && !st; i++)
        if (mats[i].name)
            st = h->linear(w, part_name(name, n, l, mats[i].name), mats[i].out_dim, mats[i].in_dim,
                           mats[i].bias ? (uint32_t)TURBO_LINEAR_BIAS : 0, mats[i].to, err);
    for (size_t i = 0; i < sizeof norms / sizeof norms[0] && !st; i++)
        if (norms[i].name)
            st = h->vector(w, part_name(name, n, l, norms[i].name), norms[i].n, norms[i].to, err);
    if (!st && decoder_sparse(c, l))
        st = open_experts(f, h, w, c, l, out, err);
    return st;
}

/* The embedding, under the name decoder_expect accepted, and the head. */
static turbo_status open_ends(const decoder_family *f, const turbo_host *h, turbo_weights *w,
                              model *m, turbo_err *err)
{
    const turbo_model_info *i = &m->cfg.info;
    const char *name = f->names->embed;
    char full[MAX_NAME];
    snprintf(full, sizeof full, "%s.weight", name);
    if (m->cfg.tied && !h->has_tensor(w, full))
        name = f->names->head;
    turbo_status st =
        h->linear(w, name, i->vocab, i->embed_dim, TURBO_LINEAR_TABLE, &m->embed, err);
    if (!st)
        st = h->vector(w, f->names->norm, i->embed_dim, &m->norm, err);
    if (m->cfg.tied)
        m->head = m->embed;
    else if (!st)
        st = h->linear(w, f->names->head, i->vocab, i->embed_dim, 0, &m->head, err);
    return st;
}

turbo_status decoder_open(const decoder_family *f, const turbo_host *h, const turbo_config *c,
                          turbo_weights *w, const turbo_ops *ops, void **out, turbo_err *err)
{
    decoder_config cfg;
    turbo_status st = decoder_read(f, h, c, &cfg, err);
    if (st)
        return st;
    const turbo_model_info *info = &cfg.info;
    model *m = calloc(1, sizeof *m + (size_t)info->n_layers * sizeof m->layers[0]);
    if (!m)
        return decoder_fail(err, TURBO_ENOMEM, "no memory for a model of %d layers",
                            info->n_layers);
    m->cfg = cfg;
    m->ops = ops;
    m->layout = f->layout;
    m->act_bytes = ops->act_dtype == TURBO_F32 ? 4 : 2;
    st = open_ends(f, h, w, m, err);
    for (int32_t l = 0; l < info->n_layers && !st; l++)
        st = open_layer(f, h, w, &m->cfg, l, &m->layers[l], err);
    if (!st)
        st = h->rope(w, &m->cfg.rope, &m->rope, err);
    if (st) {
        free(m);
        return st;
    }
    *out = m;
    return TURBO_OK;
}

void decoder_close(void *p)
{
    free(p);
}

/* ---- forward ---------------------------------------------------------------------------------------- */

/* Byte offsets of the activations inside the workspace. N = max(T, R). */
typedef struct layout {
    uint64_t h; /* [T,E] residual stream                                             */
    uint64_t x; /* [N,E] normalised input, also the output of o                      */
    uint64_t wide; /* [T,(H+2K)*D] projection, then [N,2*I] of the MLP or scratch of experts */
    uint64_t q; /* [T,H*D]                                                           */
    uint64_t o; /* [N,max(H*D,E)] output of attention, then of the MLP               */
    uint64_t h_rows; /* [R,E] residual stream of the rows that need logits                */
    uint64_t o_rows; /* [R,H*D] their attention output                                    */
    uint64_t shared; /* [N,E] of the MLP beside experts; without one nothing              */
    uint64_t total;
} layout;

/* Gives the next region its place; every region begins on a cache line. */
static uint64_t region(uint64_t *at, int32_t rows, uint64_t width, int32_t act_bytes)
{
    uint64_t start = *at, bytes = (uint64_t)rows * width * (uint64_t)act_bytes;
    *at = start + (bytes + 63) / 64 * 64;
    return start;
}

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static layout plan(const turbo_model_info *m, int32_t T, int32_t R, int32_t act_bytes)
{
    uint64_t E = (uint64_t)m->embed_dim, D = (uint64_t)m->head_dim, Q = (uint64_t)m->n_heads * D;
    uint64_t qkv = Q + 2 * (uint64_t)m->n_kv * D, inner = 2 * (uint64_t)m->mlp_dim;
    const turbo_moe moe = {
        .n_experts = m->n_experts,
        .n_chosen = m->n_chosen,
        .inner = m->expert_dim,
        .width = m->embed_dim,
    };
    int32_t N = T > R ? T : R;
    layout o = {0};
    o.h = region(&o.total, T, E, act_bytes);
    o.x = region(&o.total, N, E, act_bytes);
    o.wide = region(&o.total, N, most(qkv, most(inner, 2 * (uint64_t)m->shared_dim)), act_bytes);
    if (m->n_experts) /* they take its place, and what they need beyond it */
        o.total = most(o.total, o.wide + (turbo_moe_scratch(&moe, N, act_bytes) + 63) / 64 * 64);
    o.q = region(&o.total, T, Q, act_bytes);
    o.o = region(&o.total, N, most(Q, E), act_bytes);
    o.h_rows = region(&o.total, R, E, act_bytes);
    o.o_rows = region(&o.total, R, Q, act_bytes);
    o.shared = region(&o.total, N, m->shared_dim ? E : 0, act_bytes);
    return o;
}

uint64_t decoder_workspace(const turbo_model_info *info, int32_t max_T, int32_t max_R,
                           int32_t act_bytes)
{
    return plan(info, max_T, max_R, act_bytes).total;
}

/* What a layer adds to the residual stream behind attention. n, o [T,E]. */
static void feed_forward(const model *m, const layer *y, turbo_exec *x, const layout *at,
                         char *base, const void *n, int32_t T, void *o)
{
    const turbo_ops *ops = m->ops;
    void *wide = base + at->wide, *shared = base + at->shared;
    if (!y->experts) {
        ops->gated_mlp(x, y->gate, y->up, y->down, TURBO_ACT_SILU, n, T, wide, o);
        return;
    }
    ops->moe(x, y->router, y->experts, n, T, wide, o);
    if (!y->shared_gate)
        return;
    ops->gated_mlp(x, y->gate, y->up, y->down, TURBO_ACT_SILU, n, T, wide, shared);
    ops->add_gated(x, o, shared, y->shared_gate, n, T, m->cfg.info.embed_dim);
}

turbo_status decoder_forward(void *p, turbo_exec *x, const turbo_batch *b, float *logits,
                             turbo_err *err)
{
    const model *m = p;
    const turbo_model_info *info = &m->cfg.info;
    const turbo_ops *ops = m->ops;
    int32_t T = b->n_tokens, R = b->n_rows, E = info->embed_dim, last = info->n_layers - 1;
    layout at = plan(info, T, R, m->act_bytes);
    if (at.total > b->workspace_bytes)
        return decoder_fail(err, TURBO_EINTERNAL, "the workspace is too small for %d tokens", T);
    char *base = b->workspace;
    void *h = base + at.h, *n = base + at.x, *wide = base + at.wide, *q = base + at.q;
    void *o = base + at.o, *delta = NULL; /* delta: output of the last block, not yet added to h */
    turbo_attn attn = {
        .size = sizeof attn,
        .n_heads = info->n_heads,
        .n_kv = info->n_kv,
        .head_dim = info->head_dim,
        .layout = m->layout,
        .scale = 1.0f / sqrtf((float)info->head_dim),
        .rope = m->rope,
    };
    ops->embed(x, m->embed, b, h);
    for (int32_t l = 0; l <= last; l++) {
        const layer *y = &m->layers[l];
        void *attended = o;
        attn.layer = l;
        attn.window = m->cfg.windowed[l / 64] >> (l % 64) & 1 ? m->cfg.window : 0;
        ops->rmsnorm(x, h, delta, y->attn_norm, m->cfg.eps, T, E, n);
        ops->linear(x, y->qkv, n, T, wide);
        if (y->q_norm)
            ops->head_norm(x, &attn, y->q_norm, y->k_norm, m->cfg.eps, T, wide);
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
        ops->linear(x, y->o, attended, T, n);
        ops->rmsnorm(x, h, n, y->mlp_norm, m->cfg.eps, T, E, n);
        feed_forward(m, y, x, &at, base, n, T, o);
        delta = o;
    }
    ops->rmsnorm(x, h, delta, m->norm, m->cfg.eps, T, E, n);
    ops->logits(x, m->head, n, T, logits);
    return TURBO_OK;
}
