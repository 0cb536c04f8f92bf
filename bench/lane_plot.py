"""Draws the fast lane beside stock Hypercorn: rate and latency against connections, as SVG by hand.

It must not know how anything was measured: rows in, text out.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import Any, Final

WIDTH, HEIGHT, MARGIN, GAP = 760, 340, 60, 40
PANEL: Final = (WIDTH - 2 * MARGIN - GAP) / 2
COLOURS: Final = {"lane": "#1b6ca8", "stock": "#c8553d"}
DASHES: Final = {"off": "", "required": ' stroke-dasharray="5 4"'}


def plot(rows: Sequence[dict[str, Any]]) -> str:
    """Two panels over connections (both axes logarithmic): single events a second, and their p99."""
    singles = [row for row in rows if row["what"] == "ingest, batch 1"]
    panels = (
        ("single events a second", "events_per_second", (2, 5)),
        ("p99, milliseconds", "p99_ms", (-1, 3)),
    )
    drawn: list[str] = []
    for number, (title, field, bounds) in enumerate(panels):
        left = MARGIN + number * (PANEL + GAP)
        drawn += _axes(left, title, bounds)
        for server, colour in COLOURS.items():
            for auth, dash in DASHES.items():
                points = _points(singles, server, auth, field)
                places = [
                    f"{_x(left, connections):.1f},{_y(value, bounds):.1f}"
                    for connections, value in points
                ]
                if places:
                    drawn.append(
                        f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" '
                        f'stroke-width="2"{dash}/>'
                    )
    for number, (server, colour) in enumerate(COLOURS.items()):
        for other, (auth, dash) in enumerate(DASHES.items()):
            x, y = MARGIN + 180 * (2 * number + other), 16
            drawn.append(
                f'<line x1="{x}" x2="{x + 24}" y1="{y}" y2="{y}" stroke="{colour}" '
                f'stroke-width="2"{dash}/>'
            )
            drawn.append(f'<text x="{x + 30}" y="{y + 4}">{server}, auth {auth}</text>')
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">'
    )
    white = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join([start, white, *drawn, "</svg>\n"])


def _points(
    rows: Sequence[dict[str, Any]], server: str, auth: str, field: str
) -> list[tuple[int, float]]:
    """(connections, best value) in order."""
    best: dict[int, float] = {}
    for row in rows:
        if (row["server"], row["auth"]) == (server, auth):
            at, value = row["connections"], float(row[field])
            better = max if field == "events_per_second" else min
            best[at] = better(best.get(at, value), value)
    return sorted(best.items())


def _x(left: float, connections: int) -> float:
    return left + log10(connections) / 2 * PANEL


def _y(value: float, bounds: tuple[int, int]) -> float:
    low, high = bounds
    part = (log10(max(value, 10.0**low)) - low) / (high - low)
    return HEIGHT - MARGIN - min(1.0, part) * (HEIGHT - 2 * MARGIN)


def _axes(left: float, title: str, bounds: tuple[int, int]) -> list[str]:
    lines = [
        f'<text x="{left}" y="{MARGIN - 14}">{title}</text>',
        f'<text x="{left + PANEL / 2}" y="{HEIGHT - 14}" text-anchor="middle">connections</text>',
    ]
    for exponent in range(bounds[0], bounds[1] + 1):
        y = _y(10.0**exponent, bounds)
        lines.append(
            f'<line x1="{left}" x2="{left + PANEL}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        )
        lines.append(
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**exponent:,g}</text>'
        )
    for connections in (1, 4, 16, 64, 100):
        x = _x(left, connections)
        lines.append(
            f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{connections}</text>'
        )
    return lines
