"""turbo bench serve against turbod and against servers that misbehave: counts, never times."""
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time

import pytest

from kit import MODEL, NAME, SOURCE, TURBOD, Server, null_model, until

TURBO = os.environ.get("TURBO") or os.path.join(os.path.dirname(TURBOD), "turbo")
GOLDEN = os.path.join(SOURCE, "tests", "golden", "bench")


@pytest.fixture(scope="module")
def null():
    s = Server(model=null_model(max_position_embeddings=2048, null_step_us=200), max_batch_size=64,
               cache_max_entry_count="64MiB",
               chat_template=os.path.join(SOURCE, "scripts", "chat", "internlm2.lua"))
    yield s
    assert s.stop() == 0


def bench(port, *words, code=0, timeout=120):
    with tempfile.NamedTemporaryFile(suffix=".json") as f:
        r = subprocess.run([TURBO, "bench", "serve", "http://127.0.0.1:%d" % port, "--json", f.name,
                            *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, timeout=timeout)
        out = (r.stdout + r.stderr).decode()
        assert r.returncode == code, out
        text = f.read()
    return (json.loads(text) if text else None), out


def idle(s):
    until(lambda: s.gauge("num_requests_running") == s.gauge("num_requests_waiting") == 0)


def check(r, n, n_in, n_out):
    assert r["outcomes"]["ok"] == r["requests_sent"] == len(r["requests"]) == n
    assert r["tokens_in"] == n_in and r["tokens_out"] == n_out
    assert sum(q["in"] for q in r["requests"]) == n_in
    assert r["other_prompt_length"] == r["no_usage"] == r["short_answers"] == 0
    assert r["ttft_ms"]["n"] == r["e2e_ms"]["n"] == n
    assert r["itl_ms"]["n"] == r["events"] - n
    assert not r["interrupted"] and not r["gone"]


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize("arrivals", [("--rate", 200), ("--rate", "inf", "--concurrency", 5)])
def test_counts(null, endpoint, arrivals):
    before = null.gauge("generation_tokens_total")
    r, out = bench(null.port, "--limit", 30, "--input", 100, "--output", 20, "--ignore-eos", "--endpoint",
                   endpoint, "--slo", "ttft=100000,itl=100000", *arrivals)
    check(r, 30, 3000, 600)
    assert r["good"] == 30 and r["goodput"] == 1 and "goodput: 30 of 30" in out
    assert 600 <= null.gauge("generation_tokens_total") - before < 600 + 400  # and what calibrates
    idle(null)


def test_tokens_of_events(null):
    """With counts in the events each token has a gap; without, each event."""
    words = ("--limit", 10, "--input", 50, "--output", 40, "--ignore-eos", "--rate", "inf", "--concurrency", 5)
    r, out = bench(null.port, "--continuous-usage", *words)
    assert r["tokens_counted"] and "between tokens (ITL)" in out
    assert r["gap_ms"]["n"] == r["events"] - 10 <= r["itl_ms"]["n"] <= 400 - 10
    if r["gap_ms"]["n"] < r["itl_ms"]["n"]:
        assert r["itl_ms"]["mean"] < r["gap_ms"]["mean"]
    r, out = bench(null.port, *words)
    assert not r["tokens_counted"] and r["itl_ms"] == r["gap_ms"] and "between events (ITL)" in out


def test_demo_model():
    s = Server(max_batch_size=16).baseline()
    r, _ = bench(s.port, "--limit", 12, "--rate", "inf", "--concurrency", 12, "--input", 77, "--output", 9,
                 "--ignore-eos")
    check(r, 12, 12 * 77, 12 * 9)
    assert r["model"] == NAME and r["context"] == 1024
    r, out = bench(s.port, "--limit", 3, "--rate", 50, "--input", 3000, "--output", 700, "--ignore-eos")
    check(r, 3, 3 * 512, 3 * 512)  # half of the context each
    assert r["clipped"] == {"prompts": 3, "prompt_tokens": 3 * 2488, "answers": 3,
                            "answer_tokens": 3 * 188, "dropped": 0}
    assert "CLIPPED to 1024" in out
    s.quiesce()
    assert s.stop() == 0


def test_traces(null):
    r, _ = bench(null.port, "--trace", GOLDEN + "/azure.csv", "--speed", 10, "--ignore-eos")
    assert r["trace_format"] == "azure" and r["outcomes"]["ok"] == 3
    assert [q["out"] for q in r["requests"]] == [44, 109, 601]
    assert [q["in"] for q in r["requests"]][:2] == [374, 396]
    assert [round(q["at_s"], 3) for q in r["requests"]] == [0, 0.075, 0.325]
    r, _ = bench(null.port, "--trace", GOLDEN + "/mooncake.jsonl", "--speed", 3, "--ignore-eos")
    check(r, 3, 1025 + 512 + 700, 515)
    # the first block is one text: the third request comes a second after the first
    assert r["requests"][2]["cached"] >= 448, r["requests"]
    r, _ = bench(null.port, "--trace", GOLDEN + "/sharegpt.json", "--rate", 100, "--ignore-eos")
    assert r["outcomes"]["ok"] == 2 and r["tokens_in"] > 5 and r["short_answers"] == 0


def test_svg(null):
    with tempfile.NamedTemporaryFile(suffix=".svg") as f:
        bench(null.port, "--limit", 5, "--rate", 100, "--output", 4, "--svg", f.name)
        import xml.etree.ElementTree as tree
        root = tree.parse(f.name).getroot()
        assert root.tag.endswith("svg") and len(root.findall(".//{*}polyline")) == 3


def test_key(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("me sk-secret-of-the-bench-0123456789\n")
    keys.chmod(0o600)
    s = Server(api_keys=str(keys))
    key = tmp_path / "key"
    key.write_text("sk-secret-of-the-bench-0123456789\n")
    r, _ = bench(s.port, "--limit", 2, "--rate", 50, "--output", 2, "--api-key-file", key)
    assert r["outcomes"]["ok"] == 2
    key.write_text("wrong\n")
    _, out = bench(s.port, "--limit", 2, "--api-key-file", key, code=75)
    assert "401" in out and "wrong" not in out
    _, out = bench(s.port, "--limit", 2, "--api-key-file", tmp_path / "none", code=66)
    assert s.stop() == 0


def test_full_queue():
    s = Server(model=null_model(null_step_us=20000, null_sleep=True), queue_size=1, max_batch_size=1)
    r, out = bench(s.port, "--limit", 40, "--rate", 5000, "--output", 5, "--input", 30, "--ignore-eos")
    assert r["outcomes"]["ok"] >= 1 and r["outcomes"]["status"] >= 1
    assert r["outcomes"]["ok"] + r["outcomes"]["status"] == 40
    assert "status (429)" in out
    idle(s)
    assert s.stop() == 0


def test_interrupt(null):
    p = subprocess.Popen([TURBO, "bench", "serve", "http://127.0.0.1:%d" % null.port, "--rate", "20",
                          "--limit", "1000", "--output", "1500", "--ignore-eos"],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until(lambda: null.gauge("num_requests_running") >= 3)
    p.send_signal(signal.SIGINT)
    out = p.communicate(timeout=30)[0].decode()
    assert p.returncode == 75 and "cancelled" in out and "interrupted" in out, out
    idle(null)


def test_server_dies():
    s = Server(model=null_model(null_step_us=1000, null_sleep=True))
    t = threading.Thread(target=lambda: (until(lambda: s.gauge("num_requests_running") >= 3),
                                         s.process.kill()))
    t.start()
    r, out = bench(s.port, "--rate", 50, "--limit", 1000, "--output", 900, "--ignore-eos", code=74)
    t.join()
    s.process.wait()
    assert r["gone"] and r["outcomes"]["cut off"] >= 3 and r["outcomes"]["connect"] >= 16
    assert "the server is gone" in out and r["requests_sent"] < 1000


MODELS = b'{"object":"list","data":[{"id":"fake"}]}'


class Fake:
    """Answers what calibration asks; then `behave(socket)` for each streamed request."""

    def __init__(self, behave, usage=True):
        self.behave, self.usage = behave, usage
        self.s = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.s.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                c = self.s.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.one, args=(c,), daemon=True).start()

    def one(self, c):
        data = b""
        while b"\r\n\r\n" not in data:
            x = c.recv(65536)
            if not x:
                return c.close()
            data += x
        head, _, body = data.partition(b"\r\n\r\n")
        n = [int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length")]
        while n and len(body) < n[0]:
            body += c.recv(65536)
        path = head.split()[1]
        if path == b"/v1/models":
            self.plain(c, 200, MODELS)
        elif path == b"/tokenize":
            self.plain(c, 404, b"{}")
        elif b'"stream":true' in body:
            self.behave(c)
        else:
            words = len(json.loads(body)["prompt"].split())
            self.plain(c, 200, json.dumps({"choices": [{"text": "a"}], "usage": {
                "prompt_tokens": words + 1}} if self.usage else {"choices": []}).encode())
        c.close()

    @staticmethod
    def plain(c, status, body):
        c.sendall(b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                  % (status, len(body), body))


def sse(c, *events):
    c.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" +
              b"".join(b"data: %s\n\n" % e for e in events))


TEXT = b'{"choices": [{"index": 0, "text": "x", "finish_reason": null}]}'


@pytest.mark.parametrize("name,behave,words", [
    ("status", lambda c: Fake.plain(c, 500, b'{"error":{"message":"broken"}}'), "broken"),
    ("cut off", lambda c: sse(c, TEXT), "cut off"),
    ("cut off", lambda c: None, "cut off"),
    ("error event", lambda c: sse(c, TEXT, b'{"error":{"message":"out of order"}}', b"[DONE]"),
     "out of order"),
    ("protocol", lambda c: sse(c, b"hello", b"[DONE]"), "no event stream"),
    ("protocol", lambda c: Fake.plain(c, 200, b"{}"), "no event stream"),
    ("protocol", lambda c: c.sendall(b"220 smtp\r\n"), "no HTTP"),
    ("timeout", lambda c: time.sleep(3), "no request succeeded"),
])
def test_bad_servers(name, behave, words):
    f = Fake(behave)
    r, out = bench(f.port, "--limit", 4, "--rate", 100, "--timeout", 1, "--input", 20, code=75)
    assert r["outcomes"][name] == 4 and words in out, out
    f.s.close()


def test_without_usage():
    f = Fake(lambda c: sse(c, TEXT, TEXT, TEXT, b"[DONE]"))
    r, out = bench(f.port, "--limit", 4, "--rate", 100, "--output", 3)
    assert r["outcomes"]["ok"] == r["no_usage"] == 4 and r["tokens_out"] == 12
    f.s.close()
    f = Fake(lambda c: None, usage=False)
    _, out = bench(f.port, "--limit", 4, code=65)
    assert "tells no usage" in out
    f.s.close()


@pytest.mark.parametrize("words,code,says", [
    (["--trace", "/nonexistent"], 66, "No such file"),
    (["--trace", MODEL + "/config.json"], 65, "config.json:1: "),
    (["--trace", GOLDEN + "/sharegpt.json"], 64, "has no times"),
    (["--limit", 0], 64, "--limit is"),
    (["--rate", "fast"], 64, "--rate is"),
    (["--rate", "inf"], 64, "needs --concurrency"),
    (["--concurrency", 4], 64, "goes with --rate inf"),
    (["--speed", 4], 64, "goes with --trace"),
    (["--slo", "ttft"], 64, "--slo is"),
    (["--endpoint", "embed"], 64, "--endpoint is"),
    (["--seconds", 0.001, "--rate", 1], 64, "no request is left"),
    (["--context", 17, "--endpoint", "chat"], 0, ""),
    (["--port", 1], 64, "--port"),
])
def test_bad_input(null, words, code, says):
    _, out = bench(null.port, "--limit", 2, *words, code=code) if "--limit" not in words else \
        bench(null.port, *words, code=code)
    assert says in out, out


def test_bad_address():
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    _, out = bench(s.getsockname()[1], code=74)
    assert "is the server running there" in out
    s.close()
