"""What a user types: send, usage, tail, events, mappings, customers, adjustments; against a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import config
from gateway.cli.main import main
from tests.helpers.server import ROOT, STOCK, Server, running, server_environment

pytestmark = [pytest.mark.lmdb, pytest.mark.slow]
SECONDS_MAX = 30.0
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in list(os.environ):
        if name.startswith((config.PREFIX, "STRIPE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    with running(tmp_path / "data", module=STOCK) as one:
        monkeypatch.setenv("STRIPEMETER_URL", f"http://127.0.0.1:{one.port}")
        monkeypatch.setenv("STRIPEMETER_TENANT", "acme")
        yield one


def told(capsys: Capture, *arguments: str, code: int = 0) -> str:
    """What a command prints on stdout."""
    capsys.readouterr()
    assert main(list(arguments)) == code, capsys.readouterr()
    return capsys.readouterr().out


def found(capsys: Capture, *arguments: str, code: int = 0) -> Any:
    """What a command prints as JSON."""
    return json.loads(told(capsys, *arguments, "--json", code=code))


def used(capsys: Capture, customer: str, metric: str) -> str:
    """A total, as its digits."""
    text = told(capsys, "usage", customer, "--metric", metric, "--json")
    (one,) = json.loads(text, parse_float=str, parse_int=str)["metrics"]
    return str(one["current"])


@pytest.mark.usefixtures("server")
def test_the_first_steps_need_no_other_tool(capsys: Capture) -> None:
    text = told(capsys, "send", "calls", "anna", "3", "--key", "k1", "--meta", "region=eu")
    assert text == "accepted: 3 calls of anna, key k1\n"
    assert "duplicate" in told(
        capsys, "send", "calls", "anna", "3", "--key", "k1", "--meta", "region=eu"
    )
    assert found(capsys, "send", "calls", "anna", "4", "--key", "k1", code=1)["status"] == "error"
    for _ in range(10):
        told(capsys, "send", "gb", "anna", "0.1")
    assert (used(capsys, "anna", "calls"), used(capsys, "anna", "gb")) == ("3", "1")
    told(capsys, "send", "huge", "anna", "999999999999999.999999")
    assert used(capsys, "anna", "huge") == "999999999999999.999999"
    table = told(capsys, "usage", "anna", "--history", "day")
    assert "999999999999999.999999" in table
    assert "█" in table
    month = time.strftime("%Y-%m", time.gmtime())
    (counter,) = found(capsys, "usage", "anna", "--period", month, "--metric", "gb")["counters"]
    assert (counter["current"], counter["count"]) == (1, 10)
    assert found(capsys, "usage", "anna", "--period", "2020-01")["counters"] == []
    listed = found(capsys, "events", "--metric", "gb", "--limit", "3", "--oldest")
    assert (len(listed["events"]), listed["total"]) == (3, 10)
    assert "region" not in told(capsys, "events", "--metric", "calls")

    told(capsys, "mappings", "set", "seats", "--aggregation", "max", "--unit", "seats")
    made = found(capsys, "mappings", "set", "seats", "--set", "latenessHours=2", "--meter", "seats")
    assert (made["unit"], made["latenessHours"], made["meterEventName"]) == ("seats", 2, "seats")
    assert len(found(capsys, "mappings", "list")["mappings"]) == 1
    told(capsys, "customers", "set", "anna", "--stripe-customer", "cus_anna")
    told(capsys, "customers", "set", "anna", "--item", "calls=si_1")
    (one,) = found(capsys, "customers", "list")["customers"]
    assert (one["stripeCustomerId"], one["subscriptionItems"]) == ("cus_anna", {"calls": "si_1"})

    told(capsys, "adjustments", "add", "calls", "anna", "-1.5", "--period", month, "--key", "a1")
    told(capsys, "adjustments", "add", "calls", "anna", "-1.5", "--period", month, "--key", "a1")
    (adjustment,) = found(capsys, "adjustments", "list", "--status", "pending")["adjustments"]
    assert used(capsys, "anna", "calls") == "3"
    assert told(capsys, "adjustments", "approve", "--yes") == "1 changed, 0 did not\n"
    assert used(capsys, "anna", "calls") == "1.5"
    assert "reverted" in told(capsys, "adjustments", "revert", adjustment["id"])
    assert used(capsys, "anna", "calls") == "3"


@pytest.mark.usefixtures("server")
def test_a_file_is_sent_and_sent_again_and_what_is_wrong_is_named_by_its_line(
    capsys: Capture, tmp_path: Path
) -> None:
    lines = [
        f'{{"metric":"calls","customerRef":"c{number % 7}","quantity":0.1}}'
        for number in range(1500)
    ]
    lines[99] = '{"metric":"calls","customerRef":"c","quantity":-1}'
    lines[1200] = "no event"
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    first = found(capsys, "send", "--file", "events.jsonl", "--key", "batch", code=1)
    assert main(["send", "--file", "events.jsonl", "--key", "batch", "--json"]) == 1
    notes = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [list(one) for one in notes] == [["note"]], "stderr too is JSON alone"
    assert (first["events"], first["accepted"], first["failed"]) == (1500, 1498, 2)
    assert sorted(one["line"] for one in first["errors"]) == [100, 1201]
    again = found(capsys, "send", "--file", "events.jsonl", "--key", "batch", code=1)
    assert (again["accepted"], again["duplicates"]) == (0, 1498)
    totals = [float(used(capsys, f"c{number}", "calls")) for number in range(7)]
    assert round(sum(totals), 6) == 149.8
    told(capsys, "send", "--file", "absent.jsonl", code=1)
    told(capsys, "send", "calls", "anna", "1", "--file", "events.jsonl", code=2)
    told(capsys, "send", "calls", "anna", code=2)


class Follower:
    """`stripemeter tail --json` in a process of its own, and what it has printed."""

    def __init__(self, url: str, *more: str) -> None:
        environment = server_environment({"STRIPEMETER_URL": url, "STRIPEMETER_TENANT": "acme"})
        self.process = subprocess.Popen(
            [sys.executable, "-m", STOCK, "tail", "--json", *more],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.keys: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.keys.append(json.loads(line)["idempotencyKey"])

    def wait_for(self, count: int) -> list[str]:
        until = time.monotonic() + SECONDS_MAX
        while len(self.keys) < count and time.monotonic() < until:
            time.sleep(0.02)
        return list(self.keys)

    def interrupt(self) -> tuple[int, str]:
        """Ctrl-C: (exit code, what it said)."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(SECONDS_MAX)
        self._reader.join()
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        self.process.stdout.close()  # type: ignore[union-attr]
        self.process.stderr.close()
        return code, said


