#!/usr/bin/env python3
"""Makes small.json: small random SentencePiece models with texts, and what the sentencepiece package
makes of them.

    small.py [SEED [MODELS]] > small.json

The models mix what real ones seldom show together: Unigram and BPE, user-defined, unused and control
pieces, byte fallback or none, every setting of the normaliser but a character map. Models and texts are
hexadecimal. tests/unit/test_tok_small.c reads it.
"""
import json
import random
import struct
import sys

import sentencepiece as spm

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
LETTERS = ["a", "b", "c", "\u00e9", "\u6f22", SPACE]
OTHERS = LETTERS[:-1] + [" ", " ", "  ", "d", "\U0001f600", "\n", "\0", SPACE, "<s>", "<x>", "<0x41>"]


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def number(field, n):
    return varint(field << 3) + varint(n)


def text(field, b):
    return varint(field << 3 | 2) + varint(len(b)) + b


def piece(t, score, kind):
    return text(1, text(1, t.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind))


def model(rnd):
    unigram = rnd.random() < 0.4
    fallback = rnd.random() < 0.15
    names = {"<unk>", "<s>", "</s>"}
    out = piece("<unk>", 0, UNKNOWN) + piece("<s>", 0, CONTROL) + piece("</s>", 0, CONTROL)
    if fallback:
        out += b"".join(piece(f"<0x{i:02X}>", 0, BYTE) for i in range(256))
    for _ in range(rnd.randrange(3)):
        name = rnd.choice(["<x>", "ab", "bca", "b", "a b", SPACE + "a", "\u6f22a", "<s>c", "  "])
        if name not in names:
            names.add(name)
            out += piece(name, 0, USER)
    rank = 0
    for c in LETTERS:
        if c not in names and rnd.random() < 0.9:
            names.add(c)
            out += piece(c, -rnd.randrange(2, 40) / 4 if unigram else -100 - rank, NORMAL)
            rank += 1
    for _ in range(rnd.randrange(5, 60)):
        name = "".join(rnd.choice(LETTERS) for _ in range(rnd.randrange(2, 5)))
        if name not in names:
            names.add(name)
            score = -rnd.randrange(1, 40) / 4 if unigram or rnd.random() < 0.3 else -rank
            out += piece(name, score, UNUSED if rnd.random() < 0.25 else NORMAL)
            rank += 1
    trainer = number(3, 1 if unigram else 2) + number(24, rnd.random() < 0.2) + number(35, fallback)
    trainer += number(40, 0) + number(41, 1) + number(42, 2)
    norm = number(3, rnd.random() < 0.6) + number(4, rnd.random() < 0.5) + number(5, rnd.random() < 0.9)
    return out + text(2, trainer) + text(3, norm)


def main():
    rnd = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    models = []
    for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 80):
        m = model(rnd)
        sp = spm.SentencePieceProcessor(model_proto=m)
        lines = []
        for i in range(8):
            t = "".join(rnd.choice(OTHERS if i % 2 else LETTERS) for _ in range(rnd.randrange(1, 40)))
            ids = sp.encode(t)
            lines.append([t.encode().hex(), ids, sp.decode(ids).encode().hex()])
        models.append([m.hex(), lines])
    json.dump({"note": "sentencepiece " + spm.__version__ + ", tests/golden/tok-spm/small.py",
               "models": models}, sys.stdout, separators=(",", ":"))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
