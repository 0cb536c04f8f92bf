"""`stripemeter mappings`: how metrics are counted and where their use is pushed, listed and set through a server.

It must not know when a change takes effect: the server says it.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote, urlencode

import click
import msgspec

from gateway.admin_client import AdminClient
from gateway.terminal.family import group
from gateway.terminal.listing import Item, listed, value_of
from gateway.terminal.options import client_of, metric_option, server_options, tenant_option
from gateway.terminal.output import Column, Row, note, print_json, print_table, raw_text

PATH: Final = "/v1/mappings"
_SHOWN: Final = ("tenantId", "metric", "aggregation", "period", "unit", "driver")


@group("mappings")
def command() -> None:
    r"""List and set how metrics are counted (sum, max, last; by month, day, subscription), and where to push them.

    \b
    Examples:
      stripemeter mappings list --tenant acme
      stripemeter mappings set seats --tenant acme --aggregation max --unit seats
      stripemeter mappings set emails --tenant acme --meter emails
    """


@command.command("list")
@tenant_option
@metric_option
@click.option("--all", "show_all", is_flag=True, help="The inactive ones too.")
@server_options("mappings:read")
def list_mappings(
    *,
    tenant: str | None,
    metric: str | None,
    show_all: bool,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    r"""List mappings, oldest first. A metric without a mapping is a sum by calendar month, and goes nowhere.

    \b
    Examples:
      stripemeter mappings list --tenant acme
      stripemeter mappings list --tenant acme --metric seats --all --json
    """
    wanted = {"tenantId": tenant, "metric": metric, "active": None if show_all else "true"}
    found = listed(client_of(url, api_key), PATH, "mappings", wanted)
    if as_json:
        print_json({"mappings": found})
        return 0
    _show(found)
    return 0


def _show(found: list[Item]) -> None:
    names = ("tenant", "metric", "counted by", "period", "unit", "driver", "goes to", "id")
    rows = []
    for one in found:
        goes_to = next(
            (text for name in ("meterEventName", "priceId", "subscriptionItemId")
             if (text := raw_text(one.get(name)))), "nowhere")  # fmt: skip
        shadow = " (shadow)" if raw_text(one.get("shadow")) == "true" else ""
        inactive = "" if raw_text(one.get("active")) == "true" else " (inactive)"
        cells = [raw_text(one.get(name)) for name in _SHOWN]
        rows.append(Row([*cells, goes_to + shadow + inactive, raw_text(one.get("id"))]))
    if rows:
        print_table([Column(name) for name in names], rows)
    note(f"{len(rows)} mappings")


@command.command("set")
@click.argument("metric")
@tenant_option
@click.option(
    "--aggregation", type=click.Choice(("sum", "max", "last")), help="How events make the total."
)
@click.option(
    "--period-kind",
    type=click.Choice(("calendar", "subscription", "day")),
    help="What it is counted by.",
)
@click.option("--unit", metavar="NAME", help="What is counted, for people.")
@click.option("--meter", metavar="NAME", help="The event name of Stripe's billing meter.")
@click.option("--price", metavar="ID", help="Stripe's price (price_...).")
@click.option("--lateness-hours", metavar="HOURS", help="Own lateness window.")
@click.option("--set", "fields", metavar="FIELD=VALUE", multiple=True,
              help="Any other field of the API's mapping, as JSON or text; null clears; may be repeated.")  # fmt: skip
@click.option(
    "--cutover",
    type=click.Choice(("move", "carry")),
    help="Let a change of where it goes hold now.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be sent, change nothing.")
@server_options("mappings:write")
def set_mapping(
    *,
    metric: str,
    tenant: str | None,
    aggregation: str | None,
    period_kind: str | None,
    unit: str | None,
    meter: str | None,
    price: str | None,
    lateness_hours: str | None,
    fields: tuple[str, ...],
    cutover: str | None,
    dry_run: bool,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    r"""Make the mapping of METRIC, or change the active one: what is not given stays.

    \b
    Examples:
      stripemeter mappings set seats --tenant acme --aggregation max --unit seats
      stripemeter mappings set emails --tenant acme --meter emails --dry-run
      stripemeter mappings set emails --tenant acme --set shadow=true --set shadowMeterEventName=emails_test

    Once a metric has usage, another aggregation or period holds from the end of the running period; once something was
    pushed, another destination holds from the next period, or now with --cutover. The answer says from when.
    """
    given: dict[str, Any] = {
        "aggregation": aggregation,
        "period": period_kind,
        "unit": unit,
        "meterEventName": meter,
        "priceId": price,
        "latenessHours": None if lateness_hours is None else value_of(lateness_hours),
        "cutover": cutover,
    }
    body = {name: value for name, value in given.items() if value is not None} | pairs_of(fields)
    if dry_run:
        body["dryRun"] = True
    client = client_of(url, api_key)
    made = _put(client, metric, tenant, body)
    if as_json:
        print_json(made)
        return 0
    _show_set(made, dry_run=dry_run)
    return 0


def _put(client: AdminClient, metric: str, tenant: str | None, body: dict[str, Any]) -> Item:
    old = listed(client, PATH, "mappings", {"tenantId": tenant, "metric": metric, "active": "true"})
    if not old:
        whose = {} if tenant is None else {"tenantId": tenant}
        return client.ask("POST", PATH, Item, {**whose, "metric": metric, **body})
    query = "" if tenant is None else f"?{urlencode({'tenantId': tenant})}"
    path = f"{PATH}/{quote(raw_text(old[0]['id']), safe='')}{query}"
    return client.ask("PUT", path, Item, body)


def _show_set(made: Item, *, dry_run: bool) -> None:
    would = "would be" if dry_run else "is"
    text = {name: raw_text(raw) for name, raw in made.items()}
    click.echo(
        f"{text['metric']} {would} counted by {text['aggregation']}, period {text['period']} ({text['id']})"
    )
    for name, what in (
        ("effectiveFrom", "how it is counted"),
        ("pushEffectiveFrom", "where it goes"),
    ):
        if text.get(name):
            click.echo(f"{what} changes at {text[name]}")
    if dry_run and (rows := msgspec.json.decode(made.get("preview", b"[]"), type=list[Item])):
        columns = [Column(name) for name in rows[0]]
        print_table(columns, [Row([raw_text(cell) for cell in row.values()]) for row in rows])


def pairs_of(fields: tuple[str, ...], option: str = "--set") -> dict[str, Any]:
    """The fields of `FIELD=VALUE` options. Raises BadParameter."""
    found: dict[str, Any] = {}
    for pair in fields:
        name, is_there, value = pair.partition("=")
        if not is_there or not name:
            raise click.BadParameter(f"{pair!r} is not FIELD=VALUE", param_hint=option)
        found[name] = value_of(value)
    return found
