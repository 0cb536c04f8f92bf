"""What does the log cost: appends by group size, reading back, checking, in one thread on a real disk?

    python bench/log.py [--seconds 2] [--directory DIR] [--output FILE]

Per group size (events in one append): appends a second and their spread, which is the disk's sync; reading pages of
4 MiB and scanning them in MB a second; decoding alone in microseconds a record; `check` in MB a second. An event is
taken as 70 bytes to count and 50 that can be erased, about what an ordinary one takes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from common import progress, publish, report

from wal.check import check_log
from wal.envelope import GENESIS_HASH, decode, seal
from wal.lmdb_log import LmdbLog
from wal.log import Draft, DraftPart, scan

EVENTS_OF_A_GROUP: Final = (1, 10, 100, 1000, 10_000)
COUNTING_BYTES: Final = 70
ERASABLE_BYTES: Final = 50
RECORDS_MAX: Final = 20_000
LOG_BYTES_MAX: Final = 512 << 20


def group(events: int) -> Draft:
    counting, erasable = os.urandom(COUNTING_BYTES * events), os.urandom(ERASABLE_BYTES * events)
    parts = (DraftPart(1, counting), DraftPart(2, erasable))
    return Draft(2, events, 1_700_000_000_000_000, parts)


def append(log: LmdbLog, events: int, seconds: float) -> tuple[int, dict[str, float]]:
    """Append for some time: how many, and what it took."""
    draft = group(events)
    bound = min(RECORDS_MAX, LOG_BYTES_MAX // (events * (COUNTING_BYTES + ERASABLE_BYTES)))
    took_ms: list[float] = []
    started = time.perf_counter()
    while len(took_ms) < bound and time.perf_counter() - started < seconds:
        before = time.perf_counter()
        log.append([draft])
        took_ms.append((time.perf_counter() - before) * 1e3)
    total = time.perf_counter() - started
    took_ms.sort()
    return len(took_ms), {
        "appends_per_second": round(len(took_ms) / total, 1),
        "events_per_second": round(len(took_ms) * events / total),
        "append_p50_ms": round(took_ms[len(took_ms) // 2], 3),
        "append_p99_ms": round(took_ms[len(took_ms) * 99 // 100], 3),
    }


def read_back(log: LmdbLog, records: int) -> dict[str, float]:
    """Scan and check all of it; the file is in the cache."""
    result: dict[str, float] = {}
    stored = check_log(log).stored_bytes
    for name, walk in (
        ("scan", lambda: sum(1 for _ in scan(log, 0))),
        ("check", lambda: check_log(log).records),
    ):
        started = time.perf_counter()
        assert walk() == records
        took = time.perf_counter() - started
        result[f"{name}_mb_per_second"] = round(stored / took / 1e6, 1)
        result[f"{name}_us_per_record"] = round(took / records * 1e6, 2)
    return result


def codec(events: int) -> dict[str, float]:
    """Sealing and decoding one record, without a disk; the best of three rounds."""
    draft, rounds = group(events), max(20, 20_000 // events)
    sealed = seal(draft, stream=0, epoch=1, sequence=5, previous_hash=GENESIS_HASH)
    blob = sealed[1]

    def per_call_us(work: Any) -> float:
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            for _ in range(rounds):
                work()
            best = min(best, (time.perf_counter() - started) / rounds * 1e6)
        return round(best, 2)

    return {
        "blob_bytes": len(blob),
        "decode_us": per_call_us(lambda: decode(blob, 5)),
        "seal_us": per_call_us(
            lambda: seal(draft, stream=0, epoch=1, sequence=5, previous_hash=GENESIS_HASH)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0, help="of appending, per group size")
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        for events in EVENTS_OF_A_GROUP:
            progress(f"groups of {events}")
            log = LmdbLog(Path(directory) / str(events))
            records, appended = append(log, events, arguments.seconds)
            read = read_back(log, records)
            results.append(
                {
                    "events_of_a_group": events,
                    "records": records,
                    **appended,
                    **read,
                    **codec(events),
                    "file_bytes_per_event": round(log.size_bytes() / (records * events), 1),
                }
            )
            log.close()
    publish(report("log", results, seconds=arguments.seconds), arguments.output)


if __name__ == "__main__":
    main()
