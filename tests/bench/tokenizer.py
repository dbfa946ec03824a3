#!/usr/bin/env python3
"""Encoding speed beside the packages tokenizers and sentencepiece, one core each, in turns; ids must be equal.

    make bench-tokenizer PEERS_PYTHON=PYTHON      a Python with tokenizers and sentencepiece

Each text is encoded in lines, in documents of 4 KiB, and whole: the packages take lists of texts, turbod one at a time.
Megabytes a second, medians of rounds; the ratio's least and most in brackets. One core: both run on the same one, in turn."""
import os
import statistics
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
import sentencepiece  # noqa: E402
import tokenizers  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.environ["top_builddir"]
DATA = os.path.join(os.environ["TURBO_SHARED"], "data")
ROUNDS, GOAL, SIZE = 7, 8.0, 1 << 20
CUTS = [("lines", 1), ("4 KiB", 4096), ("one", 1 << 40)]
FOLDERS = ["phi-2", "mistral-7b-v0.3-hf", "phi-3-mini", "internlm2"]


def texts():
    with open(os.path.join(DATA, "text", "ollama-texts", "war-and-peace.txt"), encoding="utf-8") as f:
        yield "English", f.read()[:SIZE]
    # common characters in an order of no language: nothing Chinese is among the shared texts
    common = "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从"
    x, out = 7, []
    for i in range(SIZE // 3):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
        out.append("，" if i % 17 == 16 else "。\n" if i % 67 == 66 else common[(x >> 16) % len(common)])
    yield "Chinese", "".join(out)
    code = []
    for folder, _, names in sorted(os.walk(os.path.join(HERE, "..", "..", "core"))):
        for name in sorted(names):
            if name.endswith((".c", ".h")):
                with open(os.path.join(folder, name), encoding="utf-8") as f:
                    code.append(f.read())
    yield "code", "".join(code)[:SIZE]
    yield "one long word", "".join(chr(97 + (i * i * 7 + i // 3) % 26) for i in range(SIZE // 4))


def cut(text, size):
    """Texts of at least size bytes that end where a line does."""
    out, held, n = [], [], 0
    for line in text.splitlines(keepends=True):
        held.append(line)
        n += len(line.encode())
        if n >= size:
            out.append("".join(held))
            held, n = [], 0
    if held:
        out.append("".join(held))
    return out


def peer(folder):
    path = os.path.join(DATA, "tokenizers", folder)
    if os.path.exists(os.path.join(path, "tokenizer.model")):
        sp = sentencepiece.SentencePieceProcessor(model_file=os.path.join(path, "tokenizer.model"))
        return "sentencepiece", lambda ts: sp.encode(ts, num_threads=1), lambda x: x
    hf = tokenizers.Tokenizer.from_file(os.path.join(path, "tokenizer.json"))
    return "tokenizers", lambda ts: hf.encode_batch_fast(ts, add_special_tokens=False), lambda x: x.ids


def compare(folder, name, texts, own, encode, ids_of, tmp):
    src, ids = os.path.join(tmp, "texts"), os.path.join(tmp, "ids")
    with open(src, "wb") as f:
        f.write(b"\xff".join(t.encode() for t in texts))
    a, b = [], []
    for i in range(-1, ROUNDS):  # one to warm up
        own.stdin.write("%s %s\n" % (src, ids))
        own.stdin.flush()
        x = float(own.stdout.readline())
        t = time.perf_counter()
        got = encode(texts)
        y = time.perf_counter() - t
        if i < 0:
            with open(ids, "rb") as f:
                mine = list(memoryview(f.read()).cast("i"))
            if mine != [k for g in got for k in ids_of(g)]:
                sys.exit("%s, %s: other ids than the peer's" % (folder, name))
        else:
            a.append(x)
            b.append(y)
    return sum(len(t.encode()) for t in texts), a, b


def main():
    print("| tokenizer | text | in | turbod MB/s | peer | peer MB/s | ratio | goal %.0f | a byte, to English |" % GOAL)
    print("|---|---|---|---|---|---|---|---|---|")
    for folder in FOLDERS:
        path = os.path.join(DATA, "tokenizers", folder)
        if not os.path.exists(path):
            print("SKIPPED: no " + path)
            continue
        who, encode, ids_of = peer(folder)
        own = subprocess.Popen([os.path.join(BUILD, "tests", "bench", "encode"), path], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        english = {}
        with tempfile.TemporaryDirectory() as tmp:
            for name, text in texts():
                for how, size in CUTS if "\n" in text else CUTS[-1:]:
                    n, a, b = compare(folder, name, cut(text, size), own, encode, ids_of, tmp)
                    ratios = [y / x for x, y in zip(a, b)]
                    x, y = n / statistics.median(a), n / statistics.median(b)
                    english.setdefault(how, x)
                    ratio = statistics.median(ratios)
                    print("| %s | %s | %s | %.1f | %s | %.2f | %.1f (%.1f..%.1f) | %s | %.2f |" % (
                        folder, name, how, x * 1e-6, who, y * 1e-6, ratio, min(ratios), max(ratios),
                        "reached" if ratio >= GOAL else "missed", english[how] / x), flush=True)
        own.stdin.close()
        own.wait()


if __name__ == "__main__":
    main()
