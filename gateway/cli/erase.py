"""`stripemeter erase`: take a customer's name out of everything, in a stopped directory or through a running server.

It must not know how: the engine's actors do it, here or behind HTTP.
"""

from __future__ import annotations

import time
from urllib.parse import quote

import click
import msgspec

from engine.actors.supervisor import Meter
from engine.config import Settings
from engine.errors import EngineError, NotFound
from gateway.auth import pepper_of
from gateway.data_directory import DataDirectory
from gateway.keeping import ErasureView
from gateway.logging_setup import configure
from gateway.offline import run_offline
from gateway.progress import waiting
from gateway.terminal.options import (
    chosen_url,
    client_of,
    json_option,
    place_options,
    settings_for,
    yes_option,
)
from gateway.terminal.output import is_confirmed, note, print_json

_ACTOR = "cli"
_POLL_SECONDS = 0.2
_HTTP_SECONDS_MAX = 120


class Erased(msgspec.Struct, rename="camel", omit_defaults=True):
    """What was erased. `customers` 0: only an erasure that had been cut short was done to its end."""

    customers: int
    pseudonym: str | None = None
    compaction: str | None = None
    """What became of the log's file."""


@click.command("erase")
@click.option("--tenant", metavar="ID", required=True, help="Whose customer.")
@click.option("--customer", metavar="REF", help="The customer to erase.")
@click.option("--all", "everyone", is_flag=True, help="Every customer: the tenant departs.")
@click.option("--pseudonym", is_flag=True, help="Use an id that name and pepper give again.")
@yes_option
@place_options("admin")
@json_option
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
    as_json: bool,
) -> int:
    r"""Erase a customer's name, keys, resources, meta and notes from log, archives, snapshots and indexes.

    \b
    Examples:
      stripemeter erase --tenant acme --customer cus_anna
      stripemeter erase --tenant acme --customer cus_anna --pseudonym
      stripemeter erase --tenant acme --all --yes

    No total changes: the usage stays under an id that takes the name's place. A retry of an erased event is still a
    duplicate. On a stopped server's directory the log's file is compacted at the end, so that nothing is left in it;
    a running server does that at its next start. Whose usage is pushed to Stripe is erased through the running server
    alone, which knows where to: what was billed stays. Backups made before still hold the name. It can't be undone.
    """
    if everyone == (customer is not None):
        raise click.UsageError("give --customer, or --all")
    who = f"customer {customer!r}" if customer is not None else "every customer"
    if not yes and not is_confirmed(f"Erase {who} of tenant {tenant!r} for good?"):
        return 1
    settings = settings_for(data_dir)
    url = chosen_url(url, data_dir)
    directory = DataDirectory(settings.data_path)
    if url is None and directory.holder_pid() is None:
        erased = _erase_offline(settings, directory, tenant, customer, pseudonym=pseudonym)
        _show(erased, as_json=as_json)
        return 0
    client = client_of(url, api_key, settings)
    body = {"tenantId": tenant, "as": "pseudonym" if pseudonym else "tombstone"}
    asked = body | ({"all": True} if customer is None else {"customerRef": customer})
    begun = client.ask(
        "POST", "/v1/admin/erasures", ErasureView, asked, seconds_max=_HTTP_SECONDS_MAX
    )
    path = f"/v1/admin/erasures/{quote(begun.erasure_id)}?tenantId={quote(tenant)}"
    with waiting("erasing"):
        while (now := client.ask("GET", path, ErasureView)).status != "completed":
            if now.error is not None:
                raise EngineError(
                    f"the erasure waits: {now.error}; the server goes on with it by itself"
                )
            time.sleep(_POLL_SECONDS)
    _show(Erased(begun.customers or 0, begun.pseudonym), as_json=as_json)
    note("free pages of the log's file are cleared at the server's next start")
    return 0


def _erase_offline(
    settings: Settings,
    directory: DataDirectory,
    tenant: str,
    customer: str | None,
    *,
    pseudonym: bool,
) -> Erased:
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

    with waiting("erasing"):
        names, compaction = run_offline(settings, work)
    only = next(iter(names.values())) if len(names) == 1 else None
    return Erased(len(names), only, None if compaction is None else str(compaction))


def _show(erased: Erased, *, as_json: bool) -> None:
    if as_json:
        print_json(erased)
        return
    if erased.customers:
        goes_by = f"; the usage is under {erased.pseudonym}" if erased.pseudonym is not None else ""
        plural = "" if erased.customers == 1 else "s"
        click.echo(f"erased {erased.customers:,} customer{plural}{goes_by}")
    else:
        click.echo("an erasure that was cut short is done now")
    if erased.compaction is not None:
        click.echo(erased.compaction)
