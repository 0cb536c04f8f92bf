"""What does an event cost inside the process, without HTTP: decode, check, dedupe, commit, count, respond?

    python bench/engine_path.py [--batches 1 100 1000] [--rounds 60] [--directory DIR]

Each round answers the same number of requests at once through `gateway.ingest.Ingest.answer`, on the real log with
its fsync. The processor time of all threads is taken per round; the tenth percentile of the rounds is reported beside
the median, since on a machine that others use too only the best rounds say what the code costs. `--profile` prints
where the time goes (cProfile: its own cost falls on calls, so read it as an order, not as shares).
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio
from common import pin_to, progress, publish, report, server_core
from inside import Started, with_meter

from engine.actors.supervisor import Meter
from engine.config import load
from engine.core.times import format_instant
from gateway.auth import ANONYMOUS, Access
from gateway.context import Gateway
from gateway.data_directory import DataDirectory
from gateway.ingest import Ingest, IngestHeaders
from gateway.metrics import Metrics
from gateway.problems import Problem

CUSTOMERS = 10_000
METRICS = 5
ROUND_EVENTS = 8_000
ROUND_REQUESTS_MAX = 100
HEADERS = IngestHeaders("application/json", None, None, None, "req_000000000000000000000000")


def bodies(batch: int, requests: int, run: str, now_us: int) -> list[bytes]:
    """Request bodies with keys of their own, as `ingest.lua` makes them."""
    second = format_instant(now_us)[:20]
    made = []
    for request in range(requests):
        numbers = range(request * batch, (request + 1) * batch)
        events = [
            {
                "tenantId": "bench",
                "metric": f"metric-{n % METRICS}",
                "customerRef": f"customer-{n * 7919 % CUSTOMERS:07d}",
                "quantity": n % 97 + 1,
                "ts": f"{second}{n % 1000:03d}Z",
                "idempotencyKey": f"{run}-0-{n}",
            }
            for n in numbers
        ]
        made.append(msgspec.json.encode({"events": events}))
    return made


async def answer(ingest: Ingest, body: bytes) -> None:
    answered = await ingest.answer(body, ANONYMOUS, HEADERS)
    assert not isinstance(answered, Problem), answered


async def rounds(
    meter: Meter,
    __: Started,
    options: argparse.Namespace,
    directory: Path,
    results: list[dict[str, Any]],
) -> None:
    """Measure every batch size on one running meter."""
    settings = load({"STRIPEMETER_DATA_DIR": str(directory)}, None, {})
    access = Access.from_settings(settings, DataDirectory(directory), meter)
    ingest = Ingest(Gateway(meter, settings, access, Metrics(meter), meter.clock))
    profile = cProfile.Profile() if options.profile else None
    for batch in options.batches:
        requests = min(ROUND_REQUESTS_MAX, max(1, ROUND_EVENTS // batch))
        costs_us = []
        for _ in range(options.rounds):
            made = bodies(batch, requests, os.urandom(4).hex(), meter.clock.now_us())
            await meter.run_blocking(lambda: None)
            if profile is not None:
                profile.enable()
            began_cpu = time.process_time()
            async with trio.open_nursery() as nursery:
                for body in made:
                    nursery.start_soon(answer, ingest, body)
            costs_us.append((time.process_time() - began_cpu) * 1e6 / (batch * requests))
            if profile is not None:
                profile.disable()
        results.append(
            {
                "batch": batch,
                "requests_at_once": requests,
                "cpu_us_per_event_p10": round(statistics.quantiles(costs_us, n=10)[0], 2),
                "cpu_us_per_event_median": round(statistics.median(costs_us), 2),
            }
        )
        progress(f"batch {batch}: {results[-1]}")
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    options = parser.parse_args()
    pin_to({server_core()})
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as parent:
        directory = Path(parent) / "data"
        with_meter(
            directory, partial(rounds, options=options, directory=directory, results=results)
        )
    if not options.profile:
        publish(report("engine_path", results), options.output)


if __name__ == "__main__":
    main()
