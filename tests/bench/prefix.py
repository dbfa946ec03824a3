"""What the prefix cache gives and costs: make bench-prefix MODEL=DIR

1. Time to the first token of prompts whose first 90 % were computed for another prompt, against prompts
   that were not, alternating (goal: at most 0.15).
2. Requests a second of prompts that share nothing, cache on against off, alternating (goal: at least 0.99).
   The same by the CPU time of turbod, which a busy machine moves less; THREADS=1 keeps waiting threads out.

Environment: MODEL, LENGTH, ROUNDS, CACHE, REQUESTS, PROMPT, VOCAB, THREADS, WHAT ("first", "throughput").
"""
import os
import random
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "http"))
from kit import MODEL, Server  # noqa: E402

model = os.environ.get("MODEL") or MODEL
length = int(os.environ.get("LENGTH", "4096" if model != MODEL else "1000"))
rounds = int(os.environ.get("ROUNDS", "3"))
rng = random.Random(5)


def start(**flags):
    return Server(model=model, threads=int(os.environ.get("THREADS", "0")), max_prefill_token_num=256, request_timeout_ms=1200000,
                  cache_max_entry_count=os.environ.get("CACHE", "1GiB"), **flags)


def ids(n, vocab):
    return [rng.randrange(5, vocab) for _ in range(n)]


def ttft(s, prompt):
    r = s.ok("/v1/completions", {"prompt": prompt, "max_tokens": 1, "ignore_eos": True}, timeout=1200)
    return r["timings"]["prompt_ms"], r["usage"]["prompt_tokens_details"]["cached_tokens"]


def cpu(s):
    """Seconds on a CPU, all threads of turbod."""
    total = 0
    for task in os.listdir("/proc/%d/task" % s.process.pid):
        with open("/proc/%d/task/%s/schedstat" % (s.process.pid, task)) as f:
            total += int(f.read().split()[0])
    return total * 1e-9


def first_token(vocab):
    s = start()
    shared = ids(length * 9 // 10, vocab)
    ttft(s, shared + ids(length - len(shared), vocab))
    cold, warm = [], []
    for _ in range(rounds):
        cold.append(ttft(s, ids(length, vocab))[0])
        ms, cached = ttft(s, shared + ids(length - len(shared), vocab))
        assert cached == len(shared), cached
        warm.append(ms)
    s.stop()
    a, b = statistics.median(cold), statistics.median(warm)
    print("first token behind %d tokens: cold %.0f ms (%.0f..%.0f), 90 %% cached %.0f ms (%.0f..%.0f): "
          "%.3f" % (length, a, min(cold), max(cold), b, min(warm), max(warm), b / a))


def throughput(vocab):
    servers = [start(), start(enable_prefix_caching=False)]
    n = int(os.environ.get("REQUESTS", "150"))
    prompt_len = int(os.environ.get("PROMPT", "300"))
    rates, work = [[], []], [[], []]
    for turn in range(2 * rounds + 1):
        for k in ((0, 1) if turn % 2 else (1, 0)):
            prompts = [ids(prompt_len, vocab) for _ in range(n)]
            t0, cpu0 = time.perf_counter(), cpu(servers[k])
            for i in range(0, n, 15):  # 15 prompts a request keep the batch full
                servers[k].ok("/v1/completions", {"prompt": prompts[i:i + 15], "max_tokens": 20,
                                                  "ignore_eos": True}, timeout=1200)
            if turn:  # the first warms up
                rates[k].append(n / (time.perf_counter() - t0))
                work[k].append((cpu(servers[k]) - cpu0) / n)
    for s in servers:
        s.stop()
    on, off = (statistics.median(r) for r in rates)
    pairs = [x / y for x, y in zip(*rates)]
    print("nothing shared: %.1f requests/s with the cache, %.1f without: %.3f (pairs %.3f..%.3f)"
          % (on, off, statistics.median(pairs), min(pairs), max(pairs)))
    on, off = (statistics.median(w) for w in work)
    pairs = [y / x for x, y in zip(*work)]
    print("  by CPU time: %.2f ms a request with the cache, %.2f without: %.3f (pairs %.3f..%.3f)"
          % (on * 1e3, off * 1e3, statistics.median(pairs), min(pairs), max(pairs)))


if __name__ == "__main__":
    probe = start()
    size = int(os.environ.get("VOCAB") or
               probe.post("/v1/completions", {"prompt": [2 ** 30]}).json()["error"]["message"]
               .rsplit(" ", 1)[1]) + 1
    probe.stop()
    which = os.environ.get("WHAT", "first throughput").split()
    if "first" in which:
        first_token(size)
    if "throughput" in which:
        throughput(size)
