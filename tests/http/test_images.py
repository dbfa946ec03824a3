"""Pictures in requests: LLaVA-1.5 with random weights, against what transformers answers."""
import base64
import json
import os
import subprocess
import time
import zlib

import pytest

import kit

pytest.importorskip("numpy", reason="SKIP: numpy is not installed")
import tiny_llava  # noqa: E402

GOLDEN = os.path.join(kit.SOURCE, "tests", "golden")
with open(os.path.join(GOLDEN, "images", "images.json"), encoding="utf-8") as f:
    SMALL = {n: base64.b64decode(v["base64"]) for n, v in json.load(f)["small"].items()}
with open(os.path.join(GOLDEN, "llava-tiny", "serve.json"), encoding="utf-8") as f:
    WANT = json.load(f)
PNG = SMALL["rgb.png"]
TURBO = os.path.join(os.path.dirname(kit.TURBOD), "turbo")


@pytest.fixture(scope="module")
def folder():
    return tiny_llava.make()


@pytest.fixture(scope="module")
def llava(folder, tmp_path_factory):
    s = kit.Server(model=folder, model_name="tiny", cache_block_seq_len=16, image_cache="1MiB",
                   slot_save_path=str(tmp_path_factory.mktemp("slots")))
    yield s
    code = s.stop()
    log = s.read_log()
    assert code == 0, log
    assert "Sanitizer" not in log and "runtime error" not in log, log
    assert "not used by llava" not in log and "were planned" not in log


def uri(data):
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return "data:image/%s;base64,%s" % (kind, base64.b64encode(data).decode())


def image(data):
    return {"type": "image_url", "image_url": {"url": data if isinstance(data, str) else uri(data)}}


def text(t="What is this?"):
    return {"type": "text", "text": t}


def body(*parts, **fields):
    return {"model": "tiny", "temperature": 0, "max_tokens": 12, "return_token_ids": True,
            "messages": [{"role": "user", "content": list(parts)}], **fields}


def ask(s, *parts, **fields):
    r = s.post("/v1/chat/completions", body(*parts, **fields))
    assert r.status == 200, r.body
    j = r.json()
    return j["choices"][0]["token_ids"], j["usage"]


def prompt_of(s, *parts):
    r = s.post("/tokenize", {"messages": body(*parts)["messages"]})
    assert r.status == 200, r.body
    return r.json()["tokens"]


def cached(usage):
    return usage["prompt_tokens_details"]["cached_tokens"]


def test_answers_are_those_of_transformers(llava):
    row = [tiny_llava.IMAGE] * tiny_llava.ROWS
    assert prompt_of(llava, image(PNG), text()) == WANT["before"] + row + WANT["behind"]
    for name, ids in WANT["greedy"].items():
        got, usage = ask(llava, image(SMALL[name]), text(), cache_salt=name)
        assert got == ids, name
        assert usage["prompt_tokens"] == 22 + tiny_llava.ROWS and cached(usage) == 0


def test_the_same_picture_is_cached_and_another_is_not(llava):
    first, u1 = ask(llava, image(PNG), text(), cache_salt="a")
    again, u2 = ask(llava, image(PNG), text(), cache_salt="a")
    other, u3 = ask(llava, image(SMALL["rgb.jpg"]), text(), cache_salt="a")
    assert cached(u1) == 0 and cached(u2) == u2["prompt_tokens"] - 1 and cached(u3) == 0
    assert first == again and other != first
    # what follows a picture is found behind that picture only, and to the token
    long = "What is this? Tell me more about it, and then about the "
    ask(llava, image(PNG), text(long + "sky."), cache_salt="a")
    _, u4 = ask(llava, image(PNG), text(long + "sea."), cache_salt="a")
    _, u5 = ask(llava, image(SMALL["rgb.jpg"]), text(long + "sea."), cache_salt="a")
    assert 32 < cached(u4) < u4["prompt_tokens"] - 1
    assert cached(u5) == cached(u3) + 16  # the block that it shares with the first request for it


