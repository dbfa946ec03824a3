#!/usr/bin/env python3
"""Makes tests/golden/moe-tiny/golden.json: logits of small Mixtral, Qwen2-MoE, Qwen3 and Qwen3-MoE checkpoints.

usage: make.py OUTPUT    (needs torch and transformers; not run by `make check`)

As tests/golden/decoder-tiny/make.py, whose rule gives the numbers. transformers keeps the matrices of all
experts of a layer in one parameter; here each gets the name and the numbers of its tensor in a published file.
A prompt is refused when one of its tokens chose an expert by less than a rounding error could undo.
"""
import importlib.util
import json
import os
import sys
import tempfile

import torch
from transformers import AutoConfig, AutoModelForCausalLM

here = os.path.dirname(os.path.abspath(__file__))
spec = importlib.util.spec_from_file_location(
    "decoders", os.path.join(here, "..", "decoder-tiny", "make.py"))
decoders = importlib.util.module_from_spec(spec)
spec.loader.exec_module(decoders)

MIXTRAL = decoders.LLAMA | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
                            "num_key_value_heads": 2, "num_local_experts": 8,
                            "num_experts_per_tok": 2, "intermediate_size": 64,
                            "rope_theta": 1000000.0, "sliding_window": None}
QWEN2 = decoders.SIZES | {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe",
                          "bos_token_id": 3, "eos_token_id": 5, "rms_norm_eps": 1e-6,
                          "max_position_embeddings": 256, "rope_theta": 1000000.0,
                          "num_key_value_heads": 4, "use_sliding_window": False,
                          "sliding_window": 32, "max_window_layers": 1, "num_experts": 10,
                          "num_experts_per_tok": 4, "moe_intermediate_size": 32,
                          "shared_expert_intermediate_size": 64, "norm_topk_prob": False,
                          "decoder_sparse_step": 1}
QWEN3 = {k: v for k, v in QWEN2.items() if "shared" not in k} | {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 16,
    "num_key_value_heads": 2, "num_experts": 16, "num_experts_per_tok": 3,
    "norm_topk_prob": True, "attention_bias": False}
DENSE3 = {k: v for k, v in QWEN3.items() if "expert" not in k and "moe" not in k} | {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}

# name, base, changes, tokens of the prompt, greedy steps
CASES = [
    ("mixtral", MIXTRAL, {}, 24, 32),
    ("mixtral, bf16, window 16", MIXTRAL, {"sliding_window": 16, "torch_dtype": "bfloat16"}, 60, 32),
    ("mixtral, 3 of 5", MIXTRAL, {"num_local_experts": 5, "num_experts_per_tok": 3,
                                   "intermediate_size": 40}, 40, 0),
    ("mixtral, every expert", MIXTRAL, {"num_local_experts": 3, "num_experts_per_tok": 3}, 24, 0),
    ("qwen 1.5 moe", QWEN2, {}, 24, 32),
    ("qwen 2 moe, every second layer, normalised", QWEN2, {
        "num_hidden_layers": 4, "decoder_sparse_step": 2, "norm_topk_prob": True,
        "num_key_value_heads": 1}, 40, 32),
    ("qwen 2 moe, a dense first layer", QWEN2, {"num_hidden_layers": 3, "mlp_only_layers": [0],
                                                "qkv_bias": False,
                                                "moe_intermediate_size": 17}, 24, 0),
    ("qwen 3 moe", QWEN3, {}, 24, 32),
    ("qwen 3 moe, bias, not normalised", QWEN3, {
        "attention_bias": True, "norm_topk_prob": False, "num_hidden_layers": 3,
        "mlp_only_layers": [2], "torch_dtype": "bfloat16"}, 40, 32),
    ("qwen 3", DENSE3, {"tie_word_embeddings": True}, 24, 32),
    ("qwen 3, heads of their own, bias", DENSE3, {"num_key_value_heads": 4, "head_dim": 24,
                                                  "attention_bias": True}, 60, 0),
]


def fused(model, c, dtype):
    """The matrices of experts, from the names of published files."""
    mixtral = c["model_type"] == "mixtral"
    for l, layer in enumerate(model.model.layers):
        if not hasattr(layer.mlp, "experts"):
            continue
        at = "model.layers.%d.%s." % (l, "block_sparse_moe" if mixtral else "mlp")
        names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        x = layer.mlp.experts
        inner, width = x.down_proj.shape[2], x.down_proj.shape[1]
        for e in range(x.down_proj.shape[0]):
            get = lambda i, *shape: decoders.wide.value(
                "%sexperts.%d.%s.weight" % (at, e, names[i]), shape, dtype)
            x.gate_up_proj[e, :inner].copy_(get(0, inner, width))
            x.gate_up_proj[e, inner:].copy_(get(1, inner, width))
            x.down_proj[e].copy_(get(2, width, inner))
        layer.mlp.gate.weight.copy_(decoders.wide.value(
            at + "gate.weight", tuple(layer.mlp.gate.weight.shape), dtype))


def watch(model, margins):
    """How far the last chosen expert of each token is before the next one, in logits."""
    def hook(module, args, output):
        x = args[0].reshape(-1, args[0].shape[-1])
        top = torch.sort(x @ module.weight.T, descending=True).values
        k = module.top_k
        if k < top.shape[1]:
            margins.append(float((top[:, k - 1] - top[:, k]).min()))
    for layer in model.model.layers:
        if hasattr(layer.mlp, "experts"):
            layer.mlp.gate.register_forward_hook(hook)


margins = []


def load(c):
    with tempfile.TemporaryDirectory() as d:
        with open(os.path.join(d, "config.json"), "w", encoding="utf-8") as f:
            json.dump(c, f)
        config = AutoConfig.from_pretrained(d)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".mlp.experts." not in name:
                p.copy_(decoders.wide.value(name, tuple(p.shape), c["torch_dtype"]))
        fused(model, c, c["torch_dtype"])
    margins.clear()
    watch(model, margins)
    return model


def run(case):
    decoders.load = load
    row = decoders.run(case)
    if margins:
        print("    smallest margin of a choice %.5f" % min(margins))
        assert min(margins) > 5e-5, "choose another prompt"
    return row


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = [run(case) for case in CASES]
    with open(sys.argv[1], "w", encoding="utf-8") as f:
        f.write('{"made_with": "transformers, float32, eager", "cases": [\n')
        f.write(",\n".join(json.dumps(r) for r in rows))
        f.write("\n]}\n")


if __name__ == "__main__":
    main()
