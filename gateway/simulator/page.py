"""The page that shows what the simulator holds: meters, customers, totals, invoices, the last requests.

Rules it keeps: HTML made here, escaped, without anything from elsewhere; it refreshes itself. It must not know the
state's insides: it draws what `GET /_sim/state` answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final

from gateway.simulator.ledger import MICROS
from gateway.simulator.wire import Json

ROWS_SHOWN: Final = 100
REFRESH_SECONDS: Final = 5
_STYLE: Final = """
:root { color-scheme: light dark; --line: #8883; --soft: #8881; --warn: #b45309; --bad: #b91c1c; --good: #15803d; }
@media (prefers-color-scheme: dark) { :root { --warn: #fbbf24; --bad: #f87171; --good: #4ade80; } }
* { box-sizing: border-box; }
body { font: 14px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.35rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; opacity: .8; } code { font: 12px ui-monospace, monospace; }
.note { border-left: 3px solid var(--warn); padding: .35rem .75rem; margin: 1rem 0; opacity: 1; }
.figures { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; padding: 0; list-style: none; }
.figures li { background: var(--soft); border-radius: 6px; padding: .5rem .9rem; }
.figures b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: left; white-space: nowrap; }
th { font-weight: 600; opacity: .7; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.bad { color: var(--bad); } td.warn { color: var(--warn); } td.good { color: var(--good); }
td.text { white-space: normal; }
"""


def render(shown: Json) -> bytes:
    """The page, UTF-8."""
    accounts = shown["accounts"]
    total = {
        "meters": sum(len(one["meters"]) for one in accounts),
        "customers": sum(one["customers_count"] for one in accounts),
        "events waiting for aggregation": sum(one["events_pending"] for one in accounts),
        "webhooks waiting": shown["webhooks_waiting"],
        "faults in force": len(shown["faults"]),
    }
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<meta http-equiv=refresh content={REFRESH_SECONDS}>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>Stripe simulator</title><style>{_STYLE}</style>",
        "<h1>Stripe simulator</h1>",
        f"<p>Account <code>{escape(shown['account'])}</code>, simulated time {escape(shown['now'])}. "
        "Nothing here reaches Stripe; no money moves.</p>",
        "<ul class=figures>",
        *(f"<li><b>{value:,}</b>{escape(name)}</li>" for name, value in total.items()),
        "</ul>",
    ]
    parts += _faults(shown["faults"])
    for account in accounts:
        parts += _account(account, is_only=len(accounts) == 1)
    parts += _requests(shown["requests"])
    parts.append("</html>")
    return "\n".join(parts).encode()


def _account(account: Json, *, is_only: bool) -> list[str]:
    where = "" if is_only else f" of <code>{escape(account['account'])}</code>"
    parts = [f"<h2>Totals{where}</h2>"]
    parts += _table(
        ("Event name", "Customer", "Formula", ">Value", ">Events"),
        (
            (
                one["event_name"],
                one["customer"],
                one["formula"],
                _grouped(one["value"]),
                one["events"],
            )
            for one in account["totals"]
        ),
        "No usage has been aggregated yet.",
    )
    parts.append(f"<h2>Meters{where}</h2>")
    parts += _table(
        ("Event name", "Id", "Formula", "Status"),
        (
            (one["event_name"], one["id"], one["default_aggregation"]["formula"], one["status"])
            for one in account["meters"]
        ),
        "No meter yet: POST /v1/billing/meters.",
    )
    parts.append(f"<h2>Customers{where}</h2>")
    parts += _table(
        ("Id", "Name", "Created", "State"),
        (
            (
                one["id"],
                one.get("name") or "",
                "" if one.get("deleted") else _moment(one["created"]),
                "deleted" if one.get("deleted") else "active",
            )
            for one in account["customers"]
        ),
        "No customer yet: POST /v1/customers.",
    )
    if account["invoices"]:
        parts.append(f"<h2>Invoices{where}</h2>")
        parts += _table(
            ("Id", "Customer", "Period", "Status", ">Amount"),
            (
                (
                    one["id"],
                    one["customer"],
                    f"{_moment(one['period_start'])} to {_moment(one['period_end'])}",
                    one["status"],
                    f"{sum(line['amount'] for line in one['lines']):,} {one['currency']} (smallest unit)",
                )
                for one in account["invoices"]
            ),
            "",
        )
    return parts


def _faults(faults: Sequence[Json]) -> list[str]:
    if not faults:
        return []
    rows = []
    for one in faults:
        left = "" if one["count"] is None else f", {one['count']} more"
        rows.append(
            f"<b>{escape(one['kind'])}</b> on <code>{escape(one['endpoint'])}</code>{escape(left)}"
        )
    return [f"<p class=note>Faults in force: {'; '.join(rows)}.</p>"]


def _requests(requests: Sequence[Json]) -> list[str]:
    rows = []
    for one in reversed(requests[-ROWS_SHOWN:]):
        status = one["status"]
        mark = (
            "good"
            if status == 200
            else "warn"
            if isinstance(status, int) and status < 500
            else "bad"
        )
        rows.append(
            f"<tr><td>{_moment(one['at_us'] // MICROS)}<td>{escape(one['method'])}"
            f"<td><code>{escape(one['path'])}</code><td class={mark}>{escape(str(status))}"
            f"<td class=text>{escape(one.get('error', ''))}</tr>"
        )
    head = "<tr><th>Time<th>Method<th>Path<th>Answer<th>What it said</tr>"
    return ["<h2>Last requests</h2>", f"<div class=wide><table>{head}{''.join(rows)}</table></div>"]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], none: str) -> list[str]:
    """A table; a column whose heading begins with `>` holds numbers."""
    right = [" class=n" if name.startswith(">") else "" for name in head]
    lines = [
        "".join(f"<td{side}>{escape(str(cell))}" for side, cell in zip(right, row, strict=True))
        for row in rows
    ]
    if not lines:
        return [f"<p>{escape(none)}</p>"]
    heading = "".join(
        f"<th{side}>{escape(name.lstrip('>'))}" for side, name in zip(right, head, strict=True)
    )
    shown = "".join(f"<tr>{line}</tr>" for line in lines[:ROWS_SHOWN])
    more = f"<p>and {len(lines) - ROWS_SHOWN:,} more</p>" if len(lines) > ROWS_SHOWN else ""
    return [f"<div class=wide><table><tr>{heading}</tr>{shown}</table></div>{more}"]


def _grouped(value: str) -> str:
    return f"{int(value):,}"


def _moment(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
