"""Clients that misbehave: framing, deadlines, vanishing, not reading. Names follow the fault table."""
import json
import os
import socket
import threading
import time

from kit import Server, parse_sse, reset, text_of, until

SMUG = {
    "dup CL": b"Content-Length: 5\r\nContent-Length: 30\r\n\r\nhello",
    "same CL": b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "CL+TE": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE bogus": b"Transfer-Encoding: xchunked\r\nContent-Length: 3\r\n\r\nabc",
    "TE twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE gzip": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "CL -1": b"Content-Length: -1\r\n\r\n", "CL +5": b"Content-Length: +5\r\n\r\nhello",
    "CL list": b"Content-Length: 5, 5\r\n\r\nhello", "CL sp": b"Content-Length : 5\r\n\r\nhello",
    "CL hex": b"Content-Length: 0x5\r\n\r\nhello", "CL none": b"Content-Length: \r\n\r\nhello",
    "fold": b"X: 1\r\n b\r\nContent-Length: 0\r\n\r\n",
    "2 hosts": b"Host: y\r\nContent-Length: 0\r\n\r\n",
    "NUL": b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "bare CR": b"X: a\rb\r\nContent-Length: 0\r\n\r\n",
    "bare LF": b"X: a\nContent-Length: 0\r\n\r\n",
    "no colon": b"Xa\r\nContent-Length: 0\r\n\r\n",
    "chunk wrap": b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nabc",
}


def test_f10_smuggling(server):
    bad = {}
    for name, rest in SMUG.items():
        r = server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                       + rest + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        if len(r) != 1 or not 400 <= r[0] < 500:
            bad[name] = r
    assert not bad, bad


def test_f10_request_lines(server):
    for head in (b"GET /health HTTP/1.1\nHost: x\n\n", b"GET  /health HTTP/1.1\r\nHost: x\r\n\r\n",
                 b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n", b"GET /health\r\n\r\n",
                 b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET health HTTP/1.1\r\nHost: x\r\n\r\n",
                 b"G@T /health HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n",
                 b"GET /health HTTP/1.1\r\nHost: \r\n\r\n", b"GET /a\x80 HTTP/1.1\r\nHost: x\r\n\r\n"):
        assert server.raw(head) == [400], head


def test_second_request_is_checked_too(server):
    """What the raw scan does not see is looked at again, and its connection is closed."""
    first = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    for rest in (SMUG["dup CL"], SMUG["CL+TE"], SMUG["CL sp"], SMUG["2 hosts"], SMUG["TE twice"]):
        r = server.raw(first + b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                       b"Content-Type: application/json\r\n" + rest + first)
        assert r[0] == 200 and len(r) == 2 and 400 <= r[1] < 500, (rest, r)
    body = b'{"prompt":"a","max_tokens":1}'
    post = (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert server.raw(first + post + first) == [200, 200]


def test_f14_refused_from_the_head(server):
    for h, ok in ((b"Content-Length: 999999999", {413}), (b"X: " + b"a" * 65536, {431}),
                  (b"Content-Length: 999999999\r\nExpect: 100-continue", {413, 417}),
                  (b"\r\n".join(b"A%d: b" % i for i in range(500)), {431}),
                  (b"A" * 300 + b": b", {431})):
        t = time.monotonic()
        r = server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                       b"Content-Type: application/json\r\n" + h + b"\r\n\r\n")
        assert r and r[0] in ok and time.monotonic() - t < 2, (h[:40], r)
    assert server.raw(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n") == [414]


def test_body_over_the_limit_is_answered(short):
    assert short.post("/v1/completions", b" " * 70000).status == 413
    body = b"%x\r\n" % 70000 + b" " * 70000 + b"\r\n0\r\n\r\n"
    assert short.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     b"Transfer-Encoding: chunked\r\n\r\n" + body) == [413]


def test_chunked_body(server):
    body = b'{"prompt":"a","max_tokens":1}'
    r = server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                   b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body +
                   b"\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert r == [200]  # and the connection is closed behind it


def test_expect_continue(server):
    body = b'{"prompt":"a","max_tokens":1}'
    s = server.connect()
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
              b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
    assert s.recv(100).startswith(b"HTTP/1.1 100")
    s.sendall(body)
    assert s.recv(100).startswith(b"HTTP/1.1 200")
    s.close()


