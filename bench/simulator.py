"""How many meter events a second does the Stripe simulator take, alone on one core?

    python bench/simulator.py [--seconds 5] [--connections 16 100] [--directory DIR]

The command `stripemeter stripe-sim` with its journal on disk before every answer. It does not trust its generator:
every answer must be a 200, and the totals that the simulator shows must be what was answered, but for what was in
flight when the time was up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from common import ROOT, cpu_seconds, memory_bytes, pin_to, progress, publish, report, server_core
from load import wrk

CUSTOMERS = 1000
"""As many as `/_sim/state` shows totals of."""


def start(directory: Path) -> tuple[subprocess.Popen[str], str]:
    """The simulator in a process of its own, and where it listens."""
    flags = ["--port", "0", "--data-dir", str(directory), "--auto-create", "--no-limits"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", "stripe-sim", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: pin_to({server_core()}),  # noqa: PLW1509
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split(" ready on ")[1].split(" ")[0]


def counted(url: str) -> int:
    """What the simulator holds, over all customers."""
    with urllib.request.urlopen(f"{url}/_sim/state") as answer:
        shown = json.load(answer)
    return sum(int(row["value"]) for one in shown["accounts"] for row in one["totals"])


def measure(connections: int, options: argparse.Namespace) -> dict[str, Any]:
    """One simulator, one load."""
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as directory:
        process, url = start(Path(directory) / "simulator")
        try:
            said = wrk(
                "simulator.lua",
                url,
                connections=connections,
                seconds=options.seconds,
                arguments=[str(CUSTOMERS), "run-"],
            )
            held = counted(url)
            said["cpu_us_per_event"] = round(cpu_seconds(process.pid) * 1e6 / max(1, held))
            said["memory_mib"] = round(memory_bytes(process.pid) / 2**20)
        finally:
            process.terminate()
            process.wait(30)
    answered = said["requests"]
    if said["not_2xx"] or said["socket_errors"] or not answered <= held <= answered + connections:
        message = f"{said}, and the simulator holds {held}"
        raise RuntimeError(message)
    progress(f"{connections} connections: {said['requests_per_second']}/s p99 {said['p99_ms']} ms")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 100])
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    options = parser.parse_args()
    results = [measure(one, options) for one in options.connections]
    publish(report("simulator", results, customers=CUSTOMERS), options.output)


if __name__ == "__main__":
    main()
