/* plugins/internlm2/internlm2.c: InternLM2 and InternLM2.5: defaults, and tensor names.
 *
 * wqkv is packed by KV head: its query heads, then K, then V (TURBO_QKV_GROUPED). Defaults of absent keys
 * are those of the published InternLM2Config class; `bias` puts one on wqkv and wo. */
#include "decoder.h"

static turbo_status own(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                        turbo_err *err)
{
    turbo_status st = h->cfg_bool(c, "bias", 1, &cfg->qkv_bias, err);
    cfg->o_bias = cfg->qkv_bias;
    return st;
}

static const decoder_names names = {
    .embed = "model.tok_embeddings",
    .norm = "model.norm",
    .head = "output",
    .layer = "model.layers.",
    .attn_norm = "attention_norm",
    .mlp_norm = "ffn_norm",
    .qkv = {"attention.wqkv"},
    .o = "attention.wo",
    .gate = "feed_forward.w1",
    .up = "feed_forward.w3",
    .down = "feed_forward.w2",
};

static const decoder_family family = {
    .arch = "InternLM2",
    .chat = "internlm2",
    .classes = {"InternLM2ForCausalLM"},
    .model_type = "internlm2",
    .names = &names,
    .layout = TURBO_QKV_GROUPED,
    .scalings = 1u << TURBO_ROPE_PLAIN | 1u << TURBO_ROPE_LINEAR | 1u << TURBO_ROPE_DYNAMIC,
    .vocab = 103168,
    .embed_dim = 4096,
    .mlp_dim = 11008,
    .n_layers = 32,
    .n_heads = 32,
    .max_position = 2048,
    .bos = 1,
    .eos = 2,
    .own = own,
};

static const decoder_family *family_of(const turbo_host *h, const turbo_config *c)
{
    (void)h;
    (void)c;
    return &family;
}

DECODER_PLUGIN("internlm2", family_of)
