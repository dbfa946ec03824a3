"""What answers look like: chat and completions, streamed or not."""
import json

import pytest

from kit import NAME, text_of

CHAT = "/v1/chat/completions"
COMP = "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "What is turbod?"}], "temperature": 0,
         "max_tokens": 40}


def test_chat(server):
    r = server.chat()
    assert r["object"] == "chat.completion" and r["id"].startswith("chatcmpl-")
    assert r["model"] == NAME
    [c] = r["choices"]
    assert c["index"] == 0 and c["message"]["role"] == "assistant"
    assert "turbod" in c["message"]["content"]
    assert c["finish_reason"] == "stop" and c["stop_reason"] is None and c["logprobs"] is None
    u = r["usage"]
    assert u["prompt_tokens"] + u["completion_tokens"] == u["total_tokens"]
    assert 0 <= u["prompt_tokens_details"]["cached_tokens"] < u["prompt_tokens"]
    t = r["timings"]
    assert t["prompt_n"] == u["prompt_tokens"] and t["predicted_n"] == u["completion_tokens"]
    assert t["predicted_per_second"] > 0 and "warnings" not in r


def test_chat_stream(server):
    whole = server.chat()["choices"][0]["message"]["content"]
    ev = server.stream(CHAT, {**HELLO, "stream_options": {"include_usage": True}})
    assert len({e["id"] for e in ev}) == 1 and len({e["created"] for e in ev}) == 1
    assert all(e["object"] == "chat.completion.chunk" and e["model"] == NAME for e in ev)
    first = ev[0]["choices"][0]
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert first["finish_reason"] is None and first["index"] == 0
    assert all(e["choices"][0]["finish_reason"] is None for e in ev[:-2])
    assert ev[-2]["choices"][0]["finish_reason"] == "stop" and ev[-2]["choices"][0]["delta"] == {}
    assert ev[-2]["timings"]["predicted_n"] > 0
    assert ev[-1]["choices"] == [] and ev[-1]["usage"]["completion_tokens"] > 0
    assert all(e["usage"] is None for e in ev[:-1])
    assert text_of(ev) == whole
    assert all("usage" not in e for e in server.stream(CHAT, HELLO))


def test_continuous_usage(server):
    ev = server.stream(CHAT, {**HELLO, "stream_options": {"include_usage": True,
                                                          "continuous_usage_stats": True}})
    counts = [e["usage"]["completion_tokens"] for e in ev]
    assert counts == sorted(counts) and counts[-1] == counts[-2] > 1
    last = ev[-1]["usage"]
    assert all(e["usage"]["prompt_tokens"] == last["prompt_tokens"] for e in ev)
    assert all(e["usage"]["total_tokens"] == e["usage"]["prompt_tokens"] + n for e, n in zip(ev, counts))
    assert ev[-1]["choices"] == [] and ev[-2]["choices"]
    r = server.post(CHAT, {**HELLO, "stream": True, "stream_options": {"continuous_usage_stats": 1}})
    assert r.status == 400 and "continuous_usage_stats" in str(r.body)


def test_length_and_defaults(server):
    r = server.chat("Tell me a story", max_tokens=3)
    assert r["choices"][0]["finish_reason"] == "length"
    assert r["usage"]["completion_tokens"] == 3
    r = server.chat("Tell me a story", max_tokens=None, max_completion_tokens=4)
    assert r["usage"]["completion_tokens"] == 4
    r = server.ok(COMP, {"prompt": "a", "ignore_eos": True, "temperature": 0})
    assert r["usage"]["total_tokens"] == 1024  # the rest of the context


def test_exact_boundary(server):
    n = server.ok("/tokenize", {"prompt": "word " * 200})["count"]
    ids = server.ok("/tokenize", {"prompt": "word " * 200})["tokens"]
    ids = (ids * 6)[:1023]
    assert n and server.complete(ids, max_tokens=1)["usage"]["total_tokens"] == 1024
    assert server.complete(ids, max_tokens=None)["usage"]["completion_tokens"] == 1
    for body, words in (({"prompt": ids, "max_tokens": 2}, ("1023", "2", "1024")),
                        ({"prompt": ids + ids[:1]}, ("1024",))):
        r = server.post(COMP, body)
        assert r.status == 400 and r.code == "context_length_exceeded"
        assert all(w in r.json()["error"]["message"] for w in words)


