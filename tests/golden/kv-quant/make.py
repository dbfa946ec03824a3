#!/usr/bin/env python3
"""Makes golden.json: what quantised keys and values do to a real model's loss, in double precision.

    make.py SHARED_MODELS_DIR > golden.json

A forward pass of stories260K (a llama2.c checkpoint) in numpy float64, whose K (after RoPE) and V are
quantised per token and head: scale = (max - min) / (2^b - 1), zero = min, both rounded to bf16 away from
the row, codes to the nearest. "ideal" is the same without the rounding of scale and zero. Texts and the
loss without quantisation come from REFERENCE.json; this pass must reproduce them. Needs numpy.
"""
import json
import os
import struct
import sys

import numpy as np


def load(path):
    with open(path, "rb") as f:
        E, I, L, H, K, V, S = struct.unpack("<7i", f.read(28))
        raw = np.frombuffer(f.read(), dtype="<f4").astype(np.float64)
    V, D, at, t = abs(V), E // H, 0, {}
    for name, shape in (("embed", (V, E)), ("an", (L, E)), ("q", (L, H * D, E)), ("k", (L, K * D, E)),
                        ("v", (L, K * D, E)), ("o", (L, E, H * D)), ("fn", (L, E)),
                        ("w1", (L, I, E)), ("w2", (L, E, I)), ("w3", (L, I, E)), ("norm", (E,))):
        n = int(np.prod(shape))
        t[name] = raw[at:at + n].reshape(shape)
        at += n
    return t, (E, I, L, H, K, D)


def bf16_toward(x, direction):
    """The next bf16 from x in the direction of -1 or 1; 8 significant bits."""
    m, e = np.frexp(x)
    m = m * 256
    return np.ldexp((np.floor if direction < 0 else np.ceil)(m) / 256, e)


def quantised(x, bits, ideal):
    if not bits:
        return x
    top = 2 ** bits - 1
    zero = x.min(-1, keepdims=True)
    zero = zero if ideal else bf16_toward(zero, -1)
    scale = (x.max(-1, keepdims=True) - zero) / top
    scale = scale if ideal else bf16_toward(scale, 1)
    safe = np.where(scale > 0, scale, 1)
    return np.clip(np.rint((x - zero) / safe), 0, top) * scale + zero


def rms(x, w):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w


def rope(x):
    """[T,heads,D], adjacent pairs."""
    T, _, D = x.shape
    angle = np.arange(T)[:, None] * 10000.0 ** (-np.arange(0, D, 2) / D)
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    out = np.empty_like(x)
    out[..., 0::2] = x[..., 0::2] * c - x[..., 1::2] * s
    out[..., 1::2] = x[..., 0::2] * s + x[..., 1::2] * c
    return out


def loss(t, dims, ids, bits, ideal):
    E, I, L, H, K, D = dims
    x, T = t["embed"][ids], len(ids)
    mask = np.triu(np.full((T, T), -np.inf), 1)
    for n in range(L):
        h = rms(x, t["an"][n])
        q = rope((h @ t["q"][n].T).reshape(T, H, D))
        k = quantised(rope((h @ t["k"][n].T).reshape(T, K, D)), bits, ideal)
        v = quantised((h @ t["v"][n].T).reshape(T, K, D), bits, ideal)
        out = np.empty((T, H, D))
        for head in range(H):
            g = head // (H // K)
            s = q[:, head] @ k[:, g].T / np.sqrt(D) + mask
            p = np.exp(s - s.max(-1, keepdims=True))
            out[:, head] = p / p.sum(-1, keepdims=True) @ v[:, g]
        x = x + out.reshape(T, H * D) @ t["o"][n].T
        h = rms(x, t["fn"][n])
        a = h @ t["w1"][n].T
        x = x + (a / (1 + np.exp(-a)) * (h @ t["w3"][n].T)) @ t["w2"][n].T
    logits = rms(x, t["norm"]) @ t["embed"].T
    m = logits.max(-1, keepdims=True)
    logp = logits - m - np.log(np.exp(logits - m).sum(-1, keepdims=True))
    return -logp[np.arange(T - 1), ids[1:]].mean()


def main():
    folder = os.path.join(sys.argv[1], "stories260K")
    with open(os.path.join(folder, "REFERENCE.json"), encoding="utf-8") as f:
        texts = json.load(f)["teacher_forced"]
    t, dims = load(os.path.join(folder, "stories260K.bin"))
    rows = []
    for text in texts:
        ids = np.array(text["ids"])
        row = {str(b): round(loss(t, dims, ids, b, False), 6) for b in (0, 8, 4)}
        row |= {f"ideal{b}": round(loss(t, dims, ids, b, True), 6) for b in (8, 4)}
        assert abs(row["0"] - text["nll_sum"] / text["tokens"]) < 1e-5
        rows.append(row)
    json.dump({"model": "stories260K", "mean_nll": rows}, sys.stdout, indent=1)
    print()


main()
