#!/usr/bin/env python3
"""Writes GGUF files (version 3) for the tests, with numpy alone.

    make.py blocks OUT.gguf                 random blocks of each type beside their numbers, which the
                                            package gguf 0.19 computed (needs it; OUT is in the tree)
    make.py convert FOLDER OUT.gguf [--type F32|F16|BF16|Q8_0|Q4_0] [--plain FOLDER]
                                            a model folder, its tokenizer.model included; --plain writes
                                            the dequantised numbers as a model folder
    make.py random ARCH OUT.gguf FOLDER     a model of random blocks of many types in the layout of ARCH, and
                                            its dequantised numbers as a model folder
    make.py tiktoken FILE FOLDER            a tiktoken file with the rules of Llama 3 as tokenizer.json
    make.py tokenizer FOLDER OUT.gguf PRE   the tokenizer of a folder alone; PRE as tokenizer.ggml.pre

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; what converters do to names
and rows is that of convert_hf_to_gguf.py.
"""
import base64
import json
import os
import shutil
import struct
import sys

import numpy as np

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
ALIGN = 32
TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "BF16": 30}


# ---- writing --------------------------------------------------------------------------------------

def text(s):
    b = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(b)) + b


def value(v):
    if isinstance(v, bool):
        return struct.pack("<IB", BOOL, v)
    if isinstance(v, int):
        return struct.pack("<II", U32, v)
    if isinstance(v, float):
        return struct.pack("<If", F32, v)
    if isinstance(v, (str, bytes)):
        return struct.pack("<I", STRING) + text(v)
    kind = STRING if isinstance(v[0], (str, bytes)) else F32 if isinstance(v[0], float) else I32
    items = (b"".join(map(text, v)) if kind == STRING else
             np.array(v, "<f4" if kind == F32 else "<i4").tobytes())
    return struct.pack("<IIQ", ARRAY, kind, len(v)) + items


def write(path, keys, tensors):
    """tensors: name -> (type id, row-major shape, bytes)"""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for k, v in keys.items():
        head += text(k) + value(v)
    data, at = [], 0
    for name, (kind, shape, raw) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", kind, at)
        data.append(raw + bytes(-len(raw) % ALIGN))
        at += len(data[-1])
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % ALIGN) + b"".join(data))


# ---- numbers --------------------------------------------------------------------------------------

def encode(x, kind):
    """float32 numbers as bytes of a type."""
    if kind == "F32":
        return x.astype("<f4").tobytes()
    if kind == "F16":
        return x.astype("<f2").tobytes()
    if kind == "BF16":
        u = x.astype("<f4").view("<u4")
        return ((u + 0x7fff + (u >> 16 & 1)) >> 16).astype("<u2").tobytes()
    b = x.reshape(-1, 32).astype(np.float32)
    if kind == "Q8_0":
        d = np.abs(b).max(1, keepdims=True) / np.float32(127)
        q = np.rint(np.divide(b, d, out=np.zeros_like(b), where=d > 0)).astype(np.int8)
        return np.hstack([d.astype("<f2").view(np.uint8), q.view(np.uint8)]).tobytes()
    d = np.take_along_axis(b, np.abs(b).argmax(1, keepdims=True), 1) / np.float32(-8)
    q = np.divide(b, d, out=np.zeros_like(b), where=d != 0) + np.float32(8.5)
    q = q.astype(np.uint8).clip(0, 15)
    return np.hstack([d.astype("<f2").view(np.uint8), q[:, :16] | q[:, 16:] << 4]).tobytes()


def half(b, at):
    return b[:, at:at + 2].copy().view("<f2").astype(np.float32)


def q4_k(b):
    d, dmin, sc, q = half(b, 0), half(b, 2), b[:, 4:16].astype(int), b[:, 16:]
    s = np.hstack([sc[:, :4] & 63, sc[:, 8:] & 15 | sc[:, :4] >> 6 << 4])
    m = np.hstack([sc[:, 4:8] & 63, sc[:, 8:] >> 4 | sc[:, 4:8] >> 6 << 4])
    q = np.stack([q.reshape(-1, 4, 32) & 15, q.reshape(-1, 4, 32) >> 4], 2).reshape(-1, 8, 32)
    scale, least = (d * s.astype(np.float32)), (dmin * m.astype(np.float32))
    return scale[:, :, None] * q.astype(np.float32) - least[:, :, None]


