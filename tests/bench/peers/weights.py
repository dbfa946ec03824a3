#!/usr/bin/env python3
"""The same weights in each engine's format: weights.py KIND OUT_FOLDER [MODEL_FOLDER], numpy and gguf needed.

KIND is SHAPE or SHAPE:LAYERS: random weights of a shape in bfloat16 (sign and mantissa random, one of four exponents: rms
0.027), the same for everybody. Or `copy`: a real model in MODEL_FOLDER (Llama layout, safetensors).
OUT_FOLDER/hf is a Hugging Face folder, OUT_FOLDER/bf16.gguf the same for llama.cpp, whose rotary pairs are
adjacent: rows of q and k are permuted.
"""
import json
import os
import shutil
import struct
import sys

import gguf
import numpy as np

#        hidden, ff,   layers, heads, kv, vocab
SHAPES = {
    "1.8b": (2048, 8192, 24, 16, 8, 92544),
    "7b": (4096, 14336, 32, 32, 8, 92544),
    "small": (256, 512, 2, 4, 2, 1000),
}


def config_of(kind):
    name, _, layers = kind.partition(":")
    E, I, n, H, K, V = SHAPES[name]
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": E,
            "intermediate_size": I, "num_hidden_layers": int(layers or n),
            "num_attention_heads": H, "num_key_value_heads": K, "vocab_size": V, "head_dim": E // H,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
            "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "bos_token_id": 1, "eos_token_id": 2}


def tensors_of(c):
    """(name, shape, its name in a GGUF file, heads of a permuted one)"""
    E, I, H, K = (c[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads",
                                 "num_key_value_heads"))
    D, V = c.get("head_dim") or E // H, c["vocab_size"]
    yield "model.embed_tokens.weight", (V, E), "token_embd.weight", 0
    for n in range(c["num_hidden_layers"]):
        p, g = "model.layers.%d." % n, "blk.%d." % n
        yield p + "input_layernorm.weight", (E,), g + "attn_norm.weight", 0
        yield p + "self_attn.q_proj.weight", (H * D, E), g + "attn_q.weight", H
        yield p + "self_attn.k_proj.weight", (K * D, E), g + "attn_k.weight", K
        yield p + "self_attn.v_proj.weight", (K * D, E), g + "attn_v.weight", 0
        yield p + "self_attn.o_proj.weight", (E, H * D), g + "attn_output.weight", 0
        yield p + "post_attention_layernorm.weight", (E,), g + "ffn_norm.weight", 0
        yield p + "mlp.gate_proj.weight", (I, E), g + "ffn_gate.weight", 0
        yield p + "mlp.up_proj.weight", (I, E), g + "ffn_up.weight", 0
        yield p + "mlp.down_proj.weight", (E, I), g + "ffn_down.weight", 0
    yield "model.norm.weight", (E,), "output_norm.weight", 0
    if not c.get("tie_word_embeddings"):
        yield "lm_head.weight", (V, E), "output.weight", 0


def random_bits(index, shape):
    """bfloat16 as uint16."""
    if len(shape) == 1:
        return np.full(shape, 0x3F80, np.uint16)  # 1.0
    n = int(np.prod(shape))
    r = np.frombuffer(np.random.default_rng([20, index]).bytes(2 * n), np.uint16)
    bits = r & 0x807F
    bits |= (119 << 7) + (r & 0x180)
    return bits.reshape(shape)


class Folder:
    """Tensors of a Hugging Face folder with one safetensors file."""

    def __init__(self, path):
        self.path = path
        with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
            self.config = json.load(f)
        with open(os.path.join(path, "model.safetensors"), "rb") as f:
            n = struct.unpack("<Q", f.read(8))[0]
            self.header = json.loads(f.read(n))
        self.data = np.memmap(os.path.join(path, "model.safetensors"), np.uint8, "r", 8 + n)

    def f32(self, name):
        t = self.header.get(name)
        if t is None and name == "model.embed_tokens.weight":  # tied, stored as the head
            t = self.header["lm_head.weight"]
        if t["dtype"] != "F32":
            sys.exit("weights.py: %s is %s, float32 is copied" % (name, t["dtype"]))
        a, b = t["data_offsets"]
        return self.data[a:b].view(np.float32).reshape(t["shape"])


def to_bf16(f):
    """Round to nearest even."""
    u = np.ascontiguousarray(f, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def permute(bits, heads):
    d = bits.shape[0] // heads
    return np.ascontiguousarray(
        bits.reshape(heads, 2, d // 2, -1).swapaxes(1, 2).reshape(bits.shape))


def header_of(writer, c, tokens):
    E, H = c["hidden_size"], c["num_attention_heads"]
    D = c.get("head_dim") or E // H
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(E)
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(H)
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_dimension_count(D)
    writer.add_rope_freq_base(c.get("rope_theta", 10000.0))
    writer.add_vocab_size(c["vocab_size"])
    writer.add_file_type(32)  # mostly bfloat16
    if not tokens:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model("llama")
    writer.add_token_list([t.encode() for t in tokens])
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write(c, bits_of, out):
    """Both files in one pass; one tensor in memory at a time."""
    hf = os.path.join(out, "hf")
    os.makedirs(hf, exist_ok=True)
    listed, header, at = list(tensors_of(c)), {}, 0
    for name, shape, _, _ in listed:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # plain ASCII names: no text is tokenised here
    names = ["<unk>", "<s>", "</s>"] + ["t%d" % i for i in range(3, c["vocab_size"])]
    w = gguf.GGUFWriter(os.path.join(out, "bf16.gguf.part"), "llama")
    header_of(w, c, names)
    bf16, f32 = gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F32
    for _, shape, name, _ in listed:
        size = int(np.prod(shape))
        if len(shape) == 1:
            w.add_tensor_info(name, shape, np.float32, 4 * size, f32)
        else:
            w.add_tensor_info(name, shape, np.uint16, 2 * size, bf16)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    with open(os.path.join(hf, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for i, (name, shape, _, heads) in enumerate(listed):
            bits = bits_of(i, name, shape)
            f.write(bits.data)
            if len(shape) == 1:
                bits = (bits.astype(np.uint32) << 16).view(np.float32)
            w.write_tensor_data(permute(bits, heads) if heads else bits)
    w.close()
    with open(os.path.join(hf, "config.json"), "w", encoding="utf-8") as f:
        json.dump(c, f)
    os.rename(os.path.join(out, "bf16.gguf.part"), os.path.join(out, "bf16.gguf"))


def main():
    kind, out = sys.argv[1:3]
    if kind == "copy":
        src = Folder(sys.argv[3])
        c = src.config | {"torch_dtype": "bfloat16"}
        write(c, lambda i, name, shape: to_bf16(src.f32(name)).reshape(shape), out)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if os.path.exists(os.path.join(src.path, name)):
                shutil.copy(os.path.join(src.path, name), os.path.join(out, "hf"))
    else:
        c = config_of(kind)
        write(c, lambda i, name, shape: random_bits(i, shape), out)


main()
