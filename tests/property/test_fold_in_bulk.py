"""Recovery folds plain events by column: random logs come to what was counted live, and columns say what rows say."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actors.recovery import Recovered, recover
from engine.core import fold_in_bulk
from engine.core.configured import Change, Mapping, MappingChange
from engine.core.event_columns import decode_columns
from engine.core.fold_in_bulk import BulkFold
from engine.core.keeping import EraseChange
from engine.core.partitions import partition_of
from engine.core.quantities import unpack_ext
from engine.core.records import (
    OperationChange,
    PartKind,
    PeriodClosing,
    RecordError,
    RecordType,
    columns,
    decode_events,
    encode_counting,
    encode_erasable,
)
from engine.core.shard_state import ShardState
from engine.core.times import DAY_US, HOUR_US
from engine.errors import StartRefused
from engine.limits import PARTITIONS
from tests.helpers.event_log import Sent, run_inline
from tests.helpers.past import (
    BY,
    CUSTOMERS,
    FEBRUARY_US,
    JANUARY_US,
    METRICS,
    TENANTS,
    Past,
    everything,
)
from tests.helpers.recount import recount
from tests.sim.world import run_seed
from wal.key_index import KeyIndex
from wal.log import Draft, DraftPart
from wal.memory_log import MemoryLog
from wal.memory_runs import MemoryRuns
from wal.snapshot import MemorySnapshots

LOG_ID = b"l" * 16
MANY_CUSTOMERS = (*CUSTOMERS, *(f"customer-{number}" for number in range(30)))
SEEDS, SEEDS_EACH = 40, 10
WORLDS = 15
QUIET_US = 6 * HOUR_US


class LargePast(Past):
    """Larger groups, most of them plain, among all that is not."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.numbers = 0
        self.operation: str | None = None

    def grow(self, steps: int) -> None:
        for _ in range(steps):
            kind = self.random.random()
            if kind < 0.75:
                self.now_us += self.random.choice((0, 1, 0, -5, HOUR_US))
                self.append_many(self.random.choice((1, 5, 40, 300)))
            elif kind < 0.8:
                self.change_periods()
            elif kind < 0.85:
                self.begin_or_end_an_operation()
            elif kind < 0.87:
                self.erase(self.random.choice(TENANTS), self.random.choice(MANY_CUSTOMERS))
            else:
                super().grow(1)

    def append_many(self, count: int) -> None:
        rng = self.random
        oddities = rng.choice((0, 0, 0, 0.01, 0.3))
        has_own_times, are_alike = rng.random() < 0.7, rng.random() < 0.3
        sent = []
        for _ in range(count):
            micros = (
                7_000_000 if are_alike else rng.choice((0, 1, 130, 70_000, rng.randint(0, 10**13)))
            )
            ts_us = self.now_us - rng.randint(0, QUIET_US) if has_own_times else None
            if rng.random() < oddities:
                ts_us = self.now_us - rng.choice((3 * DAY_US, 40 * DAY_US, -DAY_US, 2 * DAY_US))
                micros = rng.choice((micros, 10**20, 2**63 - 1, 2**62))
            tenant, metric = rng.choice(TENANTS), rng.choice(METRICS)
            sent.append(Sent(tenant, metric, rng.choice(MANY_CUSTOMERS), micros, ts_us))
        self.append(sent)

    def change_periods(self) -> None:
        rng = self.random
        tenant, metric = rng.choice(TENANTS), rng.choice(METRICS)
        mapping = Mapping(
            id=f"{tenant}-{metric}",
            tenant_id=tenant,
            metric=metric,
            period=rng.choice(("calendar", "day")),
            lateness_us=rng.choice((None, HOUR_US, 3 * DAY_US)),
        )
        since_us = rng.choice((None, self.now_us))
        change = Change(actor="tester", effective_from_us=since_us)
        self.control(MappingChange(mapping=mapping, change=change))

    def begin_or_end_an_operation(self) -> None:
        action: Any = "begin" if self.operation is None else "end"
        operation = self.operation or f"op-{self.log.head().next_sequence}"
        self.operation = operation if action == "begin" else None
        tenant = TENANTS[0]
        change = OperationChange(
            action=action, operation_id=operation, tenant_id=tenant, kind="import", change=BY
        )
        self.control(change)
        if action == "begin":
            self.append_marked(tenant, {"operation": operation})
        else:
            self.append_marked(tenant, {"historic": True})

    def append_marked(self, tenant: str, extra: dict[str, Any]) -> None:
        rows = [
            plain_row(self, tenant, back_us=self.random.randint(0, 9 * DAY_US)) for _ in range(9)
        ]
        part = columns(tenant, rows, extra)
        [envelope] = self.log.append([draft_of([part], self.now_us)])
        self.state.fold_events(
            part, range(9), first_sequence=envelope.sequence, received_at_us=self.now_us
        )

    def erase(self, tenant: str, customer: str) -> None:
        begin = EraseChange(
            action="begin",
            erasure_id="e",
            tenant_id=tenant,
            actor="t",
            names={customer: f"erased-{customer}"},
        )
        self.control(begin)


