"""How many events a second does `stripemeter import` take into a stopped server's directory, on one core?

    python bench/import.py [--rows 1000000] [--rounds 3] [--formats csv csv.gz jsonl jsonl.gz] [--old TREE]

Files are made first: newest first, 10,000 customers, 5 metrics, a key each. Each round imports one into an empty
directory by the command itself, pinned to one core, and has a dry run say what it would do. With --old, the tree of
an older commit does the same just before, so that the two can be compared. Reported are rows by the clock, and the
processor time that all threads took: on a machine that others use too, only that says what the code costs. The
command's start and end (loading Python's modules, recovery, draining) are in it; `start_cpu_seconds` says how much the
start is. `reference_ms` of a round says how fast the machine was.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from common import ROOT, commit, pin_to, progress, publish, reference_ms, report, server_core

from engine.core.times import format_instant

CUSTOMERS = 10_000
METRICS = 5
COLUMNS = ("tenantId", "metric", "customerRef", "quantity", "ts", "idempotencyKey")


def row(number: int, newest_us: int) -> dict[str, Any]:
    return {
        "tenantId": "bench",
        "metric": f"metric-{number % METRICS}",
        "customerRef": f"customer-{number * 7919 % CUSTOMERS:07d}",
        "quantity": number % 97 + 1,
        "ts": format_instant(newest_us - number * 20_000),
        "idempotencyKey": f"key-{number}",
    }


def write(path: Path, rows: int) -> None:
    newest_us = time.time_ns() // 1000 - 60_000_000
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:
        if ".csv" in path.name:
            file.write(",".join(COLUMNS) + "\n")
        for number in range(rows):
            made = row(number, newest_us)
            if ".csv" in path.name:
                file.write(",".join(map(str, made.values())) + "\n")
            else:
                file.write(json.dumps(made, separators=(",", ":")) + "\n")


def once(root: Path, path: Path, rows: int, parent: Path, *options: str) -> tuple[float, float]:
    """(seconds, processor seconds) of one import into an empty directory, by the code of a tree."""
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli.main", "import", str(path), "--json", *options],
            env={
                **os.environ,
                "PYTHONPATH": str(root),
                "STRIPEMETER_DATA_DIR": f"{directory}/data",
            },
            cwd=parent,
            stdout=subprocess.PIPE,
            check=True,
            preexec_fn=partial(pin_to, {server_core()}),
        )
        seconds = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(done.stdout)
    assert (found["new"], found["late"], found["failed"]) == (rows, 0, 0), found
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu


def summed_up(
    name: str, what: str, root: Path, rows: int, took: list[tuple[float, float, float]]
) -> dict[str, Any]:
    """Some rounds as a result; `took` is (seconds, processor seconds, reference) of each."""
    seconds, cpu = min(one[0] for one in took), min(one[1] for one in took)
    result = {
        "format": name,
        "what": what,
        "code": commit(root),
        "rows": rows,
        "rows_per_second_best": round(rows / seconds),
        "cpu_us_per_row_best": round(cpu * 1e6 / rows, 2),
        "cpu_us_per_row": [round(one[1] * 1e6 / rows, 2) for one in took],
        "reference_ms": [one[2] for one in took],
    }
    progress(f"{result}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--formats", nargs="+", default=["csv", "csv.gz", "jsonl", "jsonl.gz"])
    parser.add_argument("--old", type=Path, help="a tree with older code, to compare with")
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    options = parser.parse_args()
    roots = [ROOT] if options.old is None else [options.old.resolve(), ROOT]
    results = []
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as parent_name:
        parent = Path(parent_name)
        single = parent / "single.csv"
        write(single, 1)
        started = {root: min(once(root, single, 1, parent)[1] for _ in range(3)) for root in roots}
        for name in options.formats:
            path = parent / f"usage.{name}"
            write(path, options.rows)
            for what, more in (("import", ()), ("dry run", ("--dry-run",))):
                took: dict[Path, list[tuple[float, float, float]]] = {root: [] for root in roots}
                for _ in range(options.rounds):
                    for root in roots:
                        seconds, cpu = once(root, path, options.rows, parent, *more)
                        took[root].append((seconds, cpu, reference_ms()))
                results += [
                    summed_up(name, what, root, options.rows, took[root])
                    | {"start_cpu_seconds": round(started[root], 2)}
                    for root in roots
                ]
            path.unlink()
    publish(report("import", results), options.output)


if __name__ == "__main__":
    main()
