"""What do exports and questions about the past cost, on a log without a snapshot?

    python bench/past.py [--events 1000000] [--directory DIR]

Results: `export` of all events as JSON lines and as CSV (events a second, one core); `as_of_customer`, the fold that
answers `asOf` on a customer's current usage; `as_of_everything`, the fold of all counters; `time_search`, from an instant
to a position, the first time and the second; `explain` of one counter. Seconds, and events of the log passed a second.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import pin_to, publish, report, server_core
from preload import TENANT, Content, preload

from engine.actors.as_of import TimeIndex
from engine.actors.event_scan import EventScan, ScanFilter, Stretch
from engine.actors.prefix_fold import PrefixFold, Wanted
from engine.core.explain import Explainer
from engine.core.partitions import partition_of
from engine.core.times import DAY_US
from gateway.data_directory import DataDirectory
from gateway.export_rows import EVENT_COLUMNS, csv_lines, event_row, json_lines
from wal.lmdb_log import LmdbLog

CUSTOMER = "customer-0000042"


def all_slices(run_slice: Callable[[], bool]) -> float:
    """Run it to its end; the longest slice in milliseconds."""
    longest = 0.0
    more = True
    while more:
        began = time.perf_counter()
        more = run_slice()
        longest = max(longest, time.perf_counter() - began)
    return round(longest * 1e3, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    pin_to({server_core()})
    directory = options.directory or Path(tempfile.mkdtemp(prefix="stripemeter-bench-"))
    preload(directory, Content(options.events, 1000, 5))
    log = LmdbLog(DataDirectory(directory).log_path, read_only=True)
    end = log.head().next_sequence
    results: list[dict[str, Any]] = []

    def measured(step: str, began: float, **more: Any) -> None:
        seconds = time.perf_counter() - began
        results.append(
            {
                "step": step,
                "seconds": round(seconds, 3),
                "events_per_second": round(options.events / seconds),
                **more,
            }
        )

    for name, lines in (("jsonl", json_lines), ("csv", csv_lines)):
        began = time.perf_counter()
        scan = EventScan(log, [Stretch(0, end)], ScanFilter())
        size = 0
        while (page := scan.next_page()) is not None:
            size += len(lines(EVENT_COLUMNS, map(event_row, page)))
        measured(f"export_{name}", began, bytes=size)
    began = time.perf_counter()
    partition = partition_of(TENANT, CUSTOMER)
    fold = PrefixFold(log, end, partitions=[partition], wanted=Wanted(TENANT, CUSTOMER))
    measured("as_of_customer", began, longest_slice_ms=all_slices(fold.run_slice))
    began = time.perf_counter()
    fold = PrefixFold(log, end)
    measured("as_of_everything", began, longest_slice_ms=all_slices(fold.run_slice))
    index = TimeIndex(log)
    at_us = log.read(end - 1, bytes_max=1)[0].envelope.received_at_us
    for step in ("time_search_first", "time_search_again"):
        began = time.perf_counter()
        measured(step, began, longest_slice_ms=all_slices(index.search(at_us, end).run_slice))
    began = time.perf_counter()
    month_us = at_us - at_us % DAY_US
    explainer = Explainer((TENANT, "metric-0", CUSTOMER), month_us - 40 * DAY_US)
    wanted = Wanted(TENANT, CUSTOMER, "metric-0", month_us - 40 * DAY_US)
    fold = PrefixFold(log, end, partitions=[partition], wanted=wanted, observer=explainer)
    measured("explain", began, longest_slice_ms=all_slices(fold.run_slice))
    log.close()
    if options.directory is None:
        shutil.rmtree(directory)
    publish(report("past", results, events=options.events), options.to)


if __name__ == "__main__":
    main()
