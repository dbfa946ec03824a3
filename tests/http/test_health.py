"""/health tells the truth, and the log says what happens without saying what was asked."""
import re
import signal
import threading
import time

import pytest

from kit import Server, fake_card, null_model, until
from test_keys import USER, bearer, write_keys


def health(server):
    r = server.get("/health")
    return r.status, r.json()


def test_loading_tells_the_progress():
    s = Server(wait=False, model=null_model(null_open_ms=700))
    s.wait_port()
    status, body = health(s)
    assert status == 503 and body["status"] == "loading" and 0 <= body["progress"] <= 1
    r = s.get("/health")
    assert r.headers.get("retry-after") == "2" or r.status == 200
    assert s.post("/v1/completions", {"prompt": "a"}).code == "model_loading"
    s.wait_ready()
    until(lambda: health(s) == (200, {"status": "ok"}))
    assert s.stop() == 0


def test_a_hung_step_is_seen_and_its_end_too():
    s = Server(model=null_model(null_hang_step=5, null_hang_ms=13000))
    out = []
    t = threading.Thread(target=lambda: out.append(s.complete("a", max_tokens=8)))
    t.start()
    until(lambda: health(s)[0] == 503)
    status, body = health(s)
    assert status == 503 and body["status"] == "stalled" and body["seconds_since_step"] >= 10
    until(lambda: health(s) == (200, {"status": "ok"}))
    t.join()
    assert out[0]["usage"]["completion_tokens"] == 8
    assert s.stop() == 0


def test_a_step_that_never_ends_does_not_keep_the_process():
    s = Server(model=null_model(null_hang_step=3, null_hang_ms=3600000), drain_ms=200)
    stream = s.open_stream(max_tokens=20)
    until(lambda: b"data:" in stream.recv(4096))
    until(lambda: s.gauge("generation_tokens_total") == 2)
    assert s.stop() == 75
    assert "does not end" in s.read_log()
    rest = b""
    while True:
        more = stream.recv(65536)
        if not more:
            break
        rest += more
    stream.close()
    assert b'"code":"shutting_down"' in rest


def test_an_engine_that_failed_is_not_healthy():
    s = Server(model=null_model(null_fail_step=3))
    r = s.post("/v1/completions", {"prompt": "a", "max_tokens": 8})
    assert r.status == 503 and r.code == "engine_error"
    seen = []
    while True:
        try:
            seen.append(health(s)[1]["status"])
        except OSError:
            break
    assert set(seen) <= {"failed", "draining"}
    assert s.process.wait(20) == 75
    assert "null_fail_step 3" in s.read_log()


def test_a_card_that_breaks_in_a_stream():
    """An error event, no token behind it, 503 for others, and the end of the process with 75."""
    s = Server(model=null_model(), device="cuda", env=fake_card(FAKECUDA_FAIL="cuGraphLaunch:700:700"))
    assert "backend: cuda:0 host run" in s.read_log()
    stream = s.open_stream(max_tokens=900)
    got = b""
    while True:
        more = stream.recv(65536)
        if not more:
            break
        got += more
    stream.close()
    events = got.split(b"data: ")[1:]
    assert b'"code":"engine_error"' in events[-2] and b"[DONE]" in events[-1], got[-500:]
    assert 2 <= len(events) < 702 and b'"finish_reason":"' not in got
    try:
        assert health(s) == (503, {"status": "failed"})
        assert s.post("/v1/completions", {"prompt": "a"}).code == "engine_error"
    except OSError:  # it has ended already
        pass
    assert s.process.wait(20) == 75
    assert "CUDA_ERROR_PLANTED 700" in s.read_log()


def test_an_idle_card_that_breaks_is_noticed():
    s = Server(model=null_model(), device="cuda", env=fake_card(FAKECUDA_FAIL="cuStreamSynchronize:4:719"))
    assert s.process.wait(20) == 75
    assert "the device failed" in s.read_log()


def test_draining():
    s = Server(model=null_model(null_step_us=50000, null_sleep=True))
    stream = s.open_stream(max_tokens=40)
    until(lambda: b"data:" in stream.recv(4096))
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    kept = s.connect()
    kept.sendall(ask)
    assert b'{"status":"ok"}' in kept.recv(4096)
    s.process.send_signal(signal.SIGTERM)
    until(lambda: "stopping" in s.read_log())
    kept.sendall(ask)
    answer = kept.recv(4096)
    assert answer.startswith(b"HTTP/1.1 503") and b'{"status":"draining"}' in answer
    rest = b""
    while b"[DONE]" not in rest:
        rest += stream.recv(65536)
    stream.close()
    kept.close()
    assert s.process.wait(20) == 0


# ---- the log

LINE = re.compile(r"throughput: prompt ([\d.]+) tok/s, generated ([\d.]+) tok/s, running (\d+), "
                  r"waiting (\d+), KV ([\d.]+) %, prefix hits (-|[\d.]+ %)$")


