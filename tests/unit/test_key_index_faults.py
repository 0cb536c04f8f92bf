"""The key index when something is wrong: foreign or damaged bytes are found, failed writes and crashes lose no key."""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from crc32c import crc32c

from tests.helpers.filled_index import (
    check_exact,
    fill,
    open_index,
    run_to_end,
    some_keys,
)
from wal.key_filter import KeyFilter
from wal.key_index import RUNS_CROWDED
from wal.key_merge import PlanKind, filter_steps
from wal.lmdb_runs import LmdbRuns
from wal.memory_runs import MemoryRuns
from wal.run_blocks import block_entries, decode_manifest, encode_manifest
from wal.runs import Block, IndexDamaged, RunStore, RunStoreFailed, RunStoreFull

OpenStore = Callable[[], RunStore]


@pytest.fixture(params=["memory", pytest.param("lmdb", marks=pytest.mark.lmdb)])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens the same store again and again, as a process that was killed in between would."""
    memory = MemoryRuns()
    opened: list[RunStore] = []

    def again() -> RunStore:
        for store in opened:
            store.close()
        opened[:] = [
            memory
            if request.param == "memory"
            else LmdbRuns(tmp_path / "runs", map_bytes_min=1 << 20)
        ]
        return opened[0]

    yield again
    for store in opened:
        store.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"log_id": b"another-log-id-x"}, "another log"),
        ({"epoch": 4}, "before a restore"),
        ({"head_sequence": 499}, "up to 500, but it ends at 499"),
    ],
)
def test_an_index_of_another_log_or_ahead_of_it_is_wiped(
    open_store: OpenStore, rng: random.Random, changes: dict[str, Any], reason: str
) -> None:
    stored = fill(open_index(open_store()), rng, flushes=5)
    assert open_index(open_store(), head_sequence=500).stored_keys == 500
    store = open_store()
    index = open_index(store, **changes)
    assert reason in (index.reset_because or "")
    assert (index.watermark, index.stored_keys, store.run_ids()) == (0, 0, [])
    assert index.known(list(stored)) == {}
    index.add(stored, 400)
    index.seal()
    index.settle()
    check_exact(index, stored, rng)


def test_a_changed_manifest_of_any_byte_or_length_is_wiped(rng: random.Random) -> None:
    store = MemoryRuns()
    fill(open_index(store), rng, flushes=2)
    whole = store.manifest_data
    assert whole is not None
    blocks = dict(store.data)
    damaged = [whole[:length] for length in range(len(whole))]
    damaged += [whole + b"\0"]
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << rng.randrange(8)
        damaged.append(bytes(changed))
    for data in damaged:
        store.manifest_data = data
        store.data = dict(blocks)
        index = open_index(store)
        assert (index.watermark, index.stored_keys, store.data) == (0, 0, {})
        assert index.reset_because is not None


def test_a_manifest_of_a_later_version_is_wiped(rng: random.Random) -> None:
    store = MemoryRuns()
    fill(open_index(store), rng, flushes=1)
    assert store.manifest_data is not None
    later = bytearray(store.manifest_data)
    later[5] += 1
    later[-4:] = crc32c(bytes(later[:-4])).to_bytes(4, "big")
    store.manifest_data = bytes(later)
    assert "version 2" in (open_index(store).reset_because or "")


def test_every_flipped_byte_of_a_block_is_found_by_a_lookup_and_by_opening(
    rng: random.Random,
) -> None:
    store = MemoryRuns()
    index = open_index(store)
    stored = fill(index, rng, flushes=1, keys_each=60)
    place = next(iter(store.data))
    whole = store.data[place]
    key = next(iter(stored))
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << rng.randrange(8)
        store.data[place] = bytes(changed)
        store.refresh()
        with pytest.raises(IndexDamaged, match="rebuilt from the log"):
            index.lookup(key)
    for length in range(len(whole)):
        store.data[place] = whole[:length]
        store.refresh()
        with pytest.raises(IndexDamaged):
            index.lookup(key)
    assert "checksum" in (open_index(store).reset_because or "") or store.data == {}


def test_a_block_that_is_missing_moved_or_of_another_run_is_found(rng: random.Random) -> None:
    store = MemoryRuns()
    index = open_index(store)
    stored = fill(index, rng, flushes=2, keys_each=1000)
    first, second = index.statistics().runs
    blocks, manifest_data = dict(store.data), store.manifest_data
    order = sorted(blocks)
    for at, place in enumerate(order):
        moved = (place[0], (int.from_bytes(place[1], "big") + 1).to_bytes(16, "big"))
        other = order[at - 1]
        for damage in (
            {key: data for key, data in blocks.items() if key != place},
            {(moved if key == place else key): data for key, data in blocks.items()},
            {**blocks, place: blocks[other]},
        ):
            store.data = damage
            store.refresh()
            with pytest.raises(IndexDamaged):
                check_exact(index, stored, rng)
            assert open_index(store).reset_because is not None
            store.manifest_data = manifest_data
    # A run in another's place: the same ranges cannot be told from data, the run's id can.
    store.data = {
        (second.run_id if run_id == first.run_id else run_id, low): data
        for (run_id, low), data in blocks.items()
    }
    store.refresh()
    with pytest.raises(IndexDamaged):
        check_exact(index, stored, rng)


@pytest.mark.parametrize("keys_each", [60, 600], ids=["one block", "several blocks"])
def test_every_key_of_a_missing_block_is_an_error_and_never_unknown(
    rng: random.Random, keys_each: int
) -> None:
    """Also of a run's first block, where the last block of the run before it seems to answer."""
    store = MemoryRuns()
    index = open_index(store)
    stored = fill(index, rng, flushes=2, keys_each=keys_each)
    blocks = dict(store.data)
    for place, whole in blocks.items():
        store.data = {key: data for key, data in blocks.items() if key != place}
        store.refresh()
        entries = bytes(block_entries(Block(*place, whole)))
        lost = [key for key in stored if key in entries]
        assert lost
        for key in lost:
            with pytest.raises(IndexDamaged):
                index.lookup(key)
        run = next(run for run in index.statistics().runs if run.run_id == place[0])
        with pytest.raises(IndexDamaged, match=r"lacks the block|no block"):
            for _ in filter_steps(store, [run], KeyFilter(run.entries)):
                pass


