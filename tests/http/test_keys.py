"""Who may do what: the authorisation table, hosts, origins, reload of keys, secrets in the log."""
import os
import signal

import pytest

from kit import Server, until

USER, ADMIN, OTHER = "user-key-0123456789abcdef", "admin-key-0123456789abcdef", "other-key-0123456789abcd"


def write_keys(path, *lines):
    with open(path, "w") as f:
        f.write("# label key [admin]\n" + "".join(line + "\n" for line in lines))
    os.chmod(path, 0o600)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("keys") / "keys")
    write_keys(path, "alice " + USER, "root %s admin" % ADMIN)
    s = Server(api_keys=path, metrics_open=False, allowed_origins="https://page.example")
    s.key_file = path
    yield s
    assert s.stop() == 0
    log = s.read_log()
    for key in (USER, ADMIN, OTHER):
        assert key not in log
    assert "key=alice" in log


def bearer(key):
    return {"Authorization": "Bearer " + key} if key is not None else {}


BODY = {"prompt": "a", "max_tokens": 1}


@pytest.mark.parametrize("method,path,none,bad,user,admin", [
    ("GET", "/health", 200, 200, 200, 200), ("GET", "/ready", 200, 200, 200, 200),
    ("GET", "/v1/models", 401, 401, 200, 200), ("POST", "/v1/completions", 401, 401, 200, 200),
    ("GET", "/metrics", 401, 401, 403, 200), ("GET", "/props", 401, 401, 200, 200),
    ("GET", "/nothing", 401, 401, 404, 404), ("GET", "/admin/x", 401, 401, 404, 404),
    ("GET", "/v1/completions", 401, 401, 405, 405), ("POST", "/health", 401, 401, 405, 405),
    ("DELETE", "/v1/models", 401, 401, 405, 405)])
def test_f58_table(keyed, method, path, none, bad, user, admin):
    body = BODY if method == "POST" else None
    for key, status in ((None, none), ("wrong", bad), (USER, user), (ADMIN, admin)):
        r = keyed.request(method, path, body, headers=bearer(key))
        assert r.status == status, (path, key, r.status)
        if status == 401:
            assert r.code == "invalid_api_key" and r.headers["www-authenticate"] == "Bearer"


def test_shapes_of_authorization(keyed):
    for value in ("bearer " + USER, "Bearer " + USER + "x", "Bearer  " + USER, "Bearer", "Bearer ",
                  "Basic " + USER, USER, "Bearer " + "k" * 8000, "Bearer " + USER[:-1]):
        assert keyed.get("/v1/models", headers={"Authorization": value}).status == 401, value[:40]
    two = b"".join(b"Authorization: Bearer %s\r\n" % USER.encode() for _ in range(2))
    assert keyed.raw(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + two +
                     b"Connection: close\r\n\r\n") == [401]


def test_abort_needs_the_owner_or_an_admin(keyed):
    r = keyed.post("/v1/abort", {"abort_all": True}, headers=bearer(USER))
    assert r.status == 403 and r.code == "permission_denied"
    r = keyed.post("/v1/abort", {"abort_all": True}, headers=bearer(ADMIN))
    assert r.json() == {"aborted": 0}


def test_origin(keyed):
    r = keyed.get("/health", headers={"Origin": "https://page.example"})
    assert r.headers["access-control-allow-origin"] == "https://page.example"
    r = keyed.request("OPTIONS", "/v1/chat/completions", headers={
        "Origin": "https://page.example", "Access-Control-Request-Method": "POST"})
    assert r.status == 204 and "POST" in r.headers["access-control-allow-methods"]
    assert keyed.request("OPTIONS", "/v1/chat/completions").status == 401
    r = keyed.request("OPTIONS", "/v1/chat/completions", headers={"Origin": "https://evil"})
    assert r.status == 403


def test_reload_of_keys(keyed):
    write_keys(keyed.key_file, "bob " + OTHER, "root %s admin" % ADMIN)
    keyed.process.send_signal(signal.SIGHUP)
    until(lambda: keyed.get("/v1/models", headers=bearer(OTHER)).status == 200)
    assert keyed.get("/v1/models", headers=bearer(USER)).status == 401
    write_keys(keyed.key_file, "broken")
    keyed.process.send_signal(signal.SIGHUP)
    until(lambda: "the old configuration stays" in keyed.read_log())
    assert keyed.get("/v1/models", headers=bearer(OTHER)).status == 200
    write_keys(keyed.key_file, "alice " + USER, "root %s admin" % ADMIN)
    keyed.process.send_signal(signal.SIGHUP)
    until(lambda: keyed.get("/v1/models", headers=bearer(USER)).status == 200)


@pytest.mark.parametrize("lines,mode", [
    (["short abc"], 0o600), (["a b c d"], 0o600), ([], 0o600), (["x " + USER, "y " + USER], 0o600),
    (["ok " + USER], 0o644), (["bad/label " + USER], 0o600), (["h sha256:12"], 0o600)])
def test_key_files_that_are_refused(tmp_path, lines, mode):
    path = str(tmp_path / "keys")
    write_keys(path, *lines)
    os.chmod(path, mode)
    s = Server(wait=False, api_keys=path)
    assert s.process.wait(10) == 78
    log = s.read_log()
    assert "api_keys" in log and USER not in log


def test_open_address_needs_keys():
    s = Server(wait=False, host="0.0.0.0")
    assert s.process.wait(10) == 78 and "api_keys" in s.read_log()
