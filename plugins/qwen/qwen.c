/* plugins/qwen/qwen.c: Qwen1.5 to Qwen3, with and without experts: what is their own.
 *
 * To Qwen2.5 Llama with a bias on q, k and v; Qwen3 has norms of heads instead. Defaults of absent keys are
 * those of the configuration classes of transformers. */
#include <stdio.h>
#include <string.h>

#include "decoder.h"

/* layer_types names what each layer does; files of before transformers 5 have the rule instead: layers
 * from max_window_layers on slide. */
static turbo_status read_layers(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                                turbo_err *err)
{
    int64_t from, n = h->cfg_len(c, "layer_types");
    turbo_status st = h->cfg_int(c, "max_window_layers", 28, 0, INT32_MAX, &from, err);
    if (!st && h->cfg_has(c, "layer_types") && n != cfg->info.n_layers)
        st = decoder_fail(err, TURBO_EDATA,
                          "config.json: layer_types has %lld entries; num_hidden_layers is %d",
                          (long long)n, cfg->info.n_layers);
    for (int32_t l = 0; l < cfg->info.n_layers && !st; l++) {
        const char *type = l >= from && cfg->window ? "sliding_attention" : "full_attention";
        char path[32];
        snprintf(path, sizeof path, "layer_types.%d", l);
        st = h->cfg_str(c, path, type, &type, err);
        if (st)
            return st;
        if (!strcmp(type, "sliding_attention") && cfg->window)
            decoder_set_window(cfg, l);
        else if (strcmp(type, "full_attention"))
            st = decoder_fail(
                err, TURBO_EUNSUPPORTED,
                "config.json: %s is \"%.32s\"; full_attention and, with "
                "use_sliding_window and sliding_window, sliding_attention are computed",
                path, type);
    }
    return st;
}

/* use_sliding_window switches sliding_window, which published files give all the same. */
static turbo_status read_window(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                                turbo_err *err)
{
    int64_t dflt = decoder_has_key(h, c, "sliding_window") ? 0 : 4096, window;
    int32_t use;
    turbo_status st = h->cfg_bool(c, "use_sliding_window", 0, &use, err);
    if (!st)
        st = h->cfg_int(c, "sliding_window", dflt, 1, INT32_MAX, &window, err);
    if (st)
        return st;
    cfg->window = use ? (int32_t)window : 0;
    return read_layers(h, c, cfg, err);
}

static turbo_status qwen2_own(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                              turbo_err *err)
{
    cfg->qkv_bias = 1;
    return read_window(h, c, cfg, err);
}

/* Norms of heads; biases only where the config says so. */
static turbo_status read_qwen3_attention(const turbo_host *h, const turbo_config *c,
                                         decoder_config *cfg, turbo_err *err)
{
    turbo_status st = h->cfg_bool(c, "attention_bias", 0, &cfg->qkv_bias, err);
    cfg->o_bias = cfg->qkv_bias;
    cfg->head_norm = 1;
    return st;
}

static turbo_status qwen3_own(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                              turbo_err *err)
{
    turbo_status st = read_qwen3_attention(h, c, cfg, err);
    return st ? st : read_window(h, c, cfg, err);
}

/* What both have whose MLPs are experts. No published one has a window, and releases of transformers do not
 * agree on what it would be. */
static turbo_status read_moe(const decoder_experts *keys, const turbo_host *h,
                             const turbo_config *c, decoder_config *cfg, turbo_err *err)
{
    int32_t use = 0;
    turbo_status st = h->cfg_bool(c, "use_sliding_window", 0, &use, err);
    if (!st && use)
        st = decoder_fail(err, TURBO_EUNSUPPORTED,
                          "config.json: use_sliding_window is true; models of experts are computed "
                          "without a window");
    if (!st)
        st = decoder_read_experts(keys, h, c, cfg, err);
    if (!st)
        st = h->cfg_bool(c, "norm_topk_prob", 0, &cfg->moe.normalise, err);
    if (!st)
        st = decoder_read_sparse(h, c, cfg, err);
    return st ? st : read_layers(h, c, cfg, err);
}