def test_a_merge_refuses_to_copy_a_damaged_block(rng: random.Random) -> None:
    store = MemoryRuns()
    index = open_index(store)
    fill(index, rng, flushes=3)
    index.add(some_keys(rng, 100), 400)
    index.seal()
    place = next(iter(store.data))
    store.data[place] = store.data[place][:-1] + bytes([store.data[place][-1] ^ 1])
    with pytest.raises(IndexDamaged):
        index.settle()
    index = index.reset()
    assert (index.watermark, index.stored_keys, store.data) == (0, 0, {})


def test_a_run_with_fewer_entries_than_the_manifest_says_is_found(rng: random.Random) -> None:
    store = MemoryRuns()
    fill(open_index(store), rng, flushes=1)
    assert store.manifest_data is not None
    manifest = decode_manifest(store.manifest_data)
    run = manifest.runs[0]._replace(entries=101)
    store.manifest_data = encode_manifest(manifest._replace(runs=(run,)))
    assert "has 100 entries, not 101" in (open_index(store).reset_because or "")


def test_deleting_the_directory_only_costs_a_rebuild(tmp_path: Path, rng: random.Random) -> None:
    store = LmdbRuns(tmp_path / "runs")
    index = open_index(store)
    stored = fill(index, rng, flushes=3)
    index.close()
    shutil.rmtree(tmp_path / "runs")
    index = open_index(LmdbRuns(tmp_path / "runs"))
    assert (index.watermark, index.stored_keys, index.reset_because) == (0, 0, None)
    index.add(stored, 300)
    check_exact(index, stored, rng)
    index.close()


FAULTS = [
    (RunStoreFull("full"), False),
    (RunStoreFailed("lost"), False),
    (RunStoreFailed("?"), True),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=["full", "failed", "failed but took effect"])
