"""`stripemeter parity`: get a certificate of a running server, check one, show the key that signs.

Rules it keeps: a certificate goes to stdout or a file byte for byte as it was signed; what a check finds is one line a
place. It must not know how a certificate is made, nor how one is checked.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.core.times import format_instant
from engine.errors import EngineError
from engine.witness.canonical import Signer, Unreadable, parse
from gateway.admin_client import AdminClient, url_of
from gateway.data_directory import DataDirectory
from gateway.environment import read_settings
from gateway.parity_check import Checked, check_certificate
from gateway.system import SystemClock

SECONDS_MAX: Final = 60
_WIDTH_WITHOUT_TERMINAL: Final = 160
_COLOURS: Final = {"green": "green", "waiting": "yellow", "red": "bold red"}


@click.group("parity", invoke_without_command=True, short_help="Prove what Stripe will bill.")
@click.option("--period", metavar="YYYY-MM", help="The month in which the periods begin: now's.")
@click.option("--tenant", help="The tenant; a tenant's own API key needs none.")
@click.option("--customer", help="Only this customer, and whoever shares its Stripe customer.")
@click.option("--json", "as_json", is_flag=True, help="Print the certificate itself.")
@click.option("--output", "-o", metavar="FILE", help="Write the certificate to a file.")
@click.option("--max-age", metavar="SECONDS", type=click.IntRange(0, 86_400), default=300,
              show_default=True, help="Read Stripe anew where it was read longer ago.")  # fmt: skip
@click.option(
    "--url", metavar="URL", envvar="STRIPEMETER_URL", help="The server (STRIPEMETER_URL)."
)
@click.option("--api-key", metavar="KEY", envvar="STRIPEMETER_API_KEY",
              help="A key with the scope reconciliation:read (STRIPEMETER_API_KEY).")  # fmt: skip
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

    \b
    Exit codes:
      0  green, or nothing is billed; or it settles by itself
      1  red: somebody must look; or the server could not be asked
    """
    if ctx.invoked_subcommand is not None:
        return 0
    settings = read_settings()
    month = period or format_instant(SystemClock().now_us())[:7]
    query: dict[str, Any] = {"maxAgeSeconds": max_age}
    query |= {"tenantId": tenant} if tenant is not None else {}
    query |= {"customerRef": customer} if customer is not None else {}
    client = AdminClient(url or url_of(settings), api_key or settings.admin_key)
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
    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    console = Console(file=sys.stdout, highlight=False, width=width)
    targets = {one["id"]: one for one in document["targets"]}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("customer", "metric", "from"):
        table.add_column(name, overflow="fold")
    for name in ("events", "counter", "adjusted", "total", "billable", "pushed", "Stripe", "line"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("verdict")
    table.add_column("why", overflow="fold")
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
        table.add_row(*map(Text, cells), style=_COLOURS.get(chain["verdict"], ""))
    console.print(table)
    place = document["log"]
    console.print(
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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(*, file: str, log_dir: str | None, key: str | None, as_json: bool) -> int:
    r"""Check a certificate: its seals, signature and arithmetic; with --log every number, from the raw log.

    \b
    Examples:
      stripemeter parity verify parity.json
      stripemeter parity verify parity.json --log /backups/2026-02-01 --key parity.pub

    With --log the log is read twice: every record's checksum and chain first, then every event is counted again by
    code that shares nothing with the server's. Stop the server first, or check a backup. What Stripe held can't be
    recounted: the signature vouches for it. Exit code 1 when anything differs; each line says where.
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
        click.echo(msgspec.json.format(msgspec.json.encode(checked)).decode())
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
@click.option("--data-dir", metavar="DIR", help="The data directory (STRIPEMETER_DATA_DIR).")
def show_key(*, data_dir: str | None) -> None:
    """Print the public key that certificates and anchors are signed by: give it to whoever checks them."""
    settings = read_settings({"STRIPEMETER_DATA_DIR": data_dir} if data_dir else {})
    directory = DataDirectory(settings.data_path)
    if not directory.log_path.is_dir():
        message = f"there is no log in {directory.path}: name the data directory with --data-dir"
        raise EngineError(message)
    click.echo(Signer(directory.signing_seed()).public_key)
