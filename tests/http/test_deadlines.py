"""Requests that run out of time end with an error, never with half an answer that looks whole."""
import json
import threading

import pytest

from kit import Server


@pytest.fixture(scope="module")
def hasty():
    s = Server(isa="scalar", request_timeout_ms=400, queue_timeout_ms=150, max_batch_size=1)
    yield s
    assert s.stop() == 0


def test_request_timeout(hasty):
    body = {"prompt": "one two", "max_tokens": 900, "ignore_eos": True, "temperature": 0}
    r = hasty.post("/v1/completions", body)
    assert r.status == 503 and r.code == "timeout", r.body[-300:]
    assert "request_timeout_ms" in r.json()["error"]["message"]
    r = hasty.post("/v1/completions", {**body, "stream": True})
    events = [e for e in r.body.decode().split("\n\n") if e.startswith("data: {")]
    assert json.loads(events[-1][6:])["error"]["code"] == "timeout"
    assert r.body.endswith(b"data: [DONE]\n\n")
    r = hasty.post("/v1/chat/interactive", {"prompt": "one two", "max_tokens": 900,
                                            "interactive_mode": True, "ignore_eos": True})
    assert r.status == 503 and r.code == "timeout"
    assert hasty.get("/slots").json() == []


def test_queue_timeout(hasty):
    body = {"prompt": "one two", "max_tokens": 900, "ignore_eos": True, "temperature": 0}
    first = threading.Thread(target=hasty.post, args=("/v1/completions", body))
    first.start()
    while not hasty.gauge("num_requests_running"):
        pass
    r = hasty.post("/v1/completions", body)
    first.join()
    assert r.status == 503 and "queue_timeout_ms" in r.json()["error"]["message"], r.body[-300:]
