import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import kit  # noqa: E402


def _serve(**flags):
    s = kit.Server(**flags).baseline()
    yield s
    code = s.stop()
    log = s.read_log()
    assert code == 0, log
    assert "Sanitizer" not in log and "runtime error" not in log, log


@pytest.fixture(scope="session")
def main_server():
    yield from _serve(allowed_hosts="x", policies=os.path.join(kit.SOURCE, "scripts", "sampling"))


@pytest.fixture(scope="session")
def slow_server():
    """Scalar arithmetic, two sequences at once, a short queue."""
    yield from _serve(isa="scalar", max_batch_size=2, queue_size=4, max_prefill_token_num=64)


@pytest.fixture(scope="session")
def slow_free_server():
    """Scalar arithmetic, room for all."""
    yield from _serve(isa="scalar")


@pytest.fixture(scope="session")
def short_server():
    """All deadlines short."""
    yield from _serve(isa="scalar", max_prefill_token_num=64, header_timeout_ms=600, body_timeout_ms=600, idle_timeout_ms=700,
                      send_timeout_ms=800, ping_ms=50, body_limit=65536, allowed_hosts="x")


def _quiet(server):
    yield server
    server.quiesce()


@pytest.fixture
def server(main_server):
    yield from _quiet(main_server)


@pytest.fixture
def slow(slow_server):
    yield from _quiet(slow_server)


@pytest.fixture
def short(short_server):
    yield from _quiet(short_server)


@pytest.fixture
def slow_free(slow_free_server):
    yield from _quiet(slow_free_server)
