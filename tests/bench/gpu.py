#!/usr/bin/env python3
"""The engine on a card beside transformers: random bf16 weights of the InternLM2 shapes, made here.

Decode by batch, many requests at once (equal and mixed lengths), and what peer_transformers.py says of the same shapes on
the same card: static cache and torch.compile at batch 1, the mixed list in fixed batches. Prints a table and appends
it to the CSV of bench-gpu. What does not fit into --seconds is said to be left out.

    gpu.py [--turbo PROGRAM] [--csv FILE] [--seconds 240] [--shapes 1.8b,7b] [--serve 128,256]
"""
import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from peer_transformers import SHAPES, write_trace  # noqa: E402

VOCAB = 92544


def tensors(shape):
    layers, width, heads, kv, mlp = SHAPES[shape]
    head = width // heads
    yield "model.embed_tokens.weight", (VOCAB, width)
    for n in range(layers):
        p = "model.layers.%d." % n
        yield p + "input_layernorm.weight", (width,)
        yield p + "self_attn.q_proj.weight", (heads * head, width)
        yield p + "self_attn.k_proj.weight", (kv * head, width)
        yield p + "self_attn.v_proj.weight", (kv * head, width)
        yield p + "self_attn.o_proj.weight", (width, heads * head)
        yield p + "post_attention_layernorm.weight", (width,)
        yield p + "mlp.gate_proj.weight", (mlp, width)
        yield p + "mlp.up_proj.weight", (mlp, width)
        yield p + "mlp.down_proj.weight", (width, mlp)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (VOCAB, width)


def write_model(torch, shape, folder):
    layers, width, heads, kv, mlp = SHAPES[shape]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": mlp,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": VOCAB,
        "head_dim": width // heads, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1,
        "eos_token_id": 2}
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)
    header, at = {}, 0
    for name, dims in tensors(shape):
        n = 2
        for d in dims:
            n *= d
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [at, at + n]}
        at += n
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for name, dims in tensors(shape):
            w = torch.ones(dims) if len(dims) == 1 else torch.randn(dims, device="cuda") * 0.02
            f.write(w.to(torch.bfloat16).view(torch.int16).cpu().numpy().data)


class Bench:
    def __init__(self, a):
        self.a, self.end, self.rows = a, time.monotonic() + a.seconds, []

    def left(self):
        return self.end - time.monotonic()

    def row(self, what, of, us, tokens, ratio=None):
        self.rows.append((what, of, us, ratio))
        print("%-14s %-44s %12.1f us %12.1f tokens/s%s" % (
            what, of, us, tokens, "" if ratio is None else "  ours %.2fx" % ratio), flush=True)

    def run(self, name, argv):
        """stdout, or None: said why."""
        if self.left() < 5:
            print("LEFT OUT, no time: %s" % name, flush=True)
            return None
        try:
            p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=self.left())
        except subprocess.TimeoutExpired:
            print("LEFT OUT, too long: %s" % name, flush=True)
            return None
        if p.returncode:
            print("FAILED: %s: %s" % (name, (p.stderr or p.stdout).strip()[-300:]), flush=True)
            return None
        return p.stdout

    def turbo(self, name, what, folder, *flags):
        out = self.run(name, [self.a.turbo, "bench", what, folder, "--device", "cuda:0", "--log-level", "error",
                              "--json", "-", *flags])
        return json.loads(out)["points"] if out else []

    def peer(self, *flags):
        out = self.run("transformers " + " ".join(flags), [sys.executable, os.path.join(HERE, "peer_transformers.py"), *flags])
        return [json.loads(x) for x in out.splitlines() if x.startswith("{")] if out else []

    def decode(self, shape, folder):
        """ms of a step, by batch, of bf16."""
        steps = {}
        for flags in ((), ("--quant-policy", "8"), ("--quant-policy", "4"), ("--quantize", "int4")):
            batch = "1,64" if flags else "1,8,32,64,128,256"
            for p in self.turbo("decode " + shape, "decode", folder, "--batch", batch, "--context", "512",
                                "--rounds", "1", "--max-batch-size", "256", *flags):
                of = "%s, %s, batch %d, context 512" % (shape, " ".join(flags) or "bf16", p["batch"])
                self.row("engine", of, p["seconds"] * 1e6, p["tokens_per_s"])
                if not flags:
                    steps[p["batch"]] = p["seconds"] * 1e3
        return steps

    def many(self, shape, folder, trace):
        """Tokens a second of the mixed list."""
        rate = 0.0
        for name, flags in (("128 + 128", ("--input", "128", "--output", "128")), ("mixed", ("--trace", trace))):
            for p in self.turbo("offline " + shape, "offline", folder, "--limit", "512", "--rounds", "2", *flags):
                rate = p["tokens_out_per_s"]
                self.row("engine", "%s, 512 requests, %s" % (shape, name), p["seconds"] * 1e6, rate)
        return rate

    def peers(self, shape, steps, rate, trace):
        for p in self.peer("--shapes", shape, "--batches", "1"):
            ours = steps.get(p["batch"])
            self.row("transformers", "%s, bf16, batch %d, context 512" % (shape, p["batch"]), p["ms"] * 1e3,
                     p["tokens_s"], ours and p["ms"] / ours)
        for batch in self.a.serve.split(",") if rate else ():
            for p in self.peer("--shapes", shape, "--batches", "", "--serve", batch, "--trace", trace):
                self.row("transformers", "%s, 512 requests, mixed, in batches of %s" % (shape, batch),
                         p["seconds"] * 1e6, p["tokens_s"], rate / p["tokens_s"])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--turbo", default=os.environ.get("TURBO", "./turbo"))
    p.add_argument("--csv", default="")
    p.add_argument("--seconds", type=float, default=240)
    p.add_argument("--shapes", default="1.8b,7b")
    p.add_argument("--serve", default="128,256")
    a = p.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("SKIP: the engine beside transformers: no torch here")
    if not torch.cuda.is_available():
        sys.exit("SKIP: the engine beside transformers: torch sees no CUDA device")
    b = Bench(a)
    for shape in a.shapes.split(","):
        with tempfile.TemporaryDirectory() as work:
            write_model(torch, shape, work)
            torch.cuda.empty_cache()
            trace = os.path.join(work, "mixed.csv")
            write_trace(trace, 512)
            steps = b.decode(shape, work)
            rate = b.many(shape, work, trace) if shape == a.shapes.split(",")[0] else 0.0
            b.peers(shape, steps, rate, trace)
    if a.csv:
        with open(a.csv, "a") as f:
            for what, of, us, ratio in b.rows:
                f.write('"%s","%s",%.3f,0,0,%s\n' % (what, of, us, "%.4f" % ratio if ratio else 0))


if __name__ == "__main__":
    main()
