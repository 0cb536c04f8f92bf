"""A snapshot's section holds exactly what lies before its position, however full the shards' inboxes are.

One event more and recovery counts it twice; one less and it is lost.
"""

from __future__ import annotations

from functools import partial
from random import Random

import pytest
import trio

from engine.actors import log_writer, shard
from engine.actors.recovery import PARTITION_SECTION
from engine.actors.shard import restore_partition
from engine.actors.snapshotter import ControlState, Snapshotter
from engine.core.quantities import unpack_ext
from engine.core.records import decode_events
from engine.core.shard_state import ShardState
from tests.helpers.event_log import run_inline
from tests.unit.test_log_writer import Bench, one
from wal.log import scan
from wal.snapshot import MemorySnapshots

SNAPSHOTS = 4
CUSTOMERS = 30


async def offer_many(bench: Bench, rng: Random, ended: trio.Event) -> None:
    """Events one by one, more than the shards fold just then."""
    number = 0
    while not ended.is_set():
        customer = f"c{rng.randrange(CUSTOMERS)}"
        bench.writer.offer("t", [one(f"k{number}", customer=customer)], 10)
        number += 1
        for _ in range(rng.randrange(4)):
            await trio.lowlevel.checkpoint()


def positions(bench: Bench) -> dict[int, list[int]]:
    """By partition: the positions of its events in the log."""
    found: dict[int, list[int]] = {}
    for record in scan(bench.log, 0):
        part = decode_events(*(part.data for part in record.parts))
        for index, partition in enumerate(part.partitions):
            found.setdefault(partition, []).append(record.sequence + index)
    return found


@pytest.mark.parametrize("at_once", [0, 1000])
async def test_a_section_holds_what_lies_before_its_position(
    monkeypatch: pytest.MonkeyPatch, rng: Random, at_once: int
) -> None:
    monkeypatch.setattr(shard, "SHARD_INBOX_MAX", 1)
    monkeypatch.setattr(shard, "SLICE_ROWS", 1)
    monkeypatch.setattr(log_writer, "FOLDED_AT_ONCE_MAX", at_once)
    bench, store, ended = Bench(), MemorySnapshots(), trio.Event()
    snapshotter = Snapshotter(
        store,
        log_id=bytes(16),
        epoch=1,
        shards=bench.shards,
        owner=bench.owner,
        published_sequence=lambda: bench.writer.published_sequence,
        control_state=lambda: ControlState(
            bench.writer.published_sequence, b"\x90", b"\x90", b"\x90", b"\x90"
        ),
        run_blocking=run_inline,
        every_events=1 << 40,
        last_position=0,
    )
    found = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.writer.run)
        for each in bench.shards:
            nursery.start_soon(each.run)
        nursery.start_soon(partial(offer_many, bench, rng, ended))
        for _ in range(SNAPSHOTS):
            await snapshotter.take()
            assert snapshotter.last_error is None
            with store.load(store.names()[0]) as snapshot:
                found.append(
                    [(s.section_id, s.position, bytes(s.data)) for s in snapshot.sections()]
                )
        ended.set()
        nursery.cancel_scope.cancel()
    log = positions(bench)
    checked = 0
    for sections in found:
        for section_id, position, data in sections:
            partition = section_id - PARTITION_SECTION
            if partition not in log:
                continue
            state = ShardState([partition])
            restore_partition(state, partition, data, unpack_ext)
            held = sum(counter.sum for counter in state.counters[partition].values()) // 10**6
            assert held == sum(at < position for at in log[partition]), (partition, position)
            checked += held > 0
    assert checked > SNAPSHOTS, "there was something to hold"
