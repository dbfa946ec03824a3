/* plugins/decoder/decoder.h: what the pre-norm decoders share: reading config.json, the tensors it
 * implies, the forward pass. Linked into each plugin of such a family; knows no family itself.
 *
 *   h += o(attention(rope(qkv(norm(h)))));  h += down(silu(gate n) * up n), n = norm(h)
 *
 * with RMSNorm, grouped heads, a rotary embedding over the whole head and an optional sliding window. In layers of
 * experts down(silu(gate n) * up n) is what the experts of a token give, with or without an MLP beside them.
 * A family is a table of defaults, a table of tensor names and a function that reads what is its own.
 * Threads are those of the slots of turbo_model_vtbl with the same names. Letters as in turbo/plugin.h. */
#ifndef DECODER_H
#define DECODER_H

#include <string.h>

#include "turbo/ext/gguf.h"
#include "turbo/plugin.h"

#define DECODER_MAX_LAYERS 512
#define DECODER_TYPES 5 /* of RoPE scaling: TURBO_ROPE_PLAIN to TURBO_ROPE_YARN */

typedef struct decoder_config {
    turbo_model_info info;
    turbo_rope_spec rope;
    float eps;
    int32_t qkv_bias, o_bias, mlp_bias; /* 1: those matrices have one */
    int32_t tied; /* the head is the embedding */
    int32_t window; /* tokens a query sees, itself included, in the layers of windowed; 0 none */
    uint64_t windowed[DECODER_MAX_LAYERS / 64]; /* bit l % 64 of word l / 64: layer l */
    int32_t head_norm; /* 1: heads of queries and keys are normalised before they are rotated */
    turbo_moe moe; /* n_experts 0: there are none */
    uint64_t sparse[DECODER_MAX_LAYERS / 64]; /* layers of experts, as windowed */
} decoder_config;

/* Names without ".weight" and ".bias". */
typedef struct decoder_names {
    const char *embed, *norm, *head;
    const char *layer; /* before the number of a layer: "model.layers." */
    const char *attn_norm, *mlp_norm;
    const char *qkv[3]; /* three matrices stored as one, or one matrix and NULL */
    const char *o, *gate, *up, *down;
    const char *q_norm, *k_norm; /* of families with head_norm */
    /* Of families with experts: '#' is the number of one; the MLP beside them and what it is multiplied by. */
    const char *router, *expert[3];
    const char *shared[3], *shared_gate;
} decoder_names;

#define DECODER_COMMON_NAMES                                                                       \
    .embed = "model.embed_tokens", .norm = "model.norm", .head = "lm_head",                        \
    .layer = "model.layers.", .attn_norm = "input_layernorm",                                      \
    .mlp_norm = "post_attention_layernorm",                                                        \
    .qkv = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, .o = "self_attn.o_proj",  \
    .gate = "mlp.gate_proj", .up = "mlp.up_proj", .down = "mlp.down_proj",                         \
    .q_norm = "self_attn.q_norm", .k_norm = "self_attn.k_norm"

typedef struct decoder_family {
    const char *arch; /* name shown to people */
    const char *chat; /* turbo_model_info.chat */
    const char *classes[3]; /* architectures.0 of config.json, NULL-terminated */
    const char *model_type;
    const decoder_names *names;
    int32_t layout; /* TURBO_QKV_* */
    uint32_t scalings; /* bits 1 << TURBO_ROPE_* */
    /* Values of absent keys, those of the published configuration class. */
    int32_t vocab, embed_dim, mlp_dim, n_layers, n_heads, max_position, bos, eos;
    int32_t n_kv; /* 0: as many as heads, as JSON null always means */
    int32_t head_dim; /* 0: embed_dim / n_heads */
    double eps, theta; /* 0: 1e-6, 10000 */
    /* Biases, window; everything else of cfg is filled. */
    turbo_status (*own)(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                        turbo_err *err);
} decoder_family;

/* 100 when architectures.0 is a class of f; 50 when there are none and model_type is f's; else 0. */
int32_t decoder_probe(const decoder_family *f, const turbo_host *h, const turbo_config *c);
turbo_status decoder_read(const decoder_family *f, const turbo_host *h, const turbo_config *c,
                          decoder_config *out, turbo_err *err);
/* The slots of turbo_model_vtbl. */
turbo_status decoder_describe(const decoder_family *f, const turbo_host *h, const turbo_config *c,
                              turbo_model_info *out, turbo_err *err);
turbo_status decoder_expect(const decoder_family *f, const turbo_host *h, const turbo_config *c,
                            turbo_expect_fn emit, void *ctx, turbo_err *err);
turbo_status decoder_open(const decoder_family *f, const turbo_host *h, const turbo_config *c,
                          turbo_weights *w, const turbo_ops *ops, void **model, turbo_err *err);
uint64_t decoder_workspace(const turbo_model_info *info, int32_t max_T, int32_t max_R,
                           int32_t act_bytes);
