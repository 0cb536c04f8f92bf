"""Watches a fold for a certificate: where each period's events and pushes lie in the log, and what they come to.

Rules it keeps: it decides nothing itself, so that what a certificate says is what was counted and pushed; it names the
first and the last log position of everything it adds up. It must not know tasks, HTTP or signatures.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from engine.core.configured import CustomerChange, MappingChange
from engine.core.keeping import EraseChange
from engine.core.periods import period_in
from engine.core.push_ledger import LaneState
from engine.core.push_records import PushDecision, PushIntent, PushOutcome, Target
from engine.core.push_state import PushState
from engine.core.records import ControlRecord, ReplayApply, TenantEvents
from engine.core.shard_state import Late, Series, ShardState

PeriodKey = tuple[Series, int]
"""(series, period start)."""


class EventSpan:
    """All events of one period of a series, counted or held."""

    __slots__ = ("count", "first", "last", "late", "sum")

    def __init__(self, first: int) -> None:
        self.count = self.sum = self.late = 0
        self.first = self.last = first


class PushSpan:
    """All that was recorded of one target."""

    __slots__ = (
        "baseline_units",
        "count",
        "delivered",
        "delivered_units",
        "first",
        "last",
        "last_at_us",
        "taken_back_units",
    )

    def __init__(self, first: int) -> None:
        self.count = self.delivered = 0
        self.baseline_units = self.delivered_units = self.taken_back_units = 0
        self.first = self.last = first
        self.last_at_us = 0


class ParityTrail:
    """An observer of `engine.actors.prefix_fold`, from the log's start, of one tenant's events."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.push = PushState()
        self.events: dict[PeriodKey, EventSpan] = {}
        self.pushes: dict[Target, PushSpan] = {}
        self._state: ShardState | None = None
        self._periods: dict[Series, tuple[int, int]] = {}
        """The period that each series' newest event was in, until rules change."""

    @property
    def state(self) -> ShardState:
        """What was folded."""
        assert self._state is not None, "a fold begins before it is looked at"
        return self._state

    def begin_anew(self, state: ShardState) -> None:
        """See `Observer`."""
        self.push = PushState()
        self.events, self.pushes, self._periods = {}, {}, {}
        self._state = state

    def events_folded(
        self,
        events: TenantEvents,
        indexes: Sequence[int],
        late: Sequence[Late],
        *,
        first_sequence: int,
        received_at_us: int,
    ) -> None:
        """See `Observer`."""
        held = {one.row for one in late}
        for index in indexes:
            series = (events.tenant, events.metrics[index], events.customers[index])
            sent_ts_us = events.times_us[index]
            ts_us = received_at_us if sent_ts_us is None else sent_ts_us
            if index in held:
                start_us, _end_us = period_in(self.state.rules.schedule(*series), ts_us)
            else:
                start_us = self._counted_in(series, events.partitions[index], ts_us)
            position = first_sequence + index
            span = self.events.get((series, start_us))
            if span is None:
                span = self.events[series, start_us] = EventSpan(position)
            span.count += 1
            span.sum += events.micros[index]
            span.late += index in held
            span.last = position

    def _counted_in(self, series: Series, partition: int, ts_us: int) -> int:
        """The start of the counter that an event was folded into just now."""
        period = self._periods.get(series)
        if period is None or not period[0] <= ts_us < period[1]:
            counter = self.state.counters[partition].get(series)
            while counter is not None and ts_us < counter.start_us:
                counter = counter.older
            assert counter is not None, "what was folded is in a counter"
            period = self._periods[series] = counter.start_us, counter.end_us
        return period[0]

    def control_coming(self, record: ControlRecord, *, sequence: int, received_at_us: int) -> None:
        """See `Observer`."""
        match record:
            case PushIntent():
                self._at(record.target, sequence, received_at_us).count += 1
            case PushOutcome() | PushDecision():
                self._note(record, sequence, received_at_us)
                return
            case MappingChange() | CustomerChange() | ReplayApply():  # which may make a counter
                self._periods.clear()
            case EraseChange() if record.tenant_id == self.tenant:
                self._rename(record.names)
            case _:
                pass
        self.push.fold(record, received_at_us)

    def _at(self, target: Target, sequence: int, at_us: int) -> PushSpan:
        span = self.pushes.get(target)
        if span is None:
            span = self.pushes[target] = PushSpan(sequence)
        span.last, span.last_at_us = sequence, at_us
        return span

    def pushed(self, target: Target) -> int:
        """Units that count as acknowledged."""
        state = self.push.ledger.target(target)
        return 0 if state is None else state.pushed

    def pushed_at_us(self, target: Target) -> int:
        """When something was recorded last of any target that the same summary tells of; 0: never."""
        of_period = pushed_of(self.push.ledger.lane(target.lane), target)
        spans = (self.pushes.get(one) for one in (target, *of_period))
        return max((span.last_at_us for span in spans if span is not None), default=0)

    def _note(self, record: PushOutcome | PushDecision, sequence: int, at_us: int) -> None:
        """Fold a record and see what it moves."""
        target = record.target
        if target is None:
            self.push.fold(record, at_us)
            return
        before = self.pushed(target)
        self.push.fold(record, at_us)
        moved = self.pushed(target) - before
        span = self._at(target, sequence, at_us)
        if isinstance(record, PushDecision):
            if record.kind == "baseline":
                span.baseline_units = self.pushed(target)
                span.delivered_units = span.taken_back_units = 0
            elif record.kind == "carry" and record.into == "current":
                into = Target(target.lane, target.scale, record.at_us, record.until_us)
                self._at(into, sequence, at_us)
        elif record.result == "delivered":
            span.delivered += 1
            span.delivered_units += moved
        else:
            span.taken_back_units -= moved

    def _rename(self, names: dict[str, str]) -> None:
        for key in [k for k in self.events if k[0][2] in names]:
            (tenant, metric, name), start_us = key
            self.events[(tenant, metric, names[name]), start_us] = self.events.pop(key)
        self._periods.clear()

    def beside(self, target: Target) -> int:
        """Units pushed to the other targets that the same summary tells of."""
        lane = self.push.ledger.lane(target.lane)
        of_period = [] if lane is None else lane.minutes_used(target.start_us)
        return sum(each.pushed for each in of_period if each.target != target)

    def beyond(self, target: Target) -> Fraction:
        """What the summary is expected to hold that does not count as pushed."""
        lane = self.push.ledger.lane(target.lane)
        of_period = [] if lane is None else lane.minutes_used(target.start_us)
        offsets = (Fraction(self.push.findings.mark(each.target).offset) for each in of_period)
        return sum(offsets, Fraction(0))


def pushed_of(lane: LaneState | None, target: Target) -> dict[Target, int]:
    """What counts as pushed to each target that the same summary tells of, where that is anything."""
    of_period = [] if lane is None else lane.minutes_used(target.start_us)
    return {each.target: each.pushed for each in of_period if each.pushed}
