"""When a change of where or how much is pushed takes effect, and what has to be recorded with it.

Rules it keeps: what was pushed stays explained, so a running period keeps its destination unless a cutover is asked for;
where nothing was ever pushed a change holds always, also for what was used before. It must not know Stripe or HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
import trio

from engine.actors.supervisor import Meter
from engine.core.billing import Destination, Unresolved
from engine.core.configured import Customer, Cutover, Mapping, PushEffect
from engine.core.periods import next_boundary
from engine.core.push_records import ROWS_PER_DECISION_MAX, PushDecision, Role, series_digest
from engine.core.push_routes import (
    STRIPE_CUSTOMER_PREFIX,
    CustomerRoute,
    customer_route,
    mapping_route,
)
from engine.core.push_uses import uses_of
from engine.core.shard_state import Series
from engine.core.times import INSTANT_US_MIN
from engine.errors import Conflict

UNFIT_SECONDS_MAX: Final = 3.0
_ROLES: Final[tuple[Role, Role]] = ("main", "shadow")
_Row = tuple[bytes, int, str]


async def refuse_unfit(meter: Meter, mapping: Mapping) -> None:
    """Raises Conflict for a meter that differences can't be pushed to, as far as Stripe says so in time.

    What can't be asked now, or is not there yet, is found out when it is pushed.
    """
    role: Role = "shadow" if mapping.shadow else "main"
    connection = meter.started.push.connections.get(role)
    route = mapping_route(mapping)
    if not mapping.active or not route.names_something or connection is None:
        return
    if connection.proven is None:
        return
    destination = Destination(
        route.driver, route.event_name, route.item, route.price, None, route.connect_account
    )
    with trio.move_on_after(UNFIT_SECONDS_MAX):
        found = await connection.billing.resolve(destination)
        if isinstance(found, Unresolved) and found.is_unfit:
            raise Conflict(found.reason)


class PushChange(NamedTuple):
    """What a change of a mapping or customer does to pushing."""

    effect: PushEffect | msgspec.UnsetType
    """For its record."""
    from_us: int | None
    """From when its destination holds; None: it is none, or always."""
    series: tuple[Series, ...] = ()
    """Whose use so far has to be frozen, for a cutover by `carry`."""


NOTHING = PushChange(msgspec.UNSET, None)


def of_mapping(meter: Meter, mapping: Mapping, cutover: Cutover | None, now_us: int) -> PushChange:
    """What putting a mapping does. Raises Conflict when its period can't be cut over any more."""
    if not mapping.active:
        return NOTHING
    tenant, metric = mapping.tenant_id, mapping.metric
    role: Role = "shadow" if mapping.shadow else "main"
    routes = meter.push.routes
    old, since_us = routes.mapping_entry(tenant, metric, role)
    if old is None or not _was_pushed(meter, role, {(tenant, metric)}, None):
        return NOTHING
    new = mapping_route(mapping)
    never_named = since_us == INSTANT_US_MIN and not old.names_something
    how_much = (old.driver, old.connect_account, old.scale)
    if never_named and how_much == (new.driver, new.connect_account, new.scale):
        return NOTHING  # What went by customers' own items goes on as it did; the rest had no destination.
    is_change = new != old or since_us > now_us
    if cutover is None or not is_change:
        # The boundary of a customer without an anchor: as aggregation and period have it, which may change with it.
        boundary_us = next_boundary(meter.rules.schedule(tenant, metric, ""), now_us)
        effect = PushEffect(from_us=boundary_us)
        return PushChange(effect, boundary_us if is_change else None)
    _check_not_final(meter, {(tenant, metric)}, None, now_us)
    series = tuple(series_of_metric(meter, tenant, metric)) if cutover == "carry" else ()
    return PushChange(PushEffect(from_us=now_us, cutover=cutover), now_us, series)


