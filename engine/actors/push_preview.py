"""What a change of a mapping or customer would make pushing send: worked out beside the pusher, nothing is changed.

Rules it keeps: the same folds and sums as the pusher's own, over a copy of the routes, so that a preview and what
follows can't differ; Stripe is asked about new destinations, and nothing is sent. It must not know HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import trio

from engine.actors.push_effects import series_of_metric
from engine.actors.pusher import Pusher
from engine.actors.supervisor import Meter
from engine.core.billing import Destination, Resolved, Unresolved
from engine.core.configured import CustomerChange, MappingChange
from engine.core.push_ledger import PushLedger
from engine.core.push_plan import billable_units
from engine.core.push_records import PushDecision, Role, Target, target_id
from engine.core.push_routes import PushRoutes
from engine.core.push_totals import PushTotals
from engine.core.push_uses import uses_of
from engine.core.shard_state import Series

ASKED_MAX: Final = 100
"""New destinations that Stripe is asked about for one preview."""
ROWS_MAX: Final = 1_000
_NO_KEY: Final = Unresolved("no Stripe key is set for it")


class PreviewRow(NamedTuple):
    """A target that a change would move."""

    target: Target
    customer_refs: tuple[str, ...]
    units_before: int
    units_after: int
    """Billable units of all its usage, as it is and as it would be."""
    pushed: int
    would_send: int


class Preview(NamedTuple):
    """What a change would do."""

    rows: list[PreviewRow]
    """At most ROWS_MAX, by Stripe customer."""
    unroutable: list[tuple[str, str]]
    """(customerRef, why) of usage that would go nowhere, at most ROWS_MAX."""


async def preview(
    meter: Meter,
    pusher: Pusher,
    change: MappingChange | CustomerChange,
    freezes: Sequence[PushDecision],
) -> Preview:
    """What recording these would do, with everything acknowledged before counted."""
    series = _affected(meter, change)
    await pusher.look(series[0][0] if series else None)
    routes = PushRoutes.restore(pusher.state.routes.state())
    routes.fold(change)
    ledger = PushLedger()
    ledger.lanes = pusher.state.ledger.lanes
    ledger.of_customer = pusher.state.ledger.of_customer
    ledger.finals = pusher.state.ledger.finals
    ledger.frozen = {key: list(rows) for key, rows in pusher.state.ledger.frozen.items()}
    for freeze in freezes:
        ledger.fold(freeze, freeze.at_us)

    def resolution(role: Role, destination: Destination) -> Resolved | Unresolved | None:
        connection = pusher.connections.get(role)
        return _NO_KEY if connection is None else connection.known(destination)

    def changed_mapping(tenant: str, metric: str) -> object:
        if isinstance(change, MappingChange) and change.mapping.active:
            return change.mapping
        return meter.registry.active_mapping(tenant, metric)

    totals = PushTotals(
        routes,
        ledger,
        resolution=resolution,
        proven=lambda role: (
            connection.proven if (connection := pusher.connections.get(role)) else None
        ),
        mapping=changed_mapping,  # type: ignore[arg-type]
    )
    await _take(meter, totals, series)
    for role, destination in totals.unresolved()[:ASKED_MAX]:
        connection = pusher.connections.get(role)
        if connection is not None and connection.proven is not None:
            await connection.resolve(destination)
            await _take(meter, totals, totals.resolved(role, destination))
    return _compared(pusher, totals, series)


def _affected(meter: Meter, change: MappingChange | CustomerChange) -> list[Series]:
    if isinstance(change, MappingChange):
        mapping = change.mapping
        return list(dict.fromkeys(series_of_metric(meter, mapping.tenant_id, mapping.metric)))
    customer = change.customer
    metrics = sorted(
        metric for of, metric in meter.push.routes.metrics() if of == customer.tenant_id
    )
    return [(customer.tenant_id, metric, customer.customer_ref) for metric in metrics]


async def _take(meter: Meter, totals: PushTotals, series: Iterable[Series]) -> None:
    for number, one in enumerate(series):
        if number % 100 == 99:
            await trio.lowlevel.checkpoint()
        shard, partition = meter.shard_of_customer(one[0], one[2])
        totals.take(one, uses_of(shard.state, meter.rules, partition, one))


def _compared(pusher: Pusher, totals: PushTotals, series: Sequence[Series]) -> Preview:
    before: Counter[Target] = Counter()
    after: Counter[Target] = Counter()
    refs: dict[Target, set[str]] = {}
    for one in series:
        for sums, found in ((before, pusher.totals), (after, totals)):
            for part in found.contributions(one):
                sums[part.target] += part.micros
                refs.setdefault(part.target, set()).add(one[2])
    rows = []
    for target in before.keys() | after.keys():
        if before[target] == after[target]:
            continue
        view, state = pusher.totals.view(target), pusher.state.ledger.target(target)
        micros = 0 if view is None else view.local_micros
        units_after = billable_units(micros - before[target] + after[target], target.scale)
        pushed = 0 if state is None else state.pushed
        carried = 0 if state is None else state.carried_in - state.carried_out
        units_before = billable_units(micros, target.scale)
        would_send = units_after + carried - pushed
        row = PreviewRow(
            target, tuple(sorted(refs[target])), units_before, units_after, pushed, would_send
        )
        rows.append(row)
    rows.sort(
        key=lambda row: (row.target.lane.customer, row.target.start_us, target_id(row.target))
    )
    unroutable = sorted((one[2], why) for one, why in totals.unroutable.items())
    return Preview(rows[:ROWS_MAX], unroutable[:ROWS_MAX])