static turbo_status qwen2_moe_own(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                                  turbo_err *err)
{
    static const decoder_experts keys = {
        .n = "num_experts",
        .n_alias = "num_local_experts",
        .inner = "moe_intermediate_size",
        .n_default = 60,
        .chosen_default = 4,
        .inner_default = 1408,
    };
    int64_t shared = 0;
    turbo_status st = h->cfg_bool(c, "qkv_bias", 1, &cfg->qkv_bias, err);
    if (!st)
        st = h->cfg_int(c, "shared_expert_intermediate_size", 5632, 1, 1048576, &shared, err);
    cfg->info.shared_dim = (int32_t)shared;
    return st ? st : read_moe(&keys, h, c, cfg, err);
}

static turbo_status qwen3_moe_own(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                                  turbo_err *err)
{
    static const decoder_experts keys = {
        .n = "num_experts",
        .n_alias = "num_local_experts",
        .inner = "moe_intermediate_size",
        .n_default = 128,
        .chosen_default = 8,
        .inner_default = 768,
    };
    turbo_status st = read_qwen3_attention(h, c, cfg, err);
    return st ? st : read_moe(&keys, h, c, cfg, err);
}

static const decoder_names moe_names = {
    DECODER_COMMON_NAMES,
    .router = "mlp.gate",
    .expert = {"mlp.experts.#.gate_proj", "mlp.experts.#.up_proj", "mlp.experts.#.down_proj"},
    .shared = {"mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj",
               "mlp.shared_expert.down_proj"},
    .shared_gate = "mlp.shared_expert_gate",
};

#define QWEN(its_arch, its_class, its_type)                                                        \
    .arch = its_arch, .chat = "", .classes = {its_class}, .model_type = its_type,                  \
    .layout = TURBO_QKV_PLAIN, .scalings = (1u << DECODER_TYPES) - 1, .vocab = 151936,             \
    .max_position = 32768, .bos = -1, .eos = -1

static const decoder_family families[] = {
    {
        QWEN("Qwen2", "Qwen2ForCausalLM", "qwen2"),
        .names = &decoder_common_names,
        .embed_dim = 4096,
        .mlp_dim = 22016,
        .n_layers = 32,
        .n_heads = 32,
        .n_kv = 32,
        .own = qwen2_own,
    },
    {
        QWEN("Qwen3", "Qwen3ForCausalLM", "qwen3"),
        .names = &decoder_common_names,
        .embed_dim = 4096,
        .mlp_dim = 22016,
        .n_layers = 32,
        .n_heads = 32,
        .n_kv = 32,
        .head_dim = 128,
        .own = qwen3_own,
    },
    {
        QWEN("Qwen2-MoE", "Qwen2MoeForCausalLM", "qwen2_moe"),
        .names = &moe_names,
        .embed_dim = 2048,
        .mlp_dim = 5632,
        .n_layers = 24,
        .n_heads = 16,
        .n_kv = 16,
        .own = qwen2_moe_own,
    },
    {
        QWEN("Qwen3-MoE", "Qwen3MoeForCausalLM", "qwen3_moe"),
        .names = &moe_names,
        .embed_dim = 2048,
        .mlp_dim = 6144,
        .n_layers = 24,
        .n_heads = 32,
        .n_kv = 4,
        .own = qwen3_moe_own,
    },
};

static const decoder_family *family_of(const turbo_host *h, const turbo_config *c)
{
    const decoder_family *best = families;
    int32_t sure = 0;
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        int32_t found = decoder_probe(&families[i], h, c);
        if (found > sure) {
            sure = found;
            best = &families[i];
        }
    }
    return best;
}

static const turbo_gguf gguf = {
    .size = sizeof gguf,
    .arch = "qwen2",
    .config = "{\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\","
              "\"num_key_value_heads\":null}",
    .keys = decoder_gguf_keys,
    .tensors = decoder_gguf_tensors,
};

DECODER_PLUGIN("qwen", family_of, gguf)
