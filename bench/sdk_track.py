"""What does `track` of the Python SDK cost an app's thread, buffered: plain, with meta, with a spool?

    python bench/sdk_track.py [--calls 9999] [--rounds 7] [--to FILE]

Prints one JSON object and keeps it in results/. The figure of a round is the thread's processor time and the wall time
of a call, so that a busy machine shows in the second alone; the best round counts, as what a call costs without
neighbours. The queue is emptied between rounds, by a transport that answers at once, outside of what is timed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import httpx
from common import publish, report

from stripemeter import StripeMeterClient

TARGET_MICROSECONDS: Final = 10.0
FLUSH_SECONDS_MAX: Final = 300
"""A queue that is emptied beside others takes its time."""


def answer(request: httpx.Request) -> httpx.Response:
    """What the server says when all is well."""
    count = len(json.loads(request.content)["events"])
    return httpx.Response(200, json={"results": [{"status": "accepted"}] * count})


CASES: Final[dict[str, Callable[[StripeMeterClient], object]]] = {
    "plain": lambda client: client.track("api_calls", "cus_anna", 1),
    "decimal": lambda client: client.track("api_calls", "cus_anna", Decimal("0.25")),
    "float": lambda client: client.track("api_calls", "cus_anna", 0.25),
    "meta": lambda client: client.track(
        "api_calls", "cus_anna", 1, resource_id="r-1", meta={"path": "/v1/things", "status": 200}
    ),
}


def measure(
    calls: int, rounds: int, call: Callable[[StripeMeterClient], object], **more: Any
) -> dict[str, float]:
    """Microseconds a call of the best round: of the thread's processor time, and of the wall."""
    client = StripeMeterClient(
        "http://meter.invalid",
        "acme",
        transport=httpx.MockTransport(answer),
        queue_events_max=10 * calls,
        queue_bytes_max=1 << 32,
        batch_events_max=10_000,
        flush_interval_seconds=3600,
        **more,
    )
    cpu, wall = [], []
    # A batch that is ready wakes the thread, whose work is not the caller's.
    calls = min(calls, 9_999)
    for _ in range(rounds):
        cpu_before, wall_before = time.thread_time(), time.perf_counter()
        for _ in range(calls):
            call(client)
        cpu.append((time.thread_time() - cpu_before) / calls * 1e6)
        wall.append((time.perf_counter() - wall_before) / calls * 1e6)
        if not client.flush(FLUSH_SECONDS_MAX):
            message = "the queue was not emptied"
            raise RuntimeError(message)
    client.close()
    return {"cpu_us": round(min(cpu), 2), "wall_us": round(min(wall), 2)}


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=9_999)
    parser.add_argument("--to", type=Path, help="the result's file")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    for name, call in CASES.items():
        results.append({"case": name, **measure(arguments.calls, arguments.rounds, call)})
    with tempfile.TemporaryDirectory() as directory:
        spool = Path(directory) / "spool.db"
        figures = measure(arguments.calls, arguments.rounds, CASES["plain"], spool=spool)
    results.append({"case": "plain, with a spool", **figures})
    within = all(found["cpu_us"] < TARGET_MICROSECONDS for found in results[:-1])
    more = {"target_us": TARGET_MICROSECONDS, "within_without_spool": within}
    publish(report("sdk_track", results, **more), arguments.to)


if __name__ == "__main__":
    main()