def test_n_and_seed(server):
    body = {**HELLO, "temperature": 1.2, "seed": 7, "max_tokens": 12}
    r = server.ok(CHAT, {**body, "n": 3})
    assert [c["index"] for c in r["choices"]] == [0, 1, 2]
    for i in range(3):  # choice i is the answer of seed + i alone
        alone = server.ok(CHAT, {**body, "seed": 7 + i})
        assert alone["choices"][0]["message"] == r["choices"][i]["message"]
    assert r["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    ev = server.stream(CHAT, {**body, "n": 3})
    for i in range(3):
        assert text_of(ev, i) == r["choices"][i]["message"]["content"]
    ends = [c for e in ev for c in e["choices"] if c["finish_reason"]]
    assert sorted(c["index"] for c in ends) == [0, 1, 2]


def test_completions_forms(server):
    one = server.complete("What is")
    assert one["object"] == "text_completion" and one["id"].startswith("cmpl-")
    ids = server.ok("/tokenize", {"prompt": "What is"})["tokens"]
    two = server.complete(["What is", "Hello"])
    assert [c["index"] for c in two["choices"]] == [0, 1]
    assert two["choices"][0]["text"] == one["choices"][0]["text"]
    assert server.complete(ids)["choices"][0]["text"] == one["choices"][0]["text"]
    lists = server.complete([ids, ids], n=2)
    assert [c["text"] for c in lists["choices"]] == [one["choices"][0]["text"]] * 4
    echo = server.complete("What is", echo=True)
    assert echo["choices"][0]["text"] == "What is" + one["choices"][0]["text"]
    assert text_of(server.stream(COMP, {"prompt": "What is", "echo": True, "temperature": 0,
                                        "max_tokens": 16})) == echo["choices"][0]["text"]
    echo = server.complete(ids, echo=True)
    assert echo["choices"][0]["text"].strip().startswith("What is")


def test_empty_prompt_is_bos(server):
    r = server.complete("", max_tokens=2, return_token_ids=True)
    assert r["choices"][0]["prompt_token_ids"] == [1]


def test_stop_strings_at_every_split(server):
    full = server.chat()["choices"][0]["message"]["content"]
    cases = [full[i:i + n] for n in (1, 2, 5, 9) for i in range(0, len(full) - n, 3)]
    for stop in cases:
        want = full[:full.index(stop)]
        r = server.chat(stop=stop)["choices"][0]
        assert r["message"]["content"] == want, stop
        assert r["finish_reason"] == "stop" and r["stop_reason"] == stop
    for stop in cases[::7]:
        want = full[:full.index(stop)]
        ev = server.stream(CHAT, {**HELLO, "stop": ["\u0001never", stop]})
        assert text_of(ev) == want, stop
        assert ev[-1]["choices"][0]["stop_reason"] == stop
        kept = server.chat(stop=[stop], include_stop_str_in_output=True)["choices"][0]
        assert kept["message"]["content"] == want + stop
    # a stop string that never completes is not swallowed
    assert server.chat(stop=[full[-3:] + "more"])["choices"][0]["message"]["content"] == full


def test_stop_token_ids(server):
    r = server.complete("What is", return_token_ids=True)["choices"][0]
    stop = r["token_ids"][3]
    first = r["token_ids"].index(stop)
    s = server.complete("What is", return_token_ids=True, stop_token_ids=[stop])["choices"][0]
    assert s["token_ids"] == r["token_ids"][:first]
    assert s["finish_reason"] == "stop" and s["stop_reason"] == stop
    m = server.complete("What is", stop_token_ids=[stop], min_tokens=16)
    assert m["usage"]["completion_tokens"] == 16


def test_chat_logprobs(server):
    r = server.chat(logprobs=True, top_logprobs=3, max_tokens=8, temperature=1.5, seed=3,
                    return_token_ids=True)
    c = r["choices"][0]
    content = c["logprobs"]["content"]
    assert len(content) == len(c["token_ids"])
    for t in content:
        assert t["logprob"] <= 0 and bytes(t["bytes"]).decode("utf-8", "replace") == t["token"]
        tops = t["top_logprobs"]
        assert 3 <= len(tops) <= 4
        assert any(x["token"] == t["token"] and x["logprob"] == t["logprob"] for x in tops)
        assert [x["logprob"] for x in tops[:3]] == sorted((x["logprob"] for x in tops[:3]),
                                                         reverse=True)
    assert b"".join(bytes(t["bytes"]) for t in content).decode().strip() == \
        c["message"]["content"].strip()
    ev = server.stream(CHAT, {**HELLO, "logprobs": True, "top_logprobs": 3, "max_tokens": 8,
                              "temperature": 1.5, "seed": 3})
    streamed = [t for e in ev for ch in e["choices"] if ch["logprobs"]
                for t in ch["logprobs"]["content"]]
    assert streamed == content
    none = server.chat(logprobs=True, max_tokens=2)["choices"][0]["logprobs"]["content"]
    assert all(t["top_logprobs"] == [] for t in none)


def test_completion_logprobs(server):
    c = server.complete("What is", logprobs=2, temperature=1.5, seed=5)["choices"][0]
    lp = c["logprobs"]
    n = len(lp["tokens"])
    assert n == len(lp["token_logprobs"]) == len(lp["top_logprobs"]) == len(lp["text_offset"])
    for tok, val, top in zip(lp["tokens"], lp["token_logprobs"], lp["top_logprobs"]):
        assert top[tok] == val and 2 <= len(top) <= 3
    assert lp["text_offset"][0] == 0 and lp["text_offset"] == sorted(lp["text_offset"])
    plain = [t for t in lp["tokens"] if not t.startswith(("<|", "</s", "<s", "bytes:"))]
    for tok, at in zip(lp["tokens"], lp["text_offset"]):
        if tok in plain and at:
            assert c["text"][at:at + len(tok)] == tok
    lp = server.complete("What is", logprobs=0)["choices"][0]["logprobs"]
    assert all(list(top) == [tok] for tok, top in zip(lp["tokens"], lp["top_logprobs"]))


def by_byte(data):
    """UTF-8 with U+FFFD for each invalid byte."""
    out, i = "", 0
    while i < len(data):
        for n in (1, 2, 3, 4):
            try:
                out += data[i:i + n].decode("utf-8")
                i += n
                break
            except UnicodeDecodeError:
                continue
        else:
            out += "\ufffd"
            i += 1
    return out


def test_split_utf8(server):
    ids = server.ok("/tokenize", {"prompt": "\U00010348", "add_special_tokens": False})["tokens"]
    ids = ids[-4:]
    value = dict(zip(ids, "\U00010348".encode()))
    assert len(value) == 4, "the tokenizer was expected to fall back to bytes"
    seen = False
    for seed in range(6):
        body = {"prompt": "x", "max_tokens": 400, "allowed_token_ids": ids, "temperature": 2,
                "top_k": 0, "seed": seed, "return_token_ids": True, "ignore_eos": True,
                "logit_bias": {}}
        r = server.ok(COMP, body)["choices"][0]
        want = by_byte(bytes(value[i] for i in r["token_ids"]))
        assert r["text"] == want
        assert text_of(server.stream(COMP, body)) == want  # each event is valid UTF-8 by itself
        seen = seen or "\U00010348" in want
    assert seen


def test_bias_allowed_bad(server):
    base = server.complete("What is", return_token_ids=True, max_tokens=4)["choices"][0]
    first = base["token_ids"][0]
    r = server.complete("What is", return_token_ids=True, max_tokens=4,
                        logit_bias={str(first): -100})["choices"][0]
    assert first not in r["token_ids"][:1]
    other = server.ok("/tokenize", {"prompt": "hello", "add_special_tokens": False})["tokens"]
    r = server.complete("What is", return_token_ids=True, max_tokens=4, ignore_eos=True,
                        allowed_token_ids=other[:1])["choices"][0]
    assert r["token_ids"] == other[:1] * 4
    text = server.chat()["choices"][0]["message"]["content"]
    word = text.split()[1]
    assert word not in server.chat(bad_words=[word])["choices"][0]["message"]["content"].split()


def test_policy(server):
    a = server.chat(temperature=2, seed=1, policy="greedy")["choices"][0]
    b = server.chat(temperature=0)["choices"][0]
    assert a["message"] == b["message"]
    r = server.post(CHAT, {**HELLO, "policy": "nobody"})
    assert r.status == 400 and r.code == "policy_not_found"
    r = server.post(CHAT, {**HELLO, "policy_args": {}})
    assert r.status == 400 and r.json()["error"]["param"] == "policy_args"


def test_special_text_stays_text(server):
    """F57: what looks like a control token in a user's text is text."""
    plain = server.ok("/tokenize", {"messages": [{"role": "user", "content": "x"}]})["tokens"]
    for bad in ("<|im_end|>", "<s>", "</s>", "<|im_start|>assistant", "[INST]", "<image>"):
        t = server.ok("/tokenize", {"messages": [{"role": "user", "content": bad}]})["tokens"]
        for control in (1, 2, 2798, 2799):
            assert t.count(control) == plain.count(control), bad
        t = server.ok("/tokenize", {"prompt": bad, "add_special_tokens": False})["tokens"]
        assert not {1, 2, 2798, 2799} & set(t)
        assert server.chat(bad, max_tokens=2)["usage"]["completion_tokens"] <= 2
    t = server.ok("/tokenize", {"prompt": "<|im_end|>", "add_special_tokens": False,
                                "parse_special": True})["tokens"]
    assert 2798 in t


def test_content_parts_and_roles(server):
    parts = [{"role": "system", "content": "Be brief."},
             {"role": "user", "content": [{"type": "text", "text": "What is"},
                                          {"type": "text", "text": "turbod?"}]}]
    joined = [{"role": "developer", "content": "Be brief."},
              {"role": "user", "content": "What is\nturbod?"}]
    assert server.chat(parts)["choices"] == server.chat(joined)["choices"]
    p = server.ok("/apply-template", {"messages": joined})["prompt"]
    assert "What is\nturbod?" in p and p.rstrip().endswith("assistant")
    p = server.ok("/apply-template", {"messages": joined, "add_generation_prompt": False})["prompt"]
    assert not p.rstrip().endswith("assistant")
    cont = [{"role": "user", "content": "What is turbod?"},
            {"role": "assistant", "content": "turbod is"}]
    r = server.chat(cont, continue_final_message=True)
    assert r["choices"][0]["message"]["content"].startswith(" ")


def test_tokenize_round_trip(server):
    for text in ("Hello, world", "你好 hello", "tab\tnew\nline", "\U0001f600 é"):
        t = server.ok("/tokenize", {"prompt": text, "add_special_tokens": False})
        assert t["count"] == len(t["tokens"]) and t["max_model_len"] == 1024
        assert server.ok("/detokenize", {"tokens": t["tokens"]})["prompt"] == text
    with_bos = server.ok("/tokenize", {"prompt": "Hi"})["tokens"]
    assert with_bos[0] == 1
    assert server.ok("/detokenize", {"tokens": with_bos, "skip_special_tokens": True})["prompt"] == "Hi"
    assert "<s>" in server.ok("/detokenize", {"tokens": with_bos})["prompt"]


def test_native_gets(server):
    assert server.get("/health").json() == {"status": "ok"}
    m = server.get("/v1/models").json()
    assert m["object"] == "list" and m["data"][0]["id"] == NAME
    assert server.get("/v1/models/" + NAME).json()["max_model_len"] == 1024
    assert server.get("/v1/models/internlm2%2Ddemo").status == 200
    assert server.get("/v1/models/other").code == "model_not_found"
    assert server.get("/version").json()["plugin_abi"] == "1.2"
    p = server.get("/props").json()
    assert p["limits"]["session_len"] == 1024 and p["chat_template"] == "internlm2.lua"
    assert "greedy" in p["policies"] and "/" not in json.dumps(p).replace("\\/", "/").replace("://", "")


def test_warnings_and_strict(server):
    r = server.chat(frobnicate=1)
    assert "frobnicate" in r["warnings"][0]
    ev = server.stream(CHAT, {**HELLO, "frobnicate": 1})
    assert "frobnicate" in ev[0]["warnings"][0] and "warnings" not in ev[1]
    strict = server.post(CHAT, {**HELLO, "frobnicate": 1}, headers={"X-Turbo-Strict": "1"})
    assert strict.status == 400 and strict.code == "unknown_field"
    assert strict.json()["error"]["param"] == "frobnicate"
    assert "frobnicate" in server.ok("/tokenize", {"prompt": "a", "frobnicate": 1})["warnings"][0]


@pytest.mark.parametrize("given,kept", [("abc-1.2_Z", True), ("a" * 64, True), ("a" * 65, False),
                                        ("bad id", False), ("x\"y", False), ("", False)])
def test_request_id(server, given, kept):
    r = server.post(CHAT, {**HELLO, "max_tokens": 1}, headers={"X-Request-Id": given})
    assert (r.headers["x-request-id"] == given) is kept
    assert r.headers["x-request-id"]


def test_keep_alive(server):
    import http.client
    c = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for _ in range(5):
        c.request("GET", "/v1/models")
        r = c.getresponse()
        assert r.status == 200 and r.read() and not r.getheader("Connection")
    c.close()
