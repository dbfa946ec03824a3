"""Start, drain, stop, log."""
import json
import re
import signal
import socket
import threading
import time

from kit import Server, until


def test_port_in_use():
    a = Server()
    b = Server(wait=False, port=a.port)
    assert b.process.wait(10) == 74
    log = b.read_log()
    assert "in use" in log and str(a.port) in log
    assert a.get("/health").status == 200
    assert a.stop() == 0


def collect(server, out, lock, **fields):
    s = server.open_stream(**fields)
    data = b""
    try:
        while True:
            x = s.recv(65536)
            if not x:
                break
            data += x
            if data.endswith(b"0\r\n\r\n"):
                break
    except OSError:
        pass
    s.close()
    with lock:
        out.append(data)


def streams(server, n, **fields):
    out, lock = [], threading.Lock()
    threads = [threading.Thread(target=collect, args=(server, out, lock), kwargs=fields)
               for _ in range(n)]
    [t.start() for t in threads]
    until(lambda: server.gauge("num_requests_running") >= n)
    return threads, out


def test_drain_lets_answers_finish():
    s = Server(isa="scalar")
    threads, out = streams(s, 6, max_tokens=40)
    s.process.send_signal(signal.SIGTERM)
    [t.join() for t in threads]
    assert len(out) == 6 and all(b'"finish_reason":"length"' in d and b"data: [DONE]" in d for d in out)
    assert s.process.wait(10) == 0


def test_drain_ends_what_is_late():
    s = Server(isa="scalar", drain_ms=300)
    threads, out = streams(s, 20, max_tokens=900)
    blocking = []
    t = threading.Thread(target=lambda: blocking.append(s.post("/v1/completions", {
        "prompt": "a", "max_tokens": 900, "ignore_eos": True})))
    t.start()
    until(lambda: s.gauge("num_requests_running") >= 21)
    kept = s.connect()
    kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert kept.recv(4096).startswith(b"HTTP/1.1 200")
    t0 = time.monotonic()
    s.process.send_signal(signal.SIGTERM)
    until(lambda: "stopping" in s.read_log())
    time.sleep(0.05)
    kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"draining" in kept.recv(4096)
    try:
        socket.create_connection(("127.0.0.1", s.port), 2).close()
        raise AssertionError("a draining server took a connection")
    except ConnectionRefusedError:
        pass
    [x.join() for x in threads]
    t.join()
    assert s.process.wait(10) == 0 and time.monotonic() - t0 < 6
    for data in out:
        assert b'"code":"shutting_down"' in data and b"data: [DONE]\n\n" in data
    assert blocking[0].status == 503 and blocking[0].code == "shutting_down"


def test_second_signal_stops_at_once():
    s = Server(isa="scalar", drain_ms=60000)
    threads, out = streams(s, 3, max_tokens=900)
    s.process.send_signal(signal.SIGTERM)
    until(lambda: "stopping" in s.read_log())
    t0 = time.monotonic()
    assert s.stop() == 0 and time.monotonic() - t0 < 6
    [t.join() for t in threads]
    assert all(b'"code":"shutting_down"' in d for d in out)


def test_many_reloads_under_load():
    s = Server()
    bad, stop = [], threading.Event()

    def run():
        while not stop.is_set():
            r = s.post("/v1/completions", {"prompt": "a", "max_tokens": 8, "temperature": 0})
            if r.status != 200:
                bad.append(r.status)

    threads = [threading.Thread(target=run) for _ in range(3)]
    [t.start() for t in threads]
    for _ in range(60):
        s.process.send_signal(signal.SIGHUP)
        time.sleep(0.01)
    stop.set()
    [t.join() for t in threads]
    assert not bad and s.stop() == 0


def test_log_lines_cannot_be_forged():
    """F59: one line a request, no control bytes, no bodies."""
    s = Server()
    marker = "secret-marker-%d" % time.monotonic_ns()
    s.get("/a%0d%0aforged", headers={"User-Agent": "x\x1b[31m"})
    s.get("/" + "a" * 4000)
    s.get("/?key=" + marker)
    s.post("/v1/completions", {"prompt": marker, "max_tokens": 2, "user": marker})
    s.post("/v1/chat/completions", {"model": marker + "\nforged", "messages": []})
    s.post("/v1/completions", ('{"prompt": "%s"' % marker).encode())
    s.raw(b"GET /\x1b[2J HTTP/1.1\r\nHost: x\r\n\r\n")
    assert s.stop() == 0
    log = s.read_log()
    assert marker not in log and "\x1b" not in log
    for line in log.splitlines():
        assert re.match(r"20\d\d-\d\d-\d\dT[\d:.]+Z (error|warn |info |debug) ", line), line
        assert len(line) < 1200
    assert len(re.findall(r"^.* id=req-", log, re.M)) == 5
    assert len(re.findall(r"^.* id=- .*refused head 400", log, re.M)) == 2


def test_loading_and_failed_model(tmp_path):
    s = Server(wait=False, model=str(tmp_path))
    assert s.process.wait(20) in (65, 66)
    assert "config.json" in s.read_log()


def test_ids_only_without_template(tmp_path):
    """A folder without a tokenizer serves token ids and says what it cannot do."""
    import os
    import shutil

    from kit import MODEL
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(os.path.join(MODEL, name), str(tmp_path / name))
    s = Server(model=str(tmp_path))
    r = s.ok("/v1/completions", {"prompt": [1, 5, 6], "max_tokens": 3, "return_token_ids": True,
                                 "temperature": 0, "logprobs": 1, "ignore_eos": True})
    assert len(r["choices"][0]["token_ids"]) == 3
    r = s.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
    assert r.status == 400 and r.code == "no_chat_template"
    for body in ({"prompt": "text"}, {"prompt": [1], "stop": "a"}, {"prompt": [1], "bad_words": ["a"]}):
        assert s.post("/v1/completions", body).code == "unsupported_value", body
    assert s.post("/detokenize", {"tokens": [1]}).status == 400
    assert s.stop() == 0
