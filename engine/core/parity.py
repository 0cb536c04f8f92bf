"""The body of a parity certificate: for each customer and metric the chain from events to what Stripe will bill.

Rules it keeps: it is about one prefix of the log and one tenant; every number is a text in its exact form, every
position one of that prefix; a verdict follows from the numbers beside it by the rules of docs/parity.md, which
the witness applies again on its own. It must not know tasks, signatures, or how Stripe was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

from engine.core.adjustments import effective_value
from engine.core.billing import same_units
from engine.core.counters import Counter, Tally
from engine.core.parity_trail import EventSpan, ParityTrail, PeriodKey, PushSpan
from engine.core.partitions import partition_of
from engine.core.push_ledger import TargetState
from engine.core.push_plan import Planned, TargetView, due_units, plan
from engine.core.push_records import Target, target_id
from engine.core.push_totals import PushTotals
from engine.core.push_uses import uses_of
from engine.core.quantities import to_json
from engine.core.times import format_instant
from engine.limits import MICROS_PER_UNIT

Body = dict[str, Any]
SETTLED: Final = ("current", "due", "in_flight", "moved")
"""Standings that need nobody."""
DECIMALS_MAX: Final = 40
"""Of a reading of Stripe's; it gives one or two."""
NO_PRICE: Final = "there is no price here: its mapping has no priceConfig"


class StripeSide(NamedTuple):
    """What Stripe's summary held for a target; `reason`: why it was not read."""

    units: str | None
    read_at_us: int | None
    reason: str | None
    moved: bool = False
    """Something was pushed between the certificate's position and now."""


class Projection(NamedTuple):
    """What a target's units would cost; `reason`: why that is not known."""

    amount: str | None
    currency: str | None
    price: str | None
    """The price as its mapping has it."""
    reason: str | None


def text_of(micros: int) -> str:
    """A quantity's exact decimal text."""
    return bytes(to_json(micros, as_string=False)).decode()


def _decimal(value: Fraction) -> str:
    """A fraction that came of decimals, as a decimal."""
    places = 0
    while value.denominator != 1:
        value, places = value * 10, places + 1
        assert places <= DECIMALS_MAX, "readings are decimals"
    digits = f"{abs(value.numerator):0{places + 1}d}"
    text = f"{digits[:-places]}.{digits[-places:]}" if places else digits
    return f"-{text}" if value < 0 else text


