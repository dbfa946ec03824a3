#!/usr/bin/env python3
"""Makes tests/golden/llava-tiny/golden.json: image features and logits of small LLaVA checkpoints.

usage: make.py OUTPUT    (needs torch and transformers; not run by `make check`)

The reference is LlavaForConditionalGeneration of transformers in float32 with eager attention. No
checkpoint is stored: the numbers follow from the tensors' names in the layout of llava-hf, by the rule of
tests/golden/internlm2-tiny/wide.py. Pixels follow from the same stream, and a prompt is its ids with two
pictures at given places.
"""
import importlib.util
import json
import os
import sys
import tempfile

import numpy as np
import torch
from transformers import AutoConfig, LlavaForConditionalGeneration

here = os.path.dirname(os.path.abspath(__file__))
spec = importlib.util.spec_from_file_location(
    "wide", os.path.join(here, "..", "internlm2-tiny", "wide.py"))
wide = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wide)

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

TEXT = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96,
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"}
VISION = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 56,
          "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 24, "patch_size": 6}
BASE = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
        "image_token_index": 90, "projector_hidden_act": "gelu", "torch_dtype": "float32",
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False, "text_config": TEXT, "vision_config": VISION}

# name, changes, rows of one picture, numbers of tokens before, between and behind two pictures
CASES = [
    ("llava 1.5", {}, 16, (5, 9, 11)),
    ("all rows of the last layer, gelu", {
        "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "vision_config": VISION | {"hidden_act": "gelu", "num_attention_heads": 2}}, 17, (1, 0, 3)),
    ("first layer, odd patches, no bias", {
        "vision_feature_layer": 1, "multimodal_projector_bias": False,
        "vision_config": VISION | {"image_size": 23, "patch_size": 5, "layer_norm_eps": 1e-6,
                                   "num_attention_heads": 1, "hidden_size": 24}}, 16, (2, 1, 70)),
    ("before the first layer", {"vision_feature_layer": -4}, 16, (0, 5, 1)),
    ("80 patches, heads of 80", {
        "vision_config": VISION | {"image_size": 30, "patch_size": 3, "hidden_size": 80,
                                   "num_attention_heads": 1, "num_hidden_layers": 2}}, 100, (3, 4, 5)),
    ("bf16", {"torch_dtype": "bfloat16", "text_config": TEXT | {"torch_dtype": "bfloat16"}}, 16,
     (5, 9, 11)),
]


def canonical(name):
    """The name in a folder of llava-hf, from the one in memory."""
    if name.startswith("model.language_model."):
        return "language_model.model." + name[len("model.language_model."):]
    if name.startswith("model.vision_tower."):
        rest = name[len("model.vision_tower."):]
        return "vision_tower.vision_model." + rest.removeprefix("vision_model.")
    if name.startswith("model."):
        return name[len("model."):]
    return "language_model." + name


def load(c):
    with tempfile.TemporaryDirectory() as d:
        with open(os.path.join(d, "config.json"), "w", encoding="utf-8") as f:
            json.dump(c, f)
        config = AutoConfig.from_pretrained(d)
    config._attn_implementation = "eager"
    model = LlavaForConditionalGeneration._from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(wide.value(canonical(name), tuple(p.shape), c["torch_dtype"]))
    return model


@torch.no_grad()
def run(case):
    name, changes, n_rows, (a, b, z) = case
    c = BASE | changes
    model = load(c)
    side = c["vision_config"]["image_size"]
    pixels = np.stack([wide.stream(np.uint64(1000 + i), side * side * 3).astype(np.uint8)
                       .reshape(side, side, 3) for i in range(2)])
    x = ((pixels.astype(np.float64) * (1 / 255)).astype(np.float32) - MEAN) / STD
    x = torch.tensor(x.transpose(0, 3, 1, 2))
    image, n = c["image_token_index"], a + b + z + 2 * n_rows
    ids = [int(i) for i in wide.stream(np.uint64(n), n) % np.uint64(90)]
    starts = [a, a + n_rows + b]
    for s in starts:
        ids[s:s + n_rows] = [image] * n_rows
    features = model.get_image_features(pixel_values=x)
    features = getattr(features, "pooler_output", features)
    features = [f.reshape(-1, f.shape[-1]) for f in features]
    assert all(f.shape == (n_rows, c["text_config"]["hidden_size"]) for f in features)
    logits = model(input_ids=torch.tensor([ids]), pixel_values=x).logits[0]
    rows = sorted({0, starts[0] + n_rows - 1, starts[1], n - 2, n - 1})
    print("%-36s |feature| <= %.2f, |logit| <= %.2f" % (
        name, max(float(f.abs().max()) for f in features), float(logits.abs().max())))
    short = lambda v: [float("%.7g" % f) for f in v.tolist()]
    return {"name": name, "config": c, "n_ids": n, "n_rows": n_rows, "starts": starts, "rows": rows,
            "features": [[short(f[i]) for i in (0, n_rows - 1)] for f in features],
            "logits": [short(logits[r]) for r in rows]}


def main():
    torch.manual_seed(0)
    rows = [run(case) for case in CASES]
    with open(sys.argv[1], "w", encoding="utf-8") as f:
        f.write('{"made_with": "transformers, float32, eager", "cases": [\n')
        f.write(",\n".join(json.dumps(r) for r in rows))
        f.write("\n]}\n")


if __name__ == "__main__":
    main()
