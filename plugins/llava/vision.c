/* plugins/llava/vision.c: the CLIP vision tower and the projector (sheets 4.1 and 4.3): one picture to rows of the
 * language half's width. Runs on the engine thread and only calls kernels. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llava.h"

typedef struct norm {
    const turbo_vector *w, *b;
} norm;

typedef struct layer {
    norm norm1, norm2;
    const turbo_linear *qkv, *out, *fc1, *fc2;
} layer;

struct llava_tower {
    llava_vision v;
    int32_t width, projector_layers, projector_act; /* width: of a row that comes out */
    const turbo_ops *ops;
    int32_t act_bytes;
    float value[3 * 256];
    const turbo_vector *first, *position;
    const turbo_linear *patch, *projector[2];
    norm pre;
    int32_t *chosen; /* [n_rows] rows of the tower that go on */
    layer layers[];
};

/* Byte offsets inside the workspace. T = P + 1. */
typedef struct layout {
    uint64_t h; /* [T,E] residual stream */
    uint64_t n; /* [T,E] patches, then normalised input and output of the blocks */
    uint64_t wide; /* [P,3*patch^2], [T,3E], [T,I], [n_rows,width] */
    uint64_t o; /* [T,E] */
    uint64_t delta; /* [T,E] */
    uint64_t total;
} layout;

static uint64_t region(uint64_t *at, uint64_t rows, uint64_t width, int32_t act_bytes)
{
    uint64_t start = *at, bytes = rows * width * (uint64_t)act_bytes;
    *at = start + (bytes + 63) / 64 * 64;
    return start;
}

static layout plan(const llava_vision *v, int32_t width, int32_t act_bytes)
{
    uint64_t T = (uint64_t)v->P + 1, E = (uint64_t)v->E, wide = 3 * E;
    uint64_t pixels = 3 * (uint64_t)v->patch * (uint64_t)v->patch;
    const uint64_t others[] = {pixels, (uint64_t)v->I, (uint64_t)width};
    layout at = {0};
    for (int i = 0; i < 3; i++)
        wide = others[i] > wide ? others[i] : wide;
    at.h = region(&at.total, T, E, act_bytes);
    at.n = region(&at.total, T, E, act_bytes);
    at.wide = region(&at.total, T, wide, act_bytes);
    at.o = region(&at.total, T, E, act_bytes);
    at.delta = region(&at.total, T, E, act_bytes);
    return at;
}

uint64_t llava_tower_workspace(const llava_vision *v, int32_t width, int32_t act_bytes)
{
    return plan(v, width, act_bytes).total;
}

static turbo_status open_norm(const turbo_host *h, turbo_weights *w, const char *name, int32_t E,
                              norm *to, turbo_err *err)
{
    char full[192];
    turbo_status st = h->vector(w, name, E, &to->w, err);
    snprintf(full, sizeof full, "%s.bias", name);
    return st ? st : h->vector_of(w, full, E, &to->b, err);
}

static turbo_status open_layer(const turbo_host *h, turbo_weights *w, const char *prefix,
                               const llava_vision *v, int32_t l, layer *to, turbo_err *err)
{
    static const char *const qkv[] = {"q_proj", "k_proj", "v_proj"};
    char base[128], names[3][192], name[192];
    const char *parts[3];
    int64_t rows[3] = {v->E, v->E, v->E};
    snprintf(base, sizeof base, "%sencoder.layers.%d.", prefix, l);
    for (int i = 0; i < 3; i++) {
        snprintf(names[i], sizeof names[i], "%sself_attn.%s", base, qkv[i]);
        parts[i] = names[i];
    }
    turbo_status st = h->linear_rows(w, parts, rows, 3, v->E, TURBO_LINEAR_BIAS, &to->qkv, err);
    const struct {
        const char *name;
        int32_t out, in;
        const turbo_linear **to;
    } mats[] = {
        {"self_attn.out_proj", v->E, v->E, &to->out},
        {"mlp.fc1", v->I, v->E, &to->fc1},
        {"mlp.fc2", v->E, v->I, &to->fc2},
    };
    for (size_t i = 0; i < 3 && !st; i++) {
        snprintf(name, sizeof name, "%s%s", base, mats[i].name);
        st = h->linear(w, name, mats[i].out, mats[i].in, TURBO_LINEAR_BIAS, mats[i].to, err);
    }
    snprintf(name, sizeof name, "%slayer_norm1", base);
    if (!st)
        st = open_norm(h, w, name, v->E, &to->norm1, err);
    snprintf(name, sizeof name, "%slayer_norm2", base);
    return st ? st : open_norm(h, w, name, v->E, &to->norm2, err);
}

