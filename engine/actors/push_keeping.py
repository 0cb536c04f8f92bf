"""Erasing customers whose use is pushed: what they used stays part of what Stripe bills, though nobody goes by their name.

Rules it keeps: what was billed is never taken back because a name went; where it is not known where the use goes (Stripe
can't be reached, no key, a stopped directory), or it is being moved, nothing is erased. It must not know how a name is taken out of the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from engine.actors.pusher import Pusher
from engine.core.billing import PushRequest
from engine.core.push_ledger import LaneState
from engine.core.push_plan import Standing, TargetView, finalization_us
from engine.core.push_records import PushDecision, series_digest
from engine.core.push_routes import STRIPE_CUSTOMER_PREFIX, PushRoutes
from engine.core.push_uses import uses_of
from engine.core.shard_state import Series
from engine.core.times import DAY_US, format_instant
from engine.errors import Conflict

_MAY_GROW: Final[frozenset[Standing]] = frozenset(("held", "in_flight", "quarantined"))
"""How a target stands that will be pushed to as soon as nothing is in the way; what is final or stopped is not."""
_GRACE_US_MAX: Final = 3 * DAY_US
"""Stripe's longest. Where a mapping's own is can't be told any more."""


async def keeping(
    pusher: Pusher, tenant: str, names: Mapping[str, str], actor: str, *, is_command: bool
) -> list[PushDecision]:
    """Decisions that keep what customers use part of their targets, to be recorded with their erasure.

    `names`: name to pseudonym; `is_command`: no server runs, so nothing can be known of Stripe. Raises Conflict while
    it is not known where their usage goes, or it is being moved.
    """
    if "main" not in pusher.connections:
        _must_not_be_pushed(pusher, tenant, names, is_command=is_command)
    await pusher.look(tenant)
    _must_not_be_elsewhere(pusher, tenant, names)
    totals = pusher.totals
    for series, reason in totals.unroutable.items():
        if series[0] == tenant and series[2] in names and totals.is_waiting(series):
            raise Conflict(
                f"where usage of {series[1]!r} is pushed is not known yet ({reason}): "
                "erase when Stripe can be reached, so that what was billed stays"
            )
    decisions = []
    for target in list(totals.targets):
        view = totals.view(target)
        own = [s for s in totals.series_of(target) if s[0] == tenant and s[2] in names]
        if view is None or not own:
            continue
        if view.not_left is not None and pusher.server.planned(view).standing in _MAY_GROW:
            # Whose it was goes with the name, and with it that the new place has to wait: at once, or after what is under way.
            raise Conflict(
                "usage was moved, and what was pushed where it was is not taken back yet: erase when it is"
            )
        rows, constant = [], 0
        for series in own:
            share = next(c for c in totals.contributions(series) if c.target == target)
            if share.base is None:
                constant += share.micros  # of before a cutover: it no longer changes
            else:
                digest = series_digest(tenant, series[1], names[series[2]])
                rows.append((digest, target.start_us, str(share.base)))
        decision = _kept(view, actor)
        decisions.append(msgspec.structs.replace(decision, micros=str(constant), rows=tuple(rows)))
    return decisions


def _must_not_be_pushed(
    pusher: Pusher, tenant: str, names: Iterable[str], *, is_command: bool
) -> None:
    """Raises Conflict if what a customer used was pushed, or (a command) may be: without a key nobody knows where."""
    routes = pusher.state.routes
    metrics = sorted(
        metric
        for owner, metric in routes.metrics()
        if owner == tenant and "main" in routes.roles_known(owner, metric)
    )
    ledger = pusher.state.ledger
    of_main = [lane for lane, state in ledger.lanes.items() if state.role == "main"]
    pushed = {part for lane in of_main for part in (lane.customer, lane.object_id)}
    for name in names if metrics else ():
        known, items = _at_stripe(routes, tenant, name)
        for metric in metrics:
            series = (tenant, metric, name)
            shard, partition = pusher.changes.place_of(series)
            uses = uses_of(shard.state, pusher.rules, partition, series)
            route = routes.mapping_route(tenant, metric, "main")
            has_place = bool(items) or (route is not None and route.names_something)
            digest = series_digest(*series)
            if uses and (
                not pushed.isdisjoint(known | items)
                # Erased before, and part of a target still.
                or any((digest, use.start_us) in ledger.kept for use in uses)
                or (is_command and has_place and bool(known | items))
            ):
                how = "through the running server" if is_command else "when its key is set again"
                raise Conflict(
                    f"usage of {metric!r} is pushed to Stripe, and it can't be known here to where: what was billed "
                    f"would be taken back. Erase {how}"
                )


def _must_not_be_elsewhere(pusher: Pusher, tenant: str, names: Iterable[str]) -> None:
    """Raises Conflict if what a customer uses is billed live by an account whose key is not set, and is not final there.

    Nothing can be said now of what it keeps there: with that key again, what was billed would be taken back.
    """
    connection = pusher.connections.get("main")
    proven = None if connection is None else connection.proven
    if proven is None:
        return
    connected = {(proven.account, proven.mode)}
    connected |= {(one.lane.account, one.lane.mode) for one in pusher.totals.targets}
    away = [
        state
        for lane, state in pusher.state.ledger.lanes.items()
        if state.role == "main" and lane.mode == "live"
        if (lane.account, lane.mode) not in connected
    ]
    for name in names if away else ():
        at_stripe = set[str]().union(*_at_stripe(pusher.state.routes, tenant, name))
        for state in away:
            if at_stripe.isdisjoint((state.lane.customer, state.lane.object_id)):
                continue
            for metric in (metric for owner, metric in state.series if owner == tenant):
                if final_us := _open_until_us(pusher, state, (tenant, metric, name)):
                    raise Conflict(
                        f"usage of {metric!r} is billed by {state.lane.account}, whose key is not set, and what was billed "
                        "there would be taken back when it is again. Erase with that key, or after "
                        f"{format_instant(final_us)}"
                    )


def _open_until_us(pusher: Pusher, state: LaneState, series: Series) -> int:
    """When the last of a lane's targets that a customer used something of is final; 0: they are."""
    shard, partition = pusher.changes.place_of(series)
    uses = uses_of(shard.state, pusher.rules, partition, series)
    used = {use.start_us for use in uses if use.micros}
    ends_us = (
        finalization_us(one.target, one, _GRACE_US_MAX)
        for one in state.targets.values()
        if one.target.start_us in used
    )
    now_us = pusher.now_us()
    return max((end_us for end_us in ends_us if end_us > now_us), default=0)


def _at_stripe(routes: PushRoutes, tenant: str, name: str) -> tuple[set[str], set[str]]:
    """All (customers, subscription items) at Stripe that a customer ever was."""
    known, items = set[str](), set[str]()
    if name.startswith(STRIPE_CUSTOMER_PREFIX):
        known.add(name)
    for route in routes.customer_history(tenant, name):
        items.update(item for _, item in route.items)
        if route.customer is not None:
            known.add(route.customer)
    return known, items


def _kept(view: TargetView, actor: str) -> PushDecision:
    resolved = view.resolved
    return PushDecision(
        kind="keep",
        actor=actor,
        target=view.target,
        request=PushRequest(
            driver=view.driver,
            identifier="",
            value="0",
            timestamp_s=0,
            api_version=resolved.api_version,
            event_name=resolved.event_name,
            customer=view.target.lane.customer,
            customer_key=resolved.customer_key,
            value_key=resolved.value_key,
            item=resolved.item,
            connect_account=view.connect_account,
        ),
        role=view.role,
        tenant_id=view.tenant,
        metric=view.metric,
    )
