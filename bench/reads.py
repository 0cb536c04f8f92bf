"""How many reads a second: a customer's current usage, the listing of events, the history of usage?

    python bench/reads.py [--events 100000] [--seconds 5] [--connections 16] [--directory DIR]

One server with so many events, as many as the system that this one replaces was measured with. Nothing is cached;
current usage counts what was acknowledged before the request. Each endpoint is loaded alone; every answer is a 200.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import cpu_seconds, progress, publish, report
from load import wrk
from preload import TENANT, Content, preload
from server import Server

CUSTOMERS = 1000
METRICS = 5
READS = {
    "usage/current": f"/v1/usage/current?tenantId={TENANT}&customerRef=customer-%d",
    "events": f"/v1/events?tenantId={TENANT}&customerRef=customer-%d&limit=25",
    "events of a tenant": f"/v1/events?tenantId={TENANT}&limit=25",
    "usage/history of a customer": (
        f"/v1/usage/history?tenantId={TENANT}&metric=metric-0&customerRef=customer-%d"
        "&since=-PT24H&until=%2BPT1H&interval=hour"
    ),
    "usage/history of a tenant": (
        f"/v1/usage/history?tenantId={TENANT}&metric=metric-0&since=-PT24H&until=%2BPT1H&interval=hour"
    ),
}


def measure(server: Server, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Load one endpoint."""
    cpu = cpu_seconds(server.pid)
    said = wrk(
        "reads.lua",
        server.url,
        connections=options.connections,
        seconds=options.seconds,
        arguments=[READS[name], str(CUSTOMERS)],
    )
    cpu = cpu_seconds(server.pid) - cpu
    if said["not_2xx"] or said["socket_errors"]:
        message = f"{name}: {said}"
        raise RuntimeError(message)
    result = {"read": name, **said}
    result["server_cpu_us_per_request"] = round(cpu * 1e6 / max(1, said["requests"]))
    progress(f"{name}: {said['requests_per_second']}/s p99 {said['p99_ms']} ms")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=1, help="measure each so many times")
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as parent:
        directory = Path(parent) / "data"
        preload(directory, Content(options.events, CUSTOMERS, METRICS))
        with Server(directory) as server:
            server.wait_until_idle()
            results = [
                measure(server, name, options) for name in READS for _ in range(options.repeat)
            ]
    publish(report("reads", results, events=options.events), options.output)


if __name__ == "__main__":
    main()
