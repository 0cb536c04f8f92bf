"""How a total came about: every event, late event, replay and adjustment of one counter, as parts that add up to it.

Rules it keeps: it watches the fold and decides nothing itself, so that what it says is what was counted; its parts add
up to the total to the last digit, which is asserted; each part names positions in the log. Of max and last it names
the event or adjustment that won, by the counters' own rules. It must not know tasks, the log or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from engine.core.adjustments import Adjustment, effective_value
from engine.core.counters import Counter, Tally
from engine.core.partitions import partition_of
from engine.core.periods import period_in
from engine.core.records import AdjustmentChange, ControlRecord, ReplayApply, TenantEvents
from engine.core.shard_state import Late, Series, ShardState
from engine.core.times import DAY_US, format_date
from engine.errors import Refused

LINES_MAX: Final = 1_000
"""Late collections, and adjustments, that are told one by one; the rest comes as one sum."""
Via = Literal["event", "late", "replay", "adjustment"]


class Origin(NamedTuple):
    """Where a value comes from: an event at a log position, counted in time, late or by a replay, or an adjustment."""

    via: Via
    position: int
    micros: int
    ts_us: int | None
    """None: an adjustment has no time."""
    adjustment_id: str | None = None


class DayPart(NamedTuple):
    """The events of one UTC day that were counted when they came."""

    day_us: int
    events: int
    sum_micros: int
    first_position: int
    last_position: int


class ReplayPart(NamedTuple):
    """Late events that a replay counted. `position` is that of its record."""

    position: int
    at_us: int
    actor: str
    plan_hash: str
    adjustment_ids: tuple[str, ...]
    events: int
    sum_micros: int
    first_position: int
    last_position: int


class LatePart(NamedTuple):
    """An adjustment that collects late events. `amount_micros` is what it adds to the sum now: 0 unless approved."""

    adjustment: Adjustment
    events: int
    sum_micros: int
    first_position: int | None
    last_position: int | None
    amount_micros: int


class AdjustmentPart(NamedTuple):
    """A delta or value. `amount_micros` is what it adds to the sum now."""

    adjustment: Adjustment
    amount_micros: int


class Rest(NamedTuple):
    """What was not told one by one."""

    lines: int
    amount_micros: int


class Explanation(NamedTuple):
    """Everything about one counter. For a sum the parts' amounts add up to `total_micros`."""

    series: Series
    start_us: int
    end_us: int
    aggregation: str
    total_micros: int
    counted: Tally
    """What the counter itself holds: in time and replayed, without adjustments."""
    days: tuple[DayPart, ...]
    replays: tuple[ReplayPart, ...]
    late: tuple[LatePart, ...]
    adjustments: tuple[AdjustmentPart, ...]
    rest: Rest
    decided_by: Origin | None
    """Of a max or last: what won. None for a sum, and where nothing was counted."""


