"""`stripemeter parity`: get a certificate of a running server, check one, show the key that signs.

Rules it keeps: a certificate goes to stdout or a file byte for byte as it was signed; what a check finds is one line a
place. It must not know how a certificate is made, nor how one is checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import click
import msgspec
from rich.text import Text

from engine.core.times import format_instant
from engine.errors import EngineError
from engine.witness.canonical import Signer, Unreadable, parse
from gateway.data_directory import DataDirectory
from gateway.parity_check import Checked, check_certificate
from gateway.system import SystemClock
from gateway.terminal.family import group
from gateway.terminal.options import (
    client_of,
    customer_option,
    data_dir_option,
    json_option,
    period_option,
    server_options,
    settings_for,
    tenant_option,
)
from gateway.terminal.output import (
    Column,
    Row,
    console,
    number_columns,
    print_json,
    print_table,
    text_columns,
)

SECONDS_MAX: Final = 60
_COLOURS: Final = {"green": "green", "waiting": "yellow", "red": "bold red"}


@group("parity", invoke_without_command=True)
@period_option
@tenant_option
@customer_option
@click.option("--output", "-o", metavar="FILE", help="Write the certificate to a file.")
@click.option("--max-age", metavar="SECONDS", type=click.IntRange(0, 86_400), default=300,
              show_default=True, help="Read Stripe anew where it was read longer ago.")  # fmt: skip
@server_options("reconciliation:read")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    period: str | None,
    tenant: str | None,
    customer: str | None,
    as_json: bool,
    output: str | None,
    max_age: int,
    url: str | None,
    api_key: str | None,
) -> int:
    r"""A signed certificate: events, counters, adjustments, pushes, Stripe's summaries, projected lines.

    \b
    Examples:
      stripemeter parity --tenant acme
      stripemeter parity --tenant acme --customer cus_anna --period 2026-01 -o parity.json
      stripemeter parity verify parity.json --log /var/lib/stripemeter
      stripemeter parity key

    --json prints the certificate itself, byte for byte as it was signed. --customer brings whoever shares its Stripe
    customer along, since Stripe has one total for them.

    \b
    Exit codes:
      0  green, or nothing is billed; or it settles by itself
      1  red: somebody must look; or the server could not be asked
    """
    if ctx.invoked_subcommand is not None:
        return 0
    month = period or format_instant(SystemClock().now_us())[:7]
    query: dict[str, Any] = {"maxAgeSeconds": max_age}
    query |= {"tenantId": tenant} if tenant is not None else {}
    query |= {"customerRef": customer} if customer is not None else {}
    client = client_of(url, api_key)
    path = f"/v1/parity/{quote(month, safe='')}?{urlencode(query)}"
    raw = bytes(client.ask("GET", path, msgspec.Raw, seconds_max=SECONDS_MAX))
    document = parse(raw)
    if output is not None:
        _write(Path(output), raw + b"\n")
    if as_json:
        click.echo(raw.decode())
    else:
        _show(document)
        if output is not None:
            click.echo(f"written to {output}; check it with: stripemeter parity verify {output}")
    return 1 if document["verdict"] == "red" else 0


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        message = f"{path} can't be written: {error.strerror}"
        raise EngineError(message) from error


def _show(document: dict[str, Any]) -> None:
    """The chains as a table on stdout."""
    to = console()
    targets = {one["id"]: one for one in document["targets"]}
    columns = [*text_columns("customer", "metric"), Column("from", folds=False)]
    columns += number_columns("events", "counter", "adjusted", "total")
    columns += number_columns("billable", "pushed", "Stripe", "line")
    columns += [Column("verdict", folds=False), Column("why")]
    rows: list[Row] = []
    for chain in document["chains"]:
        mains = [targets.get(s["target"]) for s in chain["shares"] if s["role"] == "main"]
        target = next((one for one in mains if one is not None), None)
        cells = [
            chain["customerRef"],
            chain["metric"],
            chain["start"][:10],
            str(chain["events"]["count"]),
            chain["counter"][chain["aggregation"]],
            chain["adjustments"]["amount"],
            chain["total"],
            *(_target_cells(target) if target is not None else [""] * 4),
            chain["verdict"],
            (chain["reason"] or "")
            if target is None
            else (target["reason"] or chain["reason"] or ""),
        ]
        rows.append(Row(cells, _COLOURS.get(chain["verdict"], "")))
    if rows:
        print_table(columns, rows, to)
    place = document["log"]
    to.print(
        Text(f"{document['verdict']}", style=_COLOURS.get(document["verdict"], "")),
        Text(
            f"log {place['id'][:8]}, up to position {place['position']}, head {place['headHash'][:16]}"
        ),
    )


def _target_cells(target: dict[str, Any]) -> list[str]:
    projected, units = target["projected"], target["stripe"]["units"]
    line = "" if projected["amount"] is None else f"{projected['amount']} {projected['currency']}"
    return [target["billable"], target["pushed"], "unread" if units is None else units, line]


@command.command("verify")
@click.argument("file")
@click.option(
    "--log", "log_dir", metavar="DIR", help="Recount it from this data directory, or backup."
)
@click.option("--key", metavar="FILE", help="The public key that must have signed it, in hex.")
@json_option
def verify(*, file: str, log_dir: str | None, key: str | None, as_json: bool) -> int:
    r"""Check a certificate: its seals, signature and arithmetic; with --log every number, from the raw log.

    \b
    Examples:
      stripemeter parity verify parity.json
      stripemeter parity verify parity.json --log /backups/2026-02-01 --key parity.pub

    With --log the log is read twice: every record's checksum and chain first, then every event is counted again by
    code that shares nothing with the server's. Stop the server first, or check a backup. What Stripe held can't be
    recounted: the signature vouches for it.

    \b
    Exit codes:
      0  nothing differs
      1  something does: each line says where
    """
    try:
        document = parse(Path(file).read_bytes())
        public_key = None if key is None else Path(key).read_text().strip()
    except OSError as error:
        message = f"{error.filename} can't be read: {error.strerror}"
        raise EngineError(message) from error
    except (Unreadable, UnicodeError) as error:
        message = f"{file} is not a certificate: {error}"
        raise EngineError(message) from error
    directory = None if log_dir is None else DataDirectory(Path(log_dir).absolute())
    checked = check_certificate(document, directory, public_key)
    if as_json:
        print_json(checked)
    else:
        _show_checked(checked, document)
    return 0 if checked.ok else 1


def _show_checked(checked: Checked, document: dict[str, Any]) -> None:
    for problem in checked.problems:
        click.secho(f"wrong: {problem.where}: {problem.what}", fg="red")
    for note in checked.notes:
        click.secho(f"note: {note}", fg="yellow")
    if checked.ok:
        how = "recounted from the log" if checked.is_recounted else "whole, signed, and it adds up"
        chains = len(document["chains"])
        click.secho(f"{chains} chains: {how}; verdict {document['verdict']}", fg="green")


@command.command("key")
@data_dir_option()
@json_option
def show_key(*, data_dir: str | None, as_json: bool) -> None:
    r"""Print the public key that certificates and anchors are signed by: give it to whoever checks them.

    \b
    Examples:
      stripemeter parity key > parity.pub
      stripemeter parity key --data-dir /var/lib/stripemeter
    """
    settings = settings_for(data_dir)
    directory = DataDirectory(settings.data_path)
    if not directory.log_path.is_dir():
        message = f"there is no log in {directory.path}: name the data directory with --data-dir"
        raise EngineError(message)
    public_key = Signer(directory.signing_seed()).public_key
    if as_json:
        print_json({"publicKey": public_key})
    else:
        click.echo(public_key)
