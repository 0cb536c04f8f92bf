"""A process that appends numbered groups to a log and writes each acknowledgement to a ledger outside it.

It is run by the tests of disk faults, under strace or with the shim, and ends as the server would: it tries again
after an append that was undone, and ends when it is refused again and again or its fate is unknown. Each refusal is a line on
its output: the error's name and the number of the group.

    python -m tests.crash.log_writer DIRECTORY LEDGER FIRST COUNT [TRIM_EVERY]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from random import Random

from wal.lmdb_log import LmdbLog
from wal.log import Draft, DraftPart, LogFull, LogStateUnknown, LogWriteFailed, scan

EXIT_UNKNOWN = 3
EXIT_REFUSED = 4
TRIES_MAX = 5
SIZES = (1, 40, 900, 3_000, 9_000, 40_000)
"""Bytes of a group's body, in turn: within a page, and over several."""


def draft_of(number: int) -> Draft:
    """The group of a number: its body begins with the number and is the same in every process."""
    body = number.to_bytes(8, "big") + Random(number).randbytes(SIZES[number % len(SIZES)])
    return Draft(2, 1 + number % 3, 1_000_000 + number, (DraftPart(1, body),))


def number_of(body: bytes) -> int:
    """The number that a body begins with."""
    return int.from_bytes(body[:8], "big")


def opened(directory: Path) -> LmdbLog:
    for _ in range(TRIES_MAX):
        try:
            return LmdbLog(directory, map_bytes_start=1 << 24)
        except (LogFull, LogWriteFailed) as error:
            print(type(error).__name__, "open", flush=True)
    raise SystemExit(EXIT_REFUSED)


def append(log: LmdbLog, number: int) -> int:
    """The group's sequence. Tries again what was refused; before that, everything must be readable."""
    for _ in range(TRIES_MAX):
        try:
            return log.append([draft_of(number)])[0].sequence
        except (LogFull, LogWriteFailed) as error:
            print(type(error).__name__, number, flush=True)
            assert all(
                number_of(r.parts[0].data) != number for r in scan(log, 0) if r.parts[0].data
            )
    raise SystemExit(EXIT_REFUSED)


def main(directory: Path, ledger: Path, first: int, count: int, trim_every: int) -> None:
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    log = opened(directory)
    try:
        for number in range(first, first + count):
            sequence = append(log, number)
            os.write(descriptor, b"%d %d\n" % (number, sequence))
            if trim_every and number % trim_every == 0:
                log.trim(log.head().next_sequence // 2, 2, records_max=3)
    except LogStateUnknown as error:
        print(type(error).__name__, flush=True)
        for again in (lambda: log.append([draft_of(0)]), lambda: log.read(0, bytes_max=1)):
            try:
                again()
            except LogStateUnknown:
                continue
            print("USABLE AFTER AN UNKNOWN OUTCOME", flush=True)
        raise SystemExit(EXIT_UNKNOWN) from None
    log.close()


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        int(sys.argv[3]),
        int(sys.argv[4]),
        int(sys.argv[5]) if len(sys.argv) > 5 else 0,
    )
