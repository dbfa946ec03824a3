#!/usr/bin/env python3
"""Repacks two real tiny Llama models into the InternLM2, Llama and Qwen2 layouts, with the standard
library alone.

    repack.py SHARED_MODELS_DIR OUT_DIR

Writes OUT_DIR/stories260K-LAYOUT (from a llama2.c checkpoint, whose rotary pairs are adjacent: rows of
q and k are permuted to the half-split order) and OUT_DIR/tinystories-656k-LAYOUT (from a Hugging Face
folder, which is Llama's own layout already). LAYOUT is internlm2, llama or qwen.
"""
import array
import json
import os
import shutil
import struct
import sys


class Matrix:
    """Rows of float32 in an array."""

    def __init__(self, data, cols):
        self.data, self.cols = data, cols

    def row(self, r):
        return self.data[r * self.cols:(r + 1) * self.cols]


def half_split(m, heads, d):
    """Adjacent pairs (2i, 2i+1) of each head to (i, i + d/2)."""
    out = array.array("f")
    for h in range(heads):
        for p in range(2):
            for i in range(d // 2):
                out += m.row(h * d + 2 * i + p)
    return Matrix(out, m.cols)


def pack(q, k, v, heads, kv, d):
    """InternLM2's wqkv: for each KV head its query heads, then K, then V."""
    out, g = array.array("f"), heads // kv
    for n in range(kv):
        for r in range(n * g * d, (n + 1) * g * d):
            out += q.row(r)
        for m in (k, v):
            for r in range(n * d, (n + 1) * d):
                out += m.row(r)
    return Matrix(out, q.cols)


# A layout: config keys, names of the tensors outside layers, of q, k and v (or of the packed one),
# and of the rest of a layer.
LLAMA = {"emb": "model.embed_tokens", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
         "v": "self_attn.v_proj", "o": "self_attn.o_proj", "w1": "mlp.gate_proj",
         "w3": "mlp.up_proj", "w2": "mlp.down_proj", "attn_norm": "input_layernorm",
         "ffn_norm": "post_attention_layernorm",
         "config": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}}
QWEN = LLAMA | {"bias": True,
                "config": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}}
INTERNLM2 = {"emb": "model.tok_embeddings", "qkv": "attention.wqkv", "o": "attention.wo",
             "w1": "feed_forward.w1", "w3": "feed_forward.w3", "w2": "feed_forward.w2",
             "attn_norm": "attention_norm", "ffn_norm": "ffn_norm",
             "config": {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2",
                        "bias": False}}


def write(folder, config, tensors):
    os.makedirs(folder, exist_ok=True)
    header, at = {}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * len(data)]}
        at += 4 * len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, data in tensors.values():
            f.write(data.tobytes())
    base = {"bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0,
            "tie_word_embeddings": True, "torch_dtype": "float32"}
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(base | config, f)


def model(layout, get, emb, norm, c, permute):
    """All tensors, embeddings tied. get(kind, layer) gives a Matrix or an array. permute: rotary pairs
    are adjacent. A layout with biases gets zeros."""
    E, I, L, H, K, V = (c[k] for k in KEYS)
    D = E // H
    t = {layout["emb"] + ".weight": ([V, E], emb), "model.norm.weight": ([E], norm)}
    for n in range(L):
        q, k, v = (get(x, n) for x in "qkv")
        if permute:
            q, k = half_split(q, H, D), half_split(k, K, D)
        p = f"model.layers.{n}."
        if "qkv" in layout:
            t[p + layout["qkv"] + ".weight"] = ([(H + 2 * K) * D, E], pack(q, k, v, H, K, D).data)
        else:
            for kind, m, heads in (("q", q, H), ("k", k, K), ("v", v, K)):
                t[p + layout[kind] + ".weight"] = ([heads * D, E], m.data)
                if layout.get("bias"):
                    t[p + layout[kind] + ".bias"] = ([heads * D], array.array("f", [0] * heads * D))
        for kind, shape in (("o", [E, H * D]), ("attn_norm", [E]), ("ffn_norm", [E]),
                            ("w1", [I, E]), ("w3", [I, E]), ("w2", [E, I])):
            x = get(kind, n)
            t[p + layout[kind] + ".weight"] = (shape, x if kind.endswith("norm") else x.data)
    return t


KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "vocab_size")


def llama2c(path, outs):
    raw = open(path, "rb").read()
    E, I, L, H, K, V, S = struct.unpack("<7i", raw[:28])
    floats = array.array("f", raw[28:])
    D, at, parts = E // H, 0, {}
    order = [("emb", V * E), ("attn_norm", L * E), ("q", L * E * E), ("k", L * K * D * E),
             ("v", L * K * D * E), ("o", L * E * E), ("ffn_norm", L * E), ("w1", L * I * E),
             ("w2", L * I * E), ("w3", L * I * E), ("norm", E)]
    for name, n in order:
        parts[name] = floats[at:at + n]
        at += n

    def get(kind, n):
        size = len(parts[kind]) // L
        x = parts[kind][n * size:(n + 1) * size]
        return x if kind.endswith("norm") else Matrix(x, I if kind == "w2" else E)

    c = dict(zip(KEYS, (E, I, L, H, K, V))) | {"max_position_embeddings": S, "rms_norm_eps": 1e-5}
    for out, layout in outs:
        write(out, c | layout["config"],
              model(layout, get, parts["emb"], parts["norm"], c, True))


def hugging_face(folder, outs):
    c = json.load(open(os.path.join(folder, "config.json"), encoding="utf-8"))
    raw = open(os.path.join(folder, "model.safetensors"), "rb").read()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + n])

    def tensor(name):
        b, e = header[name]["data_offsets"]
        assert header[name]["dtype"] == "F32"
        return array.array("f", raw[8 + n + b:8 + n + e])

    def get(kind, layer):
        x = tensor(f"model.layers.{layer}.{LLAMA[kind]}.weight")
        cols = c["intermediate_size"] if kind == "w2" else c["hidden_size"]
        return x if kind.endswith("norm") else Matrix(x, cols)

    # the tied matrix is stored under the head's name only
    stored = "model.embed_tokens.weight"
    emb = tensor(stored if stored in header else "lm_head.weight")
    kept = {k: c[k] for k in KEYS + ("max_position_embeddings", "rms_norm_eps")}
    for out, layout in outs:
        write(out, kept | layout["config"],
              model(layout, get, emb, tensor("model.norm.weight"), kept, False))


def main():
    src, out = sys.argv[1:3]
    stories = [(os.path.join(out, "stories260K-" + name), layout)
               for name, layout in (("internlm2", INTERNLM2), ("llama", LLAMA), ("qwen", QWEN))]
    llama2c(os.path.join(src, "stories260K", "stories260K.bin"), stories)
    for folder, _ in stories:
        shutil.copy(os.path.join(src, "stories260K", "tok512.model"),
                    os.path.join(folder, "tokenizer.model"))
    hugging_face(os.path.join(src, "tinystories-656k-hf"),
                 [(os.path.join(out, "tinystories-656k-internlm2"), INTERNLM2),
                  (os.path.join(out, "tinystories-656k-qwen"), QWEN)])


if __name__ == "__main__":
    main()
