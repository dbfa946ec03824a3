"""Refusals: one error object, the right status, the right field, never a 5xx, never slow."""
import glob
import json
import os
import time

import pytest

CHAT = "/v1/chat/completions"
COMP = "/v1/completions"
USER = [{"role": "user", "content": "hi"}]


def refused(server, path, body, status, code, param=None, **kw):
    r = server.post(path, body, **kw)
    assert r.status == status, (body, r.status, r.body[:300])
    assert r.code == code, r.body
    if param:
        assert r.json()["error"]["param"] == param, r.body
    assert r.headers["content-type"] == "application/json"
    assert r.headers["x-content-type-options"] == "nosniff" and r.headers["x-request-id"]
    return r


FIELDS = [
    ("model", "other", 404, "model_not_found"), ("model", 1, 400, "invalid_value"),
    ("temperature", 2.1, 400, "invalid_value"), ("temperature", "1", 400, "invalid_value"),
    ("top_p", 0, 400, "invalid_value"), ("top_p", 1.01, 400, "invalid_value"),
    ("min_p", -0.1, 400, "invalid_value"), ("top_k", -2, 400, "invalid_value"),
    ("presence_penalty", 2.5, 400, "invalid_value"), ("frequency_penalty", -3, 400, "invalid_value"),
    ("repetition_penalty", 0, 400, "invalid_value"), ("repetition_penalty", 11, 400, "invalid_value"),
    ("n", 17, 400, "invalid_value"), ("n", 0, 400, "invalid_value"), ("n", 1.5, 400, "invalid_value"),
    ("seed", 1e300, 400, "invalid_value"), ("max_tokens", 0, 400, "invalid_value"),
    ("stop", [""], 400, "invalid_value"), ("stop", ["a"] * 17, 400, "invalid_value"),
    ("stop", "x" * 257, 400, "invalid_value"), ("stop", 3, 400, "invalid_value"),
    ("logit_bias", {"2800": 1}, 400, "invalid_token"), ("logit_bias", {"x": 1}, 400, "invalid_token"),
    ("logit_bias", {"-1": 1}, 400, "invalid_token"), ("logit_bias", {"5": 101}, 400, "invalid_value"),
    ("logit_bias", {str(i): 0 for i in range(1025)}, 400, "invalid_value"),
    ("allowed_token_ids", [2800], 400, "invalid_token"), ("allowed_token_ids", [], 400, "invalid_value"),
    ("stop_token_ids", [-1], 400, "invalid_token"), ("bad_words", [""], 400, "invalid_value"),
    ("bad_words", ["a"] * 65, 400, "invalid_value"), ("ignore_eos", 1, 400, "invalid_value"),
    ("stream", "yes", 400, "invalid_value"), ("stream_options", {}, 400, "invalid_value"),
    ("user", "u" * 257, 400, "invalid_value"), ("metadata", {"a": 1}, 400, "invalid_value"),
    ("request_id", "a b", 400, "invalid_value"), ("priority", 1001, 400, "invalid_value"),
    ("cache_salt", 5, 400, "invalid_value"), ("guided_json", {"a": 1}, 400, "unsupported_value"),
    ("best_of", 2, 400, "unsupported_value"), ("use_beam_search", True, 400, "unsupported_value"),
    ("response_format", {"type": "json_object"}, 400, "unsupported_value"),
    ("suffix", "tail", 400, "unsupported_value"), ("session_id", 4, 400, "unsupported_value"),
    ("mirostat", 2, 400, "unsupported_value"), ("min_tokens", 2000000000, 400, "invalid_value"),
]


@pytest.mark.parametrize("field,value,status,code", FIELDS,
                         ids=["%s-%d" % (f[0], i) for i, f in enumerate(FIELDS)])
def test_field(server, field, value, status, code):
    refused(server, COMP, {"prompt": "hi", "max_tokens": 1, field: value}, status, code, field)


@pytest.mark.parametrize("field,value", [
    ("tools", [{"type": "function"}]), ("tool_choice", "required"), ("functions", [{}]),
    ("chat_template_kwargs", {"a": 1}), ("reasoning_effort", "high"), ("modalities", ["audio"]),
    ("response_format", {"type": "json_schema"}), ("store", True), ("service_tier", "flex")])
def test_chat_refuses(server, field, value):
    refused(server, CHAT, {"messages": USER, field: value}, 400, "unsupported_value", field)


