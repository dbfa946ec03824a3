#!/usr/bin/env python3
"""Makes tests/golden/llava-tiny/serve.json: what transformers answers about two pictures.

usage: serve.py IMAGES.json OUTPUT    (needs torch, transformers, Pillow; not run by `make check`)

The model is the folder of tests/http/tiny_llava.py, the pictures are those of tests/golden/images. The prompt
is given as ids, as POST /tokenize of turbod shows them for this model: "USER: [picture] What is this?". Pixels
come from Pillow and the image processor's steps, logits from LlavaForConditionalGeneration in float32.
"""
import base64
import io
import json
import os
import sys
import tempfile

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, LlavaForConditionalGeneration

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "..", "..", "http"))
import tiny_llava  # noqa: E402

BEFORE = [1, 2522, 2481, 2031, 2579, 2432]
BEHIND = [3, 429, 290, 364, 344, 2459, 349, 2481, 2481, 2458, 2481, 2457, 2460, 2485, 2457, 2579]
PICTURES = ["rgb.png", "rgb.jpg", "cmyk.jpg", "wide.png"]
STEPS = 12


def pixels(data):
    p = tiny_llava.PREPROCESSOR
    im = Image.open(io.BytesIO(data)).convert("RGB")
    edge, (w, h) = p["size"]["shortest_edge"], im.size
    size = (edge, int(edge * h / w)) if w <= h else (int(edge * w / h), edge)
    im = np.asarray(im.resize(size, Image.Resampling.BICUBIC))
    top, left = (im.shape[0] - edge) // 2, (im.shape[1] - edge) // 2
    im = im[top:top + edge, left:left + edge]
    x = (im.astype(np.float64) * p["rescale_factor"]).astype(np.float32)
    x = (x - np.array(p["image_mean"], np.float32)) / np.array(p["image_std"], np.float32)
    return torch.tensor(x.transpose(2, 0, 1))


def load():
    with tempfile.TemporaryDirectory() as d:
        tiny_llava.write(d)
        config = AutoConfig.from_pretrained(d)
        config._attn_implementation = "eager"
        model = LlavaForConditionalGeneration._from_config(config, dtype=torch.float32).eval()
    named = {"model." + n if not n.startswith("language_model") else n: v
             for n, v in tiny_llava.tensors()}
    state = {}
    for n, v in named.items():
        n = n.replace("language_model.model.", "model.language_model.")
        n = n.replace("language_model.lm_head", "lm_head")
        n = n.replace("vision_tower.vision_model.", "vision_tower.")
        state[n] = torch.tensor(v)
    missing = model.load_state_dict(state, strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys, missing
    return model


@torch.no_grad()
def main():
    pictures = json.load(open(sys.argv[1], encoding="utf-8"))["small"]
    model, out = load(), {}
    for name in PICTURES:
        x = pixels(base64.b64decode(pictures[name]["base64"]))[None]
        ids, gap = BEFORE + [tiny_llava.IMAGE] * tiny_llava.ROWS + BEHIND, 9.0
        for _ in range(STEPS):
            last = model(input_ids=torch.tensor([ids]), pixel_values=x).logits[0, -1]
            top = torch.topk(last, 2).values
            gap = min(gap, float(top[0] - top[1]))
            ids.append(int(last.argmax()))
        print("%-10s smallest margin %.4f" % (name, gap))
        assert gap > 1e-3
        out[name] = ids[-STEPS:]
    with open(sys.argv[2], "w", encoding="utf-8") as f:
        json.dump({"before": BEFORE, "behind": BEHIND, "greedy": out}, f)
        f.write("\n")


main()
