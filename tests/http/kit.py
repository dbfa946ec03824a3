"""A turbod under test and a client that trusts nothing. Python standard library only."""
import atexit
import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.abspath(os.path.join(HERE, "..", ".."))
TURBOD = os.environ.get("TURBOD") or os.path.join(
    os.environ.get("top_builddir", os.path.join(SOURCE, "build")), "turbod")
MODEL = os.path.join(SOURCE, "conf", "models", "internlm2-demo")
NAME = "internlm2-demo"


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return strict_json(self.body)

    @property
    def code(self):
        e = self.json()["error"]
        assert set(e) == {"message", "type", "param", "code"}, e
        assert isinstance(e["message"], str) and e["message"]
        assert "/work" not in e["message"] and "0x7" not in e["message"], e
        return e["code"]


def strict_json(data):
    def pairs(items):
        keys = [k for k, _ in items]
        assert len(keys) == len(set(keys)), "duplicate key in a reply"
        return dict(items)

    def no_constant(name):
        raise AssertionError("%s in a reply" % name)

    return json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=no_constant)


def null_model(**keys):
    """A folder with a model that answers at once and the demo model's tokenizer; keys: its config."""
    folder = tempfile.mkdtemp(prefix="turbod-null-")
    atexit.register(shutil.rmtree, folder, True)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(os.path.join(MODEL, name), folder)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump({"architectures": ["NullForCausalLM"], "vocab_size": 2800, **keys}, f)
    return folder


def fake_card(**env):
    """The environment of a turbod whose card is the build's own driver; env: what is planted in it."""
    return {"TURBO_CUDA_DRIVER": os.path.join(os.path.dirname(TURBOD), "kernels", "cuda", "hostrun",
                                              ".libs", "fakecuda.so"), **env}


