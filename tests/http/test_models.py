"""Several models in one server: each request goes to the one it names, and none is touched by the others."""
import os
import re
import signal
import subprocess
import tempfile
import threading

import pytest

import kit
import prom
from kit import MODEL, Server, null_model, text_of, until

URL = "/v1/chat/interactive"


def entry(**keys):
    def text(v):
        return ("true" if v else "false") if isinstance(v, bool) else \
            '"%s"' % v if isinstance(v, str) else repr(v)
    return "{ %s }" % " ".join("%s = %s;" % (k, text(v)) for k, v in keys.items())


def write_conf(*entries, rest="", path=None):
    """A conf file with these models; rest: further settings."""
    path = path or os.path.join(tempfile.mkdtemp(prefix="turbod-models-"), "a.conf")
    with open(path, "w") as f:
        os.fchmod(f.fileno(), 0o600)
        f.write("models = (\n  %s\n);\n%s\n" % (",\n  ".join(entries), rest))
    return path


def serve(*entries, rest="", wait=True, **flags):
    return Server(wait=wait, model=None, conf=write_conf(*entries, rest=rest), **flags)


LONG = entry(model=MODEL, model_name="long")
SHORT = entry(model=MODEL, model_name="short", session_len=256, quant_policy=8)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    s = serve(LONG, SHORT, entry(model=null_model(vocab_size=3000), model_name="a nil/model"),
              slot_save_path=str(tmp_path_factory.mktemp("slots")))
    yield s
    assert s.stop() == 0, s.read_log()


def choice(r):
    return r["choices"][0]


def test_the_request_chooses(three):
    listed = three.get("/v1/models").json()["data"]
    assert [m["id"] for m in listed] == ["long", "short", "a nil/model"]
    assert [m["max_model_len"] for m in listed][:2] == [1024, 256]
    assert three.get("/v1/models/short").json() == listed[1]
    assert three.get("/v1/models/a%20nil%2Fmodel").json() == listed[2]
    assert three.get("/v1/models/nobody").code == "model_not_found"
    for ask, name in ({}, "long"), ({"model": None}, "long"), ({"model": "long"}, "long"), \
            ({"model": "short"}, "short"), ({"model": "a nil/model"}, "a nil/model"):
        assert three.complete(**ask)["model"] == name
        assert three.ok("/tokenize", {"prompt": "a", **ask})["max_model_len"] == \
            {m["id"]: m["max_model_len"] for m in listed}[name]
    for name in ("long", "short"):
        assert three.chat(model=name)["model"] == name
        events = three.stream("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}],
                                                       "max_tokens": 4, "model": name})
        assert {e["model"] for e in events} == {name}
        assert three.ok("/detokenize", {"tokens": [300, 301], "model": name})["prompt"]
        assert "Hi" in three.ok("/apply-template", {"messages": [{"role": "user", "content": "Hi"}],
                                                    "model": name})["prompt"]
    # 300 tokens of context are too long for one of them only
    assert three.post("/v1/completions", {"prompt": "a b " * 130, "max_tokens": 1,
                                          "model": "short"}).code == "context_length_exceeded"
    assert three.post("/v1/completions", {"prompt": "a b " * 130, "max_tokens": 1,
                                          "model": "long"}).status == 200


def test_ids_are_checked_against_the_chosen_vocabulary(three):
    body = {"prompt": [1, 2], "max_tokens": 1, "logit_bias": {"2900": 1}}  # model comes behind it
    assert three.post("/v1/completions", {**body, "model": "a nil/model"}).status == 200
    assert three.post("/v1/completions", {**body, "model": "short"}).status == 400


def test_props(three):
    assert three.get("/props").json()["model"] == "long"
    short = three.get("/props?model=short").json()
    assert short["model"] == "short" and short["kv_dtype"] == "int8"
    assert short["limits"]["session_len"] == 256
    assert three.get("/props?x=1&model=a%20nil%2fmodel").json()["architecture"] == "Null"
    assert three.get("/props?model=nobody").code == "model_not_found"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", URL, "/tokenize",
                                  "/detokenize", "/apply-template"])
def test_unknown_models(three, path):
    body = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "tokens": [1]}
    for name in ("nobody", "", "Long", MODEL):
        r = three.post(path, {**body, "model": name})
        assert r.status == 404 and r.code == "model_not_found"
        assert "conf" not in r.json()["error"]["message"] and MODEL not in r.body.decode()
    r = three.post(path, {**body, "model": ["long"]})
    assert r.status == 400 and r.code == "invalid_value"


