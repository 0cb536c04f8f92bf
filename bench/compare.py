"""Two commits in one run: runs a benchmark on BASE and on this tree, in turn, and prints the ratios.

    python bench/compare.py BASE [--rounds 3] [BENCHMARK.py OPTIONS...]
    python bench/compare.py HEAD~5 ingest.py --targets --stored 0 --seconds 3
    python bench/compare.py HEAD~5 recovery.py

BASE is checked out into a temporary work tree. Both are measured by *this* tree's bench/, with the code of either
first on the import path, A B A B: on a shared machine only a ratio of neighbours in time means something. Per figure
the medians and their ratio are printed; `spread` is how far the rounds of one side are apart (largest by smallest):
a ratio closer to 1 than that says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import BENCH, ROOT, progress

LABELS = ("stored", "batch", "connections", "duplicates", "read", "step", "start", "entry")
FIGURES = (
    "events_per_second",
    "requests_per_second",
    "p50_ms",
    "p99_ms",
    "server_cpu_us_per_event",
    "server_cpu_us_per_request",
    "cpu_us_per_event_p10",
    "start_seconds",
    "start_cpu_seconds",
    "snapshot_seconds",
    "longest_stall_ms",
    "longest_turn_cpu_ms",
    "bytes_per_counter",
    "ram_bytes_per_key",
)
DEFAULT = ["ingest.py", "--targets", "--stored", "0"]
Figures = dict[tuple[str, str], list[float]]


def run(root: Path, benchmark: list[str], output: Path) -> list[dict[str, Any]]:
    """One run of a benchmark on the code in `root`."""
    command = [sys.executable, str(BENCH / benchmark[0]), *benchmark[1:], "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run(command, check=True, env=environment, cwd=root, stdout=subprocess.DEVNULL)
    content = json.loads(output.read_text())
    results: list[dict[str, Any]] = content["results"]
    return results


def collect(figures: Figures, results: list[dict[str, Any]]) -> None:
    """Sort a run's figures by what they are about."""
    for result in results:
        about = " ".join(f"{name} {result[name]}" for name in LABELS if name in result)
        for name in FIGURES:
            if isinstance(result.get(name), int | float):
                figures[about, name].append(float(result[name]))


def table(base: Figures, changed: Figures) -> str:
    """Markdown: a row for every figure that both sides have."""
    rows = ["| what | figure | base | now | ratio | spread |", "|---|---|--:|--:|--:|--:|"]
    for key in base:
        if key not in changed:
            continue
        before, after = statistics.median(base[key]), statistics.median(changed[key])
        ratio = after / before if before else float("nan")
        spread = max(max(v) / min(v) if min(v) else 1 for v in (base[key], changed[key]))
        rows.append(
            f"| {key[0]} | {key[1]} | {before:g} | {after:g} | {ratio:.2f} | {spread:.2f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s BASE [--rounds 3] [BENCHMARK.py OPTIONS...]",
    )
    parser.add_argument("base", help="a commit")
    parser.add_argument("--rounds", type=int, default=3)
    options, benchmark = parser.parse_known_args()
    benchmark = benchmark or DEFAULT
    base: Figures = defaultdict(list)
    changed: Figures = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="bench-compare-") as temporary:
        tree = Path(temporary) / "base"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), options.base], check=True)
        try:
            for number in range(options.rounds):
                for name, root, figures in (("base", tree, base), ("now", ROOT, changed)):
                    progress(f"round {number + 1} of {options.rounds}: {name}")
                    collect(figures, run(root, benchmark, Path(temporary) / "result.json"))
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    print(table(base, changed))


if __name__ == "__main__":
    main()
