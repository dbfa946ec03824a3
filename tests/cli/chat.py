#!/usr/bin/env python3
"""tests/cli/chat.py: turbo chat and turbo client on a terminal: Ctrl-C ends an answer and not the program,
a message ends with an empty line, history goes to the XDG state folder. Standard library only."""
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

top = os.environ.get("top_builddir", ".")
turbo = os.environ.get("TURBO", os.path.join(top, "turbo"))
src = os.environ.get("srcdir", ".")
model = os.path.join(src, "conf/models/internlm2-demo")


class Terminal:
    def __init__(self, args, env):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(args[0], args, env)
        self.seen = ""

    def read_until(self, pattern, seconds=20):
        """Reads until the pattern shows in what came since the last match; returns what it matched."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            left = end - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.fd], [], [], left)[0]:
                try:
                    data = os.read(self.fd, 65536)
                except OSError:
                    data = b""
                assert data, f"ended before {pattern!r}: {self.seen!r}"
                self.seen += data.decode("utf-8", "replace")
        self.seen = self.seen[found.end():]
        return found.group(0)

    def type(self, text):
        os.write(self.fd, text.encode())

    def leave(self, seconds=20):
        """Ctrl-D until it is heard: one that comes before the editor has the terminal is lost."""
        end = time.monotonic() + seconds
        turn = 0
        while time.monotonic() < end:
            if turn % 20 == 0:
                self.type("\x04")
            turn += 1
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    os.read(self.fd, 65536)
                except OSError:
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("did not end")


def dialog(args, env, state):
    t = Terminal(args, env)
    t.read_until("End a message with an empty line")
    t.read_until("you> ")
    t.type("Hello!\n")
    t.read_until("\\.\\.\\.> ")  # not sent yet
    t.type("\n")
    t.read_until(r"\[\d+ tokens, [\d.]+ tokens/s\]")
    t.read_until("you> ")
    # Ctrl-C at the prompt throws the line away and stays.
    t.type("half a mess")
    t.read_until("half a mess")
    t.type("\x03")
    t.read_until("you> ")
    # Ctrl-C in an answer ends the answer. The model may be quicker than we are: try until it was hit.
    for _ in range(20):
        t.type("Tell me a long story.\n\n")
        t.read_until(r"\.\.\.> \s*\n")
        t.read_until(r"\w")
        t.type("\x03")
        if "stopped" in t.read_until(r"\[(stopped, )?\d+ tokens, [\d.]+ tokens/s\]"):
            break
        t.read_until("you> ")
    else:
        raise AssertionError("Ctrl-C never ended an answer")
    t.read_until("you> ")
    t.type("/undo\n")
    t.read_until("taken back")
    t.type("Hello again!\n\n")
    t.read_until(r"\[\d+ tokens")
    t.read_until("you> ")
    assert t.leave() == 0
    history = os.path.join(state, "turbo", "chat-history")
    with open(history, encoding="utf-8") as f:
        text = f.read()
    assert "Hello!" in text or "Hello\\041" in text, text
    assert os.stat(history).st_mode & 0o077 == 0, oct(os.stat(history).st_mode)


def main():
    with tempfile.TemporaryDirectory() as state:
        env = dict(os.environ, XDG_STATE_HOME=state, TERM="dumb", HOME=state)
        slow = ["--isa", "scalar", "--threads", "1"]
        dialog([turbo, "chat", model] + slow, env, state)
        print("ok chat")
    with tempfile.TemporaryDirectory() as state:
        env = dict(os.environ, XDG_STATE_HOME=state, TERM="dumb", HOME=state)
        log = os.path.join(state, "log")
        with open(log, "w", encoding="utf-8") as f:
            d = subprocess.Popen([os.environ.get("TURBOD", os.path.join(top, "turbod")), "--model", model,
                                  "--port", "0"] + slow, stderr=f, env=env)
        try:
            url = ""
            for _ in range(400):
                text = open(log, encoding="utf-8").read()
                if " ready in " in text:
                    url = re.search(r"listening on (http:\S+)", text).group(1)
                    break
                time.sleep(0.05)
            assert url, open(log, encoding="utf-8").read()
            dialog([turbo, "client", url], env, state)
            print("ok client")
        finally:
            d.terminate()
            assert d.wait(20) == 0


if __name__ == "__main__":
    sys.exit(main())