def test_concurrent_streams_are_those_of_each_model_alone(three):
    prompts = ["What is a token?", "What is turbod?", "What is a KV cache?", "Tell me a short story."]
    jobs = [(m, p) for p in prompts for m in ("long", "short")]

    def one(model, prompt):
        return text_of(three.stream("/v1/completions", {"prompt": prompt, "model": model, "max_tokens": 48,
                                                        "temperature": 0, "ignore_eos": True}))

    alone = [one(*j) for j in jobs]
    null = three.complete("a b c", model="a nil/model", max_tokens=50)["choices"][0]["text"]
    assert null not in alone
    for _ in range(3):
        got = [None] * (len(jobs) + 1)

        def run(i):
            got[i] = one(*jobs[i]) if i < len(jobs) else \
                three.complete("a b c", model="a nil/model", max_tokens=50)["choices"][0]["text"]

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(got))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert got == alone + [null]


def talk(server, prompt, session, **fields):
    return server.post(URL, {"prompt": prompt, "session_id": session, "interactive_mode": True,
                             "temperature": 0, "max_tokens": 8, **fields})


def test_a_session_belongs_to_its_model(three):
    assert talk(three, "What is a token?", "mine", model="short").status == 200
    for fields in {}, {"model": "long"}:
        r = talk(three, "And now?", "mine", **fields)
        assert r.status == 400 and r.code == "session_of_other_model", r.body
    again = talk(three, "And now?", "mine", model="short")
    assert again.status == 200 and again.json()["history_tokens"] > 0
    assert [s["model"] for s in three.get("/slots").json() if s["id"] == "mine"] == ["short"]
    assert three.post("/slots/mine?action=save", {"filename": "m"}).status == 200
    r = three.post("/slots/mine?action=restore", {"filename": "m"})  # the first model
    assert r.code == "session_of_other_model"
    r = three.post("/slots/other?action=restore", {"filename": "m"})  # int8 blocks into bf16
    assert r.status == 400 and r.code == "snapshot_refused", r.body
    assert three.post("/slots/mine?action=erase", {}).status == 200
    assert three.post("/slots/mine?model=short&action=restore", {"filename": "m"}).status == 200
    assert talk(three, "Go on", "mine", model="short").json()["history_tokens"] > 0
    assert three.post(URL, {"prompt": "", "session_id": "mine", "request_output_len": 0}).status == 200


def test_metrics_of_all_models(three):
    three.complete(model="short")
    families = prom.parse(three.get("/metrics").body)
    names = {"long", "short", "a nil/model"}
    bytes_of = {}
    for f in families.values():
        labels = [l["model_name"] for _, l, _ in f.samples if "model_name" in l]
        assert set(labels) in (set(), names), f.name
        if f.name in ("turbo:plan_bytes", "turbo:alloc_bytes"):
            bytes_of[f.name] = [(l["model_name"], l["kind"], v) for _, l, v in f.samples]
    assert bytes_of["turbo:plan_bytes"] == bytes_of["turbo:alloc_bytes"]
    assert sum(v for m, k, v in bytes_of["turbo:plan_bytes"] if m == "short") > 1 << 20
    assert "planned" not in three.read_log()


def test_policies_belong_to_a_model(three):
    script = {"source": "turbo.policy { request = function(req) req.temperature = 0 end }"}
    body = {"prompt": "a", "max_tokens": 1, "policy": "mine"}
    assert three.request("PUT", "/v1/policies/mine?model=short", script).status == 201
    assert three.post("/v1/completions", {**body, "model": "short"}).status == 200
    assert three.post("/v1/completions", {**body, "model": "long"}).code == "policy_not_found"
    assert three.get("/v1/policies/mine").code == "policy_not_found"
    assert three.get("/v1/policies/mine?model=short").status == 200
    assert [p["name"] for p in three.get("/v1/policies?model=short").json()["data"]] == ["mine"]
    families = prom.parse(three.get("/metrics").body)
    assert {l["model_name"] for _, l, _ in families["turbo:lua_policy_seconds"].samples} == {"short"}
    assert three.request("DELETE", "/v1/policies/mine?model=short").status == 200


def test_the_log_names_the_model(three):
    three.post("/v1/completions", {"prompt": "a", "max_tokens": 2, "model": "a nil/model"},
               headers={"X-Request-Id": "named"})
    until(lambda: re.search(r"id=named .* 200 \d+ms model=a\\x20nil/model ttft=", three.read_log()))


