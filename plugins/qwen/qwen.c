/* plugins/qwen/qwen.c: Qwen1.5, Qwen2 and Qwen2.5: what is their own.
 *
 * Llama with a bias on q, k and v. Defaults of absent keys are those of Qwen2Config of transformers. */
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
static turbo_status own(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                        turbo_err *err)
{
    int64_t dflt = decoder_has_key(h, c, "sliding_window") ? 0 : 4096, window;
    int32_t use;
    turbo_status st = h->cfg_bool(c, "use_sliding_window", 0, &use, err);
    if (!st)
        st = h->cfg_int(c, "sliding_window", dflt, 1, INT32_MAX, &window, err);
    if (st)
        return st;
    cfg->qkv_bias = 1;
    cfg->window = use ? (int32_t)window : 0;
    return read_layers(h, c, cfg, err);
}

static const decoder_family family = {
    .arch = "Qwen2",
    .chat = "",
    .classes = {"Qwen2ForCausalLM"},
    .model_type = "qwen2",
    .names = &decoder_common_names,
    .layout = TURBO_QKV_PLAIN,
    .scalings = (1u << DECODER_TYPES) - 1,
    .vocab = 151936,
    .embed_dim = 4096,
    .mlp_dim = 22016,
    .n_layers = 32,
    .n_heads = 32,
    .n_kv = 32,
    .max_position = 32768,
    .bos = -1,
    .eos = -1,
    .own = own,
};

static const decoder_family *family_of(const turbo_host *h, const turbo_config *c)
{
    (void)h;
    (void)c;
    return &family;
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
