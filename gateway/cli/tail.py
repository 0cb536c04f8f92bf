"""`stripemeter tail`: the events of a running server as they are accepted. It must not know how they are followed."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from typing import Final

import click
import msgspec

from gateway.tailing import END_OF_LOG, Tail
from gateway.terminal.options import (
    client_of,
    customer_option,
    metric_option,
    server_options,
    tenant_option,
)
from gateway.terminal.output import note, raw_text

COUNT_MAX: Final = 1_000_000_000
QUANTITY_WIDTH: Final = 10


@click.command("tail")
@tenant_option
@metric_option
@customer_option
@click.option(
    "--since",
    metavar="TIME",
    help="Begin with what was received after this; ISO 8601, or relative: -PT1H.",
)
@click.option("--after", metavar="POSITION", type=click.IntRange(0, END_OF_LOG - 1),
              help="Begin after this log position; 0 is everything there is.")  # fmt: skip
@click.option(
    "--count", metavar="N", type=click.IntRange(1, COUNT_MAX), help="End after so many events."
)
@server_options("events:read")
def command(
    *,
    tenant: str | None,
    metric: str | None,
    customer: str | None,
    since: str | None,
    after: int | None,
    count: int | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    r"""Print events as they are accepted, each once and in log order, one a line.

    \b
    Examples:
      stripemeter tail --tenant acme
      stripemeter tail --tenant acme --metric api_calls --customer cus_anna
      stripemeter tail --tenant acme --since -PT1H --json
      stripemeter tail --tenant acme --after 4711 --count 100 --json

    Without --since or --after it begins now. A server that restarts is waited for, and nothing is skipped or printed
    twice; --json has each event's position ("sequence") in the log, to go on with --after later. Ctrl-C ends it, with exit code 130.
    """
    if since is not None and after is not None:
        raise click.UsageError("give --since or --after, not both")
    query = {"tenantId": tenant, "metric": metric, "customerRef": customer}
    given = {name: value for name, value in query.items() if value is not None}
    start = after if since is None else since
    with closing(client_of(url, api_key)) as client:
        tail = Tail(client, given, start, monotonic=time.monotonic, wait=time.sleep, tell=note)
        _print(tail, count, as_json=as_json)
    return 0


def _print(tail: Tail, count: int | None, *, as_json: bool) -> None:
    """Print what follows, until there were so many."""
    left = count
    for lines in tail.follow():
        shown = lines if left is None else lines[:left]
        for line in shown:
            sys.stdout.write((line.decode() if as_json else _words(line)) + "\n")
        if shown:
            sys.stdout.flush()
        if left is not None:
            left -= len(shown)
            if not left:
                return


def _words(line: bytes) -> str:
    """An event for a person."""
    event = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    text = {name: _text(raw) for name, raw in event.items()}
    resource = f" resource {text['resourceId']}" if "resourceId" in text else ""
    what = f"{text['quantity']:>{QUANTITY_WIDTH}}  {text['metric']}  {text['customerRef']}"
    return f"{text['receivedAt']}  {what}{resource}  key {text['idempotencyKey']}"


def _text(raw: msgspec.Raw) -> str:
    """A text on one line, whatever is in it: a control character could move the cursor."""
    data = bytes(raw)
    text = msgspec.json.decode(data, type=str) if data[:1] == b'"' else raw_text(raw)
    return text if text.isprintable() else repr(text)[1:-1]