def test_one_engine_that_fails_leaves_the_others():
    s = serve(LONG, entry(model=null_model(null_fail_step=3), model_name="weak"), log_stats_ms=200)
    gold = s.complete("What is a token?")
    assert s.get("/health").json() == {"status": "ok", "models": {"long": "ok", "weak": "ok"}}
    r = s.post("/v1/completions", {"prompt": "a", "max_tokens": 8, "model": "weak"})
    assert r.status == 503 and r.code == "engine_error"
    r = s.get("/health")
    assert r.status == 503 and r.json() == {"status": "failed", "model": "weak",
                                            "models": {"long": "ok", "weak": "failed"}}
    assert s.get("/ready").status == 503
    until(lambda: "the engine of weak has failed" in s.read_log())
    for _ in range(3):
        assert choice(s.complete("What is a token?"))["text"] == choice(gold)["text"]
        r = s.post("/v1/completions", {"prompt": "a", "max_tokens": 8, "model": "weak"})
        assert r.status == 503 and r.code == "engine_error"
    assert s.read_log().count("the engine of weak has failed") == 1
    assert s.stop() == 0


def test_all_engines_that_failed_end_the_process():
    s = serve(*[entry(model=null_model(null_fail_step=3), model_name=n) for n in "ab"])
    for n in "ab":
        assert s.post("/v1/completions", {"prompt": "a", "max_tokens": 8, "model": n}).status == 503
    assert s.process.wait(20) == 75


def test_each_serves_when_it_is_loaded():
    s = serve(LONG, entry(model=null_model(null_open_ms=1500), model_name="late"), wait=False)
    s.wait_port()
    until(lambda: s.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 200)
    r = s.get("/health")
    assert r.status == 503 and r.json()["status"] == "loading"
    assert r.json()["models"] == {"long": "ok", "late": "loading"}
    assert s.get("/ready").status == 503
    r = s.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "model": "late"})
    assert r.code == "model_loading"
    assert s.get("/props?model=late").code == "model_loading"
    s.wait_ready()
    assert s.complete("a", model="late")["model"] == "late"
    assert s.stop() == 0