class Parity:
    """One tenant's chains and targets of the periods that begin in [since, until)."""

    def __init__(
        self,
        trail: ParityTrail,
        totals: PushTotals,
        *,
        since_us: int,
        until_us: int,
        customer_ref: str | None,
    ) -> None:
        """`totals` knows nothing yet; every series is taken in here, in `keys`."""
        self._trail = trail
        self._totals = totals
        self._since_us, self._until_us = since_us, until_us
        self._customer_ref = customer_ref
        self.keys: list[PeriodKey] = []
        self.targets: list[Target] = []

    def collect(self) -> None:
        """Find what the certificate is about: the customer's series, and whoever shares its targets."""
        state = self._trail.state
        found = {key for key in self._trail.events if self._holds(key[1])}
        for adjustments in state.adjustments.values():
            for tenant, metric, customer, start_us in adjustments.counters():
                if tenant == self._trail.tenant and self._holds(start_us):
                    found.add(((tenant, metric, customer), start_us))
        for series in sorted({series for series, _start_us in found}):
            partition = partition_of(series[0], series[2])
            self._totals.take(series, uses_of(state, state.rules, partition, series))
        wanted = {k for k in found if self._customer_ref in (None, k[0][2])}
        targets = {t for series, start_us in wanted for t in self._targets_of(series, start_us)}
        if self._customer_ref is None:
            targets |= {t for t in self._trail.pushes if self._holds(t.start_us) and self._owns(t)}
        shared = {(s, t.start_us) for t in targets for s in self._totals.series_of(t)}
        self.keys = sorted(wanted | (shared & found))
        self.targets = sorted(targets, key=_order)

    def _holds(self, start_us: int) -> bool:
        return self._since_us <= start_us < self._until_us

    def _targets_of(self, series: tuple[str, str, str], start_us: int) -> list[Target]:
        of_series = self._totals.contributions(series)
        return [one.target for one in of_series if one.target.start_us == start_us]

    def _owns(self, target: Target) -> bool:
        lane = self._trail.push.ledger.lane(target.lane)
        return lane is not None and any(tenant == self._trail.tenant for tenant, _ in lane.series)

    def unplaced(self) -> str | None:
        """Why it can't be said whose use a target holds, where one seems to hold nobody's; None: all can be said."""
        if self._totals.is_everything_resolved or all(map(self.view, self.targets)):
            return None
        waiting = filter(self._totals.is_waiting, self._totals.unroutable)
        return next((self._totals.unroutable[series] for series in waiting), None)

    def view(self, target: Target) -> TargetView | None:
        """A target as the plan sees it; None: nobody contributes to it any more."""
        return self._totals.view(target)

    # Chains.

    def chain(self, key: PeriodKey, verdict_of: Callable[[str], str]) -> Body:
        """One chain; `verdict_of(target id)` is that of a target of this certificate."""
        series, start_us = key
        tenant, metric, customer = series
        state = self._trail.state
        partition = partition_of(tenant, customer)
        counter = _counter_at(state.counters[partition].get(series), start_us)
        adjustments = state.adjustments[partition].of_counter((*series, start_us))
        aggregation = state.rules.aggregation(tenant, metric, start_us)
        total = effective_value(counter, adjustments, aggregation)
        tally = counter.tally() if counter is not None else Tally()
        own = {"sum": tally.sum, "max": tally.max, "last": tally.last}[aggregation]
        historic = state.historic[partition].get((*series, start_us), 0)
        not_pushed = historic if aggregation == "sum" else 0
        ends = [counter.end_us] if counter is not None else [a.end_us for a in adjustments]
        shares = [
            one for one in self._totals.contributions(series) if one.target.start_us == start_us
        ]
        routing, why = self._routing(key, bool(shares), {one.role for one in shares})
        held = _held(adjustments, total - own)
        pending = held["pending"]
        body: Body = {
            "tenantId": tenant,
            "customerRef": customer,
            "metric": metric,
            "aggregation": aggregation,
            "start": format_instant(start_us),
            "end": format_instant(ends[0]),
            "events": _events(self._trail.events.get(key)),
            "counter": {
                "count": tally.count,
                "sum": text_of(tally.sum),
                "max": text_of(tally.max),
                "last": text_of(tally.last),
            },
            "adjustments": held,
            "total": text_of(total),
            "notPushed": text_of(not_pushed),
            "routing": routing,
            "shares": [
                {
                    "target": target_id(one.target),
                    "role": one.role,
                    "share": text_of(one.micros),
                    "elsewhere": None if one.base is None else text_of(one.base),
                }
                for one in sorted(shares, key=lambda one: _order(one.target))
            ],
        }
        mains = [verdict_of(target_id(one.target)) for one in shares if one.role == "main"]
        verdict = chain_verdict(routing, mains, pending=pending)
        reason = why
        if reason is None and verdict != "green":
            reason = "see its target" if verdict in mains else "adjustments wait for a decision"
        return body | {"verdict": verdict, "reason": reason}

    def _routing(self, key: PeriodKey, has_shares: bool, roles: set[str]) -> tuple[str, str | None]:
        series, start_us = key
        tenant, metric, _customer = series
        nowhere, routes = self._totals.nowhere, self._trail.push.routes
        # After a cutover a part may be pushed and the rest go nowhere.
        has_lost = nowhere.has_part(series, start_us) and routes.role(tenant, metric) == "main"
        if has_shares and "main" in roles and not has_lost:
            return "pushed", None
        if has_shares and not has_lost:
            return "unbilled", "it is in shadow mode: nothing of it is billed"
        if not routes.roles_known(tenant, metric):
            return "unbilled", "its metric is not mapped to anything at Stripe"
        why = nowhere.incomplete.get(series)
        if why is None:
            return "unbilled", "its mapping is not active"
        return ("unresolved" if self._totals.is_waiting(series) else "nowhere"), why

    # Targets.

    def planned(self, target: Target, now_us: int) -> Planned:
        """The plan for a target as of the certificate's position."""
        ledger = self._trail.push.ledger
        state, view = ledger.target(target), self.view(target)
        if view is not None:
            lane = ledger.lane(target.lane)
            return plan(view, lane, state, now_us=now_us, interval_us=0)
        pushed = 0 if state is None else state.pushed
        carried_in = 0 if state is None else state.carried_in
        return Planned(carried_in, pushed, 0, "held", "nobody's use goes there any more", None)

    def target(
        self, target: Target, *, now_us: int, stripe: StripeSide, projection: Projection
    ) -> Body:
        """One target."""
        ledger = self._trail.push.ledger
        view, state, lane = self.view(target), ledger.target(target), ledger.lane(target.lane)
        planned = self.planned(target, now_us)
        known, speaker = state or TargetState(target), view or lane
        local = 0 if view is None else view.local_micros
        due = (
            (max(known.carried_in - known.carried_out, 0) - known.pushed)
            if view is None
            else (due_units(view, state))
        )
        beside, beyond = self._trail.beside(target), self._trail.beyond(target)
        expected = _decimal(planned.pushed + beside + beyond)
        standing = "moved" if stripe.moved else planned.standing
        verdict, why = target_verdict(standing, due, stripe.units, expected)
        intent = lane.open if lane is not None else None
        return {
            "id": target_id(target),
            "role": "main" if speaker is None else speaker.role,
            "account": target.lane.account,
            "mode": target.lane.mode,
            "object": target.lane.object_id,
            "stripeCustomer": target.lane.customer,
            "metric": None if view is None else view.metric,
            "stripeScale": target.scale,
            "start": format_instant(target.start_us),
            "end": format_instant(target.end_us),
            "local": text_of(local),
            "kept": text_of(int(known.kept_micros)),
            "carriedIn": str(known.carried_in),
            "carriedOut": str(known.carried_out),
            "billable": str(planned.billable),
            "intents": _intents(self._trail.pushes.get(target))
            | {
                "open": None
                if intent is None or intent.target != target
                else {
                    "number": intent.number,
                    "from": intent.from_units,
                    "to": intent.to_units,
                    "identifier": intent.request.identifier,
                }
            },
            "pushed": str(planned.pushed),
            "due": str(due),
            "standing": standing,
            "stripe": {
                "units": stripe.units,
                "readAt": None if stripe.read_at_us is None else format_instant(stripe.read_at_us),
                "beside": str(beside),
                "beyond": _decimal(beyond),
                "expected": expected,
                "reason": stripe.reason,
            },
            "projected": {
                "quantity": str(planned.billable),
                "amount": projection.amount,
                "currency": projection.currency,
                "price": projection.price,
                "reason": projection.reason,
            },
            "verdict": verdict,
            "reason": planned.reason or why,
        }


