#!/usr/bin/env python3
"""Makes golden.json: rows of logits, one sampling step each, and the logits that must come out.

The oracle is transformers' logits processors where it has the step. XTC, DRY, top-n-sigma and mirostat are
computed here by brute force from their definitions (text-generation-webui pull requests 6335 and 5677,
arXiv 2411.07641, arXiv 2007.14966), without any of the tricks of the code under test.
A removed token is null. Needs: pip install torch transformers.
"""
import json
import math
import os
import random

import torch
from transformers.generation import logits_process as lp

V = 40


def logits(rng, spread):
    return [round(rng.gauss(0, spread), 4) for _ in range(V)]


def run(processor, row, history):
    out = processor(torch.tensor([history or [0]]), torch.tensor([row], dtype=torch.float32))
    return [None if math.isinf(v) else v for v in out[0].tolist()]


def softmax(row):
    m = max(v for v in row if v is not None)
    w = [0 if v is None else math.exp(v - m) for v in row]
    return [x / sum(w) for x in w]


def xtc(row, threshold):
    p = softmax(row)
    above = [i for i in range(V) if p[i] >= threshold]
    keep = min(above, key=lambda i: (p[i], -i), default=None)
    return [None if i in above and i != keep else row[i] for i in range(V)]


def dry(row, history, multiplier, base, allowed, last_n, breakers):
    h = history[-last_n:] if last_n else history
    longest = {}
    for end in range(len(h) - 1):  # an earlier place that may match the end of the text
        m = 0
        while m <= end and h[end - m] == h[-1 - m] and h[end - m] not in breakers:
            m += 1
            if m == len(h) - 1:
                break
        longest[h[end + 1]] = max(longest.get(h[end + 1], 0), m)
    out = list(row)
    for token, m in longest.items():
        if m >= allowed and m > 0 and token not in breakers:
            out[token] -= multiplier * base ** (m - allowed)
    return out


def sigma(row, n):
    mean = sum(row) / V
    s = math.sqrt(sum((v - mean) ** 2 for v in row) / V)
    return [v if v >= max(row) - n * s else None for v in row]


def mirostat(row, mu):
    p = softmax(row)
    best = row.index(max(row))
    return [v if -math.log2(p[i]) <= mu or i == best else None for i, v in enumerate(row)]


def cases():
    rng = random.Random(7)
    for spread in (0.5, 2, 6):
        for _ in range(6):
            row = logits(rng, spread)
            history = [rng.randrange(V) for _ in range(rng.randrange(3, 24))]
            pattern = [rng.randrange(6) for _ in range(3)]
            looped = [x for _ in range(4) for x in pattern] + pattern[:rng.randrange(0, 3)]
            t, k = round(rng.uniform(0.2, 2), 2), rng.randrange(1, V)
            p, q = round(rng.uniform(0.05, 0.99), 2), round(rng.uniform(0.02, 0.5), 2)
            r = round(rng.uniform(0.5, 2), 2)
            yield "temperature", {"a": t}, row, [], run(lp.TemperatureLogitsWarper(t), row, [])
            yield "top_k", {"n": k}, row, [], run(lp.TopKLogitsWarper(k), row, [])
            yield "top_p", {"a": p}, row, [], run(lp.TopPLogitsWarper(p), row, [])
            yield "min_p", {"a": q}, row, [], run(lp.MinPLogitsWarper(q), row, [])
            yield "typical", {"a": p}, row, [], run(lp.TypicalLogitsWarper(p), row, [])
            yield ("penalize", {"a": r}, row, history,
                   run(lp.RepetitionPenaltyLogitsProcessor(r), row, history))
            for n in (1, 2, 3):
                h = looped if n > 1 else history
                yield ("no_repeat_ngram", {"n": n}, row, h,
                       run(lp.NoRepeatNGramLogitsProcessor(n), row, h))
            yield "top_n_sigma", {"a": r}, row, [], sigma(row, r)
            yield "xtc", {"a": q, "b": 1}, row, [], xtc(row, q)
            yield "mirostat", {"a": r, "b": 0.1}, row, [], mirostat(row, 2 * r)
            for breakers, last_n in ([], 0), ([pattern[0]], 0), ([], 7):
                h = history[:5] + looped
                yield ("dry", {"a": 0.8, "b": 1.75, "n": 2, "m": last_n, "ids": breakers}, row, h,
                       dry(row, h, 0.8, 1.75, 2, last_n, breakers))


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    out = [{"step": s, "args": a, "logits": r, "history": h, "want": w}
           for s, a, r, h, w in cases()]
    with open(os.path.join(here, "golden.json"), "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(c) for c in out) + "\n]\n")
    print(len(out), "cases")


main()
