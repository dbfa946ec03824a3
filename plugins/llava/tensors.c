/* plugins/llava/tensors.c: the tensors of LLaVA-1.5, under each of the names that they have been saved with:
 * those of transformers up to 4.51, from 4.52, and from 5, and the original ones. */
#include <stdio.h>
#include <string.h>

#include "llava.h"

const char *const llava_tower_prefixes[] = {
    "vision_tower.vision_model.",
    "model.vision_tower.vision_model.",
    "vision_tower.",
    "vision_model.", /* a tower in a folder of its own */
    "",
    NULL,
};

typedef struct wrapped {
    turbo_expect_fn emit;
    void *ctx;
} wrapped;

/* The language half's names inside the whole. */
static turbo_status emit_text(void *ctx, const turbo_tensor_spec *theirs)
{
    const wrapped *w = ctx;
    char old[512], renewed[512];
    turbo_tensor_spec s = {0};
    memcpy(&s, theirs, theirs->size < sizeof s ? theirs->size : sizeof s);
    s.size = sizeof s;
    snprintf(old, sizeof old, "language_model.%s", theirs->name);
    if (!strncmp(theirs->name, "model.", 6))
        snprintf(renewed, sizeof renewed, "model.language_model.%s", theirs->name + 6);
    else
        snprintf(renewed, sizeof renewed, "%s", theirs->name);
    s.name = old;
    s.alias = renewed;
    s.alias2 = NULL;
    return w->emit(w->ctx, &s);
}

/* name: without its beginning, of which there are up to three. */
static turbo_status emit_one(const wrapped *w, const char *const *prefixes, const char *name,
                             const int64_t dims[4], int32_t ndim, int32_t group, int32_t optional)
{
    char full[3][160];
    turbo_tensor_spec s = {.size = sizeof s, .ndim = ndim, .group = group, .optional = optional};
    const char **to[] = {&s.name, &s.alias, &s.alias2};
    for (int i = 0; i < 3 && prefixes[i]; i++) {
        snprintf(full[i], sizeof full[i], "%s%s", prefixes[i], name);
        *to[i] = full[i];
    }
    memcpy(s.dims, dims, sizeof s.dims);
    return w->emit(w->ctx, &s);
}

static turbo_status emit_layer(const wrapped *w, const llava_vision *v, int32_t l)
{
    const struct {
        const char *name;
        int64_t out, in; /* in 0: a vector */
        int32_t group;
    } rows[] = {
        {"layer_norm1.weight", v->E, 0, 0},
        {"layer_norm1.bias", v->E, 0, 0},
        {"self_attn.q_proj.weight", v->E, v->E, l + 1},
        {"self_attn.k_proj.weight", v->E, v->E, l + 1},
        {"self_attn.v_proj.weight", v->E, v->E, l + 1},
        {"self_attn.q_proj.bias", v->E, 0, l + 1},
        {"self_attn.k_proj.bias", v->E, 0, l + 1},
        {"self_attn.v_proj.bias", v->E, 0, l + 1},
        {"self_attn.out_proj.weight", v->E, v->E, 0},
        {"self_attn.out_proj.bias", v->E, 0, 0},
        {"layer_norm2.weight", v->E, 0, 0},
        {"layer_norm2.bias", v->E, 0, 0},
        {"mlp.fc1.weight", v->I, v->E, 0},
        {"mlp.fc1.bias", v->I, 0, 0},
        {"mlp.fc2.weight", v->E, v->I, 0},
        {"mlp.fc2.bias", v->E, 0, 0},
    };
    char name[96];
    turbo_status st = TURBO_OK;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0] && !st; i++) {
        snprintf(name, sizeof name, "encoder.layers.%d.%s", l, rows[i].name);
        st = emit_one(w, llava_tower_prefixes, name, (int64_t[4]){rows[i].out, rows[i].in},
                      rows[i].in ? 2 : 1, rows[i].group, l >= v->used);
    }
    return st;
}

static turbo_status emit_tower(const wrapped *w, const llava_vision *v)
{
    const struct {
        const char *name;
        int64_t dims[4];
        int32_t ndim;
    } rows[] = {
        {"embeddings.class_embedding", {v->E}, 1},
        {"embeddings.patch_embedding.weight", {v->E, 3, v->patch, v->patch}, 4},
        {"embeddings.position_embedding.weight", {v->P + 1, v->E}, 2},
        {"pre_layrnorm.weight", {v->E}, 1},
        {"pre_layrnorm.bias", {v->E}, 1},
        {"post_layernorm.weight", {v->E}, 1}, /* from here on: saved, and not computed */
        {"post_layernorm.bias", {v->E}, 1},
    };
    turbo_status st = TURBO_OK;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0] && !st; i++)
        st = emit_one(w, llava_tower_prefixes, rows[i].name, rows[i].dims, rows[i].ndim, 0, i >= 5);
    for (int32_t l = 0; l < v->layers && !st;
         l++) /* those behind the last one used may be absent */
        st = emit_layer(w, v, l);
    return st;
}

static turbo_status emit_projector(const wrapped *w, const llava_config *c)
{
    static const char *const hf[] = {"multi_modal_projector.linear_",
                                     "model.multi_modal_projector.linear_", NULL};
    static const char *const original[] = {"model.mm_projector", NULL};
    const char *const *prefixes = c->layout == LLAVA_HF ? hf : original;
    int64_t E = c->info.embed_dim;
    turbo_status st = TURBO_OK;
    for (int32_t i = 0; i < c->projector_layers && !st; i++) {
        char name[32];
        const char *number = c->layout == LLAVA_HF      ? i ? "2" : "1"
                             : c->projector_layers == 1 ? ""
                             : i                        ? ".2"
                                                        : ".0";
        snprintf(name, sizeof name, "%s.weight", number);
        st = emit_one(w, prefixes, name, (int64_t[4]){E, i ? E : c->vision.E}, 2, 0, 0);
        snprintf(name, sizeof name, "%s.bias", number);
        if (!st && c->projector_bias)
            st = emit_one(w, prefixes, name, (int64_t[4]){E}, 1, 0, 0);
    }
    return st;
}

turbo_status llava_expect(const turbo_host *h, const turbo_config *c, turbo_expect_fn emit,
                          void *ctx, turbo_err *err)
{
    llava_config cfg;
    wrapped w = {emit, ctx};
    turbo_status st = llava_read(h, c, &cfg, err);
    if (!st && cfg.layout == LLAVA_HF)
        st = cfg.inner->expect(h, cfg.text, emit_text, &w, err);
    else if (!st)
        st = cfg.inner->expect(h, cfg.text, emit, ctx, err);
    if (!st)
        st = emit_projector(&w, &cfg);
    if (!st && !*cfg.tower_folder) /* those of another folder are checked when they are opened */
        st = emit_tower(&w, &cfg.vision);
    llava_config_free(h, &cfg);
    return st;
}
