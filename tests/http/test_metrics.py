"""/metrics: complete, in the format, true; the Grafana board asks for nothing else."""
import json
import os
import re
import socket
import time

import pytest

import prom
from kit import SOURCE, Server, null_model, reset, until

CORE = {
    "num_requests_running": "gauge", "num_requests_waiting": "gauge", "kv_cache_usage_perc": "gauge",
    "prefix_cache_queries_total": "counter", "prefix_cache_hits_total": "counter",
    "prompt_tokens_total": "counter", "generation_tokens_total": "counter",
    "num_preemptions_total": "counter", "request_success_total": "counter",
    "time_to_first_token_seconds": "histogram", "inter_token_latency_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram", "request_queue_time_seconds": "histogram",
    "iteration_tokens_total": "histogram",
}
OURS = {"client_disconnects_total": "counter", "lua_policy_seconds": "summary",
        "lua_errors_total": "counter", "alloc_bytes": "gauge", "model_load_seconds": "gauge"}
HARD_NAME = 'a "quoted" \\ name, {so="to"} speak, \u4e2d'

BAD = b"-- fails on demand\nturbo.policy { args = {\"how\"}, request = function(req)\n" \
      b"    if req.args.how == \"fail\" then error(\"no\") end\n" \
      b"    if req.args.how == \"reject\" then req:reject(\"not today\") end\nend }\n"


@pytest.fixture(scope="module")
def exposed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    (folder / "moody.lua").write_bytes(BAD)
    s = Server(model_name=HARD_NAME, metrics_compat="vllm", policies=str(folder))
    yield s
    assert s.stop() == 0


def page(server):
    r = server.get("/metrics")
    assert r.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return prom.parse(r.body)


def value(families, name, **labels):
    f = families[name]
    return sum(v for s, l, v in f.samples
               if s == name and all(l.get(k) == w for k, w in labels.items()))


def test_the_parser_refuses_what_is_wrong():
    good = b'# HELP a_total x\n# TYPE a_total counter\na_total{b="c\\n\\"\\\\"} 1\n'
    assert prom.parse(good)["a_total"].samples == [("a_total", {"b": 'c\n"\\'}, 1.0)]
    for old, new in ((b"\\n", b"\\t"), (b" 1\n", b" 1"), (b" 1\n", b" x\n"), (b"counter", b"number"),
                     (b"# TYPE a_total counter\n", b""), (b'{b="c', b'{b="c",b="c'),
                     (b" 1\n", b" -1\n"), (b" 1\n", b" 1\n" + good[good.index(b"a_total{"):])):
        with pytest.raises((AssertionError, IndexError)):
            prom.parse(good.replace(old, new, 1))


def test_every_series_is_there(exposed):
    exposed.complete("a", max_tokens=3)
    families = page(exposed)
    for prefix, rows in (("turbo:", {**CORE, **OURS}), ("vllm:", CORE)):
        for name, kind in rows.items():
            assert families[prefix + name].type == kind, prefix + name
    for name, f in families.items():
        for _, labels, _ in f.samples:
            if prefix_of(name) in ("turbo:", "vllm:") and name[name.index(":") + 1:] in CORE:
                assert labels["model_name"] == HARD_NAME
    itl = families["turbo:inter_token_latency_seconds"]
    assert min(float(l["le"]) for s, l, _ in itl.samples if s.endswith("_bucket")) == 0.0005
    assert {l["stage"] for _, l, _ in families["turbo:model_load_seconds"].samples} == {
        "files", "device", "weights", "workspace", "kv", "rest"}
    assert {l["phase"] for _, l, _ in families["turbo:client_disconnects_total"].samples} == {
        "body", "queue", "prefill", "decode", "send"}
    assert {l["finished_reason"] for _, l, _ in families["turbo:request_success_total"].samples} == {
        "stop", "length", "abort", "error"}
    assert "session" not in " ".join(f.help for f in families.values())


def prefix_of(name):
    return name[:name.index(":") + 1]


def test_counts_are_true(exposed):
    before = page(exposed)
    r = exposed.complete("one two three", max_tokens=7, ignore_eos=True, cache_salt="fresh")
    after = page(exposed)
    for prefix in ("turbo:", "vllm:"):
        def grown(name, **labels):
            return value(after, prefix + name, **labels) - value(before, prefix + name, **labels)

        def observed(name, part):
            return sum(v * (1 if f is after else -1) for f in (after, before)
                       for s, _, v in f[prefix + name].samples if s == prefix + name + part)
        n = r["usage"]["prompt_tokens"]
        assert grown("generation_tokens_total") == 7 and grown("prompt_tokens_total") == n
        assert grown("prefix_cache_queries_total") == n and grown("prefix_cache_hits_total") == 0
        assert grown("request_success_total", finished_reason="length") == 1
        assert observed("time_to_first_token_seconds", "_count") == 1
        assert observed("inter_token_latency_seconds", "_count") == 6
        assert observed("e2e_request_latency_seconds", "_count") == 1
        assert observed("request_queue_time_seconds", "_count") == 1
        assert observed("iteration_tokens_total", "_sum") == n + 6
    assert value(after, "turbo:prefill_tokens_total") - value(before, "turbo:prefill_tokens_total") == n


