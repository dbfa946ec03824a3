"""Every allocation on the way of a request fails once, and system calls fail; see faults.sh and faults.c.

   faults.py FAULTS.SO [STRIDE [SEED]]

STRIDE 1 fails each n-th call in turn, STRIDE s each s-th of them. A request under a failure ends as if nothing
had been, with a 503, or with a connection closed before the first byte; a stream that began ends with an error
event. Afterwards the server is as before: the golden answer, all blocks, no descriptor, no memory more."""
import errno
import json
import mmap
import os
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "http"))
from kit import SOURCE, Server, strict_json, until  # noqa: E402

SITES = "memory open read write fsync rename accept thread epoll".split()
N = len(SITES)
ERRNO = {"memory": errno.ENOMEM, "open": errno.EMFILE, "read": errno.EIO, "write": errno.ENOSPC,
         "fsync": errno.EIO, "rename": errno.EACCES, "accept": errno.EMFILE, "thread": errno.EAGAIN,
         "epoll": errno.ENOMEM}
POST = "POST"


class Faults:
    """The other side of struct control in faults.c."""

    def __init__(self, library):
        self.dir = tempfile.mkdtemp(prefix="turbod-faults-")
        path = os.path.join(self.dir, "control")
        with open(path, "wb") as f:
            f.write(bytes(8 * (3 * N + 2)))
        with open(path, "r+b") as f:
            self.map = mmap.mmap(f.fileno(), 0)
        self.env = {"LD_PRELOAD": os.path.abspath(library), "TURBO_FAULTS": path}
        for i, s in enumerate(SITES):
            self.put(2 * N + i, ERRNO[s])

    def put(self, at, value):
        struct.pack_into("q", self.map, 8 * at, value)

    def get(self, at):
        return struct.unpack_from("q", self.map, 8 * at)[0]

    def arm(self, site, n, stay=False):
        self.put(3 * N, int(stay))
        self.put(N + SITES.index(site), 0)
        self.put(SITES.index(site), n)

    def disarm(self, site):
        """How many calls failed."""
        self.put(SITES.index(site), 0)
        return self.get(N + SITES.index(site))

    def live(self, base=None):
        """Connections of the look at /metrics come and go: the least of what is seen for a moment."""
        n = self.get(3 * N + 1)
        for _ in range(20):
            if base is not None and n <= base:
                break
            time.sleep(0.001)
            n = min(n, self.get(3 * N + 1))
        return n

    def server(self, **flags):
        os.environ.update(self.env)
        try:
            return Server(**flags)
        finally:
            for k in self.env:
                del os.environ[k]


def raw(server, method, path, body):
    data = b"" if body is None else json.dumps(body).encode()
    out = b""
    try:
        s = server.connect(30)
        s.sendall(("%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" % (method, path) +
                   ("Content-Type: application/json\r\nContent-Length: %d\r\n" % len(data) if data else "") +
                   "\r\n").encode() + data)
        while True:
            x = s.recv(65536)
            if not x:
                break
            out += x
    except ConnectionError:
        pass
    s.close()
    return out


def dechunk(data):
    out = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        n = int(size, 16)
        if not n:
            assert data == b"\r\n", data
            return out
        out, data = out + data[:n], data[n + 2:]


VOLATILE = {"id", "created", "timings", "usage", "cached_tokens", "idle_ms", "session_id"}


def essence(v):
    if isinstance(v, dict):
        return {k: essence(x) for k, x in v.items() if k not in VOLATILE}
    return [essence(x) for x in v] if isinstance(v, list) else v


def text_of_stream(body):
    """What a stream says, however it was cut into events."""
    out = {}
    for line in body.decode().split("\n"):
        line = line[6:] if line.startswith("data: ") else line
        if not line or line == "[DONE]" or line.startswith(":"):
            continue
        e = strict_json(line.encode())
        for c in e.get("choices", [e]):
            i = c.get("index", 0)
            text = c["delta"].get("content", "") if "delta" in c else c["text"]
            old = out.get(i, ("", None))
            out[i] = (old[0] + text, c["finish_reason"] or old[1])
    return out


