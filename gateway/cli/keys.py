"""`stripemeter keys`: make, list, rotate and revoke API keys; on the directory of a stopped server, or over HTTP.

Rules it keeps: a key's text goes to stdout alone, once; what to do next goes to stderr. It must not know how a key
is made or where it is kept (gateway.key_store).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.core.api_keys import SCOPES
from engine.core.times import TimeError, parse_instant
from engine.errors import Refused
from gateway.api_keys import ApiKeyView, NewApiKey
from gateway.environment import read_settings
from gateway.key_store import KeyStore, open_key_store

_WIDTH_WITHOUT_TERMINAL = 160
CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def _where(function: CommandT) -> CommandT:
    """The options that every one of these commands has."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "--api-key",
            metavar="KEY",
            help="With HTTP: a key with scope admin (STRIPEMETER_ADMIN_KEY).",
        ),
        click.option("--url", metavar="URL", help="Ask the server there, instead of a directory."),
        click.option(
            "--data-dir", metavar="DIR", help="The data directory (STRIPEMETER_DATA_DIR)."
        ),
    ):
        function = option(function)
    return function


@contextmanager
def _store(data_dir: str | None, url: str | None, api_key: str | None) -> Iterator[KeyStore]:
    settings = read_settings({"STRIPEMETER_DATA_DIR": data_dir} if data_dir else {})
    try:
        with open_key_store(settings, url=url, api_key=api_key) as store:
            yield store
    except Refused as error:
        fields = "; ".join(f"{field} {message}" for field, message in error.errors)
        raise Refused(f"{error}: {fields}" if fields else str(error)) from error


@click.group("keys", short_help="Make, list, rotate and revoke API keys.")
def command() -> None:
    r"""Make, list, rotate and revoke API keys.

    \b
    Examples:
      stripemeter keys create --tenant acme --name backend --scope events:write --scope usage:read
      stripemeter keys list
      stripemeter keys rotate key_0123456789abcdef
      stripemeter keys create --tenant acme --name ops --scope admin --url http://127.0.0.1:3000

    Without a server they work on the data directory; while a server has it, or with --url, they ask that server over
    HTTP, with a key that has scope admin. A key's text is shown once: only a hash of it is kept.
    """


@command.command("create")
@click.option("--tenant", required=True, help="The tenant that the key works for.")
@click.option("--name", required=True, help="A name for people.")
@click.option(
    "--scope",
    "scopes",
    required=True,
    multiple=True,
    type=click.Choice(sorted(SCOPES)),
    metavar="SCOPE",
    help="What it may do, such as events:write, project:read, admin; may be repeated.",
)
@click.option("--expires-at", metavar="TIME", help="Until when it works; ISO 8601.")
@_where
def create(
    *,
    tenant: str,
    name: str,
    scopes: tuple[str, ...],
    expires_at: str | None,
    data_dir: str | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Make a key and print it, this once."""
    if expires_at is not None:
        try:
            parse_instant(expires_at)
        except TimeError as error:
            raise click.BadParameter(str(error), param_hint="--expires-at") from error
    with _store(data_dir, url, api_key) as store:
        _show_new(store.create(name, tenant, scopes, expires_at), as_json=as_json)


@command.command("list")
@click.option("--tenant", help="Only this tenant's.")
@_where
def list_keys(
    tenant: str | None, data_dir: str | None, url: str | None, api_key: str | None, *, as_json: bool
) -> None:
    """List keys, without their secrets."""
    with _store(data_dir, url, api_key) as store:
        keys = store.list(tenant)
    if as_json:
        click.echo(_json(keys))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("id", "prefix", "tenant", "name", "scopes", "created", "state"):
        table.add_column(column, overflow="fold")
    for key in keys:
        cells = (key.id, key.prefix, key.tenant_id, key.name, ", ".join(key.scopes))
        table.add_row(*map(Text, cells), key.created_at, _state(key))
    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    Console(file=sys.stdout, highlight=False, width=width).print(table)


@command.command("rotate")
@click.argument("key_id", metavar="ID")
@_where
def rotate(
    key_id: str, data_dir: str | None, url: str | None, api_key: str | None, *, as_json: bool
) -> None:
    """Give a key another text and print it, this once; the old one stops working."""
    with _store(data_dir, url, api_key) as store:
        _show_new(store.rotate(key_id), as_json=as_json)


@command.command("revoke")
@click.argument("key_id", metavar="ID")
@_where
def revoke(
    key_id: str, data_dir: str | None, url: str | None, api_key: str | None, *, as_json: bool
) -> None:
    """End a key for good."""
    with _store(data_dir, url, api_key) as store:
        key = store.revoke(key_id)
    click.echo(_json(key) if as_json else f"{key.id} ({key.name}) was revoked at {key.revoked_at}")


def _state(key: ApiKeyView) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at}"
    return "active" if key.expires_at is None else f"until {key.expires_at}"


def _show_new(key: NewApiKey, *, as_json: bool) -> None:
    if as_json:
        click.echo(_json(key))
        return
    click.echo(key.key)
    click.echo(
        f"{key.id} of tenant {key.tenant_id}, {', '.join(key.scopes)}. Keep it now: it is not shown again.",
        err=True,
    )


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()
