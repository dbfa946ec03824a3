#!/usr/bin/env python3
"""Makes tests/golden/decoder-tiny/golden.json: logits of small Llama, Mistral and Qwen2 checkpoints.

usage: make.py OUTPUT    (needs torch and transformers; not run by `make check`)

The reference is the model class that transformers picks for each config.json, in float32 with eager
attention. No checkpoint is stored: every number of a tensor follows from the tensor's name and the
number's index, by the rule of tests/golden/internlm2-tiny/wide.py and tests/model/checkpoint.c.
"""
import importlib.util
import json
import os
import sys
import tempfile

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

here = os.path.dirname(os.path.abspath(__file__))
spec = importlib.util.spec_from_file_location(
    "wide", os.path.join(here, "..", "internlm2-tiny", "wide.py"))
wide = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wide)

SIZES = {"vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
         "num_attention_heads": 4, "hidden_act": "silu", "torch_dtype": "float32",
         "tie_word_embeddings": False}
LLAMA = SIZES | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 1,
                 "eos_token_id": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 256}
NEW = {k: v for k, v in LLAMA.items() if k != "torch_dtype"} | {"dtype": "float16"}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral",
                   "num_key_value_heads": 2, "rope_theta": 10000.0}
QWEN = SIZES | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "bos_token_id": 3,
                "eos_token_id": 5, "rms_norm_eps": 1e-6, "max_position_embeddings": 256,
                "rope_theta": 1000000.0, "use_sliding_window": False, "sliding_window": 32,
                "max_window_layers": 1}
THREE = {"rope_theta": 500000.0, "num_key_value_heads": 2}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

# name, base, changes, tokens of the prompt, greedy steps
CASES = [
    ("llama 1: heads of their own", LLAMA, {"rms_norm_eps": 1e-6, "pretraining_tp": 1}, 24, 64),
    ("llama 2 70B: 8 to 1", LLAMA, {"num_attention_heads": 8, "num_key_value_heads": 1,
                                    "rope_scaling": None, "pretraining_tp": 4}, 40, 64),
    ("llama 2, linear", LLAMA, {"num_key_value_heads": 4, "max_position_embeddings": 64,
                                "rope_scaling": {"type": "linear", "factor": 4.0}}, 250, 0),
    ("llama 2, dynamic, 3 M long", LLAMA, {"max_position_embeddings": 64, "rope_scaling":
                                           {"type": "dynamic", "factor": 2.0}}, 200, 0),
    ("llama 3", LLAMA, THREE, 24, 64),
    ("llama 3.1, 9 times the length", LLAMA, THREE | {
        "max_position_embeddings": 512, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}}, 600, 0),
    ("llama 3.2: tied, head size 16", LLAMA, THREE | {
        "head_dim": 16, "tie_word_embeddings": True, "max_position_embeddings": 512,
        "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}, 40, 64),
    ("llama, every bias", LLAMA, THREE | {"attention_bias": True, "mlp_bias": True}, 24, 64),
    ("llama, head size 128", LLAMA, THREE | {"head_dim": 128, "num_hidden_layers": 1}, 70, 64),
    ("llama, f16, new keys", NEW, {"num_key_value_heads": 2, "rope_parameters": {
        "rope_type": "default", "rope_theta": 20000.0}}, 24, 64),
    ("llama, yarn", LLAMA, THREE | {"max_position_embeddings": 64, "rope_scaling": YARN}, 250, 0),
    ("llama, yarn, everything given", LLAMA, THREE | {"max_position_embeddings": 64,
     "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "beta_fast": 16,
                         "beta_slow": 2, "attention_factor": 0.9, "truncate": False}}, 250, 0),
    ("llama, yarn, mscale", LLAMA, THREE | {
        "max_position_embeddings": 256, "original_max_position_embeddings": 32,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "mscale": 1.0,
                         "mscale_all_dim": 0.5}}, 250, 0),
    ("yi", LLAMA, {"num_attention_heads": 8, "num_key_value_heads": 2, "rope_theta": 5000000.0},
     24, 64),
    ("3000 tokens", LLAMA, THREE | {"num_hidden_layers": 1, "max_position_embeddings": 4096},
     3000, 0),
    ("mistral, window 16", MISTRAL, {"sliding_window": 16}, 200, 64),
    ("mistral, window 100", MISTRAL, {"sliding_window": 100, "num_hidden_layers": 3}, 250, 0),
    ("mistral, window 1", MISTRAL, {"sliding_window": 1}, 24, 64),
    ("mistral, null window, own head size", MISTRAL, {"sliding_window": None, "head_dim": 16,
                                                      "rope_theta": 1e6}, 200, 64),
    ("mistral, no window key", MISTRAL, {}, 40, 64),
    ("qwen 1.5", QWEN, {"num_key_value_heads": 4}, 24, 64),
    ("qwen 2, tied", QWEN, {"num_attention_heads": 6, "num_key_value_heads": 1,
                            "tie_word_embeddings": True}, 60, 64),
    ("qwen 2, bf16, 8 layers", QWEN, {"num_key_value_heads": 2, "torch_dtype": "bfloat16",
                                      "num_hidden_layers": 8}, 24, 64),
    ("qwen 2.5, 7 to 1", QWEN, {"hidden_size": 56, "num_attention_heads": 14,
                                "num_key_value_heads": 2}, 61, 64),
    ("qwen 2.5, yarn", QWEN, {"num_key_value_heads": 2, "max_position_embeddings": 64,
                              "rope_scaling": YARN}, 250, 0),
    ("qwen, window in the last two layers", QWEN, {
        "num_key_value_heads": 2, "num_hidden_layers": 3, "use_sliding_window": True}, 200, 64),
    ("qwen, layer types", QWEN, {
        "num_key_value_heads": 2, "num_hidden_layers": 3, "use_sliding_window": True, "layer_types":
        ["sliding_attention", "full_attention", "sliding_attention"]}, 200, 0),
]


