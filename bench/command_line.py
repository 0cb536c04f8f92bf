"""What do the command line's own ways cost: its start, `send`, and `tail` when much comes and when nothing does?

    python bench/command_line.py [--events 100000]

Results: `help` and `usage` (milliseconds of a whole process, and of the processor), `send` (events a second of a file of JSON lines),
`tail` (events a second of a log that is there already; the server's processor time an event), `tail idle` (the server's
processor time of one question without news; a tail asks twice a second).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, cpu_seconds, generator_cores, pin_to, publish, report
from server import Server

from gateway.admin_client import AdminClient
from gateway.tailing import PATH, POLL_SECONDS

STARTS = 10
IDLE_QUESTIONS = 2000
COMMAND = [sys.executable, "-m", "gateway.cli.main"]


def run(*arguments: str) -> float:
    """Run a command to its end; its seconds."""
    began = time.perf_counter()
    nowhere = subprocess.DEVNULL
    subprocess.run([*COMMAND, *arguments], cwd=ROOT, check=True, stdout=nowhere, stderr=nowhere)
    return time.perf_counter() - began


def start_of(name: str, *arguments: str) -> dict[str, Any]:
    """The median start of a command, and its processor time, which a busy machine does not change."""
    before = children_seconds()
    seconds = sorted(run(*arguments) for _ in range(STARTS))
    each_ms = (children_seconds() - before) / STARTS * 1000
    wall_ms = round(seconds[STARTS // 2] * 1000, 1)
    return {"step": name, "wall_ms": wall_ms, "processor_ms": round(each_ms, 1)}


def children_seconds() -> float:
    """Processor time of all processes that this one waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def idle(server: Server) -> dict[str, Any]:
    """One question after the log's end costs the server so much."""
    client = AdminClient(server.url, None)
    path = f"{PATH}?tenantId=acme&format=jsonl&after=999999999999"
    server.wait_until_idle()
    before = cpu_seconds(server.pid)
    for _ in range(IDLE_QUESTIONS):
        answered = client.exchange("GET", path, None, keep=True)
        assert (answered.status, answered.content) == (200, b"")
    each_ms = (cpu_seconds(server.pid) - before) / IDLE_QUESTIONS * 1000
    client.close()
    share = each_ms / 1000 / POLL_SECONDS * 100
    return {
        "step": "tail idle",
        "server_ms_a_question": round(each_ms, 2),
        "core_percent": round(share, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    pin_to(generator_cores())
    with tempfile.TemporaryDirectory(prefix="stripemeter-bench-") as name:
        lines = Path(name) / "events.jsonl"
        with lines.open("w") as file:
            for number in range(options.events):
                event = {"metric": "calls", "customerRef": f"c{number % 500}", "quantity": 1}
                file.write(json.dumps(event) + "\n")
        with Server(Path(name) / "data") as server:
            where = ("--url", server.url, "--tenant", "acme")
            results = [start_of("help", "--help"), start_of("usage", "usage", "c1", *where)]
            seconds = run("send", "--file", str(lines), *where)
            results.append({"step": "send", "events_per_second": round(options.events / seconds)})
            server.wait_until_idle()
            before = cpu_seconds(server.pid)
            count = ("--after", "0", "--count", str(options.events), "--json")
            seconds = run("tail", *count, *where)
            each_us = (cpu_seconds(server.pid) - before) / options.events * 1e6
            rate = round(options.events / seconds)
            results.append(
                {"step": "tail", "events_per_second": rate, "server_us_an_event": round(each_us, 2)}
            )
            results.append(idle(server))
    publish(report("command_line", results, events=options.events), options.to)


if __name__ == "__main__":
    main()
