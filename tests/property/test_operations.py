"""Rows of an operation are judged by the watermarks at its start, whatever comes meanwhile, through any restart.

The oracle reads the rule literally: at `begin` it takes a copy of every watermark, and holds the operation's rows
against that copy; it shares no counting code with the engine.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from engine.actors.shard import encode_partition, restore_partition
from engine.core.configured import Change
from engine.core.quantities import unpack_ext
from engine.core.records import OperationChange, PeriodClosing, SettingsChange, columns
from engine.core.rules import Rules
from engine.core.shard_state import ShardState
from engine.limits import PARTITIONS
from tests.property.test_fold import HOUR_US, LATENESS_US, MONTH_END_US, row

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
OPERATIONS = ("op_1", "op_2")
edges_us = st.one_of(
    st.integers(-10, 10),
    st.integers(-10, 10).map(lambda d: -LATENESS_US + d),
    st.integers(-10, 10).map(lambda d: -2 * LATENESS_US + d),
    st.integers(-40 * 24 * HOUR_US, HOUR_US),
)
rows_of = st.lists(st.tuples(st.sampled_from(["a", "b"]), edges_us), min_size=1, max_size=8)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("rows"), st.sampled_from((None, *OPERATIONS)), rows_of),
        st.tuples(st.sampled_from(("begin", "end")), st.sampled_from(OPERATIONS), st.just([])),
        st.tuples(st.just("restart"), st.none(), st.just([])),
        st.tuples(st.just("close"), st.none(), st.just([])),
    ),
    max_size=14,
)
DAY_US = 24 * HOUR_US
NEWEST_FIRST = [
    ("rows", None, [("b", -9 * DAY_US)]),
    ("begin", "op_1", []),
    ("rows", "op_1", [("a", -DAY_US), ("a", -2 * DAY_US)]),
    ("restart", None, []),
    ("rows", None, [("b", -3 * DAY_US), ("a", -DAY_US)]),
    (
        "rows",
        "op_1",
        [
            ("a", -3 * DAY_US),
            ("b", -9 * DAY_US - LATENESS_US),
            ("b", -9 * DAY_US - LATENESS_US - 1),
        ],
    ),
    ("end", "op_1", []),
    ("rows", None, [("a", -2 * DAY_US)]),
]
CLOSED_MEANWHILE = [
    ("rows", None, [("a", -40 * DAY_US)]),
    ("begin", "op_1", []),
    ("close", None, []),
    ("rows", "op_1", [("a", -40 * DAY_US), ("b", -DAY_US)]),
]


class Oracle:
    """The rule, read literally: (customer, month) to its watermark; which rows are late."""

    def __init__(self) -> None:
        self.watermarks: dict[tuple[str, int], int] = {}
        self.at_begin: dict[str, dict[tuple[str, int], int]] = {}
        self.counted = {operation: [0, 0] for operation in OPERATIONS}
        self.folded: dict[tuple[str, int], int] = {}
        self.closed_us = -(1 << 62)

    def is_late(self, customer: str, ts_us: int, now_us: int, operation: str | None) -> bool:
        at = EPOCH + timedelta(microseconds=ts_us)
        start = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        end = (start + timedelta(days=32)).replace(day=1)
        key = (customer, (start - EPOCH) // timedelta(microseconds=1))
        held_against = self.watermarks
        if operation in self.at_begin:
            held_against = self.at_begin[str(operation)]
        watermark_us = held_against.get(key)
        late = (end - EPOCH) // timedelta(microseconds=1) <= self.closed_us or (
            watermark_us is not None and ts_us < watermark_us - LATENESS_US
        )
        if operation in self.at_begin:
            self.counted[str(operation)][0] += 1
            self.counted[str(operation)][1] += late
        if not late:
            self.folded[key] = self.folded.get(key, 0) + 1
            seen_us = min(ts_us, now_us)
            self.watermarks[key] = max(self.watermarks.get(key, seen_us), seen_us)
        return late


def change(action: Any, operation: str) -> OperationChange:
    return OperationChange(
        action=action,
        operation_id=operation,
        tenant_id="acme",
        kind="import",
        change=Change(actor="test"),
    )


def restarted(state: ShardState) -> ShardState:
    """The state as a snapshot brings it back; which operations run, recovery has from the registry."""
    other = ShardState(range(PARTITIONS), Rules.restore(state.rules.state()))
    for partition in range(PARTITIONS):
        restore_partition(other, partition, encode_partition(state, partition), unpack_ext)
    other.operations = set(state.operations)
    return other


@given(steps=steps, data=st.randoms(use_true_random=False))
@example(steps=NEWEST_FIRST, data=random.Random(0))
@example(steps=CLOSED_MEANWHILE, data=random.Random(0))
def test_an_operations_rows_are_judged_by_the_watermarks_at_its_start(
    steps: list[Any], data: random.Random
) -> None:
    state, oracle = ShardState(range(PARTITIONS)), Oracle()
    settings = SettingsChange(lateness_us=LATENESS_US, late_policy="review", actor="test")
    state.fold_control(settings, sequence=0, received_at_us=0)
    sequence, done = 1, set()
    for kind, operation, rows in steps:
        now_us = MONTH_END_US + data.randrange(-HOUR_US, HOUR_US)
        if kind == "restart":
            state = restarted(state)
        elif kind == "close":
            oracle.closed_us = MONTH_END_US - 31 * 24 * HOUR_US
            closing = PeriodClosing(start_us=0, end_us=oracle.closed_us, lateness_us=LATENESS_US)
            state.fold_control(closing, sequence=sequence, received_at_us=now_us)
        elif kind == "begin" and operation not in done:
            done.add(operation)
            oracle.at_begin[operation] = dict(oracle.watermarks)
            state.fold_control(change(kind, operation), sequence=sequence, received_at_us=now_us)
        elif kind == "end" and operation in oracle.at_begin:
            assert list(state.counted_of(operation)) == oracle.counted[operation]
            del oracle.at_begin[operation]
            state.fold_control(change(kind, operation), sequence=sequence, received_at_us=now_us)
            assert not any(operation in of for of in state.marks.values()), "nothing is kept of it"
        elif kind == "rows":
            made = [
                row(
                    "calls",
                    customer,
                    "1",
                    MONTH_END_US + at_us,
                    f"{sequence}-{i}",
                    now_us + HOUR_US,
                )
                for i, (customer, at_us) in enumerate(rows)
            ]
            part = columns("acme", made, {} if operation is None else {"operation": operation})
            late = state.fold_events(
                part, range(len(made)), first_sequence=sequence, received_at_us=now_us
            )
            wanted = [
                oracle.is_late(customer, MONTH_END_US + at_us, now_us, operation)
                for customer, at_us in rows
            ]
            assert [i in {one.row for one in late} for i in range(len(rows))] == wanted
        sequence += max(1, len(rows))
    assert _counts(state) == oracle.folded


def _counts(state: ShardState) -> dict[tuple[str, int], int]:
    found = {}
    for table in state.counters.values():
        for (_, _, customer), newest in table.items():
            counter = newest
            while counter is not None:
                if counter.count:
                    found[customer, counter.start_us] = counter.count
                counter = counter.older
    return found


def test_a_historic_row_counts_in_a_closed_period_and_a_plain_one_waits() -> None:
    state = ShardState(range(PARTITIONS))
    closing = PeriodClosing(start_us=0, end_us=MONTH_END_US, lateness_us=0)
    state.fold_control(closing, sequence=0, received_at_us=0)
    for sequence, extra, held in (
        (1, {"operation": "op"}, 1),
        (2, {"operation": "op", "historic": True}, 0),
    ):
        made = [row("calls", "a", "1", MONTH_END_US - HOUR_US, str(sequence), MONTH_END_US)]
        late = state.fold_events(
            columns("acme", made, extra), [0], first_sequence=sequence, received_at_us=MONTH_END_US
        )
        assert len(late) == held
    assert list(_counts(state).values()) == [1]
