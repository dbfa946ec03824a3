"""Many connections, few descriptors, slow readers, a wall clock that jumps, one session asked twice."""
import errno
import http.client
import json
import os
import re
import resource
import select
import shlex
import socket
import subprocess
import threading
import time

import pytest

from kit import SOURCE, Server, null_model, parse_sse, text_of, until

ASK = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
GOOD = b"HTTP/1.1 200"


# ---- F05: a reader of one byte at a time

def test_f05_reader_of_single_bytes():
    """It is dropped although it never stops reading; meanwhile another stream goes on as alone."""
    s = Server(send_timeout_ms=1500)
    quick = {"prompt": "one two", "max_tokens": 60, "ignore_eos": True, "temperature": 0}
    alone = s.complete(**quick)["choices"][0]["text"]
    before = s.gauge("client_disconnects_total")
    slow = s.open_stream(rcvbuf=2048, n=8, logprobs=20, max_tokens=900)
    done = threading.Event()
    got = []

    def trickle():
        try:
            while not done.is_set():
                got.append(slow.recv(1))
                if not got[-1]:
                    return
                time.sleep(0.05)
        except OSError:
            pass

    t = threading.Thread(target=trickle)
    t.start()
    rounds = 0
    while s.gauge("client_disconnects_total") == before:
        assert s.complete(**quick)["choices"][0]["text"] == alone
        rounds += 1
        assert rounds < 2000
    until(lambda: s.gauge("client_fds") == 1)
    until(lambda: s.gauge("num_requests_running") == 0)
    done.set()
    t.join()
    slow.close()
    assert rounds > 0 and "the client does not read" in s.read_log()
    assert s.stop() == 0


def test_reader_that_pauses_misses_nothing(server):
    """Its socket fills in the middle of events; what it reads later is the whole stream, once."""
    body = {"prompt": "one two", "max_tokens": 400, "n": 8, "logprobs": 20, "ignore_eos": True,
            "temperature": 1, "seed": 3}
    want = server.ok("/v1/completions", body)
    s = server.open_stream(rcvbuf=4096, **body)
    until(lambda: server.gauge("num_requests_running") == 8)
    for _ in range(30):  # crumbs while the answer is made: the socket fills, empties, fills
        s.recv(1500, socket.MSG_PEEK)
        time.sleep(0.02)
    r = http.client.HTTPResponse(s)
    r.begin()
    events = parse_sse(r.read())
    s.close()
    for i in range(8):
        assert text_of(events, i) == want["choices"][i]["text"]


def test_http10_stream_is_not_chunked(server):
    body = json.dumps({"prompt": "one two", "max_tokens": 50, "ignore_eos": True, "temperature": 0,
                       "stream": True}).encode()
    s = server.connect()
    s.sendall(b"POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
              b"Content-Length: %d\r\n\r\n" % len(body) + body)
    data = b""
    while True:
        more = s.recv(65536)
        if not more:
            break
        data += more
    s.close()
    head, _, rest = data.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    want = server.complete("one two", max_tokens=50, ignore_eos=True)["choices"][0]["text"]
    assert text_of(parse_sse(rest)) == want


# ---- many at once

def connect_all(port, n, source="127.0.0.1"):
    """n connects without waiting for any; the sockets, once each is connected or refused."""
    socks, poll = [], select.epoll()
    for _ in range(n):
        s = socket.socket()
        s.setblocking(False)
        s.bind((source, 0))
        assert s.connect_ex(("127.0.0.1", port)) in (0, errno.EINPROGRESS)
        poll.register(s, select.EPOLLOUT)
        socks.append(s)
    waiting, end = {s.fileno() for s in socks}, time.monotonic() + 40
    while waiting and time.monotonic() < end:
        for fd, _ in poll.poll(1):
            waiting.discard(fd)
            poll.unregister(fd)
    poll.close()
    assert not waiting, "%d connects hang" % len(waiting)
    return socks


