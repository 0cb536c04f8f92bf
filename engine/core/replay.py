"""Replay: which late events would be folded under another watermark or lateness, and what that changes. Pure.

Rules it keeps: a plan reads the state and changes nothing; it takes only late events whose adjustment still waits, in
periods that are open; the record made of it carries positions and results, so that folding it reads nothing else;
the same state and request give the same plan and the same hash. It must not know tasks or the log.

Everything that was folded in time stays as it is: by the fold's own rule its place in the counter does not depend on
a later watermark. So a replay's work grows with what is late, not with what was ever counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import compress
from operator import add
from typing import Final, NamedTuple

import msgspec

from engine.core.adjustments import Adjustment, CounterKey, effective_value
from engine.core.counters import Counter, Tally
from engine.core.records import ReplayedCounter
from engine.core.shard_state import ShardState

_BEFORE_US: Final = -(1 << 62)
_AFTER_US: Final = 1 << 62
EVENTS_MAX: Final = 100_000
"""Late events that one plan looks at; beyond it the plan ends at an instant, and `cursor` goes on from there."""


class Rows(NamedTuple):
    """Events as columns, since there may be a hundred thousand: one object each would cost five times as much."""

    sequences: list[int]
    micros: list[int]
    times_us: list[int]

    def between(self, first_us: int, end_us: int) -> Rows:
        """Those with first_us <= ts < end_us."""
        times_us = self.times_us
        if not times_us or (first_us <= min(times_us) and max(times_us) < end_us):
            return self
        kept = [first_us <= ts_us < end_us for ts_us in times_us]
        return Rows(*(list(compress(column, kept)) for column in self))


class ReplayRequest(NamedTuple):
    """What to look at. Instants in microseconds; None: without that bound.

    `watermark_us` and `lateness_us` judge anew: an event is folded if it is not older than watermark - lateness.
    Only one of them given: the other is the counter's own watermark, or the metric's own lateness. Without both
    every late event of the range is folded.
    """

    tenant: str
    metrics: frozenset[str] | None
    since_us: int | None
    until_us: int | None
    watermark_us: int | None
    lateness_us: int | None
    open_only: bool = False
    """Look at nothing of closed periods, also when counting."""


class MetricChange(NamedTuple):
    """What a plan changes in one metric. `delta_micros` is of what counts, by the metric's aggregation."""

    late_events: int
    """Late events of the range that wait, folded by the plan or not."""
    folded_events: int
    delta_micros: int
    customers: int


class ReplayPlan(NamedTuple):
    """What would be folded, counter by counter in a fixed order, and its hash."""

    counters: tuple[ReplayedCounter, ...]
    changes: dict[str, MetricChange]
    superseded: tuple[str, ...]
    """Adjustments that have no event left afterwards."""
    plan_hash: str
    cursor_us: int | None
    """Where to go on when there was more than EVENTS_MAX; None: all of the range was looked at."""
    watermark_us: int | None
    """The one that was given, else the newest of the counters looked at; None when there are none."""


class _Found(NamedTuple):
    """A counter with late events of the range. `oldest_us`: those before it stay late; None: the period is closed."""

    key: CounterKey
    partition: int
    state: ShardState
    counter: Counter | None
    oldest_us: int | None
    waiting: list[tuple[Adjustment, Rows]]


class _Part(NamedTuple):
    """What a plan has of one partition, as of a version of its adjustments."""

    version: int
    late_events: int
    counters: list[ReplayedCounter]
    changes: dict[str, MetricChange]
    superseded: list[str]
    seen: list[Counter]
    """The counters that were there."""
    stamp: int | None
    """What `_stamp` was; None: what is planned does not change with the events that these counters fold."""


class Planner:
    """Makes a plan partition by partition, so that others may run in between.

    What was looked at and then moved is looked at again by `plan`, which is about the moment of its call. Nothing but
    events may be folded between the first look and the plan: hold the lock of all changes, or take it as a preview.
    """

    def __init__(self, request: ReplayRequest) -> None:
        self._request = request
        self._parts: dict[int, _Part] = {}
        # Judged by the counters' own watermarks, what is found moves with every event.
        self._is_steady = request.lateness_us is None or request.watermark_us is not None

    def look(self, state: ShardState, partition: int) -> int:
        """Look at one partition of a state; how many late events it has."""
        found = _late(state, partition, self._request)
        part = _part(state.adjustments[partition].version, found, None)
        self._parts[partition] = part
        return part.late_events

    def plan(self, states: Iterable[ShardState]) -> ReplayPlan:
        """The plan over these states, which hold every partition once, as they are now."""
        states = list(states)
        for state in states:
            for partition, adjustments in state.adjustments.items():
                part = self._parts.get(partition)
                if part is None or not self._is_steady or _has_moved(part, adjustments.version):
                    self.look(state, partition)
        until_us = None
        parts = self._parts
        if sum(part.late_events for part in parts.values()) > EVENTS_MAX:
            every = [
                (partition, adjustments.version, _late(state, partition, self._request))
                for state in states
                for partition, adjustments in state.adjustments.items()
            ]
            until_us = _cut([one for _, _, found in every for one in found])
            parts = {
                partition: _part(version, found, until_us) for partition, version, found in every
            }
        ordered = [parts[partition] for partition in sorted(parts)]
        return _joined(ordered, until_us, self._request.watermark_us)


