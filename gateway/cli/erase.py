"""`stripemeter erase`: take a customer's name out of everything, in a stopped directory or through a running server.

It must not know how: the engine's actors do it, here or behind HTTP.
"""

from __future__ import annotations

import time
from urllib.parse import quote

import click

from engine.actors.supervisor import Meter
from engine.config import Settings
from engine.errors import EngineError, NotFound
from gateway.admin_client import AdminClient, url_of
from gateway.auth import pepper_of
from gateway.data_directory import DataDirectory
from gateway.environment import read_settings
from gateway.keeping import ErasureView
from gateway.logging_setup import configure
from gateway.offline import run_offline

_ACTOR = "cli"
_POLL_SECONDS = 0.2
_HTTP_SECONDS_MAX = 120


@click.command("erase", short_help="Erase a customer's name; totals stay.")
@click.option("--tenant", required=True, help="Whose customer.")
@click.option("--customer", help="The customerRef to erase.")
@click.option("--all", "everyone", is_flag=True, help="Every customer: the tenant departs.")
@click.option("--pseudonym", is_flag=True, help="Use an id that name and pepper give again.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--url", metavar="URL", help="Ask the server there, instead of a directory.")
@click.option("--api-key", metavar="KEY", help="A key with scope admin (STRIPEMETER_ADMIN_KEY).")
@click.option("--data-dir", metavar="DIR", help="The data directory (STRIPEMETER_DATA_DIR).")
def command(
    *,
    tenant: str,
    customer: str | None,
    everyone: bool,
    pseudonym: bool,
    yes: bool,
    url: str | None,
    api_key: str | None,
    data_dir: str | None,
) -> int:
    r"""Erase a customer's name, keys, resources, meta and notes from log, archives, snapshots and indexes.

    \b
    Examples:
      stripemeter erase --tenant acme --customer cus_anna
      stripemeter erase --tenant acme --customer cus_anna --pseudonym
      stripemeter erase --tenant acme --all --yes

    No total changes: the usage stays under an id that takes the name's place. A retry of an erased event is still a
    duplicate. On a stopped server's directory the log's file is compacted at the end, so that nothing is left in it;
    a running server does that at its next start. Backups made before still hold the name. It can't be undone.
    """
    if everyone == (customer is not None):
        raise click.UsageError("give --customer, or --all")
    who = f"customer {customer!r}" if customer is not None else "every customer"
    if not yes:
        click.confirm(f"Erase {who} of tenant {tenant!r} for good?", abort=True, err=True)
    settings = read_settings({"STRIPEMETER_DATA_DIR": data_dir} if data_dir else {})
    directory = DataDirectory(settings.data_path)
    if url is None and directory.holder_pid() is None:
        return _erase_offline(settings, directory, tenant, customer, pseudonym=pseudonym)
    client = AdminClient(url or url_of(settings), api_key or settings.admin_key)
    body = {"tenantId": tenant, "as": "pseudonym" if pseudonym else "tombstone"}
    asked = body | ({"all": True} if customer is None else {"customerRef": customer})
    begun = client.ask(
        "POST", "/v1/admin/erasures", ErasureView, asked, seconds_max=_HTTP_SECONDS_MAX
    )
    path = f"/v1/admin/erasures/{quote(begun.erasure_id)}?tenantId={quote(tenant)}"
    while (now := client.ask("GET", path, ErasureView)).status != "completed":
        if now.error is not None:
            raise EngineError(
                f"the erasure waits: {now.error}; the server goes on with it by itself"
            )
        time.sleep(_POLL_SECONDS)
    _show(begun.customers or 0, begun.pseudonym)
    click.echo("free pages of the log's file are cleared at the server's next start", err=True)
    return 0


def _erase_offline(
    settings: Settings,
    directory: DataDirectory,
    tenant: str,
    customer: str | None,
    *,
    pseudonym: bool,
) -> int:
    configure("warning", settings.log_format)
    secret = pepper_of(settings.key_pepper, directory.pepper) if pseudonym else None

    async def work(meter: Meter) -> dict[str, str]:
        eraser = meter.started.eraser
        cut_short = [one.id for one in meter.registry.erasures.values() if one.tenant_id == tenant]
        for erasure_id in cut_short:
            await eraser.ended(erasure_id)
        names = eraser.customers_of(tenant) if customer is None else [customer]
        try:
            begun = await eraser.begin(tenant, names, secret=secret, actor=_ACTOR, request_id=None)
        except NotFound:
            if not cut_short:
                raise
            return {}  # it was this one that had been cut short
        await eraser.ended(begun.erasure_id)
        return begun.names

    names, compaction = run_offline(settings, work)
    if names:
        _show(len(names), next(iter(names.values())) if len(names) == 1 else None)
    else:
        click.echo("an erasure that was cut short is done now")
    if compaction is not None:
        click.echo(compaction)
    return 0


def _show(customers: int, pseudonym: str | None) -> None:
    goes_by = f"; the usage is under {pseudonym}" if pseudonym is not None else ""
    click.echo(f"erased {customers:,} customer{'' if customers == 1 else 's'}{goes_by}")
