"""What every run store must do, over all of them: `wal.runs` is the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wal.lmdb_runs import LmdbRuns
from wal.memory_runs import MemoryRuns
from wal.runs import Block, RunStore, RunStoreFull

Reopen = Callable[[RunStore], RunStore]


def _key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def _block(run_id: int, low: int, text: bytes = b"x") -> Block:
    return Block(run_id, _key(low), text + bytes(64))


@pytest.fixture(params=["memory", pytest.param("lmdb", marks=pytest.mark.lmdb)])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[RunStore, Reopen]]:
    opened: list[RunStore] = []

    def open_store(previous: RunStore | None = None) -> RunStore:
        if previous is not None:
            previous.close()
            opened.remove(previous)
        if request.param == "memory":
            store: RunStore = previous if previous is not None else MemoryRuns()
        else:
            store = LmdbRuns(tmp_path / "runs")
        store.refresh()
        opened.append(store)
        return store

    yield open_store(), open_store
    for store in opened:
        store.close()


def test_a_new_store_is_empty(stores: tuple[RunStore, Reopen]) -> None:
    store, _ = stores
    assert store.manifest() is None
    assert store.wiped_because is None
    assert store.run_ids() == []
    assert store.find_block(1, _key(5)) is None
    assert store.scan(1, _key(0), blocks_max=10) == []


def test_what_was_written_is_there_after_a_refresh_and_after_reopening(
    stores: tuple[RunStore, Reopen],
) -> None:
    store, reopen = stores
    blocks = [_block(3, 0, b"a"), _block(3, 7, b"b"), _block(9, 0, b"c")]
    store.write(blocks, b"manifest")
    for _ in range(2):
        store.refresh()
        assert store.manifest() == b"manifest"
        assert store.run_ids() == [3, 9]
        assert store.scan(3, _key(0), blocks_max=10) == blocks[:2]
        assert store.scan(9, _key(0), blocks_max=10) == blocks[2:]
        store = reopen(store)


def test_the_owner_sees_nothing_new_before_a_refresh_but_a_scan_does(
    stores: tuple[RunStore, Reopen],
) -> None:
    store, _ = stores
    store.write([_block(1, 0, b"old")], b"old")
    store.refresh()
    store.write([_block(1, 5, b"new")], b"new")
    store.delete(1, blocks_max=1)
    assert store.manifest() == b"old"
    assert store.run_ids() == [1]
    found = store.find_block(1, _key(6))
    assert found is not None
    assert found.data.startswith(b"old")
    assert [block.low for block in store.scan(1, _key(0), blocks_max=9)] == [_key(5)]
    store.refresh()
    assert store.manifest() == b"new"
    store.write([_block(2, 0)], b"newer")
    store.prepare(1000)
    assert (store.manifest(), store.run_ids()) == (b"newer", [1, 2])


def test_the_block_found_is_the_last_one_that_does_not_begin_after_the_key(
    stores: tuple[RunStore, Reopen],
) -> None:
    store, _ = stores
    blocks = [_block(2, 0), _block(2, 10), _block(2, 20), _block(5, 10)]
    store.write(blocks, b"m")
    store.refresh()
    expected = {0: 0, 9: 0, 10: 1, 11: 1, 19: 1, 20: 2, 2**128 - 1: 2}
    for key, at in expected.items():
        assert store.find_block(2, _key(key)) == blocks[at]
    # Of another run, for the caller to notice.
    assert store.find_block(5, _key(9)) == blocks[2]
    assert store.find_block(9, _key(0)) == blocks[3]
    assert store.find_block(1, _key(2**128 - 1)) is None


def test_a_write_replaces_and_leaves_the_manifest_alone_unless_one_is_given(
    stores: tuple[RunStore, Reopen],
) -> None:
    store, _ = stores
    store.write([_block(1, 0, b"a")], b"m")
    store.write([_block(1, 0, b"b")])
    store.write([])
    store.refresh()
    assert store.manifest() == b"m"
    assert store.scan(1, _key(0), blocks_max=2) == [_block(1, 0, b"b")]


def test_a_scan_begins_where_it_is_told_and_stops_at_its_bound_and_at_the_runs_end(
    stores: tuple[RunStore, Reopen],
) -> None:
    store, _ = stores
    blocks = [_block(1, low) for low in range(0, 50, 10)]
    store.write([*blocks, _block(2, 0)], b"m")
    assert store.scan(1, _key(11), blocks_max=2) == blocks[2:4]
    assert store.scan(1, _key(20), blocks_max=100) == blocks[2:]
    assert store.scan(1, _key(41), blocks_max=100) == []


def test_deleting_takes_one_run_in_bounded_steps_and_says_when_none_is_left(
    stores: tuple[RunStore, Reopen],
) -> None:
    store, reopen = stores
    store.write([_block(run, low) for run in (1, 2, 3) for low in range(5)], b"m")
    assert [store.delete(2, blocks_max=2) for _ in range(4)] == [2, 2, 1, 0]
    store = reopen(store)
    assert store.run_ids() == [1, 3]
    assert store.delete(3, blocks_max=100) == 5
    assert store.delete(7, blocks_max=100) == 0
    assert len(store.scan(1, _key(0), blocks_max=100)) == 5
    store.refresh()
    assert store.run_ids() == [1]
    assert store.manifest() == b"m"


def test_wiping_leaves_an_empty_store_that_works(stores: tuple[RunStore, Reopen]) -> None:
    store, reopen = stores
    store.write([_block(1, 0)], b"m")
    store.refresh()
    store.wipe()
    assert (store.manifest(), store.run_ids()) == (None, [])
    store.write([_block(4, 0)], b"n")
    store = reopen(store)
    assert (store.manifest(), store.run_ids()) == (b"n", [4])
    assert store.size_bytes() > 0


@pytest.mark.lmdb
def test_the_map_grows_when_it_is_prepared_and_refuses_without(tmp_path: Path) -> None:
    store = LmdbRuns(tmp_path / "runs", map_bytes_min=6 << 20)
    block = bytes(4080)
    blocks = [Block(1, _key(number), block) for number in range(1600)]
    with pytest.raises(RunStoreFull, match="map is full"):
        store.write(blocks, b"m")
    store.refresh()
    assert store.run_ids() == []
    # After a refusal it grows even if what is asked for seems to fit.
    store.prepare(0)
    store.write(blocks, b"m")
    store.refresh()
    assert store.find_block(1, _key(500)) == blocks[500]
    store.close()
    again = LmdbRuns(tmp_path / "runs", map_bytes_min=1 << 20)
    assert again.find_block(1, _key(999)) == blocks[999]
    again.close()


@pytest.mark.lmdb
def test_the_file_does_not_grow_while_runs_are_replaced_and_the_view_is_renewed(
    tmp_path: Path,
) -> None:
    store = LmdbRuns(tmp_path / "runs")
    sizes = []
    for run_id in range(1, 40):
        store.prepare(100 * 4096)
        store.write([Block(run_id, _key(low), bytes(4080)) for low in range(100)], b"m")
        store.refresh()
        store.delete(run_id - 1, blocks_max=100)
        store.refresh()
        sizes.append(store.size_bytes())
    assert sizes[-1] == sizes[10]
    assert sizes[-1] < 5 * 100 * 4096
    store.close()


@pytest.mark.lmdb
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_file_that_cannot_be_read_is_wiped_and_the_reason_is_told(
    tmp_path: Path, damage: str
) -> None:
    store = LmdbRuns(tmp_path / "runs")
    store.write([Block(1, _key(low), bytes(4080)) for low in range(200)], b"m")
    store.close()
    file = tmp_path / "runs" / "data.mdb"
    whole = file.read_bytes()
    file.write_bytes(
        {"cut": whole[: len(whole) // 2], "garbage": b"\xaa" * len(whole), "empty": b""}[damage]
    )
    store = LmdbRuns(tmp_path / "runs")
    assert store.manifest() is None
    assert store.run_ids() == []
    # An empty file is a new one to LMDB.
    assert (store.wiped_because is None) == (damage == "empty")
    store.write([_block(1, 0)], b"m")
    store.close()
    store = LmdbRuns(tmp_path / "runs")
    assert store.manifest() == b"m"
    store.close()


@pytest.mark.lmdb
def test_the_files_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    store = LmdbRuns(tmp_path / "runs")
    store.close()
    assert (tmp_path / "runs" / "data.mdb").stat().st_mode & 0o077 == 0