def plan(states: Iterable[ShardState], request: ReplayRequest) -> ReplayPlan:
    """The plan of a request over the shards' states as they are now, at once."""
    return Planner(request).plan(states)


def _stamp(seen: Sequence[Counter], looked_at: int) -> int:
    """Grows with every event that the counters fold; below 0 while one of those looked at is not there yet."""
    return sum(counter.count for counter in seen) if len(seen) == looked_at else -1


def _has_moved(part: _Part, version: int) -> bool:
    """Whether a partition must be looked at again."""
    if part.version != version:
        return True
    return part.stamp is not None and (
        part.stamp < 0 or part.stamp != _stamp(part.seen, len(part.seen))
    )


def _joined(parts: Sequence[_Part], until_us: int | None, given_us: int | None) -> ReplayPlan:
    changes: dict[str, MetricChange] = {}
    for part in parts:
        for metric, more in part.changes.items():
            old = changes.get(metric, MetricChange(0, 0, 0, 0))
            changes[metric] = MetricChange(*map(add, old, more))
    counters = [counter for part in parts for counter in part.counters]
    newest_us = max((c.watermark_us for part in parts for c in part.seen), default=None)
    return ReplayPlan(
        tuple(counters),
        changes,
        tuple(one for part in parts for one in part.superseded),
        _hash(counters),
        until_us,
        newest_us if given_us is None else given_us,
    )


def _part(version: int, found: Sequence[_Found], until_us: int | None) -> _Part:
    """What is planned for the counters of one partition, in order of key; of events before `until_us` alone."""
    seen = [one.counter for one in found if one.counter is not None]
    follows_events = len(seen) != len(found) or any(_aggregation(one) != "sum" for one in found)
    stamp = _stamp(seen, len(found)) if follows_events else None
    part = _Part(version, sum(_waiting(one) for one in found), [], {}, [], seen, stamp)
    last_series: tuple[str, str, str] | None = None
    for one in found:
        waiting = 0
        folded: list[Rows] = []
        for adjustment, late in one.waiting:
            in_page = late if until_us is None else late.between(_BEFORE_US, until_us)
            waiting += len(in_page.sequences)
            if one.oldest_us is None or not in_page.sequences:
                continue
            taken = in_page.between(one.oldest_us, _AFTER_US)
            folded.append(taken)
            if len(taken.sequences) == len(adjustment.sequences):
                part.superseded.append(adjustment.id)
        rows = _in_log_order(folded)
        delta_micros = 0
        # In order of key, so a customer's periods come one after the other.
        is_new_customer = bool(rows.sequences) and one.key[:3] != last_series
        if rows.sequences:
            last_series = one.key[:3]
            tally = _tally(rows)
            part.counters.append(_record(one, tuple(rows.sequences), tally))
            delta_micros = _delta(one, rows, tally)
        old = part.changes.get(one.key[1], MetricChange(0, 0, 0, 0))
        part.changes[one.key[1]] = MetricChange(
            old.late_events + waiting,
            old.folded_events + len(rows.sequences),
            old.delta_micros + delta_micros,
            old.customers + is_new_customer,
        )
    return part


def _waiting(one: _Found) -> int:
    return sum(len(rows.sequences) for _, rows in one.waiting)


def _late(state: ShardState, partition: int, request: ReplayRequest) -> list[_Found]:
    """The counters of a partition that have late events of the range, in order of key."""
    found = []
    adjustments = state.adjustments[partition]
    for key in adjustments.counters():
        tenant, metric, customer, start_us = key
        if tenant != request.tenant or (request.metrics and metric not in request.metrics):
            continue
        pending = [
            a for a in adjustments.of_counter(key) if a.kind == "event" and a.status == "pending"
        ]
        if not pending:
            continue
        scope = state.rules.scope(tenant, metric)
        is_open = pending[0].end_us > scope.closed_until_us
        if request.open_only and not is_open:
            continue
        ranged = [(a, _in_range(a, request)) for a in pending]
        waiting = [(a, rows) for a, rows in ranged if rows.sequences]
        if waiting:
            counter = state.counters[partition].get((tenant, metric, customer))
            while counter is not None and counter.start_us != start_us:
                counter = counter.older
            oldest_us = _oldest_us(request, counter, scope.lateness_us) if is_open else None
            found.append(_Found(key, partition, state, counter, oldest_us, waiting))
    return sorted(found, key=lambda one: one.key)