def closed(s):
    s.settimeout(5)
    try:
        while s.recv(4096):
            pass
        return True
    except socket.timeout:
        return False
    except OSError:
        return True


def test_f08_slowloris(short):
    socks = [short.connect() for _ in range(60)]
    for s in socks:
        s.sendall(b"GET /health HTTP/1.1\r\nX: ")
    t = time.monotonic()
    alive = list(socks)
    while alive and time.monotonic() - t < 10:
        still = []
        for s in alive:
            try:
                s.sendall(b"X")
                s.setblocking(False)
                if s.recv(4096):
                    continue
            except BlockingIOError:
                s.setblocking(True)
                still.append(s)
            except OSError:
                pass
        alive = still
        t1 = time.monotonic()
        assert short.get("/health").status == 200 and time.monotonic() - t1 < 2
        time.sleep(0.1)
    assert not alive
    for s in socks:
        s.close()


def test_f09_idle(short):
    quiet, kept = short.connect(), short.connect()
    kept.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert kept.recv(4096).startswith(b"HTTP/1.1 200")
    t = time.monotonic()
    assert closed(quiet) and closed(kept)
    assert 0.3 < time.monotonic() - t < 10


def test_f07_slow_body(short):
    s = short.connect()
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
              b"Content-Length: 1000\r\n\r\n{")
    t = time.monotonic()
    assert closed(s) and time.monotonic() - t < 10
    until(lambda: short.gauge("client_disconnects_total", "body") > 0)


def test_ping(short):
    """A silent stream pings. The first token of a long prompt takes several intervals here."""
    s = short.open_stream(prompt=[5] * 60, max_tokens=2, n=2)
    data = b""
    while b"[DONE]" not in data:
        data += s.recv(65536)
    s.close()
    assert b": ping\n\n" in data


def test_f01_reset_while_streaming(slow):
    tokens = slow.gauge("generation_tokens_total")
    left = slow.gauge("client_disconnects_total")
    for k in range(8):
        s = slow.open_stream()
        got = b""
        while got.count(b"data:") < 1 + k % 3:
            got += s.recv(4096)
        reset(s) if k % 2 else s.close()
        until(lambda: slow.gauge("num_requests_running") == 0)
    assert slow.gauge("generation_tokens_total") - tokens < 8 * 450
    assert slow.gauge("client_disconnects_total") == left + 8


def test_f02_leave_before_the_first_token(slow):
    for stream in (True, False):
        for end in (reset, socket.socket.close):
            s = slow.open_stream(prompt=[5] * 1000, max_tokens=20, n=4, stream=stream)
            time.sleep(0.03)
            end(s)
            until(lambda: slow.gauge("num_requests_running") + slow.gauge("num_requests_waiting") == 0)


def test_left_streams_beside_an_idle_connection(slow):
    """The library looks at the oldest connection only, unless the others are ended as it expects."""
    idle = slow.connect()
    idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert idle.recv(4096).startswith(b"HTTP/1.1 200")
    for end in (reset, socket.socket.close, lambda s: s.shutdown(socket.SHUT_WR)):
        socks = [slow.open_stream() for _ in range(2)]
        for s in socks:
            s.recv(300)
        for s in socks:
            end(s)
        until(lambda: slow.gauge("client_fds") == 2)
    idle.close()


def test_half_a_body_and_the_end(slow):
    """All at once, before the daemon sees any of it: no deadline must be needed."""
    body = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" \
           b"Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
    for _ in range(30):
        s = slow.connect()
        s.sendall(body)
        s.close()
    until(lambda: slow.gauge("client_fds") == 1, 5)


def test_half_a_second_head_and_the_end(slow):
    for end in (reset, socket.socket.close):
        socks = [slow.connect() for _ in range(20)]
        for s in socks:
            s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert s.recv(4096).startswith(b"HTTP/1.1 200")
        for s in socks:
            s.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
            end(s)
        until(lambda: slow.gauge("client_fds") == 1, 5)


def test_f03_half_close_cancels(slow):
    s = slow.open_stream()
    s.recv(100)
    s.shutdown(socket.SHUT_WR)
    assert closed(s)
    until(lambda: slow.gauge("num_requests_running") == 0)
    s = slow.connect()
    s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    s.shutdown(socket.SHUT_WR)
    assert s.recv(100).startswith(b"HTTP/1.1 200")
    s.close()


