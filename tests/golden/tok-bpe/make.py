#!/usr/bin/env python3
"""Makes golden.json: hashes of ids and of decoded text of 10,000 lines, by the tokenizers package.

    make.py SHARED_DIR > golden.json

Lines and hashes are those of tests/golden/tok-spm/make.py. Text is ordinary text: special tokens written
in it count as text (encode_special_tokens). Llama 3 is converted from its tiktoken file as transformers
converts it; Qwen2 and GPT-2 are what transformers makes of vocab.json and merges.txt.
"""
import base64
import json
import os
import shutil
import struct
import sys
import tempfile

import tokenizers
import transformers
from transformers.convert_slow_tokenizer import TikTokenConverter

FILES = ["data/text/wikitext-2-raw/wiki.test.raw", "data/text/tinyshakespeare/input.txt", "data/text/cs336/german.txt",
         "data/text/cs336/corpus.en", "data/text/gsm8k/test.jsonl", "data/text/ollama-texts/war-and-peace.txt",
         "data/tokenizers/test-vectors/sentencepiece/wagahaiwa_nekodearu.txt", "data/tokenizers/test-vectors/sentencepiece/botchan.txt"]
T = "data/tokenizers/"
FOLDERS = ["data/models/hf-configs/llava-1.5-7b-hf-tokenizer", T + "mistral-7b-v0.3-hf", T + "phi-3-mini", T + "clip", T + "phi-2",
           T + "minimind", T + "qwen2", T + "gpt2", T + "llama3"]
COUNT, GROUP = 10000, 500
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")


def fnv(h, data):
    for b in data:
        h = ((h ^ b) * 0x100000001b3) & 0xFFFFFFFFFFFFFFFF
    return h


def read_ranks(path):
    with open(path, "rb") as f:
        return {base64.b64decode(x.split()[0]): int(x.split()[1]) for x in f if x.strip()}


def load(folder):
    name = os.path.basename(folder)
    if os.path.exists(folder + "/tokenizer.json"):
        return tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
    if name == "llama3":
        TikTokenConverter.load_tiktoken_bpe = staticmethod(read_ranks)
        return TikTokenConverter(folder + "/tokenizer.model", pattern=LLAMA3).converted()
    classes = {"qwen2": transformers.Qwen2TokenizerFast, "gpt2": transformers.GPT2TokenizerFast}
    with tempfile.TemporaryDirectory() as d:
        for f in os.listdir(folder):
            shutil.copyfile(folder + "/" + f, d + "/" + f)
        return classes[name].from_pretrained(d).backend_tokenizer


def main():
    shared = sys.argv[1]
    lines = []
    for name in FILES:
        with open(os.path.join(shared, name), "rb") as f:
            lines += [x for x in f.read().split(b"\n") if x and b"\0" not in x]
    step = len(lines) // COUNT
    lines = [x.decode("utf-8") for x in lines[::step][:COUNT]]
    out = {"note": "tokenizers " + tokenizers.__version__ + ", tests/golden/tok-bpe/make.py", "step": step, "lines": len(lines),
           "group": GROUP, "files": FILES, "models": []}
    for name in FOLDERS:
        tok = load(os.path.join(shared, name))
        tok.encode_special_tokens = True
        ids_hash, text_hash = [], []
        for at in range(0, len(lines), GROUP):
            a = b = 0xcbf29ce484222325
            for line in lines[at:at + GROUP]:
                ids = tok.encode(line, add_special_tokens=False).ids
                a = fnv(a, struct.pack(f"<{len(ids) + 1}i", *ids, -1))
                b = fnv(b, tok.decode(ids).encode("utf-8") + b"\xff")
            ids_hash.append(f"{a:016x}")
            text_hash.append(f"{b:016x}")
        out["models"].append({"folder": name, "ids": ids_hash, "text": text_hash})
    json.dump(out, sys.stdout, indent=0)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
