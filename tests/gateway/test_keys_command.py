"""`stripemeter keys`: on a stopped server's directory and through a running one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from engine import config
from gateway.cli.main import main
from gateway.data_directory import DataDirectory
from wal.check import check_log
from wal.lmdb_log import LmdbLog

ADMIN_KEY = "an-administrators-key-0123456789"


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory of its own, and none of our variables."""
    for name in list(os.environ):
        if name.startswith((config.PREFIX, "STRIPE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def create(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, object]:
    arguments = ["keys", "create", "--tenant", "acme", "--name", "n", "--scope", "usage:read"]
    assert main([*arguments, "--json", *more]) == 0
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.lmdb
def test_keys_of_a_stopped_server_live_in_its_log(capsys: pytest.CaptureFixture[str]) -> None:
    made = create(capsys)
    assert str(made["key"]).startswith("sm_" + str(made["prefix"]))
    assert main(["keys", "rotate", str(made["id"])]) == 0
    output = capsys.readouterr()
    assert len(output.out.strip()) == 43
    assert output.out.strip() != made["key"]
    assert "not shown again" in output.err
    assert main(["keys", "revoke", str(made["id"])]) == 0
    capsys.readouterr()
    assert main(["keys", "list"]) == 0
    text = capsys.readouterr().out
    assert str(made["id"]) in text
    assert "revoked" in text
    assert main(["keys", "list", "--json", "--tenant", "other"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    log = LmdbLog(Path("data/log"), read_only=True)
    try:
        assert log.head().next_sequence == 5, "genesis, settings, create, rotate, revoke"
        assert check_log(log).ok
    finally:
        log.close()


@pytest.mark.lmdb
def test_what_can_not_be_done_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["keys", "revoke", "key_0"]) == 1
    assert capsys.readouterr().err == "stripemeter: there is no API key key_0\n"
    wrong = ["--tenant", "a", "--name", "n" * 101, "--scope", "admin"]
    assert main(["keys", "create", *wrong]) == 1
    assert "name must have 1 to 100 characters" in capsys.readouterr().err
    wrong = ["--tenant", "a", "--name", "n", "--scope", "admin", "--expires-at", "tomorrow"]
    assert main(["keys", "create", *wrong]) == 2
    assert main(["keys", "list", "--url", "http://127.0.0.1:9"]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert main(["keys", "list", "--url", "ftp://127.0.0.1"]) == 1


@pytest.mark.lmdb
@pytest.mark.slow
def test_while_a_server_has_the_directory_its_http_is_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offline = create(capsys)
    monkeypatch.setenv("STRIPEMETER_AUTH", "required")
    monkeypatch.setenv("STRIPEMETER_ADMIN_KEY", ADMIN_KEY)
    port = free_port()
    monkeypatch.setenv("STRIPEMETER_PORT", str(port))
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli.main", "serve"],
            stderr=log,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
    try:
        wait_until_ready(port)
        assert DataDirectory(tmp_path / "data").holder_pid() == server.pid
        online = create(capsys)
        assert main(["keys", "list", "--json"]) == 0
        ids = [key["id"] for key in json.loads(capsys.readouterr().out)]
        assert ids == [offline["id"], online["id"]]
        for made in (offline, online):
            assert usage_status(port, str(made["key"])) == 200
        assert main(["keys", "revoke", str(offline["id"])]) == 0
        assert usage_status(port, str(offline["key"])) == 401
        capsys.readouterr()
        assert main(["keys", "list", "--api-key", "wrong"]) == 1
        assert "--api-key, or STRIPEMETER_ADMIN_KEY" in capsys.readouterr().err
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)
    monkeypatch.delenv("STRIPEMETER_PORT")
    assert main(["keys", "list", "--json"]) == 0
    keys = json.loads(capsys.readouterr().out)
    assert [key["revokedAt"] is None for key in keys] == [False, True]


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
                return
        except OSError as error:  # refused, or too busy to answer in time
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            time.sleep(0.1)
    pytest.fail("the server did not become ready")


def usage_status(port: int, key: str) -> int:
    url = f"http://127.0.0.1:{port}/v1/usage/current?customerRef=c"
    request = urllib.request.Request(url, headers={"x-api-key": key})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
