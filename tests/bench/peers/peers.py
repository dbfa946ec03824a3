#!/usr/bin/env python3
"""turbod beside llama.cpp and transformers on this CPU: `make bench-peers`, `make bench-peers QUICK=1`.

Both engines stay loaded and take turns (A B A B), with the same weights, the same token ids and the same threads;
times are taken inside each engine. A round in which others used more than --foreign of the machine is dropped and
repeated. Ratios are medians over rounds of peer's time / turbod's time, least and most in brackets. What is compared
with what, and why, stands in doc/benchmarks.md.

    peers.py [--quick] [--shapes 1.8b,7b:8] [--formats bf16,int8,int4] [--rounds N] [--steps N]
             [--no-long] [--no-transformers] [--threads N] [--foreign X] [--lock FILE] [--json FILE] [--markdown FILE] [--cache DIR]
    peers.py --clean            removes what it made in the cache folder
"""
import argparse
import contextlib
import datetime
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time

import engines
import ids
import table

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
                     "turbo-bench-peers")

# name: (what turbod reads in the weights' folder, its flags, llama.cpp's candidates)
FORMATS = {
    "bf16": ("hf", [], ["bf16"]),
    "int8": ("hf", ["--quantize", "int8"], ["q8_0"]),
    "int4": ("hf", ["--quantize", "int4"], ["q4_0", "q4_k"]),
    "gguf-q8_0": ("q8_0.gguf", [], ["q8_0"]),
    "gguf-q4_0": ("q4_0.gguf", [], ["q4_0", "q4_k"]),
    "gguf-q4_k": ("q4_k.gguf", [], ["q4_0", "q4_k"]),
}
CONTEXT, LONG, PREFILL, BATCH, BATCH_CONTEXT = 512, 8192, 512, 8, 128


def say(text):
    print(time.strftime("%H:%M:%S ") + text, file=sys.stderr, flush=True)


