#!/usr/bin/env python3
"""What a streamed token costs the server, and what 256 streams reach of the speed without one.

The null model answers, a client in C reads (tests/bench/streams.c). CPU time is that of each thread of
turbod as the kernel counts it (/proc/PID/task/*/schedstat), from before the first request to behind the
last event. The engine's share is what its thread used, its model's fill of the logits included. Beside it
stands what the kernel alone takes for one send() of a token's bytes over loopback, its way to the reader
included: nothing in user space can lower that.

    make bench-sse          or: sse.py [STREAMS [TOKENS]]
"""
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "http"))
import kit  # noqa: E402

BUILD = os.environ.get("top_builddir", os.path.join(HERE, "..", "..", "build"))
CLIENT = os.path.join(BUILD, "tests", "bench", "streams")


def cpu(pid):
    """Nanoseconds on a CPU by thread name."""
    out = {}
    for task in os.listdir("/proc/%d/task" % pid):
        base = "/proc/%d/task/%s/" % (pid, task)
        with open(base + "comm") as f:
            name = f.read().strip()
        with open(base + "schedstat") as f:
            out[name] = out.get(name, 0) + int(f.read().split()[0])
    return out


def user(pid):
    """Microseconds in user space, all threads but the engine's; ticks, so good over seconds only."""
    total = 0
    for task in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/stat" % (pid, task)) as f:
            head, _, rest = f.read().rpartition(")")
        if "turbo-engine" not in head:
            total += int(rest.split()[11]) * 1e6 / os.sysconf("SC_CLK_TCK")
    return total


def run(server, streams, tokens):
    before, user_before = cpu(server.process.pid), user(server.process.pid)
    text = subprocess.run([CLIENT, str(server.port), str(streams), str(tokens)], check=True,
                          stdout=subprocess.PIPE).stdout
    after = cpu(server.process.pid)
    r = json.loads(text)
    r["user"] = user(server.process.pid) - user_before
    r["cpu"] = {k: (after[k] - before.get(k, 0)) * 1e-3 for k in after}
    return r


PROMPT_TOKENS = 24  # about what the client sends
ENGINE = {"max_batch_size": 256, "max_prefill_token_num": 8192, "cache_max_entry_count": "256MiB"}


def serve(**keys):
    return kit.Server(model=kit.null_model(**keys), queue_size=2048, **ENGINE)


def offline(streams, tokens, prompt, **keys):
    """Tokens a second of the same engine without a server, all requests queued at once."""
    turbo = os.path.join(os.path.dirname(kit.TURBOD), "turbo")
    flags = [x for k, v in ENGINE.items() for x in ("--" + k.replace("_", "-"), str(v))]
    text = subprocess.run([turbo, "bench", "offline", kit.null_model(**keys), "--threads", "1", "--limit",
                           str(streams), "--input", str(prompt), "--output", str(tokens), "--rounds", "1",
                           "--json", "-", *flags], check=True, stdout=subprocess.PIPE).stdout
    return json.loads(text)["points"][0]["tokens_out_per_s"]


def main():
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 300
    print("cost of a token, %d tokens a stream, microseconds of CPU by thread" % tokens)
    for n in (1, 64, streams):
        # A step that lasts: every token is an event of its own, nothing is coalesced.
        s = serve(null_step_us=2000 if n == 1 else 10000, null_sleep=True)
        run(s, n, 20)
        r = run(s, n, tokens)
        total = n * tokens
        parts = {k: v / total for k, v in r["cpu"].items() if v / total > 0.005}
        engine = parts.get("turbo-engine", 0)
        size = r["bytes"] // r["events"]
        bare = float(subprocess.run([CLIENT, "send", str(size)], check=True,
                                    stdout=subprocess.PIPE).stdout)
        print("  %4d streams: %5.2f without the engine thread (%.2f in user space; one bare send of %d "
              "bytes is %.2f), %5.2f with it; %.2f events a token; %s"
              % (n, sum(parts.values()) - engine, r["user"] / total, size, bare, sum(parts.values()),
                 r["events"] / total, ", ".join("%s %.2f" % kv for kv in sorted(parts.items()))))
        s.stop()
    print("throughput of %d streams against the same engine without a server, step 20 ms" % streams)
    for sleep in (True, False):
        keys = {"null_step_us": 20000, "null_sleep": sleep}
        s = serve(**keys)
        run(s, streams, 20)
        r = run(s, streams, tokens)
        s.stop()
        rate, own = streams * tokens / r["wall_s"], offline(streams, tokens, PROMPT_TOKENS, **keys)
        decode = streams * (tokens - 1) / (r["wall_s"] - r["last_first_s"])
        print("  step %s: %.0f tokens/s of %.0f, %.3f with the prompts, %.3f while decoding; the steps alone "
              "would give %.0f" % ("asleep" if sleep else "spins ", rate, own, rate / own, decode / own,
                                   streams / 0.02))


main()
