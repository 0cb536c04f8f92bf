"""How fast does the server come back: folding the log, loading a snapshot? And does taking one stall it?

    python bench/recovery.py [--events 1000000] [--counters 1000000] [--directory DIR]

Results, each of a fresh process: `fold` (no snapshot, few counters, key index gone: events a second), `fold_counters`
(the same with as many counters), `snapshot` (taking one of them: seconds, longest stall of the event loop),
`load` (a start from that snapshot: seconds). A start includes the key index and the check of every record read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from common import pin_to, progress, publish, report, server_core
from inside import StallWatch, Started, with_meter
from preload import Content, preload

from engine.actors.supervisor import Meter

METRICS = 5
FEW_CUSTOMERS = 1000


async def start_only(_: Meter, started: Started, results: dict[str, Any]) -> None:
    results["start_seconds"] = round(started.seconds, 3)
    results["start_cpu_seconds"] = round(started.cpu_seconds, 3)


async def take_snapshot(meter: Meter, started: Started, results: dict[str, Any]) -> None:
    await start_only(meter, started, results)
    began = time.perf_counter()
    async with StallWatch() as watch:
        await meter.started.snapshotter.take()
    results["snapshot_seconds"] = round(time.perf_counter() - began, 3)
    results["longest_stall_ms"] = round(watch.longest_ms, 2)
    results["longest_turn_cpu_ms"] = round(watch.longest_cpu_ms, 2)
    results["stalls_over_5_ms"] = watch.over_5_ms
    assert meter.started.snapshotter.last_error is None


def child(step: str, directory: Path) -> None:
    """In a process of its own: one start, and what is measured in it, as JSON on standard output."""
    results: dict[str, Any] = {}
    body = take_snapshot if step == "snapshot" else start_only
    with_meter(directory, partial(body, results=results))
    print(json.dumps(results))


def step(name: str, directory: Path) -> dict[str, Any]:
    """Run one step in a fresh process on the server's core."""
    progress(f"{name}: running")
    command = [sys.executable, __file__, "--child", name, "--directory", str(directory)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: pin_to({server_core()}),
    )
    result: dict[str, Any] = {"step": name, **json.loads(done.stdout)}
    return result


def fold(name: str, directory: Path, content: Content) -> dict[str, Any]:
    """Start without any index or snapshot."""
    for derived in ("keys", "snapshots", "rollups"):
        shutil.rmtree(directory / derived, ignore_errors=True)
    result = step(name, directory)
    result |= {"events": content.events, "counters": content.counters}
    result["events_per_second"] = round(content.events / result["start_seconds"])
    return result


def measure(parent: Path, events: int, counters: int) -> list[dict[str, Any]]:
    """All four results, in order."""
    results = []
    few = Content(events, FEW_CUSTOMERS, METRICS)
    progress("writing the logs")
    preload(parent / "few", few)
    results.append(fold("fold", parent / "few", few))
    many = Content(counters, -(-counters // METRICS), METRICS)
    preload(parent / "many", many)
    results.append(fold("fold_counters", parent / "many", many))
    results.append(step("snapshot", parent / "many") | {"counters": many.counters})
    results.append(step("load", parent / "many") | {"counters": many.counters})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--counters", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.directory)
        return
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="bench-") as parent:
        results = measure(Path(parent), arguments.events, arguments.counters)
    publish(report("recovery", results), arguments.output)


if __name__ == "__main__":
    main()