def plain_row(past: LargePast, tenant: str, back_us: int = 0) -> tuple[Any, ...]:
    past.numbers += 1
    customer = past.random.choice(MANY_CUSTOMERS)
    key, partition = past.numbers.to_bytes(16, "big"), partition_of(tenant, customer)
    at_us = past.now_us - back_us
    return ("calls", customer, 5, at_us, partition, key, key, 0, f"m{past.numbers}", None, None)


def draft_of(parts: list[Any], received_at_us: int) -> Draft:
    encoded = []
    for part in parts:
        encoded.append(DraftPart(PartKind.COUNTING, encode_counting(part)))
        encoded.append(DraftPart(PartKind.ERASABLE, encode_erasable(part)))
    count = sum(part.event_count for part in parts)
    return Draft(RecordType.EVENTS, count, received_at_us, tuple(encoded))


async def recovered(log: MemoryLog) -> Recovered:
    keys = KeyIndex.open(
        MemoryRuns(), log_id=LOG_ID, epoch=1, head_sequence=log.head().next_sequence
    )
    return await recover(
        log, keys, MemorySnapshots(), LOG_ID, run_blocking=run_inline, progress=lambda _: None
    )


def all_of(state: ShardState) -> Any:
    """Also what `everything` leaves out: metrics seen, operations' marks and counts, historic sums."""
    others = [
        sorted(map(msgspec.msgpack.encode, part))
        for partition in range(PARTITIONS)
        for part in state.partition_corrections(partition)
    ]
    return everything(state), state.metrics, state.operations, others