@pytest.mark.parametrize("writes_before", range(12))
def test_a_failed_write_anywhere_loses_no_key_and_a_later_merge_succeeds(
    rng: random.Random, fault: tuple[Any, bool], writes_before: int
) -> None:
    store = MemoryRuns()
    index = open_index(store)
    expected = fill(index, rng, flushes=3, keys_each=400)
    more = some_keys(rng, 400)
    expected |= more
    index.add(more, 1600)
    index.seal()
    store.fail_next_writes(*[None] * writes_before, fault)
    failures = 0
    while (plan := index.begin_merge()) is not None:
        try:
            run_to_end(plan)
        except (RunStoreFull, RunStoreFailed):
            failures += 1
        index.finish_merge(plan)
        # A crash now: the disk alone must make a good index too.
        crashed = MemoryRuns()
        crashed.data, crashed.manifest_data = dict(store.data), store.manifest_data
        reopened = open_index(crashed)
        assert reopened.reset_because is None
        assert reopened.watermark in (1200, 1600)
        if reopened.watermark == 1200:
            reopened.add(more, 1600)
        assert reopened.known(list(expected)) == expected
        assert index.known(list(expected)) == expected
    assert failures <= 1
    assert failures == index.statistics().merges_failed
    assert index.watermark == 1600
    assert [run.tier for run in index.statistics().runs] == [1]
    assert store.run_ids() == [run.run_id for run in index.statistics().runs]
    check_exact(index, expected, rng)


def test_after_a_failure_the_left_over_blocks_go_first_to_make_room(rng: random.Random) -> None:
    store = MemoryRuns()
    index = open_index(store)
    index.add(some_keys(rng, 400), 400)
    store.fail_next_writes(None, (RunStoreFull("full"), False))
    with pytest.raises(RunStoreFull):
        index.settle()
    assert len(store.data) == 2
    plan = index.begin_merge()
    assert plan is not None
    assert plan.kind is PlanKind.COLLECT
    run_to_end(plan)
    index.finish_merge(plan)
    assert store.data == {}
    index.settle()
    assert index.watermark == 400


@pytest.mark.slow
def test_a_crash_after_any_slice_leaves_a_good_index(
    open_store: OpenStore, rng: random.Random
) -> None:
    for slices in range(9):
        store = open_store()
        store.wipe()
        index = open_index(store)
        stored = fill(index, rng, flushes=3, keys_each=400)
        more = some_keys(rng, 400)
        index.add(more, 1600)
        index.seal()
        left = slices
        while left and (plan := index.begin_merge()) is not None:
            while left and plan.run_slice():
                left -= 1
            if not plan.is_done:
                break
            index.finish_merge(plan)
            left = max(0, left - 1)
        reopened = open_index(open_store())
        assert reopened.reset_because is None
        assert reopened.watermark in (1200, 1600)
        if reopened.watermark == 1200:
            reopened.add(more, 1600)
        check_exact(reopened, stored | more, rng)
        reopened.settle()
        check_exact(reopened, stored | more, rng)


@pytest.mark.slow
def test_a_flush_goes_between_the_portions_of_a_long_merge(rng: random.Random) -> None:
    store = MemoryRuns()
    index = open_index(store, recent_keys_max=60_000)
    expected = fill(index, rng, flushes=3, keys_each=60_000)
    more = some_keys(rng, 60_000)
    index.add(more, 240_000)
    index.seal()
    kinds: list[PlanKind] = []
    watermarks: list[int] = []
    while (plan := index.begin_merge()) is not None:
        plan._slices_left = 1 if plan.kind is PlanKind.COMPACT else None
        run_to_end(plan)
        index.finish_merge(plan)
        kinds.append(plan.kind)
        watermarks.append(index.watermark)
        if kinds.count(PlanKind.COMPACT) in (1, 3) and kinds[-1] is PlanKind.COMPACT:
            extra = some_keys(rng, 10)
            more |= extra
            index.add(extra, index.statistics().position + 10)
            index.seal()
    assert kinds.count(PlanKind.FLUSH) == 3
    between = kinds[kinds.index(PlanKind.COMPACT) :]
    assert PlanKind.FLUSH in between[: len(between) - 1 - between[::-1].index(PlanKind.COMPACT)]
    assert [run.tier for run in index.statistics().runs] == [1, 0, 0]
    assert store.run_ids() == sorted(run.run_id for run in index.statistics().runs)
    sample = dict(rng.sample(sorted((expected | more).items()), 2000))
    check_exact(index, sample, rng)
    assert index.stored_keys == len(expected) + len(more)


