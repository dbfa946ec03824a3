"""Policies while the server runs: put, replaced, deleted; hooks of running requests; who may do it."""
import os
import signal
import subprocess
import threading

import pytest

import kit

CHAT = {"messages": [{"role": "user", "content": "Tell me a short story."}], "max_tokens": 12,
        "temperature": 0}


@pytest.fixture(scope="module")
def server():
    s = kit.Server().baseline()
    yield s
    s.stop()


def put(s, name, source, **kw):
    return s.request("PUT", "/v1/policies/" + name, {"source": source}, **kw)


def chat(s, **fields):
    return s.post("/v1/chat/completions", {**CHAT, "return_token_ids": True, **fields})


def ids_of(reply):
    assert reply.status == 200, reply.body
    return reply.json()["choices"][0]["token_ids"]


def only(token):
    return "turbo.policy{ logits = function(req, lg) lg:allow{%d} end }" % token


def test_put_use_delete(server):
    assert put(server, "fixed", only(400)).status == 201
    assert ids_of(chat(server, policy="fixed")) == [400] * 12
    r = put(server, "fixed", only(401))
    assert r.status == 200 and r.json()["hooks"] == "logits"
    assert ids_of(chat(server, policy="fixed")) == [401] * 12
    one = server.get("/v1/policies/fixed")
    assert one.status == 200 and one.json()["source"] == only(401)
    rows = server.get("/v1/policies").json()["data"]
    assert [(x["name"], x["origin"], x["hooks"]) for x in rows] == [("fixed", "put", "logits")]
    assert "fixed" in server.get("/props").json()["policies"]
    assert server.request("DELETE", "/v1/policies/fixed").status == 200
    assert server.request("DELETE", "/v1/policies/fixed").code == "policy_not_found"
    assert chat(server, policy="fixed").code == "policy_not_found"


def test_command_line(server, tmp_path):
    turbo = os.path.join(os.path.dirname(kit.TURBOD), "turbo")
    script = tmp_path / "one.lua"
    script.write_text(only(402))

    def policy(*words):
        r = subprocess.run([turbo, "policy", *words], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, timeout=60)
        return r.returncode, r.stdout.decode(), r.stderr.decode()

    url = "127.0.0.1:%d" % server.port
    for i, form in enumerate((url, "http://" + url, "http://" + url + "/v1", "http://" + url + "/v1/")):
        name = "cli%d" % i
        assert policy("load", form, name, str(script)) == (0, name + ": logits\n", "")
        code, out, err = policy("list", form)
        assert code == 0 and name in out and "put" in out, (form, err)
        assert ids_of(chat(server, policy=name)) == [402] * 12
        assert server.request("DELETE", "/v1/policies/" + name).status == 200
    script.write_text("turbo.policy{")
    code, _, err = policy("load", "http://" + url + "/v1", "bad", str(script))
    assert code != 0 and "400" in err and "expected" in err, err
    code, _, err = policy("list", "http://127.0.0.1:1/v1")
    assert code == 74 and "is turbod running there?" in err, err


def test_refused(server):
    plain = ids_of(chat(server))
    for source, text in ((5, "give source"), ("turbo.policy{", "expected"), ("return 1", "turbo.policy"),
                         ("turbo.policy{ token = function() while true do end end, "
                          "init = function() while true do end end }", "script limit"),
                         ("x" * 70000, "65536"), ("turbo.policy(turbo.chain():ban{9999999})", "token id")):
        r = put(server, "bad", source)
        assert r.status == 400 and text in r.json()["error"]["message"], r.body
    assert put(server, "Bad", only(1)).status == 400
    assert put(server, "a" * 65, only(1)).status == 400
    assert server.request("PUT", "/v1/policies/bad", {"source": only(1), "x": 1}).status == 400
    assert server.request("PATCH", "/v1/policies/bad", {}).headers["allow"] == "GET, PUT, DELETE"
    assert server.get("/v1/policies").json()["data"] == []
    assert ids_of(chat(server)) == plain


