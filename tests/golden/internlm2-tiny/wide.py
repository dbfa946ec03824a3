#!/usr/bin/env python3
"""Makes tests/golden/internlm2-tiny/wide.json: logits of small InternLM2 checkpoints of shapes that
make.py leaves out: head size 128, other bases, f16, eight layers, long contexts.

usage: wide.py OUTPUT    (needs torch and transformers; not run by `make check`)

The reference is LlamaForCausalLM of the transformers library in float32 with eager attention, its
weights taken from the InternLM2 tensors by unpacking wqkv. No checkpoint is stored: every number of
a tensor follows from the tensor's name and the number's index, see value() here and
tests/model/checkpoint.c. Every value is exact in the type it is stored in.
"""
import json
import sys

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

BASE = {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False,
        "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "rope_theta": 10000, "rope_scaling": None, "bos_token_id": 1,
        "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "float32"}

# name, changes to the configuration, tokens of the prompt, greedy steps
CASES = [
    ("mqa 6:1", {"num_attention_heads": 6, "num_key_value_heads": 1}, 24, 64),
    ("gqa 6:2", {"num_attention_heads": 6}, 24, 64),
    ("head size 128, theta 1e6", {"hidden_size": 256, "num_attention_heads": 2, "rope_theta": 1e6,
                                  "num_key_value_heads": 1, "num_hidden_layers": 1}, 40, 64),
    ("tied", {"tie_word_embeddings": True}, 24, 64),
    ("bf16, bias, 8 layers", {"torch_dtype": "bfloat16", "bias": True, "num_hidden_layers": 8},
     24, 64),
    ("f16", {"torch_dtype": "float16"}, 24, 64),
    ("linear, 4 M long", {"rope_scaling": {"type": "linear", "factor": 4.0},
                          "max_position_embeddings": 64}, 250, 64),
    ("dynamic 3, M + 1 long", {"rope_scaling": {"type": "dynamic", "factor": 3.0},
                               "max_position_embeddings": 128}, 129, 0),
    ("dynamic 2, 3 M long", {"rope_scaling": {"type": "dynamic", "factor": 2.0},
                             "max_position_embeddings": 64}, 200, 0),
    ("3000 tokens", {"num_hidden_layers": 1, "max_position_embeddings": 4096, "rope_theta": 1e6},
     3000, 0),
]


def mix(x):
    x = np.asarray(x, dtype=np.uint64)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    return x ^ (x >> np.uint64(16))


def stream(seed, n):
    x = seed + np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B9)
    return mix(x & np.uint64(0xFFFFFFFF))


def value(name, shape, dtype):
    seed = 0x811C9DC5
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x01000193) & 0xFFFFFFFF
    x = stream(np.uint64(seed), int(np.prod(shape))).astype(np.int64)
    if name.endswith("norm.weight"):
        v = 1 + ((x >> 28) - 8) / 32
    else:
        bits = 24 if dtype == "float32" else 8
        scale = 1.0
        while scale * scale * (shape[1] if len(shape) > 1 else 48) > 3:
            scale /= 2
        v = ((x >> (32 - bits)) - 2 ** (bits - 1)) / 2 ** (bits - 1) * scale
    return torch.tensor(v.astype(np.float32).reshape(shape))