def q6_k(b):
    low, high = b[:, :128].reshape(-1, 2, 2, 32), b[:, 128:192].reshape(-1, 2, 1, 32)
    sc = b[:, 192:208].copy().view(np.int8).astype(np.float32)
    low = np.concatenate([low & 15, low >> 4], 2)
    high = high >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3
    q = (low | high << 4).astype(np.float32).reshape(-1, 16, 16) - 32
    return (half(b, 208) * sc)[:, :, None] * q


BLOCKS = {"Q4_K": (144, q4_k, (0, 2)), "Q6_K": (210, q6_k, (208,)), "Q8_0": (34, None, (0,)),
          "Q4_0": (18, None, (0,))}


def decode(raw, kind, shape):
    if kind in ("Q4_K", "Q6_K"):
        size, rule, _ = BLOCKS[kind]
        return rule(np.frombuffer(raw, np.uint8).reshape(-1, size)).reshape(shape)
    if kind == "F32":
        return np.frombuffer(raw, "<f4").reshape(shape)
    if kind == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32).reshape(shape)
    if kind == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    b = np.frombuffer(raw, np.uint8).reshape(-1, 34 if kind == "Q8_0" else 18)
    d, q = b[:, :2].copy().view("<f2").astype(np.float32), b[:, 2:].copy()
    q = (q.view(np.int8).astype(np.float32) if kind == "Q8_0" else
         np.hstack([q & 15, q >> 4]).astype(np.float32) - 8)
    return (d * q).reshape(shape)


# ---- models ---------------------------------------------------------------------------------------

def read_folder(folder):
    config = json.load(open(os.path.join(folder, "config.json"), encoding="utf-8"))
    raw = open(os.path.join(folder, "model.safetensors"), "rb").read()
    n = struct.unpack("<Q", raw[:8])[0]
    tensors = {}
    for name, t in json.loads(raw[8:8 + n]).items():
        if name != "__metadata__":
            b, e = t["data_offsets"]
            tensors[name] = decode(raw[8 + n + b:8 + n + e], t["dtype"], t["shape"])
    return config, tensors


def write_folder(folder, config, tensors):
    os.makedirs(folder, exist_ok=True)
    header, at = {}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for x in tensors.values():
            f.write(x.tobytes())
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f)


def alternate(x, heads):
    """Rows of each head: halves to alternating lanes."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def halves(x, heads):
    return x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


COMMON = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
          "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
          "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
          "post_attention_layernorm": "ffn_norm", "attention.wo": "attn_output",
          "feed_forward.w1": "ffn_gate", "feed_forward.w3": "ffn_up", "feed_forward.w2": "ffn_down",
          "attention_norm": "attn_norm", "ffn_norm": "ffn_norm"}
ENDS = {"model.embed_tokens": "token_embd", "model.tok_embeddings": "token_embd",
        "model.norm": "output_norm", "lm_head": "output", "output": "output"}


def split(wqkv, heads, kv):
    """InternLM2's packed matrix as Q, K and V."""
    g = heads // kv
    x = wqkv.reshape(kv, g + 2, -1, *wqkv.shape[1:])
    return [p.reshape(-1, *wqkv.shape[1:]) for p in (x[:, :g], x[:, g], x[:, g + 1])]


def convert(folder, out, kind, plain):
    config, tensors = read_folder(folder)
    arch = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    heads = config["num_attention_heads"]
    kv = config.get("num_key_value_heads") or heads
    if config.get("tie_word_embeddings") and "lm_head.weight" in tensors:
        head = tensors.pop("lm_head.weight") # a tied matrix that has the name of the head only
        tensors.setdefault("model.embed_tokens.weight", head)
    named = {}
    for name, x in tensors.items():
        base, _, suffix = name.rpartition(".")
        if base in ENDS:
            named[f"{ENDS[base]}.{suffix}"] = x
            continue
        layer, part = base.removeprefix("model.layers.").split(".", 1)
        parts = (dict(zip(("attn_q", "attn_k", "attn_v"), split(x, heads, kv)))
                 if part == "attention.wqkv" else {COMMON[part]: x})
        for p, y in parts.items():
            if arch != "qwen2" and p in ("attn_q", "attn_k"):
                y = alternate(y, heads if p == "attn_q" else kv)
            named[f"blk.{layer}.{p}.{suffix}"] = y
    keys = metadata(config, arch, heads, kv)
    if os.path.exists(os.path.join(folder, "tokenizer.model")):
        keys |= sentencepiece(folder)
    else:
        keys |= {f"tokenizer.ggml.{k}_token_id": config[f"{k}_token_id"] for k in ("bos", "eos")}
    stored, back = {}, {}
    for name, x in named.items():
        how = kind if x.ndim == 2 and x.shape[1] % 32 == 0 else "F32"
        raw = encode(x, how)
        stored[name] = (TYPES[how], x.shape, raw)
        back[name] = decode(raw, how, x.shape)
    write(out, keys, stored)
    if plain:
        unnamed(plain, folder, config, arch, heads, kv, back)


