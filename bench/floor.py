"""How much of a single event is the meter's, and how much the HTTP server's?

    python bench/floor.py [--rounds 3] [--seconds 5] [--connections 100]

The real server and one whose ingest does nothing (bench/serve_floor.py), in turn. `ratio` is the rate of the real one
relative to the floor, `cpu_ratio` the same of processor time a request, which holds on a machine that others use too:
near 1, the meter is as fast as its HTTP server lets it be.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import progress, publish, report
from ingest import Cell, measure
from server import Server

SIDES = {"meter": None, "floor": "serve_floor.py"}
FIGURES = ("events_per_second", "server_cpu_us_per_event")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    options = parser.parse_args()
    cell = Cell(1, options.connections, "unique")
    results: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        for side, entry in SIDES.items():
            with (
                tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as parent,
                Server(Path(parent) / "data", entry=entry) as server,
            ):
                measure(server, cell, 1)
                results.append({"server": side, **measure(server, cell, options.seconds)})
                progress(f"{side}: {results[-1]['events_per_second']}/s")
    rate, cost = ({side: median(results, side, name) for side in SIDES} for name in FIGURES)
    content = report(
        "floor",
        results,
        ratio=round(rate["meter"] / rate["floor"], 3),
        cpu_ratio=round(cost["floor"] / cost["meter"], 3),
    )
    publish(content, options.output)


def median(results: list[dict[str, Any]], side: str, figure: str) -> float:
    """The middle one of a side's rounds."""
    figures = [float(result[figure]) for result in results if result["server"] == side]
    return statistics.median(figures)


if __name__ == "__main__":
    main()