def small_bounds(patch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """So that a small log meets every one of them."""
    patch.setattr(fold_in_bulk, "EVENTS_IN_BULK_MIN", 1)
    patch.setattr(fold_in_bulk, "EVENTS_AT_ONCE", rng.choice((1, 100, 500)))
    patch.setattr(fold_in_bulk, "EVENTS_WAITING_MAX", rng.choice((150, 1000)))
    patch.setattr(fold_in_bulk, "SMALL_PART_BYTES", rng.choice((0, 1000, 8192)))
    patch.setattr(fold_in_bulk, "CELLS_MAX", rng.choice((20, 1 << 24)))
    patch.setattr(fold_in_bulk, "SLOTS_FREED_MAX", rng.choice((2, 1000)))
    patch.setattr(fold_in_bulk, "COUNTERS_AT_ONCE", rng.choice((3, 1000)))


@pytest.mark.parametrize("first_seed", range(0, SEEDS, SEEDS_EACH))
async def test_recovery_comes_to_what_was_counted_live(
    first_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_bulk = folded = 0
    fold_plain = fold_in_bulk._Tenant._fold_plain

    def counted(self: Any, events: Any, slots: Any) -> None:
        nonlocal in_bulk
        in_bulk += len(slots)
        fold_plain(self, events, slots)

    monkeypatch.setattr(fold_in_bulk._Tenant, "_fold_plain", counted)
    for seed in range(first_seed, first_seed + SEEDS_EACH):
        print("seed", seed)
        past = LargePast(seed)
        past.grow(60)
        small_bounds(monkeypatch, past.random)
        found = await recovered(past.log)  # type: ignore[arg-type]
        assert all_of(found.state) == all_of(past.state)
        folded += found.events_folded
    assert in_bulk * 4 > folded, "else nothing is shown"


@pytest.mark.slow
def test_seeded_worlds_keep_their_promises_when_small_groups_go_by_column_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in range(WORLDS):
        print("seed", seed)
        small_bounds(monkeypatch, random.Random(seed))
        run_seed(seed)


@pytest.mark.parametrize("seed", range(4))
async def test_recovery_comes_to_what_an_independent_recount_finds(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    print("seed", seed)
    past = LargePast(1000 + seed)
    for _ in range(25):
        past.now_us += HOUR_US
        past.append_many(80)
    small_bounds(monkeypatch, past.random)
    found = await recovered(past.log)  # type: ignore[arg-type]
    counted = {
        key: state[2:6]
        for key, state in everything(found.state).items()
        if len(key) == 4 and state[3]
    }
    wanted = {
        key: (t.sum * 10**6, t.count, (t.max or 0) * 10**6, (t.last or 0) * 10**6)
        for key, t in recount(past.log).counted.items()
    }
    values = {
        key: (*map(unpacked, row[:1]), row[1], *map(unpacked, row[2:]))
        for key, row in counted.items()
    }
    assert values == wanted


def unpacked(value: Any) -> int:
    return value if isinstance(value, int) else unpack_ext(value.code, value.data)


async def test_sums_beyond_an_int64_are_exact() -> None:
    past = LargePast(0)
    for _ in range(8):
        sent = [Sent("acme", "calls", "anna", 2**62 - number, None) for number in range(300)]
        past.append(sent)
        past.append([Sent("acme", "calls", "ben", 2**53 + number, None) for number in range(300)])
    found = await recovered(past.log)  # type: ignore[arg-type]
    assert all_of(found.state) == all_of(past.state)
    [counter] = [s for key, s in everything(found.state).items() if key[2] == "anna"]
    assert unpacked(counter[2]) == 8 * sum(2**62 - number for number in range(300))


async def test_a_sum_that_leaves_an_int64_event_by_event_is_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fold_in_bulk, "EVENTS_IN_BULK_MIN", 1)
    monkeypatch.setattr(fold_in_bulk, "EVENTS_AT_ONCE", 1)
    past = LargePast(0)
    for number in range(8):
        past.append([Sent("acme", "calls", "anna", 2**62 - number, None)])
    found = await recovered(past.log)  # type: ignore[arg-type]
    assert all_of(found.state) == all_of(past.state)
    [counter] = everything(found.state).values()
    assert unpacked(counter[2]) == sum(2**62 - number for number in range(8))


async def test_what_comes_after_a_closing_is_late_however_many_come_at_once() -> None:
    past = LargePast(5)
    past.now_us = FEBRUARY_US - HOUR_US
    past.append_many(400)
    closing = PeriodClosing(start_us=JANUARY_US, end_us=FEBRUARY_US, lateness_us=2 * DAY_US)
    past.control(closing)
    past.append([Sent("acme", "calls", c, 3, past.now_us) for c in MANY_CUSTOMERS * 12])
    found = await recovered(past.log)  # type: ignore[arg-type]
    assert all_of(found.state) == all_of(past.state)
    held = found.state.adjustments.values()
    assert sum(len(one.sequences) for of in held for one in of.by_id.values()) >= 384


@pytest.mark.parametrize("count", [20, 400])
def test_a_part_with_marks_goes_the_general_way(count: int) -> None:
    past = LargePast(4)
    rows = [plain_row(past, "acme") for _ in range(count)]
    for extra, taken in (({"historic": True}, None), ({"operation": "op"}, None), ({}, count)):
        counting, erasable = draft_of([columns("acme", rows, extra)], 0).parts
        bulk = BulkFold(ShardState(range(PARTITIONS)))
        found = bulk.take(counting.data, erasable.data, first_sequence=0, received_at_us=0)
        assert found == taken


async def test_a_group_that_does_not_fit_is_named_though_events_before_it_wait() -> None:
    rows = [plain_row(LargePast(3), "acme") for _ in range(300)]
    good = columns("acme", rows, {})
    for bad in (good._replace(partitions=good.partitions[1:]), good._replace(sources=[0])):
        other = LargePast(3)
        other.append_many(400)
        [envelope] = other.log.append([draft_of([bad], other.now_us)])
        other.append_many(400)
        with pytest.raises(StartRefused, match=f"record {envelope.sequence} can't be used"):
            await recovered(other.log)  # type: ignore[arg-type]


numbers = st.one_of(
    st.integers(0, 127),
    st.integers(0, 300),
    st.integers(-200, 70_000),
    st.sampled_from([2**32 - 1, 2**32, 2**63 - 1, -(2**63), 2**63, -(2**40)]),
)
RECEIVED_US = JANUARY_US + 5


@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(METRICS),
            st.integers(0, 400),
            numbers,
            st.one_of(st.none(), st.integers(JANUARY_US, JANUARY_US + 10**9), st.integers(-5, 300)),
        ),
        min_size=1,
        max_size=80,
    ),
    alike=st.sampled_from([None, None, 0, 200, 40_000, 2**31, 2**40, -(2**40), -7]),
    timed=st.sampled_from(["own", "one", "none"]),
    flip=st.one_of(st.none(), st.tuples(st.integers(0, 10**6), st.integers(0, 255))),
)
def test_columns_say_what_rows_say_or_nothing(
    rows: list[Any], alike: int | None, timed: str, flip: tuple[int, int] | None
) -> None:
    """Also of parts in which a byte was changed, which only checksums would find."""
    made = []
    for number, (metric, customer, micros, ts_us) in enumerate(rows):
        value = micros if alike is None else alike
        at_us = {"own": ts_us, "one": JANUARY_US, "none": None}[timed]
        key = number.to_bytes(16, "big")
        made.append(
            (metric, f"c{customer}", value, at_us, customer % 64, key, key, 0, "k", None, None)
        )
    part = columns("acme", made, {})
    counting, erasable = encode_counting(part), encode_erasable(part)
    if flip is not None:
        at, byte = flip[0] % len(counting), flip[1]
        counting = counting[:at] + bytes([byte]) + counting[at + 1 :]
    found = decode_columns(counting, erasable, RECEIVED_US)
    if found is None:
        wide = any(not -(2**63) <= micros < 2**63 for micros in part.micros)
        assert wide or flip is not None, "plain events go by column"
        return
    events = decode_events(counting, erasable)
    metrics, customers = found.metric_names, found.customer_names
    assert found.tenant == events.tenant
    assert [metrics[i] for i in found.metric_indexes] == events.metrics
    assert [customers[i] for i in found.customer_indexes] == events.customers
    assert found.micros.tolist() == events.micros
    times = [RECEIVED_US if us is None else us for us in events.times_us]
    assert found.times_us.tolist() == times
    assert found.partitions.tolist() == list(events.partitions)


def test_a_part_that_can_not_be_read_is_an_error_or_left_to_the_general_way() -> None:
    state = ShardState(range(PARTITIONS))
    bulk = BulkFold(state)
    with pytest.raises(RecordError):
        bulk.take(b"\x90", b"\x90", first_sequence=0, received_at_us=0)
    large = b"\x90" + bytes(fold_in_bulk.SMALL_PART_BYTES)
    assert bulk.take(large, b"\x90", first_sequence=0, received_at_us=0) is None