def metadata(config, arch, heads, kv):
    return {"general.architecture": arch, "general.name": "test",
            f"{arch}.context_length": config["max_position_embeddings"],
            f"{arch}.embedding_length": config["hidden_size"],
            f"{arch}.block_count": config["num_hidden_layers"],
            f"{arch}.feed_forward_length": config["intermediate_size"],
            f"{arch}.attention.head_count": heads, f"{arch}.attention.head_count_kv": kv,
            f"{arch}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
            f"{arch}.rope.freq_base": float(config.get("rope_theta", 10000.0)),
            f"{arch}.rope.dimension_count": config["hidden_size"] // heads}


def unnamed(plain, folder, config, arch, heads, kv, back):
    """The numbers of the file as a folder with Llama's names; InternLM2 becomes one as well."""
    names = {v: k for k, v in list(COMMON.items())[:9]}
    ends = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    tensors = {}
    for name, x in back.items():
        base, _, suffix = name.rpartition(".")
        if base in ends:
            tensors[f"{ends[base]}.{suffix}"] = x
            continue
        _, layer, p = base.split(".")
        if arch != "qwen2" and p in ("attn_q", "attn_k"):
            x = halves(x, heads if p == "attn_q" else kv)
        tensors[f"model.layers.{layer}.{names[p]}.{suffix}"] = np.ascontiguousarray(x)
    if arch != "qwen2":
        config = config | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    write_folder(plain, config, tensors)
    for f in ("tokenizer.model", "tokenizer_config.json"):
        if os.path.exists(os.path.join(folder, f)):
            shutil.copy(os.path.join(folder, f), plain)


def random(arch, out, plain):
    """Types as llama.cpp mixes them, and worse."""
    rng = np.random.default_rng(3)
    E, I, L, H, K, V, D = 256, 512, 2, 4, 2, 96, 64
    mixes = [{"attn_q": "Q4_K", "attn_k": "Q4_K", "attn_v": "Q6_K", "attn_output": "Q4_K",
              "ffn_gate": "Q4_K", "ffn_up": "Q4_K", "ffn_down": "Q6_K"},
             {"attn_q": "Q8_0", "attn_k": "Q6_K", "attn_v": "Q4_0", "attn_output": "Q8_0",
              "ffn_gate": "Q8_0", "ffn_up": "Q4_0", "ffn_down": "Q4_K"}]
    shapes = {"attn_q": (H * D, E), "attn_k": (K * D, E), "attn_v": (K * D, E),
              "attn_output": (E, H * D), "ffn_gate": (I, E), "ffn_up": (I, E), "ffn_down": (E, I)}
    stored, back = {}, {}

    def add(name, shape, kind):
        if kind == "F32":
            raw = (1 + rng.normal(0, 0.1, shape)).astype("<f4").tobytes()
        else:
            size, _, halves_at = BLOCKS[kind]
            per = 256 if kind.endswith("K") else 32
            b = rng.integers(0, 256, (shape[0] * shape[1] // per, size), np.uint8)
            unit = {"Q4_K": 3e-4, "Q6_K": 3e-5, "Q8_0": 6e-4, "Q4_0": 1e-2}[kind]
            for at in halves_at:
                d = rng.uniform(0.5, 1.5, (len(b), 1)) * unit * (1 if at == halves_at[0] else 7)
                b[:, at:at + 2] = d.astype("<f2").view(np.uint8)
            raw = b.tobytes()
        stored[name] = (TYPES[kind], shape, raw)
        back[name] = decode(raw, kind, shape)

    add("token_embd.weight", (V, E), "Q6_K")
    add("output.weight", (V, E), "Q6_K")
    add("output_norm.weight", (E,), "F32")
    for n in range(L):
        for part, kind in mixes[n].items():
            add(f"blk.{n}.{part}.weight", shapes[part], kind)
        for part in ("attn_norm", "ffn_norm"):
            add(f"blk.{n}.{part}.weight", (E,), "F32")
        for part, rows in (("attn_q", H * D), ("attn_k", K * D), ("attn_v", K * D)):
            if arch == "qwen2":
                add(f"blk.{n}.{part}.bias", (rows,), "F32")
    config = {"hidden_size": E, "intermediate_size": I, "num_hidden_layers": L,
              "num_attention_heads": H, "num_key_value_heads": K, "vocab_size": V,
              "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
              "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    write(out, metadata(config, arch, H, K) | {
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}, stored)
    unnamed(plain, plain, config, arch, H, K, back)


# ---- tokenizers -----------------------------------------------------------------------------------

def fields(b):
    """Fields of a protobuf message: number, value."""
    at = 0

    def varint():
        nonlocal at
        v = shift = 0
        while True:
            c = b[at]
            at += 1
            v |= (c & 127) << shift
            shift += 7
            if c < 128:
                return v
    while at < len(b):
        key = varint()
        if key & 7 == 2:
            n = varint()
            at += n
            yield key >> 3, b[at - n:at]
        elif key & 7 == 0:
            yield key >> 3, varint()
        else:
            n = 4 if key & 7 == 5 else 8
            at += n
            yield key >> 3, b[at - n:at]


def sentencepiece(folder):
    raw = open(os.path.join(folder, "tokenizer.model"), "rb").read()
    tokens, scores, types = [], [], []
    trainer, normal = {40: 0, 41: 1, 42: 2}, {3: 1}
    for n, v in fields(raw):
        if n == 1:
            p = dict(fields(v))
            tokens.append(p[1])
            scores.append(struct.unpack("<f", p.get(2, bytes(4)))[0])
            types.append(p.get(3, 1))
        elif n == 2:
            trainer |= dict(fields(v))
        elif n == 3:
            normal |= dict(fields(v))
    name = os.path.join(folder, "tokenizer_config.json")
    config = json.load(open(name, encoding="utf-8")) if os.path.exists(name) else {}
    for i, t in config.get("added_tokens_decoder", {}).items():
        i = int(i)
        while len(tokens) <= i:
            tokens.append(b"")
            scores.append(0.0)
            types.append(5)
        if types[i] not in (2, 3, 6) and tokens[i] != t["content"].encode():
            tokens[i], scores[i] = t["content"].encode(), -1000.0
            types[i] = 3 if t["special"] else 4
    keys = {"model": "llama", "pre": "default", "tokens": tokens, "scores": scores,
            "token_type": types, "bos_token_id": trainer[41], "eos_token_id": trainer[42],
            "unknown_token_id": trainer[40], "add_bos_token": config.get("add_bos_token", True),
            "add_eos_token": False, "add_space_prefix": bool(normal[3])}
    keys = {f"tokenizer.ggml.{k}": v for k, v in keys.items()}
    if isinstance(config.get("chat_template"), str):
        keys["tokenizer.chat_template"] = config["chat_template"]
    return keys


def byte_pairs(folder, pre):
    """tokenizer.json, or vocab.json with merges.txt."""
    def load(name, other):
        path = os.path.join(folder, name)
        return json.load(open(path, encoding="utf-8")) if os.path.exists(path) else other
    config = load("tokenizer_config.json", {})
    whole = load("tokenizer.json", None)
    if whole:
        vocab = whole["model"]["vocab"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]]
        added = {t["id"]: t for t in whole["added_tokens"]}
    else:
        vocab = load("vocab.json", None)
        lines = open(os.path.join(folder, "merges.txt"), encoding="utf-8", newline="\n").read()
        merges = [m.rstrip("\r") for m in lines.split("\n")]
        merges = [m for m in merges if m and not m.startswith("#version")]
        added = {int(i): t for i, t in config.get("added_tokens_decoder", {}).items()}
    tokens = {i: s for s, i in vocab.items()}
    tokens |= {i: t["content"] for i, t in added.items()}
    ids = {s: i for i, s in tokens.items()}
    types = [3 if i in added and added[i]["special"] else 4 if i in added else 1
             for i in range(len(tokens))]
    keys = {"model": "gpt2", "pre": pre, "tokens": [tokens[i] for i in range(len(tokens))],
            "token_type": types, "merges": merges}
    for k in ("bos", "eos"):
        name = config.get(f"{k}_token")
        name = name["content"] if isinstance(name, dict) else name
        if not name and not whole:
            name = "<|endoftext|>"  # of the classes that read such files
        if name in ids:
            keys[f"{k}_token_id"] = ids[name]
            if types[ids[name]] == 1:
                types[ids[name]] = 3
    if "add_bos_token" in config:
        keys["add_bos_token"] = config["add_bos_token"]
    keys = {f"tokenizer.ggml.{k}": v for k, v in keys.items()}
    if isinstance(config.get("chat_template"), str):
        keys["tokenizer.chat_template"] = config["chat_template"]
    return keys


def tokenizer(folder, out, pre):
    keys = {"general.architecture": "llama"}
    keys |= sentencepiece(folder) if pre == "spm" else byte_pairs(folder, pre)
    write(out, keys, {})


def tiktoken(path, folder):
    """What transformers makes of such a file: merges are all pairs of tokens that form a token."""
    ranks = {}
    for line in open(path, "rb"):
        text_of, rank = line.split()
        ranks[base64.b64decode(text_of)] = int(rank)
    alias, n = {}, 0
    for b in range(256):
        printable = 0x21 <= b <= 0x7e or 0xa1 <= b <= 0xac or b >= 0xae
        alias[b] = chr(b if printable else 256 + n)
        n += not printable
    spell = {t: "".join(map(alias.get, t)) for t in ranks}
    merges = []
    for t in sorted(ranks, key=ranks.get):
        pairs = [(t[:i], t[i:]) for i in range(1, len(t)) if t[:i] in ranks and t[i:] in ranks]
        pairs.sort(key=lambda p: (ranks[p[0]], ranks[p[1]]))
        merges += [f"{spell[p]} {spell[q]}" for p, q in pairs]
    begin, end = len(ranks), len(ranks) + 1
    names = {begin: "<|begin_of_text|>", end: "<|end_of_text|>"}
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
               r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    whole = {
        "added_tokens": [{"id": i, "content": s, "special": True, "normalized": False,
                          "single_word": False, "lstrip": False, "rstrip": False}
                         for i, s in names.items()],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
             "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]},
        "post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": names[begin], "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {
                names[begin]: {"id": names[begin], "ids": [begin], "tokens": [names[begin]]}}},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "ignore_merges": True, "merges": merges,
                  "vocab": {spell[t]: i for t, i in ranks.items()}}}
    os.makedirs(folder, exist_ok=True)
    for name, x in (("tokenizer.json", whole),
                    ("tokenizer_config.json", {"bos_token": names[begin], "eos_token": names[end]})):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(x, f)


