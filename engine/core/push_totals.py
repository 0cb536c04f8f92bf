"""What each target's own usage comes to: a sum over the customers' counters, kept up as they change.

Rules it keeps: a target's `local` is the sum of what every series contributes to it, and a series contributes by the
destination its period began with, split only where a cutover says so; what can't be routed has a reason in words and
contributes nowhere; work grows with what changed. It must not know what was pushed, tasks, or Stripe's library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from engine.core.adjustments import effective_value
from engine.core.billing import Destination, Proven, PushRequest, Resolved, Unresolved
from engine.core.configured import Mapping
from engine.core.counters import Counter
from engine.core.push_ledger import PushLedger
from engine.core.push_plan import TargetView
from engine.core.push_records import Lane, Role, Target, series_digest
from engine.core.push_routes import PushRoutes, Route
from engine.core.rules import Rules
from engine.core.shard_state import Series, ShardState

PERIODS_MAX: Final = 64
"""Of a series, the newest; older ones are final for years."""
_SECOND_US: Final = 1_000_000


class PeriodUse(NamedTuple):
    """One period of a series: what counts (micros) by the aggregation in force when it began."""

    start_us: int
    end_us: int
    micros: int
    newest_event_us: int


class Contribution(NamedTuple):
    """What a series adds to a target. `hold`: why the target must not be pushed because of it.

    `base`: its use less this is what it adds, now and later; None: what it adds no longer changes.
    """

    target: Target
    micros: int
    newest_event_us: int
    route: Route
    resolved: Resolved
    role: Role
    hold: str | None
    base: int | None = 0


Resolution = Callable[[Role, Destination], Resolved | Unresolved | None]
"""What is known of a destination; None: not asked yet, and it will be."""


def uses_of(state: ShardState, rules: Rules, partition: int, series: Series) -> list[PeriodUse]:
    """The newest PERIODS_MAX periods of a series in which something counts, newest first."""
    tenant, metric, _customer = series
    adjustments = state.adjustments[partition]
    found: dict[int, tuple[int, Counter | None]] = {}
    counter = state.counters[partition].get(series)
    while counter is not None and len(found) < PERIODS_MAX:
        found[counter.start_us] = (counter.end_us, counter)
        counter = counter.older
    for adjustment in adjustments.of_series(series):
        if adjustment.status == "approved":
            found.setdefault(adjustment.start_us, (adjustment.end_us, None))
    uses = []
    for start_us in sorted(found, reverse=True)[:PERIODS_MAX]:
        end_us, held = found[start_us]
        aggregation = rules.aggregation(tenant, metric, start_us)
        corrections = adjustments.of_counter((*series, start_us))
        micros = effective_value(held, corrections, aggregation)
        historic = state.historic[partition].get((*series, start_us))
        if historic is not None:
            micros = micros - historic if aggregation == "sum" else 0
        newest_us = start_us if held is None else held.watermark_us
        uses.append(PeriodUse(start_us, end_us, micros, newest_us))
    return uses


class _Sum:
    """A target and what each series adds to it."""

    __slots__ = ("parts",)

    def __init__(self) -> None:
        self.parts: dict[Series, Contribution] = {}


class PushTotals:
    """Every target there is usage for."""

    def __init__(
        self,
        routes: PushRoutes,
        ledger: PushLedger,
        *,
        resolution: Resolution,
        proven: Callable[[Role], Proven | None],
        mapping: Callable[[str, str], Mapping | None],
    ) -> None:
        self._routes = routes
        self._ledger = ledger
        self._resolution = resolution
        self._proven = proven
        self._mapping = mapping
        self._sums: dict[Target, _Sum] = {}
        self._of_series: dict[Series, tuple[Target, ...]] = {}
        self.unroutable: dict[Series, str] = {}
        """Series of mapped metrics that go nowhere, and why."""
        self._users: dict[tuple[Role, Destination], set[Series]] = {}
        """Who was routed by what is known of a destination."""
        self._waiting: dict[tuple[Role, Destination], set[Series]] = {}
        """Destinations not known yet, or only for now, and the series that need them."""

    @property
    def targets(self) -> Iterable[Target]:
        """All targets, in no order."""
        return self._sums.keys()

    @property
    def is_everything_resolved(self) -> bool:
        """Whether no series waits for a destination to be known."""
        return not self._waiting

    def is_waiting(self, series: Series) -> bool:
        """Whether it is not known yet where a series goes."""
        return any(series in those for those in self._waiting.values())

    def unresolved(self) -> list[tuple[Role, Destination]]:
        """Destinations to ask Stripe about."""
        return list(self._waiting)

    def resolved(self, role: Role, destination: Destination) -> set[Series]:
        """A destination is known now: the series to take in again."""
        users = self._users.pop((role, destination), set())
        return users | self._waiting.pop((role, destination), set())

    def series_of(self, target: Target) -> Sequence[Series]:
        """Who contributes to a target."""
        held = self._sums.get(target)
        return () if held is None else tuple(held.parts)

    def contributions(self, series: Series) -> list[Contribution]:
        """What a series contributes now."""
        return [self._sums[target].parts[series] for target in self._of_series.get(series, ())]

    def take(self, series: Series, uses: Sequence[PeriodUse]) -> set[Target]:
        """A series may have changed: bring its targets up; those that did change are returned."""
        self.unroutable.pop(series, None)
        for waiting in [key for key, those in self._waiting.items() if series in those]:
            self._waiting[waiting].discard(series)
            if not self._waiting[waiting]:
                del self._waiting[waiting]
        fresh: dict[Target, Contribution] = {}
        for role in self._routes.roles_known(*series[:2]):
            for use in uses:
                for contribution in self._of_use(series, role, use):
                    fresh[contribution.target] = contribution
        before = self._of_series.pop(series, ())
        changed: set[Target] = set()
        for target in before:
            if target not in fresh:
                held = self._sums[target]
                del held.parts[series]
                changed.add(target)
                if not held.parts:
                    del self._sums[target]
        for target, contribution in fresh.items():
            found = self._sums.get(target)
            if found is None:
                found = self._sums[target] = _Sum()
            key = (contribution.role, contribution.route.destination)
            self._users.setdefault(key, set()).add(series)
            if found.parts.get(series) != contribution:
                found.parts[series] = contribution
                changed.add(target)
        if fresh:
            self._of_series[series] = tuple(fresh)
        return changed

    def _of_use(self, series: Series, role: Role, use: PeriodUse) -> list[Contribution]:
        tenant, metric, customer_ref = series
        digest = series_digest(*series)
        if (kept := self._ledger.kept.get((digest, use.start_us))) is not None:
            return [one for one in (self._kept(use, *of, role) for of in kept) if one is not None]
        segments = self._routes.segments(series, role, start_us=use.start_us, end_us=use.end_us)
        frozen = dict(self._ledger.frozen.get((digest, use.start_us), ()))
        bounds: list[tuple[Route, int]] = []
        moved: list[Route] = []
        for segment in segments:
            if segment.cutover == "move":
                moved += [route for route, _ in bounds]
                bounds = [(segment.route, 0)]
            else:
                base = (
                    0 if segment.cutover is None else int(frozen.get(segment.since_us, use.micros))
                )
                bounds.append((segment.route, base))
        shares: dict[Route, int] = dict.fromkeys(moved, 0)
        for index, (route, base) in enumerate(bounds):
            until = bounds[index + 1][1] if index + 1 < len(bounds) else use.micros
            shares[route] = shares.get(route, 0) + until - base
        is_active = self._routes.role(tenant, metric) == role
        is_attached = self._routes.attached.get((tenant, customer_ref), True)
        found = []
        for route, micros in shares.items():
            made = self._routed(series, role, route, use, micros, is_active=is_active)
            if made is not None:
                hold = made.hold
                if hold is None and not is_attached and not customer_ref.startswith("cus_"):
                    hold = "its customer record names no Stripe customer any more"
                newest, offset = bounds[-1]
                found.append(made._replace(hold=hold, base=offset if route == newest else None))
        return found

    def _kept(self, use: PeriodUse, target: Target, base: str, role: Role) -> Contribution | None:
        """What an erased customer goes on contributing to the target it was part of."""
        lane, state = self._ledger.lane(target.lane), self._ledger.target(target)
        if lane is None or state is None or state.kept_request is None or lane.role != role:
            return None
        request = state.kept_request
        destination = Destination(
            request.driver, request.event_name, request.item, None, None, request.connect_account
        )
        micros = use.micros - int(base)
        is_active = self._routes.role(*state.kept_for) == role
        hold = None if is_active else "its mapping is not active"
        route = Route(destination, target.scale, target.lane.customer)
        resolved = kept_resolved(target, request)
        newest_us = use.newest_event_us
        return Contribution(target, micros, newest_us, route, resolved, role, hold, int(base))

    def _routed(
        self,
        series: Series,
        role: Role,
        route: Route,
        use: PeriodUse,
        micros: int,
        *,
        is_active: bool,
    ) -> Contribution | None:
        destination = route.destination
        if (reason := unroutable(route)) is not None:
            if is_active:
                self.unroutable[series] = reason
            return None
        proven = self._proven(role)
        known = self._resolution(role, destination)
        if known is None or proven is None:
            self._waiting.setdefault((role, destination), set()).add(series)
            self.unroutable[series] = "Stripe has not been asked about it yet"
            return None
        if isinstance(known, Unresolved):
            if known.is_temporary:
                self._waiting.setdefault((role, destination), set()).add(series)
            if is_active:
                self.unroutable[series] = known.reason
            return None
        customer = route.customer or known.customer
        if customer is None:
            self.unroutable[series] = NO_CUSTOMER
            return None
        account = destination.connect_account or proven.account
        lane = Lane(account, proven.mode, known.object_id, customer)
        target = Target(lane, route.scale, use.start_us, use.end_us)
        hold = None if is_active else "its mapping is not active"
        if hold is None:
            hold = misfit(route, known, use)
        return Contribution(target, micros, use.newest_event_us, route, known, role, hold)

    def view(self, target: Target) -> TargetView | None:
        """A target as the plan wants it; None: nobody contributes to it now."""
        held = self._sums.get(target)
        if held is None:
            return self._kept_view(target)
        parts = held.parts.values()
        (tenant, metric, _ref), first = next(iter(held.parts.items()))
        mapping = self._mapping(tenant, metric)
        state = self._ledger.target(target)
        kept = 0 if state is None else int(state.kept_micros)
        return TargetView(
            target=target,
            local_micros=sum(part.micros for part in parts) + kept,
            newest_event_us=max(part.newest_event_us for part in parts),
            resolved=first.resolved,
            driver=first.route.destination.driver,
            connect_account=first.route.destination.connect_account,
            role=first.role,
            tenant=tenant,
            metric=metric,
            grace_us=0 if mapping is None else mapping.finalization_grace_us,
            baseline=None if mapping is None else mapping.baseline,
            hold=next((part.hold for part in parts if part.hold is not None), None),
            may_decrease=self.is_everything_resolved,
        )

    def _kept_view(self, target: Target) -> TargetView | None:
        """A target of which only erased customers' use is left."""
        state = self._ledger.target(target)
        if state is None or state.kept_request is None:
            return None
        tenant, metric = state.kept_for
        mapping = self._mapping(tenant, metric)
        request = state.kept_request
        lane_state = self._ledger.lane(target.lane)
        return TargetView(
            target=target,
            local_micros=int(state.kept_micros),
            newest_event_us=target.start_us,
            resolved=kept_resolved(target, request),
            driver=request.driver,
            connect_account=request.connect_account,
            role="main" if lane_state is None else lane_state.role,
            tenant=tenant,
            metric=metric,
            grace_us=0 if mapping is None else mapping.finalization_grace_us,
            may_decrease=self.is_everything_resolved,
        )


