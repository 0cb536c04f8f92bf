"""What is the fast lane worth: single events and current usage, lane and stock Hypercorn in one run, auth on and off?

    python bench/lane.py [--seconds 4] [--sustained] [--connections 1 16 100] [--batches 1] [--directory DIR]

Two servers, alike but for STRIPEMETER_FAST_LANE, live side by side on one core; each cell loads one, then the other, so
that what else the machine does falls on both. A cell is checked as in `ingest.py`: every answer a 200, and exactly what
was answered was counted. `--sustained` is 60 s a cell at 100 connections. With auth the key is a project's, made by
the administrator. `--plot` writes docs/lane.svg from the result.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from common import BENCH, cpu_seconds, progress, publish, report
from ingest import CUSTOMERS, METRICS, Cell, check, counts
from lane_plot import plot
from load import wrk
from server import Server

ADMIN_KEY = "bench-administrator-0123456789"
SUSTAINED_SECONDS = 60
CURRENT = "/v1/usage/current?tenantId=bench&customerRef=customer-%d"
PLOT = BENCH.parent / "docs" / "lane.svg"
NAMES = {"on": "lane", "off": "stock"}


class Way:
    """One running server and its key."""

    def __init__(self, server: Server, way: str, auth: str, key: str | None) -> None:
        self.server, self.way, self.auth, self.key = server, way, auth, key

    def ingest(self, cell: Cell, seconds: float) -> dict[str, Any]:
        """Load and check one cell of ingest."""
        server = self.server
        accepted, duplicates = counts(server)
        cpu = cpu_seconds(server.pid)
        arguments = [os.urandom(6).hex(), str(cell.batch), "unique", str(CUSTOMERS), str(METRICS)]
        said = wrk(
            "ingest.lua",
            server.url,
            connections=cell.connections,
            seconds=seconds,
            arguments=arguments + ([self.key] if self.key else []),
        )
        cpu = cpu_seconds(server.pid) - cpu
        accepted_after, duplicates_after = counts(server)
        accepted, duplicates = accepted_after - accepted, duplicates_after - duplicates
        check(cell, said, accepted, duplicates)
        return self._row(f"ingest, batch {cell.batch}", said, cpu, cell.batch)

    def usage(self, connections: int, seconds: float) -> dict[str, Any]:
        """Load current usage."""
        cpu = cpu_seconds(self.server.pid)
        said = wrk(
            "reads.lua",
            self.server.url,
            connections=connections,
            seconds=seconds,
            arguments=[CURRENT, str(CUSTOMERS)] + ([self.key] if self.key else []),
        )
        if said["not_2xx"] or said["socket_errors"]:
            message = f"usage: {said}"
            raise RuntimeError(message)
        return self._row("usage/current", said, cpu_seconds(self.server.pid) - cpu, 1)

    def _row(self, what: str, said: dict[str, Any], cpu: float, batch: int) -> dict[str, Any]:
        row = {
            "what": what,
            "server": NAMES[self.way],
            "auth": self.auth,
            **said,
            "events_per_second": round(said["requests"] * batch / said["seconds"]),
            "server_cpu_us_per_event": round(cpu * 1e6 / max(1, said["requests"] * batch), 2),
        }
        progress(
            f"{what} {row['server']:5} auth {self.auth:8} {said['connections']:3} connections: "
            f"{row['events_per_second']}/s p50 {said['p50_ms']} p99 {said['p99_ms']} "
            f"p99.9 {said['p999_ms']} ms, {row['server_cpu_us_per_event']} us"
        )
        return row


def key_of(server: Server) -> str:
    """A new key of the tenant that the load is for."""
    body = {"name": "bench", "tenantId": "bench", "scopes": ["project:write", "project:read"]}
    request = urllib.request.Request(
        f"{server.url}/v1/admin/api-keys",
        json.dumps(body).encode(),
        {"authorization": f"Bearer {ADMIN_KEY}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return str(json.loads(response.read())["key"])


def measure(parent: Path, auth: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All cells of both ways."""
    settings = {"STRIPEMETER_AUTH": auth}
    if auth == "required":
        settings["STRIPEMETER_ADMIN_KEY"] = ADMIN_KEY
    results = []
    with (
        Server(parent / f"{auth}-on", STRIPEMETER_FAST_LANE="on", **settings) as fast,
        Server(parent / f"{auth}-off", STRIPEMETER_FAST_LANE="off", **settings) as slow,
    ):
        ways = [
            Way(server, way, auth, key_of(server) if auth == "required" else None)
            for server, way in ((fast, "on"), (slow, "off"))
        ]
        for way in ways:
            way.ingest(Cell(100, 16, "unique"), 1)
        for batch in options.batches:
            for connections in options.connections:
                for _ in range(options.repeat):
                    cell = Cell(batch, connections, "unique")
                    results += [way.ingest(cell, options.seconds) for way in ways]
        if not options.sustained:
            results += [way.usage(16, options.seconds) for way in ways]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--sustained", action="store_true", help="60 s a cell")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 4, 16, 64, 100])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--auth", nargs="+", default=["off", "required"])
    parser.add_argument("--repeat", type=int, default=1, help="measure each cell so many times")
    parser.add_argument("--plot", action="store_true", help="write docs/lane.svg")
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    options = parser.parse_args()
    if options.sustained:
        options.seconds, options.connections = SUSTAINED_SECONDS, [100]
    results = []
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as parent:
        for auth in options.auth:
            results += measure(Path(parent), auth, options)
    name = "lane-sustained" if options.sustained else "lane"
    if options.plot:
        PLOT.write_text(plot(results))
    publish(report(name, results), options.output)


if __name__ == "__main__":
    main()
