"""The promises of `wal.cells.CellStore`, tested over every implementation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from wal.cells import MANIFEST_PLACE, PLACE, CellsDamaged, CellStoreFailed, CellStoreFull
from wal.lmdb_cells import LmdbCells
from wal.memory_cells import MemoryCells

AnyCells = LmdbCells | MemoryCells
MAP_BYTES = 4 << 20


class Home:
    """Where one store lives: it can be reopened, and its values can be changed behind its back."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind, self.directory = kind, directory
        self.memory = MemoryCells()
        self.store: AnyCells = self.open()

    def open(self) -> AnyCells:
        return (
            self.memory if self.kind == "memory" else LmdbCells(self.directory, map_bytes=MAP_BYTES)
        )

    def reopen(self) -> AnyCells:
        self.store.close()
        self.store = self.open()
        return self.store

    def get(self, place: bytes) -> bytes:
        if self.kind == "memory":
            return self.memory.data[place]
        self.store.close()
        with lmdb.open(str(self.directory), map_size=MAP_BYTES) as env, env.begin() as reader:
            found: bytes = reader.get(place)
        self.store = self.open()
        return found

    def put(self, place: bytes, stored: bytes | None) -> None:
        if self.kind == "memory":
            self.memory.data.pop(place, None)
            if stored is not None:
                self.memory.data[place] = stored
            return
        self.store.close()
        with (
            lmdb.open(str(self.directory), map_size=MAP_BYTES) as env,
            env.begin(write=True) as writer,
        ):
            writer.delete(place)
            if stored is not None:
                writer.put(place, stored)
        self.store = self.open()


@pytest.fixture(params=["lmdb", "memory"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    home = Home(request.param, tmp_path / "rollups")
    yield home
    home.store.close()


def test_a_new_store_has_no_manifest_and_no_chunks(home: Home) -> None:
    assert home.store.manifest() is None
    assert home.store.heads(0, chunks_max=3) == []
    assert home.store.wiped_because is None


def test_what_was_written_is_there_after_a_restart(home: Home) -> None:
    home.store.write(0, [b"head0", b"", b"x" * 100_000], b"m1")
    home.store.write(1, [b"head1", b"y"], b"m2")
    store = home.reopen()
    assert store.manifest() == b"m2"
    assert store.heads(0, chunks_max=10) == [b"head0", b"head1"]
    assert store.heads(1, chunks_max=1) == [b"head1"]
    assert store.heads(0, chunks_max=1) == [b"head0"]
    assert store.heads(2, chunks_max=1) == []
    assert store.read(0, 1, 2) == [b"", b"x" * 100_000]
    assert store.read(1, 0, 2) == [b"head1", b"y"]
    assert store.size_bytes() > 100_000


def test_a_write_without_values_moves_only_the_manifest(home: Home) -> None:
    home.store.write(0, [b"head0"], b"m1")
    home.store.write(0, [], b"m2")
    assert home.store.manifest() == b"m2"
    assert home.store.heads(0, chunks_max=2) == [b"head0"]


def test_writing_a_chunk_again_replaces_it(home: Home) -> None:
    home.store.write(0, [b"old"], b"m1")
    home.store.write(0, [b"new"], b"m1")
    assert home.store.read(0, 0, 1) == [b"new"]


def test_a_flipped_bit_is_found_wherever_it_is(home: Home) -> None:
    home.store.write(0, [b"head0", b"some value"], b"manifest")
    for place in (PLACE.pack(0, 0), PLACE.pack(0, 1), MANIFEST_PLACE):
        good = home.get(place)
        for bit in range(0, 8 * len(good), 5):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            home.put(place, bytes(bad))
            with pytest.raises(CellsDamaged, match="damaged"):
                home.store.manifest() if place == MANIFEST_PLACE else home.store.read(0, 0, 2)
        home.put(place, good[:2])
        with pytest.raises(CellsDamaged, match="damaged"):
            home.store.manifest() if place == MANIFEST_PLACE else home.store.read(0, 0, 2)
        home.put(place, good)


def test_values_in_each_others_place_are_found(home: Home) -> None:
    home.store.write(0, [b"h", b"one", b"two"], b"m")
    one, two = home.get(PLACE.pack(0, 1)), home.get(PLACE.pack(0, 2))
    home.put(PLACE.pack(0, 1), two)
    home.put(PLACE.pack(0, 2), one)
    with pytest.raises(CellsDamaged):
        home.store.read(0, 1, 1)


def test_a_missing_value_is_damage(home: Home) -> None:
    home.store.write(0, [b"h", b"one"], b"m")
    home.put(PLACE.pack(0, 1), None)
    assert home.store.heads(0, chunks_max=1) == [b"h"]
    with pytest.raises(CellsDamaged, match="missing"):
        home.store.read(0, 1, 1)
    with pytest.raises(CellsDamaged, match="missing"):
        home.store.read(7, 0, 1)


def test_wiping_leaves_nothing(home: Home) -> None:
    home.store.write(0, [b"h"], b"m")
    home.store.wipe()
    assert home.store.manifest() is None
    assert home.store.heads(0, chunks_max=1) == []
    home.store.write(0, [b"again"], b"m2")
    assert home.reopen().read(0, 0, 1) == [b"again"]


def test_a_full_map_refuses_whole_and_reading_goes_on(tmp_path: Path) -> None:
    store = LmdbCells(tmp_path, map_bytes=1 << 20)
    store.write(0, [b"head0"], b"m1")
    with pytest.raises(CellStoreFull, match="largest size"):
        store.write(1, [b"head1", bytes(2 << 20)], b"m2")
    assert store.manifest() == b"m1"
    assert store.heads(0, chunks_max=2) == [b"head0"]
    store.write(1, [b"head1"], b"m2")
    assert store.manifest() == b"m2"
    store.close()


def test_a_file_that_cannot_be_read_is_thrown_away_with_a_reason(tmp_path: Path) -> None:
    store = LmdbCells(tmp_path, map_bytes=MAP_BYTES)
    store.write(0, [b"h", bytes(100_000)], b"m")
    store.close()
    data = tmp_path / "data.mdb"
    good = data.read_bytes()
    for bad in (b"nonsense" * 1000, good[: len(good) // 2]):
        data.write_bytes(bad)
        store = LmdbCells(tmp_path, map_bytes=MAP_BYTES)
        assert store.wiped_because is not None
        assert store.manifest() is None
        store.write(0, [b"h"], b"m")
        store.close()


def test_after_a_failed_write_the_file_is_opened_anew(tmp_path: Path) -> None:
    store = LmdbCells(tmp_path, map_bytes=MAP_BYTES)
    store.write(0, [b"h"], b"m1")
    store._environment.close()  # LMDB refuses everything now, as after a failed head
    with pytest.raises((CellStoreFailed, CellsDamaged)):
        store.write(1, [b"h1"], b"m2")
    store.write(1, [b"h1"], b"m2")
    assert store.manifest() == b"m2"
    assert store.heads(0, chunks_max=2) == [b"h", b"h1"]
    store.close()


def test_the_files_are_the_owners_alone(tmp_path: Path) -> None:
    store = LmdbCells(tmp_path / "rollups", map_bytes=MAP_BYTES)
    store.close()
    assert (tmp_path / "rollups" / "data.mdb").stat().st_mode & 0o077 == 0


def test_the_default_map_can_be_opened_and_takes_no_room(tmp_path: Path) -> None:
    store = LmdbCells(tmp_path)
    store.write(0, [b"h"], b"m")
    assert store.size_bytes() < 1 << 20
    store.close()
