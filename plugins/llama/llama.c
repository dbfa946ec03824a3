/* plugins/llama/llama.c: Llama 1 to 3.2, Yi and Mistral: what is their own.
 *
 * Mistral is Llama with other defaults, without biases, and with a sliding window. Defaults of absent
 * keys are those of the configuration classes of transformers. */
#include "decoder.h"

#define ALL_SCALINGS ((1u << DECODER_TYPES) - 1)

static turbo_status llama_own(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                              turbo_err *err)
{
    turbo_status st = h->cfg_bool(c, "attention_bias", 0, &cfg->qkv_bias, err);
    cfg->o_bias = cfg->qkv_bias;
    return st ? st : h->cfg_bool(c, "mlp_bias", 0, &cfg->mlp_bias, err);
}

/* Null is no window; a file without the key is of the first release, which had one of 4096. */
static turbo_status mistral_own(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                                turbo_err *err)
{
    int64_t dflt = decoder_has_key(h, c, "sliding_window") ? 0 : 4096, window;
    turbo_status st = h->cfg_int(c, "sliding_window", dflt, 1, INT32_MAX, &window, err);
    cfg->window = (int32_t)window;
    for (int32_t l = 0; l < cfg->info.n_layers && window; l++)
        decoder_set_window(cfg, l);
    return st;
}

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

static const decoder_family *family_of(const turbo_host *h, const turbo_config *c)
{
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