def llama(c):
    rope = {"rope_type": "default", "rope_theta": float(c["rope_theta"])}
    if c["rope_scaling"]:
        rope["rope_type"] = c["rope_scaling"]["type"]
        rope["factor"] = c["rope_scaling"]["factor"]
    hf = LlamaConfig(vocab_size=c["vocab_size"], hidden_size=c["hidden_size"],
                     intermediate_size=c["intermediate_size"],
                     num_hidden_layers=c["num_hidden_layers"],
                     num_attention_heads=c["num_attention_heads"],
                     num_key_value_heads=c["num_key_value_heads"],
                     max_position_embeddings=c["max_position_embeddings"],
                     rms_norm_eps=c["rms_norm_eps"], attention_bias=c["bias"],
                     tie_word_embeddings=c["tie_word_embeddings"], rope_parameters=rope,
                     attn_implementation="eager")
    model = LlamaForCausalLM(hf).float().eval()
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    E, inner = c["hidden_size"], c["intermediate_size"]
    D, g = E // heads, heads // kv
    get = lambda name, *shape: value(name, shape, c["torch_dtype"])
    sd = {"model.embed_tokens.weight": get("model.tok_embeddings.weight", c["vocab_size"], E),
          "model.norm.weight": get("model.norm.weight", E)}
    head = "model.tok_embeddings.weight" if c["tie_word_embeddings"] else "output.weight"
    sd["lm_head.weight"] = get(head, c["vocab_size"], E)
    for n in range(c["num_hidden_layers"]):
        ours, theirs = "model.layers.%d." % n, "model.layers.%d." % n
        parts = [("weight", E)] + ([("bias", None)] if c["bias"] else [])
        for part, cols in parts:
            shape = ((heads + 2 * kv) * D,) + ((cols,) if cols else ())
            packed = get(ours + "attention.wqkv." + part, *shape)
            slots = packed.reshape((kv, g + 2, D) + shape[1:])
            sd[theirs + "self_attn.q_proj." + part] = slots[:, :g].reshape((heads * D,) + shape[1:])
            sd[theirs + "self_attn.k_proj." + part] = slots[:, g].reshape((kv * D,) + shape[1:])
            sd[theirs + "self_attn.v_proj." + part] = slots[:, g + 1].reshape((kv * D,) + shape[1:])
            shape = (E, heads * D) if part == "weight" else (E,)
            sd[theirs + "self_attn.o_proj." + part] = get(ours + "attention.wo." + part, *shape)
        sd[theirs + "mlp.gate_proj.weight"] = get(ours + "feed_forward.w1.weight", inner, E)
        sd[theirs + "mlp.up_proj.weight"] = get(ours + "feed_forward.w3.weight", inner, E)
        sd[theirs + "mlp.down_proj.weight"] = get(ours + "feed_forward.w2.weight", E, inner)
        sd[theirs + "input_layernorm.weight"] = get(ours + "attention_norm.weight", E)
        sd[theirs + "post_attention_layernorm.weight"] = get(ours + "ffn_norm.weight", E)
    missing, unexpected = model.load_state_dict(sd, strict=False)
    assert not unexpected and not missing, (missing, unexpected)
    return model


@torch.no_grad()
def run(case):
    name, changes, n, steps = case
    c = dict(BASE, **changes)
    model = llama(c)
    ids = [int(i) for i in stream(np.uint64(n), n) % np.uint64(c["vocab_size"])]
    logits = model(torch.tensor([ids])).logits[0]
    rows = sorted({0, 1, n // 2, n - 2, n - 1})
    row = {"name": name, "config": c, "n_ids": n, "rows": rows,
           "logits": [[float("%.7g" % v) for v in logits[r].tolist()] for r in rows]}
    if c["torch_dtype"] == "bfloat16":
        half = llama(c).to(torch.bfloat16)(torch.tensor([ids])).logits[0].float()
        row["bf16_logits"] = [float("%.7g" % v) for v in half[-1].tolist()]
    greedy, gap = [], 9.0
    for _ in range(steps):
        top = torch.topk(logits[-1], 2).values
        gap = min(gap, float(top[0] - top[1]))
        greedy.append(int(logits[-1].argmax()))
        logits = model(torch.tensor([ids + greedy])).logits[0]
    row["greedy"] = greedy
    print("%-26s |logit| <= %.2f, smallest greedy margin %.5f, distinct %d" %
          (name, max(abs(v) for r in row["logits"] for v in r), gap, len(set(greedy))))
    assert not steps or gap > 5e-4, "choose another prompt"
    return row


def main():
    torch.manual_seed(0)
    rows = [run(case) for case in CASES]
    with open(sys.argv[1], "w", encoding="utf-8") as f:
        f.write('{"made_with": "transformers LlamaForCausalLM, float32, eager", "cases": [\n')
        f.write(",\n".join(json.dumps(r) for r in rows))
        f.write("\n]}\n")


if __name__ == "__main__":
    main()
