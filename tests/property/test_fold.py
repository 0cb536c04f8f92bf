"""The fold: any order, batching, sharding, snapshot and restart gives the totals that an independent recount gives."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.actors.shard import encode_partition, restore_partition
from engine.core.events import EventLimits, Refusal, SentEvent, accept
from engine.core.quantities import unpack_ext
from engine.core.records import (
    PartKind,
    PeriodClosing,
    RecordType,
    Row,
    SettingsChange,
    TenantEvents,
    columns,
    encode_control,
    encode_counting,
    encode_erasable,
)
from engine.core.rules import Rules
from engine.core.shard_state import ShardState
from engine.core.times import format_instant
from engine.limits import PARTITIONS
from tests.helpers.recount import recount
from wal.log import Draft, DraftPart
from wal.memory_log import MemoryLog

MONTH_END_US = 1_793_491_200_000_000  # 2026-11-01T00:00:00Z
HOUR_US = 3_600_000_000
LATENESS_US = 2 * HOUR_US


def row(metric: str, customer: str, quantity: str, ts_us: int | None, key: str, now_us: int) -> Any:
    sent = SentEvent(
        metric=metric,
        customer_ref=customer,
        quantity=msgspec.Raw(quantity.encode()),
        ts=None if ts_us is None else format_instant(ts_us),
        idempotency_key=key,
    )
    accepted = accept(sent, "acme", None, now_us, EventLimits(4096))
    assert not isinstance(accepted, Refusal), accepted
    return accepted


# Sits on the limits: ten microseconds around the lateness edge and the month's end find what wide ranges miss.
offsets_us = st.one_of(
    st.integers(-10, 10),
    st.integers(-10, 10).map(lambda d: -LATENESS_US + d),
    st.integers(-40 * 24 * HOUR_US, HOUR_US),
)
quantities = st.sampled_from(
    ["0", "1", "0.1", "0.000001", "999999999999999.999999", "900719925474099.300001", "2.5"]
)
events = st.lists(
    st.tuples(
        st.sampled_from(["calls", "seats"]),
        st.sampled_from(["a", "b", "c"]),
        quantities,
        st.one_of(st.none(), offsets_us),
    ),
    max_size=30,
)
groups = st.lists(events, min_size=1, max_size=6)
closings = st.sampled_from([None, None, MONTH_END_US, MONTH_END_US - 31 * 24 * HOUR_US])


def fold_into(
    state: ShardState, part: TenantEvents, first: int, received_us: int, own: set[int]
) -> None:
    indexes = [i for i, partition in enumerate(part.partitions) if partition in own]
    state.fold_events(part, indexes, first_sequence=first, received_at_us=received_us)


def state_of(states: list[ShardState]) -> Any:
    rows = [state.partition_state(p) for state in states for p in state.counters]
    return sorted(map(msgspec.msgpack.encode, rows))


@given(
    groups=groups,
    closing=closings,
    shards=st.integers(1, 8),
    cut=st.integers(0, 6),
    data=st.randoms(),
)
def test_any_sharding_and_any_restart_agree_with_the_recount(
    groups: list[Any], closing: int | None, shards: int, cut: int, data: random.Random
) -> None:
    log = MemoryLog()
    settings = SettingsChange(lateness_us=LATENESS_US, late_policy="review", actor="test")
    own = [{p for p in range(PARTITIONS) if p % shards == n} for n in range(shards)]
    states = [ShardState(sorted(partitions)) for partitions in own]
    kind, encoded = encode_control(settings)
    log.append([Draft(kind, 1, 0, (DraftPart(PartKind.CONTROL, encoded),))])
    for state in states:
        state.fold_control(settings, sequence=0, received_at_us=0)
    for number, group in enumerate(groups):
        received_us = MONTH_END_US + data.randrange(-HOUR_US, HOUR_US)
        if number == len(groups) // 2 and closing is not None:
            record = PeriodClosing(start_us=0, end_us=closing, lateness_us=LATENESS_US)
            kind, encoded = encode_control(record)
            log.append([Draft(kind, 1, received_us, (DraftPart(PartKind.CONTROL, encoded),))])
            for state in states:
                state.fold_control(record, sequence=0, received_at_us=received_us)
        if number == cut:  # a restart from a snapshot in the middle
            states = [restarted(state) for state in states]
        rows = [
            row(
                metric,
                customer,
                quantity,
                None if at is None else received_us + at,
                f"{number}-{i}",
                received_us,
            )
            for i, (metric, customer, quantity, at) in enumerate(group)
        ]
        if not rows:
            continue
        part = columns("acme", rows, {})
        counting, erasable = encode_counting(part), encode_erasable(part)
        parts = (DraftPart(PartKind.COUNTING, counting), DraftPart(PartKind.ERASABLE, erasable))
        (envelope,) = log.append([Draft(RecordType.EVENTS, len(rows), received_us, parts)])
        for state, partitions in zip(states, own, strict=True):
            fold_into(state, part, envelope.sequence, received_us, partitions)
    truth = recount(log)
    counted = {}
    for state in states:
        for table in state.counters.values():
            for series, newest in table.items():
                counter = newest
                while counter is not None:
                    if counter.count:
                        counted[*series, counter.start_us] = (
                            counter.sum,
                            counter.count,
                            counter.max,
                            counter.last,
                        )
                    counter = counter.older
    wanted = {
        key: (t.sum * 10**6, t.count, (t.max or 0) * 10**6, (t.last or 0) * 10**6)
        for key, t in truth.counted.items()
    }
    assert counted == wanted
    held: dict[Any, int] = {}
    for state in states:
        for adjustments in state.adjustments.values():
            for adjustment in adjustments.by_id.values():
                held[adjustment.key] = held.get(adjustment.key, 0) + len(adjustment.sequences)
    assert held == {key: t.count for key, t in truth.late.items()}


def restarted(state: ShardState) -> ShardState:
    """The state as a snapshot gives it back."""
    fresh = ShardState(list(state.counters), Rules.restore(state.rules.state()))
    for partition in state.counters:
        restore_partition(fresh, partition, encode_partition(state, partition), unpack_ext)
    return fresh


@given(groups=groups)
def test_batching_does_not_change_the_state(groups: list[Any]) -> None:
    rows = [
        row(metric, customer, quantity, MONTH_END_US + (at or 0), f"{n}-{i}", MONTH_END_US)
        for n, group in enumerate(groups)
        for i, (metric, customer, quantity, at) in enumerate(group)
    ]
    if not rows:
        return
    whole, single = ShardState(range(PARTITIONS)), ShardState(range(PARTITIONS))
    everything = set(range(PARTITIONS))
    fold_into(whole, columns("acme", rows, {}), 0, MONTH_END_US, everything)
    for sequence, one in enumerate(rows):
        fold_into(single, columns("acme", [one], {}), sequence, MONTH_END_US, everything)
    assert state_of([whole]) == state_of([single])


def test_ten_times_a_tenth_is_one() -> None:
    state = ShardState(range(PARTITIONS))
    rows = [row("m", "c", "0.1", MONTH_END_US, str(i), MONTH_END_US) for i in range(10)]
    fold_into(state, columns("acme", rows, {}), 0, MONTH_END_US, set(range(PARTITIONS)))
    (usage,) = state.usage(Row(*rows[0]).partition, "acme", "c", ["m"], MONTH_END_US)
    assert usage.current == 1_000_000


def test_totals_beyond_every_machine_word_are_exact() -> None:
    state = ShardState(range(PARTITIONS))
    big = "999999999999999.999999"
    rows = [row("m", "c", big, MONTH_END_US, str(i), MONTH_END_US) for i in range(1000)]
    fold_into(state, columns("acme", rows, {}), 0, MONTH_END_US, set(range(PARTITIONS)))
    state = restarted(state)
    (usage,) = state.usage(Row(*rows[0]).partition, "acme", "c", ["m"], MONTH_END_US)
    assert usage.current == Fraction(big) * 10**6 * 1000


def test_a_fast_producer_does_not_poison_the_watermark() -> None:
    state = ShardState(range(PARTITIONS))
    settings = SettingsChange(lateness_us=HOUR_US // 2, late_policy="review", actor="test")
    state.fold_control(settings, sequence=0, received_at_us=0)
    now_us = MONTH_END_US + 10 * 24 * HOUR_US
    ahead = row("m", "c", "1", now_us + HOUR_US, "ahead", now_us)
    on_time = row("m", "c", "1", now_us - 60_000_000, "on-time", now_us)
    late = state.fold_events(
        columns("acme", [ahead, on_time], {}), [0, 1], first_sequence=0, received_at_us=now_us
    )
    assert late == []
