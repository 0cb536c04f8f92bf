"""Renders results/*.json as the tables and the plot that docs/performance.md shows.

    python bench/table.py            prints Markdown
    python bench/table.py --write    puts it between the marks in docs/performance.md, and the plot beside the page

A figure is read beside its machine: `reference` is how long a fixed piece of Python took there at that moment, so that
two results from one machine at different times can be told from two different programs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from math import log10
from pathlib import Path
from typing import Any, Final

from common import BENCH, RESULTS

PAGE: Final = BENCH.parent / "docs" / "performance.md"
PLOT: Final = "ingest-rate.svg"
BEGIN: Final = "<!-- begin: bench/table.py -->"
END: Final = "<!-- end: bench/table.py -->"
INGEST: Final = (
    "stored", "batch", "connections", "duplicates", "events_per_second", "p50_ms", "p99_ms",
    "server_cpu_us_per_event", "server_memory_mib",
)  # fmt: skip
LANE: Final = (
    "what", "server", "auth", "connections", "events_per_second", "p50_ms", "p99_ms", "p999_ms",
    "server_cpu_us_per_event",
)  # fmt: skip
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "ingest": INGEST,
    "ingest-targets": INGEST,
    "ingest-sustained": INGEST,
    "ingest-full": INGEST,
    "reads": ("read", "connections", "requests_per_second", "p50_ms", "p99_ms", "server_cpu_us_per_request"),
    "recovery": (
        "step", "events", "counters", "start_seconds", "start_cpu_seconds", "events_per_second",
        "snapshot_seconds", "longest_stall_ms", "longest_turn_cpu_ms",
    ),
    "memory": ("counters", "bytes_per_counter", "keys", "ram_bytes_per_key"),
    "indexer": ("indexer", "events_per_second", "p99_ms", "server_cpu_us_per_event"),
    "keeping": (
        "what", "events", "seconds", "events_per_second", "mb_per_second", "p99_ms_alone", "p99_ms_beside",
        "p99_ratio",
    ),
    "lane": LANE,
    "lane-sustained": LANE,
    "floor": ("server", "connections", "events_per_second", "p50_ms", "p99_ms", "server_cpu_us_per_event"),
    "import": (
        "format", "what", "code", "rows", "rows_per_second_best", "cpu_us_per_row_best", "start_cpu_seconds",
    ),
    "replay": (
        "what", "events", "late_events", "median_ms", "max_ms", "preview_median_ms", "apply_median_ms", "apply_max_ms",
        "p99_ms_alone", "p99_ms_beside", "p99_ratio",
    ),
    "engine_path": ("batch", "requests_at_once", "cpu_us_per_event_p10", "cpu_us_per_event_median"),
}  # fmt: skip
WIDTH, HEIGHT, MARGIN = 640, 360, 56
COLOURS: Final = ("#1b6ca8", "#c8553d", "#3a7d44", "#7d4e9e", "#8a6d3b", "#555555")


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, int) and value >= 10_000:
        return f"{value:,}"
    return str(value)


def markdown(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """A table of the columns that any row has."""
    rows = [row for row in rows if any(row.get(name) is not None for name in columns)]
    shown = [name for name in columns if any(row.get(name) is not None for row in rows)]
    lines = [
        f"| {' | '.join(name.replace('_', ' ') for name in shown)} |",
        f"|{'|'.join('--:' for _ in shown)}|",
    ]
    lines += [f"| {' | '.join(cell(row.get(name)) for name in shown)} |" for row in rows]
    return "\n".join(lines)


def section(content: dict[str, Any]) -> str:
    """A benchmark's results under a heading that says where and when."""
    machine = content["machine"]
    about = (
        f"Commit `{content['commit']}`, {content['at']}, {machine['cores']} cores of {machine['cpu']}, "
        f"Python {machine['python']}; load average {machine['load_average']}, "
        f"reference {machine['reference_ms']} ms."
    )
    ratios = [f"{name}: {content[name]}." for name in ("ratio", "cpu_ratio") if name in content]
    rows = content["results"]
    if content["benchmark"] == "memory":
        rows = rows[:1]
    table = markdown(COLUMNS[content["benchmark"]], rows)
    return f"### {content['benchmark']}\n\n{' '.join([about, *ratios])}\n\n{table}\n"


def plot(results: list[dict[str, Any]]) -> str:
    """Rate against connections, a line for each batch size of an empty store; both axes are logarithmic."""
    lines: dict[str, dict[int, int]] = {}
    for result in results:
        if result["stored"] == 0 and result["duplicates"] == "unique":
            line = lines.setdefault(f"batch {result['batch']}", {})
            best = line.get(result["connections"], 0)
            line[result["connections"]] = max(best, result["events_per_second"])
    drawn = []
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(_x(c), _y(rate)) for c, rate in sorted(points.items())]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        x, y = places[-1]
        drawn.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{name}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            *_axes(),
            *drawn,
            "</svg>\n",
        ]
    )


def _position(value: float, low: int, high: int) -> float:
    """Where a value lies between 10^low and 10^high, 0 to 1, on a logarithmic axis."""
    return (log10(value) - low) / (high - low)


def _x(connections: int) -> float:
    return MARGIN + _position(connections, 0, 2) * (WIDTH - 2 * MARGIN - 24)


def _y(rate: float) -> float:
    return HEIGHT - MARGIN - _position(rate, 2, 6) * (HEIGHT - 2 * MARGIN)


def _axes() -> list[str]:
    lines = [
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">connections</text>',
        f'<text x="12" y="{MARGIN - 24}">events a second, unique keys, empty store</text>',
    ]
    for rate in (100, 1000, 10_000, 100_000, 1_000_000):
        y = _y(rate)
        lines.append(
            f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        )
        lines.append(f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{rate:,}</text>')
    for connections in (1, 8, 16, 100):
        x = _x(connections)
        lines.append(
            f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{connections}</text>'
        )
    return lines


def load() -> dict[str, dict[str, Any]]:
    """All kept results by benchmark."""
    contents = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return {content["benchmark"]: content for content in contents}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="change docs/performance.md")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    found = load()
    sections = [section(found[name]) for name in COLUMNS if name in found]
    text = "\n".join(sections)
    if not options.write:
        print(text)
        return
    if "ingest" in found:
        (options.page.parent / PLOT).write_text(plot(found["ingest"]["results"]))
        text = f"![Rate against connections]({PLOT})\n\n{text}"
    page = options.page.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    options.page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