static turbo_status open_tower(const turbo_host *h, const llava_config *c, turbo_weights *w,
                               llava_tower *t, turbo_err *err)
{
    const llava_vision *v = &t->v;
    const char *const *prefix = llava_tower_prefixes;
    char name[192];
    turbo_status st = TURBO_OK;
    if (*c->tower_folder)
        st = h->weights_beside(w, c->tower_folder, &w, err);
    if (st)
        return st;
    do
        snprintf(name, sizeof name, "%sembeddings.class_embedding", *prefix);
    while (!h->has_tensor(w, name) && *++prefix);
    if (!*prefix)
        return llava_fail(err, TURBO_EDATA,
                          "tensor vision_tower.vision_model.embeddings.class_embedding is missing");
    st = h->vector_of(w, name, v->E, &t->first, err);
    snprintf(name, sizeof name, "%sembeddings.position_embedding.weight", *prefix);
    if (!st)
        st = h->vector_of(w, name, (int64_t)(v->P + 1) * v->E, &t->position, err);
    snprintf(name, sizeof name, "%sembeddings.patch_embedding", *prefix);
    if (!st)
        st = h->linear(w, name, v->E, 3 * v->patch * v->patch, 0, &t->patch, err);
    snprintf(name, sizeof name, "%spre_layrnorm", *prefix);
    if (!st)
        st = open_norm(h, w, name, v->E, &t->pre, err);
    for (int32_t l = 0; l < v->used && !st; l++)
        st = open_layer(h, w, *prefix, v, l, &t->layers[l], err);
    return st;
}

static turbo_status open_projector(const turbo_host *h, const llava_config *c, turbo_weights *w,
                                   llava_tower *t, turbo_err *err)
{
    char name[96], probe[112];
    uint32_t flags = c->projector_bias ? (uint32_t)TURBO_LINEAR_BIAS : 0;
    turbo_status st = TURBO_OK;
    for (int32_t i = 0; i < c->projector_layers && !st; i++) {
        int32_t in = i ? t->width : t->v.E;
        if (c->layout == LLAVA_HF) {
            snprintf(name, sizeof name, "multi_modal_projector.linear_%d", i + 1);
            snprintf(probe, sizeof probe, "%s.weight", name);
            if (!h->has_tensor(w, probe))
                snprintf(name, sizeof name, "model.multi_modal_projector.linear_%d", i + 1);
        } else if (c->projector_layers == 1) {
            snprintf(name, sizeof name, "model.mm_projector");
        } else {
            snprintf(name, sizeof name, "model.mm_projector.%d", 2 * i);
        }
        st = h->linear(w, name, t->width, in, flags, &t->projector[i], err);
    }
    return st;
}

turbo_status llava_tower_open(const turbo_host *h, const llava_config *c, turbo_weights *w,
                              const turbo_ops *ops, llava_tower **out, turbo_err *err)
{
    const llava_vision *v = &c->vision;
    llava_tower *t = calloc(1, sizeof *t + (size_t)v->used * sizeof t->layers[0]);
    int32_t *chosen = calloc((size_t)v->n_rows, sizeof *chosen);
    if (!t || !chosen) {
        free(t);
        free(chosen);
        return llava_fail(err, TURBO_ENOMEM, "no memory for a tower of %d layers", v->used);
    }
    t->v = *v;
    t->width = c->info.embed_dim;
    t->projector_layers = c->projector_layers;
    t->projector_act = c->projector_act;
    t->ops = ops;
    t->act_bytes = ops->act_dtype == TURBO_F32 ? 4 : 2;
    t->chosen = chosen;
    memcpy(t->value, c->value, sizeof t->value);
    for (int32_t i = 0; i < v->n_rows; i++)
        chosen[i] = v->first + i;
    turbo_status st = open_tower(h, c, w, t, err);
    if (!st)
        st = open_projector(h, c, w, t, err);
    if (st)
        llava_tower_close(t);
    else
        *out = t;
    return st;
}

void llava_tower_close(llava_tower *t)
{
    if (!t)
        return;
    free(t->chosen);
    free(t);
}

turbo_status llava_tower_embed(const llava_tower *t, turbo_exec *x, const uint8_t *pixels,
                               void *workspace, uint64_t bytes, void *rows, turbo_err *err)
{
    const llava_vision *v = &t->v;
    const turbo_ops *ops = t->ops;
    layout at = plan(v, t->width, t->act_bytes);
    int32_t T = v->P + 1, E = v->E, R = v->n_rows;
    if (at.total > bytes)
        return llava_fail(err, TURBO_EINTERNAL, "the workspace is too small for a picture");
    char *base = workspace;
    void *h = base + at.h, *n = base + at.n, *wide = base + at.wide, *o = base + at.o;
    void *delta = NULL;
    float scale = 1.0f / sqrtf((float)v->D);
    ops->patches(x, pixels, 1, v->image, v->image, v->patch, t->value, wide);
    ops->linear(x, t->patch, wide, v->P, n);
    ops->position_rows(x, n, t->first, t->position, 1, v->P, E, o);
    ops->layernorm(x, o, NULL, t->pre.w, t->pre.b, v->eps, T, E, h);
    for (int32_t l = 0; l < v->used; l++) {
        const layer *y = &t->layers[l];
        ops->layernorm(x, h, delta, y->norm1.w, y->norm1.b, v->eps, T, E, n);
        ops->linear(x, y->qkv, n, T, wide);
        ops->attention_full(x, wide, 1, T, v->H, v->D, scale, o);
        ops->linear(x, y->out, o, T, n);
        ops->layernorm(x, h, n, y->norm2.w, y->norm2.b, v->eps, T, E, n);
        delta = base + at.delta;
        ops->mlp(x, y->fc1, y->fc2, v->act, n, T, wide, delta);
    }
    if (delta)
        ops->add(x, h, delta, T, E);
    ops->gather(x, h, t->chosen, R, E, n);
    if (t->projector_layers == 1)
        ops->linear(x, t->projector[0], n, R, rows);
    else
        ops->mlp(x, t->projector[0], t->projector[1], t->projector_act, n, R, wide, rows);
    return TURBO_OK;
}
