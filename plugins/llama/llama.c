/* plugins/llama/llama.c: Llama 1 to 3.2, Yi, Mistral and Mixtral: what is their own.
 *
 * Mistral is Llama with other defaults, without biases, and with a sliding window; Mixtral is Mistral with
 * experts in every layer. Defaults of absent keys are those of the configuration classes of transformers. */
#include "decoder.h"

#define ALL_SCALINGS ((1u << DECODER_TYPES) - 1)

static turbo_status llama_own(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                              turbo_err *err)
{
    turbo_status st = h->cfg_bool(c, "attention_bias", 0, &cfg->qkv_bias, err);
    cfg->o_bias = cfg->qkv_bias;
    return st ? st : h->cfg_bool(c, "mlp_bias", 0, &cfg->mlp_bias, err);
}

/* A window of all layers; absent: dflt, null: none. */
static turbo_status read_window(const turbo_host *h, const turbo_config *c, int64_t dflt,
                                decoder_config *cfg, turbo_err *err)
{
    int64_t window;
    turbo_status st = h->cfg_int(c, "sliding_window", dflt, 1, INT32_MAX, &window, err);
    if (st)
        return st;
    cfg->window = (int32_t)window;
    for (int32_t l = 0; l < cfg->info.n_layers && window; l++)
        decoder_set_window(cfg, l);
    return TURBO_OK;
}

/* Null is no window; a file without the key is of the first release, which had one of 4096. */
static turbo_status mistral_own(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                                turbo_err *err)
{
    return read_window(h, c, decoder_has_key(h, c, "sliding_window") ? 0 : 4096, cfg, err);
}

static turbo_status mixtral_own(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                                turbo_err *err)
{
    static const decoder_experts keys = {
        .n = "num_local_experts",
        .inner = "intermediate_size",
        .n_default = 8,
        .chosen_default = 2,
        .inner_default = 14336,
    };
    turbo_status st = decoder_read_experts(&keys, h, c, cfg, err);
    cfg->moe.normalise = 1;
    for (int32_t l = 0; l < cfg->info.n_layers; l++)
        decoder_set_sparse(cfg, l);
    return st ? st : read_window(h, c, 0, cfg, err);
}

static const decoder_names mixtral_names = {
    DECODER_COMMON_NAMES,
    .router = "block_sparse_moe.gate",
    .expert = {"block_sparse_moe.experts.#.w1", "block_sparse_moe.experts.#.w3",
               "block_sparse_moe.experts.#.w2"},
};

static const decoder_family llama = {
    .arch = "Llama",
    .chat = "",
    .classes = {"LlamaForCausalLM", "LLaMAForCausalLM"},
    .model_type = "llama",
    .names = &decoder_common_names,
    .layout = TURBO_QKV_PLAIN,
    .scalings = ALL_SCALINGS,
    .vocab = 32000,
    .embed_dim = 4096,
    .mlp_dim = 11008,
    .n_layers = 32,
    .n_heads = 32,
    .max_position = 2048,
    .bos = 1,
    .eos = 2,
    .own = llama_own,
};

static const decoder_family mistral = {
    .arch = "Mistral",
    .chat = "",
    .classes = {"MistralForCausalLM"},
    .model_type = "mistral",
    .names = &decoder_common_names,
    .layout = TURBO_QKV_PLAIN,
    .scalings = ALL_SCALINGS,
    .vocab = 32000,
    .embed_dim = 4096,
    .mlp_dim = 14336,
    .n_layers = 32,
    .n_heads = 32,
    .n_kv = 8,
    .max_position = 131072,
    .bos = 1,
    .eos = 2,
    .own = mistral_own,
};

static const decoder_family mixtral = {
    .arch = "Mixtral",
    .chat = "",
    .classes = {"MixtralForCausalLM"},
    .model_type = "mixtral",
    .names = &mixtral_names,
    .layout = TURBO_QKV_PLAIN,
    .scalings = ALL_SCALINGS,
    .vocab = 32000,
    .embed_dim = 4096,
    .mlp_dim = 14336,
    .n_layers = 32,
    .n_heads = 32,
    .n_kv = 8,
    .max_position = 131072,
    .bos = 1,
    .eos = 2,
    .eps = 1e-5,
    .theta = 1e6,
    .own = mixtral_own,
};

static const decoder_family *family_of(const turbo_host *h, const turbo_config *c)
{
    if (decoder_probe(&mixtral, h, c))
        return &mixtral;
    return decoder_probe(&mistral, h, c) ? &mistral : &llama;
}

/* Files of this architecture come from each of the classes above; none of them has a window. */
static const turbo_gguf gguf = {
    .size = sizeof gguf,
    .arch = "llama",
    .config = "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\"}",
    .keys = decoder_gguf_keys,
    .tensors = decoder_gguf_alternating,
};

DECODER_PLUGIN("llama", family_of, gguf)