class Bench:
    def __init__(self, a):
        self.a = a
        self.python = os.environ.get("PEERS_PYTHON") or os.path.join(a.cache, "venv", "bin", "python")
        self.log = os.path.join(a.cache, "children.log")
        self.results, self.notes = [], []
        self.threads = a.threads or len(os.sched_getaffinity(0))
        os.environ["OMP_NUM_THREADS"] = str(self.threads)

    def note(self, text):
        say("NOTE: " + text)
        self.notes.append(text)

    # ---- weights

    def helper(self, script, *words):
        subprocess.run([self.python, os.path.join(HERE, script), *map(str, words)], check=True)

    def weights(self, kind, source=None):
        """The folder with hf/ and bf16.gguf of a shape, or of a real model."""
        folder = os.path.join(self.a.cache, "weights", kind.replace(":", "-"))
        if not os.path.exists(os.path.join(folder, "bf16.gguf")):
            say("making the weights of " + kind)
            self.helper("weights.py", "copy" if source else kind, folder, *([source] if source else []))
        return folder

    def gguf(self, folder, kind):
        path = os.path.join(folder, kind + ".gguf")
        if not os.path.exists(path):
            say("llama.cpp quantises to " + kind)
            with open(self.log, "ab") as log:
                subprocess.run([self.python, os.path.join(HERE, "quantize_child.py"),
                                os.path.join(folder, "bf16.gguf"), path + ".part", kind,
                                str(self.threads)], check=True, stdout=log, stderr=log)
            os.rename(path + ".part", path)
        return path

    def turbod(self, folder, fmt, tokens, flags=()):
        source, own, _ = FORMATS[fmt]
        if source.endswith(".gguf"):
            self.gguf(folder, source[:-5])
        return engines.turbod(os.path.join(folder, source), [*own, *flags], tokens, self.threads,
                              self.log)

    def llama(self, folder, kind, seqs, tokens, kv="f16", state=None):
        return engines.llama(self.python, self.gguf(folder, kind), self.threads, seqs, tokens, kv,
                             self.log, state)

    # ---- a real model: the same tokens from both

    def agree(self):
        src = os.path.join(os.environ.get("TURBO_SHARED", ""), "data", "models", "tinystories-656k-hf")
        if not os.path.exists(src):
            self.note("no real model in %s: nothing shows that both engines compute the same" % src)
            return
        with open(os.path.join(src, "REFERENCE.json"), encoding="utf-8") as f:
            told = json.load(f)["greedy_ids_from_bos"]
        folder = self.weights("tinystories", src)
        for fmt in self.a.formats:
            kind = FORMATS[fmt][2][0]
            try:
                a = self.turbod(folder, fmt, 512, ["--kv-dtype", "f16"])  # as llama.cpp's
                b = self.llama(folder, kind, 1, 512)
            except (engines.Failed, subprocess.CalledProcessError) as e:
                self.note("real model, %s: %s" % (fmt, e))
                continue
            n = 64
            x, y = (c.ask("greedy", n, told[0])["ids"] for c in (a, b))
            a.stop()
            b.stop()
            same, true = (next((i for i in range(n) if x[i] != z[i]), n) for z in (y, told[1:]))
            self.results.append({"shape": "tinystories-656k (real)", "format": fmt, "peer": "llama.cpp " + kind,
                                 "point": "greedy", "same": same, "reference": true, "of": n})
            say(table.line(self.results[-1]))

    # ---- measuring

    @contextlib.contextmanager
    def quiet(self):
        if not self.a.lock:
            yield
            return
        with open(self.a.lock, "a") as f:
            for _ in range(200):  # 20 s, then without
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.1)
            yield

    def rounds(self, what, children, ask):
        """ask(child, round) -> seconds. Kept rounds: [{name: seconds}], with the machine's own figures."""
        kept, spare, tries, most = [], [], 0, self.a.rounds * 3
        for c in children:
            ask(c, 0)  # warm-up: prompts are computed, pages are touched
        while len(kept) < self.a.rounds and tries < most:
            tries += 1
            with self.quiet():
                machine = children[0].ask("machine")
                time.sleep(0.05)  # the other's threads stop spinning
                watch, row = engines.Watch(children), {}
                for c in children:
                    row[c.name] = ask(c, tries)
                    time.sleep(0.05)
                row["foreign"] = watch.foreign()
            row.update(machine)
            (kept if row["foreign"] <= self.a.foreign else spare).append(row)
        if len(kept) < self.a.rounds:
            spare.sort(key=lambda r: r["foreign"])
            n = self.a.rounds - len(kept)
            self.note("%s: only %d of %d rounds were quiet; %d noisier ones count (others took up to "
                      "%.0f %% of the machine)" % (what, len(kept), tries, n,
                                                  100 * spare[n - 1]["foreign"]))
            kept += spare[:n]
        return kept

    def point(self, shape, fmt, peer, name, children, ask, **facts):
        what = "%s, %s, %s" % (shape, fmt, name)
        kept = self.rounds(what, children, ask)
        r = {"shape": shape, "format": fmt, "peer": peer, "point": name, "rounds": kept, **facts}
        self.results.append(r)
        say(table.line(r))
        return r

    def best_peer(self, folder, fmt):
        """llama.cpp's fastest format of this width, by a short decode each."""
        kinds = FORMATS[fmt][2]
        if len(kinds) == 1:
            return kinds[0]
        speed = {}
        for kind in kinds:
            c = self.llama(folder, kind, 1, 256)
            c.ask("decode", 1, 64, 8, 1)
            speed[kind] = min(c.ask("decode", 1, 64, 8, 1)["seconds_a_step"] for _ in range(3))
            c.stop()
        best = min(speed, key=speed.get)
        say("llama.cpp's 4-bit formats: " + ", ".join("%s %.1f ms" % (k, v * 1e3)
                                                      for k, v in speed.items()))
        return best

    def compare(self, shape, fmt):
        a, folder = self.a, self.weights(shape)
        kind = self.best_peer(folder, fmt)
        peer, tokens = "llama.cpp " + kind, BATCH * (BATCH_CONTEXT + 192) + 4 * CONTEXT
        t = self.turbod(folder, fmt, tokens)
        try:
            p = self.llama(folder, kind, BATCH, CONTEXT + 128)
        except engines.Failed:
            t.stop()
            raise
        facts = {"turbod": t.facts, "llama": p.facts, "config": config_of(folder), "steps": a.steps}
        x, y = (c.ask("greedy", 8, ",".join(map(str, ids.ids(3, 16, t.facts["vocab"]))))["ids"]
                for c in (t, p))
        facts["same"] = sum(i == k for i, k in zip(x, y))
        both = [t, p]

        def decode(batch, context):
            return lambda c, i: c.ask("decode", batch, context, a.steps, 1000)["seconds_a_step"]
        try:
            self.point(shape, fmt, peer, "decode 512", both, decode(1, CONTEXT), **facts)
            self.point(shape, fmt, peer, "prefill 512", both,
                       lambda c, i: c.ask("prefill", PREFILL, 5000 + i)["seconds"], **facts)
            self.point(shape, fmt, peer, "batch 8", both, decode(BATCH, BATCH_CONTEXT), **facts)
        finally:
            t.stop()
            p.stop()
        self.second_peer(shape, fmt, folder, facts)

    def second_peer(self, shape, fmt, folder, facts):
        kind = {"bf16": "bf16", "int8": "int8"}.get(fmt)
        if not kind or self.a.no_transformers:
            return
        t = None
        try:
            p = engines.transformers(self.python, os.path.join(folder, "hf"), self.threads, kind, self.log)
        except engines.Failed as e:
            self.note("transformers %s is left out: %s" % (kind, e))
            return
        try:
            t = self.turbod(folder, fmt, 4 * CONTEXT)
            few = max(4, self.a.steps // 4)
            self.point(shape, fmt, "transformers " + kind, "decode 512", [t, p],
                       lambda c, i: c.ask("decode", 1, CONTEXT, few, 1000)["seconds_a_step"],
                       **facts | {"transformers": p.facts, "steps": few})
        finally:
            for c in (t, p):
                if c:
                    c.stop()

    def long(self, shape, fmt):
        """8k of context against 512, quantised keys and values on both sides."""
        a, folder = self.a, self.weights(shape)
        kind = self.best_peer(folder, fmt)
        state = os.path.join(folder, "state-8192-q8_0")
        say("%s, %s: computing a prompt of %d tokens in both engines" % (shape, fmt, LONG))
        t = self.turbod(folder, fmt, LONG + 4 * CONTEXT, ["--quant-policy", "8"])
        try:
            p = self.llama(folder, kind, 1, LONG + 256, "q8_0", state)
        except engines.Failed:
            t.stop()
            raise
        facts = {"turbod": t.facts, "llama": p.facts, "config": config_of(folder), "steps": a.steps}
        try:
            def at(context):
                return lambda c, i: c.ask("decode", 1, context, a.steps, 1000)["seconds_a_step"]
            self.point(shape, fmt, "llama.cpp " + kind, "decode 8k, int8 KV", [t, p], at(LONG), **facts)
            self.point(shape, fmt, "none", "decode 512, int8 KV", [t], at(CONTEXT), **facts)
        finally:
            t.stop()
            p.stop()


def config_of(folder):
    with open(os.path.join(folder, "hf", "config.json"), encoding="utf-8") as f:
        return json.load(f)


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true")
    p.add_argument("--shapes")
    p.add_argument("--formats", type=lambda s: s.split(","), default=["bf16", "int8", "int4"])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--steps", type=int)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--foreign", type=float, default=0.05)
    p.add_argument("--lock", help="taken while a round is measured, after at most 20 s")
    p.add_argument("--no-long", action="store_true")
    p.add_argument("--no-transformers", action="store_true")
    p.add_argument("--json")
    p.add_argument("--markdown")
    p.add_argument("--cache", default=os.environ.get("PEERS_CACHE") or CACHE)
    p.add_argument("--clean", action="store_true")
    a = p.parse_args()
    # fewer layers: each layer is the same work, and two engines have to fit the memory
    a.shapes = (a.shapes or ("1.8b:6" if a.quick else "1.8b,7b:8")).split(",")
    a.steps = a.steps or (16 if a.quick else 32)
    if a.quick:
        a.no_long = a.no_transformers = True
    for f in a.formats:
        if f not in FORMATS:
            p.error("--formats: %s is none of %s" % (f, ", ".join(FORMATS)))
    return a


