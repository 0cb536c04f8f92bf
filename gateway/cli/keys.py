"""`stripemeter keys`: make, list, rotate and revoke API keys; on the directory of a stopped server, or over HTTP.

Rules it keeps: a key's text goes to stdout alone, once; what to do next goes to stderr. It must not know how a key
is made or where it is kept (gateway.key_store).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from engine.core.api_keys import SCOPES
from engine.core.times import TimeError, parse_instant
from engine.errors import Refused
from gateway.api_keys import ApiKeyView, NewApiKey
from gateway.key_store import KeyStore, open_key_store
from gateway.terminal.family import group
from gateway.terminal.options import (
    all_of,
    chosen_url,
    json_option,
    place_options,
    settings_for,
)
from gateway.terminal.output import (
    Column,
    Row,
    note,
    print_json,
    print_table,
    text_columns,
)

_where = all_of(place_options("admin"), json_option)


@contextmanager
def _store(data_dir: str | None, url: str | None, api_key: str | None) -> Iterator[KeyStore]:
    settings = settings_for(data_dir)
    try:
        with open_key_store(settings, url=chosen_url(url, data_dir), api_key=api_key) as store:
            yield store
    except Refused as error:
        fields = "; ".join(f"{field} {message}" for field, message in error.errors)
        raise Refused(f"{error}: {fields}" if fields else str(error)) from error


@group("keys")
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
@click.option("--tenant", metavar="ID", required=True, help="The tenant that the key works for.")
@click.option("--name", metavar="NAME", required=True, help="A name for people.")
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
    r"""Make a key and print it, this once.

    \b
    Examples:
      stripemeter keys create --tenant acme --name backend --scope events:write --scope usage:read
      stripemeter keys create --tenant acme --name ops --scope project:write --expires-at 2027-01-01T00:00:00Z
    """
    if expires_at is not None:
        try:
            parse_instant(expires_at)
        except TimeError as error:
            raise click.BadParameter(str(error), param_hint="--expires-at") from error
    with _store(data_dir, url, api_key) as store:
        _show_new(store.create(name, tenant, scopes, expires_at), as_json=as_json)


@command.command("list")
@click.option("--tenant", metavar="ID", help="Only this tenant's.")
@_where
def list_keys(
    tenant: str | None, data_dir: str | None, url: str | None, api_key: str | None, *, as_json: bool
) -> None:
    r"""List keys, without their secrets.

    \b
    Examples:
      stripemeter keys list
      stripemeter keys list --tenant acme --json
    """
    with _store(data_dir, url, api_key) as store:
        keys = store.list(tenant)
    if as_json:
        print_json(keys)
        return
    columns = [Column("id", folds=False), Column("prefix", folds=False)]
    columns += text_columns("tenant", "name", "scopes", "created", "state")
    rows = []
    for key in keys:
        cells = (key.id, key.prefix, key.tenant_id, key.name, ", ".join(key.scopes))
        rows.append(Row((*cells, key.created_at, _state(key))))
    if rows:
        print_table(columns, rows)
    note(f"{len(rows)} keys")


@command.command("rotate")
@click.argument("key_id", metavar="ID")
@_where
def rotate(
    key_id: str, data_dir: str | None, url: str | None, api_key: str | None, *, as_json: bool
) -> None:
    r"""Give a key another text and print it, this once; the old one stops working.

    \b
    Examples:
      stripemeter keys rotate key_0123456789abcdef
    """
    with _store(data_dir, url, api_key) as store:
        _show_new(store.rotate(key_id), as_json=as_json)


@command.command("revoke")
@click.argument("key_id", metavar="ID")
@_where
def revoke(
    key_id: str, data_dir: str | None, url: str | None, api_key: str | None, *, as_json: bool
) -> None:
    r"""End a key for good.

    \b
    Examples:
      stripemeter keys revoke key_0123456789abcdef
    """
    with _store(data_dir, url, api_key) as store:
        key = store.revoke(key_id)
    if as_json:
        print_json(key)
    else:
        click.echo(f"{key.id} ({key.name}) was revoked at {key.revoked_at}")


def _state(key: ApiKeyView) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at}"
    return "active" if key.expires_at is None else f"until {key.expires_at}"


def _show_new(key: NewApiKey, *, as_json: bool) -> None:
    if as_json:
        print_json(key)
        return
    click.echo(key.key)
    click.echo(
        f"{key.id} of tenant {key.tenant_id}, {', '.join(key.scopes)}. Keep it now: it is not shown again.",
        err=True,
    )