def test_a_model_that_does_not_load_is_named(tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in os.listdir(MODEL):
        data = open(os.path.join(MODEL, name), "rb").read()
        (broken / name).write_bytes(data[:1000] if name == "model.safetensors" else data)
    conf = write_conf(LONG, entry(model=str(broken), model_name="torn"))
    for more in ["-t"], ["--port", "0"]:
        r = subprocess.run([kit.TURBOD, "--conf", conf] + more, capture_output=True, timeout=60)
        assert r.returncode == 65 and b"torn: " in r.stderr and b"model.safetensors" in r.stderr


def memory_free():
    text = open("/proc/meminfo").read()
    return int(re.search(r"MemAvailable: +(\d+) kB", text).group(1)) * 1024


def test_shares_of_the_kv_budget():
    part = 96e6 / memory_free()  # of what is left, for all: 1024 blocks of 16 KiB * 8 layers are never reached
    conf = (entry(model=MODEL, model_name="two", kv_share=2.0), entry(model=MODEL, model_name="one"),
            entry(model=MODEL, model_name="fixed", cache_max_entry_count="8MiB"))
    s = serve(*conf, cache_max_entry_count="%.9f" % part)
    props = {n: s.get("/props?model=" + n).json() for n in ("one", "two", "fixed")}
    one, two, fixed = (props[n]["kv_blocks"] for n in ("one", "two", "fixed"))
    assert 20 < one < 1024 and abs(two - 2 * one) <= 2, (one, two)
    alone = Server(cache_max_entry_count="8MiB")
    assert alone.get("/props").json()["kv_blocks"] == fixed
    assert alone.stop() == 0
    families = prom.parse(s.get("/metrics").body)
    planned, taken = (sorted((l["model_name"], l["kind"], v) for _, l, v in families[k].samples)
                      for k in ("turbo:plan_bytes", "turbo:alloc_bytes"))
    assert planned == taken
    assert s.stop() == 0
    r = subprocess.run([kit.TURBOD, "--conf", write_conf(*conf), "-t"], capture_output=True, timeout=60,
                       text=True)
    assert r.returncode == 0, r.stderr
    assert re.findall(r"^ok +(\w+): memory: weights ", r.stdout, re.M) == ["two", "one", "fixed"]


def test_models_on_a_card_and_on_the_host_are_planned_apart():
    """turbod -t plans with the memory of the device that a model is for, and the server takes just that."""
    env = {**os.environ, **kit.fake_card(FAKECUDA_MEMORY=str(256 << 20))}
    card = dict(model=MODEL, device="cuda")
    conf = (entry(model_name="two", kv_share=2.0, **card), entry(model_name="one", **card),
            entry(model=MODEL, model_name="host", cache_max_entry_count="8MiB"))
    rest = 'engine = { cache_max_entry_count = 0.2; max_batch_size = 8; };'
    r = subprocess.run([kit.TURBOD, "--conf", write_conf(*conf, rest=rest), "-t"], capture_output=True, timeout=60,
                       text=True, env=env)
    assert r.returncode == 0, r.stderr
    assert len(re.findall(r"^ok +(?:two|one): device: cuda", r.stdout, re.M)) == 2, r.stdout
    told = {n: (int(blocks), float(free)) for n, blocks, free in re.findall(
        r"^ok +(\w+): memory: .* in (\d+) blocks .* of ([0-9.]+) MiB free", r.stdout, re.M)}
    assert told["one"][1] + told["two"][1] <= 256 and told["one"][0] > 8
    alone = entry(model_name="alone", **card)
    r = subprocess.run([kit.TURBOD, "--conf", write_conf(alone, rest=rest), "-t"], capture_output=True, timeout=60,
                       text=True, env=env)
    assert " of 256.0 MiB free" in r.stdout, r.stdout
    s = serve(*conf, rest=rest, cache_max_entry_count=None, env=kit.fake_card(FAKECUDA_MEMORY=str(256 << 20)))
    for name, (blocks, _) in told.items():
        assert s.get("/props?model=" + name).json()["kv_blocks"] == blocks
        s.complete("a", model=name, max_tokens=2)
    assert s.stop() == 0, s.read_log()


def test_what_does_not_fit_together_is_refused():
    size = "%dMiB" % (memory_free() * 0.6 / 2**20)
    rows = [entry(model=MODEL, model_name=n, cache_max_entry_count=size) for n in "ab"]
    for more in ["-t"], ["--port", "0"]:
        r = subprocess.run([kit.TURBOD, "--conf", write_conf(*rows)] + more, capture_output=True,
                           timeout=60, text=True)
        assert r.returncode == 71 and "the 2 models need" in r.stderr and "lower" in r.stderr, r.stderr
        assert " memory: " not in r.stdout
    r = subprocess.run([kit.TURBOD, "--conf", write_conf(rows[0]), "-t"], capture_output=True, timeout=60)
    assert r.returncode == 0, r.stderr


def test_two_of_one_name():
    r = subprocess.run([kit.TURBOD, "--conf", write_conf(entry(model=MODEL), entry(model=MODEL)), "-t"],
                       capture_output=True, timeout=60, text=True)
    assert r.returncode == 78 and "both called \"internlm2-demo\"" in r.stderr


def test_reload(tmp_path):
    policies = tmp_path / "policies"
    policies.mkdir()
    own = dict(model=MODEL, model_name="own", policies=str(policies))
    s = serve(LONG, entry(**own))
    path = s.args[s.args.index("--conf") + 1]

    def reload(*entries, words):
        write_conf(*entries, path=path)
        before = s.read_log().count("reload")
        s.process.send_signal(signal.SIGHUP)
        until(lambda: re.search(words, "".join(s.read_log().split("reload")[before:])))

    (policies / "mine.lua").write_text("turbo.policy { request = function(req) req.temperature = 0 end }")
    # The other way round in the file: each is found by its name.
    reload(entry(**own, default_policy="mine"), LONG, words=r"ed\n")
    body = {"prompt": "What is", "max_tokens": 24, "temperature": 2.0}
    cold = {s.ok("/v1/completions", {**body, "model": "own"})["choices"][0]["text"] for _ in range(4)}
    hot = {s.ok("/v1/completions", body)["choices"][0]["text"] for _ in range(4)}
    assert len(cold) == 1 and len(hot) > 1
    assert s.complete()["model"] == "long"  # the first of the start stays the first
    reload(entry(**own, default_policy="nobody"), LONG, words=r"own: .*nobody.* old configuration stays")
    reload(LONG, words="other models than those served.* old configuration stays")
    reload(entry(**own), entry(model=MODEL, model_name="new"), words="other models.* old configuration stays")
    reload(entry(**own, session_len=128), LONG, words="session_len stays as it is")
    assert s.get("/props?model=own").json()["limits"]["session_len"] == 1024
    hot = {s.ok("/v1/completions", {**body, "model": "own"})["choices"][0]["text"] for _ in range(4)}
    assert len(hot) > 1  # its default policy is gone
    assert s.stop() == 0


def test_drain_waits_for_all():
    slow = dict(null_step_us=30000, null_sleep=True)
    s = serve(*[entry(model=null_model(**slow), model_name=n) for n in "ab"])
    streams = [s.open_stream(max_tokens=30, model=n) for n in "ab"]
    for x in streams:
        until(lambda: b"data:" in x.recv(4096))
    s.process.send_signal(signal.SIGTERM)
    until(lambda: "stopping" in s.read_log())
    for x in streams:
        rest = b""
        while b"[DONE]" not in rest:
            more = x.recv(65536)
            assert more, rest[-200:]
            rest += more
        x.close()
    assert s.process.wait(20) == 0
    log = s.read_log()
    assert all(re.search(r" 200 \d+ms model=%s .* tokens=30 .*finish=length" % n, log) for n in "ab"), log
