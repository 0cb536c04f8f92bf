"""`stripemeter pushes`: what was pushed to Stripe as a table, and the decisions that wait for a person.

It must not know how anything is pushed: a running server is asked.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.admin_client import AdminClient, url_of
from gateway.environment import read_settings
from gateway.push_shapes import PushView
from gateway.pushes import FLUSH_SECONDS_DEFAULT, FLUSH_SECONDS_MAX, Flushed, PushList

_WIDTH_WITHOUT_TERMINAL = 160
PAGES_MAX: Final = 1_000
"""Of a hundred targets."""
WATCH_SECONDS: Final = 2
CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def where(function: CommandT) -> CommandT:
    """The options of everything that asks a server."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "--api-key",
            metavar="KEY",
            envvar="STRIPEMETER_API_KEY",
            help="A key with the scope mappings:read or mappings:write (STRIPEMETER_API_KEY).",
        ),
        click.option(
            "--url", metavar="URL", envvar="STRIPEMETER_URL", help="The server (STRIPEMETER_URL)."
        ),
    ):
        function = option(function)
    return function


def client_of(url: str | None, api_key: str | None) -> AdminClient:
    """A client of the server that is meant: the given one, or that of the settings."""
    settings = read_settings()
    return AdminClient(url or url_of(settings), api_key or settings.admin_key)


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


@click.group("pushes", invoke_without_command=True, short_help="What was pushed to Stripe.")
@click.option("--tenant", help="Only of this tenant.")
@click.option("--customer", help="Only targets that this customer's usage goes to.")
@click.option("--watch", is_flag=True, help=f"Again every {WATCH_SECONDS} s, until Ctrl-C.")
@where
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
            click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        else:
            if watch:
                click.clear()
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
    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    console = Console(file=sys.stdout, highlight=False, width=width)
    for connection in found.connections:
        what = "the built-in simulator" if connection.is_simulator else f"{connection.mode}"
        line = f"{connection.role}: {connection.account or 'account unknown'}, {what}"
        console.print(Text(f"{line}{f'; {connection.error}' if connection.error else ''}"))
    if not found.connections:
        console.print(Text("nothing is pushed: no Stripe key is set, and the simulator is off"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("target", "metric", "customer", "period from"):
        table.add_column(column, overflow="fold")
    for column in ("local", "billable", "pushed", "confirmed", "due"):
        table.add_column(column, justify="right", overflow="fold")
    table.add_column("standing")
    table.add_column("why, or last error", overflow="fold")
    for one in found.pushes:
        table.add_row(*map(Text, _cells(one)), style="bold red" if one.needs_person else "")
    console.print(table)
    for nowhere in found.unroutable:
        who = f"{nowhere.tenant_id} / {nowhere.customer_ref} / {nowhere.metric}"
        console.print(Text(f"goes nowhere: {who}: {nowhere.reason}", style="bold red"))
    if (more := found.unroutable_total - len(found.unroutable)) > 0:
        console.print(Text(f"goes nowhere: {more} more"))


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
@click.option("--tenant", help="Only of this tenant.")
@click.option("--customer", help="Only this customer's usage.")
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.IntRange(0, FLUSH_SECONDS_MAX),
    default=FLUSH_SECONDS_DEFAULT,
    show_default=True,
    help="Seconds after which it says what is missing.",
)
@where
def flush(
    *,
    tenant: str | None,
    customer: str | None,
    timeout_seconds: int,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    """Push what is due now; exit code 1 when Stripe does not have everything in the end."""
    body: dict[str, Any] = {"timeoutSeconds": timeout_seconds}
    if tenant is not None:
        body["tenantId"] = tenant
    if customer is not None:
        body["customerRef"] = customer
    found = client_of(url, api_key).ask(
        "POST", "/v1/pushes/flush", Flushed, body, seconds_max=timeout_seconds + 30
    )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return 0 if found.complete else 1
    click.echo(
        f"{found.total - found.missing_total} of {found.total} targets are at Stripe in full"
    )
    for one in found.missing:
        why = one.reason or one.last_error or one.standing
        due = bytes(one.due).decode()
        click.echo(f"missing: {one.id} {one.metric} of {one.stripe_customer_id}: {due} due: {why}")
    for nowhere in found.unroutable:
        click.echo(f"goes nowhere: {nowhere.customer_ref} / {nowhere.metric}: {nowhere.reason}")
    return 0 if found.complete else 1


def _decide(
    target: str, action: str, body: dict[str, Any] | None, url: str | None, api_key: str | None
) -> PushView:
    path = f"/v1/pushes/{quote(target, safe='')}/{action}"
    return client_of(url, api_key).ask("POST", path, PushView, body)


def _show_decided(one: PushView, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(one)).decode())
        return
    pushed, due = bytes(one.pushed).decode(), bytes(one.due).decode()
    click.echo(f"{one.id}: {one.standing.replace('_', ' ')}, {pushed} pushed, {due} due")


@command.command("baseline")
@click.argument("target")
@click.argument("choice", type=click.Choice(["now", "period", "stripe"]))
@where
def baseline(
    *, target: str, choice: str, url: str | None, api_key: str | None, as_json: bool
) -> None:
    """Say what counts as pushed where Stripe already held something.

    now: only usage from here on; period: all of the period's, on top; stripe: what Stripe held counts as pushed.
    """
    _show_decided(_decide(target, "baseline", {"baseline": choice}, url, api_key), as_json=as_json)


@command.command("carry-forward")
@click.argument("target")
@click.argument("into", type=click.Choice(["current", "credit", "invoice_item", "write_off"]))
@where
def carry_forward(
    *, target: str, into: str, url: str | None, api_key: str | None, as_json: bool
) -> None:
    """Settle what became due after an invoice was final: into the running period, or outside of it."""
    _show_decided(_decide(target, "carry-forward", {"into": into}, url, api_key), as_json=as_json)


@command.command("settle")
@click.argument("target")
@click.argument("outcome", type=click.Choice(["delivered", "not-delivered"]))
@where
def settle(
    *, target: str, outcome: str, url: str | None, api_key: str | None, as_json: bool
) -> None:
    """Say whether a push in quarantine arrived: look for its identifier at Stripe first."""
    body = {"delivered": outcome == "delivered"}
    _show_decided(_decide(target, "settle", body, url, api_key), as_json=as_json)


@command.command("resume")
@click.argument("target")
@where
def resume(*, target: str, url: str | None, api_key: str | None, as_json: bool) -> None:
    """Push again to what was stopped."""
    _show_decided(_decide(target, "resume", None, url, api_key), as_json=as_json)
