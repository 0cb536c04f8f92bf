"""Gathers what is known of a book: its targets' numbers, what was acknowledged lately, what holds it up.

Rules it keeps: everything of one book is read without a pause between, so that its numbers are of one moment; what was
acknowledged before this process began counts as fresh until a lag has passed. It must not know how a book is judged,
nor ask Stripe anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable
from fractions import Fraction
from typing import Final, NamedTuple

import trio

from engine.actors.pusher import Pusher
from engine.core.finding_records import Cause, behind_key
from engine.core.push_baselines import baseline_need
from engine.core.push_plan import TargetView, billable_units
from engine.core.push_plan import finalization_us as finalization_of
from engine.core.push_records import (
    Lane,
    PushDecision,
    PushIntent,
    PushOutcome,
    Role,
    Target,
    target_id,
)
from engine.core.reconciling import Baseline, BookFacts, TargetFacts
from engine.core.records import ControlRecord
from engine.core.times import MINUTE_US
from engine.ports import Clock

FRESH_KEPT_MAX: Final = 64
"""Acknowledged pushes of a target within a lag; more are added up in the newest."""

_SLICE: Final = 100
"""Targets between two pauses: some tenths of a millisecond."""


class Book(NamedTuple):
    """The targets of one lane whose periods overlap: what one summary can tell of."""

    lane: Lane
    targets: tuple[Target, ...]
    """Those that somebody contributes to, oldest first."""
    start_us: int
    end_us: int

    @property
    def range_s(self) -> tuple[int, int]:
        """Whole minutes that hold its periods, unix seconds; to its end, whenever that is."""
        return self.start_us // MINUTE_US * 60, -(-self.end_us // MINUTE_US) * 60


class ReconBooks:
    """Reads a pusher."""

    def __init__(self, pusher: Pusher, clock: Clock, lag_us: int) -> None:
        self._pusher = pusher
        self._clock = clock
        self._lag_us = lag_us
        self.known_from_us = clock.now_us() + lag_us
        """From then on it is known what was acknowledged within the last lag."""
        self._under_way: dict[Lane, PushIntent] = {}
        self._fresh: dict[Target, deque[tuple[int, int]]] = {}
        """(acknowledged at, units) of pushes that add, newest last."""
        self.changed: set[Lane] = set()
        """Lanes whose numbers changed since they were looked at: they go first."""

    def feed(self, controls: Iterable[ControlRecord]) -> None:
        """Records are durable and folded."""
        for record in controls:
            match record:
                case PushIntent():
                    self._under_way[record.target.lane] = record
                case PushOutcome():
                    self._settled(record)
                    self.changed.add(record.target.lane)
                case PushDecision() if record.target is not None:
                    self.changed.add(record.target.lane)
                case _:
                    pass

    def _settled(self, record: PushOutcome) -> None:
        intent = self._under_way.get(record.target.lane)
        if intent is None or (intent.target, intent.number) != (record.target, record.number):
            return
        if record.result == "quarantined":
            return
        del self._under_way[record.target.lane]
        units = int(intent.to_units) - int(intent.from_units)
        if record.result != "delivered" or units <= 0:
            return
        now_us = self._clock.now_us()
        fresh = self._fresh.setdefault(record.target, deque())
        if len(fresh) >= FRESH_KEPT_MAX:
            units += fresh.pop()[1]
        fresh.append((now_us, units))

    def fresh_units(self, target: Target, plus: int) -> int:
        """Units that add and were acknowledged within the last lag."""
        now_us = self._clock.now_us()
        if now_us < self.known_from_us:
            # But what was told to be missing before this process began was missing for a lag.
            told = self._pusher.state.findings.open.get(behind_key(target))
            return plus if told is None else max(0, plus - max(0, int(Fraction(told.record.units))))
        fresh = self._fresh.get(target)
        if fresh is None:
            return 0
        while fresh and fresh[0][0] + self._lag_us <= now_us:
            fresh.popleft()
        if not fresh:
            del self._fresh[target]
            return 0
        return sum(units for _, units in fresh)

    # Books.

    async def targets(self) -> list[Target]:
        """Every target that somebody contributes to, erased customers too; found in slices, there may be many."""
        pusher = self._pusher
        found = list(pusher.totals.targets)
        for number, lane in enumerate(list(pusher.state.ledger.lanes.values())):
            if number % _SLICE == _SLICE - 1:
                await trio.lowlevel.checkpoint()
            found += [
                state.target
                for state in lane.targets.values()
                if state.kept_request is not None and not pusher.totals.series_of(state.target)
            ]
        return found

    async def books(self, tenant: str | None, lanes: Container[Lane] | None = None) -> list[Book]:
        """Every book that somebody contributes to, of a tenant or (None) all, of some lanes or all; in no order."""
        of_lane: dict[Lane, list[Target]] = {}
        for number, target in enumerate(await self.targets()):
            if number % _SLICE == _SLICE - 1:
                await trio.lowlevel.checkpoint()
            if lanes is None or target.lane in lanes:
                of_lane.setdefault(target.lane, []).append(target)
        found = []
        for number, (lane, targets) in enumerate(of_lane.items()):
            if number % _SLICE == _SLICE - 1:
                await trio.lowlevel.checkpoint()
            for book in self._books_of(lane, targets):
                if tenant is None or self._is_of(book, tenant):
                    found.append(book)  # noqa: PERF401 - the slices pause between them
        return found

    def _is_of(self, book: Book, tenant: str) -> bool:
        views = (self._pusher.totals.view(target) for target in book.targets)
        return any(view is not None and view.tenant == tenant for view in views)

    def _books_of(self, lane: Lane, targets: list[Target]) -> list[Book]:
        targets.sort(key=lambda one: (one.start_us, one.scale))
        groups: list[list[Target]] = []
        end_us = 0
        for target in targets:
            if groups and target.start_us < end_us:
                groups[-1].append(target)
                end_us = max(end_us, target.end_us)
            else:
                groups.append([target])
                end_us = target.end_us
        return [
            Book(lane, tuple(group), group[0].start_us, max(one.end_us for one in group))
            for group in groups
        ]

    # Facts.

    def facts(
        self, book: Book, reading: str | None, invoiced: str | None, duplicates: int
    ) -> BookFacts | None:
        """The book's numbers now; None: nobody contributes to it any more."""
        pusher = self._pusher
        views = [view for one in book.targets if (view := pusher.totals.view(one)) is not None]
        if not views:
            return None
        lane = pusher.state.ledger.lane(book.lane)
        own = [self._target_facts(view) for view in views]
        members = set(book.targets)
        if lane is not None:
            members |= {
                state.target
                for state in lane.targets.values()
                if state.target.start_us < book.end_us and book.start_us < state.target.end_us
            }
        marks = [(one, pusher.state.findings.mark(one)) for one in members]
        states = [pusher.state.ledger.target(one) for one in members]
        open_units = 0
        if lane is not None and lane.open is not None and lane.open.target in members:
            open_units = int(lane.open.to_units) - int(lane.open.from_units)
        return BookFacts(
            lane=book.lane,
            targets=tuple(own),
            pushed=sum(state.pushed for state in states if state is not None),
            offset=sum((Fraction(mark.offset) for _, mark in marks), Fraction(0)),
            plus=sum(mark.plus for _, mark in marks),
            minus=sum(mark.minus for _, mark in marks),
            minus_at_us=max(mark.minus_at_us for _, mark in marks),
            fresh=sum(self.fresh_units(one, mark.plus) for one, mark in marks),
            open_units=open_units,
            reading=reading,
            baseline=self._baseline_of(views),
            duplicates=duplicates,
            invoiced=invoiced,
            missing=sum(mark.missing for _, mark in marks),
        )

    def _baseline_of(self, views: list[TargetView]) -> Baseline:
        ledger = self._pusher.state.ledger
        worst: Baseline = "taken"
        for view in views:
            need = baseline_need(view, ledger)
            lane = ledger.lane(view.target.lane)
            if need is None or lane is None:
                continue
            begun_us = lane.baseline_start_us
            if begun_us is None or view.target.start_us < begun_us:
                return "none"
            worst = "doubt"
        if all(ledger.lane(view.target.lane) is None for view in views):
            return "none"
        return worst

    def _target_facts(self, view: TargetView) -> TargetFacts:
        pusher, target = self._pusher, view.target
        findings, ledger = pusher.state.findings, pusher.state.ledger
        lane, state = ledger.lane(target.lane), ledger.target(target)
        runtime = pusher.server.runtimes.get(target.lane)
        opened = None if lane is None else lane.open
        final_us = finalization_of(target, state, view.grace_us)
        mapped_us = findings.mapped_at_us.get((view.tenant, view.metric), 0)
        begun_us = None if lane is None else lane.baseline_start_us
        is_history = begun_us is not None and target.start_us < begun_us
        was_pushed = state is not None and bool(state.pushed or state.last_intent_at_us)
        is_history = is_history or (not was_pushed and target.end_us <= mapped_us)
        is_adjusted, late_units = False, None
        if self._clock.now_us() >= target.end_us:
            is_adjusted, late_units = self._corrections(target, final_us)
        return TargetFacts(
            target=target,
            id=target_id(target),
            tenant=view.tenant,
            metric=view.metric,
            planned=pusher.server.planned(view),
            end_us=target.end_us,
            finalization_us=final_us,
            mark=findings.mark(target),
            hold_cause=self._hold_cause(view),
            open_since_us=None if opened is None else opened.first_sent_at_us,
            open_error=None if runtime is None else runtime.last_error,
            is_history=is_history,
            is_adjusted=is_adjusted,
            late_units=late_units,
        )

    def _hold_cause(self, view: TargetView) -> Cause:
        customer = view.resolved.customer
        if customer is not None and customer != view.target.lane.customer:
            return "wrong_customer"
        role: Role | None = self._pusher.state.routes.role(view.tenant, view.metric)
        return "held" if role == view.role else "mapping_missing"

    def _corrections(self, target: Target, final_us: int) -> tuple[bool, int | None]:
        """(whether an adjustment was decided after the invoice was final, what waiting late events would add)."""
        is_adjusted, has_late, micros = False, False, 0
        for series in self._pusher.totals.series_of(target):
            shard, partition = self._pusher.changes.place_of(series)
            adjustments = shard.state.adjustments[partition]
            for one in adjustments.of_counter((*series, target.start_us)):
                if one.status == "pending" and one.kind == "event":
                    has_late = True
                    micros += sum(one.quantities)
                elif one.decided_at_us is not None and one.decided_at_us >= final_us:
                    is_adjusted = True
        return is_adjusted, billable_units(micros, target.scale) if has_late else None
