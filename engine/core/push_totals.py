"""What each target's own usage comes to: a sum over the customers' counters, kept up as they change.

Rules it keeps: a target's `local` is the sum of what every series contributes to it, and a series contributes by the
destination its period began with, split only where a cutover says so; what can't be routed has a reason in words and
contributes nowhere; work grows with what changed. It must not know what was pushed, tasks, or Stripe's library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from engine.core.billing import Destination, Proven, Resolved, Unresolved
from engine.core.configured import Mapping
from engine.core.push_contributions import (
    LONG_PAST,
    Contribution,
    both,
    left_by,
    newest,
    together,
)
from engine.core.push_ledger import PushLedger
from engine.core.push_misfits import NO_CUSTOMER, is_elsewhere, kept_resolved, misfit, unroutable
from engine.core.push_nowhere import PushNowhere, discard
from engine.core.push_plan import TargetView, billable_units
from engine.core.push_records import Lane, Role, Target, series_digest
from engine.core.push_routes import PushRoutes, Route
from engine.core.push_uses import PeriodUse
from engine.core.shard_state import Series

_Stamp = tuple[int, int, Proven | None, Proven | None]
"""Of what decides where use goes, beside what Stripe knows of a destination."""
_Lost = tuple[Role, str, int]
"""(role, Stripe customer, period start)."""
_UNKNOWN: Final = "Stripe has not been asked yet about where its use was moved from"


Resolution = Callable[[Role, Destination], Resolved | Unresolved | None]
"""What is known of a destination; None: not asked yet, and it will be."""


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
        self._first: dict[tuple[str, str], str] = {}
        """Of Stripe customers that nobody named and nothing was pushed to: whose use was seen first."""
        self.nowhere = PushNowhere()
        self.unroutable = self.nowhere.reasons
        """Series of mapped metrics of whose use some goes nowhere, and why."""
        self._users: dict[tuple[Role, Destination], set[Series]] = {}
        """Who was routed by what is known of a destination."""
        self._waiting: dict[Role, dict[Destination, set[Series]]] = {"main": {}, "shadow": {}}
        """Destinations not known yet, or only for now, and the series that need them."""
        self._waits_of: dict[Series, set[tuple[Role, Destination]]] = {}
        self._lost: dict[_Lost, set[Series]] = {}
        """Use that no longer has a destination, by whose and when: less than before proves nothing there."""
        self._lost_of: dict[Series, set[_Lost]] = {}
        self._taken: dict[Series, tuple[_Stamp, dict[int, PeriodUse]]] = {}
        """What was known and used when a series was taken in last, unless something about it may change unseen."""

    @property
    def targets(self) -> Iterable[Target]:
        """All targets, in no order."""
        return self._sums.keys()

    @property
    def is_everything_resolved(self) -> bool:
        """Whether no series waits for a destination to be known."""
        return not any(self._waiting.values())

    def _may_decrease(self, role: Role, target: Target) -> bool:
        if self._waiting[role]:
            return False
        return not self._lost or (role, target.lane.customer, target.start_us) not in self._lost

    def is_served_customer(self, account: str, customer: str) -> bool:
        """Whether somebody's use goes to a Stripe customer, or was said to."""
        if self._ledger.of_customer.get(customer) or self._routes.claimed_by(customer) is not None:
            return True
        return (account, customer) in self._first

    def is_waiting(self, series: Series) -> bool:
        """Whether it is not known yet where a series goes."""
        return series in self._waits_of

    def unresolved(self) -> list[tuple[Role, Destination]]:
        """Destinations to ask Stripe about."""
        return [(role, one) for role, waiting in self._waiting.items() for one in waiting]

    def resolved(self, role: Role, destination: Destination) -> set[Series]:
        """A destination is known now: the series to take in again. Until they are, they still wait for it."""
        users = self._users.pop((role, destination), set())
        waited = self._waiting[role].get(destination, set())
        for series in users | waited:
            self._taken.pop(series, None)
        return users | waited

    def series_of(self, target: Target) -> Sequence[Series]:
        """Who contributes to a target."""
        held = self._sums.get(target)
        return () if held is None else tuple(held.parts)

    def contributions(self, series: Series) -> list[Contribution]:
        """What a series contributes now."""
        return [self._sums[target].parts[series] for target in self._of_series.get(series, ())]

    def take(self, series: Series, uses: Sequence[PeriodUse]) -> set[Target]:
        """A series may have changed: bring its targets up; those that did change are returned.

        Costs as much as the periods that changed, unless destinations did.
        """
        stamp = self._stamp()
        now = {use.start_us: use for use in uses}
        taken = self._taken.pop(series, None)
        if taken is not None and taken[0] == stamp:
            before = taken[1]
            starts = {
                start for start in before.keys() | now.keys() if before.get(start) != now.get(start)
            }
            grown = self._grown(series, starts, before, now)
            if grown is not None:
                self._taken[series] = (stamp, now)
                return {grown}
            fresh = self._fresh(series, [now[start] for start in starts if start in now])
            changed = self._replace(series, fresh, starts)
        else:
            self._forget(series)
            fresh = self._fresh(series, uses)
            owed = self._carried_in(fresh)
            fresh.update((one.target, one) for one in owed)
            changed = self._replace(series, fresh, None)
            if owed:
                return changed
        if not any(series in of for of in (self._waits_of, self._lost_of, self.nowhere.incomplete)):
            self._taken[series] = (stamp, now)
        return changed

    def _grown(
        self,
        series: Series,
        starts: set[int],
        before: dict[int, PeriodUse],
        now: dict[int, PeriodUse],
    ) -> Target | None:
        """What nearly always happened: a series is used more in one period, and all of it goes where it went.

        Its target, brought up to it; None: it is not as simple as that, and nothing was done.
        """
        if len(starts) != 1:
            return None
        [start_us] = starts
        old, use = before.get(start_us), now.get(start_us)
        if old is None or use is None or use.end_us != old.end_us:
            return None
        if use.hold is not None or old.hold is not None:
            return None
        if len(self._routes.roles_known(*series[:2])) != 1:
            return None
        targets = [one for one in self._of_series.get(series, ()) if one.start_us == start_us]
        if len(targets) != 1:
            return None
        parts = self._sums[targets[0]].parts
        part = parts[series]
        if part.base is None:
            return None
        parts[series] = part._replace(
            micros=use.micros - part.base, newest_event_us=use.newest_event_us
        )
        return targets[0]

    def _stamp(self) -> _Stamp:
        versions = (self._routes.version, self._ledger.version)
        return (*versions, self._proven("main"), self._proven("shadow"))

    def _forget(self, series: Series) -> None:
        self.nowhere.forget(series)
        for role, destination in self._waits_of.pop(series, ()):
            discard(self._waiting[role], destination, series)
        for lost in self._lost_of.pop(series, ()):
            discard(self._lost, lost, series)

    def _fresh(self, series: Series, uses: Iterable[PeriodUse]) -> dict[Target, Contribution]:
        fresh: dict[Target, Contribution] = {}
        for role in self._routes.roles_known(*series[:2]):
            for use in uses:
                for contribution in self._of_use(series, role, use):
                    # Shadow beside main on the same account and meter: main speaks.
                    fresh.setdefault(contribution.target, contribution)
        return fresh

    def _replace(
        self, series: Series, fresh: dict[Target, Contribution], starts: set[int] | None
    ) -> set[Target]:
        """Put what a series contributes in periods with these starts (None: in all) in the place of what it did."""
        of_series = self._of_series.pop(series, ())
        replaced = [one for one in of_series if starts is None or one.start_us in starts]
        changed: set[Target] = set()
        for target in replaced:
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
        others = () if starts is None else [one for one in of_series if one.start_us not in starts]
        if fresh or others:
            self._of_series[series] = (*fresh, *others)
        return changed

    def _carried_in(self, fresh: dict[Target, Contribution]) -> list[Contribution]:
        """To targets that are, or were, owed something from an earlier period: without use nothing else makes them."""
        found: dict[Target, Contribution] = {}
        # Newest periods come first, and the newest of a lane and scale is what is known best.
        for (lane, scale), one in newest(fresh).items():
            state = self._ledger.lane(lane)
            for owed in () if state is None else state.targets.values():
                into = owed.target
                is_owed = owed.carried_in != 0 or owed.is_carried_into
                if is_owed and into.scale == scale and into not in fresh:
                    nothing = PeriodUse(into.start_us, into.end_us, 0, into.start_us)
                    hold = one.hold or misfit(one.route, one.resolved, nothing)
                    found[into] = one._replace(
                        target=into,
                        micros=0,
                        newest_event_us=into.start_us,
                        hold=hold,
                        base=None,
                        left=(),  # moved within another period
                    )
        return list(found.values())

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
                # What is not frozen did not exist at the cutover: rows are recorded before it.
                bounds.append((segment.route, int(frozen.get(segment.since_us, "0"))))
        shares: dict[Route, int] = dict.fromkeys(moved, 0)
        for index, (route, base) in enumerate(bounds):
            until = bounds[index + 1][1] if index + 1 < len(bounds) else use.micros
            shares[route] = shares.get(route, 0) + until - base
        hidden = len(bounds) > 1 and use.start_us < self._ledger.rows_from_us
        is_active = self._routes.role(tenant, metric) == role
        is_attached = self._routes.attached.get((tenant, customer_ref), True)
        found: dict[Target, Contribution] = {}
        left: list[Target] = []
        unknown: str | None = None
        for route, micros in shares.items():
            made = self._routed(series, role, route, use, micros, is_active=is_active)
            if made is None and route in moved:
                # It can't be asked for its target: what was pushed for its customer says what may have to be taken back.
                unknown = _UNKNOWN if self.is_waiting(series) else unknown
                if route.customer is not None and (proven := self._proven(role)) is not None:
                    account = route.destination.connect_account or proven.account
                    lane = Lane(account, proven.mode, "", route.customer)
                    left += self._ledger.pushed_of(tenant, metric, lane, use.start_us)
            if made is not None:
                hold = made.hold
                if hold is None and not is_attached and not customer_ref.startswith("cus_"):
                    hold = "its customer record names no Stripe customer any more"
                if hidden:
                    # What went where before the cutover is given up: neither may follow from a guess.
                    hold = LONG_PAST
                grows = route == bounds[-1][0]
                made = made._replace(hold=hold, base=use.micros - micros if grows else None)
                same = found.get(made.target)
                found[made.target] = made if same is None else both(same, made, use)
                if route in moved:
                    left.append(made.target)
        if not left and unknown is None:
            return list(found.values())
        return [
            one._replace(left=tuple(t for t in left if t != one.target), hold=one.hold or unknown)
            for one in found.values()
        ]

    def _kept(self, use: PeriodUse, target: Target, base: str, role: Role) -> Contribution | None:
        """What an erased customer goes on contributing to the target it was part of."""
        lane, state = self._ledger.lane(target.lane), self._ledger.target(target)
        if lane is None or state is None or state.kept_request is None or lane.role != role:
            return None
        request = state.kept_request
        if is_elsewhere(target.lane, request, self._proven(role)):
            return None
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
                self.nowhere.add(series, use, micros, reason)
            return None
        proven = self._proven(role)
        known = self._resolution(role, destination)
        if isinstance(known, Unresolved):
            if known.is_temporary:
                self._wait(series, role, destination)
            elif micros and route.customer is not None:
                lost = (role, route.customer, use.start_us)
                self._lost.setdefault(lost, set()).add(series)
                self._lost_of.setdefault(series, set()).add(lost)
            if is_active:
                self.nowhere.add(series, use, micros, known.reason, is_waiting=known.is_temporary)
            return None
        if known is None or proven is None:
            self._wait(series, role, destination)
            why = "Stripe has not been asked about it yet"
            self.nowhere.add(series, use, micros if is_active else 0, why, is_waiting=True)
            return None
        customer = route.customer or known.customer
        if customer is None:
            self.nowhere.add(series, use, micros, NO_CUSTOMER)
            return None
        account = destination.connect_account or proven.account
        lane = Lane(account, proven.mode, known.object_id, customer)
        if self._owner(lane, series[0]) != series[0]:
            # Never said whose: that another tenant has such a customer is already more than it should know.
            self.nowhere.add(series, use, micros, f"{customer} belongs to another tenant")
            return None
        target = Target(lane, route.scale, use.start_us, use.end_us)
        hold = use.hold if is_active else "its mapping is not active"
        if hold is None:
            hold = misfit(route, known, use)
        return Contribution(target, micros, use.newest_event_us, route, known, role, hold)

    def _owner(self, lane: Lane, tenant: str) -> str:
        """The one tenant that a Stripe customer belongs to: who named it, else who pushed to it first."""
        claimed = self._routes.claimed_by(lane.customer)
        if claimed is not None:
            return claimed
        key = (lane.account, lane.customer)
        pushed = self._ledger.owners.get(key)
        return self._first.setdefault(key, tenant) if pushed is None else pushed

    def _wait(self, series: Series, role: Role, destination: Destination) -> None:
        self._waiting[role].setdefault(destination, set()).add(series)
        self._waits_of.setdefault(series, set()).add((role, destination))

    def is_served(self, target: Target) -> bool:
        """Whether there is a view of it."""
        if target in self._sums:
            return True
        state = self._ledger.target(target)
        return state is not None and state.kept_request is not None

    def grace_us(self, target: Target) -> int:
        """How long after its period's end its invoice is open; 0, the earliest and so the safe one, without a mapping."""
        held = self._sums.get(target)
        if held is not None:
            tenant, metric, _ref = min(held.parts)
        else:
            state = self._ledger.target(target)
            if state is None or state.kept_request is None:
                return 0
            tenant, metric = state.kept_for
        mapping = self._mapping(tenant, metric)
        return 0 if mapping is None else mapping.finalization_grace_us

    def view(self, target: Target) -> TargetView | None:
        """A target as the plan wants it; None: nobody contributes to it now."""
        held = self._sums.get(target)
        if held is None:
            return self._kept_view(target)
        # Whoever speaks for all must be the same in every process.
        speaker = min(held.parts)
        tenant, metric, _ref = speaker
        whole = first = held.parts[speaker]
        if len(held.parts) > 1:
            whole = together(first, held.parts.values())
        mapping = self._mapping(tenant, metric)
        state = self._ledger.target(target)
        kept = 0 if state is None else int(state.kept_micros)
        return TargetView(
            target=target,
            local_micros=whole.micros + kept,
            newest_event_us=whole.newest_event_us,
            resolved=first.resolved,
            driver=first.route.destination.driver,
            connect_account=first.route.destination.connect_account,
            role=first.role,
            tenant=tenant,
            metric=metric,
            grace_us=0 if mapping is None else mapping.finalization_grace_us,
            baseline=None if mapping is None else mapping.baseline,
            mapped_at_us=0 if mapping is None else mapping.created_at_us,
            hold=whole.hold,
            is_past=whole.hold == LONG_PAST,
            may_decrease=self._may_decrease(first.role, target),
            not_left=next(
                (old for old in left_by(held.parts.values()) if self._holds_more(old)), None
            ),
        )

    def _holds_more(self, target: Target) -> bool:
        """Whether Stripe holds, or may hold, more of a target than is due there; whatever is in the way of taking it back.

        Not where the customer is gone: nothing is billed there any more.
        """
        lane, state = self._ledger.lane(target.lane), self._ledger.target(target)
        if lane is None or state is None or lane.stopped is not None:
            return False
        most = state.pushed
        if lane.open is not None and lane.open.target == target:
            most = max(most, int(lane.open.to_units))
        if most <= 0:
            return False
        held = self._sums.get(target)
        own = 0 if held is None else sum(part.micros for part in held.parts.values())
        micros = own + int(state.kept_micros)
        billable = billable_units(micros, target.scale) + state.carried_in - state.carried_out
        return most > max(billable, 0)

    def _kept_view(self, target: Target) -> TargetView | None:
        """A target of which only erased customers' use is left."""
        state = self._ledger.target(target)
        if state is None or state.kept_request is None:
            return None
        tenant, metric = state.kept_for
        mapping = self._mapping(tenant, metric)
        request = state.kept_request
        lane_state = self._ledger.lane(target.lane)
        role: Role = "main" if lane_state is None else lane_state.role
        if is_elsewhere(target.lane, request, self._proven(role)):
            return None
        return TargetView(
            target=target,
            local_micros=int(state.kept_micros),
            newest_event_us=target.start_us,
            resolved=kept_resolved(target, request),
            driver=request.driver,
            connect_account=request.connect_account,
            role=role,
            tenant=tenant,
            metric=metric,
            grace_us=0 if mapping is None else mapping.finalization_grace_us,
            may_decrease=self._may_decrease(role, target),
        )
