"""What does the indexer (listing of events, history of usage) cost ingest? Must be less than a fifth.

    python bench/indexer.py [--rounds 3] [--seconds 10] [--batch 1000] [--connections 8]

The server with its indexer and one without it (bench/serve_unindexed.py), in turn; the result is the ratio of rates.
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

SIDES = {"with": None, "without": "serve_unindexed.py"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    options = parser.parse_args()
    cell = Cell(options.batch, options.connections, "unique")
    results: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        for side, entry in SIDES.items():
            with (
                tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as parent,
                Server(Path(parent) / "data", entry=entry) as server,
            ):
                measure(server, cell, 1)
                results.append({"indexer": side, **measure(server, cell, options.seconds)})
                progress(f"{side} indexer: {results[-1]['events_per_second']}/s")
    rates = {
        side: statistics.median(r["events_per_second"] for r in results if r["indexer"] == side)
        for side in SIDES
    }
    costs = {
        side: statistics.median(
            r["server_cpu_us_per_event"] for r in results if r["indexer"] == side
        )
        for side in SIDES
    }
    ratio = round(rates["with"] / rates["without"], 3)
    cpu_ratio = round(costs["without"] / costs["with"], 3)
    publish(report("indexer", results, ratio=ratio, cpu_ratio=cpu_ratio), options.output)


if __name__ == "__main__":
    main()
