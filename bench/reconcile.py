"""How long does a reconciliation of 10,000 totals take, what does it cost, and what does it cost ingest?

    python bench/reconcile.py [--targets 10000] [--seconds 10] [--rounds 5] [--directory DIR]

One server whose usage goes to the Stripe simulator in a process of its own. *run*: every total is looked at once, at
the 20 reads a second that reconciliation takes at most; where an account gives 20 in all, 18 of them are taken:
`seconds_at_stripes_pace`. *ingest beside a run*: the same paced load (1,000 single events a second,
then 20 batches of 1,000) before, during and after a run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

from common import cpu_seconds, progress, publish, report
from push import (
    BATCH,
    BATCHES_PER_SECOND,
    SINGLES_PER_SECOND,
    TENANT,
    Load,
    Simulator,
    flood,
    post,
    quantile,
    settle,
)
from server import Server

STRIPES_READS_PER_SECOND: Final = 18
RUN_SECONDS_MAX: Final = 1_200
POLL_SECONDS: Final = 3.0
"""Between two questions for the job: each is a request by way of Quart, milliseconds that are not the run's."""


def run(server: Server) -> dict[str, Any]:
    """One run over everything: its job when it has ended."""
    job = post(server, "/v1/reconciliation/run", {"tenantId": TENANT})
    began = time.perf_counter()
    while job["status"] in ("pending", "running"):
        if time.perf_counter() - began > RUN_SECONDS_MAX:
            raise RuntimeError(f"a run does not end: {job}")
        time.sleep(POLL_SECONDS)
        path = f"/v1/reconciliation/jobs/{job['jobId']}?tenantId={TENANT}"
        job = json.loads(server.get(path))
    if job["status"] != "completed" or job["unread"]:
        raise RuntimeError(f"a run failed: {job}")
    return dict(job)


def await_own_run(server: Server) -> None:
    """Wait for the end of the run that the server makes by itself after its start: the next one would wait for it."""
    began = time.perf_counter()
    while b"recon_runs_total 0.0" in server.get("/metrics"):
        if time.perf_counter() - began > RUN_SECONDS_MAX:
            raise RuntimeError("the first run does not end")
        time.sleep(0.5)


def whole(server: Server, targets: int, what: str) -> dict[str, Any]:
    """A run over all totals."""
    cpu, began = cpu_seconds(server.pid), time.perf_counter()
    job = run(server)
    seconds = time.perf_counter() - began
    spent = cpu_seconds(server.pid) - cpu
    if job["done"] != targets:
        raise RuntimeError(f"{job['done']} of {targets} were looked at")
    progress(
        f"{what}: {targets} in {seconds:.1f} s, {targets / seconds:.0f}/s, {spent / targets * 1e6:.0f} us CPU each"
    )
    return {
        "what": what,
        "targets": targets,
        "seconds": round(seconds, 1),
        "looks_per_second": round(targets / seconds),
        "cpu_us_per_look": round(spent / targets * 1e6),
        "seconds_at_stripes_pace": round(targets / STRIPES_READS_PER_SECOND),
    }


def beside(
    server: Server, targets: int, seconds: float, rounds: int, *, per_second: int, batch: int
) -> dict[str, Any]:
    """The same load before, during and after a run over everything; of a metric that is not pushed."""

    def p99s(kind: str) -> list[float]:
        found = []
        for number in range(rounds):
            load = Load(server, "alone", targets, f"{per_second}-{number}-{kind}-{time.time_ns()}")
            load.run(per_second, batch, seconds)
            found.append(quantile(load.latencies_ms, 0.99))
        return found

    alone = p99s("before")
    running = threading.Thread(target=run, args=(server,))
    running.start()
    time.sleep(1)
    during = p99s("during")
    if not running.is_alive():
        raise RuntimeError("the run was over before the load: more targets, or fewer rounds")
    running.join()
    alone += p99s("after")
    ratio = median(during) / median(alone)
    progress(
        f"{per_second}/s of {batch}: p99 {median(alone):.1f} ms alone, {median(during):.1f} beside a run: ratio {ratio:.2f}"
    )
    return {
        "what": "ingest beside a run",
        "requests_per_second": per_second,
        "batch": batch,
        "p99_ms_alone": round(median(alone), 2),
        "p99_ms_beside": round(median(during), 2),
        "p99_ratio": round(ratio, 2),
        "alone_ms": [round(one, 1) for one in alone],
        "beside_ms": [round(one, 1) for one in during],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--targets", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as parent,
        Simulator() as simulator,
        Server(
            Path(parent) / "data",
            STRIPE_SECRET_KEY="sk_test_of_a_simulator",
            STRIPE_API_BASE=simulator.url,
            STRIPE_METER_EVENTS_BASE=simulator.url,
            STRIPEMETER_PUSH_INTERVAL_SECONDS="1",
            STRIPEMETER_RECONCILE_LAG_SECONDS="1",
            STRIPEMETER_RECONCILE_INTERVAL_SECONDS="86400",
        ) as server,
    ):
        simulator.post("/_sim/ensure", {"customers": [], "meters": ["pushed"]})
        mapping = {"tenantId": TENANT, "metric": "pushed", "meterEventName": "pushed"}
        post(server, "/v1/mappings", mapping)
        mapping = {"tenantId": TENANT, "metric": "alone"}
        post(server, "/v1/mappings", mapping)
        flood(server, options.targets, "first pushes")
        settle(server)
        await_own_run(server)
        results = [whole(server, options.targets, "run over what was confirmed")]
        for per_second, batch in ((SINGLES_PER_SECOND, 1), (BATCHES_PER_SECOND, BATCH)):
            results.append(
                beside(
                    server,
                    options.targets,
                    options.seconds,
                    options.rounds,
                    per_second=per_second,
                    batch=batch,
                )
            )
    publish(report("reconcile", results, targets=options.targets), options.output)


if __name__ == "__main__":
    main()
