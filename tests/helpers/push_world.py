"""Routes, a ledger and a Stripe that knows what it is told to: what push totals are made of, for tests.

It knows only the pure core. Uses are given as they are; `tests.unit.test_push_uses` takes them from counters.
"""

from __future__ import annotations

from typing import Any

from engine.core.billing import Destination, Proven, Resolved, Unresolved
from engine.core.push_plan import TargetView
from engine.core.push_records import PushDecision, Target, series_digest
from engine.core.push_routes import PushRoutes
from engine.core.push_totals import PushTotals
from engine.core.push_uses import PeriodUse
from engine.core.shard_state import Series
from engine.core.times import HOUR_US
from tests.helpers.pushing import (
    AUGUST,
    JULY,
    JUNE,
    NOON,
    SEPTEMBER,
    UNIT,
    Book,
    customer,
    mapped,
)

ANNA: Series = ("acme", "calls", "anna")
BOB: Series = ("acme", "calls", "bob")
ENDS = {JUNE: JULY, JULY: AUGUST, AUGUST: SEPTEMBER}


def use(units: int = 0, start_us: int = JULY, **fields: Any) -> PeriodUse:
    micros = fields.pop("micros", units * UNIT)
    return PeriodUse(start_us, ENDS[start_us], micros, start_us + HOUR_US, **fields)


class World:
    """Routes, a ledger and a Stripe that knows some destinations."""

    def __init__(self, *records: Any) -> None:
        self.routes, self.book = PushRoutes(), Book()
        self.known: dict[str, Resolved | Unresolved | None] = {}
        """By event name or item; what is not there is a meter of its own."""
        self.proven: dict[str, Proven] = {
            "main": Proven("acct_1", "test"),
            "shadow": Proven("acct_t", "test"),
        }
        self.mapping: Any = None
        self.totals = PushTotals(
            self.routes,
            self.book.ledger,
            resolution=lambda _role, destination: self.resolve(destination),
            proven=self.proven.get,
            mapping=lambda _tenant, _metric: self.mapping,
        )
        self.fold(*records)

    def resolve(self, destination: Destination) -> Resolved | Unresolved | None:
        name = destination.item or destination.event_name or ""
        if name in self.known:
            return self.known[name]
        return Resolved(f"mtr_{name}", None, event_name=name)

    def fold(self, *records: Any, at_us: int = NOON) -> World:
        for record in records:
            self.routes.fold(record)
            self.book.ledger.fold(record, at_us)
        return self

    def take(self, series: Series, *uses: PeriodUse) -> set[Target]:
        return self.totals.take(series, uses)

    def locals(self) -> dict[tuple[str, str, int], int]:
        """(object, customer, period start) to local micros of every target; units where they are whole."""
        found = {}
        for one in self.totals.targets:
            key = (one.lane.object_id, one.lane.customer, one.start_us)
            found[key] = self.view(one).local_micros
        return found

    def view(self, of: Target) -> TargetView:
        seen = self.totals.view(of)
        assert seen is not None
        return seen

    def only(self) -> TargetView:
        (one,) = self.totals.targets
        return self.view(one)


def shared(*records: Any) -> World:
    """Anna and Bob are one Stripe customer."""
    both = [customer(ref, stripe_customer_id="cus_1") for ref in ("anna", "bob")]
    return World(mapped(), *both, *records)


def frozen(series: Series, micros: int, at_us: int = NOON) -> PushDecision:
    rows = ((series_digest(*series), JULY, str(micros)),)
    return PushDecision(kind="freeze", actor="k", at_us=at_us, rows=rows)