class Server:
    """One process on a free port. flags: options as {"port": 0}; files are in its own folder; env:
    further environment variables; an option None is not given at all."""

    def __init__(self, wait=True, env=None, **flags):
        self.dir = tempfile.mkdtemp(prefix="turbod-http-")
        atexit.register(self.clean_up)
        self.log_path = os.path.join(self.dir, "log")
        base = {"model": MODEL, "port": 0, "cache-max-entry-count": "32MiB", "threads": 1}
        base.update({k.replace("_", "-"): v for k, v in flags.items()})
        self.args = [TURBOD]
        for key, value in base.items():
            if value is None:
                continue
            if isinstance(value, bool):
                self.args.append("--%s%s" % ("" if value else "no-", key))
            else:
                self.args += ["--" + key, str(value)]
        self.log = open(self.log_path, "wb")
        self.process = subprocess.Popen(self.args, stdin=subprocess.DEVNULL, stdout=self.log,
                                        stderr=self.log, env={**os.environ, **(env or {})})
        self.headers = {}
        self.port = 0
        if wait:
            self.wait_ready()

    def clean_up(self):
        if self.process.poll() is None:  # a failed test left it
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def read_log(self):
        with open(self.log_path, "rb") as f:
            return f.read().decode("utf-8")

    def wait_port(self, limit=20):
        end = time.monotonic() + limit
        while time.monotonic() < end:
            found = re.search(r"listening on http://[^ \n]*:(\d+)", self.read_log())
            if found:
                self.port = int(found.group(1))
                return
            assert self.process.poll() is None, self.read_log()
            time.sleep(0.01)
        raise AssertionError("turbod does not listen: " + self.read_log())

    def wait_ready(self, limit=40):
        self.wait_port()
        end = time.monotonic() + limit
        while self.get("/ready").status != 200:
            assert self.process.poll() is None, self.read_log()
            assert time.monotonic() < end, self.read_log()
            time.sleep(0.02)

    # ---- requests

    def connect(self, timeout=20):
        s = socket.create_connection(("127.0.0.1", self.port), timeout)
        s.settimeout(timeout)
        return s

    def request(self, method, path, body=None, headers=None, timeout=60):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        send = dict(self.headers)
        if body is not None:
            send["Content-Type"] = "application/json"
            if not isinstance(body, bytes):
                body = json.dumps(body).encode()
        send.update(headers or {})
        try:
            c.request(method, path, body, {k: v for k, v in send.items() if v is not None})
            r = c.getresponse()
            return Reply(r.status, {k.lower(): v for k, v in r.getheaders()}, r.read())
        finally:
            c.close()

    def get(self, path, **kw):
        return self.request("GET", path, **kw)

    def post(self, path, body, **kw):
        return self.request("POST", path, body, **kw)

    def ok(self, path, body, **kw):
        r = self.post(path, body, **kw)
        assert r.status == 200, (r.status, r.body[:500])
        return r.json()

    def chat(self, content="What is turbod?", **fields):
        messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
        return self.ok("/v1/chat/completions",
                       {"messages": messages, "temperature": 0, "max_tokens": 40, **fields})

    def complete(self, prompt="What is", **fields):
        return self.ok("/v1/completions",
                       {"prompt": prompt, "temperature": 0, "max_tokens": 16, **fields})

    def stream(self, path, body, headers=None):
        """All events of a stream; strict about the format."""
        r = self.request("POST", path, {**body, "stream": True}, headers=headers)
        if r.status != 200:
            return r
        assert r.headers["content-type"].startswith("text/event-stream")
        assert r.headers["cache-control"] == "no-cache"
        assert r.headers["x-accel-buffering"] == "no"
        return parse_sse(r.body)

    def raw(self, data, timeout=3):
        """Status codes of all replies on one connection; the server must close it."""
        s = self.connect(timeout)
        out = b""
        try:
            s.sendall(data)
            while True:
                x = s.recv(65536)
                if not x:
                    break
                out += x
        except OSError:
            pass
        s.close()
        return [int(x) for x in re.findall(rb"HTTP/1\.[01] (\d{3})", out)]

    def open_stream(self, rcvbuf=None, **fields):
        """A raw socket on which a long answer is being streamed."""
        s = socket.socket()
        if rcvbuf:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        s.settimeout(30)
        s.connect(("127.0.0.1", self.port))
        body = json.dumps({"prompt": "one two", "max_tokens": 900, "ignore_eos": True,
                           "temperature": 0, "stream": True, **fields}).encode()
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                  b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        return s

    # ---- state

    def metrics(self):
        text = self.get("/metrics").body.decode()
        return {(k, l): float(v) for k, l, v in
                re.findall(r"^turbo:(\w+)(\{[^}]*\})? ([-+\d.e]+)$", text, re.M)}

    def gauge(self, name, label=None):
        return sum(v for (k, l), v in self.metrics().items()
                   if k == name and (label is None or label in l))

    def golden(self):
        return self.complete("What is a token?", max_tokens=24)["choices"][0]["text"]

    def baseline(self):
        self.gold = self.golden()
        self.fds = self.n_fds()
        return self

    def n_fds(self):
        return len(os.listdir("/proc/%d/fd" % self.process.pid))

    def quiesce(self, limit=20.0):
        """Nothing may be left behind by a test."""
        end = time.monotonic() + limit
        while True:
            m = {k: v for (k, l), v in self.metrics().items() if not l or "model_name" in l}
            quiet = (m["num_requests_running"] == m["num_requests_waiting"] == 0 and
                     m["kv_blocks_free"] + m["kv_blocks_cached"] == m["kv_blocks_total"] and
                     m["http_requests_answering"] == 1 and m["http_requests_alive"] == 1 and
                     m["http_body_bytes"] == 0 and m["client_fds"] == 1)
            if quiet and self.n_fds() <= self.fds + 1:
                break
            assert time.monotonic() < end, ("not quiet", {k: m[k] for k in m if "seconds" not in k})
            time.sleep(0.02)
        assert self.golden() == self.gold, "the golden text changed"

    def stop(self, sig=signal.SIGTERM, limit=60):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("turbod does not stop: " + self.read_log())
        self.log.close()
        return code


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def parse_sse(data):
    events = []
    for block in data.decode("utf-8").split("\n\n"):
        if not block:
            continue
        if block == ": ping":
            continue
        assert block.startswith("data: ") and "\n" not in block, block
        events.append(block[6:])
    assert data.endswith(b"data: [DONE]\n\n") and events.count("[DONE]") == 1, events[-1:]
    return [strict_json(e.encode()) for e in events[:-1]]


def text_of(events, index=0):
    out = ""
    for e in events:
        for c in e.get("choices", []):
            if c["index"] == index:
                out += c["delta"].get("content", "") if "delta" in c else c["text"]
    return out


def until(condition, limit=20.0):
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
