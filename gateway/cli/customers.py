"""`stripemeter customers`: who customers are at Stripe and when their months begin, listed and set through a server.

It must not know when a change takes effect: the server says it.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote, urlencode

import click
import msgspec

from engine.errors import EngineError
from gateway.admin_client import AdminClient
from gateway.terminal.family import group
from gateway.terminal.listing import Item, listed
from gateway.terminal.options import client_of, server_options, tenant_option
from gateway.terminal.output import Column, Row, note, print_json, print_table, raw_text

PATH: Final = "/v1/customers"
_KEPT: Final = ("stripeCustomerId", "subscriptionItems", "billingAnchor", "testClock")


@group("customers")
def command() -> None:
    r"""List customers, and set who they are at Stripe.

    \b
    Examples:
      stripemeter customers list --tenant acme
      stripemeter customers set bert --tenant acme --stripe-customer cus_bert
    """


@command.command("list")
@tenant_option
@server_options("mappings:read")
def list_customers(
    *, tenant: str | None, url: str | None, api_key: str | None, as_json: bool
) -> int:
    r"""List the customers of whom more is known than their usage.

    \b
    Examples:
      stripemeter customers list --tenant acme
      stripemeter customers list --tenant acme --json
    """
    found = listed(client_of(url, api_key), PATH, "customers", {"tenantId": tenant})
    if as_json:
        print_json({"customers": found})
        return 0
    rows = [Row(_cells(one)) for one in found]
    names = ("customer", "at Stripe", "subscription items", "billing anchor", "test clock")
    if rows:
        print_table([Column(name) for name in names], rows)
    note(f"{len(rows)} customers")
    return 0


def _cells(one: Item) -> list[str]:
    items = msgspec.json.decode(one["subscriptionItems"], type=dict[str, str])
    return [
        raw_text(one["customerRef"]),
        raw_text(one["stripeCustomerId"]),
        ", ".join(f"{metric}={item}" for metric, item in items.items()),
        raw_text(one["billingAnchor"]),
        raw_text(one["testClock"]),
    ]


@command.command("set")
@click.argument("customer")
@tenant_option
@click.option("--stripe-customer", metavar="ID", help="Its id at Stripe (cus_...).")
@click.option("--item", "items", metavar="METRIC=ID", multiple=True,
              help="The subscription item (si_...) that bills a metric; may be repeated.")  # fmt: skip
@click.option("--billing-anchor", metavar="TIME", help="The instant that cuts its months.")
@click.option("--test-clock", metavar="ID", help="Stripe's test clock that it lives by.")
@click.option(
    "--cutover",
    type=click.Choice(("move", "carry")),
    help="Let a change of where it goes hold now.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be sent, change nothing.")
@server_options("mappings:write")
def set_customer(
    *,
    customer: str,
    tenant: str | None,
    stripe_customer: str | None,
    items: tuple[str, ...],
    billing_anchor: str | None,
    test_clock: str | None,
    cutover: str | None,
    dry_run: bool,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    r"""Say who CUSTOMER is at Stripe, which items bill it, and when its months begin: what is not given stays.

    \b
    Examples:
      stripemeter customers set bert --tenant acme --stripe-customer cus_bert
      stripemeter customers set bert --tenant acme --item api_calls=si_123 --billing-anchor 2026-01-15T09:30:00Z
      stripemeter customers set bert --tenant acme --stripe-customer cus_new --cutover move --dry-run

    A customerRef that is itself a cus_... needs no entry. Once something was pushed, another Stripe customer or item
    holds from the next period, or now with --cutover.
    """
    client = client_of(url, api_key)
    whose = {} if tenant is None else {"tenantId": tenant}
    # PUT is the whole of what is known: what is not named here is sent back as it is.
    body: dict[str, Any] = whose | _known(client, customer, whose)
    given = {
        "stripeCustomerId": stripe_customer,
        "billingAnchor": billing_anchor,
        "testClock": test_clock,
        "cutover": cutover,
    }
    body |= {name: value for name, value in given.items() if value is not None}
    if items:
        raw = body.get("subscriptionItems", msgspec.Raw(b"{}"))
        body["subscriptionItems"] = msgspec.json.decode(raw, type=dict[str, str]) | _items(items)
    if dry_run:
        body["dryRun"] = True
    made = client.ask("PUT", f"{PATH}/{quote(customer, safe='')}", Item, body)
    if as_json:
        print_json(made)
        return 0
    at_stripe = raw_text(made["stripeCustomerId"]) or "not known at Stripe"
    click.echo(f"{customer}: {'would be ' if dry_run else ''}{at_stripe}")
    for name, what in (
        ("effectiveFrom", "the billing anchor"),
        ("pushEffectiveFrom", "where it goes"),
    ):
        if when := raw_text(made.get(name)):
            click.echo(f"{what} changes at {when}")
    return 0


def _known(client: AdminClient, customer: str, whose: dict[str, str]) -> dict[str, Any]:
    query = f"?{urlencode(whose)}" if whose else ""
    answered = client.exchange("GET", f"{PATH}/{quote(customer, safe='')}{query}", None)
    if answered.status == 404:
        return {}
    if answered.status >= 300:
        raise client.refusal(answered)
    try:
        found = msgspec.json.decode(answered.content, type=Item)
    except msgspec.MsgspecError as error:
        raise EngineError(f"{client.url} does not answer as this server would") from error
    return {name: found[name] for name in _KEPT if name in found}


def _items(pairs: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        metric, is_there, item = pair.partition("=")
        if not is_there or not metric or not item:
            raise click.BadParameter(f"{pair!r} is not METRIC=ID", param_hint="--item")
        found[metric] = item
    return found