def test_merging_goes_before_flushing_when_there_are_too_many_runs(rng: random.Random) -> None:
    index = open_index(MemoryRuns())
    for number in range(RUNS_CROWDED + 2):
        index.add(some_keys(rng, 3), number + 1)
        index.seal()
        while (plan := index.begin_merge()) is not None and plan.kind is not PlanKind.COMPACT:
            run_to_end(plan)
            index.finish_merge(plan)
        if plan is not None:  # never let it begin: begun portions are dropped with the plan
            index.finish_merge(plan)
    assert len(index.statistics().runs) == RUNS_CROWDED + 1
    plan = index.begin_merge()
    assert plan is not None
    assert plan.kind is PlanKind.COMPACT


@pytest.mark.slow
def test_the_map_grows_by_itself_while_keys_come(tmp_path: Path, rng: random.Random) -> None:
    store = LmdbRuns(tmp_path / "runs", map_bytes_min=256 << 10)
    index = open_index(store)
    expected = fill(index, rng, flushes=10, keys_each=20_000)
    assert store.size_bytes() > 4 << 20
    assert index.stored_keys == 200_000
    check_exact(index, dict(rng.sample(sorted(expected.items()), 1000)), rng)
    index.close()
    index = open_index(LmdbRuns(tmp_path / "runs", map_bytes_min=256 << 10))
    assert index.stored_keys == 200_000
    index.close()


def test_a_full_disk_refuses_the_merge_and_takes_it_when_there_is_room(
    tmp_path: Path, rng: random.Random
) -> None:
    store = LmdbRuns(tmp_path / "runs")
    index = open_index(store)
    expected = fill(index, rng, flushes=1, keys_each=20_000)
    more = some_keys(rng, 40_000)
    expected |= more
    index.add(more, 60_000)
    index.seal()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.size_bytes(), hard))
    try:
        with pytest.raises((RunStoreFull, RunStoreFailed)):
            index.settle()
        assert index.watermark == 20_000
        sample = dict(rng.sample(sorted(expected.items()), 500))
        check_exact(index, sample, rng)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    index.settle()
    assert index.watermark == 60_000
    check_exact(index, sample, rng)
    assert store.run_ids() == [run.run_id for run in index.statistics().runs]
    index.close()


def test_a_failed_meta_write_is_survived_by_opening_the_file_anew(
    tmp_path: Path, rng: random.Random
) -> None:
    """LMDB refuses every transaction after one: here by a stand-in that does so until it is closed."""

    class Panicking:
        def __init__(self, real: lmdb.Environment) -> None:
            self._real = real

        def begin(self, **_: object) -> None:
            raise lmdb.PanicError("mdb_txn_begin", -30795)

        def close(self) -> None:
            self._real.close()

    store = LmdbRuns(tmp_path / "runs")
    index = open_index(store)
    expected = fill(index, rng, flushes=2)
    more = some_keys(rng, 100)
    expected |= more
    index.add(more, 300)
    index.seal()
    plan = index.begin_merge()
    assert plan is not None
    store._environment = Panicking(store._environment)  # type: ignore[assignment]
    with pytest.raises(RunStoreFailed, match="cannot be written"):
        run_to_end(plan)
    index.finish_merge(plan)
    check_exact(index, expected, rng)
    index.settle()
    assert index.watermark == 300
    check_exact(index, expected, rng)
    index.close()


def test_a_view_that_cannot_be_renewed_installs_nothing(rng: random.Random) -> None:
    class Stuck(MemoryRuns):
        is_stuck = False

        def refresh(self) -> None:
            if self.is_stuck:
                raise RunStoreFailed("no reader")
            super().refresh()

    store = Stuck()
    index = open_index(store)
    expected = fill(index, rng, flushes=3)
    more = some_keys(rng, 100)
    expected |= more
    index.add(more, 400)
    index.seal()
    while (plan := index.begin_merge()) is not None:
        run_to_end(plan)
        if plan.kind in (PlanKind.FLUSH, PlanKind.COMPACT) and rng.random() < 0.7:
            store.is_stuck = True
            with pytest.raises(RunStoreFailed):
                index.finish_merge(plan)
            store.is_stuck = False
        else:
            index.finish_merge(plan)
        check_exact(index, expected, rng)
        crashed = MemoryRuns()
        crashed.data, crashed.manifest_data = dict(store.data), store.manifest_data
        assert open_index(crashed).reset_because is None
    assert index.watermark == 400
    assert store.run_ids() == [run.run_id for run in index.statistics().runs]