def test_f04_reader_that_does_not_read(short):
    stalled = short.open_stream(rcvbuf=2048, n=8, logprobs=20, max_tokens=900)
    t = time.monotonic()
    other = short.stream("/v1/completions", {"prompt": "a", "max_tokens": 20, "ignore_eos": True})
    assert text_of(other) and time.monotonic() - t < 10
    until(lambda: short.gauge("client_fds") == 1, 20)
    stalled.close()


def test_vanish_among_16(slow_free):
    """16 clients stream, 4 vanish; the others' texts do not change."""
    server = slow_free
    body = {"prompt": "one two", "max_tokens": 120, "ignore_eos": True, "temperature": 0}
    want = server.ok("/v1/completions", body)["choices"][0]["text"]
    results, lock = [], threading.Lock()

    def run(i):
        if i % 4 == 0:
            s = server.open_stream(max_tokens=900)
            s.recv(300)
            reset(s)
            return
        events = server.stream("/v1/completions", body)
        with lock:
            results.append(text_of(events))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(16)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert results == [want] * 12


def test_f24_queue_full(slow):
    out, lock = [], threading.Lock()

    def run():
        r = slow.post("/v1/completions", {"prompt": "a", "max_tokens": 60, "ignore_eos": True})
        with lock:
            out.append(r)

    threads = [threading.Thread(target=run) for _ in range(24)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(out) == 24 and {r.status for r in out} == {200, 429}
    for r in out:
        if r.status == 429:
            assert r.code == "rate_limit_exceeded" and 1 <= int(r.headers["retry-after"]) <= 30


def test_f24_part_of_a_fan_out(slow):
    """n choices of which only some fit: all or nothing."""
    r = slow.post("/v1/completions", {"prompt": "a", "n": 16, "max_tokens": 400, "ignore_eos": True})
    assert r.status == 429 and r.code == "rate_limit_exceeded"


def test_f60_same_id_many_times(server):
    out, lock = [], threading.Lock()

    def run(i):
        r = server.post("/v1/completions", {"prompt": "n %d" % i, "max_tokens": 4, "temperature": 0},
                        headers={"X-Request-Id": "same"})
        with lock:
            out.append((i, r))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(40)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len({r.json()["id"] for _, r in out}) == 40
    for i, r in out[:8]:
        alone = server.complete("n %d" % i, max_tokens=4)
        assert r.headers["x-request-id"] == "same"
        assert alone["choices"][0]["text"] == r.json()["choices"][0]["text"]


def test_abort(slow):
    s = slow.open_stream(request_id="to-abort")
    s.recv(300)
    assert slow.ok("/v1/abort", {"request_id": "somebody"}) == {"aborted": 0}
    assert slow.ok("/v1/abort", {"request_id": "to-abort"}) == {"aborted": 1}
    data = b""
    while True:
        x = s.recv(65536)
        if not x:
            break
        data += x
        if b"0\r\n\r\n" in data:
            break
    s.close()
    assert b'"code":"request_aborted"' in data and b"data: [DONE]\n\n" in data
    until(lambda: slow.gauge("num_requests_running") == 0)
    got = []
    t = threading.Thread(target=lambda: got.append(slow.post(
        "/v1/completions", {"prompt": "a", "max_tokens": 900, "ignore_eos": True})))
    t.start()
    until(lambda: slow.gauge("num_requests_running") == 1)
    assert slow.ok("/v1/abort", {"abort_all": True}) == {"aborted": 1}
    t.join()
    assert got[0].status == 400 and got[0].code == "request_aborted"


def test_f54_descriptors_run_out():
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64 if hard < 0 else min(hard, hard)))
    try:
        s = Server(max_connections=4000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limit = open("/proc/%d/limits" % s.process.pid).read()
    socks = []
    for _ in range(120):
        try:
            socks.append(s.connect(2))
        except OSError:
            break
    cpu = lambda: sum(map(int, open("/proc/%d/stat" % s.process.pid).read().rsplit(")", 1)[1]
                          .split()[11:13])) / os.sysconf("SC_CLK_TCK")
    a = cpu()
    time.sleep(1)
    assert cpu() - a < 0.3, limit
    for x in socks:
        x.close()
    until(lambda: s.get("/health").status == 200)
    assert s.stop() == 0