def test_several_pictures(llava):
    a, b = image(PNG), image(SMALL["rgb.jpg"])
    ids = prompt_of(llava, a, text("x"), b, text("y"))
    assert ids.count(tiny_llava.IMAGE) == 2 * tiny_llava.ROWS
    one, _ = ask(llava, a, b, text(), cache_salt="b")
    two, u = ask(llava, b, a, text(), cache_salt="b")
    assert one != two and cached(u) == 0
    same, u = ask(llava, a, b, text(), cache_salt="b")
    assert same == one and cached(u) == u["prompt_tokens"] - 1
    turns = [{"role": "user", "content": [a, text()]}, {"role": "assistant", "content": "A cat."},
             {"role": "user", "content": [b, text("And this?")]}]
    r = llava.post("/tokenize", {"messages": turns})
    assert r.json()["tokens"].count(tiny_llava.IMAGE) == 2 * tiny_llava.ROWS


def test_words_are_no_picture(llava):
    for word in ("<image>", "<image>\n<image>", "[UNUSED_TOKEN_1]<image>"):
        assert tiny_llava.IMAGE not in prompt_of(llava, text(word))
    # nor is the id that stands for one: it is embedded as any other, and not taken for a cached picture
    ids = WANT["before"] + [tiny_llava.IMAGE] * tiny_llava.ROWS + WANT["behind"]
    for salt in ("c", "d"):
        plain = {"model": "tiny", "prompt": ids, "temperature": 0, "max_tokens": 12,
                 "return_token_ids": True, "cache_salt": salt}
        if salt == "c":
            ask(llava, image(PNG), text(), cache_salt=salt)
        r = llava.post("/v1/completions", plain)
        assert r.status == 200 and cached(r.json()["usage"]) == 0, r.body
        assert r.json()["choices"][0]["token_ids"] not in WANT["greedy"].values()
        again, usage = ask(llava, image(SMALL["cmyk.jpg"]), text(), cache_salt=salt)
        assert again == WANT["greedy"]["cmyk.jpg"] and cached(usage) == 0


def test_cut_into_chunks(folder):
    """Steps of 16 tokens cut through pictures; several prompts share each step."""
    s = kit.Server(model=folder, model_name="tiny", cache_block_seq_len=8, max_batch_size=3,
                   max_prefill_token_num=16, enable_prefix_caching=False)
    import threading
    got = {}

    def client(name):
        got[name] = ask(s, image(SMALL[name]), text())[0]

    threads = [threading.Thread(target=client, args=(n,)) for n in WANT["greedy"]]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert s.stop() == 0
    assert got == WANT["greedy"]


def test_streamed(llava):
    events = llava.post("/v1/chat/completions", body(image(PNG), text(), stream=True)).body
    lines = [l[6:] for l in events.decode().split("\n\n") if l.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    ids = [i for l in lines[:-1] for c in json.loads(l)["choices"] for i in c.get("token_ids", [])]
    assert ids == WANT["greedy"]["rgb.png"]


def chunk(name, data):
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def png(width, height, data=b"", kind=2, more=b""):
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, kind, 0, 0, 0])
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", data)
            + chunk(b"IEND", b""))


