"""`stripemeter explain`: how a customer's total came about, as a table that adds up.

It must not know how the parts are found (engine.core.explain).
"""

from __future__ import annotations

from typing import Final

import click
import msgspec
from rich.console import Console
from rich.text import Text

from engine.core.times import TimeError, format_date, parse_date
from gateway.as_of import parse_as_of
from gateway.cli.export import open_source
from gateway.explain import UsageExplained
from gateway.system import SystemClock
from gateway.terminal.options import chosen_url, json_option, place_options, settings_for
from gateway.terminal.output import (
    Row,
    console,
    number_columns,
    print_json,
    print_table,
    text_columns,
)

_NUMBERS: Final = ("events", "sum or value", "amount", "log positions")


@click.command("explain")
@click.argument("tenant")
@click.argument("customer")
@click.argument("metric")
@click.argument("period")
@click.option("--as-of", metavar="WHEN", help="As it was known: a time, or a log position.")
@place_options("usage:read")
@json_option
def command(
    *,
    tenant: str,
    customer: str,
    metric: str,
    period: str,
    as_of: str | None,
    as_json: bool,
    data_dir: str | None,
    url: str | None,
    api_key: str | None,
) -> int:
    r"""Every part of a total: events by day, replays, late events, adjustments, with their log positions.

    PERIOD is the day on which the period begins, or a month: 2026-01-01 or 2026-01.

    \b
    Examples:
      stripemeter explain acme cus_anna api_calls 2026-01
      stripemeter explain acme cus_anna api_calls 2026-01-15 --json
      stripemeter explain acme cus_anna api_calls 2026-01 --as-of 2026-02-03T09:00:00Z

    Of a sum, the column "amount" adds up to the total to the last digit; of a max or last, the last line names what
    won. Late events and adjustments that are not approved have amount 0. Where there is a price, a second table has the
    line on the invoice: its tiers, and the days and corrections that filled them; it adds up to the line. Prices are
    known to a running server.
    """
    try:
        day_us = parse_date(f"{period}-01" if len(period) == len("YYYY-MM") else period)
    except TimeError as error:
        message = f"the date {error}"
        raise click.BadParameter(message, param_hint="PERIOD") from error
    try:
        asked = None if as_of is None else parse_as_of(as_of, SystemClock().now_us())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--as-of") from error
    settings = settings_for(data_dir)
    with open_source(settings, chosen_url(url, data_dir), api_key) as source:
        found = source.explain((tenant, metric, customer), day_us, asked)
    if as_json:
        print_json(found)
        return 0
    _show(console(), found, format_date(day_us))
    return 0


def _number(raw: msgspec.Raw | None) -> str:
    return "" if raw is None else bytes(raw).decode()


def _positions(first: int | None, last: int | None) -> str:
    if first is None or first == last:
        return "" if first is None else str(first)
    return f"{first}..{last}"


def _show(to: Console, found: UsageExplained, day: str) -> None:
    to.print(
        Text(f"{found.tenant_id} / {found.customer_ref} / {found.metric}, period from {day}:"),
        Text(f"{found.aggregation} = {_number(found.total)}", style="bold"),
    )
    columns = (*text_columns("part", "status", "by"), *number_columns(*_NUMBERS))
    rows: list[Row] = []
    is_sum = found.aggregation == "sum"

    def add(*cells: str) -> None:
        rows.append(Row(cells))

    for one in found.days:
        positions = _positions(one.first_position, one.last_position)
        total = _number(one.sum)
        add(f"day {one.day}", "", "", str(one.count), total, total if is_sum else "", positions)
    for replay in found.replays:
        positions = _positions(replay.first_position, replay.last_position)
        total = _number(replay.sum)
        amount = total if is_sum else ""
        add("replay", "applied", replay.actor, str(replay.count), total, amount, positions)
    for late in found.late:
        add(
            f"late {late.adjustment_id}",
            late.status,
            late.decided_by or "",
            str(late.count),
            _number(late.sum),
            _number(late.amount) if is_sum else "",
            _positions(late.first_position, late.last_position),
        )
    for made in found.adjustments:
        add(
            f"{made.kind} {made.adjustment_id} ({made.reason})",
            made.status,
            made.actor,
            "",
            _number(made.value),
            _number(made.amount) if is_sum else "",
            str(made.position),
        )
    if found.rest.lines:
        add(f"{found.rest.lines} more", "", "", "", "", _number(found.rest.amount), "")
    add("total", "", "", "", "", _number(found.total), "")
    print_table(columns, rows, to, footer=True)
    _show_line(to, found)
    winner = found.decided_by
    if winner is not None:
        where = "" if winner.timestamp is None else f" of {winner.timestamp}"
        name = "" if winner.adjustment_id is None else f" {winner.adjustment_id}"
        to.print(
            Text(f"{found.aggregation} comes from: {winner.via}{name}{where}"),
            Text(f"at position {winner.position}: {_number(winner.quantity)}"),
        )


def _show_line(to: Console, found: UsageExplained) -> None:
    """What it costs: the line's parts, and below each what filled it; amounts add up to the line."""
    line = found.line
    if line is None:
        to.print(Text(f"what it costs: {found.line_reason}"))
        return
    price = line.price
    whose = price.subscription_item_id or price.price_id or "the mapping's priceConfig"
    to.print(Text(f"{line.description}, at the price of {whose}"))
    columns = [*text_columns("part", "from"), *number_columns("quantity")]
    columns += number_columns(f"amount ({line.currency})", "log positions")
    rows: list[Row] = []
    for part in line.parts:
        rows.append(Row((f"{part.kind}: {part.text}", "", "", _number(part.amount), "")))
        for share in part.shares:
            source = share.source
            positions = _positions(source.first_position, source.last_position)
            label = f"{source.kind} {source.id or ''}".rstrip()
            amounts = (_number(share.quantity), _number(share.amount))
            rows.append(Row(("", label, *amounts, positions)))
    rows.append(Row(("line", "", _number(line.quantity), _number(line.total), ""), "bold"))
    print_table(columns, rows, to, footer=True)
    if price.stale_because is not None:
        to.print(Text(f"the price is {price.age_seconds} s old: {price.stale_because}"))
