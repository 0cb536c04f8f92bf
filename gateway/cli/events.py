"""`stripemeter events`: the accepted events of a running server, as a table. It must not know how they are found."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

import click
import msgspec

from gateway.admin_client import AdminClient
from gateway.terminal.options import (
    all_of,
    client_of,
    customer_option,
    metric_option,
    server_options,
    tenant_option,
)
from gateway.terminal.output import (
    Column,
    Row,
    note,
    number_columns,
    print_json,
    print_table,
    raw_text,
)

PAGE: Final = 100
LIMIT_MAX: Final = 10_000
SOURCES: Final = ("sdk", "http", "etl", "import", "system")


class EventsFound(msgspec.Struct, rename="camel", kw_only=True):
    """What `GET /v1/events` says, as far as it is shown."""

    total: int
    events: list[dict[str, msgspec.Raw]]
    total_is_lower_bound: bool = False
    next_cursor: str | None = None
    dropped_before: str | None = None


time_options = all_of(
    click.option("--since", metavar="TIME", help="From here on; ISO 8601, or relative: -P7D."),
    click.option("--until", metavar="TIME", help="Up to here, exclusive."),
)


@click.command("events")
@tenant_option
@metric_option
@customer_option
@click.option("--source", type=click.Choice(SOURCES), help="Only from this source.")
@time_options
@click.option("--oldest", is_flag=True, help="The oldest first; else the newest.")
@click.option("--limit", metavar="N", type=click.IntRange(1, LIMIT_MAX), default=25, show_default=True,
              help="At most so many.")  # fmt: skip
@server_options("events:read")
def command(
    *,
    tenant: str | None,
    metric: str | None,
    customer: str | None,
    source: str | None,
    since: str | None,
    until: str | None,
    oldest: bool,
    limit: int,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    r"""List events that a server accepted, by the time at which they happened.

    \b
    Examples:
      stripemeter events --tenant acme
      stripemeter events --tenant acme --customer cus_anna --metric api_calls --since -PT1H
      stripemeter events --tenant acme --oldest --limit 1000 --json

    To follow them as they come, use `stripemeter tail`; for all of them in a file, `stripemeter export events`.
    """
    query: dict[str, Any] = {
        "tenantId": tenant,
        "metric": metric,
        "customerRef": customer,
        "source": source,
        "startTime": since,
        "endTime": until,
        "sortDir": "asc" if oldest else "desc",
    }
    query = {name: value for name, value in query.items() if value is not None}
    found = _listed(client_of(url, api_key), query, limit)
    if as_json:
        shown: dict[str, Any] = {"total": found.total, "events": found.events}
        if found.total_is_lower_bound:
            shown["totalIsLowerBound"] = True
        if found.next_cursor is not None:
            shown["nextCursor"] = found.next_cursor
        if found.dropped_before is not None:
            shown["droppedBefore"] = found.dropped_before
        print_json(shown)
        return 0
    _show(found)
    return 0


def _listed(client: AdminClient, query: dict[str, Any], limit: int) -> EventsFound:
    """As many as are wanted, of as many pages as that takes."""
    found: EventsFound | None = None
    while True:
        left = limit - (len(found.events) if found else 0)
        asked = {**query, "limit": min(PAGE, left)}
        page = client.ask("GET", f"/v1/events?{urlencode(asked)}", EventsFound)
        if found is not None:
            page.events = found.events + page.events
        found = page
        if page.next_cursor is None or len(page.events) >= limit:
            return found
        query["cursor"] = page.next_cursor


def _show(found: EventsFound) -> None:
    columns = (
        Column("time", folds=False),
        Column("metric"),
        *number_columns("quantity"),
        Column("customer"),
        Column("resource"),
        Column("source", folds=False),
        Column("key"),
        *number_columns("position"),
    )
    names = (
        "timestamp",
        "metric",
        "quantity",
        "customerRef",
        "resourceId",
        "source",
        "id",
        "sequence",
    )
    rows = [Row([raw_text(event.get(name)) for name in names]) for event in found.events]
    if rows:
        print_table(columns, rows)
    more = " or more" if found.total_is_lower_bound else ""
    note(f"{len(rows)} of {found.total:,}{more} events")
    if found.dropped_before is not None:
        note(
            f"retention has dropped events before {found.dropped_before}: they are not counted here"
        )
