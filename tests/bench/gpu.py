#!/usr/bin/env python3
"""The engine on a card beside transformers: the same random bf16 weights of the InternLM2 shapes in both.

First all runs of transformers compile at once (peer_transformers.py --hold: its slowest part) and then measure one after the
other; then the engine has the card alone: decode by batch, many requests at once (equal and mixed lengths), and how
fast its weights came, against copies of pinned memory. Each line is printed and appended to the CSV of bench-gpu when it is
known; what does not fit into --seconds is said to be left out. Works on a CPU too, with --shapes tiny, to try it.

    gpu.py [--turbo PROGRAM] [--csv FILE] [--seconds 300] [--compile SECONDS] [--shapes 1.8b,7b]
           [--batches 1,8,64,256] [--context 512] [--fixed 256,128,64] [--requests 512] [--no-peers] [--only-load]
           [--device cuda:0]
"""
import argparse
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from peer_transformers import write_trace  # noqa: E402
from random_model import SHAPES, tensors, write_model  # noqa: E402

GOALS = {"1.8b": 1.6, "7b": 1.25}  # times transformers at batch 1
COMPILE_PART = 0.5  # of all the time, unless --compile says otherwise


class Peer:
    """A run of transformers: compiles from the beginning, measures when it is told to."""

    def __init__(self, bench, key, folder, *flags):
        self.key, self.name = key, "transformers, " + key
        self.lines, self.ready, self.done = [], threading.Event(), threading.Event()
        self.p = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "peer_transformers.py"), folder, "--hold", "--device",
             bench.a.device.split(":")[0], *flags],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "2"})  # several compile at once
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.p.stdout:
            self.lines.append(line)
            if line.startswith('{"ready"'):
                self.ready.set()
            elif line.startswith("{"):
                self.done.set()  # whether or not it ends well
        self.ready.set()  # it has ended
        self.done.set()

    def stop(self):
        """With the compilers that it has started."""
        try:
            os.killpg(self.p.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.p.wait()

    def result(self, seconds):
        """The JSON of its result; or None, and why."""
        try:
            self.p.stdin.write("go\n")
            self.p.stdin.flush()
        except OSError:
            pass  # it has ended: what it said tells why
        if not self.done.wait(max(seconds, 0.1)):
            return None, "measuring took too long"
        found = [json.loads(x) for x in self.lines if x.startswith("{") and not x.startswith('{"ready"')]
        return (found[-1], "") if found else (None, "".join(self.lines).strip()[-300:] or "it said nothing")


class Bench:
    def __init__(self, a):
        self.a, self.begin = a, time.monotonic()
        self.peers, self.steps, self.rates, self.loads, self.best = [], {}, {}, {}, {}

    def left(self):
        return self.begin + self.a.seconds - time.monotonic()

    def say(self, text):
        print("[%3.0f s] %s" % (time.monotonic() - self.begin, text), flush=True)

    def row(self, what, of, us, ratio=None, text=""):
        self.say("%-13s %-50s %s%s" % (what, of, text or "%12.1f us" % us, "" if ratio is None else "  %.2f" % ratio))
        if self.a.csv:
            with open(self.a.csv, "a") as f:
                f.write('"%s","%s",%.3f,0,0,%s\n' % (what, of, us, "%.4f" % ratio if ratio else 0))

    # ---- transformers ----------------------------------------------------------------------------------------

    def start_peers(self, shapes, folders, trace):
        first = shapes[0]
        for shape in shapes:
            self.peers.append(Peer(self, "%s, batch 1" % shape, folders[shape], "--batch", "1", "--context", str(self.a.context)))
        for batch in self.a.fixed.split(",") if self.a.fixed else ():
            for name, flags in (("equal", ()), ("mixed", ("--trace", trace))):
                self.peers.append(Peer(self, "%s, %s, in batches of %s" % (first, name, batch), folders[first], "--serve",
                                       "--batch", batch, "--requests", str(self.a.requests), *flags))

    def wait_for_peers(self):
        until = self.begin + self.a.compile
        for p in self.peers:
            p.ready.wait(max(until - time.monotonic(), 0))
        ready = [p for p in self.peers if p.ready.is_set()]
        for p in self.peers:
            if p not in ready:
                p.stop()
                self.say("LEFT OUT, not compiled in time: %s" % p.name)
        self.peers = ready

    def measure_peers(self):
        """One after the other; each gives its memory back when it ends."""
        keep = (self.a.seconds - self.a.compile) * 0.6  # for the engine
        for p in self.peers:
            got, why = p.result(min(60, self.left() - keep)) if self.left() > keep else (None, "no time")
            p.stop()
            if not got:
                self.say("LEFT OUT: %s: %s" % (p.name, why))
                continue
            us = got["ms"] * 1e3 if "ms" in got else got["seconds"] * 1e6
            self.row("transformers", p.key, us, text="%12.1f us %10.1f tokens/s" % (us, got["tokens_s"]))
            self.best[p.key] = got
        self.peers = []

    # ---- the engine ------------------------------------------------------------------------------------------

    def turbo(self, name, shape, kind, what, folder, *flags):
        """Its points, or []: said why. kind: how the weights are stored."""
        found = self.turbo_json(name, what, folder, *flags)
        if found:
            self.loads.setdefault((shape, kind), []).append(found["weights_seconds"])
        return found["points"] if found else []

    def turbo_json(self, name, what, folder, *flags, **env):
        if self.left() < 4:
            self.say("LEFT OUT, no time: %s" % name)
            return None
        argv = [self.a.turbo, "bench", what, folder, "--device", self.a.device, "--log-level", "error", "--json", "-", *flags]
        try:
            p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=self.left(),
                               env={**os.environ, **env})
        except subprocess.TimeoutExpired:
            self.say("LEFT OUT, took too long: %s" % name)
            return None
        if p.returncode:
            self.say("FAILED: %s: %s" % (name, (p.stderr or p.stdout).strip()[-300:]))
            return None
        return json.loads(p.stdout)

    def gap(self, shape, folder):
        """Between recorded steps, by the clock of the card."""
        found = self.turbo_json("step gap", "decode", folder, "--batch", "1", "--context", str(self.a.context), "--steps", "256",
                                "--rounds", "1", TURBO_CUDA_GAPS="1")
        us = found["step_gap_us"] if found else 0
        if us:  # a CPU records no steps
            self.row("gap", "%s, batch 1, between two steps (goal: at most 15 us)" % shape, us, text="%.1f us" % us)

    def decode(self, shape, folder, batches, *flags):
        kind = flags[1] if flags[:1] == ("--quantize",) else "bf16"
        for p in self.turbo("decode %s %s" % (shape, " ".join(flags)), shape, kind, "decode", folder, "--batch", batches,
                            "--context", str(self.a.context), "--rounds", "1", "--max-batch-size", "256", *flags):
            of = "%s, %s, batch %d, context %d" % (shape, " ".join(flags) or "bf16", p["batch"], self.a.context)
            self.row("engine", of, p["seconds"] * 1e6, text="%12.1f us %10.1f tokens/s" % (p["seconds"] * 1e6, p["tokens_per_s"]))
            if not flags:
                self.steps[shape, p["batch"]] = p["seconds"] * 1e3

    def many(self, shape, folder, trace):
        """Tokens a second of both lists, with the defaults and with larger steps."""
        lists = (("equal", ("--input", "128", "--output", "128")), ("mixed", ("--trace", trace)))
        larger = ("--max-batch-size", "512", "--max-prefill-token-num", "8192")
        for steps, more in (("defaults", ()), ("batch 512, step 8192", larger)):
            for name, flags in lists:
                for p in self.turbo("offline %s %s" % (shape, name), shape, "bf16", "offline", folder, "--limit",
                                    str(self.a.requests), "--rounds", "2", *flags, *more):
                    rate = p["tokens_out_per_s"]
                    self.row("engine", "%s, %d requests, %s, %s" % (shape, self.a.requests, name, steps), p["seconds"] * 1e6,
                             text="%12.1f us %10.1f tokens/s" % (p["seconds"] * 1e6, rate))
                    self.rates[name, steps] = rate

    def load(self, shape, folder, kind, where=""):
        """Only loads: the shortest run there is."""
        flags = () if kind == "bf16" else ("--quantize", kind)
        self.turbo("load %s %s%s" % (shape, kind, where), shape, kind + where, "decode", folder, "--batch", "1", "--context", "16", "--steps",
                   "4", "--rounds", "1", *flags)

    def pinned(self):
        """Bytes a second of copies of pinned memory, or None."""
        if not self.a.device.startswith("cuda"):
            return None
        try:
            p = subprocess.run([sys.executable, os.path.join(HERE, "peer_transformers.py"), "--pinned"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=max(self.left(), 1))
            return json.loads(p.stdout)["pinned_bytes_s"]
        except (subprocess.TimeoutExpired, ValueError) as e:
            self.say("LEFT OUT: share of pinned copies: %s" % e)
            return None

    # ---- what they are to each other -------------------------------------------------------------------------

    def ratios(self, shapes):
        for shape in shapes:
            goal = GOALS.get(shape, 1)
            ours, theirs = self.steps.get((shape, 1)), self.best.get("%s, batch 1" % shape)
            if ours and theirs:
                self.row("ratio", "%s, batch 1: transformers / engine (goal %g)" % (shape, goal), 0, theirs["ms"] / ours,
                         text="%.3f ms / %.3f ms" % (theirs["ms"], ours))
        for name in ("equal", "mixed"):
            theirs = [(p["tokens_s"], key) for key, p in self.best.items() if ", %s, in batches" % name in key]
            for (what, steps), rate in sorted(self.rates.items()):
                if what == name and theirs:
                    best, key = max(theirs)
                    self.row("ratio", "%d requests, %s, %s: engine / transformers (goal 4)" % (self.a.requests, name, steps), 0,
                             rate / best, text="%.0f / %.0f (%s)" % (rate, best, key.split(", ")[-1]))

    def load_shares(self, rate):
        for (shape, kind), seconds in sorted(self.loads.items()):
            n = sum(2 * d[0] * (d[1] if len(d) > 1 else 1) for _, d in tensors(shape))
            s = statistics.median(seconds)
            of = "%s, weights to %s, %d starts%s" % (shape, kind, len(seconds),
                                                     ": share of pinned copies (goal 0.8)" if rate else "")
            self.row("load", of, s * 1e6, n / s / rate if rate else None,
                     text="%.4f s (%.4f..%.4f) %6.2f GB/s" % (s, min(seconds), max(seconds), n / s * 1e-9))


def room(n):
    """A folder for n bytes, in memory where there is room."""
    for at in ("/dev/shm", None):
        if at is None or os.path.isdir(at) and shutil.disk_usage(at).free > 1.2 * n:
            return tempfile.mkdtemp(prefix="gpu-bench-", dir=at)


def load_from_disk(b, shape, folder):
    """As models are kept; the copy leaves the files in the page cache."""
    at = tempfile.mkdtemp(prefix="gpu-bench-")
    try:
        shutil.copytree(folder, at, dirs_exist_ok=True)
        for _ in range(3):
            b.load(shape, at, "bf16", ", files on a disk")
    except OSError as e:
        b.say("LEFT OUT: loading files on a disk: %s" % e)
    finally:
        shutil.rmtree(at, ignore_errors=True)


def run(b, work, shapes):
    a = b.a
    folders, trace = {}, os.path.join(work, "mixed.csv")
    write_trace(trace, a.requests)
    for shape in shapes:
        folders[shape] = os.path.join(work, shape)
        os.mkdir(folders[shape])
        write_model(shape, folders[shape])
        b.say("random weights of %s" % shape)
    if not a.no_peers and not a.only_load:
        b.start_peers(shapes, folders, trace)
        b.wait_for_peers()
        b.say("%d runs of transformers are compiled" % len(b.peers))
        b.measure_peers()
    first = shapes[0]
    if not a.only_load:
        for shape in shapes:
            b.decode(shape, folders[shape], a.batches)
        b.gap(first, folders[first])
        b.many(first, folders[first], trace)
        b.ratios(shapes)
    load_from_disk(b, first, folders[first])
    for shape in shapes:
        for _ in range(3 - len(b.loads.get((shape, "bf16"), []))):
            b.load(shape, folders[shape], "bf16")
        for kind in ("int8", "int4"):
            b.load(shape, folders[shape], kind)
    b.load_shares(b.pinned())
    for flags in () if a.only_load else (("--quant-policy", "8"), ("--quant-policy", "4"), ("--quantize", "int4")):
        for shape in shapes:
            b.decode(shape, folders[shape], ",".join(x for x in a.batches.split(",") if x in ("1", "64")), *flags)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--turbo", default=os.environ.get("TURBO", "./turbo"))
    p.add_argument("--csv", default="")
    p.add_argument("--seconds", type=float, default=300)
    p.add_argument("--compile", type=float, default=0, metavar="SECONDS",
                   help="a run of transformers that has not compiled by then is left out")
    p.add_argument("--shapes", default="1.8b,7b")
    p.add_argument("--batches", default="1,8,64,256")
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--fixed", default="256,128,64")
    p.add_argument("--requests", type=int, default=512)
    p.add_argument("--device", default="cuda:0")
    p.add_argument("--no-peers", action="store_true")
    p.add_argument("--only-load", action="store_true")
    a = p.parse_args()
    a.compile = a.compile or a.seconds * COMPILE_PART
    shapes = a.shapes.split(",")
    unknown = [s for s in shapes if s not in SHAPES]
    if unknown:
        p.error("no shape %s; there are %s" % (unknown[0], ", ".join(SHAPES)))
    if not importlib.util.find_spec("numpy"):
        sys.exit("SKIP: the engine beside transformers: no numpy here, which makes the weights")
    n = sum(2 * d[0] * (d[1] if len(d) > 1 else 1) for s in shapes for _, d in tensors(s))
    b, work = Bench(a), room(n)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        run(b, work, shapes)
    finally:
        for p in b.peers:
            p.stop()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
