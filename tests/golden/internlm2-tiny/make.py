#!/usr/bin/env python3
"""Makes tests/golden/internlm2-tiny/golden.json: what tiny InternLM2 checkpoints must answer.

usage: make.py OUTPUT    (needs numpy, torch and transformers; not run by `make check`)

The reference is LlamaForCausalLM of the transformers library in float32 with eager attention. The
checkpoints are those that tests/unit/tiny_model.c writes: the same random numbers in the same
order, here unpacked from InternLM2's wqkv into q, k and v.
"""
import json
import math
import sys

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

BASE = {"vocab": 64, "embed": 32, "layers": 2, "heads": 4, "kv_heads": 2, "inner": 48,
        "max_position": 64, "bias": False, "tied": False, "bf16": False, "scaling": ""}
LINEAR, DYNAMIC = ('"rope_scaling": {"type": "%s", "factor": %.1f}' % (t, f)
                   for t, f in (("linear", 4), ("dynamic", 2)))

# name, seed, tokens, greedy steps, what differs from BASE
CASES = [
    ("gqa", 11, 24, 0, {}),
    ("mha", 12, 24, 0, {"kv_heads": 4}),
    ("one-kv-head", 13, 24, 0, {"kv_heads": 1}),
    ("bias", 14, 24, 0, {"bias": True}),
    ("tied", 15, 24, 0, {"tied": True}),
    ("odd-width", 16, 24, 0, {"vocab": 77, "embed": 40, "inner": 52}),
    ("linear", 17, 300, 0, {"max_position": 512, "scaling": LINEAR}),
    ("dynamic-inside", 18, 60, 0, {"scaling": DYNAMIC}),
    ("dynamic-beyond", 19, 200, 0, {"scaling": DYNAMIC}),
    ("long-plain", 20, 400, 0, {"max_position": 1024}),
    ("bf16", 23, 24, 64, {"max_position": 256, "bf16": True}),
    ("bf16-bias-mha", 29, 24, 64, {"kv_heads": 4, "max_position": 256, "bias": True, "bf16": True}),
]


class Random:
    """The generator of tiny_model.c: four draws make one number."""

    def __init__(self, case, seed):
        self.case, self.seed = case, seed

    def tensor(self, *shape):
        cols = shape[1] if len(shape) > 1 else 100
        out = np.empty(math.prod(shape))
        for i in range(out.size):
            total = 0.0
            for _ in range(4):
                self.seed = (self.seed * 1664525 + 1013904223) & 0xFFFFFFFF
                total += (self.seed >> 8) / 2 ** 24 - 0.5
            out[i] = total * 1.7 / math.sqrt(cols)
        return self.store(torch.tensor(out, dtype=torch.float64).float().reshape(shape))

    def norm(self, k):
        r = torch.arange(self.case["embed"])
        return self.store(1 + torch.tensor(0.1) * ((k + r) % 3).float())

    def store(self, t):
        return t.bfloat16().float() if self.case["bf16"] else t


def llama(c, seed):
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if c["scaling"]:
        scaling = json.loads("{" + c["scaling"] + "}")["rope_scaling"]
        rope.update(rope_type=scaling["type"], factor=scaling["factor"])
    E, inner, H, K, V = (c[k] for k in ("embed", "inner", "heads", "kv_heads", "vocab"))
    D, g = E // H, H // K
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=V, hidden_size=E, intermediate_size=inner, num_hidden_layers=c["layers"],
        num_attention_heads=H, num_key_value_heads=K, max_position_embeddings=c["max_position"],
        rms_norm_eps=1e-5, attention_bias=c["bias"], tie_word_embeddings=c["tied"],
        rope_parameters=rope, attn_implementation="eager")).float().eval()
    r = Random(c, seed)
    sd = {"model.embed_tokens.weight": r.tensor(V, E)}
    sd["lm_head.weight"] = sd["model.embed_tokens.weight"] if c["tied"] else r.tensor(V, E)
    sd["model.norm.weight"] = r.norm(5)
    for n in range(c["layers"]):
        p = "model.layers.%d." % n
        for part in ("weight", "bias") if c["bias"] else ("weight",):
            shape = (E,) if part == "weight" else ()
            slots = r.tensor((H + 2 * K) * D, *shape).reshape(K, g + 2, D, *shape)
            sd[p + "self_attn.q_proj." + part] = slots[:, :g].reshape(H * D, *shape)
            sd[p + "self_attn.k_proj." + part] = slots[:, g].reshape(K * D, *shape)
            sd[p + "self_attn.v_proj." + part] = slots[:, g + 1].reshape(K * D, *shape)
        sd[p + "self_attn.o_proj.weight"] = r.tensor(E, H * D)
        if c["bias"]:
            sd[p + "self_attn.o_proj.bias"] = r.tensor(E)
        sd[p + "mlp.gate_proj.weight"] = r.tensor(inner, E)
        sd[p + "mlp.up_proj.weight"] = r.tensor(inner, E)
        sd[p + "mlp.down_proj.weight"] = r.tensor(E, inner)
        sd[p + "input_layernorm.weight"] = r.norm(n)
        sd[p + "post_attention_layernorm.weight"] = r.norm(n + 1)
    model.load_state_dict(sd)
    return model


@torch.no_grad()
def run(name, seed, n, steps, changes):
    c = dict(BASE, **changes)
    model = llama(c, seed)
    ids = np.random.default_rng(seed).integers(0, c["vocab"], n).tolist()
    logits = model(torch.tensor([ids])).logits[0]
    greedy = []
    for _ in range(steps):
        step = model(torch.tensor([ids + greedy])).logits[0, -1]
        greedy.append(int(step.argmax()))
    return dict(c, name=name, seed=seed, ids=ids, argmax=logits.argmax(-1).tolist(),
                last=[round(v, 6) for v in logits[-1].tolist()], greedy=greedy)


def main():
    note = ("transformers LlamaForCausalLM, float32, eager attention; made by "
            "tests/golden/internlm2-tiny/make.py")
    with open(sys.argv[1], "w", encoding="utf-8") as f:
        json.dump({"note": note, "cases": [run(*case) for case in CASES]}, f)
        f.write("\n")


main()
