"""`stripemeter send`: one event from the command line, or many from a file or a pipe, until each has its answer.

Rules it keeps: every event has a key before it is sent, and the key is told, so that repeating the command counts
nothing twice. It must not know how sending is repeated (gateway.sending).
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from engine.errors import EngineError
from gateway.admin_client import AdminClient
from gateway.progress import row_progress
from gateway.sending import Event, Line, Result, Sender, Unsent, event_of, lines_of
from gateway.terminal.exits import EXIT_PROBLEM, EXIT_UNSENT
from gateway.terminal.failures import told
from gateway.terminal.options import client_of, server_options, tenant_option
from gateway.terminal.output import note, print_json

ERRORS_KEPT_MAX: Final = 100
ERRORS_SHOWN_MAX: Final = 20
RETRY_SECONDS: Final = 30
RETRY_SECONDS_MAX: Final = 86_400
KEY_BYTES: Final = 8
STDIN: Final = 0


class Summary(msgspec.Struct, rename="camel", omit_defaults=True):
    """What became of the events of a file."""

    key: str
    """What the keys begin with that were made here: KEY:LINE."""
    events: int = 0
    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    failed: int = 0
    errors: list[Result] = msgspec.field(default_factory=list)
    unsent_from_line: int = 0
    """The first line without an answer; 0: all have one."""

    def take(self, results: list[Result]) -> None:
        """Count these."""
        for one in results:
            self.events += 1
            self.accepted += one.status == "accepted"
            self.duplicates += one.status == "duplicate"
            self.late += one.late
            if one.status == "error":
                self.failed += 1
                if len(self.errors) < ERRORS_KEPT_MAX:
                    self.errors.append(one)


@click.command("send")
@click.argument("metric", required=False)
@click.argument("customer", required=False)
@click.argument("quantity", required=False)
@tenant_option
@click.option("--key", metavar="KEY", help="The idempotency key; of a file, what keys begin with.")
@click.option("--ts", metavar="TIME", help="When it happened, ISO 8601; without it now.")
@click.option("--resource", metavar="ID", help="The resource that was used.")
@click.option(
    "--meta",
    "metas",
    metavar="NAME=VALUE",
    multiple=True,
    help="Kept with the event; may be repeated.",
)
@click.option(
    "--file", "-f", "file_name", metavar="FILE", help="Events as JSON lines; - is standard input."
)
@click.option("--retry-for", "retry_seconds", metavar="SECONDS", type=click.IntRange(0, RETRY_SECONDS_MAX),
              default=RETRY_SECONDS, show_default=True, help="How long a server that is away is tried.")  # fmt: skip
@server_options("events:write")
def command(
    *,
    metric: str | None,
    customer: str | None,
    quantity: str | None,
    tenant: str | None,
    key: str | None,
    ts: str | None,
    resource: str | None,
    metas: tuple[str, ...],
    file_name: str | None,
    retry_seconds: int,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    r"""Send the event that CUSTOMER used QUANTITY of METRIC, or the events in a file, one JSON object a line.

    \b
    Examples:
      stripemeter send api_calls cus_anna 3 --tenant acme
      stripemeter send storage_gb cus_anna 0.25 --tenant acme --key job-4711 --meta region=eu
      stripemeter send --file events.jsonl --tenant acme
      tail -F app.log | my-filter | stripemeter send -f - --tenant acme

    A line has the fields of POST /v1/events/ingest: {"metric", "customerRef", "quantity", "ts", "idempotencyKey", ...}.
    An event without a key gets one, which is printed: KEY for one event, KEY:LINE in a file. When an answer is lost, or
    the server is away, the same bytes are sent again under the same keys; run the command again with the --key that it
    printed, and nothing counts twice. For large files of the past there is `stripemeter import`.

    \b
    Exit codes:
      0  every event counts, or did before
      1  events were refused (stderr says which and why), or the server refuses them all
      4  some events got no answer in time: run it again with the printed --key
    """
    made = key or f"cli-{secrets.token_hex(KEY_BYTES)}"
    if file_name is not None:
        if metric is not None or ts is not None or resource is not None or metas:
            message = "with --file the events are in the file: no METRIC, --ts, --resource, --meta"
            raise click.UsageError(message)
        with closing(client_of(url, api_key)) as client:
            sender = _sender(client, retry_seconds)
            return _file(sender, file_name, made, tenant, as_json=as_json)
    if metric is None or customer is None or quantity is None:
        raise click.UsageError("give METRIC CUSTOMER QUANTITY, or --file")
    fields: dict[str, Any] = {"tenantId": tenant, "metric": metric, "customerRef": customer}
    fields |= {"quantity": quantity, "ts": ts, "resourceId": resource, "meta": _meta(metas)}
    with closing(client_of(url, api_key)) as client:
        return _one(_sender(client, retry_seconds), fields, made, as_json=as_json)


def _sender(client: AdminClient, retry_seconds: int) -> Sender:
    return Sender(
        client,
        retry_seconds,
        monotonic=time.monotonic,
        wait=time.sleep,
        chance=random.SystemRandom().random,
        on_wait=lambda why: note(f"{why}; trying again for {retry_seconds} s"),
    )


def _meta(pairs: tuple[str, ...]) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for pair in pairs:
        name, is_there, value = pair.partition("=")
        if not is_there or not name:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint="--meta")
        found[name] = value
    return found or None


def _one(sender: Sender, fields: dict[str, Any], key: str, *, as_json: bool) -> int:
    given = {name: value for name, value in fields.items() if value is not None}
    event = Event(0, key, msgspec.json.encode({**given, "idempotencyKey": key}))
    try:
        ((result,),) = sender.send([event])
    except Unsent as error:
        return told(
            f"{error}; it may have counted: send it again with --key {key}", EXIT_UNSENT, as_json
        )
    if as_json:
        print_json(result)
    elif result.status == "error":
        told(result.error or "refused", EXIT_PROBLEM, as_json)
    else:
        late = f", late: waits in adjustment {result.adjustment_id}" if result.late else ""
        what = f"{fields['quantity']} {fields['metric']} of {fields['customerRef']}"
        click.echo(f"{result.status}{late}: {what}, key {key}")
    return EXIT_PROBLEM if result.status == "error" else 0


def _file(sender: Sender, name: str, key: str, tenant: str | None, *, as_json: bool) -> int:
    summary = Summary(key)
    note(f"events without a key get {key}:LINE; to send the same again: --key {key}")
    unsent: Unsent | None = None
    with _opened(name) as (read, size_bytes), row_progress("sending") as show:
        done_bytes = 0
        try:
            for lines in lines_of(read):
                for results in _sent(sender, lines, key, tenant):
                    summary.take(results)
                done_bytes += sum(len(line.text) + 1 for line in lines)
                show(summary.events, done_bytes, size_bytes)
        except Unsent as error:
            unsent = error
            summary.unsent_from_line = error.first_line
        except EngineError:
            note(f"{summary.events:,} events have their answer; to go on: --key {key}")
            raise
        except KeyboardInterrupt:
            note(f"{summary.events:,} events have their answer; to go on: --key {key}")
            raise
    if as_json:
        print_json(summary)
    else:
        _show(summary)
    if unsent is not None:
        message = (
            f"{unsent}; from line {unsent.first_line} on: send the same again with --key {key}"
        )
        return told(message, EXIT_UNSENT, as_json)
    return EXIT_PROBLEM if summary.failed else 0


def _sent(
    sender: Sender, lines: list[Line], key: str, tenant: str | None
) -> Iterator[list[Result]]:
    """The results of some lines, as they come; those that hold no event have theirs already."""
    made = [event_of(line, key, tenant) for line in lines]
    yield [one for one in made if isinstance(one, Result)]
    yield from sender.send([one for one in made if isinstance(one, Event)])


@contextmanager
def _opened(name: str) -> Iterator[tuple[Callable[[int], bytes], int | None]]:
    """A function that reads some bytes, as soon as there are any, and the size if it is known."""
    if name == "-":
        yield partial(os.read, STDIN), None
        return
    try:
        with Path(name).open("rb", buffering=0) as file:
            size_bytes = Path(name).stat().st_size
            yield file.read, size_bytes or None
    except OSError as error:
        message = f"{name} can't be read: {error.strerror}"
        raise EngineError(message) from error


def _show(summary: Summary) -> None:
    click.echo(
        f"{summary.events:,} events: {summary.accepted:,} accepted (of them {summary.late:,} late), "
        f"{summary.duplicates:,} counted before, {summary.failed:,} refused"
    )
    for one in summary.errors[:ERRORS_SHOWN_MAX]:
        click.echo(f"line {one.line}: {one.error}", err=True)
    if (more := summary.failed - ERRORS_SHOWN_MAX) > 0:
        click.echo(f"and {more:,} more; --json lists {ERRORS_KEPT_MAX}", err=True)