void decoder_close(void *model);
turbo_status decoder_forward(void *model, turbo_exec *x, const turbo_batch *b, float *logits,
                             turbo_err *err);

/* Names that most published checkpoints have. */
extern const decoder_names decoder_common_names;

/* GGUF files: keys that mean the same for each family, and tensors by the common names: rows of Q and K in
 * their own order, or with alternating lanes. */
extern const turbo_gguf_row decoder_gguf_keys[], decoder_gguf_tensors[], decoder_gguf_alternating[];

/* For own(): 1 when config.json has the key, be it null. */
int32_t decoder_has_key(const turbo_host *h, const turbo_config *c, const char *key);
/* Gives layer l the window. */
void decoder_set_window(decoder_config *cfg, int32_t l);
/* How a config.json says what its experts are: keys, each with the value of an absent one. */
typedef struct decoder_experts {
    const char *n, *n_alias; /* how many; alias NULL: no second name */
    const char *inner;
    int32_t n_default, chosen_default, inner_default;
} decoder_experts;
/* The same for own(): cfg->moe without layers, num_experts_per_tok included. */
turbo_status decoder_read_experts(const decoder_experts *e, const turbo_host *h,
                                  const turbo_config *c, decoder_config *cfg, turbo_err *err);
/* Which layers have experts: by decoder_sparse_step and mlp_only_layers; absent keys: all. */
turbo_status decoder_read_sparse(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                                 turbo_err *err);
void decoder_set_sparse(decoder_config *cfg, int32_t l); /* layer l has them */
static inline int32_t decoder_sparse(const decoder_config *cfg, int32_t l)
{
    return cfg->sparse[l / 64] >> (l % 64) & 1;
}
/* One line of ASCII into err; returns s. */
turbo_status decoder_fail(turbo_err *err, turbo_status s, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The plugin of a family: turbo_plugin_entry and what it returns. family_of(h, c): the family whose
 * config.json this is, or most likely is. its_gguf: how it reads GGUF files, a turbo_gguf. */
#define DECODER_PLUGIN(its_id, family_of, its_gguf)                                                \
    static int32_t probe(const turbo_host *h, const turbo_config *c)                               \
    {                                                                                              \
        return decoder_probe(family_of(h, c), h, c);                                               \
    }                                                                                              \
    static turbo_status describe(const turbo_host *h, const turbo_config *c,                       \
                                 turbo_model_info *out, turbo_err *err)                            \
    {                                                                                              \
        return decoder_describe(family_of(h, c), h, c, out, err);                                  \
    }                                                                                              \
    static turbo_status expect(const turbo_host *h, const turbo_config *c, turbo_expect_fn emit,   \
                               void *ctx, turbo_err *err)                                          \
    {                                                                                              \
        return decoder_expect(family_of(h, c), h, c, emit, ctx, err);                              \
    }                                                                                              \
    static turbo_status open_model(const turbo_host *h, const turbo_config *c, turbo_weights *w,   \
                                   const turbo_ops *ops, void **model, turbo_err *err)             \
    {                                                                                              \
        return decoder_open(family_of(h, c), h, c, w, ops, model, err);                            \
    }                                                                                              \
    static const turbo_model_vtbl model_vtbl = {                                                   \
        .size = sizeof model_vtbl,                                                                 \
        .id = its_id,                                                                              \
        .probe = probe,                                                                            \
        .describe = describe,                                                                      \
        .expect = expect,                                                                          \
        .workspace = decoder_workspace,                                                            \
        .open = open_model,                                                                        \
        .close = decoder_close,                                                                    \
        .forward = decoder_forward,                                                                \
    };                                                                                             \
    static const turbo_model_vtbl *const models[] = {&model_vtbl, 0};                              \
    static const void *extension(const char *id)                                                   \
    {                                                                                              \
        static const turbo_gguf *const tables[] = {&(its_gguf), 0};                                \
        return strcmp(id, TURBO_GGUF_ID) ? 0 : (const void *)tables;                               \
    }                                                                                              \
    static const turbo_plugin plugin = {                                                           \
        .magic = TURBO_PLUGIN_MAGIC,                                                               \
        .abi_major = TURBO_ABI_MAJOR,                                                              \
        .abi_minor = TURBO_ABI_MINOR,                                                              \
        .size = sizeof plugin,                                                                     \
        .min_minor = 2, /* experts */                                                              \
        .id = its_id,                                                                              \
        .version = "1.0",                                                                          \
        .license = "Apache-2.0",                                                                   \
        .build = "gcc " __VERSION__,                                                               \
        .models = models,                                                                          \
        .extension = extension,                                                                    \
    };                                                                                             \
    const turbo_plugin *turbo_plugin_entry(uint32_t host_abi)                                      \
    {                                                                                              \
        (void)host_abi;                                                                            \
        return &plugin;                                                                            \
    }

#endif
