"""How much memory does a counter take, and how much of a stored key stays in RAM?

    python bench/memory.py [--counters 1000000] [--keys 1000000 | --full] [--directory DIR]

Each figure is a difference between two fresh processes that started on the same kind of log: with many counters and
with few (the same number of events, so the same keys), and with many keys and with few (the same counters). What is
counted is a process's own memory; the files that it has mapped are the kernel's cache. `--full` takes 10M keys.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio
from common import memory_bytes, pin_to, progress, publish, report, server_core
from inside import Started, with_meter
from preload import Content, preload
from server import FOLLOWING_SECONDS_MAX, IDLE_CPU_SECONDS_MAX

from engine.actors.supervisor import Meter

METRICS = 5
FEW_CUSTOMERS = 200
BASE_EVENTS = 10_000
FULL_KEYS = 10_000_000


async def look(meter: Meter, _: Started, results: dict[str, Any]) -> None:
    """What the process holds once nothing follows the log any more."""
    keys = meter.started.keys
    busy = True
    with trio.move_on_after(FOLLOWING_SECONDS_MAX):
        while busy:  # the indexer and the merges have caught up when nothing takes time any more
            before = time.process_time()
            await trio.sleep(1)
            busy = time.process_time() - before > IDLE_CPU_SECONDS_MAX
    assert not busy, "a figure taken too early says nothing"
    gc.collect()
    statistics = keys.statistics()
    results["memory_bytes"] = memory_bytes()
    results["filter_bytes"] = statistics.filter_bytes
    results["recent_keys"] = statistics.recent_keys + statistics.sealed_keys
    results["stored_keys"] = statistics.stored_keys


def start(name: str, parent: Path, content: Content) -> dict[str, Any]:
    """Write a log, start on it once to build indexes, and look at a second start's memory."""
    progress(f"{name}: {content.events} events, {content.counters} counters")
    directory = parent / name
    preload(directory, content)
    command = [sys.executable, __file__, "--child", "--directory", str(directory)]
    found: dict[str, Any] = {}
    for _ in range(2):
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            preexec_fn=lambda: pin_to({server_core()}),
        )
        found = json.loads(done.stdout)
    return {"start": name, "events": content.events, "counters": content.counters, **found}


def child(directory: Path) -> None:
    results: dict[str, Any] = {}
    with_meter(directory, partial(look, results=results))
    print(json.dumps(results))


def measure(parent: Path, counters: int, keys: int) -> list[dict[str, Any]]:
    """The starts, and the two figures that come of them."""
    few = start("base", parent, Content(BASE_EVENTS, FEW_CUSTOMERS, METRICS))
    plain = start("many-keys", parent, Content(keys, FEW_CUSTOMERS, METRICS))
    events = start("as-many-events", parent, Content(counters, FEW_CUSTOMERS, METRICS))
    many = start("many-counters", parent, Content(counters, -(-counters // METRICS), METRICS))
    per_key = (plain["memory_bytes"] - few["memory_bytes"]) / (keys - BASE_EVENTS)
    per_counter = (many["memory_bytes"] - events["memory_bytes"]) / (
        many["counters"] - events["counters"]
    )
    figures = {
        "counters": many["counters"],
        "bytes_per_counter": round(per_counter, 1),
        "keys": keys,
        "ram_bytes_per_key": round(per_key, 1),
    }
    return [figures, few, plain, events, many]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--counters", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--full", action="store_true", help="10 million keys")
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.directory)
        return
    keys = FULL_KEYS if options.full else options.keys
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as parent:
        results = measure(Path(parent), options.counters, keys)
    publish(report("memory", results), options.output)


if __name__ == "__main__":
    main()
