"""Dialogues the server keeps, their snapshots, priorities, salts, tenants."""
import json
import os
import re
import threading
import time

import pytest

from kit import Server, null_model, until
from test_keys import ADMIN, OTHER, USER, bearer, write_keys

URL = "/v1/chat/interactive"


def turn(server, prompt, session=None, **fields):
    body = {"prompt": prompt, "interactive_mode": True, "temperature": 0, **fields}
    if session is not None:
        body["session_id"] = session
    return body


def talk(server, prompt, session=None, headers=None, **fields):
    return server.ok(URL, turn(server, prompt, session, **fields), headers=headers)


def test_turns_compute_only_what_is_new(server):
    a = talk(server, "What is a KV cache?")
    sid = a["session_id"]
    assert a["history_tokens"] == 0 and a["finish_reason"] == "stop"
    assert set(a) == {"text", "tokens", "input_tokens", "history_tokens", "finish_reason",
                      "stop_reason", "session_id", "cached_tokens", "timings"}
    b = talk(server, "Tell me a short story.", sid)
    # The answer ended with a stop token, which is not computed.
    assert b["history_tokens"] == a["input_tokens"] + a["tokens"] - 1
    assert b["cached_tokens"] >= b["history_tokens"] - 1
    # The same dialogue, resent as a whole, answers the same.
    whole = server.chat([{"role": "user", "content": "What is a KV cache?"},
                         {"role": "assistant", "content": a["text"]},
                         {"role": "user", "content": "Tell me a short story."}], max_tokens=400)
    assert whole["choices"][0]["message"]["content"] == b["text"]
    assert server.post(URL, {"prompt": "", "session_id": sid, "request_output_len": 0}).status == 200
    assert server.post(URL, {"prompt": "", "session_id": sid,
                             "request_output_len": 0}).code == "session_not_found"


def test_stream_is_one_object_a_line(server):
    whole = talk(server, "Tell me a short story.")
    r = server.post(URL, turn(server, "Tell me a short story.", stream=True))
    assert r.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(x) for x in r.body.decode().split("\n") if x]
    assert "".join(x["text"] for x in lines) == whole["text"]
    assert all(x["finish_reason"] is None for x in lines[:-1])
    assert lines[-1]["finish_reason"] == "stop" and lines[-1]["tokens"] == whole["tokens"]
    assert sorted(x["tokens"] for x in lines) == [x["tokens"] for x in lines]


def test_without_interactive_mode_nothing_is_kept(server):
    talk(server, "What is a KV cache?", "once", interactive_mode=False)
    assert "once" not in [s["id"] for s in server.get("/slots").json()]
    talk(server, "Hi", "twice")
    r = talk(server, "What is a token?", "twice", interactive_mode=False)
    assert r["history_tokens"] > 0  # the history counts for this turn, and goes with it
    assert "twice" not in [s["id"] for s in server.get("/slots").json()]


def test_messages_and_stop_strings(server):
    a = talk(server, [{"role": "system", "content": "Be brief."},
                      {"role": "user", "content": "Tell me a short story."}], "m", stop=["."])
    assert a["stop_reason"] == "." and not a["text"].endswith(".")
    b = talk(server, "Go on.", "m")
    whole = server.chat([{"role": "system", "content": "Be brief."},
                         {"role": "user", "content": "Tell me a short story."},
                         {"role": "assistant", "content": a["text"]},
                         {"role": "user", "content": "Go on."}], max_tokens=400)
    assert whole["choices"][0]["message"]["content"] == b["text"]


@pytest.mark.parametrize("body", [
    {"prompt": 3}, {"prompt": []}, {"prompt": ["a"]}, {"prompt": "a", "session_id": "a b"},
    {"prompt": "a", "session_id": -2}, {"prompt": "a", "session_id": 1.5},
    {"prompt": "a", "session_id": "x" * 65}, {"prompt": "a", "interactive_mode": 1},
    {"prompt": "a", "n": 2}, {"prompt": "a", "request_output_len": -1},
    {"prompt": "a", "image_url": "data:x"}, {"prompt": "a", "cancel": "yes"},
    {"prompt": "a " * 3000, "interactive_mode": True}])
def test_bad_bodies(server, body):
    r = server.post(URL, {"interactive_mode": True, **body})
    assert r.status == 400, (r.status, r.body)
    assert r.code in ("invalid_value", "unsupported_value", "context_length_exceeded")


