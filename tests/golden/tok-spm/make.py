#!/usr/bin/env python3
"""Makes golden.json: hashes of ids and of decoded text of 10,000 lines, by the sentencepiece package.

    make.py SHARED_DIR > golden.json

Lines: all lines of FILES in order, then every k-th of them so that 10,000 remain. One 64-bit FNV-1a hash
over the ids (4 bytes each, little-endian, -1 behind each line) and one over the decoded bytes (0xFF
behind each line) for every 500 lines, so that a difference can be found. tests/unit/test_tok_lines.c
repeats it.
"""
import json
import os
import struct
import sys

import sentencepiece as spm

FILES = ["data/text/wikitext-2-raw/wiki.test.raw", "data/text/tinyshakespeare/input.txt", "data/text/cs336/german.txt",
         "data/text/cs336/corpus.en", "data/text/gsm8k/test.jsonl", "data/text/ollama-texts/war-and-peace.txt",
         "data/tokenizers/test-vectors/sentencepiece/wagahaiwa_nekodearu.txt", "data/tokenizers/test-vectors/sentencepiece/botchan.txt"]
MODELS = ["data/tokenizers/internlm2/tokenizer.model", "data/tokenizers/internlm/tokenizer.model", "data/tokenizers/llama2/tokenizer.model",
          "data/tokenizers/mistral/tokenizer.model.v1", "data/tokenizers/mistral/mistral_instruct_tokenizer_240216.model.v2",
          "data/tokenizers/mistral/mistral_instruct_tokenizer_240323.model.v3", "data/tokenizers/chatglm-6b/ice_text.model",
          "data/tokenizers/test-vectors/sentencepiece/test_model.model", "data/tokenizers/test-vectors/sentencepiece/test_ja_model.model",
          "data/models/stories260K/tok512.model"]
COUNT, GROUP = 10000, 500


def fnv(h, data):
    for b in data:
        h = ((h ^ b) * 0x100000001b3) & 0xFFFFFFFFFFFFFFFF
    return h


def main():
    shared = sys.argv[1]
    lines = []
    for name in FILES:
        with open(os.path.join(shared, name), "rb") as f:
            lines += [x for x in f.read().split(b"\n") if x and b"\0" not in x]
    step = len(lines) // COUNT
    lines = [x.decode("utf-8") for x in lines[::step][:COUNT]]
    out = {"note": "sentencepiece " + spm.__version__ + ", tests/golden/tok-spm/make.py", "step": step, "lines": len(lines), "group": GROUP,
           "files": FILES, "models": []}
    for name in MODELS:
        sp = spm.SentencePieceProcessor(model_file=os.path.join(shared, name))
        ids_hash, text_hash = [], []
        for at in range(0, len(lines), GROUP):
            a = b = 0xcbf29ce484222325
            for line in lines[at:at + GROUP]:
                ids = sp.encode(line)
                a = fnv(a, struct.pack(f"<{len(ids) + 1}i", *ids, -1))
                b = fnv(b, sp.decode(ids).encode("utf-8") + b"\xff")
            ids_hash.append(f"{a:016x}")
            text_hash.append(f"{b:016x}")
        out["models"].append({"file": name, "ids": ids_hash, "text": text_hash})
    json.dump(out, sys.stdout, indent=0)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
