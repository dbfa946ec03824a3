"""SIGTERM and SIGHUP while clients are served, many times each; see signals.sh.

   signals.py COUNT [SEED]

A client whose request was sent before the signal gets an answer, and no answer is cut: a stream ends with
[DONE], regularly or behind an error event; any other answer has all its bytes."""
import json
import os
import random
import re
import signal
import socket
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "http"))
from kit import SOURCE, Server, until  # noqa: E402

CLIENTS = 12


class Client(threading.Thread):
    """Asks again and again until it is told to stop or the door is closed."""

    def __init__(self, server, seed):
        super().__init__(daemon=True)
        self.port, self.rng, self.halt = server.port, random.Random(seed), threading.Event()
        self.bad, self.counts = [], {}
        self.signalled = float("inf")
        self.start()

    def run(self):
        while not self.halt.is_set():
            try:
                s = socket.create_connection(("127.0.0.1", self.port), 30)
            except ConnectionRefusedError:
                return self.note("refused")
            except OSError as e:
                return self.note("not connected: %s" % e)
            try:
                self.one(s)
            finally:
                s.close()

    def note(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1

    def one(self, s):
        stream = self.rng.random() < 0.7
        body = json.dumps({"prompt": "one two " * self.rng.choice((1, 1, 30)), "stream": stream,
                           "max_tokens": self.rng.choice((1, 10, 40, 120)), "temperature": 0,
                           "ignore_eos": True, "n": self.rng.choice((1, 1, 1, 3))}).encode()
        data, sent = b"", float("inf")
        try:
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                      b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            sent = time.monotonic()
            while True:
                x = s.recv(65536)
                if not x:
                    break
                data += x
        except OSError as e:
            if data:
                self.bad.append("%s after %r" % (e, data[-300:]))
                return
        self.judge(data, sent)

    def judge(self, data, sent):
        if not data:
            # Whoever came with or behind the signal may find the door closing.
            if sent < self.signalled:
                self.bad.append("no answer, and the request was there %.1f ms before the signal" %
                                ((self.signalled - sent) * 1e3))
            return self.note("closed")
        head, _, rest = data.partition(b"\r\n\r\n")
        status = int(head[9:12])
        if b"Transfer-Encoding: chunked" in head:
            error = b'"error":{' in rest
            whole = rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            if not whole:
                self.bad.append("a stream was cut: %r" % rest[-300:])
            elif error and b'"code":"shutting_down"' not in rest:
                self.bad.append("an error: %r" % rest[-300:])
            return self.note("stream ended with an error" if error else "stream")
        length = int(re.search(rb"Content-Length: (\d+)", head).group(1))
        if len(rest) != length or status not in (200, 503):
            self.bad.append("%d with %d of %d bytes: %r" % (status, len(rest), length, rest[-300:]))
        elif status == 503 and b'"code":"shutting_down"' not in rest:
            self.bad.append("503: %r" % rest)
        self.note("status %d" % status)


def total(counts, clients):
    for c in clients:
        for k, v in c.counts.items():
            counts[k] = counts.get(k, 0) + v


def fail_if(bad, log=""):
    if bad:
        print("FAIL: %s\n%s" % ("\n".join(str(b) for b in bad[:5]), log[-3000:]))
        sys.exit(1)


def end(clients, limit=60):
    for c in clients:
        c.halt.set()
    for c in clients:
        c.join(limit)
    fail_if(["a client waits for ever" for c in clients if c.is_alive()])
    return [b for c in clients for b in c.bad]


def terms(count, rng):
    """A fresh server each time: enough time to finish, too little, none, and a second signal."""
    counts, slowest = {}, 0
    for i in range(count):
        drain = rng.choice((30000, 30000, 150, 0))
        s = Server(drain_ms=drain, max_batch_size=rng.choice((4, 64)), threads=1)
        idle = s.connect()
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        idle.recv(4096)
        silent = s.connect()
        clients = [Client(s, rng.random()) for _ in range(CLIENTS)]
        time.sleep(rng.random() * 0.3)
        t0 = time.monotonic()
        for c in clients:
            c.signalled = t0
        s.process.send_signal(signal.SIGTERM)
        if i % 3 == 2:
            time.sleep(rng.random() * 0.05)
            s.process.send_signal(rng.choice((signal.SIGTERM, signal.SIGINT)))
        code = s.stop(sig=0)
        took = time.monotonic() - t0
        bad = end(clients)
        total(counts, clients)
        log = s.read_log()
        fail_if(bad, log)
        fail_if(["exit code %d" % code] if code else [], log)
        fail_if(re.findall(r".* error .*|.*Sanitizer.*|.*runtime error.*", log), log)
        slowest = max(slowest, took)
        idle.close()
        silent.close()
        s.clean_up()
    print("SIGTERM %d times, slowest end %.2f s: %s" % (count, slowest, counts))


def at_the_door(count):
    """Requests that wait in the kernel, unseen, when the signal comes: they were sent before it, so each is
    answered. The server stands still meanwhile, so that this is certain."""
    body = b'{"prompt":"one","max_tokens":3,"temperature":0}'
    head = (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body))
    statuses = {}
    for _ in range(count):
        s = Server(threads=1)
        s.process.send_signal(signal.SIGSTOP)
        socks = [s.connect(60) for _ in range(80)]
        for x in socks:
            x.sendall(head + body)
        s.process.send_signal(signal.SIGTERM)
        s.process.send_signal(signal.SIGCONT)
        for i, x in enumerate(socks):
            data = b""
            try:
                while True:
                    more = x.recv(65536)
                    if not more:
                        break
                    data += more
            except OSError:
                pass
            x.close()
            fail_if([] if data[9:12] in (b"200", b"503") else
                    ["request %d was there before the signal: %r" % (i, data)], s.read_log())
            statuses[data[9:12].decode()] = statuses.get(data[9:12].decode(), 0) + 1
        code = s.stop(sig=0)
        fail_if(["exit code %d" % code] if code else [], s.read_log())
        s.clean_up()
    print("SIGTERM before %d waiting requests, %d times: %s" % (80, count, statuses))


