"""What commands print: JSON of those that work on a directory, and what a real terminal gets that a pipe does not."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine import config
from gateway.cli.main import main
from tests.helpers.server import ROOT, STOCK, server_environment

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]
Capture = pytest.CaptureFixture[str]
COLOUR = re.compile(r"\x1b\[(?:3[0-8]|9[0-7])")


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith((config.PREFIX, "STRIPE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def found(capsys: Capture, *arguments: str, code: int = 0) -> Any:
    """What a command prints as JSON; the whole of stdout is one value."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == code, capsys.readouterr()
    return json.loads(capsys.readouterr().out)


def test_every_command_of_a_directory_prints_json(capsys: Capture) -> None:
    event = {"metric": "calls", "customerRef": "anna", "quantity": 3, "idempotencyKey": "k"}
    Path("usage.jsonl").write_text(json.dumps(event) + "\n")
    assert found(capsys, "import", "usage.jsonl", "--tenant", "acme")["new"] == 1
    key = found(capsys, "keys", "create", "--tenant", "acme", "--name", "n", "--scope", "admin")
    assert [one["id"] for one in found(capsys, "keys", "list")] == [key["id"]]
    assert found(capsys, "keys", "rotate", key["id"])["key"] != key["key"]
    assert found(capsys, "keys", "revoke", key["id"])["revokedAt"]
    month = time.strftime("%Y-%m", time.gmtime())
    assert found(capsys, "explain", "acme", "anna", "calls", month)["total"] == 3
    exported = found(capsys, "export", "events", "-o", "events.csv")
    assert exported == {"what": "events", "file": "events.csv", "rows": 1, "notes": []}
    assert found(capsys, "check")["ok"] is True
    assert found(capsys, "doctor")["problems"] == []
    assert re.fullmatch("[0-9a-f]{64}", found(capsys, "parity", "key")["publicKey"])
    assert found(capsys, "retention", "--dry-run", "--days", "400")["events"] == 0
    assert found(capsys, "backup", "copy")["nextSequence"] > 0
    assert found(capsys, "restore", "copy", "--data-dir", "again")["epoch"] > 1
    erased = found(capsys, "erase", "--tenant", "acme", "--customer", "anna", "--yes")
    assert (erased["customers"], "pseudonym" in erased) == (1, True)
    assert found(capsys, "compact")["savedBytes"] >= 0
    assert set(found(capsys, "version")) == {"version", "python", "platform", "libraries"}
    assert found(capsys, "openapi")["openapi"].startswith("3.1")
    assert found(capsys, "stripe", "check")["problems"] == []


def on_a_terminal(*arguments: str, **environ: str) -> str:
    """All that a command writes to a terminal of 80 columns that is its stdout and stderr."""
    ours, theirs = pty.openpty()
    environment = server_environment({"TERM": "xterm-256color", "COLUMNS": "80", **environ})
    process = subprocess.Popen(
        [sys.executable, "-m", STOCK, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )
    os.close(theirs)
    text = b""
    try:
        while select.select([ours], [], [], 30)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            text += piece
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return text.decode()


def test_a_terminal_gets_colour_unless_it_is_turned_off() -> None:
    # The working directory is the fixture's own: a process started here sees no settings.
    assert COLOUR.search(on_a_terminal("doctor"))
    plain = (on_a_terminal("doctor", "--no-color"), on_a_terminal("doctor", NO_COLOR="1"))
    for text in plain:
        assert "no problem found" in text
        assert COLOUR.search(text) is None
    assert main(["keys", "create", "--tenant", "acme", "--name", "n", "--scope", "admin"]) == 0
    assert COLOUR.search(on_a_terminal("check"))
    check = on_a_terminal("check", "--no-color")
    assert "no damage" in check
    assert COLOUR.search(check) is None


def test_what_a_terminal_shows_fits_its_width() -> None:
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", on_a_terminal("doctor"))
    table = [line for line in text.splitlines() if not line.startswith(("note:", "problem:"))]
    assert max(len(line.rstrip()) for line in table) <= 80
    assert "STRIPEMETER_RECONCILE_INTERVAL_SECONDS" in text