class _Trace:
    """A tally that remembers whose its max and its last are."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.max_by: Origin | None = None
        self.last_by: Origin | None = None

    def add(self, origin: Origin, ts_us: int) -> None:
        """As `Tally.add`."""
        tally = self.tally
        if tally.count == 0 or origin.micros > tally.max:
            self.max_by = origin
        if ts_us >= tally.last_ts_us:
            self.last_by = origin
        tally.add(origin.micros, ts_us)

    def merge(self, other: _Trace) -> None:
        """As `Counter.merge`."""
        mine, others = self.tally, other.tally
        if others.count == 0:
            return
        if mine.count == 0 or others.max > mine.max:
            self.max_by, mine.max = other.max_by, others.max
        if mine.count == 0 or others.last_ts_us > mine.last_ts_us:
            self.last_by, mine.last = other.last_by, others.last
            mine.last_ts_us = others.last_ts_us
        mine.sum += others.sum
        mine.count += others.count

    def copy(self) -> _Trace:
        """Another one that says the same."""
        twin = _Trace()
        twin.tally = self.tally.copy()
        twin.max_by, twin.last_by = self.max_by, self.last_by
        return twin


class _Trail:
    """What happened to one counter so far."""

    def __init__(self) -> None:
        self.trace = _Trace()
        self.days: dict[int, DayPart] = {}
        self.replays: list[ReplayPart] = []
        self.after_values: dict[str, tuple[int, _Trace]] = {}
        """Per value adjustment its position, and what was folded after it."""

    def add(self, origin: Origin, ts_us: int) -> None:
        self.trace.add(origin, ts_us)
        for _position, trace in self.after_values.values():
            trace.add(origin, ts_us)
        day_us = ts_us - ts_us % DAY_US
        old = self.days.get(day_us)
        if old is None:
            self.days[day_us] = DayPart(day_us, 1, origin.micros, origin.position, origin.position)
        else:
            self.days[day_us] = old._replace(
                events=old.events + 1,
                sum_micros=old.sum_micros + origin.micros,
                last_position=origin.position,
            )


class Explainer:
    """Watches the fold of one series (`engine.actors.prefix_fold.Observer`); then `explanation` tells of a period."""

    def __init__(self, series: Series, day_us: int) -> None:
        """`day_us`: the start of the UTC day on which the period begins."""
        self._series = series
        self._day_us = day_us
        self._partition = partition_of(series[0], series[2])
        self._trails: dict[int, _Trail] = {}
        """By the start of their periods: those that begin on the day, of which there is one unless rules changed."""
        self.state: ShardState | None = None
        """The state that is being folded."""

    def begin_anew(self, state: ShardState) -> None:
        """See `Observer`."""
        self._trails = {}
        self.state = state

    def _trail_of(self, start_us: int) -> _Trail | None:
        """Of the period that begins then; None: it is not on the day."""
        if start_us - start_us % DAY_US != self._day_us:
            return None
        return self._trails.setdefault(start_us, _Trail())

    def _trail_at(self, ts_us: int) -> _Trail | None:
        """Of the counter that an event was folded into just now."""
        assert self.state is not None
        counter = self.state.counters[self._partition].get(self._series)
        while counter is not None and ts_us < counter.start_us:
            counter = counter.older
        assert counter is not None, "what was folded is in a counter"
        return self._trail_of(counter.start_us)

    def events_folded(
        self,
        events: TenantEvents,
        indexes: Sequence[int],
        late: Sequence[Late],
        *,
        first_sequence: int,
        received_at_us: int,
    ) -> None:
        """See `Observer`. The late ones are in their adjustments, which are read at the end."""
        held = {one.row for one in late}
        for index in indexes:
            if index in held:
                continue
            sent_ts_us = events.times_us[index]
            ts_us = received_at_us if sent_ts_us is None else sent_ts_us
            trail = self._trail_at(ts_us)
            if trail is not None:
                position = first_sequence + index
                trail.add(Origin("event", position, events.micros[index], ts_us), ts_us)

    def control_coming(self, record: ControlRecord, *, sequence: int, received_at_us: int) -> None:
        """See `Observer`."""
        match record:
            case AdjustmentChange(adjustment=made) if made is not None and made.kind == "value":
                if (made.tenant_id, made.metric, made.customer_ref) == self._series:
                    trail = self._trail_of(made.period_start_us)
                    if trail is not None:
                        trail.after_values[made.id] = (sequence, _Trace())
            case ReplayApply():
                self._replayed(record, sequence, received_at_us)
            case _:
                pass

    def _replayed(self, record: ReplayApply, sequence: int, received_at_us: int) -> None:
        assert self.state is not None
        for folded in record.counters:
            if (folded.tenant_id, folded.metric, folded.customer_ref) != self._series:
                continue
            trail = self._trail_of(folded.period_start_us)
            if trail is None:
                continue
            wanted = frozenset(folded.sequences)
            key = (*self._series, folded.period_start_us)
            trace = _Trace()
            ids = []
            held = []
            for adjustment in self.state.adjustments[self._partition].of_counter(key):
                if adjustment.kind == "event" and adjustment.status == "pending":
                    found = [e for e in adjustment.events() if e.sequence in wanted]
                    if found:
                        ids.append(adjustment.id)
                        held += found
            for event in sorted(held):
                origin = Origin("replay", event.sequence, event.micros, event.ts_us)
                trace.add(origin, event.ts_us)
                for position, after in trail.after_values.values():
                    if event.sequence > position:
                        after.add(origin, event.ts_us)
            trail.trace.merge(trace)
            trail.replays.append(
                ReplayPart(
                    sequence,
                    received_at_us,
                    record.change.actor,
                    record.plan_hash,
                    tuple(ids),
                    trace.tally.count,
                    trace.tally.sum,
                    min(wanted),
                    max(wanted),
                )
            )

    def explanation(self, at_us: int) -> Explanation:
        """The period that begins on the day, as of what was folded. `at_us`: when it is asked about.

        Raises Refused when no period begins on that day.
        """
        state = self.state
        assert state is not None
        schedule = state.rules.schedule(*self._series)
        start_us, end_us = period_in(schedule, self._day_us + DAY_US - 1)
        if start_us < self._day_us:
            raise Refused(_no_period(start_us), (("periodStart", _no_period(start_us)),))
        tenant, metric, _customer = self._series
        trail = self._trails.get(start_us, _Trail())
        counter = _counter_of(state, self._partition, self._series, start_us)
        end_us = end_us if counter is None else counter.end_us
        _check(trail, counter)
        adjustments = state.adjustments[self._partition].of_counter((*self._series, start_us))
        aggregation = state.rules.aggregation(tenant, metric, max(start_us, min(at_us, end_us - 1)))
        late = [_late_part(a) for a in adjustments if a.kind == "event"]
        others = [
            AdjustmentPart(a, a.micros if a.kind == "delta" and a.status == "approved" else 0)
            for a in adjustments
            if a.kind != "event"
        ]
        total = effective_value(counter, adjustments, aggregation)
        amounts = [p.amount_micros for p in late] + [p.amount_micros for p in others]
        decided_by: Origin | None = None
        if aggregation == "sum":
            assert trail.trace.tally.sum + sum(amounts) == total, "the parts are the total"
        else:
            decided_by = _winner(trail, adjustments, aggregation)
            assert total == (0 if decided_by is None else decided_by.micros), "the winner's value"
        hidden = [p.amount_micros for p in late[LINES_MAX:]]
        hidden += [p.amount_micros for p in others[LINES_MAX:]]
        return Explanation(
            self._series,
            start_us,
            end_us,
            aggregation,
            total,
            trail.trace.tally,
            tuple(part for _, part in sorted(trail.days.items())),
            tuple(trail.replays),
            tuple(late[:LINES_MAX]),
            tuple(others[:LINES_MAX]),
            Rest(len(hidden), sum(hidden)),
            decided_by,
        )


def _no_period(start_us: int) -> str:
    return f"must be the day on which a period begins; the one that holds it begins on {format_date(start_us)}"


def _counter_of(state: ShardState, partition: int, series: Series, start_us: int) -> Counter | None:
    counter = state.counters[partition].get(series)
    while counter is not None and counter.start_us > start_us:
        counter = counter.older
    return counter if counter is not None and counter.start_us == start_us else None


def _check(trail: _Trail, counter: Counter | None) -> None:
    """What was watched is what was counted."""
    seen = trail.trace.tally
    days = trail.days.values()
    assert seen.sum == sum(d.sum_micros for d in days) + sum(r.sum_micros for r in trail.replays)
    assert seen.count == sum(d.events for d in days) + sum(r.events for r in trail.replays)
    if counter is None:
        assert seen.count == 0
        return
    counted = counter.tally()
    assert (seen.sum, seen.count) == (counted.sum, counted.count)
    assert seen.count == 0 or (seen.max, seen.last) == (counted.max, counted.last)


def _late_part(adjustment: Adjustment) -> LatePart:
    total = sum(adjustment.quantities)
    positions = adjustment.sequences
    return LatePart(
        adjustment,
        len(positions),
        total,
        min(positions) if positions else None,
        max(positions) if positions else None,
        total if adjustment.status == "approved" else 0,
    )


def _winner(trail: _Trail, adjustments: Sequence[Adjustment], aggregation: str) -> Origin | None:
    """What a max or last comes from: the steps of `effective_value`, told apart."""
    approved = [a for a in adjustments if a.status == "approved"]
    values = [a for a in approved if a.kind == "value"]
    newest = max(values, key=lambda a: a.sequence) if values else None
    if newest is None:
        trace = trail.trace.copy()
    else:
        own = Origin("adjustment", newest.sequence, newest.micros, None, newest.id)
        trace = trail.after_values[newest.id][1].copy()
        tally = trace.tally
        if tally.count == 0:
            tally.max = tally.last = newest.micros
            tally.count = 1
            trace.max_by = trace.last_by = own
        elif newest.micros >= tally.max:
            tally.max, trace.max_by = newest.micros, own
    for adjustment in approved:
        if adjustment.kind == "event":
            for event in adjustment.events():
                if newest is None or event.sequence > newest.sequence:
                    origin = Origin(
                        "late", event.sequence, event.micros, event.ts_us, adjustment.id
                    )
                    trace.add(origin, event.ts_us)
    return trace.max_by if aggregation == "max" else trace.last_by