def load(c):
    """The model of config.json c, by the very file, with the numbers of the rule."""
    with tempfile.TemporaryDirectory() as d:
        with open(os.path.join(d, "config.json"), "w", encoding="utf-8") as f:
            json.dump(c, f)
        config = AutoConfig.from_pretrained(d)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager",
                                             dtype=torch.float32).eval()
    dtype = c.get("torch_dtype") or c["dtype"]
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(wide.value(name, tuple(p.shape), dtype))
    return model


@torch.no_grad()
def run(case):
    name, base, changes, n, steps = case
    c = base | changes
    model = load(c)
    ids = [int(i) for i in wide.stream(np.uint64(n), n) % np.uint64(c["vocab_size"])]
    logits = model(torch.tensor([ids])).logits[0]
    rows = sorted({0, 1, n // 2, n - 2, n - 1})
    greedy, gap, last = [], 9.0, logits
    for _ in range(steps):
        top = torch.topk(last[-1], 2).values
        gap = min(gap, float(top[0] - top[1]))
        greedy.append(int(last[-1].argmax()))
        last = model(torch.tensor([ids + greedy])).logits[0]
    print("%-38s |logit| <= %.2f, smallest greedy margin %.5f, distinct %d" %
          (name, float(logits.abs().max()), gap, len(set(greedy))))
    assert not steps or gap > 5e-4, "choose another prompt"
    return {"name": name, "config": c, "n_ids": n, "rows": rows, "greedy": greedy,
            "logits": [[float("%.7g" % v) for v in logits[r].tolist()] for r in rows]}


def main():
    torch.manual_seed(0)
    rows = [run(case) for case in CASES]
    with open(sys.argv[1], "w", encoding="utf-8") as f:
        f.write('{"made_with": "transformers, float32, eager", "cases": [\n')
        f.write(",\n".join(json.dumps(r) for r in rows))
        f.write("\n]}\n")


if __name__ == "__main__":
    main()