def test_throughput_lines():
    s = Server(model=null_model(null_step_us=20000, null_sleep=True), log_stats_ms=200, max_batch_size=2)
    time.sleep(0.7)
    assert "throughput" not in s.read_log()
    streams = [s.open_stream(max_tokens=60) for _ in range(3)]
    for x in streams:
        until(lambda: b"[DONE]" in x.recv(1 << 20))
        x.close()
    until(lambda: s.gauge("num_requests_running") == 0)
    time.sleep(0.5)
    lines = [x for x in s.read_log().splitlines() if "throughput:" in x]
    time.sleep(0.7)
    assert lines == [x for x in s.read_log().splitlines() if "throughput:" in x]  # idle: silent
    found = [LINE.search(x) for x in lines]
    assert len(found) > 3 and all(found), lines
    assert any(m.group(3) == "2" and m.group(4) == "1" for m in found), lines
    assert any(float(m.group(2)) > 0 and float(m.group(5)) > 0 for m in found)
    assert float(found[0].group(1)) > 0 and found[0].group(6) != "-"
    assert s.stop() == 0


def test_throughput_line_is_on_by_default_and_can_be_switched_off():
    on = Server(model=null_model(null_step_us=20000, null_sleep=True))
    off = Server(model=null_model(null_step_us=20000, null_sleep=True), log_stats_ms=0)
    streams = [(s, s.open_stream(max_tokens=320)) for s in (on, off)]
    until(lambda: "throughput:" in on.read_log())
    for s, x in streams:
        until(lambda: b"[DONE]" in x.recv(1 << 20))
        x.close()
        assert s.stop() == 0
    assert "throughput:" not in off.read_log()


ACCESS = re.compile(r"id=(\S+) key=(\S+) POST (\S+) (\d+) (\d+)ms( cut)? model=\S+ ttft=(-?\d+)ms prompt=(\d+) "
                    r"cached=(\d+) tokens=(\d+) rate=([\d.]+)/s finish=(\w+)$")


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    write_keys(str(keys), "alice " + USER)
    s = Server(api_keys=str(keys), metrics_open=True)
    s.headers = bearer(USER)
    yield s
    s.stop()


def access(server, request_id):
    """The fields of the request's line; there is exactly one."""
    until(lambda: "id=%s " % request_id in server.read_log())
    lines = [x for x in server.read_log().splitlines() if "id=%s " % request_id in x]
    found = ACCESS.search(lines[0])
    assert len(lines) == 1 and found, lines
    names = ("id", "key", "path", "status", "ms", "cut", "ttft", "prompt", "cached", "tokens", "rate",
             "finish")
    return dict(zip(names, found.groups()))


def test_access_line(logged):
    marker = "zanzibar%d" % time.monotonic_ns()
    body = {"prompt": "tell " * 40 + marker, "max_tokens": 9, "ignore_eos": True, "temperature": 0}
    first = logged.ok("/v1/completions", body, headers={"X-Request-Id": "line-1"})
    again = logged.ok("/v1/completions", body, headers={"X-Request-Id": "line-2"})
    for r, name in ((first, "line-1"), (again, "line-2")):
        line = access(logged, name)
        usage = r["usage"]
        assert line["path"] == "/v1/completions" and line["status"] == "200" and not line["cut"]
        assert int(line["prompt"]) == usage["prompt_tokens"]
        assert int(line["tokens"]) == usage["completion_tokens"] == 9
        assert int(line["cached"]) == usage["prompt_tokens_details"]["cached_tokens"]
        assert line["finish"] == "length" and float(line["rate"]) > 0
        assert 0 <= int(line["ttft"]) <= int(line["ms"])
    assert int(access(logged, "line-2")["cached"]) > 0
    logged.ok("/v1/completions", {**body, "stop": ["e"], "max_tokens": 60},
              headers={"X-Request-Id": "line-3"})
    assert access(logged, "line-3")["finish"] in ("stop", "length")
    assert logged.post("/v1/completions", {"prompt": "a", "n": 99},
                       headers={"X-Request-Id": "line-4"}).status == 400
    refused = re.compile(r"id=line-4 key=\S+ POST /v1/completions 400 \d+ms$", re.M)
    until(lambda: refused.search(logged.read_log()))  # the reply may come before its line
    log = logged.read_log()
    assert marker not in log and USER not in log
    assert first["choices"][0]["text"].strip() not in log


def test_access_line_of_a_client_that_left():
    s = Server(model=null_model(null_step_us=20000, null_sleep=True))
    x = s.open_stream(max_tokens=900, request_id="gone")
    until(lambda: x.recv(4096).count(b"data:") or s.gauge("generation_tokens_total") > 3)
    x.close()
    line = access(s, "gone")
    assert line["cut"] and line["finish"] == "client_left" and 0 < int(line["tokens"]) < 900
    assert int(line["prompt"]) > 0
    assert s.stop() == 0
