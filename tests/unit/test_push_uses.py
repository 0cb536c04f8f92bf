"""What a series had used in its periods, as its counters and adjustments say it to pushing."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.configured import Change
from engine.core.partitions import partition_of
from engine.core.push_uses import PERIODS_MAX, PeriodUse, uses_of
from engine.core.records import AdjustmentChange, AdjustmentMade, PeriodClosing, Row, columns
from engine.core.shard_state import Series, ShardState
from engine.core.times import MINUTE_US
from engine.limits import PARTITIONS
from tests.helpers.push_world import ANNA, shared
from tests.helpers.pushing import (
    AUGUST,
    DAY_US,
    JULY,
    JUNE,
    NOON,
    UNIT,
    Book,
    baseline,
    mapped,
    target,
)


def folded(*events: tuple[str, int, int], historic: bool = False, state: Any = None) -> ShardState:
    """A state with (customer, units, time) folded, in one group."""
    made = state or ShardState(range(PARTITIONS))
    rows = [
        Row(
            "calls",
            ref,
            units * UNIT,
            ts_us,
            partition_of("acme", ref),
            b"",
            b"",
            0,
            "",
            None,
            None,
        )
        for ref, units, ts_us in events
    ]
    extra = {"operation": "op_1", "historic": True} if historic else {}
    part = columns("acme", rows, extra)
    made.fold_events(part, range(len(rows)), first_sequence=1, received_at_us=NOON)
    return made


def uses(state: ShardState, series: Series = ANNA) -> list[PeriodUse]:
    return uses_of(state, state.rules, partition_of("acme", series[2]), series)


def closed(state: ShardState) -> ShardState:
    record = PeriodClosing(start_us=JUNE, end_us=JULY, lateness_us=0)
    state.fold_control(record, sequence=5, received_at_us=NOON)
    return state


def test_the_newest_periods_of_a_series_are_told_newest_first() -> None:
    state = folded(("anna", 3, JULY + 1), ("anna", 4, JUNE + 1), ("bob", 9, JULY))
    assert uses(state) == [
        PeriodUse(JULY, AUGUST, 3 * UNIT, JULY + 1),
        PeriodUse(JUNE, JULY, 4 * UNIT, JUNE + 1),
    ]
    assert uses(state, ("acme", "calls", "eve")) == []
    state.fold_control(mapped(period="day"), sequence=2, received_at_us=NOON)
    days = [("anna", 1, JUNE + day * DAY_US) for day in range(-30, 40)]
    long = folded(*days, state=ShardState(range(PARTITIONS), state.rules))
    assert len(uses(long)) == PERIODS_MAX
    assert uses(long)[0].start_us == JUNE + 39 * DAY_US


def test_historic_imports_are_counted_and_never_pushed() -> None:
    state = closed(folded(("anna", 3, JUNE + 1)))
    folded(("anna", 40, JUNE + 2), ("anna", 2, JULY + 1), historic=True, state=state)
    by_start = {one.start_us: one for one in uses(state)}
    assert by_start[JUNE][2] == 3 * UNIT
    assert by_start[JULY][2] == 2 * UNIT, "an open period is not historic"
    counter = state.counters[partition_of("acme", "anna")][ANNA]
    assert counter.older is not None
    assert counter.older.sum == 43 * UNIT


@pytest.mark.parametrize("aggregation", ["max", "last"])
def test_a_max_that_a_historic_import_changed_is_held(aggregation: str) -> None:
    state = ShardState(range(PARTITIONS))
    state.fold_control(mapped(aggregation=aggregation), sequence=1, received_at_us=JUNE)
    closed(folded(("anna", 3, JUNE + 1), state=state))
    folded(("anna", 40, JUNE + 2), historic=True, state=state)
    (june,) = uses(state)
    assert june.hold is not None
    world = shared()
    world.take(ANNA, june)
    assert world.only().hold == june.hold


def test_an_approved_adjustment_counts_also_where_there_is_no_counter() -> None:
    state = ShardState(range(PARTITIONS))
    partition = partition_of("acme", "anna")
    made = AdjustmentMade(
        id="adj_1",
        tenant_id="acme",
        metric="calls",
        customer_ref="anna",
        period_start_us=JUNE,
        period_end_us=JULY,
        kind="delta",
        micros=-5,
        reason="credit",
    )
    by = Change(actor="k")
    create = AdjustmentChange(
        action="create", partition=partition, change=by, tenant_id="acme", adjustment=made
    )
    state.fold_control(create, sequence=1, received_at_us=NOON)
    assert uses(state) == []
    approve = AdjustmentChange(
        action="approve", partition=partition, change=by, tenant_id="acme", ids=("adj_1",)
    )
    state.fold_control(approve, sequence=2, received_at_us=NOON)
    assert uses(state) == [PeriodUse(JUNE, JULY, -5, JUNE)]


def test_a_max_is_pushed_as_the_differences_of_its_running_value() -> None:
    state = ShardState(range(PARTITIONS))
    state.fold_control(mapped(aggregation="last"), sequence=1, received_at_us=JUNE)
    world, book, sent = shared(), Book(baseline()), []
    for number, units in enumerate((7, 4, 9, 9)):
        folded(("anna", units, JULY + number * MINUTE_US), state=state)
        world.take(ANNA, *uses(state))
        seen = world.only()._replace(target=target())
        if book.planned(seen).standing == "due":
            sent.append(book.push(seen).request.value)
    assert sent == ["7", "-3", "5"]
