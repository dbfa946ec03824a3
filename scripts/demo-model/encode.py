#!/usr/bin/env python3
"""Encodes the corpus into fixed windows of tokens for training.

    encode.py CORPUS.jsonl MODEL_DIR OUT.npz [--window 512]

Each conversation is <s><|im_start|>role\\n...<|im_end|>\\n...; the loss mask covers the answers and the
<|im_end|> that ends them. Conversations are packed back to back; each begins with <s>, and training
starts its positions and its attention anew there.
"""
import argparse
import json
import os

import numpy as np
import sentencepiece as spm


def encode(sp, ids, msgs):
    """Token ids and loss mask of one conversation."""
    start, end, newline = ids
    out, mask = [1], [0]
    for m in msgs:
        head = sp.encode(m["role"] + "\n")
        body = sp.encode(m["role"] + "\n" + m["content"])
        text = body[len(head):] if body[:len(head)] == head else None
        assert text is not None, "the line break must end a token"
        learn = int(m["role"] == "assistant")
        out += [start] + head + text + [end] + newline
        mask += [0] * (1 + len(head)) + [learn] * (len(text) + 1) + [0] * len(newline)
    return out, mask


def main():
    p = argparse.ArgumentParser()
    p.add_argument("corpus")
    p.add_argument("model")
    p.add_argument("out")
    p.add_argument("--window", type=int, default=512)
    args = p.parse_args()
    sp = spm.SentencePieceProcessor(model_file=os.path.join(args.model, "tokenizer.model"))
    n = sp.get_piece_size()
    ids = (n - 1, n - 2, sp.encode("\n"))
    rows, masks, cur, cur_mask = [], [], [], []
    with open(args.corpus, encoding="utf-8") as f:
        for line in f:
            t, m = encode(sp, ids, json.loads(line))
            if len(t) > args.window:
                continue
            if len(cur) + len(t) > args.window:
                pad = args.window - len(cur)
                rows.append(cur + [2] * pad)
                masks.append(cur_mask + [0] * pad)
                cur, cur_mask = [], []
            cur, cur_mask = cur + t, cur_mask + m
    np.savez_compressed(args.out, tokens=np.array(rows, np.uint16), mask=np.array(masks, np.uint8))
    print("windows:", len(rows), "tokens:", len(rows) * args.window, "learned:", int(np.sum(masks)))


if __name__ == "__main__":
    main()