def _oldest_us(request: ReplayRequest, counter: Counter | None, lateness_us: int) -> int:
    """Events of an open period are folded from this instant on."""
    if request.watermark_us is None and request.lateness_us is None:
        return _BEFORE_US
    watermark_us = request.watermark_us
    if watermark_us is None:
        watermark_us = _BEFORE_US if counter is None else counter.watermark_us
    return watermark_us - (lateness_us if request.lateness_us is None else request.lateness_us)


def _in_range(adjustment: Adjustment, request: ReplayRequest) -> Rows:
    rows = Rows(adjustment.sequences.tolist(), adjustment.quantities, adjustment.times_us.tolist())
    first_us = _BEFORE_US if request.since_us is None else request.since_us
    return rows.between(first_us, _AFTER_US if request.until_us is None else request.until_us)


def _in_log_order(parts: Sequence[Rows]) -> Rows:
    """Events of several adjustments as one; each part is in order already."""
    if len(parts) == 1:
        return parts[0]
    rows = sorted(row for part in parts for row in zip(*part, strict=True))
    return Rows(*(list(column) for column in zip(*rows, strict=True))) if rows else Rows([], [], [])


def _cut(found: Sequence[_Found]) -> int | None:
    """The instant before which at most EVENTS_MAX events lie; None if all fit."""
    if sum(map(_waiting, found)) <= EVENTS_MAX:
        return None
    times = sorted(ts_us for one in found for _, rows in one.waiting for ts_us in rows.times_us)
    # Events of one instant stay together, or the cursor would pass some of them over.
    cut_us = times[EVENTS_MAX]
    return cut_us if cut_us > times[0] else cut_us + 1


def _tally(rows: Rows) -> Tally:
    """What the rows, in log order, come to; the same as adding one after the other, several times as fast."""
    tally = Tally()
    times_us = rows.times_us
    last_us = max(times_us)
    last = len(times_us) - 1
    while times_us[last] != last_us:  # of the newest ones the last in the log
        last -= 1
    tally.sum, tally.count, tally.max = sum(rows.micros), len(times_us), max(rows.micros)
    tally.last, tally.last_ts_us = rows.micros[last], last_us
    return tally


def _aggregation(one: _Found) -> str:
    tenant, metric, _customer, start_us = one.key
    return one.state.rules.aggregation(tenant, metric, start_us)


def _delta(one: _Found, rows: Rows, tally: Tally) -> int:
    """By how much what counts moves."""
    start_us = one.key[3]
    aggregation = _aggregation(one)
    if aggregation == "sum":
        return tally.sum
    adjustments = one.state.adjustments[one.partition].of_counter(one.key)
    before = effective_value(one.counter, adjustments, aggregation)
    after = Counter(start_us, start_us, None)
    if one.counter is not None:
        after.merge(one.counter.tally())
    after.merge(tally)
    moved = [_after_rows(a, rows) if a.after is not None else a for a in adjustments]
    return effective_value(after, moved, aggregation) - before


def _after_rows(value: Adjustment, rows: Rows) -> Adjustment:
    """A value adjustment as it will be when the rows are folded."""
    assert value.after is not None
    moved = Adjustment(value.id, value.key, value.end_us, value.kind, value.sequence, 0)
    moved.status, moved.micros, moved.after = value.status, value.micros, value.after.copy()
    for sequence, micros, ts_us in zip(*rows, strict=True):
        if sequence > value.sequence:
            moved.after.add(micros, ts_us)
    return moved


def _record(one: _Found, sequences: tuple[int, ...], tally: Tally) -> ReplayedCounter:
    tenant, metric, customer_ref, start_us = one.key
    return ReplayedCounter(
        partition=one.partition,
        tenant_id=tenant,
        metric=metric,
        customer_ref=customer_ref,
        period_start_us=start_us,
        sequences=sequences,
        tally=tally.state(),
    )


def _hash(counters: list[ReplayedCounter]) -> str:
    return blake2b(msgspec.msgpack.encode(counters), digest_size=16).hexdigest()
