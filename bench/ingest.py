"""How many events a second, at which latency and cost, by batch size, connections, duplicates and stored keys?

    python bench/ingest.py [--seconds 5] [--sustained | --full] [--batches 1 100 1000] [--connections 1 16 100]
                           [--duplicates unique half] [--stored 0 10000000] [--directory DIR]

Each number of stored keys is one server on one core with its defaults (merges, snapshots and indexer on, every
acknowledgement after an fsync); each cell is so many seconds of load on it. A cell is checked: every response was a
200, and the server counted as many accepted and duplicate events as were sent. `--sustained` is 60 s a cell, `--full`
10 minutes a cell; both take only the three cells that have targets unless told otherwise.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from common import cpu_seconds, memory_bytes, progress, publish, report
from load import wrk
from preload import Content, preload
from server import Server

CUSTOMERS = 10_000
METRICS = 5
PRELOADED_CUSTOMERS = 10_000
SUSTAINED_SECONDS = 60
FULL_SECONDS = 600
SETTLE_SECONDS = 0.2


class Cell(NamedTuple):
    """One load."""

    batch: int
    connections: int
    duplicates: str


TARGETS = (Cell(1, 100, "unique"), Cell(100, 16, "unique"), Cell(1000, 8, "unique"))
"""What docs/performance.md has targets for."""


def measure(server: Server, cell: Cell, seconds: float) -> dict[str, Any]:
    """Load one cell and check the counts."""
    run = os.urandom(6).hex()
    accepted, duplicates = counts(server)
    cpu = cpu_seconds(server.pid)
    said = wrk(
        "ingest.lua",
        server.url,
        connections=cell.connections,
        seconds=seconds,
        arguments=[run, str(cell.batch), cell.duplicates, str(CUSTOMERS), str(METRICS)],
    )
    cpu = cpu_seconds(server.pid) - cpu
    accepted_after, duplicates_after = counts(server)
    accepted, duplicates = accepted_after - accepted, duplicates_after - duplicates
    check(cell, said, accepted, duplicates)
    answered = said["requests"] * cell.batch
    return {
        "batch": cell.batch,
        "duplicates": cell.duplicates,
        "events_per_second": round(answered / said["seconds"]),
        **said,
        "accepted": round(accepted),
        "duplicate": round(duplicates),
        "server_cpu_us_per_event": round(cpu * 1e6 / (accepted + duplicates), 2),
        "server_memory_mib": round(memory_bytes(server.pid) / 2**20),
    }


def counts(server: Server) -> tuple[float, float]:
    """Accepted and duplicate events, once what the generator left in flight is counted too."""
    before = (-1.0, -1.0)
    while True:
        now = server.metric("events_ingested_total"), server.metric("events_duplicate_total")
        if now == before:
            return now
        before = now
        time.sleep(SETTLE_SECONDS)


def check(cell: Cell, said: dict[str, Any], accepted: float, duplicates: float) -> None:
    """Raise RuntimeError unless everything answered was counted, and nothing that was never sent."""
    answered = said["requests"] * cell.batch
    in_flight = cell.connections * cell.batch
    counted = accepted + duplicates
    wrong = (
        said["not_2xx"] or said["socket_errors"] or not answered <= counted <= answered + in_flight
    )
    if cell.duplicates == "unique":
        wrong = wrong or duplicates
    else:  # the generator alternates: half, but for what was cut off
        wrong = wrong or abs(accepted - duplicates) > in_flight + cell.batch
    if wrong:
        message = (
            f"{cell}: {said}, but the server counted {accepted} accepted, {duplicates} duplicates"
        )
        raise RuntimeError(message)


def measure_store(
    parent: Path, stored: int, cells: list[Cell], seconds: float, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """All cells on one server that begins with `stored` keys."""
    directory = parent / f"stored-{stored}"
    if stored:
        progress(f"writing a log of {stored} events")
        preload(directory, Content(stored, PRELOADED_CUSTOMERS, METRICS))
    results = []
    with Server(directory, entry=options.entry) as server:
        following_seconds = server.wait_until_idle()
        progress(
            f"{stored} stored: ready after {server.ready_seconds:.1f} s, "
            f"indexed after {following_seconds:.1f} s more"
        )
        wrk("ingest.lua", server.url, connections=16, seconds=1, arguments=_warm_up())
        for cell in cells:
            for _ in range(options.repeat):
                result = {"stored": stored, **measure(server, cell, seconds)}
                progress(
                    f"stored {stored} batch {cell.batch} connections {cell.connections} {cell.duplicates}: "
                    f"{result['events_per_second']}/s p99 {result['p99_ms']} ms, "
                    f"{result['server_cpu_us_per_event']} us an event"
                )
                results.append(result)
    return results


def _warm_up() -> list[str]:
    return [os.urandom(6).hex(), "100", "unique", str(CUSTOMERS), str(METRICS)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--sustained", action="store_true", help="60 s a cell, the target cells")
    length.add_argument("--full", action="store_true", help="10 min a cell, the target cells")
    parser.add_argument("--targets", action="store_true", help="only the target cells")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 100])
    parser.add_argument("--duplicates", nargs="+", default=["unique", "half"])
    parser.add_argument("--stored", type=int, nargs="+", default=[0, 10_000_000])
    parser.add_argument("--repeat", type=int, default=1, help="measure each cell so many times")
    parser.add_argument(
        "--entry", help="a script of bench/ to run in place of the server's command"
    )
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    options = parser.parse_args()
    seconds = options.seconds
    if options.sustained or options.full:
        seconds = FULL_SECONDS if options.full else SUSTAINED_SECONDS
    cells = [
        Cell(batch, connections, duplicates)
        for batch in options.batches
        for connections in options.connections
        for duplicates in options.duplicates
    ]
    if options.sustained or options.full or options.targets:
        cells = list(TARGETS)
    results = []
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as parent:
        for stored in options.stored:
            results += measure_store(Path(parent), stored, cells, seconds, options)
    names = ("full", "sustained", "targets")
    name = "-".join(["ingest", *(n for n in names if getattr(options, n))][:2])
    publish(report(name, results), options.output)


if __name__ == "__main__":
    main()