NO_CUSTOMER: Final = (
    "no Stripe customer is known for it: PUT /v1/customers/{customerRef} with its stripeCustomerId"
)


def kept_resolved(target: Target, request: PushRequest) -> Resolved:
    """What a target's destination was when a customer of it was erased."""
    return Resolved(
        object_id=target.lane.object_id,
        customer=target.lane.customer,
        event_name=request.event_name,
        customer_key=request.customer_key,
        value_key=request.value_key,
        item=request.item,
        api_version=request.api_version,
    )


def unroutable(route: Route) -> str | None:
    """Why a route goes nowhere as it was configured, in words; None: Stripe can be asked about it."""
    destination = route.destination
    if destination.item is None and destination.event_name is None and destination.price is None:
        return "its mapping names no meter: give it meterEventName, priceId or subscriptionItemId"
    if destination.driver == "usage_record" and destination.item is None:
        return "usage records need a subscription item: put it in the customer's subscriptionItems"
    if route.customer is None:
        return NO_CUSTOMER
    return None


def misfit(route: Route, resolved: Resolved, use: PeriodUse) -> str | None:
    """Why a period can't be pushed to what its route turned out to be, in words."""
    if resolved.customer is not None and route.customer not in (None, resolved.customer):
        return (
            f"the subscription item {resolved.item} belongs to {resolved.customer}, "
            f"the usage to {route.customer}"
        )
    if resolved.period_end_s is None or resolved.period_start_s is None:
        return None
    start_s, end_s = use.start_us // _SECOND_US, use.end_us // _SECOND_US
    if end_s <= resolved.period_start_s:
        return None  # over at Stripe too; while it ran it was compared
    if start_s >= resolved.period_end_s:
        return "Stripe has not begun this billing period yet"
    if end_s == resolved.period_end_s and resolved.period_start_s >= start_s:
        return None
    return (
        f"its period ends at {end_s}, the billing period of {resolved.item} at {resolved.period_end_s} (unix seconds): "
        "give the mapping period `subscription` and the customer the subscription's billingAnchor"
    )
