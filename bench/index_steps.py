"""What does the index cost: per event taken in, and per question asked?

    python bench/index_steps.py [--events 1000000] [--cases 1000:20 10000:20 10000:864000] [--directory DIR]

A case is a number of distinct customers and over how many seconds the events are spread: 20 is full load, ten days
makes nearly every event a cell of its own. Prints one JSON object: machine, commit, and per case the CPU time of
feeding, building and storing an event (of all threads; the log's own cost is not in it), bytes on disk, and latencies
of questions. `relative_to_encoding`: that cost beside what encoding the same groups for the log costs, which ingest
pays anyhow. What it means for ingest as a whole is bench/indexer.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import trio

from engine.actors.group import Group
from engine.actors.indexer import Indexer
from engine.core.queries import EventsQuery, HistoryQuery
from engine.core.records import PartKind, RecordType, encode_counting, encode_erasable
from wal.lmdb_cells import LmdbCells
from wal.lmdb_log import LmdbLog
from wal.log import Draft, DraftPart

GROUP_EVENTS = 1000
T0_US = 1_700_000_040_000_000
DAY_US = 86_400_000_000
METRICS = ("api_calls", "storage_gb", "seats", "tokens")
LOG_ID = bytes(16)


async def in_thread(function: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(function)


def make_group(rng: Random, customers: int, number: int, span_us: int) -> Group:
    """A sealed group whose times move through `span_us` in a million events, with some late ones."""
    now_us = T0_US + number * span_us // 1000
    group = Group()
    rows = []
    for index in range(GROUP_EVENTS):
        late_us = rng.randrange(DAY_US) if index % 50 == 0 else rng.randrange(2_000_000)
        key = rng.randbytes(16)
        rows.append(
            (
                rng.choice(METRICS),
                f"cus_{rng.randrange(customers):08d}",
                rng.randrange(1, 1000) * 1_000_000,
                now_us - late_us,
                rng.randrange(64),
                key,
                key,
                0,
                f"{number}-{index}",
                None,
                '{"region":"eu-west-1"}',
            )
        )
    group.add_rows("acme", rows)
    group.events = len(rows)
    group.seal(now_us)
    return group


def append(log: LmdbLog, group: Group) -> tuple[int, float]:
    """Append a group as the log writer does: (the log's end, CPU seconds of encoding)."""
    started = time.process_time()
    parts = []
    for part in group.parts:
        parts.append(DraftPart(PartKind.COUNTING, encode_counting(part)))
        parts.append(DraftPart(PartKind.ERASABLE, encode_erasable(part)))
    seconds = time.process_time() - started
    draft = Draft(RecordType.EVENTS, group.events, group.received_at_us, tuple(parts))
    [envelope] = log.append([draft])
    group.first_sequence = envelope.sequence
    return envelope.sequence + envelope.item_count, seconds


async def ask(question: Callable[[], Awaitable[Any]], times: int = 20) -> dict[str, float]:
    """Latency in milliseconds."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        await question()
        took.append((time.perf_counter() - started) * 1e3)
    return {"median_ms": round(statistics.median(took), 2), "max_ms": round(max(took), 2)}


def questions(customers: int, span_us: int) -> dict[str, Callable[[Indexer], Awaitable[Any]]]:
    end_us = T0_US + span_us

    def history(one: Indexer, **fields: Any) -> Awaitable[Any]:
        given = {
            "tenant": "acme",
            "metric": "api_calls",
            "since_us": T0_US,
            "until_us": end_us,
            "interval": "hour",
        }
        return one.history(HistoryQuery(**{**given, **fields}), lambda _: "sum")

    def listing(one: Indexer, **fields: Any) -> Awaitable[Any]:
        return one.events(EventsQuery(tenant="acme", **fields))

    customer = f"cus_{customers // 2:08d}"
    middle_us = T0_US + span_us // 2
    return {
        "list_newest": listing,
        "list_customer": partial(listing, customer_ref=customer),
        "list_customer_metric_ascending": partial(
            listing, customer_ref=customer, metric="seats", direction="asc"
        ),
        "list_unknown_customer": partial(listing, customer_ref="nobody"),
        "list_middle_of_time": partial(listing, end_us=middle_us),
        "list_by_customer_name_in_a_minute": partial(
            listing, sort="customerRef", start_us=middle_us, end_us=middle_us + span_us // 1000
        ),
        "history_hours_all_customers": history,
        "history_minutes_customer_of_an_hour": partial(
            history, customer_ref=customer, interval="minute", until_us=T0_US + 3_600_000_000
        ),
        "history_hours_customer": partial(history, customer_ref=customer),
        "history_grouped_by_meta_of_customer": partial(
            history, customer_ref=customer, group_by="meta.region"
        ),
    }


async def measure(events: int, customers: int, span_us: int, directory: Path) -> dict[str, Any]:
    rng = Random(customers)
    log = LmdbLog(directory / "log")
    cells = LmdbCells(directory / "rollups")
    groups = events // GROUP_EVENTS
    index_seconds = encode_seconds = feed_seconds = feed_max_ms = 0.0
    async with trio.open_nursery() as nursery:
        one = Indexer(log, cells, LOG_ID, in_thread)
        nursery.start_soon(one.run)
        await one.settled()
        for number in range(groups):
            group = make_group(rng, customers, number, span_us)
            end, seconds = append(log, group)
            encode_seconds += seconds
            started, feed_started = time.process_time(), time.perf_counter()
            one.feed(group, end)
            took = time.perf_counter() - feed_started
            feed_seconds += took
            feed_max_ms = max(feed_max_ms, took * 1e3)
            # Everything that the group made due, in whichever thread, ends here.
            await one.settled()
            index_seconds += time.process_time() - started
        asked = {
            name: await ask(partial(question, one))
            for name, question in questions(customers, span_us).items()
        }
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        cells.wipe()
        started = time.perf_counter()
        one = Indexer(log, cells, LOG_ID, in_thread)
        nursery.start_soon(one.run)
        await one.settled()
        rebuild_seconds = time.perf_counter() - started
        nursery.cancel_scope.cancel()
    result = {
        "customers": customers,
        "events": events,
        "seconds_of_events": span_us // 10**6,
        "index_us_per_event": round(index_seconds / events * 1e6, 3),
        "relative_to_encoding": round(index_seconds / encode_seconds, 2),
        "feed_us_per_group": round(feed_seconds / groups * 1e6, 2),
        "feed_max_ms": round(feed_max_ms, 3),
        "disk_bytes_per_event": round(cells.size_bytes() / events, 1),
        "log_bytes_per_event": round(log.size_bytes() / events, 1),
        "rebuild_events_per_second": round(events / rebuild_seconds),
        "questions": asked,
    }
    cells.close()
    log.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument(
        "--cases", nargs="+", default=["1000:20", "10000:20", "10000:864000", "1000000:20"]
    )
    parser.add_argument("--directory", type=Path, default=None)
    arguments = parser.parse_args()
    sys.setswitchinterval(0.0005)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    results = []
    for case in arguments.cases:
        customers, seconds = map(int, case.split(":"))
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            results.append(
                trio.run(measure, arguments.events, customers, seconds * 10**6, Path(directory))
            )
    machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
    report = {"commit": commit.stdout.strip(), "machine": machine, "results": results}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
