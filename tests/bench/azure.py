#!/usr/bin/env python3
"""The Azure conversation trace on the demo model, at 1x and 4x its rate: make bench-azure

Runs turbo bench serve RUNS times at each speed, in turn, against a fresh turbod, and prints a Markdown row
a run and the median of each speed. The load average before each run tells whether the machine was quiet: on
two busy cores the figures are those of the other programs. Environment: TRACE, SPEEDS, RUNS, SECONDS, FLAGS
(of turbod, "key=value ...")."""
import json
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "http"))
from kit import TURBOD, Server  # noqa: E402

TURBO = os.environ.get("TURBO") or os.path.join(os.path.dirname(TURBOD), "turbo")
TRACE = os.environ.get("TRACE") or os.path.join(
    os.environ.get("TURBO_SHARED", ""), "data/text/traces/azure-2023/AzureLLMInferenceTrace_conv.csv")


def once(speed, seconds, flags):
    load = os.getloadavg()[0]
    s = Server(**{"threads": 0, "cache_max_entry_count": "512MiB", "queue_timeout_ms": 600000, **flags})
    command = ["turbo", "bench", "serve", "http://127.0.0.1:%d" % s.port, "--trace", TRACE, "--speed",
               str(speed), "--seconds", str(seconds), "--ignore-eos", "--continuous-usage"]
    with tempfile.NamedTemporaryFile(suffix=".json") as f:
        subprocess.run([TURBO] + command[1:] + ["--json", f.name], check=True,
                       stdout=subprocess.DEVNULL)
        r = json.load(f)
    s.stop()
    return r, load, " ".join(command)


def main():
    if not os.access(TRACE, os.R_OK):
        sys.exit("SKIP: no trace: %s; set TRACE or TURBO_SHARED" % TRACE)
    runs, seconds = int(os.environ.get("RUNS", "3")), float(os.environ.get("SECONDS", "60"))
    speeds = os.environ.get("SPEEDS", "1 4").split()
    flags = dict(f.split("=", 1) for f in os.environ.get("FLAGS", "").split())
    ratios = {speed: [] for speed in speeds}
    command = ""
    print("| speed | load before | requests ok | clipped prompts | in, out tokens/s | TTFT p50, p99 ms | "
          "ITL p50, p99 ms | p99/p50 | late sends p99 ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for _ in range(runs):
        for speed in speeds:
            r, load, command = once(speed, seconds, flags)
            itl, ttft = r["itl_ms"], r["ttft_ms"]
            ratios[speed].append(itl["p99"] / itl["p50"])
            print("| %sx | %.1f | %d of %d | %d | %.0f, %.0f | %.1f, %.1f | %.2f, %.2f | %.2f | %.2f |" % (
                speed, load, r["outcomes"]["ok"], r["requests_sent"], r["clipped"]["prompts"],
                r["tokens_in_per_s"], r["tokens_out_per_s"], ttft["p50"], ttft["p99"], itl["p50"],
                itl["p99"], ratios[speed][-1], r["client_late_ms"]["p99"]), flush=True)
    for speed in speeds:
        print("%sx: ITL p99 / p50, median of %d: %.2f" % (speed, runs, statistics.median(ratios[speed])))
    print("%s; %s; turbod %s" % (r["client_machine"], r["date"], flags or "with its defaults"))
    print(command)


main()
