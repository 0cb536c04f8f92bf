"""`stripemeter adjustments`: corrections and late events, listed, made, approved and undone through a server.

Rules it keeps: a correction has an id of its own before it is sent, so that sending it twice makes one; what a decision
would change is shown before it is asked for. It must not know what an adjustment does to a total.
"""

from __future__ import annotations

import secrets
from typing import Any, Final, Literal
from urllib.parse import quote, urlencode

import click
import msgspec

from gateway.terminal.family import group
from gateway.terminal.listing import Item, listed
from gateway.terminal.options import (
    all_of,
    client_of,
    customer_option,
    metric_option,
    period_option,
    server_options,
    tenant_option,
    yes_option,
)
from gateway.terminal.output import (
    Column,
    Row,
    is_confirmed,
    note,
    number_columns,
    print_json,
    print_table,
    raw_text,
)

PATH: Final = "/v1/adjustments"
STATUSES: Final = ("pending", "approved", "reverted", "superseded")
REASONS: Final = ("backfill", "correction", "promo", "credit", "manual")
REQUEST_ID_BYTES: Final = 8
_STYLES: Final = {"pending": "yellow", "reverted": "dim", "superseded": "dim"}
_filter = all_of(tenant_option, metric_option, customer_option, period_option)


class Decided(msgspec.Struct, rename="camel"):
    """What a decision changed, as far as it is shown."""

    changed: int
    unchanged: int
    late_events: int


@group("adjustments")
def command() -> None:
    r"""Corrections of what was counted, and decisions on late events. Nothing is ever edited: each is a record.

    \b
    Examples:
      stripemeter adjustments list --tenant acme --status pending
      stripemeter adjustments add api_calls cus_anna -1 --tenant acme --period 2026-01 --reason credit
      stripemeter adjustments approve --tenant acme --customer cus_anna
    """


