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

static const turbo_gguf_row gguf_tensors[] = {
    {"token_embd", "model.tok_embeddings", 0, TURBO_GGUF_PLAIN, 0},
    {"output_norm", "model.norm", 0, TURBO_GGUF_PLAIN, 0},
    {"output", "output", 0, TURBO_GGUF_PLAIN, 0},
    {"blk.#.attn_norm", "model.layers.#.attention_norm", 0, TURBO_GGUF_PLAIN, 0},
    {"blk.#.attn_q", "model.layers.#.attention.wqkv", 0, TURBO_GGUF_GROUP_Q, 0},
    {"blk.#.attn_k", "model.layers.#.attention.wqkv", 0, TURBO_GGUF_GROUP_K, 0},
    {"blk.#.attn_v", "model.layers.#.attention.wqkv", 0, TURBO_GGUF_GROUP_V, 0},
    {"blk.#.attn_output", "model.layers.#.attention.wo", 0, TURBO_GGUF_PLAIN, 0},
    {"blk.#.ffn_norm", "model.layers.#.ffn_norm", 0, TURBO_GGUF_PLAIN, 0},
    {"blk.#.ffn_gate", "model.layers.#.feed_forward.w1", 0, TURBO_GGUF_PLAIN, 0},
    {"blk.#.ffn_up", "model.layers.#.feed_forward.w3", 0, TURBO_GGUF_PLAIN, 0},
    {"blk.#.ffn_down", "model.layers.#.feed_forward.w2", 0, TURBO_GGUF_PLAIN, 0},
    {0},
};

static const turbo_gguf gguf = {
    .size = sizeof gguf,
    .arch = "internlm2",
    .config = "{\"architectures\":[\"InternLM2ForCausalLM\"],\"model_type\":\"internlm2\"}",
    .keys = decoder_gguf_keys,
    .tensors = gguf_tensors,
};

DECODER_PLUGIN("internlm2", family_of, gguf)
