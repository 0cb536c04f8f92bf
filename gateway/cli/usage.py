"""`stripemeter usage`: what a customer has used, exactly, how fresh that is, and how it went.

Rules it keeps: numbers are shown with the digits they came with. It must not know how anything is counted.
"""

from __future__ import annotations

import time
from typing import Any, Final
from urllib.parse import urlencode

import click
import msgspec

from engine.core.periods import period_of
from engine.core.times import TimeError, format_date, parse_date
from gateway.admin_client import AdminClient
from gateway.terminal.options import (
    client_of,
    metric_option,
    period_option,
    server_options,
    tenant_option,
    watch_option,
)
from gateway.terminal.output import (
    Column,
    Row,
    console,
    full_screen,
    note,
    number_columns,
    print_json,
    print_table,
    raw_text,
    sparkline,
)

WATCH_SECONDS: Final = 2
RANGES: Final = {"minute": "-PT1H", "hour": "-PT24H", "day": "-P30D", "month": "-P365D"}
"""How far back a history goes, by the width of its buckets."""
SPARKLINE_WIDTH_MAX: Final = 31
SPARKLINE_WIDTH_MIN: Final = 8


class Metric(msgspec.Struct, rename="camel", kw_only=True):
    """One metric of `GET /v1/usage/current`, as far as it is shown."""

    name: str
    current: msgspec.Raw
    aggregation: str
    unit: str | None
    count: int
    pending_late: int
    period: dict[str, str]


class Freshness(msgspec.Struct, rename="camel", kw_only=True):
    """When the newest counted event was received."""

    last_update: str | None
    staleness: float | None


class UsageFound(msgspec.Struct, rename="camel", kw_only=True):
    """What `GET /v1/usage/current` says, as far as it is shown."""

    tenant_id: str
    customer_ref: str
    metrics: list[Metric]
    freshness: Freshness


class Point(msgspec.Struct):
    """One bucket of a history."""

    ts: str
    value: msgspec.Raw


class HistoryFound(msgspec.Struct, rename="camel"):
    """What `GET /v1/usage/history` says, as far as it is shown."""

    metric: str
    series: list[Point]


@click.command("usage")
@click.argument("customer")
@tenant_option
@metric_option
@period_option
@click.option("--history", type=click.Choice(tuple(RANGES)), metavar="BUCKET",
              help="With its course: by minute (an hour), hour (a day), day (30 days) or month (a year).")  # fmt: skip