@pytest.mark.parametrize("field,value", [
    ("tools", []), ("tool_choice", "none"), ("tool_choice", "auto"), ("response_format", {"type": "text"}),
    ("chat_template_kwargs", {}), ("parallel_tool_calls", True), ("store", False), ("user", "me"),
    ("metadata", {"a": "b"}), ("service_tier", "auto"), ("modalities", ["text"]), ("priority", 0),
    ("logit_bias", {}), ("stop", []), ("stop", None), ("top_k", -1), ("seed", -5), ("tools", None)])
def test_neutral_values_pass(server, field, value):
    assert "warnings" not in server.chat("hi", max_tokens=1, **{field: value})


@pytest.mark.parametrize("messages", [
    [], None, "hi", [1], [{}], [{"role": "user"}], [{"role": "user", "content": None}],
    [{"role": 5, "content": "x"}], [{"role": "user", "content": []}],
    [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": 7}],
    [{"role": "nobody", "content": "x"}],
    [{"role": "assistant", "content": "x", "tool_calls": [{}]}],
    [{"role": "user", "content": [{"type": "text", "text": "a"}] * 65}],
    [{"role": "user", "content": "x"}] * 2049])
def test_messages(server, messages):
    r = server.post(CHAT, {"messages": messages, "max_tokens": 1})
    assert r.status == 400 and r.code in ("invalid_value", "context_length_exceeded"), r.body
    assert r.json()["error"]["param"].startswith("messages")


@pytest.mark.parametrize("url", ["http://127.0.0.1/a", "file:///etc/hostname", " data:image/png,",
                                 "data:image/png;base64,AA=="])
def test_images(server, url):
    body = {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}}]}]}
    r = refused(server, CHAT, body, 400, "unsupported_content", "messages[0].content[0]")
    assert "images" in r.json()["error"]["message"]


@pytest.mark.parametrize("prompt", [None, [], [[]], 5, {}, ["a", 1], [1, "a"], [[1], "a"], True, [1.5],
                                    [None], [[[1]]]])
def test_prompt_shapes(server, prompt):
    r = server.post(COMP, {"prompt": prompt, "max_tokens": 1})
    assert r.status == 400 and r.code in ("invalid_value", "invalid_token"), r.body
    assert r.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("ids", [[-1], [2800], [2801], [2 ** 31], [2 ** 63], [1, 2, 99999]])
def test_prompt_ids(server, ids):
    refused(server, COMP, {"prompt": ids, "max_tokens": 1}, 400, "invalid_token", "prompt")


def test_many_prompts(server):
    refused(server, COMP, {"prompt": ["a"] * 17}, 400, "invalid_value", "prompt")


def test_combinations(server):
    refused(server, CHAT, {"messages": USER, "top_logprobs": 2}, 400, "invalid_value", "top_logprobs")
    refused(server, CHAT, {"messages": USER, "max_tokens": 2, "max_completion_tokens": 3}, 400,
            "invalid_value")
    refused(server, COMP, {"prompt": "a", "echo": True, "logprobs": 1}, 400, "unsupported_value", "echo")
    refused(server, COMP, {"prompt": "a", "max_tokens": 3, "min_tokens": 4}, 400, "invalid_value",
            "min_tokens")
    refused(server, COMP, {"prompt": "a", "skip_special_tokens": False,
                           "spaces_between_special_tokens": True}, 400, "unsupported_value")
    refused(server, CHAT, {"messages": USER, "continue_final_message": True,
                           "add_generation_prompt": True}, 400, "invalid_value")
    refused(server, "/tokenize", {}, 400, "invalid_value")
    refused(server, "/detokenize", {"tokens": [99999]}, 400, "invalid_token", "tokens")
    refused(server, "/apply-template", {"messages": []}, 400, "invalid_value", "messages")
    refused(server, "/v1/abort", {}, 400, "invalid_value")


F15_FIELDS = "n max_tokens temperature top_p top_k seed logprobs presence_penalty frequency_penalty " \
             "best_of min_p min_tokens repetition_penalty".split()
F15_VALUES = [-1, 0, 2 ** 31, 2 ** 63, -2 ** 63, 1e308, "1", None, True, [], {}, 1.5, "RAW1e999",
              "RAW-1e999"]


@pytest.mark.parametrize("field", F15_FIELDS)
def test_f15_extremes(server, field):
    for value in F15_VALUES:
        body = {"prompt": "1 2 3", "max_tokens": 4, "temperature": 0, field: value}
        data = json.dumps(body)
        if isinstance(value, str) and value.startswith("RAW"):
            data = data.replace('"%s"' % value, value[3:])
        t = time.monotonic()
        r = server.post(COMP, data.encode())
        assert r.status in (200, 400), (field, value, r.status)
        assert r.status == 200 or time.monotonic() - t < 2, (field, value, "slow")
        if r.status == 400:
            assert r.code in ("invalid_value", "unsupported_value", "invalid_json",
                              "context_length_exceeded"), r.body