def test_compat_is_off_by_default(server):
    assert not [n for n in page(server) if not n.startswith("turbo:")]


def test_policies_are_counted(exposed):
    def runs():
        f = page(exposed)
        return (value_of(f, "turbo:lua_policy_seconds", "_count"), value(f, "turbo:lua_errors_total"))

    def value_of(f, name, suffix):
        return sum(v for s, l, v in f[name].samples if s == name + suffix and l["policy"] == "moody")

    n, errors = runs()
    body = {"prompt": "a", "max_tokens": 1, "policy": "moody"}
    assert exposed.post("/v1/completions", body).status == 200
    assert runs() == (n + 1, errors)
    assert exposed.post("/v1/completions", {**body, "policy_args": {"how": "fail"}}).status == 500
    assert runs() == (n + 2, errors + 1)
    assert exposed.post("/v1/completions", {**body, "policy_args": {"how": "reject"}}).status == 400
    assert exposed.post("/v1/completions", {**body, "policy_args": {"what": 1}}).status == 400
    assert runs() == (n + 4, errors + 1)


def test_disconnects_by_phase():
    """One place in the batch and slow steps: where each client is when it leaves is certain."""
    s = Server(model=null_model(null_step_us=300000, null_sleep=True), max_batch_size=1,
               max_prefill_token_num=16)

    def left():
        f = page(s)
        return {l["phase"]: v for _, l, v in f["turbo:client_disconnects_total"].samples}

    busy = s.open_stream(max_tokens=900)
    until(lambda: b"data:" in busy.recv(4096))
    waiting = s.open_stream()
    until(lambda: s.gauge("num_requests_waiting") == 1)
    reset(waiting)
    until(lambda: left()["queue"] == 1)
    reset(busy)
    until(lambda: left()["decode"] == 1)
    started = s.gauge("prompt_tokens_total")
    long = s.open_stream(prompt=[5] * 400)
    until(lambda: s.gauge("prompt_tokens_total") == started + 400)
    reset(long)
    until(lambda: left()["prefill"] == 1)
    half = s.connect()
    half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                 b"Content-Length: 100\r\n\r\n{")
    time.sleep(0.1)
    reset(half)
    until(lambda: left()["body"] == 1)
    assert left() == {"body": 1, "queue": 1, "prefill": 1, "decode": 1, "send": 0}
    assert s.stop() == 0


def test_left_while_the_answer_is_sent(server):
    """The answer is whole and larger than what the socket holds; the client has read nothing of it."""
    before = value(page(server), "turbo:client_disconnects_total", phase="send")
    s = server.open_stream(rcvbuf=2048, n=16, logprobs=20, max_tokens=300, stream=False)
    until(lambda: server.gauge("num_requests_running") == 16)
    until(lambda: server.gauge("num_requests_running") == 0, 60)
    reset(s)
    until(lambda: value(page(server), "turbo:client_disconnects_total", phase="send") == before + 1)


# ---- the board

def board():
    with open(os.path.join(SOURCE, "conf", "grafana", "turbod.json")) as f:
        return json.load(f)


def queries():
    return [t["expr"] for p in board()["panels"] for t in p.get("targets", [])]


def test_board_asks_for_what_exists(exposed):
    families = page(exposed)
    samples = {s for f in families.values() for s, _, _ in f.samples}
    known = {s: set() for s in samples}
    for f in families.values():
        for s, labels, _ in f.samples:
            known[s] |= set(labels)
    used = set()
    for q in queries():
        names = re.findall(r"turbo:\w+", q)
        assert names, q
        for name in names:
            assert name in samples, (name, q)
        used |= set(names)
        for labels in re.findall(r"by \(([^)]*)\)", q):
            for label in labels.replace(" ", "").split(","):
                assert all(label in known[n] for n in names), (label, q)
    for need in ("time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
                 "generation_tokens_total", "num_requests_waiting", "kv_cache_usage_perc",
                 "prefix_cache_hits_total", "num_preemptions_total", "client_disconnects_total"):
        assert "turbo:" + need in used, need


def test_board_is_whole():
    b = board()
    ids = [p["id"] for p in b["panels"]]
    assert len(ids) == len(set(ids)) and b["uid"] and b["title"]
    cells = set()
    for p in b["panels"]:
        g = p["gridPos"]
        assert p["title"] and g["x"] + g["w"] <= 24
        for x in range(g["x"], g["x"] + g["w"]):
            for y in range(g["y"], g["y"] + g["h"]):
                assert (x, y) not in cells, "panels overlap: " + p["title"]
                cells.add((x, y))
        for t in p.get("targets", []):
            assert t["datasource"]["uid"] == "${datasource}" and t["expr"].count("(") == t["expr"].count(")")