@watch_option(WATCH_SECONDS)
@server_options("usage:read")
def command(
    *,
    customer: str,
    tenant: str | None,
    metric: str | None,
    period: str | None,
    history: str | None,
    watch: bool,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    r"""Show what CUSTOMER has used in the running periods, or in those that began in a month.

    \b
    Examples:
      stripemeter usage cus_anna --tenant acme
      stripemeter usage cus_anna --tenant acme --history day
      stripemeter usage cus_anna --tenant acme --metric api_calls --period 2026-01
      stripemeter usage cus_anna --tenant acme --json

    What was acknowledged before the question is in the answer. Late events that wait for a decision are not in "used"
    and are shown beside it. How a number came about: `stripemeter explain`.
    """
    client = client_of(url, api_key)
    whose = {"customerRef": customer} | ({} if tenant is None else {"tenantId": tenant})
    if period is not None and history is not None:
        raise click.UsageError("give --period or --history, not both")
    while True:
        if period is not None:
            _past(client, whose, metric, period, as_json=as_json)
        else:
            _now(client, whose, metric, history, as_json=as_json, watch=watch)
        if not watch:
            return 0
        time.sleep(WATCH_SECONDS)


def _now(
    client: AdminClient,
    whose: dict[str, str],
    metric: str | None,
    history: str | None,
    *,
    as_json: bool,
    watch: bool,
) -> None:
    raw = client.ask("GET", f"/v1/usage/current?{urlencode(whose)}", msgspec.Raw)
    found = msgspec.json.decode(raw, type=UsageFound)
    found.metrics = [one for one in found.metrics if metric in (None, one.name)]
    courses = {
        one.name: _course(client, whose, one.name, history)
        for one in found.metrics
        if history is not None
    }
    if as_json:
        answer = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        shown: dict[str, Any] = dict(answer)
        if metric is not None:
            every = msgspec.json.decode(answer["metrics"], type=list[dict[str, msgspec.Raw]])
            shown["metrics"] = [one for one in every if raw_text(one["name"]) == metric]
        if history is not None:
            shown["history"] = list(courses.values())
        print_json(shown)
        return
    with full_screen(watched=watch):
        _show_now(found, courses)


def _course(client: AdminClient, whose: dict[str, str], metric: str, interval: str) -> msgspec.Raw:
    query = {**whose, "metric": metric, "interval": interval, "since": RANGES[interval]}
    return client.ask("GET", f"/v1/usage/history?{urlencode(query)}", msgspec.Raw)


def _show_now(found: UsageFound, courses: dict[str, msgspec.Raw]) -> None:
    to = console()
    if not found.metrics:
        note(f"{found.customer_ref} of tenant {found.tenant_id} has used nothing that is counted")
        return
    columns = [Column("metric"), *number_columns("used"), Column("unit"), Column("counted by")]
    columns += [*number_columns("events", "late, waiting"), Column("period from", folds=False)]
    columns += [Column("to", folds=False)]
    if courses:
        columns.append(Column("course", folds=False))
    width = max(SPARKLINE_WIDTH_MIN, min(SPARKLINE_WIDTH_MAX, to.width // 3))
    rows = []
    for one in found.metrics:
        cells = [one.name, raw_text(one.current), one.unit or "", one.aggregation, str(one.count)]
        cells += [str(one.pending_late or ""), one.period["start"][:10], one.period["end"][:10]]
        if courses:
            course = msgspec.json.decode(courses[one.name], type=HistoryFound)
            cells.append(sparkline([raw_text(point.value) for point in course.series], width))
        rows.append(Row(cells))
    print_table(columns, rows, to)
    if found.freshness.last_update is not None:
        seconds = found.freshness.staleness or 0
        note(f"newest event received {found.freshness.last_update}, {seconds:,.1f} s ago")
    if any(one.pending_late for one in found.metrics):
        note("late events wait for a decision: stripemeter adjustments list --status pending")


def _past(
    client: AdminClient, whose: dict[str, str], metric: str | None, period: str, *, as_json: bool
) -> None:
    try:
        start_us = parse_date(f"{period}-01")
    except TimeError as error:
        raise click.BadParameter("must be a month, YYYY-MM", param_hint="--period") from error
    query = dict(whose)
    for name, us in zip(("since", "until"), period_of("calendar", start_us), strict=True):
        query[name] = f"{format_date(us)}T00:00:00Z"
    query |= {} if metric is None else {"metric": metric}
    lines = client.download(f"/v1/usage/counters?{urlencode(query)}").splitlines()
    counters = [msgspec.json.decode(line, type=dict[str, msgspec.Raw]) for line in lines]
    if as_json:
        print_json({"customerRef": whose["customerRef"], "period": period, "counters": counters})
        return
    if not counters:
        note(f"nothing was counted for {whose['customerRef']} in periods that began in {period}")
        return
    names = ("metric", "current", "aggregation", "count", "pendingLate", "periodStart", "periodEnd")
    columns = [Column("metric"), *number_columns("used"), Column("counted by")]
    columns += [*number_columns("events", "late, waiting")]
    columns += [Column("period from", folds=False), Column("to", folds=False)]
    rows = [[raw_text(one.get(name)) for name in names] for one in counters]
    print_table(columns, [Row([*row[:5], row[5][:10], row[6][:10]]) for row in rows])
