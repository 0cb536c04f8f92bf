"""The key index: exact lookups wherever a key is, tiers, bounds, and a watermark that never lies."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.filled_index import (
    Keys,
    check_exact,
    fill,
    open_index,
    run_to_end,
    some_keys,
)
from wal.key_filter import BITS_PER_KEY_MIN, KeyFilter
from wal.key_index import RECENT_OVERRUN
from wal.key_merge import PlanKind, RunSource, take_entries
from wal.lmdb_runs import LmdbRuns
from wal.memory_runs import MemoryRuns
from wal.run_blocks import BLOCK_ENTRIES_MAX
from wal.runs import RunStore

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


def test_an_empty_index_knows_nothing(open_store: OpenStore, rng: random.Random) -> None:
    index = open_index(open_store())
    assert (index.watermark, index.stored_keys, index.recent_keys) == (0, 0, 0)
    assert index.reset_because is None
    assert index.suspects(b"".join(some_keys(rng, 50))) == []
    assert index.begin_merge() is None
    assert not index.seal()


def test_a_key_is_found_while_recent_sealed_flushing_and_stored(
    open_store: OpenStore, rng: random.Random
) -> None:
    index = open_index(open_store())
    expected = some_keys(rng, 300)
    index.add(expected, 300)
    check_exact(index, expected, rng)
    assert index.is_full
    assert index.seal()
    check_exact(index, expected, rng)
    more = some_keys(rng, 50)
    index.add(more, 350)
    expected |= more
    plan = index.begin_merge()
    assert plan is not None
    assert plan.kind is PlanKind.FLUSH
    while plan.run_slice():
        check_exact(index, expected, rng)
    check_exact(index, expected, rng)
    assert index.watermark == 0
    index.finish_merge(plan)
    assert (index.watermark, index.stored_keys, index.recent_keys) == (300, 300, 50)
    check_exact(index, expected, rng)


def test_recent_keys_hide_sealed_ones_and_these_the_runs_and_newer_runs_the_older(
    open_store: OpenStore,
) -> None:
    key = bytes(16)
    index = open_index(open_store())
    for number in range(4):
        index.add({key: bytes([number]) * 8}, number + 1)
        assert index.lookup(key) == bytes([number]) * 8
        assert index.known([key]) == {key: bytes([number]) * 8}
        index.seal()
        assert index.lookup(key) == bytes([number]) * 8
        plan = index.begin_merge()
        assert plan is not None
        run_to_end(plan)
        index.finish_merge(plan)
        assert index.lookup(key) == bytes([number]) * 8
        while (plan := index.begin_merge()) is not None and plan.kind is not PlanKind.COMPACT:
            run_to_end(plan)
            index.finish_merge(plan)
        if plan is not None:
            run_to_end(plan)
            index.finish_merge(plan)
    # Merging keeps the first answer that was ever given.
    assert index.stored_keys == 1
    assert index.lookup(key) == bytes(8)


def test_full_recent_keys_are_sealed_by_the_next_merge(
    open_store: OpenStore, rng: random.Random
) -> None:
    index = open_index(open_store())
    expected = some_keys(rng, 99)
    index.add(expected, 99)
    assert index.begin_merge() is None
    more = some_keys(rng, 1)
    index.add(more, 100)
    plan = index.begin_merge()
    assert plan is not None
    assert plan.kind is PlanKind.FLUSH
    run_to_end(plan)
    index.finish_merge(plan)
    assert index.watermark == 100
    check_exact(index, expected | more, rng)


def test_a_key_that_is_both_recent_and_sealed_has_the_recent_fingerprint(
    open_store: OpenStore,
) -> None:
    key = bytes(16)
    index = open_index(open_store())
    index.add({key: b"sealed--"}, 1)
    index.seal()
    index.add({key: b"recent--"}, 2)
    assert index.lookup(key) == b"recent--"
    assert index.known([key]) == {key: b"recent--"}


def test_everything_is_there_after_reopening_and_the_rest_is_fed_from_the_watermark(
    open_store: OpenStore, rng: random.Random
) -> None:
    index = open_index(open_store())
    stored = fill(index, rng, flushes=23)
    tail = some_keys(rng, 70)
    index.add(tail, 2370)
    index = open_index(open_store())
    assert index.reset_because is None
    assert (index.watermark, index.stored_keys) == (2300, 2300)
    assert index.known(list(tail)) == {}
    index.add(tail, 2370)
    check_exact(index, stored | tail, rng)


@pytest.mark.slow
def test_four_runs_of_a_tier_become_one_of_the_next_and_leave_no_blocks_behind(
    open_store: OpenStore, rng: random.Random
) -> None:
    store = open_store()
    index = open_index(store)
    expected = fill(index, rng, flushes=4 * 4 + 4 + 3, keys_each=400)
    runs = index.statistics().runs
    assert [run.tier for run in runs] == [2, 1, 0, 0, 0]
    assert [run.entries for run in runs] == [6400, 1600, 400, 400, 400]
    assert store.run_ids() == sorted(run.run_id for run in runs)
    check_exact(index, expected, rng)


def test_a_position_without_keys_moves_the_watermark_without_a_run(open_store: OpenStore) -> None:
    index = open_index(open_store())
    index.add({}, 50)
    assert index.seal()
    index.settle()
    assert (index.watermark, index.statistics().runs) == (50, ())
    assert open_index(open_store()).watermark == 50


def test_sealing_waits_for_the_flush_before(open_store: OpenStore, rng: random.Random) -> None:
    index = open_index(open_store())
    index.add(some_keys(rng, 10), 10)
    assert index.seal()
    index.add(some_keys(rng, 10), 20)
    assert not index.seal()
    index.settle()
    assert index.watermark == 10
    assert index.seal()


def test_room_has_a_bound_that_counts_what_is_being_flushed(
    open_store: OpenStore, rng: random.Random
) -> None:
    index = open_index(open_store())
    limit = 100 * RECENT_OVERRUN
    assert index.has_room(limit)
    index.add(some_keys(rng, 150), 150)
    index.seal()
    index.add(some_keys(rng, limit - 150), limit)
    assert index.has_room(0)
    assert not index.has_room(1)
    index.settle()
    assert index.has_room(150)


@pytest.mark.parametrize("keys", [1, 168, 169, 170, 338, 339, 1000])
def test_blocks_are_cut_at_every_boundary_without_losing_a_key(
    open_store: OpenStore, rng: random.Random, keys: int
) -> None:
    index = open_index(open_store())
    expected = fill(index, rng, flushes=1, keys_each=keys)
    index = open_index(open_store())
    assert index.stored_keys == keys
    check_exact(index, expected, rng)
    assert BLOCK_ENTRIES_MAX == 169


def test_the_first_and_the_last_key_of_the_space_are_found(
    open_store: OpenStore, rng: random.Random
) -> None:
    ends = {bytes(16): b"-first--", b"\xff" * 16: b"--last--"}
    index = open_index(open_store())
    # The last key alone in its block, and both among others.
    for count in (BLOCK_ENTRIES_MAX - 1, 500):
        expected = {**some_keys(rng, count), **ends}
        index.add(expected, index.statistics().position + 1)
        index.seal()
        index.settle()
        check_exact(index, expected, rng)
    check_exact(open_index(open_store()), expected, rng)


@pytest.mark.slow
def test_keys_that_share_their_leading_half_are_told_apart_in_runs_and_merges(
    open_store: OpenStore, rng: random.Random
) -> None:
    index = open_index(open_store())
    expected: Keys = {}
    for number in range(9):
        more = {b"collides" + rng.randbytes(8): rng.randbytes(8) for _ in range(400)}
        more |= some_keys(rng, 100)
        expected |= more
        index.add(more, number + 1)
        index.seal()
        index.settle()
    assert index.stored_keys == len(expected)
    check_exact(index, expected, rng)
    strangers = [b"collides" + rng.randbytes(8) for _ in range(200)]
    assert index.known(strangers) == {}


def test_a_pattern_that_straddles_two_entries_is_not_a_key(open_store: OpenStore) -> None:
    key = b"\x11" * 16
    straddling = b"\x11" * 15 + b"\x22"
    index = open_index(open_store())
    # ...1111 | 1111 1122 | 22..: `straddling` lies in the bytes, across the end of the key.
    index.add({key: b"\x11" * 7 + b"\x22", b"\x33" * 16: b"\x11" * 8}, 1)
    index.seal()
    index.settle()
    assert index._lookup_stored(straddling) is None
    assert index._lookup_stored(key) == b"\x11" * 7 + b"\x22"


def test_the_filter_has_no_false_negative_and_few_false_positives(rng: random.Random) -> None:
    keys = some_keys(rng, 40_000)
    key_filter = KeyFilter(len(keys))
    for entries in take_entries(keys):
        key_filter.add(entries)
    assert key_filter.keys_max >= len(keys)
    assert key_filter.size_bytes * 8 <= 2 * BITS_PER_KEY_MIN * len(keys)
    joined = b"".join(keys)
    assert key_filter.suspects(joined) == list(range(len(keys)))
    assert all(map(key_filter.may_hold, keys))
    strangers = list(some_keys(rng, 20_000))
    found = key_filter.suspects(b"".join(strangers))
    # One at a time answers the same as many at once.
    assert found == [at for at, key in enumerate(strangers) if key_filter.may_hold(key)]
    assert len(found) < 0.03 * len(strangers)


@pytest.mark.slow
def test_the_filter_grows_with_the_runs(rng: random.Random) -> None:
    index = open_index(MemoryRuns())
    sizes = set()
    expected: Keys = {}
    for _ in range(5):
        expected |= fill(index, rng, flushes=1, keys_each=2000)
        sizes.add(index.statistics().filter_bytes)
        check_exact(index, expected, rng)
        assert index.statistics().filter_bytes * 8 >= BITS_PER_KEY_MIN * index.stored_keys
    assert len(sizes) >= 3


def test_a_run_is_read_back_in_order_in_bounded_parts(rng: random.Random) -> None:
    store = MemoryRuns()
    index = open_index(store)
    expected = fill(index, rng, flushes=1, keys_each=3000)
    run = index.statistics().runs[0]
    source = RunSource(store, run, blocks_max=2)
    read: list[bytes] = []
    while len(entries := source.read()):
        assert len(entries) <= 2 * BLOCK_ENTRIES_MAX
        read += [entry.tobytes() for entry in entries]
    assert read == sorted(key + fingerprint for key, fingerprint in expected.items())


def test_of_a_whole_fingerprint_the_runs_keep_its_first_half() -> None:
    rng = random.Random(1)
    halves = {rng.randbytes(16): rng.randbytes(8) for _ in range(50)}
    whole = {rng.randbytes(16): rng.randbytes(16) for _ in range(50)}
    for added in (whole, whole | halves, halves | whole):
        index = open_index(MemoryRuns())
        index.add(added, 100)
        assert index.known([*added]) == added
        assert index.seal()
        index.settle()
        assert index.recent_keys == 0
        assert index.known([*added]) == {key: value[:8] for key, value in added.items()}


@pytest.mark.parametrize("seal_every", [0, 1, 7])
def test_keys_that_are_fed_are_found_once_feeding_ends_wherever_they_are(
    open_store: OpenStore, rng: random.Random, seal_every: int
) -> None:
    index = open_index(open_store())
    expected: Keys = {}
    for number in range(1, 21):
        more = some_keys(rng, rng.choice((0, 1, 40)))
        expected |= more
        longer = b"".join(fingerprint + rng.randbytes(8) for fingerprint in more.values())
        index.feed(b"".join(more), longer, number * 40)
        if seal_every and number % seal_every == 0 and index.seal():
            plan = index.begin_merge()
            assert plan is not None
            run_to_end(plan)
            index.finish_merge(plan)
            assert index.watermark == number * 40
    assert index.recent_keys + index.stored_keys == len(expected)
    index.end_feed()
    check_exact(index, expected, rng)
    later = some_keys(rng, 10)
    index.add(later, 1000)
    assert index.seal()
    index.settle()
    assert (index.watermark, index.recent_keys) == (1000, 0)
    check_exact(index, expected | later, rng)


def test_of_a_key_that_was_fed_twice_a_run_keeps_the_first_fingerprint(
    open_store: OpenStore,
) -> None:
    index = open_index(open_store())
    index.feed(bytes(16), b"first---", 1)
    index.feed(bytes(16), b"second--", 2)
    index.seal()
    index.settle()
    index.end_feed()
    assert (index.stored_keys, index.lookup(bytes(16))) == (1, b"first---")


def test_nothing_is_looked_up_or_added_while_keys_are_fed(open_store: OpenStore) -> None:
    index = open_index(open_store())
    index.feed(bytes(16), bytes(8), 1)
    with pytest.raises(AssertionError, match="end the feeding first"):
        index.known([bytes(16)])
    with pytest.raises(AssertionError, match="end the feeding first"):
        index.add({b"k" * 16: bytes(8)}, 2)
    index.end_feed()
    assert index.known([bytes(16)]) == {bytes(16): bytes(8)}
    with pytest.raises(AssertionError, match="before any is added"):
        index.feed(b"k" * 16, bytes(8), 2)