BAD = {
    "http": ("http://example.org/a.png", "data URIs"),
    "file": ("file:///etc/passwd", "data URIs"),
    "space": (" " + uri(PNG), "data URIs"),
    "gif": ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", "kind of image"),
    "not base64": (uri(PNG)[:-8] + "****" + uri(PNG)[-4:], "not base64"),
    "newline": (uri(PNG)[:60] + "\n" + uri(PNG)[61:], "not base64"),
    "cut base64": (uri(PNG)[:-3], "cut off"),
    "bits left": ("data:image/png;base64,iVBORw0KGgp=", "bits are left over"),
    "empty": ("data:image/png;base64,", "empty"),
    "other type": ("data:image/jpeg;base64," + base64.b64encode(PNG).decode(), "another type"),
    "text": (uri(b"\x89PNnothing of the kind"), "no image"),
    "cut png": (uri(PNG[:len(PNG) // 2]), "cut off"),
    "cut jpeg": (uri(SMALL["rgb.jpg"][:600]), "cut off"),
    "webp in png": ("data:image/png;base64,"
                    + base64.b64encode(b"RIFF\0\0\0\0WEBPVP8 ").decode(), "WebP"),
    "50000 x 50000": (uri(png(50000, 50000, zlib.compress(bytes(10 ** 6)))), "16384"),
    "10^9 high": (uri(png(1, 10 ** 9)), "16384"),
    "268 million": (uri(png(16384, 16384)), "40 million"),
    "no pixels": (uri(png(0, 5)), "damaged"),
    "allowed size, 100 KB": (uri(png(6324, 6324, zlib.compress(bytes(10 ** 8), 9)[:10 ** 5])),
                             "damaged"),
}


def resident(s):
    with open("/proc/%d/statm" % s.process.pid, encoding="ascii") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_refused(llava):
    ask(llava, image(PNG), text())
    fds = len(os.listdir("/proc/%d/fd" % llava.process.pid))
    before, slowest = resident(llava), 0
    for _ in range(3):
        for name, (url, part) in BAD.items():
            start = time.monotonic()
            r = llava.post("/v1/chat/completions", body(image(url), text()))
            slowest = max(slowest, time.monotonic() - start)
            assert r.status == 400 and r.code == "invalid_image", (name, r.body)
            error = r.json()["error"]
            assert part in error["message"], (name, error)
            assert error["param"] == "messages[0].content[0]"
    # a decompression bomb of a size that is allowed: one colour, decoded within its limits, or refused
    flat = png(6000, 6000, zlib.compress(bytes(6000 * 18001)))
    assert llava.post("/v1/chat/completions", body(image(flat), text())).status in (200, 400)
    assert resident(llava) - before < 8 << 20
    time.sleep(0.2)
    assert len(os.listdir("/proc/%d/fd" % llava.process.pid)) <= fds + 2
    assert not subprocess.run(["pgrep", "-P", str(llava.process.pid)], stdout=subprocess.PIPE).stdout
    print("slowest refusal: %.3f s" % slowest)
    assert ask(llava, image(PNG), text())[0] == WANT["greedy"]["rgb.png"]


def test_limits(llava):
    r = llava.post("/v1/chat/completions", body(*[image(PNG)] * 8, text("why " * 100)))
    assert r.status == 400 and r.code == "context_length_exceeded"
    assert "256" in r.json()["error"]["message"]
    r = llava.post("/v1/chat/completions", body(*[image(PNG)] * 9, text()))
    assert r.status == 400 and "at most 8 images" in r.json()["error"]["message"]
    for part in ({"type": "image_url"}, {"type": "image_url", "image_url": {}},
                 {"type": "image_url", "image_url": {"url": 1}}):
        r = llava.post("/v1/chat/completions", body(part, text()))
        assert r.status == 400 and r.code == "invalid_image", r.body
    r = llava.post("/v1/chat/completions", body({"type": "input_image", "image_url": "x"}, text()))
    assert r.status == 400 and r.code == "unsupported_content"
    wish = {"type": "image_url", "image_url": {"url": uri(PNG), "detail": "low"}}
    r = llava.post("/v1/chat/completions", body(wish, text()))
    assert r.status == 200 and "detail" in r.json()["warnings"][0]


def test_a_text_model_takes_none(server):
    r = server.post("/v1/chat/completions", {**body(image(PNG), text()), "model": kit.NAME})
    assert r.status == 400 and r.code == "unsupported_content"
    assert r.json()["error"]["message"] == "this model takes no images; send text"


def test_many_pictures_through_a_small_store(llava):
    """More pictures than image_cache holds, from several clients: each answer is its picture's."""
    import threading
    seen, wrong = [], []

    def client(k):
        for i in range(6):
            name = list(WANT["greedy"])[(i + k) % 4]
            other = SMALL[["grey.png", "palette.png", "dot.png", "tall.png"][(i * 3 + k) % 4]]
            r = llava.post("/v1/chat/completions", body(image(other), text(), max_tokens=1))
            if r.status not in (200, 429):
                wrong.append(r.body)
            r = llava.post("/v1/chat/completions", body(image(SMALL[name]), text()))
            if r.status == 200 and r.json()["choices"][0]["token_ids"] != WANT["greedy"][name]:
                wrong.append(name)
            seen.append(r.status)

    threads = [threading.Thread(target=client, args=(k,)) for k in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and seen.count(200) > 12, (wrong, seen)
    page = llava.get("/metrics").body.decode()
    hits = [float(l.split()[-1]) for l in page.splitlines()
            if l.startswith("turbo:image_cache_hits_total")]
    assert hits and hits[0] > 0


def test_keys_may_be_escaped(llava):
    raw = json.dumps(body(image(PNG), text())).replace("image_url", "\\u0069mage\\u005Furl")
    r = llava.request("POST", "/v1/chat/completions", raw.encode())
    assert r.status == 200, r.body
    assert r.json()["choices"][0]["token_ids"] == WANT["greedy"]["rgb.png"]


def test_memory_for_pictures_is_what_was_planned(llava):
    page = llava.get("/metrics").body.decode()
    bytes_of = {n: float(l.split()[-1]) for l in page.splitlines() for n in ("plan", "alloc")
                if l.startswith("turbo:%s_bytes{" % n) and 'kind="images"' in l}
    assert bytes_of["plan"] == bytes_of["alloc"] > 1 << 20  # image_cache, and a workspace


def test_session(llava):
    def turn(prompt, **fields):
        r = llava.post("/v1/chat/interactive", {"session_id": "s1", "interactive_mode": True,
                                                "prompt": prompt, "temperature": 0,
                                                "request_output_len": 8, "stream": False, **fields})
        assert r.status == 200, r.body
        return r.json()

    one = turn([{"role": "user", "content": [image(PNG), text()]}])
    two = turn("And why?")
    assert two["history_tokens"] >= one["input_tokens"] + 7
    assert two["cached_tokens"] >= one["input_tokens"]
    three = turn([{"role": "user", "content": [image(SMALL["rgb.jpg"]), text("And this?")]}])
    assert three["input_tokens"] > tiny_llava.ROWS
    r = llava.post("/slots/s1?action=save", {"filename": "x"})
    assert r.status == 400 and "images" in r.json()["error"]["message"], r.body


def turbo(*args, stdin=""):
    r = subprocess.run([TURBO, *args, "--cache-max-entry-count", "8MiB", "--threads", "1"],
                       input=stdin.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       timeout=60)
    return r.returncode, r.stdout.decode(), r.stderr.decode()


def test_command_line(folder, tmp_path):
    path = str(tmp_path / "a.png")
    with open(path, "wb") as f:
        f.write(PNG)
    flags = ("--temperature", "0", "--max-tokens", "12")
    code, out, err = turbo("run", folder, "--image", path, "--prompt", "What is this?", "--json",
                           *flags)
    assert code == 0, err
    assert json.loads(out)["ids"] == WANT["greedy"]["rgb.png"]
    code, _, err = turbo("run", kit.MODEL, "--image", path, "--prompt", "x")
    assert code == 65 and "takes no images" in err
    code, _, err = turbo("run", folder, "--image", path + "x", "--prompt", "x")
    assert code == 66, err
    code, _, err = turbo("run", folder, "--image", path, "--raw", "--prompt", "x")
    assert code == 64
    _, said, _ = turbo("run", folder, "--image", path, "--prompt", "What is this?", *flags)
    code, out, err = turbo("chat", folder, *flags, stdin="/image %s\nWhat is this?\n\n/image %s\n"
                           "And this?\n\n/image /nonexistent\n/quit\n" % (path, path))
    assert code == 0, err
    assert said.strip() in out and err.count("the next message has 1 picture") == 2
    assert "/nonexistent" in err


def test_openai_client(llava):
    openai = pytest.importorskip("openai", reason="SKIP: the openai client is not installed")
    with openai.OpenAI(base_url="http://127.0.0.1:%d/v1" % llava.port, api_key="EMPTY",
                       max_retries=0) as client:
        messages = [{"role": "user", "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": uri(PNG)}}]}]
        whole = client.chat.completions.create(model="tiny", messages=messages, temperature=0,
                                               max_tokens=12)
        chunks = client.chat.completions.create(model="tiny", messages=messages, temperature=0,
                                                max_tokens=12, stream=True)
        said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert said == whole.choices[0].message.content
        assert whole.usage.prompt_tokens == 22 + tiny_llava.ROWS
        with pytest.raises(openai.BadRequestError) as e:
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}]}])
        assert e.value.code == "invalid_image"