# ---- blocks ---------------------------------------------------------------------------------------

def blocks(out):
    import gguf  # the oracle; no other part needs it
    rng = np.random.default_rng(6)
    halves_at = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
                 "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
                 "IQ4_NL": (0,)}
    tensors = {}
    for name, at in halves_at.items():
        kind = gguf.GGMLQuantizationType[name]
        size, nbytes = gguf.GGML_QUANT_SIZES[kind]
        rows, cols = 3, 2 * size if size == 256 else 256
        b = rng.integers(0, 256, (rows, cols // size, nbytes), np.uint8)
        for i, o in enumerate(at):
            d = rng.normal(0, 0.02, (rows, cols // size, 1)).astype("<f2")
            d[0, 0] = [2.0**-20, 0.0][i]  # a subnormal, and nothing
            d[1, 0] = [-65504.0, 2.0**-14][i]
            b[:, :, o:o + 2] = d.view(np.uint8)
        raw = b.reshape(rows, -1)
        tensors[name + ".in"] = (int(kind), [rows, cols], raw.tobytes())
        tensors[name + ".out"] = (0, [rows, cols],
                                  gguf.dequantize(raw, kind).astype("<f4").tobytes())
    write(out, {"general.architecture": "none"}, tensors)


def main():
    what, args = sys.argv[1], sys.argv[2:]
    flags = {}
    while len(args) > 2 and args[-2].startswith("--"):
        flags[args[-2]] = args[-1]
        args = args[:-2]
    if what == "blocks":
        blocks(*args)
    elif what == "convert":
        convert(*args, flags.get("--type", "F32"), flags.get("--plain"))
    elif what == "random":
        random(*args)
    elif what == "tiktoken":
        tiktoken(*args)
    else:
        tokenizer(*args)


if __name__ == "__main__":
    main()
