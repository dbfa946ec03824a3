#!/usr/bin/env python3
"""What an idle connection costs turbod, in bytes of its own memory.

Connections are opened from several loopback addresses by child processes and then left alone: neither the
ports of one address nor the descriptors of one client are the limit. Two kinds: fresh (connected, no byte
sent) and kept (one GET /health answered, connection kept alive). Memory is what the kernel says of the
process (smaps_rollup: Rss, Pss), before the first connection and with all of them open; what the kernel
itself keeps for sockets (both ends are on this machine) is not turbod's and printed beside.

    make bench-idle         or: idle.py [CONNECTIONS]
"""
import os
import resource
import signal
import socket
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "http"))
import kit  # noqa: E402

GOAL = 16384
SPARE = 256  # descriptors turbod keeps for itself
PER_CHILD = 5000
ASK = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def memory(pid):
    """Rss and Pss in bytes."""
    out = {}
    with open("/proc/%d/smaps_rollup" % pid) as f:
        for line in f:
            key, _, rest = line.partition(":")
            if key in ("Rss", "Pss"):
                out[key] = int(rest.split()[0]) * 1024
    return out


def kernel():
    """Bytes of slabs, where sockets live."""
    with open("/proc/meminfo") as f:
        rows = dict(line.split(":") for line in f)
    return int(rows["Slab"].split()[0]) * 1024


def hold(port, first, n, kept, ready):
    """A child: opens its connections, says so, and keeps them until it is told to end."""
    socks = []
    for i in range(first, first + n):
        s = socket.socket()
        s.bind(("127.0.0.%d" % (2 + i // 10000), 0))
        s.settimeout(60)
        s.connect(("127.0.0.1", port))
        if kept:
            s.sendall(ASK)
            got = b""
            while not got.endswith(b"}"):
                more = s.recv(4096)
                if not more:
                    os._exit(1)
                got += more
        socks.append(s)
    os.write(ready, b"k")
    signal.pause()


def measure(n, kept):
    s = kit.Server(max_connections=n, idle_timeout_ms=3600000, header_timeout_ms=3600000)
    s.complete("warm")
    before, slab = memory(s.process.pid), kernel()
    read, write = os.pipe()
    children, first, t0 = [], 0, time.monotonic()
    while first < n - 2:
        part = min(PER_CHILD, n - 2 - first)
        pid = os.fork()
        if not pid:
            try:
                hold(s.port, first, part, kept, write)
            finally:
                os._exit(1)
        children.append(pid)
        first += part
    try:
        os.close(write)
        for _ in children:
            if os.read(read, 1) != b"k":
                raise SystemExit("idle: a client failed")
        took = time.monotonic() - t0
        time.sleep(1)
        after, open_fds = memory(s.process.pid), s.gauge("client_fds") - 1
        assert open_fds == n - 2, open_fds
        each = {k: (after[k] - before[k]) / (n - 2) for k in before}
        print("%6d %s: Rss %6.0f, Pss %6.0f bytes a connection (goal %d); kernel, both ends %6.0f; "
              "opened in %.1f s" % (n - 2, "kept " if kept else "fresh", each["Rss"], each["Pss"], GOAL,
                                    (kernel() - slab) / (n - 2), took))
        r = s.get("/health")
        assert r.status == 200, r.status
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(read)
    assert s.stop() == 0, s.read_log()[-500:]
    return each["Rss"] <= GOAL


def main():
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 20000
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    n = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard - SPARE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if n < wanted:
        print("the limit of descriptors is %d: %d connections instead of %d" % (hard, n - 2, wanted))
    ok = [measure(n, kept) for kept in (False, True)]
    sys.exit(0 if all(ok) else 1)


main()
