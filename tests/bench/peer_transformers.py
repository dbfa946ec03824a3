#!/usr/bin/env python3
"""transformers on the same card: decode of the InternLM2 shapes with a static cache and torch.compile.

Random bf16 weights of the true shapes, made on the device; Llama modelling code, whose arithmetic is the same.
Prints one JSON line for each point: {"shape", "batch", "context", "ms", "tokens_s"}; ms is the median of the
steps. With --fixed also the whole way of a fixed batch: prompts of 128 tokens, 128 tokens out, by batch.

With --serve a list of requests is served in fixed batches, in their order: a batch has the length of its longest
prompt and runs until its longest answer is complete; only tokens that were asked for count. The lengths are those of
a trace (columns of the Azure traces), which `turbo bench offline --trace FILE --limit N` plays too, or all 128 and
128. --write-trace makes one: lengths uniform in 16..240, from a seed.

    peer_transformers.py [--shapes 1.8b,7b] [--batches 1] [--context 512] [--steps 64] [--fixed 16,64,128]
                         [--serve 16,64,128,256] [--trace FILE] [--requests 512] [--mode reduce-overhead]
    peer_transformers.py --write-trace FILE [--requests 512]
"""
import argparse
import csv
import json
import random
import statistics
import sys
import time

SHAPES = {  # layers, width, heads, KV heads, width of the MLP
    "1.8b": (24, 2048, 16, 8, 8192),
    "7b": (32, 4096, 32, 8, 14336),
    "20b": (48, 6144, 48, 8, 16384),
}


def make(torch, shape, context):
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, heads, kv, mlp = SHAPES[shape]
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, num_key_value_heads=kv,
        intermediate_size=mlp, vocab_size=92544, max_position_embeddings=max(32768, context),
        rope_theta=1e6, tie_word_embeddings=False)
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model.eval(), config


class Decoder:
    """One batch: a prompt of random tokens and then one compiled step after the other."""

    def __init__(self, torch, model, config, batch, length, mode):
        from transformers import StaticCache

        self.torch, self.model, self.batch = torch, model, batch
        self.cache = StaticCache(config=config, max_cache_len=length)
        self.step = torch.compile(self.forward, mode=mode, fullgraph=True)
        self.position = torch.zeros(1, dtype=torch.long, device="cuda")

    def forward(self, tokens, position):
        out = self.model(input_ids=tokens, past_key_values=self.cache, cache_position=position,
                         position_ids=position[None].expand(self.batch, -1), use_cache=True)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def prompt(self, n):
        t = self.torch
        tokens = t.randint(5, 92000, (self.batch, n), device="cuda")
        self.cache.reset()
        out = None
        for at in range(0, n, 512):
            piece = tokens[:, at:at + 512]
            where = t.arange(at, at + piece.shape[1], device="cuda")
            out = self.model(input_ids=piece, past_key_values=self.cache, cache_position=where,
                             position_ids=where[None].expand(self.batch, -1), use_cache=True,
                             logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
        self.position.fill_(n)
        return out

    def decode(self, tokens, steps, times=None):
        t = self.torch
        for _ in range(steps):
            begin = time.perf_counter()
            tokens = self.step(tokens.clone(), self.position)
            self.position.add_(1)
            if times is not None:
                t.cuda.synchronize()
                times.append(time.perf_counter() - begin)
        return tokens


def write_trace(path, n):
    """Requests that all come at once; the numbers depend on nothing but n."""
    lengths = random.Random(7)
    with open(path, "w", newline="") as f:
        f.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for _ in range(n):
            f.write("2024-01-01 00:00:00.000000,%d,%d\n" % (lengths.randint(16, 240), lengths.randint(16, 240)))


def read_trace(path, n):
    with open(path, newline="") as f:
        rows = [(int(r["ContextTokens"]), int(r["GeneratedTokens"])) for r in csv.DictReader(f)]
    return rows[:n]


def serve(torch, model, config, requests, batch, mode):
    """Seconds for all requests; the last batch is filled up, as a compiled step has one size."""
    most = max(i for i, _ in requests) + max(o for _, o in requests)
    d = Decoder(torch, model, config, batch, most + 16, mode)
    d.decode(d.prompt(16), 8)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for at in range(0, len(requests), batch):
        some = requests[at:at + batch]
        d.decode(d.prompt(max(i for i, _ in some)), max(o for _, o in some) - 1)
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--shapes", default="1.8b,7b")
    p.add_argument("--batches", default="1")
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--steps", type=int, default=64)
    p.add_argument("--fixed", default="")
    p.add_argument("--serve", default="")
    p.add_argument("--trace", default="")
    p.add_argument("--write-trace", default="")
    p.add_argument("--requests", type=int, default=512)
    p.add_argument("--mode", default="reduce-overhead")
    a = p.parse_args()
    if a.write_trace:
        return write_trace(a.write_trace, a.requests)
    requests = read_trace(a.trace, a.requests) if a.trace else [(128, 128)] * a.requests
    try:
        import torch
    except ImportError:
        sys.exit("SKIP: no torch here")
    if not torch.cuda.is_available():
        sys.exit("SKIP: torch sees no CUDA device")
    torch.set_grad_enabled(False)
    for shape in a.shapes.split(","):
        model, config = make(torch, shape, a.context)
        for batch in [int(b) for b in a.batches.split(",") if b]:
            torch._dynamo.reset()
            d = Decoder(torch, model, config, batch, a.context + a.steps + 16, a.mode)
            tokens = d.prompt(a.context)
            tokens = d.decode(tokens, 8)
            times = []
            d.decode(tokens, a.steps, times)
            # A step by itself includes a synchronisation; the whole run does not. The faster one counts.
            tokens = d.prompt(a.context)
            torch.cuda.synchronize()
            begin = time.perf_counter()
            d.decode(tokens, a.steps)
            torch.cuda.synchronize()
            ms = min(statistics.median(times), (time.perf_counter() - begin) / a.steps) * 1e3
            print(json.dumps({"peer": "transformers", "shape": shape, "batch": batch, "context": a.context,
                              "ms": ms, "tokens_s": batch / ms * 1e3}), flush=True)
        for batch in [int(b) for b in a.fixed.split(",") if b]:
            torch._dynamo.reset()
            d = Decoder(torch, model, config, batch, 128 + 128 + 16, a.mode)
            d.decode(d.prompt(128), 8)
            torch.cuda.synchronize()
            begin = time.perf_counter()
            d.decode(d.prompt(128), 127)
            torch.cuda.synchronize()
            s = time.perf_counter() - begin
            print(json.dumps({"peer": "transformers", "shape": shape, "fixed_batch": batch, "seconds": s,
                              "tokens_s": batch * 128 / s}), flush=True)
        for batch in [int(b) for b in a.serve.split(",") if b]:
            torch._dynamo.reset()
            s = serve(torch, model, config, requests, batch, a.mode)
            print(json.dumps({"peer": "transformers", "shape": shape, "served_in_batches_of": batch,
                              "requests": len(requests), "seconds": s,
                              "tokens_s": sum(o for _, o in requests) / s}), flush=True)
        del model
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
