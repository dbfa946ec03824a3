#!/usr/bin/env python3
"""Trains the demo model and writes it in InternLM2's layout.

    train.py DATA.npz OUT_DIR [--epochs N] [--batch N] [--device cpu|cuda]

Runs on a CPU or a GPU; the figures of the shipped model are in README.md. OUT_DIR gets
model.safetensors (bf16), config.json and generation_config.json.
"""
import argparse
import json
import math
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from model import Config, Model, documents


def pack_wqkv(layer, c):
    """InternLM2's order of rows: for each KV head its query heads, then K, then V."""
    d, g = c.head_dim, c.heads // c.kv_heads
    q = layer.wq.weight.view(c.kv_heads, g, d, -1)
    k = layer.wk.weight.view(c.kv_heads, 1, d, -1)
    v = layer.wv.weight.view(c.kv_heads, 1, d, -1)
    return torch.cat([q, k, v], 1).reshape(-1, c.hidden)


def export(model, out, vocab):
    c = model.c
    t = {"model.tok_embeddings.weight": model.embed.weight, "model.norm.weight": model.norm.weight}
    for i, layer in enumerate(model.layers):
        p = f"model.layers.{i}."
        t[p + "attention.wqkv.weight"] = pack_wqkv(layer, c)
        t[p + "attention.wo.weight"] = layer.wo.weight
        t[p + "attention_norm.weight"] = layer.attention_norm.weight
        t[p + "ffn_norm.weight"] = layer.ffn_norm.weight
        for n in ("w1", "w2", "w3"):
            t[p + f"feed_forward.{n}.weight"] = getattr(layer, n).weight
    save_file({k: v.detach().to(torch.bfloat16).cpu().contiguous() for k, v in t.items()},
              os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    eos = [2, vocab - 2]
    config = {
        "architectures": ["InternLM2ForCausalLM"], "bias": False, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": c.hidden, "intermediate_size": c.inner,
        "max_position_embeddings": c.max_position, "model_type": "internlm2",
        "num_attention_heads": c.heads, "num_hidden_layers": c.layers, "num_key_value_heads": c.kv_heads,
        "pad_token_id": 2, "rms_norm_eps": c.eps, "rope_scaling": None, "rope_theta": int(c.theta),
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": vocab,
    }
    generation = {"bos_token_id": 1, "eos_token_id": eos, "pad_token_id": 2}
    for name, d in (("config.json", config), ("generation_config.json", generation)):
        with open(os.path.join(out, name), "w", encoding="utf-8") as f:
            json.dump(d, f, indent=2)
            f.write("\n")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("data")
    p.add_argument("out")
    p.add_argument("--epochs", type=float, default=8)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--vocab", type=int, default=2800)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = p.parse_args()
    torch.manual_seed(1)
    data = np.load(args.data)
    tokens, mask = torch.from_numpy(data["tokens"].astype(np.int64)), torch.from_numpy(data["mask"])
    held = len(tokens) // 100  # one hundredth is never trained on
    model = Model(Config(), args.vocab).to(args.device)
    print("parameters:", sum(x.numel() for x in model.parameters()), "device:", args.device, flush=True)
    decay = [x for x in model.parameters() if x.dim() > 1]
    plain = [x for x in model.parameters() if x.dim() == 1]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0}],
                            lr=args.lr, betas=(0.9, 0.95))
    total = int(args.epochs * (len(tokens) - held) / args.batch)
    gen, t0 = torch.Generator().manual_seed(1), time.time()

    def loss_of(idx):
        ids, m = tokens[idx].to(args.device), mask[idx].to(args.device)
        pos, att = documents(ids)
        with torch.autocast(args.device, torch.bfloat16):
            logits = model(ids, pos, att)
        ce = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        # Answers count in full; questions a little, so that the model also learns the language.
        w = m[:, 1:].flatten().float()
        return (ce * (w + 0.1 * (1 - w) * (ids[:, 1:].flatten() != 2))).sum() / w.sum(), (ce * w).sum() / w.sum()

    order = []
    for step in range(total):
        if len(order) < args.batch:
            order += (torch.randperm(len(tokens) - held, generator=gen) + held).tolist()
        idx, order = torch.tensor(order[:args.batch]), order[args.batch:]
        warm = min(1.0, (step + 1) / 100)
        for g in opt.param_groups:
            g["lr"] = args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / total)))
        loss, answers = loss_of(idx)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        if step % 100 == 99 or step + 1 == total:
            with torch.no_grad():
                test = sum(float(loss_of(torch.arange(i, min(i + 64, held)))[1]) for i in range(0, held, 64)) / math.ceil(held / 64)
            print(f"step {step + 1}/{total}  loss {float(answers):.4f}  held out {test:.4f}  {time.time() - t0:.0f} s", flush=True)
            if step % 1000 == 999 or step + 1 == total:
                export(model, args.out, args.vocab)


if __name__ == "__main__":
    main()
