"""Replay: which late events would be folded under another watermark or lateness, and what that changes. Pure.

Rules it keeps: a plan reads the state and changes nothing; it takes only late events whose adjustment still waits, in
periods that are open; the record made of it carries positions and results, so that folding it reads nothing else;
the same state and request give the same plan and the same hash. It must not know tasks or the log.

Everything that was folded in time stays as it is: by the fold's own rule its place in the counter does not depend on
a later watermark. So a replay's work grows with what is late, not with what was ever counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from engine.core.adjustments import CounterKey, LateEvent
from engine.core.counters import Tally
from engine.core.records import ReplayedCounter
from engine.core.shard_state import ShardState

EVENTS_MAX: Final = 100_000
"""Late events of one plan; beyond it the plan ends at an instant, and `cursor` goes on from there."""


class ReplayRequest(NamedTuple):
    """What to look at. Instants in microseconds; None: without that bound.

    `watermark_us` and `lateness_us` judge anew: an event is folded if it is not older than watermark - lateness.
    Without a watermark every late event of the range is folded; without a lateness the metric's own holds.
    """

    tenant: str
    metrics: frozenset[str] | None
    since_us: int | None
    until_us: int | None
    watermark_us: int | None
    lateness_us: int | None


class MetricChange(NamedTuple):
    """What a plan changes in one metric. `delta_micros` is of the sum."""

    late_events: int
    """Late events of the range that wait, folded by the plan or not."""
    folded_events: int
    delta_micros: int
    customers: int


class ReplayPlan(NamedTuple):
    """What would be folded, counter by counter in a fixed order, and its hash."""

    counters: tuple[ReplayedCounter, ...]
    changes: dict[str, MetricChange]
    plan_hash: str
    cursor_us: int | None
    """Where to go on when there was more than EVENTS_MAX; None: all of the range was looked at."""


class _Found(NamedTuple):
    partition: int
    key: CounterKey
    events: list[LateEvent]
    waiting: int


def plan(states: Iterable[ShardState], request: ReplayRequest) -> ReplayPlan:
    """The plan of a request over the shards' states as they are now."""
    found = sorted(
        (f for state in states for f in _late(state, request)), key=lambda f: (f.key, f.partition)
    )
    until_us = _cut(found)
    counters = []
    changes: dict[str, MetricChange] = {}
    for partition, key, all_events, waiting in found:
        events = [e for e in all_events if until_us is None or e.ts_us < until_us]
        tally = Tally()
        for event in events:
            tally.add(event.micros, event.ts_us)
        metric = key[1]
        old = changes.get(metric, MetricChange(0, 0, 0, 0))
        changes[metric] = MetricChange(
            old.late_events + waiting,
            old.folded_events + len(events),
            old.delta_micros + tally.sum,
            old.customers + (1 if events else 0),
        )
        if events:
            sequences = tuple(event.sequence for event in events)
            counters.append(_record(partition, key, sequences, tally))
    return ReplayPlan(tuple(counters), changes, _hash(counters), until_us)


def _late(state: ShardState, request: ReplayRequest) -> Iterator[_Found]:
    for partition, adjustments in state.adjustments.items():
        for key in adjustments.counters():
            tenant, metric, _customer, _start = key
            if tenant != request.tenant:
                continue
            if request.metrics is not None and metric not in request.metrics:
                continue
            scope = state.rules.scope(tenant, metric)
            lateness_us = scope.lateness_us if request.lateness_us is None else request.lateness_us
            oldest_us = None if request.watermark_us is None else request.watermark_us - lateness_us
            events: list[LateEvent] = []
            waiting = 0
            for adjustment in adjustments.of_counter(key):
                if adjustment.kind != "event" or adjustment.status != "pending":
                    continue
                in_range = [e for e in adjustment.events() if _within(e.ts_us, request)]
                waiting += len(in_range)
                if adjustment.end_us > scope.closed_until_us:
                    events += [e for e in in_range if oldest_us is None or e.ts_us >= oldest_us]
            if waiting:
                yield _Found(partition, key, sorted(events), waiting)


def _within(ts_us: int, request: ReplayRequest) -> bool:
    return (request.since_us is None or ts_us >= request.since_us) and (
        request.until_us is None or ts_us < request.until_us
    )


def _cut(found: list[_Found]) -> int | None:
    """The instant before which at most EVENTS_MAX events lie; None if all fit."""
    times = sorted(event.ts_us for f in found for event in f.events)
    if len(times) <= EVENTS_MAX:
        return None
    # Events of one instant stay together, or the cursor would pass some of them over.
    cut_us = times[EVENTS_MAX]
    return cut_us if cut_us > times[0] else cut_us + 1


def _record(
    partition: int, key: CounterKey, sequences: tuple[int, ...], tally: Tally
) -> ReplayedCounter:
    tenant, metric, customer_ref, start_us = key
    return ReplayedCounter(
        partition=partition,
        tenant_id=tenant,
        metric=metric,
        customer_ref=customer_ref,
        period_start_us=start_us,
        sequences=sequences,
        tally=tally.state(),
    )


def _hash(counters: list[ReplayedCounter]) -> str:
    return blake2b(msgspec.msgpack.encode(counters), digest_size=16).hexdigest()
