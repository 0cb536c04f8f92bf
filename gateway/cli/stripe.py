"""`stripemeter stripe`: whether pushing would work here.

It must not know how anything is found out (gateway.stripe_check).
"""

from __future__ import annotations

import time
from typing import Final
from urllib.parse import urlencode

import trio
from rich.text import Text

from engine.actors.push_connections import NOT_ASKED
from engine.actors.supervisor import Meter
from engine.config import Settings
from engine.core.configured import Mapping
from engine.core.push_records import Role
from engine.drivers.billing import StripeBilling
from gateway.admin_client import AdminClient
from gateway.cli.pushes import listed
from gateway.data_directory import DataDirectory
from gateway.logging_setup import configure
from gateway.mapping_shapes import MappingList
from gateway.offline import run_offline
from gateway.pushes import PushList
from gateway.stripe_advice import advice
from gateway.stripe_check import (
    ANSWER_SECONDS_MAX,
    StripeCheck,
    check_mappings,
    connection_views,
    drivers_of,
    dry_run,
    problems_of,
    prove,
)
from gateway.system import SystemClock
from gateway.terminal.family import group
from gateway.terminal.options import (
    chosen_url,
    client_of,
    json_option,
    place_options,
    settings_for,
)
from gateway.terminal.output import Row, console, print_json, print_table, printable, text_columns
from wal.lmdb_file import DATA_NAME

PAGES_MAX: Final = 100
ASK_AGAIN_SECONDS: Final = 0.2


@group("stripe")
def command() -> None:
    r"""Look at Stripe with the keys that are set here.

    \b
    Examples:
      stripemeter stripe check
      stripemeter stripe check --json
    """


@command.command("check")
@place_options("mappings:read")
@json_option
def check(*, data_dir: str | None, url: str | None, api_key: str | None, as_json: bool) -> int:
    r"""Say whether the keys work and whose they are, which mappings resolve, and what would be pushed.

    Sends no usage. A running server is asked what is due; without one the log of the data directory is read.

    \b
    Examples:
      stripemeter stripe check
      STRIPE_SECRET_KEY=sk_test_... stripemeter stripe check --data-dir /var/lib/stripemeter

    \b
    Exit codes:
      0  everything would be pushed
      1  a problem was found: a key, a mapping, usage that goes nowhere, a decision that waits
    """
    settings = settings_for(data_dir)
    url = chosen_url(url, data_dir)
    configure("error", settings.log_format)
    found = examine(settings, url, api_key, is_directory=data_dir is not None)
    if as_json:
        print_json(found)
    else:
        _show(found)
    return 1 if found.problems else 0


def examine(
    settings: Settings, url: str | None, api_key: str | None, *, is_directory: bool
) -> StripeCheck:
    """All that can be found out from here."""
    found = StripeCheck(
        simulator=settings.uses_simulator,
        connections=[],
        mappings=[],
        pushes=[],
        unroutable=[],
        problems=[],
        notes=advice(settings),
    )
    directory = DataDirectory(settings.data_path)
    has_log = (directory.log_path / DATA_NAME).exists()
    if url is not None or (not is_directory and directory.holder_pid() is not None):
        _of_server(found, settings, client_of(url, api_key))
    elif has_log:
        _of_directory(found, settings)
    else:
        trio.run(_prove_alone, found, drivers_of(settings))
        found.notes.append(f"there is no log in {directory.path} yet: nothing is mapped")
    found.problems = problems_of(found)
    return found


def _of_server(found: StripeCheck, settings: Settings, client: AdminClient) -> None:
    pushes = _of_keys_asked_about(client)
    found.connections = pushes.connections
    found.simulator = any(one.is_simulator for one in pushes.connections)
    found.pushes = [
        one for one in pushes.pushes if one.needs_person or bytes(one.due).decode() != "0"
    ]
    found.unroutable = pushes.unroutable
    drivers = drivers_of(settings)
    if drivers:
        mappings = _mappings_of(client)
        trio.run(_resolve, found, drivers, mappings)


