"""`stripemeter pushes`: what was pushed to Stripe as a table, and the decisions that wait for a person.

It must not know how anything is pushed: a running server is asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote, urlencode

import click
from rich.text import Text

from gateway.admin_client import AdminClient
from gateway.progress import waiting
from gateway.push_shapes import PushView
from gateway.pushes import FLUSH_SECONDS_DEFAULT, FLUSH_SECONDS_MAX, Flushed, PushList
from gateway.terminal.family import group
from gateway.terminal.options import (
    client_of,
    customer_option,
    server_options,
    tenant_option,
    watch_option,
)
from gateway.terminal.output import (
    Column,
    Row,
    console,
    full_screen,
    number_columns,
    print_json,
    print_table,
    printable,
    text_columns,
)

PAGES_MAX: Final = 1_000
"""Of a hundred targets."""
WATCH_SECONDS: Final = 2


def pages(client: AdminClient, **wanted: str | None) -> Iterator[PushList]:
    """All pages of `GET /v1/pushes`."""
    query = {name: text for name, text in wanted.items() if text is not None} | {"limit": "100"}
    for _ in range(PAGES_MAX):
        page = client.ask("GET", f"/v1/pushes?{urlencode(query)}", PushList)
        yield page
        if page.next_cursor is None:
            return
        query["cursor"] = page.next_cursor


def listed(client: AdminClient, **wanted: str | None) -> PushList:
    """All pages as one."""
    found: PushList | None = None
    for page in pages(client, **wanted):
        if found is None:
            found = page
        else:
            found.pushes += page.pushes
    assert found is not None, "there is a first page"
    found.next_cursor = None
    return found


@group("pushes", invoke_without_command=True)
@tenant_option
@customer_option
@watch_option(WATCH_SECONDS)
@server_options("mappings:read")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    tenant: str | None,
    customer: str | None,
    watch: bool,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    r"""Show each target at Stripe: what was used, what Stripe has, and what stands in the way.

    \b
    Examples:
      stripemeter pushes
      stripemeter pushes --tenant acme --customer cus_anna --json
      stripemeter pushes flush --tenant acme --customer cus_anna
      stripemeter pushes baseline 0123456789abcdef stripe

    \b
    Exit codes:
      0  all is pushed, or will be by itself
      1  something waits for a person, goes nowhere, or the server could not be asked
    """
    if ctx.invoked_subcommand is not None:
        return 0
    client = client_of(url, api_key)
    while True:
        found = listed(client, tenantId=tenant, customerRef=customer)
        if as_json:
            print_json(found)
        else:
            with full_screen(watched=watch):
                show(found)
        if not watch:
            return exit_code(found)
        time.sleep(WATCH_SECONDS)


def exit_code(found: PushList) -> int:
    """1 when a person is needed."""
    wrong = any(one.needs_person for one in found.pushes) or found.unroutable_total
    return 1 if wrong or any(one.error is not None for one in found.connections) else 0


def show(found: PushList) -> None:
    """The list as tables on stdout."""
    to = console()
    for connection in found.connections:
        what = "a Stripe simulator" if connection.is_simulator else f"{connection.mode}"
        line = f"{connection.role}: {connection.account or 'account unknown'}, {what}"
        to.print(Text(f"{line}{f'; {connection.error}' if connection.error else ''}"))
    if not found.connections:
        to.print(Text("nothing is pushed: no Stripe key is set, and the simulator is off"))
    columns = [Column("target", folds=False), *text_columns("metric", "customer")]
    columns += [Column("period from", folds=False)]
    columns += number_columns("local", "billable", "pushed", "confirmed", "due")
    columns += [Column("standing", folds=False), Column("why, or last error")]
    rows = [Row(_cells(one), "bold red" if one.needs_person else "") for one in found.pushes]
    if rows:
        print_table(columns, rows, to)
    for nowhere in found.unroutable:
        who = f"{nowhere.tenant_id} / {nowhere.customer_ref} / {nowhere.metric}"
        to.print(Text(printable(f"goes nowhere: {who}: {nowhere.reason}"), style="bold red"))
    if (more := found.unroutable_total - len(found.unroutable)) > 0:
        to.print(Text(f"goes nowhere: {more} more"))


def _cells(one: PushView) -> list[str]:
    names = ", ".join(one.customer_refs[:3])
    more = f" and {len(one.customer_refs) - 3} more" if len(one.customer_refs) > 3 else ""
    shadow = " (shadow)" if one.role == "shadow" else ""
    return [
        one.id,
        f"{one.tenant_id} / {one.metric}{shadow}",
        f"{one.stripe_customer_id} ({names}{more})",
        one.period.start[:10],
        *(
            "" if bytes(raw) == b"null" else bytes(raw).decode()
            for raw in (one.local, one.billable, one.pushed, one.confirmed, one.due)
        ),
        one.standing.replace("_", " "),
        one.reason or one.last_error or "",
    ]


@command.command("flush")
@tenant_option
@customer_option
@click.option(
    "--timeout",
    "timeout_seconds",
    metavar="SECONDS",
    type=click.IntRange(0, FLUSH_SECONDS_MAX),
    default=FLUSH_SECONDS_DEFAULT,
    show_default=True,
    help="Seconds after which it says what is missing.",
)
@server_options("mappings:write")
def flush(
    *,
    tenant: str | None,
    customer: str | None,
    timeout_seconds: int,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    r"""Push what is due now, and wait until Stripe has it: before a subscription is cancelled or its plan changed.

    \b
    Examples:
      stripemeter pushes flush --tenant acme --customer cus_anna
      stripemeter pushes flush --tenant acme --timeout 10 --json

    \b
    Exit codes:
      0  Stripe has everything
      1  it has not: each line says what is missing and why
    """
    body: dict[str, Any] = {"timeoutSeconds": timeout_seconds}
    if tenant is not None:
        body["tenantId"] = tenant
    if customer is not None:
        body["customerRef"] = customer
    with waiting("pushing"):
        found = client_of(url, api_key).ask(
            "POST", "/v1/pushes/flush", Flushed, body, seconds_max=timeout_seconds + 30
        )
    if as_json:
        print_json(found)
        return 0 if found.complete else 1
    click.echo(
        f"{found.total - found.missing_total} of {found.total} targets are at Stripe in full"
    )
    for one in found.missing:
        why = one.reason or one.last_error or one.standing
        due = bytes(one.due).decode()
        what = f"{one.id} {one.metric} of {one.stripe_customer_id}"
        click.echo(printable(f"missing: {what}: {due} due: {why}"))
    for nowhere in found.unroutable:
        who = f"{nowhere.customer_ref} / {nowhere.metric}"
        click.echo(printable(f"goes nowhere: {who}: {nowhere.reason}"))
    return 0 if found.complete else 1


def _decide(
    target: str, action: str, body: dict[str, Any] | None, url: str | None, api_key: str | None
) -> PushView:
    path = f"/v1/pushes/{quote(target, safe='')}/{action}"
    return client_of(url, api_key).ask("POST", path, PushView, body)


def _show_decided(one: PushView, *, as_json: bool) -> None:
    if as_json:
        print_json(one)
        return
    pushed, due = bytes(one.pushed).decode(), bytes(one.due).decode()
    click.echo(f"{one.id}: {one.standing.replace('_', ' ')}, {pushed} pushed, {due} due")


@command.command("baseline")
@click.argument("target")
@click.argument("choice", type=click.Choice(["now", "period", "stripe"]))
@server_options("mappings:write")
def baseline(
    *, target: str, choice: str, url: str | None, api_key: str | None, as_json: bool
) -> None:
    r"""Say what counts as pushed where Stripe already held something.

    now: only usage from here on; period: all of the period's, on top; stripe: what Stripe held counts as pushed.

    \b
    Examples:
      stripemeter pushes baseline 0123456789abcdef stripe
    """
    _show_decided(_decide(target, "baseline", {"baseline": choice}, url, api_key), as_json=as_json)


@command.command("carry-forward")
@click.argument("target")
@click.argument("into", type=click.Choice(["current", "credit", "invoice_item", "write_off"]))
@server_options("mappings:write")
def carry_forward(
    *, target: str, into: str, url: str | None, api_key: str | None, as_json: bool
) -> None:
    r"""Settle what became due after an invoice was final: into the running period, or outside of it.

    \b
    Examples:
      stripemeter pushes carry-forward 0123456789abcdef current
    """
    _show_decided(_decide(target, "carry-forward", {"into": into}, url, api_key), as_json=as_json)


@command.command("settle")
@click.argument("target")
@click.argument("outcome", type=click.Choice(["delivered", "not-delivered"]))
@server_options("mappings:write")
def settle(
    *, target: str, outcome: str, url: str | None, api_key: str | None, as_json: bool
) -> None:
    r"""Say whether a push in quarantine arrived: look for its identifier at Stripe first.

    \b
    Examples:
      stripemeter pushes settle 0123456789abcdef not-delivered
    """
    body = {"delivered": outcome == "delivered"}
    _show_decided(_decide(target, "settle", body, url, api_key), as_json=as_json)


@command.command("resume")
@click.argument("target")
@server_options("mappings:write")
def resume(*, target: str, url: str | None, api_key: str | None, as_json: bool) -> None:
    r"""Push again to what was stopped.

    \b
    Examples:
      stripemeter pushes resume 0123456789abcdef
    """
    _show_decided(_decide(target, "resume", None, url, api_key), as_json=as_json)