def outcome(data):
    """("ok", essence), ("error", status) or ("closed",); anything else is a defect."""
    if not data:
        return ("closed",)
    head, mark, body = data.partition(b"\r\n\r\n")
    assert mark, "half a head: %r" % data
    status = int(head[9:12])
    if b"Transfer-Encoding: chunked" in head:
        body = dechunk(body)
        error = b'"error":{' in body
        assert b"ndjson" in head or body.endswith(b"data: [DONE]\n\n"), "a cut stream: %r" % body[-300:]
        if error:
            event = [x for x in body.split(b"\n") if b'"error":{' in x][-1]
            strict_json(event[6:] if event.startswith(b"data: ") else event)
            return ("error", 503)
        return ("ok", text_of_stream(body))
    length = int(re.search(rb"Content-Length: (\d+)", head).group(1))
    assert len(body) == length, "half a body: %r" % data
    assert b"Content-Type: " in head, head
    if b"text/plain" in head:
        return ("ok", None)
    body = strict_json(body)
    if status == 200:
        return ("ok", essence(body))
    assert body["error"]["message"] and body["error"]["code"], body
    return ("error", status, body["error"]["message"])


class Run:
    def __init__(self, faults, server, stride, rng):
        self.f, self.s, self.stride, self.rng, self.lines = faults, server, stride, rng, []

    def each(self, name, ask, want=None, site="memory", statuses=(503,), before=None, after=None):
        """Fails call after call of `ask` until it needs no more."""
        for x in range(3):  # everything that is made once is made
            if before:
                before()
            got = outcome(ask())
            want = want or got
            if after:
                after()
        assert want[0] == "ok", (name, want)
        self.s.quiesce()
        live = [self.f.live()]
        seen, stride, needed = {}, self.stride if site == "memory" else 1, 0
        for stay in (False, True):
            n, clean = 1 + self.rng.randrange(stride), 0
            while clean < 2:
                if before:
                    before()
                self.f.arm(site, n, stay)
                data = ask()
                failed = self.f.disarm(site)
                try:
                    got = outcome(data)
                    assert got == want or got[0] == "closed" or got[1] in statuses, (got, want)
                except AssertionError as e:
                    raise AssertionError("%s, %s %d%s: %s" % (name, site, n, " and on" if stay else "", e))
                if after:
                    after()
                self.s.quiesce()
                live.append(self.f.live(live[0]))
                key = got[0] if got[0] != "error" else str(got[1])
                seen[key] = seen.get(key, 0) + 1
                needed += failed > 0
                clean = 0 if failed else clean + 1
                n += stride if failed else 1
        grown = live[-1] - live[0]
        self.lines.append("%s: %d failures of %s: %s, %+d blocks of memory" %
                          (name, needed, site, seen, grown))
        print(self.lines[-1], flush=True)
        assert needed, "nothing failed"
        # Tables that grow once are no leak; a block for each tenth failure is.
        assert grown <= max(8, len(live) // 10), (name, live)


LONG = {"prompt": "one two three", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


def requests(run):
    s = run.s

    def post(path, body):
        return lambda: raw(s, POST, path, body)
    run.each("completion", post("/v1/completions", {
        **LONG, "logprobs": 2, "stop": ["zzz", "qqq"],
        "logit_bias": {"5": 1}, "bad_words": ["xyz"],
        "return_token_ids": True}))
    run.each("completion stream", post("/v1/completions", {**LONG, "n": 2, "stream": True}))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    run.each("chat", post("/v1/chat/completions", {"messages": messages, "temperature": 0,
                                                   "max_tokens": 8, "policy": "house"}))
    run.each("chat stream", post("/v1/chat/completions", {
        "messages": messages, "temperature": 0, "max_tokens": 8, "stream": True, "logprobs": True,
        "stream_options": {"include_usage": True}}))
    # Scripts that steer every token run on the engine's thread.
    run.each("steered", post("/v1/completions", {
        **LONG, "policy": "choice", "policy_args": {"options": ["a small answer", "a large one"]}}))
    run.each("steered stream", post("/v1/completions", {
        **LONG, "stream": True, "policy": "think_budget", "policy_args": {"budget": 3}}))
    run.each("tokenize", post("/tokenize", {"prompt": "one two"}))
    run.each("template", post("/apply-template", {"messages": messages}))
    for path in ("/props", "/metrics", "/slots", "/v1/models"):
        run.each(path, lambda: raw(s, "GET", path, None))


def sessions(run):
    s = run.s

    def turn(**fields):
        return raw(s, POST, "/v1/chat/interactive", {
            "session_id": "x", "prompt": "Hello", "interactive_mode": True, "temperature": 0,
            "max_tokens": 6, **fields})

    def erase(name="x"):
        s.post("/slots/%s?action=erase" % name, {})
    run.each("session", turn, after=erase)
    run.each("session stream", lambda: turn(stream=True), after=erase)
    run.each("second turn", turn, before=lambda: (erase(), turn()), after=erase)
    turn()
    first = s.ok("/slots/x?action=save", {"filename": "first.kv"})["n_tokens"]

    def save():
        return raw(s, POST, "/slots/x?action=save", {"filename": "a.kv"})

    def restore():
        return raw(s, POST, "/slots/y?action=restore", {"filename": "first.kv"})

    def clean():
        left = [x for x in os.listdir(s.folder) if x.startswith(".")]
        assert not left, left

    def restored():
        """All of the dialogue is there, or nothing."""
        y = [x for x in s.get("/slots").json() if x["id"] == "y"]
        assert not y or y[0]["n_tokens"] == first, y
        erase("y")
    run.each("save", save, after=clean)
    run.each("restore", restore, after=restored)
    for site in ("open", "write", "fsync", "rename"):
        run.each("save", save, site=site, statuses=(500, 503), after=clean)
    assert "first.kv" in os.listdir(s.folder)
    for site in ("open", "read"):
        run.each("restore", restore, site=site, statuses=(500, 503), after=restored)
    erase()


def network(run):
    s = run.s

    def ask():
        return raw(s, POST, "/v1/completions", LONG)
    run.each("completion", ask, site="epoll")
    # A caller that cannot be accepted is closed, or waits until it can be.
    for n in (1, 2, 3):
        run.f.arm("accept", n)
        for _ in range(4):
            assert outcome(ask())[0] in ("ok", "closed")
        run.f.disarm("accept")
    s.quiesce()


def reloads(run):
    """A reload that fails for want of memory or files changes nothing, and says so."""
    s, f = run.s, run.f
    for site in ("memory", "open", "read"):
        stride = run.stride if site == "memory" else 1
        n, clean, needed = 1 + run.rng.randrange(stride), 0, 0
        while clean < 2:
            mark = len(s.read_log())
            f.arm(site, n)
            s.process.send_signal(signal.SIGHUP)
            until(lambda: re.search("reloaded|the old configuration stays", s.read_log()[mark:]))
            failed = f.disarm(site)
            assert failed or "reloaded" in s.read_log()[mark:], s.read_log()[mark:]
            s.quiesce()
            needed += failed > 0
            clean = 0 if failed else clean + 1
            n += stride if failed else 1
        assert needed, "nothing failed"
        print("reload: %d failures of %s" % (needed, site), flush=True)


def starts(faults, stride, folder):
    """A start without memory, files or threads ends with a line and a code, not with a crash."""
    codes = {}
    for site, step in (("thread", 1), ("memory", 20 * stride), ("open", 1), ("read", stride)):
        n = 1
        while True:
            faults.arm(site, n)
            s = faults.server(wait=False)
            try:
                s.wait_port()
                s.wait_ready()
            except (AssertionError, OSError):
                pass
            failed = faults.disarm(site)
            ended = s.process.poll()
            code = s.stop(limit=30)
            log = s.read_log()
            assert code in (0, 64, 65, 66, 71, 74, 75, 78), (site, n, code, log)
            assert code == 0 or log.strip(), (site, n)
            assert "Assert" not in log and "terminate" not in log, log
            codes[code] = codes.get(code, 0) + 1
            s.clean_up()
            if not failed and ended is None:
                break
            n += step
    print("starts under failures, exit codes: %s" % codes, flush=True)


def main():
    stride = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    seed = int(sys.argv[3]) if len(sys.argv) > 3 and sys.argv[3] else int(time.time())
    print("stride %d, seed %d" % (stride, seed), flush=True)
    faults = Faults(sys.argv[1])
    folder = os.path.join(faults.dir, "slots")
    os.mkdir(folder)
    try:
        s = faults.server(policies=os.path.join(SOURCE, "scripts", "sampling"), slot_save_path=folder,
                          cache_block_seq_len=16)
        s.folder = folder
        assert faults.live() > 100, "the library was not loaded"
        s.baseline()
        run = Run(faults, s, stride, random.Random(seed))
        requests(run)
        sessions(run)
        network(run)
        reloads(run)
        assert s.stop() == 0, s.read_log()
        starts(faults, stride, folder)
    finally:
        shutil.rmtree(faults.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