def target_verdict(
    standing: str, due: int, units: str | None, expected: str
) -> tuple[str, str | None]:
    """(verdict, why) of a target: the rules of docs/parity.md, in order."""
    if standing not in SETTLED and (due or standing == "quarantined"):
        return "red", f"it is {standing.replace('_', ' ')}"
    if standing in ("due", "in_flight"):
        return "waiting", "not everything is pushed yet"
    if standing == "moved":
        return "waiting", "it was pushed while this was made: ask again"
    if units is None:
        return "waiting", "Stripe's summary was not read"
    if same_units(units, expected):
        return "green", None
    if Fraction(units) > Fraction(expected):
        return "red", "Stripe holds more than was pushed"
    return (
        "waiting",
        "Stripe's summary holds less than was pushed: it may lag, which proves nothing",
    )


def chain_verdict(routing: str, mains: Sequence[str], *, pending: int) -> str:
    """The verdict of a chain from those of its targets that bill."""
    own = {"pushed": "green", "unbilled": "unbilled", "nowhere": "red", "unresolved": "waiting"}
    found = [own[routing], *mains] + (["waiting"] if pending else [])
    return worst(found)


def worst(verdicts: Iterable[str]) -> str:
    """The one that matters: red, waiting, green, unbilled; `empty` of none."""
    found = set(verdicts)
    order = ("red", "waiting", "green", "unbilled")
    return next((one for one in order if one in found), "empty")


def projection_of(price: str | None, line: Callable[[str], tuple[str, str]]) -> Projection:
    """What a price makes of a target's units; `line(price)` gives (amount, currency)."""
    if price is None:
        return Projection(None, None, None, NO_PRICE)
    amount, currency = line(price)
    return Projection(amount, currency, price, None)


def _counter_at(newest: Counter | None, start_us: int) -> Counter | None:
    counter = newest
    while counter is not None and counter.start_us > start_us:
        counter = counter.older
    return counter if counter is not None and counter.start_us == start_us else None


def _events(span: EventSpan | None) -> Body:
    return {
        "count": 0 if span is None else span.count,
        "sum": text_of(0 if span is None else span.sum),
        "late": 0 if span is None else span.late,
        "firstPosition": None if span is None else span.first,
        "lastPosition": None if span is None else span.last,
    }


def _held(adjustments: Sequence[Any], amount: int) -> Body:
    """What is held beside the counter, by status, and what the approved ones add to its value."""
    by_status = dict.fromkeys(("approved", "pending", "reverted", "superseded"), 0)
    for one in adjustments:
        by_status[one.status] += 1
    positions = [one.sequence for one in adjustments]
    return {
        **by_status,
        "heldCount": sum(len(one.sequences) for one in adjustments),
        "heldSum": text_of(sum(sum(one.quantities) for one in adjustments)),
        "amount": text_of(amount),
        "firstPosition": min(positions, default=None),
        "lastPosition": max(positions, default=None),
    }


def _intents(span: PushSpan | None) -> Body:
    return {
        "count": 0 if span is None else span.count,
        "delivered": 0 if span is None else span.delivered,
        "baselineUnits": str(0 if span is None else span.baseline_units),
        "deliveredUnits": str(0 if span is None else span.delivered_units),
        "takenBackUnits": str(0 if span is None else span.taken_back_units),
        "firstPosition": None if span is None else span.first,
        "lastPosition": None if span is None else span.last,
    }


def _order(target: Target) -> tuple[Any, ...]:
    lane = target.lane
    return target.start_us, lane.customer, lane.object_id, target.scale, lane.account, lane.mode


assert MICROS_PER_UNIT == 10**6, "quantities of certificates have at most six digits"
