"""Whether pushing would work here: the keys, what each mapping is at Stripe, and what would be pushed. Sends no usage.

Rules it keeps: Stripe is only read; a key is never in what comes out; a directory's log is opened read-only. It must
not know how the result is shown (gateway/cli/stripe.py).
"""

from __future__ import annotations

from collections.abc import Mapping as Ways
from collections.abc import Sequence
from random import Random
from typing import Final

import msgspec
import trio

from engine.actors.push_connections import Connection
from engine.actors.supervisor import Meter
from engine.config import Settings
from engine.core.billing import Destination, Resolved
from engine.core.configured import Mapping
from engine.core.push_records import Role
from engine.core.push_routes import mapping_route
from engine.drivers.billing import StripeBilling
from engine.drivers.calls import API_BASE, METER_EVENTS_BASE
from engine.ports import Billing, Clock
from gateway.push_nowhere import usage_that_goes_nowhere
from gateway.push_shapes import ConnectionView, PushView, Unroutable, connection_view, push_view

ANSWER_SECONDS_MAX: Final = 20
MAPPINGS_MAX: Final = 1_000
"""Mappings that Stripe is asked about in one check."""


class MappingCheck(msgspec.Struct, rename="camel", kw_only=True):
    """An active mapping as Stripe sees it. `resolves` null: it could not be asked."""

    tenant_id: str
    metric: str
    role: Role
    resolves: bool | None
    detail: str


class StripeCheck(msgspec.Struct, rename="camel", kw_only=True):
    """All that was found. `problems` empty: all is well."""

    simulator: bool
    connections: list[ConnectionView]
    mappings: list[MappingCheck]
    pushes: list[PushView]
    """Targets to which something is due: what would be pushed."""
    unroutable: list[Unroutable]
    problems: list[str]
    notes: list[str]


def drivers_of(settings: Settings) -> dict[Role, StripeBilling]:
    """A driver for each key that is set; none with the simulator, since then no key is used."""
    if settings.uses_simulator:
        return {}
    keys: tuple[tuple[Role, str | None], ...] = (
        ("main", settings.stripe_secret_key),
        ("shadow", settings.stripe_test_secret_key),
    )
    return {
        role: StripeBilling(
            key,
            api_base=settings.stripe_api_base or API_BASE,
            meter_events_base=settings.stripe_meter_events_base or METER_EVENTS_BASE,
        )
        for role, key in keys
        if key is not None
    }


async def prove(billing: Ways[Role, Billing], clock: Clock) -> dict[Role, Connection]:
    """Each key asked whose it is, for at most ANSWER_SECONDS_MAX."""
    found: dict[Role, Connection] = {
        role: Connection(role, one, clock, Random(0)) for role, one in billing.items()
    }
    with trio.move_on_after(ANSWER_SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            for connection in found.values():
                nursery.start_soon(connection.prove)
    return found


async def check_mappings(
    connections: dict[Role, Connection], mappings: Sequence[Mapping]
) -> list[MappingCheck]:
    """What each active mapping names, as Stripe describes it."""
    checks = []
    for mapping in mappings[:MAPPINGS_MAX]:
        role: Role = "shadow" if mapping.shadow else "main"
        check = MappingCheck(
            tenant_id=mapping.tenant_id, metric=mapping.metric, role=role, resolves=None, detail=""
        )
        connection = connections.get(role)
        await _check_mapping(check, mapping, connection)
        checks.append(check)
    return checks


async def _check_mapping(
    check: MappingCheck, mapping: Mapping, connection: Connection | None
) -> None:
    route = mapping_route(mapping)
    if connection is None or connection.proven is None:
        check.detail = "no key that works for it"
    elif not route.names_something:
        check.detail = "names nothing itself: customers' own subscriptionItems say where it goes"
    else:
        destination = Destination(
            driver=route.driver,
            event_name=route.event_name if route.item is None else None,
            item=route.item,
            price=route.price if route.item is None and route.event_name is None else None,
            connect_account=route.connect_account,
        )
        answer = await connection.billing.resolve(destination)
        if isinstance(answer, Resolved):
            check.resolves = True
            check.detail = (
                f"{answer.object_id}{f' ({answer.event_name})' if answer.event_name else ''}"
            )
        else:
            check.resolves = None if answer.is_temporary else False
            check.detail = answer.reason


async def dry_run(meter: Meter) -> tuple[list[PushView], list[Unroutable]]:
    """What a read-only meter would push: its totals against its ledger, with Stripe asked where usage goes."""
    started = meter.started
    pusher = started.push
    with trio.move_on_after(ANSWER_SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            for connection in pusher.connections.values():
                nursery.start_soon(connection.prove)
    pusher.changes.map_everything()
    await pusher.look()
    for role, destination in pusher.totals.unresolved():
        connection = pusher.connections[role]
        if connection.proven is not None:
            await connection.resolve(destination)
            for series in pusher.totals.resolved(role, destination):
                pusher.changes.add(series)
    await pusher.look()
    reports = await started.pusher.targets(None)
    nowhere = usage_that_goes_nowhere(meter, None)
    due = [one for one in reports if one.due != 0 or one.needs_person]
    return [push_view(one, as_string=False) for one in due], nowhere


def connection_views(connections: dict[Role, Connection]) -> list[ConnectionView]:
    """The keys as they may be shown."""
    return [connection_view(role, one.report()) for role, one in connections.items()]


def problems_of(check: StripeCheck) -> list[str]:
    """Everything that stands in the way, one line each."""
    found = [f"{one.role}: {one.error}" for one in check.connections if one.error is not None]
    if not check.connections and not check.simulator:
        found.append("no Stripe key is set, and the simulator is off: nothing is pushed")
    found += [
        f"mapping {one.tenant_id} / {one.metric}: {one.detail}"
        for one in check.mappings
        if one.resolves is False
    ]
    found += [
        f"goes nowhere: {one.tenant_id} / {one.customer_ref} / {one.metric}: {one.reason}"
        for one in check.unroutable
    ]
    found += [
        f"{one.id} ({one.metric} of {one.stripe_customer_id}) is {one.standing.replace('_', ' ')}: "
        f"{one.reason or one.last_error or 'somebody has to decide'}"
        for one in check.pushes
        if one.needs_person
    ]
    return found
