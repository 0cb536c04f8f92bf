"""How fast is a replay: a dry run over a million events, 10,000 late events counted, and what it costs ingest?

    python bench/replay.py [--events 1000000] [--late 10000] [--pairs 7] [--seconds 5] [--directory DIR]

One server with so many stored events. *dry run*: over all of them, each answered with what it found. *apply*: one flood
of late events of a thousand customers is previewed and applied; the time is until a read shows it. *ingest*: the same
load alone and while one flood a second is previewed and applied, in pairs; the ratio is the median of the pairs'. Every
answer is checked.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any, Final

from common import progress, publish, report
from ingest import Cell, measure
from preload import TENANT, Content, preload
from server import Server

CUSTOMERS: Final = 1000
METRICS: Final = 5
DRY_RUNS: Final = 9
BATCH: Final = 1000
FLOODS_A_PAIR: Final = 4
CELL: Final = Cell(100, 16, "unique")


def post(server: Server, path: str, body: dict[str, Any]) -> Any:
    """The JSON of an answer. Raises urllib.error.URLError for a refusal."""
    request = urllib.request.Request(
        server.url + path,
        json.dumps({"tenantId": TENANT, **body}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def flood(server: Server, metric: str, late: int) -> None:
    """One event in time for each customer, then late ones: the metric's lateness is 0."""
    post(server, "/v1/mappings", {"metric": metric, "latenessHours": 0})
    old = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 30))
    for name, ts, count in (("now", {}, CUSTOMERS), ("late", {"ts": old}, late)):
        for start in range(0, count, BATCH):
            events = [
                {
                    "tenantId": TENANT,
                    "metric": metric,
                    "customerRef": f"late-{n % CUSTOMERS}",
                    "quantity": 1,
                    "idempotencyKey": f"{metric}-{name}-{n}",
                    **ts,
                }
                for n in range(start, min(count, start + BATCH))
            ]
            said = post(server, "/v1/events/ingest", {"events": events})
            found = sum(1 for result in said["results"] if result.get("late"))
            if found != (len(events) if ts else 0):
                message = f"{found} late events of {len(events)}"
                raise RuntimeError(message)


def current(server: Server, metric: str, customer: str) -> float:
    """A customer's use of a metric now."""
    body = json.loads(server.get(f"/v1/usage/current?tenantId={TENANT}&customerRef={customer}"))
    return float(next(one["current"] for one in body["metrics"] if one["name"] == metric))


def dry_runs(server: Server, events: int) -> dict[str, Any]:
    """Over everything stored."""
    times_ms = []
    for _ in range(DRY_RUNS):
        began = time.perf_counter()
        said = post(server, "/v1/replay", {})
        times_ms.append((time.perf_counter() - began) * 1e3)
        if said["summary"]["eventsFound"] < events:
            message = f"{said['summary']} of {events} events"
            raise RuntimeError(message)
    progress(f"dry run over {events}: {median(times_ms):.0f} ms, at most {max(times_ms):.0f}")
    return {
        "what": "dry run",
        "events": events,
        "median_ms": round(median(times_ms), 1),
        "max_ms": round(max(times_ms), 1),
    }


def apply(server: Server, metric: str, late: int) -> tuple[float, float]:
    """Preview and apply one flood; (milliseconds of the preview, of applying until a read shows it)."""
    began = time.perf_counter()
    preview = post(server, "/v1/replay", {"metrics": [metric]})
    previewed = time.perf_counter()
    body = {"metrics": [metric], "mode": "apply", "expect": preview["planHash"]}
    said = post(server, "/v1/replay", body)
    shown = current(server, metric, "late-1")
    ended = time.perf_counter()
    if said["summary"]["foldedEvents"] != late or shown != 1 + late // CUSTOMERS:
        message = f"{said['summary']}, shown {shown}"
        raise RuntimeError(message)
    return (previewed - began) * 1e3, (ended - previewed) * 1e3


def applied(server: Server, metrics: list[str], late: int) -> dict[str, Any]:
    """Floods on a server that does nothing else."""
    times = [apply(server, metric, late) for metric in metrics]
    previews_ms, applies_ms = zip(*times, strict=True)
    progress(f"{late} late events applied and visible: {median(applies_ms):.0f} ms")
    return {
        "what": "apply until visible",
        "late_events": late,
        "preview_median_ms": round(median(previews_ms), 1),
        "apply_median_ms": round(median(applies_ms), 1),
        "apply_max_ms": round(max(applies_ms), 1),
    }


def beside_ingest(server: Server, metrics: list[str], late: int, seconds: float) -> dict[str, Any]:
    """The same load alone and with a replay a second, in pairs of changing order, since a machine's other work comes and goes."""
    alone, beside, done = [], [], []
    for number in range(len(metrics) // FLOODS_A_PAIR):
        share = metrics[number * FLOODS_A_PAIR : (number + 1) * FLOODS_A_PAIR]
        for with_replays in ((False, True), (True, False))[number % 2]:
            if not with_replays:
                alone.append(measure(server, CELL, seconds))
                continue
            thread = Replays(server, share, late)
            thread.start()
            beside.append(measure(server, CELL, seconds))
            thread.join()
            if thread.failed is not None:
                raise thread.failed
            done += thread.done_ms
    ratios = [b["p99_ms"] / a["p99_ms"] for a, b in zip(alone, beside, strict=True)]
    ratio = median(ratios)
    p99_alone = median(one["p99_ms"] for one in alone)
    p99_beside = median(one["p99_ms"] for one in beside)
    progress(f"ingest p99 {p99_alone} ms alone, {p99_beside} ms beside; pairs: {ratio:.2f}")
    return {
        "what": "ingest beside replays",
        "p99_ms_alone": p99_alone,
        "p99_ms_beside": p99_beside,
        "p99_ratio": round(ratio, 2),
        "ratios": [round(one, 3) for one in ratios],
        "apply_median_ms": round(median(done), 1),
        "alone": alone,
        "beside": beside,
    }


class Replays(threading.Thread):
    """Applies one flood a second."""

    def __init__(self, server: Server, metrics: list[str], late: int) -> None:
        super().__init__()
        self._server, self._metrics, self._late = server, metrics, late
        self.done_ms: list[float] = []
        self.failed: Exception | None = None

    def run(self) -> None:
        """Until all are applied or one failed."""
        try:
            for metric in self._metrics:
                time.sleep(1)
                self.done_ms.append(apply(self._server, metric, self._late)[1])
        except (OSError, RuntimeError) as error:
            self.failed = error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--late", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as parent:
        directory = Path(parent) / "data"
        preload(directory, Content(options.events, CUSTOMERS, METRICS))
        with Server(directory) as server:
            server.wait_until_idle()
            results = [dry_runs(server, options.events)]
            alone = [f"alone-{number}" for number in range(3)]
            beside = [f"beside-{number}" for number in range(options.pairs * FLOODS_A_PAIR)]
            for metric in (*alone, *beside):
                flood(server, metric, options.late)
            results.append(applied(server, alone, options.late))
            results.append(beside_ingest(server, beside, options.late, options.seconds))
    publish(report("replay", results, events=options.events), options.output)


if __name__ == "__main__":
    main()