def of_customer(
    meter: Meter, customer: Customer, cutover: Cutover | None, now_us: int
) -> PushChange:
    """What putting a customer does. Raises Conflict when its period can't be cut over any more."""
    tenant, ref = customer.tenant_id, customer.customer_ref
    routes = meter.push.routes
    old, since_us = routes.customer_entry(tenant, ref)
    history = routes.customer_history(tenant, ref)
    known = {route.customer for route in history if route.customer is not None}
    if ref.startswith(STRIPE_CUSTOMER_PREFIX):
        known.add(ref)
    metrics = {metric for of, metric in routes.metrics() if of == tenant}
    of_metrics = {(tenant, metric) for metric in metrics}
    # Whose an item is only Stripe knows, so with items any customer of these metrics may have been this one.
    customers = None if any(route.items for route in history) else known
    if not any(_was_pushed(meter, role, of_metrics, customers) for role in _ROLES):
        return NOTHING
    new = customer_route(customer)
    if new.customer is None and not new.items:
        return NOTHING  # It is held at once (engine.core.push_totals), and its route stays.
    is_change = since_us > now_us or (old or CustomerRoute(None, ())) != new
    if cutover is None or not is_change:
        ends_us = _ends_of(meter, tenant, ref, metrics, now_us)
        return PushChange(
            PushEffect(from_us=now_us), max(ends_us, default=None) if is_change else None
        )
    _check_not_final(meter, of_metrics, customers, now_us)
    series = (
        tuple((tenant, metric, ref) for metric in sorted(metrics)) if cutover == "carry" else ()
    )
    return PushChange(PushEffect(from_us=now_us, cutover=cutover), now_us, series)


def _was_pushed(
    meter: Meter, role: Role, of_metrics: set[tuple[str, str]], customers: set[str] | None
) -> bool:
    """Whether anything was recorded for any of these (tenant, metric), of some Stripe customers or (None) any."""
    return any(
        lane.role == role
        and (customers is None or lane.lane.customer in customers)
        and not of_metrics.isdisjoint(lane.series)
        for lane in meter.push.ledger.lanes.values()
    )


def _check_not_final(
    meter: Meter, of_metrics: set[tuple[str, str]], customers: set[str] | None, now_us: int
) -> None:
    for lane in meter.push.ledger.lanes.values():
        if of_metrics.isdisjoint(lane.series):
            continue
        if customers is not None and lane.lane.customer not in customers:
            continue
        for state in lane.targets.values():
            is_running = state.target.start_us <= now_us < state.target.end_us
            if is_running and state.finalized_at_us is not None:
                raise Conflict(
                    f"the invoice of {lane.lane.customer} for the running period is final, so it can't be cut over: "
                    "leave cutover out, and the change holds from the next period"
                )


def _ends_of(
    meter: Meter, tenant: str, customer_ref: str, metrics: set[str], now_us: int
) -> Iterator[int]:
    """Ends of the running periods in which the customer has used these metrics."""
    shard, partition = meter.shard_of_customer(tenant, customer_ref)
    counters = shard.state.counters[partition]
    for metric in metrics:
        if (tenant, metric, customer_ref) in counters:
            schedule = meter.rules.schedule(tenant, metric, customer_ref)
            yield next_boundary(schedule, now_us)


def series_of_metric(meter: Meter, tenant: str, metric: str) -> Iterator[Series]:
    """Every customer's use of a metric; one may come twice."""
    for shard in meter.shards:
        for partition, counters in shard.state.counters.items():
            for series in counters:
                if series[:2] == (tenant, metric):
                    yield series
            for key in shard.state.adjustments[partition].counters():
                if key[:2] == (tenant, metric) and key[:3] not in counters:
                    yield key[:3]


async def frozen(meter: Meter, change: PushChange, actor: str) -> list[PushDecision]:
    """The decisions that say what each series had used when it was cut over; they go before the change's record.

    What is counted while this runs counts for the new destination: each series is read once, and the record says what.
    """
    if not change.series:
        return []
    assert isinstance(change.effect, PushEffect)
    at_us = change.effect.from_us
    rows: list[_Row] = []
    for number, series in enumerate(dict.fromkeys(change.series)):
        if number % 1000 == 999:
            await trio.lowlevel.checkpoint()
        shard, partition = meter.shard_of_customer(series[0], series[2])
        rows += [
            (series_digest(*series), use.start_us, str(use.micros))
            for use in uses_of(shard.state, meter.rules, partition, series)
            if use.start_us < at_us < use.end_us
        ]
    tenant, metric, _ = change.series[0]
    return [
        PushDecision(
            kind="freeze",
            actor=actor,
            at_us=at_us,
            rows=tuple(rows[first : first + ROWS_PER_DECISION_MAX]),
            tenant_id=tenant,
            metric=metric,
        )
        for first in range(0, len(rows), ROWS_PER_DECISION_MAX)
    ]