BAD_JSON = [
    b"", b" ", b"{", b"}", b"[", b"[1,]", b"{,}", b'{"a":1,}', b"{'a':1}", b'{"a":01}', b'{"a":.5}',
    b'{"a":1.}', b'{"a":+1}', b'{"a":0x1}', b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-}', b'{"a":tru}',
    b'{"a":1}x', b'{"a":1}{"b":2}', b'{"a" 1}', b'{"a":}', b'{:1}', b'{"a":"\n"}', b'{"a":"\x01"}',
    b'{"a":"\\x41"}', b'{"a":"\\u12"}', b'{"a":"\\ud800"}', b'{"a":"\\u0000"}', b'{"a":"\xff"}',
    b'{"a":"\xc0\x80"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\xf4\x90\x80\x80"}', b'\xef\xbb\xbf{}',
    b'{"a":1,"a":2}', b'{"a":"', b'{"a', b"null", b"1", b'"x"', b"[]", b"{}\x00", b"\x00{}",
    b'{"a":"\t"}', b"{\x0c}", b'{"k' + b"k" * 300 + b'":1}', b'{"a":' + b"1" * 100 + b"}",
    b"[" * 100000, b'{"a":' * 100000, b'{"a":[' + b"1," * 70000 + b"1]}",
    "{\"a\":1}".encode("utf-16")]


@pytest.mark.parametrize("body", BAD_JSON, ids=range(len(BAD_JSON)))
def test_bad_json(server, body):
    t = time.monotonic()
    refused(server, COMP, body, 400, "invalid_json")
    assert time.monotonic() - t < 2


def test_f13_bad_text(server):
    for x in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\\ud800", b"\\u0000",
              b"\\x41", b"a\tb", b"\xe2\x82"):
        r = server.post(COMP, b'{"prompt":"' + x + b'","max_tokens":1}')
        assert r.status == 400, (x, r.status)
        r.body.decode("utf-8")


def test_json_test_suite(server):
    """Every must-reject document of JSONTestSuite, when TURBO_JSON_SUITE names its folder."""
    root = os.environ.get("TURBO_JSON_SUITE")
    if not root:
        pytest.skip("TURBO_JSON_SUITE is not set: JSONTestSuite was not run over HTTP")
    files = glob.glob(os.path.join(root, "n_*.json"))
    assert files
    for name in files:
        with open(name, "rb") as f:
            r = server.post(COMP, f.read())
        assert r.status == 400, (name, r.status)


def test_content_type(server):
    r = server.request("POST", COMP, b'{"prompt":"a"}', headers={"Content-Type": "text/plain"})
    assert r.status == 415 and r.code == "unsupported_media_type"
    r = server.request("POST", COMP, b'{"prompt":"a","max_tokens":1}',
                       headers={"Content-Type": "application/json; charset=utf-8"})
    assert r.status == 200
    r = server.request("POST", COMP, b'{"prompt":"a"}', headers={"Content-Type": None})
    assert r.status == 415


def test_routes(server):
    assert server.get("/nope").code == "not_found"
    r = server.get(COMP)
    assert r.status == 405 and r.headers["allow"] == "POST" and r.code == "method_not_allowed"
    r = server.post("/v1/models", {})
    assert r.status == 405 and r.headers["allow"] == "GET"
    for path in ("//v1/models", "/v1/./models", "/v1/models/", "/V1/models", "/v1%2fmodels",
                 "/v1/models%00", "/v1/models;a", "/health/"):
        assert server.get(path).status == 404, path
    assert server.get("/nope", headers={"X-Original-URL": "/v1/models"}).status == 404
    assert server.get("/v1/models?x=1").status == 200
    raw = b"GET http://localhost%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert server.raw(raw % b"/health") == [200]
    assert server.raw(raw % b"/%2e/health") == [404]
    assert server.raw(b"GET http://evil/health HTTP/1.1\r\nHost: localhost\r\n\r\n") == [400]


def test_host_and_origin(server):
    for host, status in (("localhost", 200), ("127.0.0.1:9", 200), ("[::1]:80", 200), ("x", 200),
                         ("evil.example", 403), ("x.evil", 403)):
        r = server.get("/health", headers={"Host": host})
        assert r.status == status, host
    r = server.get("/health", headers={"Origin": "http://evil"})
    assert r.status == 403 and r.code == "origin_not_allowed"
    assert "access-control-allow-origin" not in r.headers
