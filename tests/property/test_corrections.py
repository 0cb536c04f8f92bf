"""Corrections on one shard's machine: any order of late events, decisions, replays, snapshots gives the recount's totals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.actors.shard import encode_partition, restore_partition
from engine.core import replay
from engine.core.adjustments import Adjustment, effective_value
from engine.core.configured import Change, Mapping, MappingChange
from engine.core.counters import Tally
from engine.core.partitions import partition_of
from engine.core.quantities import pack, unpack_ext
from engine.core.records import (
    AdjustmentChange,
    AdjustmentMade,
    ControlRecord,
    PartKind,
    PeriodClosing,
    RecordType,
    ReplayApply,
    SettingsChange,
    columns,
    decode_control,
    encode_control,
    encode_counting,
    encode_erasable,
)
from engine.core.replay import Planner, ReplayPlan, ReplayRequest
from engine.core.rules import Rules
from engine.core.shard_state import ShardState
from engine.core.times import format_instant
from engine.limits import PARTITIONS
from tests.helpers.recount import month_of, recount
from tests.property.test_fold import row
from wal.log import Draft, DraftPart
from wal.memory_log import MemoryLog

NOW_US = 1_793_491_200_000_000 + 20 * 86_400_000_000  # 2026-11-21
HOUR_US = 3_600_000_000
LATENESS_US = 2 * HOUR_US
BY = Change(actor="test")
EVERYTHING = ReplayRequest("acme", None, None, None, None, None)


class Machine:
    """A log and the state that folds it, each record as live folding does it and as recovery reads it."""

    def __init__(self, policy: str) -> None:
        self.log = MemoryLog()
        self.state = ShardState(range(PARTITIONS))
        self.received_us = NOW_US
        self.numbers = 0
        self.control(SettingsChange(lateness_us=LATENESS_US, late_policy=policy, actor="test"))

    def begin(self) -> Machine:
        """Give every counter a watermark: without one nothing is late."""
        self.events([(m, c, "1", 0) for m in ("calls", "seats") for c in ("a", "b")])
        return self

    def control(self, record: ControlRecord) -> int:
        kind, data = encode_control(record)
        parts = (DraftPart(PartKind.CONTROL, data),)
        (envelope,) = self.log.append([Draft(kind, 1, self.received_us, parts)])
        self.state.fold_control(record, sequence=envelope.sequence, received_at_us=self.received_us)
        return envelope.sequence

    def events(
        self, group: list[tuple[str, str, str, int]], operation: str | None = None, at_us: int = 0
    ) -> None:
        """Offsets are from the time of receipt, or from `at_us`."""
        self.received_us += 1_000_000
        rows = []
        for metric, customer, quantity, offset_us in group:
            self.numbers += 1
            ts_us = (at_us or self.received_us) + offset_us
            key = str(self.numbers)
            rows.append(row(metric, customer, quantity, ts_us, key, self.received_us))
        part = columns("acme", rows, {} if operation is None else {"operation": operation})
        counting, erasable = encode_counting(part), encode_erasable(part)
        parts = (DraftPart(PartKind.COUNTING, counting), DraftPart(PartKind.ERASABLE, erasable))
        (envelope,) = self.log.append(
            [Draft(RecordType.EVENTS, len(rows), self.received_us, parts)]
        )
        self.state.fold_events(
            part,
            range(len(rows)),
            first_sequence=envelope.sequence,
            received_at_us=self.received_us,
        )

    def make(self, metric: str, customer: str, kind: Any, micros: int) -> None:
        start_us, end_us = month_of(self.received_us)
        self.numbers += 1
        made = AdjustmentMade(
            id=f"adj_{self.numbers:016x}",
            tenant_id="acme",
            metric=metric,
            customer_ref=customer,
            period_start_us=start_us,
            period_end_us=end_us,
            kind=kind,
            micros=pack(micros),
            reason="manual",
        )
        self.control(
            AdjustmentChange(
                action="create",
                partition=partition_of("acme", customer),
                change=BY,
                tenant_id="acme",
                adjustment=made,
            )
        )

    def decide(self, number: int, action: Any) -> None:
        every = [(p, a) for p, of in self.state.adjustments.items() for a in of.by_id.values()]
        every.sort(key=lambda found: found[1].sequence)
        allowed = ("pending",) if action == "approve" else ("pending", "approved")
        able = [(p, a) for p, a in every if a.status in allowed]
        if able:
            partition, chosen = able[number % len(able)]
            self.control(
                AdjustmentChange(
                    action=action,
                    partition=partition,
                    change=BY,
                    tenant_id="acme",
                    ids=(chosen.id,),
                    was=chosen.status,  # type: ignore[arg-type]
                )
            )

    def plan(self, request: ReplayRequest) -> ReplayPlan:
        return replay.plan([self.state], request)

    def apply(self, plan: ReplayPlan) -> None:
        if plan.counters:
            self.control(
                ReplayApply(
                    tenant_id="acme",
                    plan_hash=plan.plan_hash,
                    counters=plan.counters,
                    change=BY,
                )
            )

    def restart(self) -> None:
        fresh = ShardState(range(PARTITIONS), Rules.restore(self.state.rules.state()))
        for partition in self.state.counters:
            data = encode_partition(self.state, partition)
            restore_partition(fresh, partition, data, unpack_ext)
        assert state_of(fresh) == state_of(self.state)
        self.state = fresh

    def values(self) -> dict[Any, int]:
        """What counts, by counter and aggregation; without the zeros."""
        found = {}
        for partition, table in self.state.counters.items():
            counters: dict[Any, Any] = dict.fromkeys(self.state.adjustments[partition].counters())
            for series, newest in table.items():
                counter: Any = newest
                while counter is not None:
                    counters[*series, counter.start_us] = counter
                    counter = counter.older
            for key, counter in counters.items():
                adjustments = self.state.adjustments[partition].of_counter(key)
                for aggregation in ("sum", "max", "last"):
                    found[key, aggregation] = effective_value(counter, adjustments, aggregation)
        return {key: value for key, value in found.items() if value}


def state_of(state: ShardState) -> Any:
    rows = [state.partition_state(p) for p in state.counters]
    return sorted(map(msgspec.msgpack.encode, rows))


def assert_true(machine: Machine) -> None:
    """Events folded + approved adjustments = what counts, by another implementation and from the log alone."""
    truth = recount(machine.log)
    keys = truth.counted.keys() | {c.key for c in truth.corrections.values()}
    wanted = {
        (key, aggregation): truth.value(key, aggregation) * 10**6
        for key in keys
        for aggregation in ("sum", "max", "last")
    }
    assert machine.values() == {key: value for key, value in wanted.items() if value}


metrics = st.sampled_from(["calls", "seats"])
customers = st.sampled_from(["a", "b"])
quantities = st.sampled_from(["0", "1", "0.000001", "999999999999999.999999", "2.5"])
offsets_us = st.one_of(
    st.integers(1, 10 * 24 * HOUR_US).map(lambda d: -LATENESS_US - 2_000_000 - d),
    st.integers(-10, 10),
    st.integers(-10, 10).map(lambda d: -LATENESS_US + d),
    st.integers(-40 * 24 * HOUR_US, 0),
)
groups = st.lists(st.tuples(metrics, customers, quantities, offsets_us), min_size=1, max_size=8)
requests = st.builds(
    ReplayRequest,
    tenant=st.just("acme"),
    metrics=st.sampled_from([None, frozenset(["calls"])]),
    since_us=st.one_of(st.none(), st.integers(-30 * 24 * HOUR_US, 0).map(lambda d: NOW_US + d)),
    until_us=st.one_of(st.none(), st.integers(-LATENESS_US, HOUR_US).map(lambda d: NOW_US + d)),
    watermark_us=st.one_of(
        st.none(), st.none(), st.integers(-48 * HOUR_US, 0).map(lambda d: NOW_US + d)
    ),
    lateness_us=st.sampled_from([None, None, None, 0, LATENESS_US, 24 * HOUR_US]),
    open_only=st.booleans(),
)
micros = st.sampled_from([1, 3_000_000, 10**21 - 1])
corrections = st.one_of(
    groups.map(lambda group: lambda m: m.events(group)),
    st.tuples(metrics, customers, micros, st.sampled_from(["delta", "value"])).map(
        lambda t: lambda m: m.make(t[0], t[1], t[3], t[2] if t[3] == "value" else -t[2])
    ),
    st.tuples(st.integers(0, 50), st.sampled_from(["approve", "approve", "revert"])).map(
        lambda t: lambda m: m.decide(*t)
    ),
    requests.map(lambda request: lambda m: m.apply(m.plan(request))),
)
CLOSING = PeriodClosing(start_us=0, end_us=month_of(NOW_US)[0], lateness_us=LATENESS_US)
steps = st.lists(
    st.one_of(corrections, st.just(Machine.restart), st.just(lambda m: m.control(CLOSING))),
    max_size=14,
)
Step = Callable[[Machine], None]


@given(first=groups, steps=steps, policy=st.sampled_from(["review", "auto"]))
def test_folded_events_and_approved_corrections_are_the_total(
    first: Any, steps: list[Step], policy: str
) -> None:
    machine = Machine(policy).begin()
    machine.events(first)
    for step in steps:
        step(machine)
    assert_true(machine)
    held = [
        s
        for of in machine.state.adjustments.values()
        for a in of.by_id.values()
        for s in a.sequences
    ]
    assert len(held) == len(set(held)), "a late event is in one adjustment"


@given(first=groups, steps=steps, request=requests)
def test_what_is_applied_is_what_was_previewed_and_once(
    first: Any, steps: list[Step], request: ReplayRequest
) -> None:
    machine = Machine("review").begin()
    machine.events(first)
    for step in steps:
        step(machine)
    before = machine.values()
    plan = machine.plan(request)
    assert machine.plan(request) == plan, "a plan changes nothing"
    assert machine.values() == before
    kind, data = encode_control(
        ReplayApply(tenant_id="acme", plan_hash="h", counters=plan.counters, change=BY)
    )
    read = decode_control(kind, data)
    assert isinstance(read, ReplayApply)
    packed = [
        msgspec.structs.replace(counter, tally=Tally.restore(counter.tally).state())
        for counter in read.counters
    ]
    again = msgspec.structs.replace(read, counters=tuple(packed))
    assert encode_control(again) == (kind, data), "the record is the plan, byte for byte"
    machine.apply(plan)
    after = machine.values()
    moved: dict[str, int] = {}
    for key, aggregation in before.keys() | after.keys():
        if aggregation == "sum":
            difference = after.get((key, "sum"), 0) - before.get((key, "sum"), 0)
            moved[key[1]] = moved.get(key[1], 0) + difference
    said = {metric: change.delta_micros for metric, change in plan.changes.items()}
    assert {m: d for m, d in moved.items() if d} == {m: d for m, d in said.items() if d}
    for adjustment_id in plan.superseded:
        assert find(machine, adjustment_id).status == "superseded"
    anew = machine.plan(request)
    folded = sum(change.folded_events for change in plan.changes.values())
    assert not anew.counters, "applying twice changes nothing the second time"
    assert folded == sum(len(counter.sequences) for counter in plan.counters)
    assert_true(machine)


def find(machine: Machine, adjustment_id: str) -> Adjustment:
    return next(
        of.by_id[adjustment_id]
        for of in machine.state.adjustments.values()
        if adjustment_id in of.by_id
    )


@given(
    group=st.lists(st.tuples(metrics, customers, quantities, offsets_us), min_size=1, max_size=30)
)
def test_pages_of_a_replay_come_to_the_whole(group: Any) -> None:
    whole, paged = Machine("review").begin(), Machine("review").begin()
    for machine in (whole, paged):
        machine.events(group)
    every = [a for of in paged.state.adjustments.values() for a in of.by_id.values()]
    waiting = sum(len(adjustment.sequences) for adjustment in every)
    whole.apply(whole.plan(EVERYTHING))
    request, late = EVERYTHING, 0
    events_max, replay.EVENTS_MAX = replay.EVENTS_MAX, 3  # type: ignore[misc]
    try:
        for _ in range(100):
            plan = paged.plan(request)
            late += sum(change.late_events for change in plan.changes.values())
            paged.apply(plan)
            if plan.cursor_us is None:
                break  # else the values below differ
            assert request.since_us is None or plan.cursor_us > request.since_us
            request = request._replace(since_us=plan.cursor_us)
    finally:
        replay.EVENTS_MAX = events_max  # type: ignore[misc]
    assert paged.values() == whole.values()
    assert late == waiting


def test_a_pending_adjustment_still_collects_after_a_restart_whatever_was_decided_since() -> None:
    machine = Machine("review")
    machine.events([("calls", "a", "1", 0)])
    machine.events([("calls", "a", "1", -LATENESS_US - HOUR_US)])
    machine.control(SettingsChange(lateness_us=LATENESS_US, late_policy="auto", actor="t"))
    machine.events([("calls", "a", "1", -LATENESS_US - HOUR_US)])
    machine.decide(1, "revert")
    machine.control(SettingsChange(lateness_us=LATENESS_US, late_policy="review", actor="t"))
    machine.restart()
    machine.events([("calls", "a", "1", -LATENESS_US - HOUR_US)])
    counts = sorted(
        (a.status, len(a.sequences))
        for of in machine.state.adjustments.values()
        for a in of.by_id.values()
    )
    assert counts == [("pending", 2), ("reverted", 1)]
    assert format_instant(machine.received_us).startswith("2026-11-21")


def interleaved(machine: Machine) -> None:
    """Late events of one instant, in turn of two imports and of none: three adjustments of one counter."""
    machine.events([("calls", "a", "1", 0)])
    late_us = machine.received_us - LATENESS_US - HOUR_US
    for number, operation in enumerate(("op_1", "op_2", None, "op_2", "op_1")):
        machine.events([("calls", "a", str(number + 2), 0)], operation, late_us)


def test_a_plan_over_several_adjustments_is_in_log_order() -> None:
    machine = Machine("review")
    interleaved(machine)
    plan = machine.plan(EVERYTHING)
    (counter,) = plan.counters
    assert list(counter.sequences) == sorted(counter.sequences)
    assert counter.tally[:4] == (20_000_000, 5, 6_000_000, 6_000_000), (
        "last in the log, not in a list"
    )
    assert len(plan.superseded) == 3
    machine.apply(plan)
    statuses = [a.status for of in machine.state.adjustments.values() for a in of.by_id.values()]
    assert statuses == ["superseded"] * 3


def test_the_last_of_several_adjustments_goes_by_time_and_then_by_the_log() -> None:
    machine = Machine("review")
    interleaved(machine)
    every = [a for of in machine.state.adjustments.values() for a in of.by_id.values()]
    for _ in every:
        machine.decide(0, "approve")
    assert {a.status for a in every} == {"approved"}
    late = [a for a in every if a.kind == "event"]
    assert effective_value(None, late, "last") == 6_000_000
    assert effective_value(None, late, "max") == 6_000_000


def test_a_replay_folds_only_what_came_after_a_value_on_top_of_it() -> None:
    machine = Machine("review")
    machine.events([("calls", "a", "1", 0)])
    late_us = -LATENESS_US - HOUR_US
    machine.events([("calls", "a", "900", late_us)])
    machine.make("calls", "a", "value", 5_000_000)
    machine.decide(1, "approve")
    key = ("acme", "calls", "a", month_of(machine.received_us)[0])
    assert machine.values()[key, "max"] == 5_000_000
    machine.events([("calls", "a", "7", late_us)])
    plan = machine.plan(EVERYTHING)
    machine.apply(plan)
    assert machine.values()[key, "max"] == 7_000_000, "900 came before the value, which replaces it"
    machine.restart()
    assert machine.values()[key, "last"] == 7_000_000
    machine.decide(0, "revert")
    assert machine.values()[key, "max"] == 900_000_000
    assert_true(machine)


@given(first=groups, steps=steps, moved=st.lists(corrections, max_size=6), request=requests)
def test_what_moved_after_a_look_is_looked_at_again(
    first: Any, steps: list[Step], moved: list[Step], request: ReplayRequest
) -> None:
    machine = Machine("review").begin()
    machine.events(first)
    for step in steps:
        step(machine)
    planner = Planner(request)
    for partition in machine.state.adjustments:
        planner.look(machine.state, partition)
    for step in moved:  # no closing: it waits for the lock that a replay holds
        step(machine)
    assert planner.plan([machine.state]) == machine.plan(request)


def test_an_event_in_time_moves_what_a_plan_says_of_a_counter() -> None:
    machine = Machine("review").begin()
    mapping = Mapping(id="map_1", tenant_id="acme", metric="calls", aggregation="max")
    machine.control(MappingChange(mapping=mapping, change=Change(actor="test")))
    machine.events([("calls", "a", "5", 0), ("calls", "a", "9", -LATENESS_US - HOUR_US)])
    planner = looked(machine)
    machine.events([("calls", "a", "8", 0)])
    plan = planner.plan([machine.state])
    assert plan.watermark_us == machine.received_us
    assert plan.changes["calls"].delta_micros == 1_000_000, "9 instead of 8, no longer of 5"
    assert plan == machine.plan(EVERYTHING)


def looked(machine: Machine) -> Planner:
    planner = Planner(EVERYTHING)
    for partition in machine.state.adjustments:
        planner.look(machine.state, partition)
    return planner


def test_each_way_to_move_an_adjustment_is_noticed() -> None:
    machine = Machine("review").begin()
    late = ("calls", "a", "1", -LATENESS_US - HOUR_US)
    machine.events([late])
    moves: list[tuple[Step, int]] = [
        (lambda m: m.events([late]), 2),  # one more in the same adjustment
        (lambda m: m.decide(0, "approve"), 0),
        (lambda m: m.events([late]), 1),  # another adjustment
        (lambda m: m.decide(1, "revert"), 0),
        (lambda m: m.events([late, late]), 2),
        (lambda m: m.apply(m.plan(EVERYTHING)), 0),
    ]
    for move, left in moves:
        planner = looked(machine)
        move(machine)
        plan = planner.plan([machine.state])
        assert sum(len(counter.sequences) for counter in plan.counters) == left
        assert plan == machine.plan(EVERYTHING)
    machine.events([late])
    planner = looked(machine)
    partition = partition_of("acme", "a")
    machine.state.adjustments[partition].rename("acme", {"a": "nobody"})
    assert planner.plan([machine.state]).counters[0].customer_ref == "nobody"