def ask_all(socks):
    """How many get their answer, how many are closed without one."""
    good = closed = 0
    for s in socks:
        s.settimeout(20)
        try:
            s.sendall(ASK)
        except OSError:
            pass
    for s in socks:
        try:
            data = s.recv(4096)
        except OSError as e:
            assert not isinstance(e, socket.timeout), "neither answered nor closed"
            data = b""
        good += data.startswith(GOOD)
        closed += not data
        assert not data or data.startswith(GOOD), data
    return good, closed


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 6000:
        pytest.skip("6000 descriptors are needed, the hard limit is %d" % hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (6000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_five_thousand_connects_at_once(many_descriptors):
    s = Server(max_connections=5100)
    socks = connect_all(s.port, 5000)
    assert ask_all(socks) == (5000, 0)
    assert s.gauge("client_fds") == 5001 and s.gauge("http_refused_connections_total") == 0
    assert s.complete("a")["choices"]
    for x in socks:
        x.close()
    until(lambda: s.gauge("client_fds") == 1)
    assert s.stop() == 0


def test_more_connects_than_allowed(many_descriptors):
    s = Server(max_connections=1000)
    socks = connect_all(s.port, 1500)
    good, closed = ask_all(socks)
    assert (good, closed) == (1000, 500)
    for x in socks:
        x.close()
    until(lambda: s.process.poll() is None and s.get("/health").status == 200)
    assert s.gauge("http_refused_connections_total") >= 500
    assert s.stop() == 0


# ---- F54: descriptors run out

def cpu_of(server):
    with open("/proc/%d/stat" % server.process.pid) as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_f54_no_descriptors_left():
    """The limit falls while the server runs: accept rests, kept connections are served, no spinning."""
    s = Server()
    kept = s.connect()
    kept.sendall(ASK)
    assert kept.recv(4096).startswith(GOOD)
    limits = resource.prlimit(s.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(s.process.pid, resource.RLIMIT_NOFILE, (s.n_fds() + 10, limits[1]))
    socks = [s.connect(5) for _ in range(60)]
    until(lambda: s.n_fds() >= 10)
    before = cpu_of(s)
    for _ in range(10):
        kept.sendall(ASK)
        assert kept.recv(4096).startswith(GOOD)
        time.sleep(0.1)
    assert cpu_of(s) - before < 0.5  # of the second it had
    for x in socks:
        x.close()
    until(lambda: ask_once(s))  # it recovers without the limit being raised
    kept.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    text = b""
    while b"http_refused_connections_total " not in text.replace(b"HELP turbo:http_refused", b""):
        text += kept.recv(65536)
    assert int(re.search(rb"^turbo:http_refused_connections_total (\d+)", text, re.M).group(1)) > 0
    kept.close()
    resource.prlimit(s.process.pid, resource.RLIMIT_NOFILE, limits)
    assert s.stop() == 0


def ask_once(server):
    try:
        return server.get("/health").status == 200
    except OSError:
        return False


# ---- large heads

def head(size):
    fields = b"".join(b"X-Filler-%d: %s\r\n" % (i, b"a" * 950) for i in range(size // 1000))
    return ASK[:-2] + fields + b"\r\n"


@pytest.mark.parametrize("first,second", [(1000, 8000), (20000, 20000), (30000, 1000), (6000, 8000)])
def test_large_heads(server, first, second):
    x = server.connect()
    for size in (first, second):
        x.sendall(head(size))
        assert x.recv(4096).startswith(GOOD), size
    x.close()


# ---- clocks

@pytest.fixture(scope="module")
def fake_wall(tmp_path_factory):
    cc = os.environ.get("CC", "cc")
    out = str(tmp_path_factory.mktemp("wall") / "fakewall.so")
    source = os.path.join(SOURCE, "tests", "http", "fakewall.c")
    try:
        subprocess.run(shlex.split(cc) + ["-shared", "-fPIC", "-O1", "-o", out, source], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler: %s" % cc)
    probe = "import time; print(any(abs(time.time() - %r) > 1e7 for _ in range(2)))" % time.time()
    told = subprocess.run(["python3", "-c", probe], env={**os.environ, "LD_PRELOAD": out},
                          stdout=subprocess.PIPE, check=True).stdout
    assert told.strip() == b"True", "the preloaded clock is not used"
    return out


def test_a_jumping_wall_clock_moves_no_deadline(fake_wall):
    slow = null_model(null_step_us=30000, null_sleep=True)
    s = Server(model=slow, env={"LD_PRELOAD": fake_wall}, request_timeout_ms=3000, ping_ms=200,
               queue_timeout_ms=2000, max_batch_size=2, log_stats_ms=500)
    years = {int(y) for y in re.findall(r"^(\d{4})-", s.read_log(), re.M)}
    assert len(years) > 1, "the server's wall clock does not jump"
    kept = s.connect()
    for _ in range(5):
        kept.sendall(ASK)
        assert kept.recv(4096).startswith(GOOD)
        assert s.complete("a b", max_tokens=10)["usage"]["completion_tokens"] == 10
    events = s.stream("/v1/completions", {"prompt": "a", "max_tokens": 20})
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    r = s.post("/v1/completions", {"prompt": "a", "max_tokens": 900})
    assert r.status == 503 and "request_timeout_ms" in r.json()["error"]["message"]
    late = [s.open_stream(max_tokens=900) for _ in range(2)]
    until(lambda: s.gauge("num_requests_running") == 2)
    r = s.post("/v1/completions", {"prompt": "a", "max_tokens": 5})
    assert r.status in (200, 503)
    for x in late:
        x.close()
    kept.close()
    assert s.get("/health").status == 200
    assert s.stop() == 0


def test_sources_read_the_wall_clock_only_to_show_it():
    """Time stamps of the log and of answers; every deadline and duration is monotonic."""
    allowed = {"core/util/log.c", "core/net/gen.c", "core/engine/service.c", "core/cli/bench.c",
               "core/chat/template.c"}  # the last: the date that a chat template may name
    wall = re.compile(r"CLOCK_REALTIME|\bgettimeofday\b|[^_\w.>]time\((NULL|0|&)|\bftime\b|timespec_get")
    found = set()
    for top in ("core", "kernels", "plugins"):
        for folder, _, names in os.walk(os.path.join(SOURCE, top)):
            for name in names:
                if name.endswith((".c", ".h")):
                    path = os.path.join(folder, name)
                    with open(path) as f:
                        if wall.search(f.read()):
                            found.add(os.path.relpath(path, SOURCE))
    assert found == allowed


# ---- one session asked twice at once

def test_one_session_twice_at_once():
    """One is answered, the others are told that the session is busy; other sessions do not notice."""
    s = Server(model=null_model(null_step_us=20000, null_sleep=True), max_batch_size=16,
               chat_template=os.path.join(SOURCE, "scripts", "chat", "internlm2.lua"))
    url, out, lock = "/v1/chat/interactive", [], threading.Lock()
    start = threading.Barrier(8)

    def ask(session):
        start.wait()
        r = s.post(url, {"prompt": "Hi", "session_id": session, "interactive_mode": True,
                         "max_tokens": 30, "ignore_eos": True, "temperature": 0})
        with lock:
            out.append((session, r))

    names = ["same"] * 5 + ["a", "b", "c"]
    threads = [threading.Thread(target=ask, args=(n,)) for n in names]
    [t.start() for t in threads]
    [t.join() for t in threads]
    same = [r for n, r in out if n == "same"]
    assert sorted(r.status for r in same) == [200] + [400] * 4
    assert {r.code for r in same if r.status == 400} == {"session_busy"}
    texts = {r.json()["text"] for n, r in out if r.status == 200}
    assert len([1 for n, r in out if r.status == 200]) == 4 and len(texts) == 1
    assert {x["id"]: x["n_messages"] for x in s.get("/slots").json()} == {
        "same": 2, "a": 2, "b": 2, "c": 2}
    again = s.ok(url, {"prompt": "More", "session_id": "same", "interactive_mode": True,
                       "max_tokens": 3, "ignore_eos": True})
    assert again["history_tokens"] > 0
    assert s.stop() == 0