def test_tail_gives_every_event_once_and_in_order_over_kills_and_ends_quietly(
    server: Server, capsys: Capture, tmp_path: Path
) -> None:
    port, url = server.port, f"http://127.0.0.1:{server.port}"
    told(capsys, "send", "calls", "anna", "1", "--key", "before")
    follower = Follower(url, "--after", "0")
    try:
        wanted = ["before"]
        assert follower.wait_for(1) == wanted
        lives = [server]
        for life in range(2):
            for number in range(5):
                wanted.append(f"{life}-{number}")
                told(capsys, "send", "calls", "anna", "1", "--key", wanted[-1])
            lives[-1].kill()
            time.sleep(0.7)  # so that it meets a server that is not there
            lives.append(Server(tmp_path / "data", module=STOCK, port=port).wait_ready())
        wanted.append("last")
        told(capsys, "send", "calls", "anna", "1", "--key", "last")
        assert follower.wait_for(len(wanted)) == wanted
        time.sleep(1)
        assert follower.keys == wanted
        code, said = follower.interrupt()
        assert code == 130
        assert "Traceback" not in said
        assert said.count("waiting for the server") == said.count("the server is back") >= 1
    finally:
        follower.process.kill()
        for one in lives:
            if one.process.poll() is None:
                one.kill()
    assert lives


def test_a_pipe_is_sent_as_it_comes_and_ctrl_c_says_how_to_go_on(
    server: Server, capsys: Capture
) -> None:
    environment = server_environment({"STRIPEMETER_URL": f"http://127.0.0.1:{server.port}"})
    sender = subprocess.Popen(
        [sys.executable, "-m", STOCK, "send", "-f", "-", "--tenant", "acme", "--key", "pipe"],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert sender.stdin is not None
    sender.stdin.write(b'{"metric":"calls","customerRef":"anna","quantity":2}\n')
    sender.stdin.flush()
    until = time.monotonic() + SECONDS_MAX
    while time.monotonic() < until:
        if found(capsys, "usage", "anna")["metrics"]:
            break
        time.sleep(0.05)
    assert used(capsys, "anna", "calls") == "2", "a line is not held back until there are more"
    sender.send_signal(signal.SIGINT)
    out, err = sender.communicate(timeout=SECONDS_MAX)
    assert sender.returncode == 130
    assert out == b""
    assert b"1 events have their answer; to go on: --key pipe" in err
    assert b"Traceback" not in err


def test_a_wait_for_a_server_that_comes_back_loses_no_event(
    server: Server, capsys: Capture, tmp_path: Path
) -> None:
    port = server.port
    server.kill()
    assert main(["send", "calls", "anna", "1", "--retry-for", "0", "--key", "k"]) == 4
    assert "--key k" in capsys.readouterr().err
    codes: list[int] = []
    sending = threading.Thread(
        target=lambda: codes.append(main(["send", "calls", "anna", "1", "--key", "k"]))
    )
    sending.start()
    time.sleep(0.5)
    life = Server(tmp_path / "data", module=STOCK, port=port)
    try:
        life.wait_ready()
        sending.join(SECONDS_MAX)
        assert codes == [0]
        assert used(capsys, "anna", "calls") == "1"
    finally:
        life.kill()
