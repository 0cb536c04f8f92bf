"""A real server whose log goes to a pipe that is open and that nobody reads: it answers, counts, stops, and says later."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.http_client import Client
from tests.helpers.server import SMALL, STOP_SECONDS_MAX, server_environment

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]
ANSWER_SECONDS_MAX = 5.0
REQUESTS = 300
OWN_LINES_MAX = 10
"""That are lost beside those of our requests: of `/metrics`, and what the server has to say itself."""
ENVIRONMENT = {"SMALL_LOG_BYTES": "16384", "STRIPEMETER_SHUTDOWN_GRACE_SECONDS": "3"}


class Piped:
    """A server whose stdout and stderr are small pipes. Its lines are read when the test says so."""

    def __init__(self, directory: Path) -> None:
        self.reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        command = [sys.executable, "-m", SMALL, "--port", "0", "--data-dir", str(directory)]
        self.process = subprocess.Popen(
            command,
            cwd=directory.parent,
            env=server_environment(ENVIRONMENT),
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
        )
        os.close(writing)
        self._lines = os.fdopen(self.reading)
        self.lines: list[dict[str, Any]] = []
        while not (line := self._read_one()).startswith("StripeMeter is ready"):
            assert line, "it ended"
        (listening,) = (line for line in self.lines if line["event"] == "listening")
        self.port = int(listening["urls"][0].rpartition(":")[2])

    def _read_one(self) -> str:
        line = self._lines.readline()
        if line.startswith("{"):
            self.lines.append(json.loads(line))
        return line

    def read_to_the_end(self) -> None:
        while self._read_one():
            pass

    def read_on(self) -> threading.Thread:
        thread = threading.Thread(target=self.read_to_the_end)
        thread.start()
        return thread

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._lines.close()


@contextmanager
def piped(directory: Path) -> Iterator[Piped]:
    server = Piped(directory)
    try:
        yield server
    finally:
        server.close()


def dropped(client: Client) -> int:
    text = client.get("/metrics").body.decode()
    found = re.search(r"^log_lines_dropped_total (\d+)", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


def ask(client: Client, first: int, count: int) -> None:
    for number in range(first, first + count):
        answer = client.request(
            "GET", f"/v1/nowhere/{number}", headers={"X-Request-Id": f"ask-{number}"}
        )
        assert answer.status == 404


def asked(lines: list[dict[str, Any]]) -> list[int]:
    """The numbers of the requests in these lines."""
    ids = [line["request_id"] for line in lines if line["event"] == "request"]
    return [int(one[4:]) for one in ids if one.startswith("ask-")]


def test_a_log_that_nobody_reads_stops_no_answer_and_what_is_lost_is_told_where_it_is_missing(
    tmp_path: Path,
) -> None:
    with piped(tmp_path / "data") as server, Client(server.port, ANSWER_SECONDS_MAX) as client:
        ask(client, 0, REQUESTS)
        lost = dropped(client)
        assert lost > 0
        reader = server.read_on()
        until = time.monotonic() + ANSWER_SECONDS_MAX
        while not any(line["event"] == "log_lines_dropped" for line in server.lines):
            assert time.monotonic() < until
            time.sleep(0.005)
        ask(client, REQUESTS, 5)
        server.process.terminate()
        assert server.process.wait(STOP_SECONDS_MAX) == 0
        reader.join()
    events = [line["event"] for line in server.lines]
    assert events[-1] == "stopped", "the last line of an end is read"
    (place,) = (n for n, line in enumerate(server.lines) if line["event"] == "log_lines_dropped")
    told, kept = server.lines[place], asked(server.lines[:place])
    assert kept == [*range(len(kept))], "in their order, up to the first that is missing"
    assert asked(server.lines[place:]) == [*range(REQUESTS, REQUESTS + 5)]
    missing = REQUESTS - len(kept)
    assert missing <= told["lines"] <= missing + OWN_LINES_MAX
    assert lost <= told["lines"]
    assert told["level"] == "warning"


def test_a_log_that_nobody_reads_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    with piped(tmp_path / "data") as server:
        with Client(server.port, ANSWER_SECONDS_MAX) as client:
            ask(client, 0, 60)
        began = time.monotonic()
        server.process.terminate()
        assert server.process.wait(STOP_SECONDS_MAX) == 0
        assert time.monotonic() - began < 4