def test_hooks(server):
    plain = ids_of(chat(server))
    put(server, "stopper", "turbo.policy{ args = {'at'}, request = function(req) "
        "req.state.at = req.args.at or 3 end, token = function(req, tok) "
        "if tok.index == req.state.at then req:stop() end end }")
    r = chat(server, policy="stopper", policy_args={"at": 5})
    assert ids_of(r) == plain[:5] and r.json()["choices"][0]["finish_reason"] == "stop"
    assert ids_of(chat(server, policy="stopper")) == plain[:3]
    assert chat(server, policy="stopper", policy_args={"to": 5}).code == "invalid_value"
    # Each of several answers has a state of its own.
    r = chat(server, policy="stopper", n=3, temperature=1)
    assert [len(c["token_ids"]) for c in r.json()["choices"]] == [3, 3, 3]
    # A failure is told inside the stream, and to this client alone.
    put(server, "broken", "turbo.policy{ token = function(req, tok) if tok.index == 4 then "
        "error('no more') end end }")
    events = list(server.stream("/v1/chat/completions", {**CHAT, "policy": "broken", "stream": True}))
    assert events[-1]["error"]["code"] == "script_error" and "no more" in events[-1]["error"]["message"]
    assert chat(server, policy="broken").code == "script_error"
    put(server, "none", "turbo.policy(turbo.chain():allow{})")
    r = chat(server, policy="none")
    assert r.status == 500 and "bans every token" in r.json()["error"]["message"]
    put(server, "loop", "turbo.policy{ token = function() while true do end end }")
    assert chat(server, policy="loop").code == "script_timeout"
    put(server, "hungry", "turbo.policy{ token = function() local t = {} while true do "
        "t[#t + 1] = ('x'):rep(1000) .. #t end end }")
    assert chat(server, policy="hungry").code == "script_timeout"
    assert ids_of(chat(server)) == plain
    server.quiesce()


def test_admin_only(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("boss 0123456789abcdef0123456789abcdef admin\nuser fedcba9876543210fedcba9876543210\n")
    keys.chmod(0o600)
    s = kit.Server(api_keys=keys, wait=False)
    s.headers = {"Authorization": "Bearer 0123456789abcdef0123456789abcdef"}
    s.wait_ready()
    user = {"Authorization": "Bearer fedcba9876543210fedcba9876543210"}
    assert put(s, "fixed", only(400)).status == 201
    assert put(s, "mine", only(400), headers=user).status == 403
    assert put(s, "mine", only(400), headers={"Authorization": None}).status == 401
    assert s.get("/v1/policies/fixed", headers=user).status == 403
    assert s.request("DELETE", "/v1/policies/fixed", headers=user).status == 403
    assert s.get("/v1/policies", headers=user).json()["data"][0]["name"] == "fixed"
    assert ids_of(s.post("/v1/chat/completions", {**CHAT, "policy": "fixed", "return_token_ids": True},
                         headers=user)) == [400] * 12
    s.stop()


def reload(s):
    before = s.read_log().count("reloaded")
    s.process.send_signal(signal.SIGHUP)
    kit.until(lambda: s.read_log().count("reloaded") > before)


def test_put_outlives_reload(tmp_path):
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "a.lua").write_text(only(410))
    s = kit.Server(policies=folder)
    assert put(s, "b", only(411)).status == 201
    assert put(s, "a", only(412)).status == 200  # stands before the file
    (folder / "c.lua").write_text(only(413))
    reload(s)
    names = {x["name"]: x["origin"] for x in s.get("/v1/policies").json()["data"]}
    assert names == {"a": "put", "b": "put", "c": "file"}
    assert ids_of(chat(s, policy="a"))[0] == 412
    assert s.request("DELETE", "/v1/policies/a").status == 200
    reload(s)
    assert ids_of(chat(s, policy="a"))[0] == 410
    s.stop()


def test_replaced_while_streaming():
    """A policy replaced a thousand times while 64 clients stream: every answer is whole, and of one
    generation from its first token to its last."""
    s = kit.Server(model=kit.null_model(null_step_us=200, null_sleep=True), max_batch_size=64).baseline()
    first, most, tokens = 300, 1000, 24
    assert put(s, "p", only(first)).status == 201
    done, bad, answers = threading.Event(), [], [0] * 64

    def client(k):
        while not done.is_set() and not bad:
            ids = []
            for e in s.stream("/v1/completions", {"prompt": [5, 6, 7], "max_tokens": tokens, "policy": "p",
                                                  "ignore_eos": True, "return_token_ids": True,
                                                  "stream": True}):
                if "error" in e:
                    bad.append(e)
                    return
                for c in e["choices"]:
                    ids += c.get("token_ids") or []
            if len(ids) != tokens or len(set(ids)) != 1:
                bad.append(ids)
            answers[k] += 1

    threads = [threading.Thread(target=client, args=(k,)) for k in range(64)]
    for t in threads:
        t.start()
    for i in range(1, most + 1):
        assert put(s, "p", only(first + i)).status == 200
    done.set()
    for t in threads:
        t.join()
    assert not bad, bad[:3]
    assert min(answers) >= 1 and sum(answers) >= 128, answers
    s.quiesce()
    s.stop()