def while_loading(count):
    seen = 0
    for i in range(max(count, 3) * 4):
        s = Server(wait=False)
        s.wait_port()
        time.sleep(i % 5 * 0.01)
        t0 = time.monotonic()
        code = s.stop(limit=20)
        fail_if(["exit code %d" % code] if code else [], s.read_log())
        seen += "stopped while loading" in s.read_log()
        fail_if(["%.1f s to stop" % (time.monotonic() - t0)] if time.monotonic() - t0 > 15 else [])
        s.clean_up()
        if seen >= count:
            break
    fail_if([] if seen else ["loading was never met"])
    print("SIGTERM while loading, %d times" % seen)


GOOD = 'policies = "%s"; server = { request_timeout_ms = %%d; body_limit = "%%dKiB"; };\n' % \
    os.path.join(SOURCE, "scripts", "sampling")
BROKEN = ("server = { request_timeout_ms = ", "server = { request_timeout_ms = -5; };\n",
          "no_such_option = 1;\n", 'default_policy = "nowhere";\n', "chat_template = \"/nowhere.lua\";\n",
          "server = { api_keys = \"/nowhere/keys\"; };\n")


def hups(count, rng):
    """One server; each signal brings another conf, every second one broken, which changes nothing."""
    s = Server(wait=False)
    s.stop()
    conf = os.path.join(s.dir, "turbo.conf")

    def write(text):
        with open(conf + ".new", "w") as f:
            f.write(text)
        os.rename(conf + ".new", conf)

    write(GOOD % (100000, 4096))
    s = Server(conf=conf, threads=1)
    fds = s.n_fds()
    clients = [Client(s, rng.random()) for _ in range(CLIENTS)]
    now = 100000
    for i in range(count):
        good = i % 2 == 0
        want = 100001 + i if good else now
        write(GOOD % (want, 1024 + i) if good else rng.choice(BROKEN))
        mark = len(s.read_log())
        s.process.send_signal(signal.SIGHUP)
        until(lambda: re.search("reloaded|the old configuration stays", s.read_log()[mark:]))
        fail_if([] if good == ("reloaded" in s.read_log()[mark:]) else ["reload %d" % i], s.read_log()[mark:])
        limits = s.get("/props").json()["limits"]
        fail_if([] if limits["request_timeout_ms"] == want else ["reload %d: %r" % (i, limits)])
        now = want
        time.sleep(rng.random() * 0.03)
    bad = end(clients)
    counts = {}
    total(counts, clients)
    fail_if(bad, s.read_log())
    fail_if([k for k in counts if k not in ("stream", "status 200")])
    until(lambda: s.n_fds() <= fds)
    fail_if(["exit code"] if s.stop() else [])
    print("SIGHUP %d times: %s" % (count, counts))


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seed = int(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2] else int(time.time())
    print("seed %d" % seed, flush=True)
    rng = random.Random(seed)
    hups(count, rng)
    terms(count, rng)
    at_the_door(min(count, 20))
    while_loading(min(count, 10))


main()
