"""Engines as children that stay loaded and answer lines: turbod (`turbo bench turns`), llama.cpp
(llama_child.py), transformers (hf_child.py). What they were told and how busy the machine was beside them."""
import json
import os
import select
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TICK = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    pass


class Child:
    def __init__(self, name, argv, log, timeout=900):
        self.name, self.timeout, self.log = name, timeout, log
        with open(log, "ab") as f:
            f.write((" ".join(argv) + "\n").encode())
            f.flush()
            self.p = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=f)
        try:
            self.facts = self.read()
        except Failed:
            self.stop()
            raise

    def read(self):
        if not select.select([self.p.stdout], [], [], self.timeout)[0]:
            raise Failed("%s: no answer within %d s" % (self.name, self.timeout))
        line = self.p.stdout.readline()
        if not line:
            raise Failed("%s ended (exit status %s); see %s" % (self.name, self.p.wait(), self.log))
        answer = json.loads(line)
        if "error" in answer:
            raise Failed("%s: %s" % (self.name, answer["error"]))
        return answer

    def ask(self, *words):
        self.p.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self.p.stdin.flush()
        return self.read()

    def cpu(self):
        """Seconds on a CPU so far."""
        with open("/proc/%d/stat" % self.p.pid) as f:
            fields = f.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def stop(self):
        try:
            self.p.stdin.close()
            self.p.wait(20)
        except (OSError, subprocess.TimeoutExpired):
            self.p.kill()
            self.p.wait()


def turbod(folder, flags, tokens, threads, log):
    turbo = os.environ["TURBO"]
    return Child("turbod", [turbo, "bench", "turns", folder, "--tokens", str(tokens),
                            "--max-prefill-token-num", "512", "--max-batch-size", "16",
                            "--threads", str(threads), *flags], log)


def llama(python, gguf, threads, seqs, tokens, kv, log, state=None):
    return Child("llama.cpp", [python, os.path.join(HERE, "llama_child.py"), gguf, str(threads),
                               str(seqs), str(tokens), kv] + ([state] if state else []), log)


def transformers(python, folder, threads, kind, log):
    return Child("transformers", [python, os.path.join(HERE, "hf_child.py"), folder, str(threads),
                                  kind], log)


def stat():
    """Busy and stolen seconds of all CPUs."""
    with open("/proc/stat") as f:
        v = [int(x) / TICK for x in f.readline().split()[1:]]
    user, nice, system, _, _, irq, soft, steal = v[:8]
    return user + nice + system + irq + soft, steal


class Watch:
    """The share of the machine's CPU time that others took: foreign processes and the hypervisor."""

    def __init__(self, children):
        self.children = children
        self.start()

    def start(self):
        self.t, (self.busy, self.steal) = time.monotonic(), stat()
        self.own = sum(c.cpu() for c in self.children)

    def foreign(self):
        dt = time.monotonic() - self.t
        busy, steal = stat()
        own = sum(c.cpu() for c in self.children)
        total = dt * os.cpu_count()
        return max(0.0, (busy - self.busy - (own - self.own)) + (steal - self.steal)) / total