def _of_keys_asked_about(client: AdminClient) -> PushList:
    """What the server lists, once Stripe has said something of each key: a server that started just now has yet to ask."""
    until = time.monotonic() + ANSWER_SECONDS_MAX
    while True:
        pushes = listed(client)
        if all(one.error != NOT_ASKED for one in pushes.connections) or time.monotonic() >= until:
            return pushes
        time.sleep(ASK_AGAIN_SECONDS)


def _mappings_of(client: AdminClient) -> list[Mapping]:
    found: list[Mapping] = []
    query = {"active": "true", "limit": "100"}
    for _ in range(PAGES_MAX):
        page = client.ask("GET", f"/v1/mappings?{urlencode(query)}", MappingList)
        found += [
            Mapping(
                id=one.id,
                tenant_id=one.tenant_id,
                metric=one.metric,
                driver=one.driver,
                stripe_account=one.stripe_account,
                price_id=one.price_id,
                subscription_item_id=one.subscription_item_id,
                meter_event_name=one.meter_event_name,
                shadow=one.shadow,
                shadow_stripe_account=one.shadow_stripe_account,
                shadow_price_id=one.shadow_price_id,
                shadow_subscription_item_id=one.shadow_subscription_item_id,
                shadow_meter_event_name=one.shadow_meter_event_name,
            )
            for one in page.mappings
        ]
        if page.next_cursor is None:
            break
        query["cursor"] = page.next_cursor
    return found


async def _resolve(
    found: StripeCheck, drivers: dict[Role, StripeBilling], mappings: list[Mapping]
) -> None:
    connections = await prove(drivers, SystemClock())
    found.mappings = await check_mappings(connections, mappings)
    for driver in drivers.values():
        await driver.aclose()


async def _prove_alone(found: StripeCheck, drivers: dict[Role, StripeBilling]) -> None:
    found.connections = connection_views(await prove(drivers, SystemClock()))
    for driver in drivers.values():
        await driver.aclose()


def _of_directory(found: StripeCheck, settings: Settings) -> None:
    drivers = drivers_of(settings)

    async def work(meter: Meter) -> None:
        found.pushes, found.unroutable = await dry_run(meter)
        connections = meter.started.push.connections
        found.connections = connection_views(connections)
        active = [one for one in meter.registry.mappings.values() if one.active]
        found.mappings = await check_mappings(connections, active)
        for driver in drivers.values():
            await driver.aclose()

    if found.simulator:
        found.notes.append("start the server to see what would be pushed to its simulator")
        return
    run_offline(settings, work, is_read_only=True, billing=drivers)


def _show(found: StripeCheck) -> None:
    to = console()
    if found.simulator:
        to.print(Text("a Stripe simulator is used, not Stripe: no money moves"))
    for one in found.connections:
        state = "not known yet" if one.error == NOT_ASKED else "does not work"
        if one.account:
            state = f"account {one.account}, {one.mode}"
        to.print(Text(f"key of {one.role}: {state}"))
    if found.mappings:
        rows: list[Row] = []
        for mapping in found.mappings:
            resolves = {True: "yes", False: "NO", None: "-"}[mapping.resolves]
            name = f"{mapping.tenant_id} / {mapping.metric}"
            rows.append(Row((name, mapping.role, resolves, mapping.detail)))
        print_table(text_columns("mapping", "role", "resolves", "at Stripe"), rows, to)
    due = [one for one in found.pushes if bytes(one.due) != b"0"]
    to.print(Text(f"would be pushed: {len(due)} targets"))
    for target in due[:20]:
        units = bytes(target.due).decode()
        name = f"{target.tenant_id} / {target.metric}, {target.stripe_customer_id}"
        to.print(
            Text(printable(f"  {units} to {target.stripe_object} ({name}): {target.standing}"))
        )
    for note in found.notes:
        to.print(Text(f"note: {note}"), soft_wrap=True)
    for problem in found.problems:
        to.print(Text(printable(f"problem: {problem}"), style="bold red"), soft_wrap=True)
    if not found.problems:
        to.print(Text("no problem found", style="green"))
