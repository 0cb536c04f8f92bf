"""Replay: which late events would be folded under another watermark or lateness, and what that changes. Pure.

Rules it keeps: a plan reads the state and changes nothing; it takes only late events whose adjustment still waits, in
periods that are open; the record made of it carries positions and results, so that folding it reads nothing else;
the same state and request give the same plan and the same hash. It must not know tasks or the log.

Everything that was folded in time stays as it is: by the fold's own rule its place in the counter does not depend on
a later watermark. So a replay's work grows with what is late, not with what was ever counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from engine.core.adjustments import Adjustment, CounterKey, effective_value
from engine.core.counters import Counter, Tally
from engine.core.records import ReplayedCounter
from engine.core.shard_state import ShardState

EVENTS_MAX: Final = 100_000
"""Late events that one plan looks at; beyond it the plan ends at an instant, and `cursor` goes on from there."""

Row = tuple[int, int, int]
"""(sequence, micros, ts_us): an event as plain values, since there may be a hundred thousand."""


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
    waiting: list[tuple[Adjustment, list[Row]]]


def plan(states: Iterable[ShardState], request: ReplayRequest) -> ReplayPlan:
    """The plan of a request over the shards' states as they are now."""
    found = sorted((f for state in states for f in _late(state, request)), key=lambda f: f.key)
    until_us = _cut(found)
    counters: list[ReplayedCounter] = []
    changes: dict[str, MetricChange] = {}
    superseded: list[str] = []
    watermark_us = request.watermark_us
    last_series: tuple[str, str, str] | None = None
    for one in found:
        waiting = 0
        rows: list[Row] = []
        for adjustment, late in one.waiting:
            in_page = late if until_us is None else [row for row in late if row[2] < until_us]
            waiting += len(in_page)
            folded = _folded(in_page, one.oldest_us)
            rows += folded
            if len(folded) == len(adjustment.sequences):
                superseded.append(adjustment.id)
        rows.sort()
        old = changes.get(one.key[1], MetricChange(0, 0, 0, 0))
        delta_micros = 0
        # In order of key, so a customer's periods come one after the other.
        is_new_customer = bool(rows) and one.key[:3] != last_series
        if rows:
            last_series = one.key[:3]
            tally = _tally(rows)
            counters.append(_record(one, tuple(row[0] for row in rows), tally))
            delta_micros = _delta(one, rows, tally)
        changes[one.key[1]] = MetricChange(
            old.late_events + waiting,
            old.folded_events + len(rows),
            old.delta_micros + delta_micros,
            old.customers + is_new_customer,
        )
        if request.watermark_us is None and one.counter is not None:
            watermark_us = max(watermark_us or one.counter.watermark_us, one.counter.watermark_us)
    return ReplayPlan(
        tuple(counters), changes, tuple(superseded), _hash(counters), until_us, watermark_us
    )


def _late(state: ShardState, request: ReplayRequest) -> Iterator[_Found]:
    for partition, adjustments in state.adjustments.items():
        for key in adjustments.counters():
            tenant, metric, customer, start_us = key
            if tenant != request.tenant or (request.metrics and metric not in request.metrics):
                continue
            pending = [
                a
                for a in adjustments.of_counter(key)
                if a.kind == "event" and a.status == "pending"
            ]
            if not pending:
                continue
            scope = state.rules.scope(tenant, metric)
            is_open = pending[0].end_us > scope.closed_until_us
            if request.open_only and not is_open:
                continue
            waiting = [(a, rows) for a in pending if (rows := _in_range(a, request))]
            if waiting:
                counter = state.counters[partition].get((tenant, metric, customer))
                while counter is not None and counter.start_us != start_us:
                    counter = counter.older
                oldest_us = _oldest_us(request, counter, scope.lateness_us) if is_open else None
                yield _Found(key, partition, state, counter, oldest_us, waiting)


def _oldest_us(request: ReplayRequest, counter: Counter | None, lateness_us: int) -> int:
    """Events of an open period are folded from this instant on."""
    everything_us = -(1 << 62)
    if request.watermark_us is None and request.lateness_us is None:
        return everything_us
    watermark_us = request.watermark_us
    if watermark_us is None:
        watermark_us = everything_us if counter is None else counter.watermark_us
    return watermark_us - (lateness_us if request.lateness_us is None else request.lateness_us)


def _in_range(adjustment: Adjustment, request: ReplayRequest) -> list[Row]:
    rows = zip(adjustment.sequences, adjustment.quantities, adjustment.times_us, strict=True)
    since_us, until_us = request.since_us, request.until_us
    if since_us is None and until_us is None:
        return list(rows)
    first_us = -(1 << 62) if since_us is None else since_us
    end_us = 1 << 62 if until_us is None else until_us
    return [row for row in rows if first_us <= row[2] < end_us]


def _folded(rows: list[Row], oldest_us: int | None) -> list[Row]:
    if oldest_us is None:
        return []
    return [row for row in rows if row[2] >= oldest_us]


def _cut(found: Sequence[_Found]) -> int | None:
    """The instant before which at most EVENTS_MAX events lie; None if all fit."""
    if sum(len(rows) for one in found for _, rows in one.waiting) <= EVENTS_MAX:
        return None
    times = sorted(row[2] for one in found for _, rows in one.waiting for row in rows)
    # Events of one instant stay together, or the cursor would pass some of them over.
    cut_us = times[EVENTS_MAX]
    return cut_us if cut_us > times[0] else cut_us + 1


def _tally(rows: Sequence[Row]) -> Tally:
    """What the rows, in log order, come to; the same as adding one after the other, several times as fast."""
    tally = Tally()
    quantities = [row[1] for row in rows]
    last = max(rows, key=lambda row: (row[2], row[0]))
    tally.sum, tally.count, tally.max = sum(quantities), len(rows), max(quantities)
    tally.last, tally.last_ts_us = last[1], last[2]
    return tally


def _delta(one: _Found, rows: Sequence[Row], tally: Tally) -> int:
    """By how much what counts moves."""
    tenant, metric, _customer, start_us = one.key
    aggregation = one.state.rules.aggregation(tenant, metric, start_us)
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


def _after_rows(value: Adjustment, rows: Sequence[Row]) -> Adjustment:
    """A value adjustment as it will be when the rows are folded."""
    assert value.after is not None
    moved = Adjustment(value.id, value.key, value.end_us, value.kind, value.sequence, 0)
    moved.status, moved.micros, moved.after = value.status, value.micros, value.after.copy()
    for sequence, micros, ts_us in rows:
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