@command.command("list")
@_filter
@click.option("--status", type=click.Choice(STATUSES), help="Only with this status.")
@server_options("adjustments:read")
def list_adjustments(
    *,
    tenant: str | None,
    metric: str | None,
    customer: str | None,
    period: str | None,
    status: str | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    r"""List adjustments. Late events of one counter wait in one adjustment of kind "event".

    \b
    Examples:
      stripemeter adjustments list --tenant acme --status pending
      stripemeter adjustments list --tenant acme --customer cus_anna --period 2026-01 --json
    """
    wanted = _wanted(tenant, metric, customer, period) | {"status": status}
    found = listed(client_of(url, api_key), PATH, "adjustments", wanted)
    if as_json:
        print_json({"adjustments": found})
        return 0
    columns = [
        Column("id", folds=False),
        Column("metric"),
        Column("customer"),
        Column("period", folds=False),
    ]
    columns += [Column("kind", folds=False), *number_columns("amount", "late events")]
    columns += [Column(name, folds=False) for name in ("status", "reason")] + [Column("by")]
    if found:
        print_table(
            columns, [Row(_cells(one), _STYLES.get(raw_text(one["status"]), "")) for one in found]
        )
    note(f"{len(found)} adjustments")
    return 0


def _cells(one: Item) -> list[str]:
    amount = next(
        (raw_text(one[name]) for name in ("delta", "value", "eventsTotal") if name in one), ""
    )
    texts = [raw_text(one[name]) for name in ("id", "metric", "customerRef", "periodStart", "kind")]
    count = raw_text(one.get("eventCount"))
    return [*texts, amount, count, *(raw_text(one[name]) for name in ("status", "reason", "actor"))]


@command.command("add", context_settings={"ignore_unknown_options": True})
@click.argument("metric")
@click.argument("customer")
@click.argument("amount")
@tenant_option
@period_option
@click.option(
    "--value",
    "is_value",
    is_flag=True,
    help="AMOUNT replaces the total (max and last); else it is added.",
)
@click.option(
    "--reason", type=click.Choice(REASONS), default="correction", show_default=True, help="Why."
)
@click.option("--note", "remark", metavar="TEXT", help="In words, for the audit trail.")
@click.option("--key", metavar="KEY", help="Your own id of it: sent twice it makes one.")
@server_options("adjustments:write")
def add(
    *,
    metric: str,
    customer: str,
    amount: str,
    tenant: str | None,
    period: str | None,
    is_value: bool,
    reason: str,
    remark: str | None,
    key: str | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    r"""Add AMOUNT, which may be negative, to what CUSTOMER used of METRIC in a period. It counts once it is approved.

    \b
    Examples:
      stripemeter adjustments add api_calls cus_anna -1 --tenant acme --period 2026-01 --reason credit
      stripemeter adjustments add seats cus_anna 5 --tenant acme --period 2026-01-15 --value --note "miscounted"

    --period is the month, or the day, on which the period begins. The printed key makes a repetition harmless.
    """
    if period is None:
        raise click.UsageError("give --period: the month, or the day, on which the period begins")
    key = key or f"cli-{secrets.token_hex(REQUEST_ID_BYTES)}"
    body: dict[str, Any] = {} if tenant is None else {"tenantId": tenant}
    body |= {"metric": metric, "customerRef": customer, "periodStart": _day(period)}
    body |= {"value" if is_value else "delta": amount, "reason": reason, "requestId": key}
    body |= {} if remark is None else {"note": remark}
    note(f"key {key}: with --key it is sent again without making another one")
    made = client_of(url, api_key).ask("POST", PATH, Item, body)
    if as_json:
        print_json(made)
        return 0
    click.echo(f"{raw_text(made['id'])}: {raw_text(made['status'])}")
    note(f"it counts once it is approved: stripemeter adjustments approve {raw_text(made['id'])}")
    return 0


def _deciding(function: Any) -> Any:
    return all_of(
        click.argument("adjustment_id", metavar="[ID]", required=False),
        _filter,
        yes_option,
        server_options("adjustments:write"),
    )(function)


@command.command("approve")
@_deciding
def approve(**given: Any) -> int:
    r"""Let the adjustment ID count, or all that are pending and match.

    \b
    Examples:
      stripemeter adjustments approve adj_0123456789abcdef --tenant acme
      stripemeter adjustments approve --tenant acme --customer cus_anna --period 2026-01
      stripemeter adjustments approve --tenant acme --yes

    Without ID it says how many there are and asks, unless there is --yes. Approving twice changes nothing.
    """
    return _decide("approve", **given)


@command.command("revert")
@_deciding
def revert(**given: Any) -> int:
    r"""Take the adjustment ID back, or all that match: the total is what it was without them.

    \b
    Examples:
      stripemeter adjustments revert adj_0123456789abcdef --tenant acme
      stripemeter adjustments revert --tenant acme --metric api_calls --period 2026-01

    Without ID it says how many there are and asks, unless there is --yes. Reverting is final.
    """
    return _decide("revert", **given)


def _decide(
    action: Literal["approve", "revert"],
    *,
    adjustment_id: str | None,
    tenant: str | None,
    metric: str | None,
    customer: str | None,
    period: str | None,
    yes: bool,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    client = client_of(url, api_key)
    if adjustment_id is not None:
        query = "" if tenant is None else f"?{urlencode({'tenantId': tenant})}"
        made = client.ask("POST", f"{PATH}/{quote(adjustment_id, safe='')}/{action}{query}", Item)
        if as_json:
            print_json(made)
        else:
            click.echo(f"{raw_text(made['id'])}: {raw_text(made['status'])}")
        return 0
    wanted = _wanted(tenant, metric, customer, period)
    body = {name: value for name, value in wanted.items() if value is not None}
    if not yes:
        found = client.ask("POST", f"{PATH}/{action}", Decided, body | {"dryRun": True})
        if not found.changed:
            click.echo("none would change")
            return 0
        late = f", with {found.late_events:,} late events" if found.late_events else ""
        if not is_confirmed(f"{action.capitalize()} {found.changed:,} adjustments{late}?"):
            return 1
    raw = client.ask("POST", f"{PATH}/{action}", msgspec.Raw, body)
    if as_json:
        print_json(raw)
        return 0
    decided = msgspec.json.decode(raw, type=Decided)
    click.echo(f"{decided.changed:,} changed, {decided.unchanged:,} did not")
    return 0


def _wanted(
    tenant: str | None, metric: str | None, customer: str | None, period: str | None
) -> dict[str, str | None]:
    start = None if period is None else _day(period)
    return {"tenantId": tenant, "metric": metric, "customerRef": customer, "periodStart": start}


def _day(period: str) -> str:
    """The day on which a period begins that is given by it or by its month."""
    return f"{period}-01" if len(period) == len("YYYY-MM") else period
