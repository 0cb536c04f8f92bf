"""A partition's section of a snapshot is encoded in slices: the bytes are one section, and nothing is folded between."""

from __future__ import annotations

import msgspec
import pytest
import trio

from engine.actors import shard as shard_module
from engine.actors.group import Group
from engine.actors.shard import (
    FoldWork,
    PartitionRequest,
    Shard,
    partition_chunks,
    restore_partition,
)
from engine.core.quantities import INT64_MAX, unpack_ext
from engine.core.records import TenantEvents
from engine.core.shard_state import ShardState

NOW_US = 1_769_853_600_000_000
PARTITION = 7


def events(customers: int, micros: int) -> TenantEvents:
    nothing = [None] * customers
    return TenantEvents(
        "t",
        ["m"] * customers,
        [f"c{number}" for number in range(customers)],
        [micros] * customers,
        [NOW_US] * customers,
        [PARTITION] * customers,
        [],
        [],
        [0] * customers,
        [],
        nothing,
        nothing,
        {},
    )


def filled_shard(customers: int, micros: int = 5) -> Shard:
    shard = Shard(0, ShardState([PARTITION]))
    fold(shard, events(customers, micros))
    return shard


def fold(shard: Shard, part: TenantEvents) -> None:
    shard.state.fold_events(part, range(part.event_count), first_sequence=2, received_at_us=NOW_US)


@pytest.mark.parametrize("rows_max", [1, 2, 15, 16, 17, 4000])
@pytest.mark.parametrize("customers", [0, 1, 15, 16, 17, 40])
def test_slices_of_any_size_join_to_the_same_section(
    rows_max: int, customers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_module, "SLICE_ROWS", rows_max)
    state = filled_shard(customers).state if customers else ShardState([PARTITION])
    chunks = list(partition_chunks(state, PARTITION))
    assert len(chunks) == 4 + -(-customers // rows_max)
    section = b"".join(chunks)
    plain = msgspec.msgpack.encode(state.partition_state(PARTITION))
    assert msgspec.msgpack.decode(section) == msgspec.msgpack.decode(plain)
    fresh = ShardState([PARTITION])
    restore_partition(fresh, PARTITION, section, unpack_ext)
    assert fresh.partition_state(PARTITION) == state.partition_state(PARTITION)


@pytest.mark.parametrize("field", ["sum", "max", "last"])
@pytest.mark.parametrize("value", [INT64_MAX, INT64_MAX + 1, -INT64_MAX - 1, -INT64_MAX - 2])
def test_totals_around_64_bits_come_back_exactly(field: str, value: int) -> None:
    state = filled_shard(1).state
    (counter,) = state.counters[PARTITION].values()
    setattr(counter, field, value)
    fresh = ShardState([PARTITION])
    section = b"".join(partition_chunks(state, PARTITION))
    restore_partition(fresh, PARTITION, section, unpack_ext)
    (restored,) = fresh.counters[PARTITION].values()
    assert {name: getattr(restored, name) for name in ("sum", "max", "last")} == {
        "sum": counter.sum,
        "max": counter.max,
        "last": counter.last,
    }


async def test_others_run_between_slices_and_no_event_is_folded_into_half_a_section(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_module, "SLICE_ROWS", 10)
    shard = filled_shard(100)
    before = shard.state.partition_state(PARTITION)
    request = PartitionRequest(PARTITION, trio.Event())
    group = Group()
    group.received_at_us, group.shards_left = NOW_US, 1
    work = FoldWork(group, (), [(events(100, 7), range(100), 102)])
    turns = 0
    async with trio.open_nursery() as nursery:
        await shard.inbox.put(request)
        await shard.inbox.put(work)
        nursery.start_soon(shard.run)
        while not request.done.is_set():
            assert not group.done.is_set()
            await trio.lowlevel.checkpoint()
            turns += 1
        await group.done.wait()
        shard.inbox.close()
    assert turns >= 10
    fresh = ShardState([PARTITION])
    restore_partition(fresh, PARTITION, request.data, unpack_ext)
    assert fresh.partition_state(PARTITION) == before
    assert shard.state.partition_state(PARTITION) != before
