/* plugins/decoder/gguf.c: what GGUF files call the keys and tensors of a decoder. Constant tables; what the
 * rules mean says turbo/ext/gguf.h. Must not know a family. */
#include "decoder.h"

#define KEY(from, to)                                                                              \
    {                                                                                              \
        from, to, 0, TURBO_GGUF_KEY, 0                                                             \
    }
#define NEED(from, to)                                                                             \
    {                                                                                              \
        from, to, 0, TURBO_GGUF_NEED, 0                                                            \
    }
#define MUST(from, arg)                                                                            \
    {                                                                                              \
        from, "", arg, TURBO_GGUF_MUST, 0                                                          \
    }

const turbo_gguf_row decoder_gguf_keys[] = {
    /* Others of the same architecture, which compute something else. */
    MUST(".expert_count", "0"),
    MUST(".attention.sliding_window", "0"),
    MUST(".attention.causal", "1"),
    NEED(".embedding_length", "hidden_size"),
    NEED(".block_count", "num_hidden_layers"),
    NEED(".feed_forward_length", "intermediate_size"),
    NEED(".attention.head_count", "num_attention_heads"),
    KEY(".attention.head_count_kv", "num_key_value_heads"),
    KEY(".attention.key_length", "head_dim"),
    {".attention.value_length", "head_dim", 0, TURBO_GGUF_SAME, 0},
    {".rope.dimension_count", "head_dim", 0, TURBO_GGUF_SAME, 0},
    NEED(".context_length", "max_position_embeddings"),
    NEED(".attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    KEY(".rope.freq_base", "rope_theta"),
    /* The embedding has the last word: a count of names may leave out what fills it up. */
    {"token_embd.weight", "vocab_size", 0, TURBO_GGUF_ROWS, 0},
    {"output.weight", "tie_word_embeddings", 0, TURBO_GGUF_LACKS, 0},
    {"blk.0.attn_q.bias", "attention_bias", 0, TURBO_GGUF_HAS, 0},
    {"blk.0.attn_q.bias", "bias", 0, TURBO_GGUF_HAS, 0},
    {"blk.0.ffn_gate.bias", "mlp_bias", 0, TURBO_GGUF_HAS, 0},
    KEY("tokenizer.ggml.bos_token_id", "bos_token_id"),
    KEY("tokenizer.ggml.eos_token_id", "eos_token_id"),
    {"tokenizer.ggml.eot_token_id", "generation.eos_token_id", 0, TURBO_GGUF_OPEN, 0},
    {"rope_freqs.weight", "rope_scaling", "llama3", TURBO_GGUF_BANDS, 0},
    {".rope.scaling.type", "rope_scaling.rope_type", "none", TURBO_GGUF_OPEN, 0},
    KEY(".rope.scaling.factor", "rope_scaling.factor"),
    KEY(".rope.scaling.original_context_length", "rope_scaling.original_max_position_embeddings"),
    KEY(".rope.scaling.yarn_beta_fast", "rope_scaling.beta_fast"),
    KEY(".rope.scaling.yarn_beta_slow", "rope_scaling.beta_slow"),
    /* It multiplies what the model computes itself; config.json replaces that. */
    MUST(".rope.scaling.attn_factor", "1"),
    {".rope.scale_linear", "", "1", TURBO_GGUF_MUST, 0},
    {0},
};

#define TENSORS(q, k)                                                                              \
    {"token_embd", "model.embed_tokens", 0, TURBO_GGUF_PLAIN, 0},                                  \
        {"output_norm", "model.norm", 0, TURBO_GGUF_PLAIN, 0},                                     \
        {"output", "lm_head", 0, TURBO_GGUF_PLAIN, 0},                                             \
        {"blk.#.attn_norm", "model.layers.#.input_layernorm", 0, TURBO_GGUF_PLAIN, 0},             \
        {"blk.#.attn_q", "model.layers.#.self_attn.q_proj", 0, q, 0},                              \
        {"blk.#.attn_k", "model.layers.#.self_attn.k_proj", 0, k, 0},                              \
        {"blk.#.attn_v", "model.layers.#.self_attn.v_proj", 0, TURBO_GGUF_PLAIN, 0},               \
        {"blk.#.attn_output", "model.layers.#.self_attn.o_proj", 0, TURBO_GGUF_PLAIN, 0},          \
        {"blk.#.ffn_norm", "model.layers.#.post_attention_layernorm", 0, TURBO_GGUF_PLAIN, 0},     \
        {"blk.#.ffn_gate", "model.layers.#.mlp.gate_proj", 0, TURBO_GGUF_PLAIN, 0},                \
        {"blk.#.ffn_up", "model.layers.#.mlp.up_proj", 0, TURBO_GGUF_PLAIN, 0},                    \
        {"blk.#.ffn_down", "model.layers.#.mlp.down_proj", 0, TURBO_GGUF_PLAIN, 0},                \
    {                                                                                              \
        0                                                                                          \
    }

const turbo_gguf_row decoder_gguf_tensors[] = {TENSORS(TURBO_GGUF_PLAIN, TURBO_GGUF_PLAIN)};
const turbo_gguf_row decoder_gguf_alternating[] = {TENSORS(TURBO_GGUF_Q, TURBO_GGUF_K)};
