"""Children that write to a log, and what their tests share: the ledger's balance, forks, strace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.crash.log_writer import EXIT_REFUSED, EXIT_UNKNOWN, draft_of, number_of
from wal.check import check_log
from wal.lmdb_log import LmdbLog
from wal.log import PartState, scan

ROOT = Path(__file__).parents[2]
GROUPS = 25
CHILD_SECONDS_MAX = 60


class Run(NamedTuple):
    """How a writer in a child process ended."""

    exit_code: int
    lines: list[str]
    acknowledged: dict[int, int]
    """Sequence by number of the group."""


def write_in_child(
    directory: Path,
    *,
    first: int = 0,
    count: int = GROUPS,
    trim_every: int = 0,
    prefix: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> Run:
    arguments = [str(directory), str(directory.parent / "ledger"), str(first), str(count)]
    process = subprocess.run(
        [*prefix, sys.executable, "-m", "tests.crash.log_writer", *arguments, str(trim_every)],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS_MAX,
    )
    assert process.returncode in (0, EXIT_REFUSED, EXIT_UNKNOWN), process.stderr
    return Run(process.returncode, process.stdout.splitlines(), acknowledged(directory.parent))


def acknowledged(directory: Path) -> dict[int, int]:
    ledger = directory / "ledger"
    return parse_ledger(ledger.read_bytes()) if ledger.exists() else {}


def parse_ledger(data: bytes) -> dict[int, int]:
    pairs = [line.split() for line in data.splitlines()]
    return {int(number): int(sequence) for number, sequence in pairs}


def balance(directory: Path, acks: dict[int, int]) -> int:
    """Open the log and hold it against the ledger: how many groups it has beyond the acknowledged ones.

    Every acknowledged group is there, once, at its place; so is at most what was in flight.
    """
    log = LmdbLog(directory, map_bytes_start=1 << 24)
    try:
        report = check_log(log, anchor=log.anchor())
        assert report.ok, report.problems
        stored: dict[int, int] = {}
        by_sequence = {sequence: number for number, sequence in acks.items()}
        for record in scan(log, 0):
            [part] = record.parts
            trimmed = part.state == PartState.TRIMMED
            number = by_sequence.get(record.sequence) if trimmed else number_of(part.data)
            assert number is not None, f"record {record.sequence} was trimmed without being known"
            assert number not in stored, f"group {number} is there twice"
            if not trimmed:
                assert part.data == draft_of(number).parts[0].data
            stored[number] = record.sequence
        assert stored.items() >= acks.items(), f"lost: {sorted(acks.items() - stored.items())[:5]}"
        return len(stored) - len(acks)
    finally:
        log.close()


def strace(*options: str) -> tuple[str, ...]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    command = ("strace", "-f", "-o", "/dev/null", *options)
    probe = subprocess.run([*command, "true"], capture_output=True)
    if probe.returncode != 0:
        pytest.skip("strace may not trace here (ptrace is not permitted)")
    return command


def in_fork(work: Callable[[], str | None]) -> str:
    """What `work` returns in a forked child (None: `done`), the error it ended with, or `signal`.

    For what changes the process's limits, and for damaged files: LMDB may crash on them, or walk in a circle.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(CHILD_SECONDS_MAX)
            os.write(writing, (work() or "done").encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        result = pipe.read().decode()
    os.waitpid(child, 0)
    return result or "signal"
