"""How many events a second does `stripemeter import` take into a stopped server's directory, on one core?

    python bench/import.py [--rows 1000000] [--rounds 3] [--formats jsonl jsonl.gz csv]

Files are made first: newest first, 10,000 customers, 5 metrics, a key each. Each round imports one into an empty
directory by the command itself, pinned to one core. Reported are rows by the clock, and by the processor time that all
threads took: on a machine that others use too, only that says what the code costs. Its start and its end (recovery,
draining) are in it. `reference_ms` of the report says how fast the machine was.
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

from common import ROOT, pin_to, progress, publish, reference_ms, report, server_core

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


def once(path: Path, rows: int, parent: Path) -> tuple[float, float]:
    """(seconds, processor seconds) of one import into an empty directory."""
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli.main", "import", str(path), "--json"],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--formats", nargs="+", default=["jsonl", "jsonl.gz", "csv"])
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as parent:
        for name in options.formats:
            path = Path(parent) / f"usage.{name}"
            write(path, options.rows)
            took = [
                (*once(path, options.rows, Path(parent)), reference_ms())
                for _ in range(options.rounds)
            ]
            results.append(
                {
                    "format": name,
                    "rows": options.rows,
                    "rows_per_second_best": round(options.rows / min(one[0] for one in took)),
                    "rows_per_cpu_second_best": round(options.rows / min(one[1] for one in took)),
                    "cpu_us_per_row": [round(one[1] * 1e6 / options.rows, 2) for one in took],
                    "reference_ms": [one[2] for one in took],
                }
            )
            progress(f"{results[-1]}")
            path.unlink()
    publish(report("import", results), options.output)


if __name__ == "__main__":
    main()
