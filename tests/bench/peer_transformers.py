#!/usr/bin/env python3
"""transformers on the same device: one batch size of one model, with a static cache and torch.compile.

The weights are those of a folder (random_model.py makes one); Llama modelling code. Prints JSON lines: first
{"ready": seconds}, when everything is loaded and compiled, then the result. With --hold it waits for a line on its input
between the two, so that several can compile at once and measure one after the other.

Without --serve: decode after a prompt of --context tokens, {"batch", "context", "ms", "tokens_s"}.
With --serve: a list of requests is served in fixed batches, in their order: a batch has the length of its longest
prompt and runs until its longest answer is complete; only tokens that were asked for count. The lengths are those of
--trace (columns of the Azure traces), which `turbo bench offline --trace FILE --limit N` plays too, or all 128 and
128. --write-trace makes one: lengths uniform in 16..240, from a seed.
With --pinned: bytes a second of copies of pinned memory to the device, {"pinned_bytes_s"}.

    peer_transformers.py FOLDER [--batch 1] [--context 512] [--steps 64] [--serve] [--trace FILE] [--requests 512]
                         [--mode reduce-overhead] [--device cuda] [--hold]
    peer_transformers.py --write-trace FILE [--requests 512]
    peer_transformers.py --pinned
"""
import argparse
import csv
import json
import os
import random
import statistics
import sys
import time


def say(**what):
    print(json.dumps(what), flush=True)


def load(torch, folder, device):
    """The model of a folder: made in its type on the device, then filled from the file."""
    from safetensors import safe_open
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(folder)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    own = dict(model.named_parameters())
    with safe_open(os.path.join(folder, "model.safetensors"), "pt", device=device) as f:
        for name in f.keys():
            own.pop(name).copy_(f.get_tensor(name))
    if own:
        sys.exit("the folder lacks %s" % ", ".join(own))
    return model.eval(), config


class Decoder:
    """One batch: a prompt of random tokens and then one compiled step after the other."""

    def __init__(self, torch, model, config, batch, length, mode, device):
        from transformers import StaticCache

        self.torch, self.model, self.batch, self.device = torch, model, batch, device
        self.cache = StaticCache(config=config, max_cache_len=length)
        self.step = torch.compile(self.forward, mode=mode, fullgraph=True)
        self.position = torch.zeros(1, dtype=torch.long, device=device)

    def forward(self, tokens, position):
        out = self.model(input_ids=tokens, past_key_values=self.cache, cache_position=position,
                         position_ids=position[None].expand(self.batch, -1), use_cache=True)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def wait(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def prompt(self, n):
        t = self.torch
        tokens = t.randint(5, 92000, (self.batch, n), device=self.device)
        self.cache.reset()
        out = None
        for at in range(0, n, 512):
            piece = tokens[:, at:at + 512]
            where = t.arange(at, at + piece.shape[1], device=self.device)
            out = self.model(input_ids=piece, past_key_values=self.cache, cache_position=where,
                             position_ids=where[None].expand(self.batch, -1), use_cache=True,
                             logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
        self.position.fill_(n)
        return out

    def decode(self, tokens, steps, times=None):
        for _ in range(steps):
            begin = time.perf_counter()
            tokens = self.step(tokens.clone(), self.position)
            self.position.add_(1)
            if times is not None:
                self.wait()
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


def pinned(torch):
    """Copies of 8 MiB from pinned memory, in one stream."""
    n, piece = 4 << 30, 8 << 20
    ring = [torch.empty(piece, dtype=torch.uint8).pin_memory() for _ in range(4)]
    to = torch.empty(4 * piece, dtype=torch.uint8, device="cuda")
    best = 0.0
    for _ in range(3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for i in range(n // piece):
            k = i % 4
            to[k * piece:(k + 1) * piece].copy_(ring[k], non_blocking=True)
        torch.cuda.synchronize()
        best = max(best, n / (time.perf_counter() - begin))
    return best


def hold(begin, wanted):
    say(ready=time.perf_counter() - begin)
    if wanted and not sys.stdin.readline():
        sys.exit(1)


def measure_decode(d, a, begin):
    d.decode(d.prompt(a.context), 8)
    d.wait()
    hold(begin, a.hold)
    d.decode(d.prompt(a.context), 8)
    times = []
    d.decode(d.prompt(a.context), a.steps, times)
    # A step by itself includes a synchronisation; the whole run does not. The faster one counts.
    tokens = d.prompt(a.context)
    d.wait()
    begin = time.perf_counter()
    d.decode(tokens, a.steps)
    d.wait()
    ms = min(statistics.median(times), (time.perf_counter() - begin) / a.steps) * 1e3
    say(batch=a.batch, context=a.context, ms=ms, tokens_s=a.batch / ms * 1e3)


def measure_serve(d, a, requests, begin):
    """The last batch is filled up, as a compiled step has one size."""
    d.decode(d.prompt(16), 8)
    d.wait()
    hold(begin, a.hold)
    d.decode(d.prompt(16), 8)
    d.wait()
    begin = time.perf_counter()
    for at in range(0, len(requests), a.batch):
        some = requests[at:at + a.batch]
        d.decode(d.prompt(max(i for i, _ in some)), max(o for _, o in some) - 1)
    d.wait()
    s = time.perf_counter() - begin
    say(served_in_batches_of=a.batch, requests=len(requests), seconds=s, tokens_s=sum(o for _, o in requests) / s)


def main():
    begin = time.perf_counter()
    p = argparse.ArgumentParser()
    p.add_argument("folder", nargs="?", default="")
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--steps", type=int, default=64)
    p.add_argument("--serve", action="store_true")
    p.add_argument("--trace", default="")
    p.add_argument("--write-trace", default="")
    p.add_argument("--requests", type=int, default=512)
    p.add_argument("--mode", default="reduce-overhead")
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    p.add_argument("--hold", action="store_true")
    p.add_argument("--pinned", action="store_true")
    a = p.parse_args()
    if a.write_trace:
        return write_trace(a.write_trace, a.requests)
    try:
        import torch
    except ImportError:
        sys.exit("SKIP: no torch here")
    if a.device == "cuda" and not torch.cuda.is_available():
        sys.exit("SKIP: torch sees no CUDA device")
    if a.pinned:
        return say(pinned_bytes_s=pinned(torch))
    torch.set_grad_enabled(False)
    requests = read_trace(a.trace, a.requests) if a.trace else [(128, 128)] * a.requests
    length = a.context + a.steps
    if a.serve:
        length = max(i for i, _ in requests) + max(o for _, o in requests)
    model, config = load(torch, a.folder, a.device)
    d = Decoder(torch, model, config, a.batch, length + 16, a.mode, a.device)
    if a.serve:
        measure_serve(d, a, requests, begin)
    else:
        measure_decode(d, a, begin)


if __name__ == "__main__":
    main()