def test_a_session_is_used_once_at_a_time(slow):
    lines = []
    s = slow.connect()
    body = json.dumps(turn(slow, "Tell me a short story.", "busy", stream=True, ignore_eos=True,
                           max_tokens=400)).encode()
    s.sendall(b"POST /v1/chat/interactive HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
              b"application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    while b"text" not in b"".join(lines):
        lines.append(s.recv(4096))
    r = slow.post(URL, turn(slow, "Hi", "busy"))
    assert r.status == 400 and r.code == "session_busy"
    assert slow.post("/slots/busy?action=erase", {}).code == "session_busy"
    assert slow.post(URL, {"session_id": "busy", "cancel": True}).status == 200
    rest = b"".join(lines)
    while b"request_cancelled" not in rest:
        more = s.recv(65536)
        assert more, rest[-300:]
        rest += more
    s.close()
    # The turn that did not come to its end is taken back.
    until(lambda: not slow.get("/slots").json() or
          not any(x["id"] == "busy" for x in slow.get("/slots").json()))


def test_a_client_that_leaves_takes_its_turn_with_it(slow):
    first = talk(slow, "What is a KV cache?", "left", max_tokens=5)
    s = slow.connect()
    body = json.dumps(turn(slow, "Tell me a short story.", "left", stream=True, ignore_eos=True,
                           max_tokens=400)).encode()
    s.sendall(b"POST /v1/chat/interactive HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
              b"application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    s.recv(100)
    s.close()

    def slot():
        return [x for x in slow.get("/slots").json() if x["id"] == "left"][0]
    until(lambda: not slot()["is_processing"])
    assert slot()["n_messages"] == 2
    assert slot()["n_tokens"] == first["input_tokens"] + first["tokens"]
    slow.ok("/slots/left?action=erase", {})


def test_sessions_make_room():
    s = Server(max_sessions=3)
    for i in range(5):
        talk(s, "Hi", i)
    assert sorted(x["id"] for x in s.get("/slots").json()) == ["2", "3", "4"]
    assert s.stop() == 0


@pytest.fixture(scope="module")
def saving(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("slots"))
    keys = str(tmp_path_factory.mktemp("k") / "keys")
    write_keys(keys, "alice " + USER, "bob " + OTHER, "root %s admin" % ADMIN)
    s = Server(slot_save_path=folder, api_keys=keys)
    s.folder, s.keys = folder, keys
    s.headers = bearer(USER)
    yield s
    assert s.stop() == 0


def test_save_and_restore(saving):
    talk(saving, "What is a KV cache?", 1)
    saved = saving.ok("/slots/1?action=save", {"filename": "a.kv"})
    assert saved["n_saved"] == saved["n_tokens"] > 0
    assert os.path.getsize(os.path.join(saving.folder, "a.kv")) == saved["n_written"]
    assert os.listdir(saving.folder) == ["a.kv"]  # no temporary file is left
    want = talk(saving, "Tell me a short story.", 1)
    # Another process, an empty cache: the second turn still computes its own tokens only.
    other = Server(slot_save_path=saving.folder, api_keys=saving.keys)
    other.headers = bearer(USER)
    r = other.ok("/slots/x?action=restore", {"filename": "a.kv"})
    assert r["n_restored"] == saved["n_saved"] and r["n_read"] == saved["n_written"]
    got = talk(other, "Tell me a short story.", "x")
    assert got["text"] == want["text"]
    assert got["cached_tokens"] >= got["history_tokens"] - 1
    assert other.stop() == 0
    saving.ok("/slots/1?action=erase", {})
    assert saving.post("/slots/1?action=save", {"filename": "b.kv"}).code == "session_not_found"


def test_snapshots_of_others(saving):
    talk(saving, "Hi", 1)
    saving.ok("/slots/1?action=save", {"filename": "mine.kv"})
    for key in (OTHER, ADMIN):
        r = saving.post("/slots/1?action=restore", {"filename": "mine.kv"}, headers=bearer(key))
        assert r.status == 404 and r.code == "snapshot_not_found"
    assert saving.get("/slots", headers=bearer(OTHER)).json() == []


def test_another_model_or_format(saving):
    talk(saving, "Hi", 1)
    saving.ok("/slots/1?action=save", {"filename": "f.kv"})
    had = saving.get("/props").json()["kv_dtype"]
    for flags, what in (({"cache_block_seq_len": 32}, "blocks of 32"), ({"kv_dtype": "f32"}, "has f32"),
                        ({"quant_policy": 8}, "has int8"), ({"quant_policy": 4}, "has int4"),
                        ({"isa": "scalar"}, "instruction set")):
        s = Server(slot_save_path=saving.folder, api_keys=saving.keys, **flags)
        s.headers = bearer(USER)
        r = s.post("/slots/1?action=restore", {"filename": "f.kv"})
        assert r.status == 400 and r.code == "snapshot_refused"
        text = r.json()["error"]["message"]
        assert what in text
        assert what == "instruction set" or f"holds {had} keys and values in blocks of 64" in text
        assert s.stop() == 0


def test_quantised_snapshot(saving):
    """Saved from int8 and restored into int8: the next turn is the one of the server that saved."""
    first, other = (Server(slot_save_path=saving.folder, api_keys=saving.keys, quant_policy=8)
                    for _ in range(2))
    first.headers = other.headers = bearer(USER)
    assert first.get("/props").json()["kv_dtype"] == "int8"
    talk(first, "What is a KV cache?", 1)
    saved = first.ok("/slots/1?action=save", {"filename": "q.kv"})
    want = talk(first, "Tell me a short story.", 1)
    assert other.ok("/slots/1?action=restore", {"filename": "q.kv"})["n_restored"] == saved["n_saved"]
    got = talk(other, "Tell me a short story.", 1)
    assert got["text"] == want["text"] and got["cached_tokens"] >= got["history_tokens"] - 1
    assert first.stop() == 0 and other.stop() == 0


def test_damaged_snapshots(saving):
    talk(saving, "Hi", 1)
    saving.ok("/slots/1?action=save", {"filename": "d.kv"})
    path = os.path.join(saving.folder, "d.kv")
    with open(path, "rb") as f:
        good = f.read()
    fds = saving.n_fds()
    bad = [good[:n] for n in (0, 1, 50, 151, 400, len(good) // 2, len(good) - 1)]
    bad += [good[:at] + bytes([good[at] ^ 1]) + good[at + 1:]
            for at in list(range(0, 160, 3)) + list(range(160, len(good), len(good) // 40))]
    bad += [good + b"x", b"", b"turbo-kv" + b"\xff" * 300]
    for data in bad:
        with open(path, "wb") as f:
            f.write(data)
        r = saving.post("/slots/2?action=restore", {"filename": "d.kv"})
        assert r.status in (400, 404), (r.status, r.body)
        assert "2" not in [x["id"] for x in saving.get("/slots").json()]
    saving.headers = bearer(ADMIN)
    m = {k: v for (k, l), v in saving.metrics().items() if k.startswith("kv_blocks")}
    saving.headers = bearer(USER)
    assert m["kv_blocks_free"] + m["kv_blocks_cached"] == m["kv_blocks_total"]
    assert saving.n_fds() <= fds + 1
    for name in ("../d.kv", ".d.kv", "", "a/b", "x" * 129, 3, None):
        r = saving.post("/slots/1?action=save", {"filename": name})
        assert r.status == 400, name
    assert saving.post("/slots/1?action=fly", {"filename": "a"}).status == 400
    assert saving.post("/slots/1", {"filename": "a"}).status == 400
    assert saving.post("/slots/nobody?action=restore", {"filename": "none.kv"}).status == 404


def test_snapshots_are_off_by_default(server):
    talk(server, "Hi", "s")
    assert server.post("/slots/s?action=save", {"filename": "a"}).code == "not_configured"
    server.ok("/slots/s?action=erase", {})


def test_priority_salt_and_cached_tokens(server):
    prompt = "The cache is " * 20
    assert server.complete(prompt, cache_salt="p")["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    r = server.complete(prompt, cache_salt="p", priority=-5)
    assert r["usage"]["prompt_tokens_details"]["cached_tokens"] == r["usage"]["prompt_tokens"] - 1
    r = server.complete(prompt, cache_salt="q")
    assert r["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    for bad in ({"priority": 1001}, {"priority": "a"}, {"cache_salt": 3}, {"cache_salt": "x" * 257}):
        assert server.post("/v1/completions", {"prompt": "a", **bad}).status == 400


def test_keys_do_not_see_each_others_prompts(saving):
    prompt = "A secret of alice that nobody else can guess by its speed."
    cached = []
    for key in (USER, OTHER, USER, OTHER):
        r = saving.ok("/v1/completions", {"prompt": prompt, "max_tokens": 1}, headers=bearer(key))
        cached.append(r["usage"]["prompt_tokens_details"]["cached_tokens"] > 1)  # bos is everybody's
    assert cached == [False, False, True, True]


def test_f25_one_key_floods(tmp_path):
    keys = str(tmp_path / "keys")
    write_keys(keys, "heavy " + USER, "light " + OTHER)
    # A step of 5 ms whatever else the machine does: 60 answers take 4.5 s of the server's time.
    s = Server(model=null_model(null_step_us=5000, null_sleep=True), api_keys=keys, max_batch_size=4)
    body = {"prompt": "one two", "max_tokens": 60, "ignore_eos": True, "temperature": 0}
    ends = []

    def heavy():
        assert s.post("/v1/completions", body, headers=bearer(USER), timeout=120).status == 200
        ends.append(time.monotonic())
    threads = [threading.Thread(target=heavy) for _ in range(60)]
    for t in threads:
        t.start()
    time.sleep(0.2)
    for _ in range(3):
        r = s.ok("/v1/completions", {**body, "max_tokens": 3}, headers=bearer(OTHER))
        assert r["usage"]["completion_tokens"] == 3
    light_done = time.monotonic()
    for t in threads:
        t.join()
    assert sum(e > light_done for e in ends) >= 20, "the light key waited for the heavy one"
    assert s.stop() == 0
    assert not re.search("error|Sanitizer", s.read_log())