def main():
    a = arguments()
    if a.clean:  # what was made here, and nothing else, whatever --cache names
        for made in ("venv", "weights"):
            shutil.rmtree(os.path.join(a.cache, made), ignore_errors=True)
        with contextlib.suppress(OSError):
            os.remove(os.path.join(a.cache, "children.log"))
        with contextlib.suppress(OSError):
            os.rmdir(a.cache)
        return
    os.makedirs(a.cache, exist_ok=True)
    if not os.environ.get("PEERS_PYTHON"):
        setup = {"PEERS_TRANSFORMERS": "0"} if a.no_transformers else {}
        subprocess.run([os.path.join(HERE, "setup.sh"), a.cache], check=True, env=os.environ | setup)
    b = Bench(a)
    b.agree()
    jobs = [(b.compare, s, f) for s in a.shapes for f in a.formats]
    if not a.no_long:
        # the format that computes a prompt fastest goes first: llama.cpp's state is kept for the others
        jobs += [(b.long, a.shapes[0], f) for f in reversed(a.formats)]
    for job, shape, fmt in jobs:
        try:
            job(shape, fmt)
        except (engines.Failed, subprocess.CalledProcessError) as e:
            b.note("%s, %s: %s" % (shape, fmt, e))
    report = {"date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
              "threads": b.threads, "quick": a.quick, "rounds": a.rounds, "foreign_limit": a.foreign,
              "results": b.results, "notes": b.notes}
    if a.json:
        with open(a.json, "w", encoding="utf-8") as f:
            json.dump(report, f, indent=1)
    text = table.markdown(report)
    print(text)
    if a.markdown:
        with open(a.markdown, "w", encoding="utf-8") as f:
            f.write(text + "\n")
    sys.exit(0 if any("rounds" in r for r in b.results) else 1)


if __name__ == "__main__":
    main()
