"""Snapshots: whole or not at all, never of another log or from beyond its end, and the reason is told."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wal import snapshot as snapshot_module
from wal.archive import ArchiveError, FileArchives
from wal.snapshot import (
    FileSnapshots,
    MemorySnapshots,
    SnapshotFailed,
    SnapshotFull,
    SnapshotStore,
    write,
)
from wal.snapshot_format import DIGEST_BYTES, Section, SnapshotDamaged, new_digest

LOG_ID = b"0123456789abcdef"
EPOCH = 2
HEAD = 10_000
SECTIONS = (
    Section(1, 100, b"first"),
    Section(7, 105, b""),
    Section(1, 103, bytes(range(256)) * 3),
)


def newest(store: SnapshotStore, head: int = HEAD) -> str | None:
    found = store.newest_valid(LOG_ID, EPOCH, head).snapshot
    if found is None:
        return None
    with found:
        return found.name


def put(store: SnapshotStore, position: int, *sections: Section) -> str:
    return write(store, LOG_ID, EPOCH, position, sections or SECTIONS)


class Disk:
    """A store with a way to change its files behind its back."""

    def __init__(self, store: MemorySnapshots | FileSnapshots, directory: Path) -> None:
        self.store = store
        self.directory = directory

    def read(self, name: str) -> bytes:
        if isinstance(self.store, MemorySnapshots):
            return self.store.files[name]
        return (self.directory / name).read_bytes()

    def overwrite(self, name: str, data: bytes) -> None:
        if isinstance(self.store, MemorySnapshots):
            self.store.files[name] = data
        else:
            (self.directory / name).write_bytes(data)


@pytest.fixture(params=["memory", "files"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    store = MemorySnapshots() if request.param == "memory" else FileSnapshots(tmp_path / "s")
    return Disk(store, tmp_path / "s")


def test_no_snapshot_is_an_answer(disk: Disk) -> None:
    found = disk.store.newest_valid(LOG_ID, EPOCH, HEAD)
    assert (found.snapshot, found.skipped, disk.store.names()) == (None, (), [])


def test_what_was_written_is_read_back_in_order(disk: Disk) -> None:
    name = put(disk.store, 100)
    found = disk.store.newest_valid(LOG_ID, EPOCH, HEAD)
    assert found.skipped == ()
    assert found.snapshot is not None
    with found.snapshot as snapshot:
        assert (snapshot.name, snapshot.log_id, snapshot.epoch) == (name, LOG_ID, EPOCH)
        assert snapshot.position == 100
        assert snapshot.section_positions == ((1, 100), (7, 105), (1, 103))
        read = tuple(Section(*section[:2], bytes(section.data)) for section in snapshot.sections())
    assert read == SECTIONS


def test_a_snapshot_without_sections_is_one(disk: Disk) -> None:
    name = write(disk.store, LOG_ID, EPOCH, 5, ())
    assert newest(disk.store) == name


def test_sections_are_written_as_they_come(tmp_path: Path) -> None:
    """Not all in memory: the file has grown by one section before the next one is asked for."""
    store = FileSnapshots(tmp_path)
    grown: list[int] = []

    def sections() -> Iterator[Section]:
        for number in range(4):
            grown.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
            yield Section(number, 100, bytes(1 << 20))

    write(store, LOG_ID, EPOCH, 100, sections())
    assert [size >> 20 for size in grown] == [0, 1, 2, 3]


def test_a_views_data_outlives_the_snapshot_it_was_read_from(tmp_path: Path) -> None:
    store = FileSnapshots(tmp_path)
    put(store, 100)
    snapshot = store.newest_valid(LOG_ID, EPOCH, HEAD).snapshot
    assert snapshot is not None
    view = next(snapshot.sections()).data
    snapshot.close()
    assert bytes(view) == b"first"


def test_the_newest_position_wins_and_of_one_position_the_last_written(disk: Disk) -> None:
    put(disk.store, 9)
    put(disk.store, 100)
    last = put(disk.store, 100)
    assert newest(disk.store) == last
    assert len(disk.store.names()) == 2


def test_two_are_kept_and_older_ones_go(disk: Disk) -> None:
    names = [put(disk.store, position) for position in (10, 20, 30, 40)]
    assert disk.store.names() == [names[3], names[2]]


def test_a_damaged_one_does_not_count_as_kept(disk: Disk) -> None:
    first = put(disk.store, 10)
    second = put(disk.store, 20)
    disk.overwrite(second, disk.read(second)[:-1])
    third = put(disk.store, 30)
    assert disk.store.names() == [third, first]


def test_one_from_beyond_the_logs_end_goes_with_the_next_one_written(disk: Disk) -> None:
    """The log lost its end: such a snapshot would be looked at, and skipped, for ever."""
    old = put(disk.store, 100)
    put(disk.store, 5000)
    assert newest(disk.store, 200) == old
    fresh = put(disk.store, 150)
    assert disk.store.names() == [fresh, old]


@pytest.mark.parametrize(
    ("log_id", "epoch", "head", "reason"),
    [
        (b"another-log-id-x", EPOCH, HEAD, "another log"),
        (LOG_ID, EPOCH + 1, HEAD, "of epoch 2, the log is in 3"),
        (LOG_ID, EPOCH, 199, "up to 200, but it ends at 199"),
    ],
)
def test_one_that_does_not_fit_the_log_is_skipped_with_its_reason(
    disk: Disk, log_id: bytes, epoch: int, head: int, reason: str
) -> None:
    name = put(disk.store, 200)
    found = disk.store.newest_valid(log_id, epoch, head)
    assert found.snapshot is None
    assert [skipped.name for skipped in found.skipped] == [name]
    assert reason in found.skipped[0].reason


def test_a_section_from_beyond_the_logs_end_is_enough_to_skip_it(disk: Disk) -> None:
    put(disk.store, 100, Section(1, 100, b"a"), Section(2, 300, b"b"))
    assert newest(disk.store, 299) is None
    assert newest(disk.store, 300) is not None


def test_an_older_one_is_used_when_newer_ones_are_of_no_use(disk: Disk) -> None:
    old = put(disk.store, 100)
    new = put(disk.store, 200)
    disk.overwrite(new, disk.read(new)[:-5])
    found = disk.store.newest_valid(LOG_ID, EPOCH, HEAD)
    assert found.snapshot is not None
    assert found.snapshot.name == old
    assert [skipped.name for skipped in found.skipped] == [new]
    found.snapshot.close()


@pytest.mark.slow
def test_every_changed_byte_of_a_snapshot_is_found(disk: Disk, rng: random.Random) -> None:
    old = put(disk.store, 90)
    name = put(disk.store, 100)
    whole = disk.read(name)
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << rng.randrange(8)
        disk.overwrite(name, bytes(changed))
        assert newest(disk.store) == old, f"byte {at}"
    disk.overwrite(name, whole)
    assert newest(disk.store) == name


@pytest.mark.slow
def test_a_snapshot_cut_anywhere_or_with_something_after_it_is_found(disk: Disk) -> None:
    old = put(disk.store, 90)
    name = put(disk.store, 100)
    whole = disk.read(name)
    for length in range(len(whole)):
        disk.overwrite(name, whole[:length])
        assert newest(disk.store) == old, f"{length} bytes"
    for more in (b"\0", bytes(32), whole):
        disk.overwrite(name, whole + more)
        assert newest(disk.store) == old
    disk.overwrite(name, whole)
    assert newest(disk.store) == name


def test_rot_after_the_first_look_is_found_when_a_section_is_read(tmp_path: Path) -> None:
    store = FileSnapshots(tmp_path)
    name = put(store, 100)
    snapshot = store.newest_valid(LOG_ID, EPOCH, HEAD).snapshot
    assert snapshot is not None
    data = bytearray((tmp_path / name).read_bytes())
    data[data.index(b"first")] ^= 1
    with (tmp_path / name).open("r+b") as file:
        file.write(data)
    with pytest.raises(SnapshotDamaged, match="section 1"):
        list(snapshot.sections())
    snapshot.close()


def test_a_version_of_tomorrow_is_skipped(disk: Disk) -> None:
    name = put(disk.store, 100)
    data = bytearray(disk.read(name))
    data[9] += 1
    disk.overwrite(name, bytes(data))
    assert "version 2" in disk.store.newest_valid(LOG_ID, EPOCH, HEAD).skipped[0].reason


def test_sections_that_do_not_add_up_are_refused_even_under_a_right_digest(disk: Disk) -> None:
    name = put(disk.store, 100, Section(1, 100, b"abcd"))
    body = bytearray(disk.read(name)[:-DIGEST_BYTES])
    for at, change in (
        (0, 1),
        (len(body) - 1, 1),
        (len(body) - 12 - 9, 1),
        (len(body) - 12 - 9, 255),
    ):
        changed = bytearray(body)
        changed[at] = (changed[at] + change) % 256
        digest = new_digest()
        digest.update(changed)
        disk.overwrite(name, bytes(changed) + digest.digest())
        assert newest(disk.store) is None


class Crash(BaseException):
    """The process ends here: nothing after it runs, and nobody tidies up."""


@pytest.mark.parametrize("name", ["touch", "open", "write", "fsync", "replace", "directory fsync"])
@pytest.mark.parametrize("happened", [False, True])
def test_a_crash_at_any_step_leaves_the_one_before_or_the_whole_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, happened: bool
) -> None:
    put(FileSnapshots(tmp_path), 100)
    store = FileSnapshots(tmp_path)
    steps: list[str] = []

    def crash_at(step: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*arguments: Any, **named: Any) -> Any:
            if step == "fsync" and "fsync" in steps:
                return crash_at("directory fsync", real)(*arguments, **named)
            steps.append(step)
            result = real(*arguments, **named) if step != name or happened else None
            if step == name:
                if step == "open" and result is not None:
                    result.close()
                raise Crash
            return result

        return stand_in

    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", crash_at("touch", Path.touch))
        patch.setattr(Path, "open", crash_at("open", Path.open))
        patch.setattr(Path, "replace", crash_at("replace", Path.replace))
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        patch.setattr(os, "fsync", crash_at("fsync", os.fsync))
        writer = snapshot_module._FileWriter
        patch.setattr(writer, "_put", crash_at("write", writer._put))
        with pytest.raises(Crash):
            put(store, 200)
    assert steps[-1] == name
    after = FileSnapshots(tmp_path)
    expected = 200 if name == "directory fsync" or (name == "replace" and happened) else 100
    assert int((newest(after) or "")[:20]) == expected
    assert all(path.suffix == ".snapshot" for path in tmp_path.iterdir())
    # And the next one is written as if nothing had happened.
    assert newest(after) != put(after, 300)
    assert int((newest(after) or "")[:20]) == 300


def test_the_data_is_durable_before_its_name_and_the_name_before_old_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileSnapshots(tmp_path)
    for position in (100, 200):
        put(store, position)
    order: list[str] = []

    def noting(what: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*arguments: Any, **named: Any) -> Any:
            order.append(what)
            return real(*arguments, **named)

        return stand_in

    monkeypatch.setattr(os, "fsync", noting("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", noting("replace", Path.replace))
    monkeypatch.setattr(FileSnapshots, "remove", noting("remove", FileSnapshots.remove))
    put(store, 300)
    assert order == ["fsync", "replace", "fsync", "remove"]


def test_a_directory_that_can_not_be_listed_costs_a_snapshot_and_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, archives = FileSnapshots(tmp_path), FileArchives(tmp_path)
    put(store, 100)

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(SnapshotFailed, match="Too many open files"):
            put(store, 200)
        found = store.newest_valid(LOG_ID, EPOCH, HEAD)
        assert found.snapshot is None
        assert "Too many open files" in found.skipped[0].reason
        with pytest.raises(ArchiveError, match="Too many open files"):
            archives.names()
    assert newest(store) is not None


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, SnapshotFull), (errno.EIO, SnapshotFailed)]
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_one_before_and_no_stray_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    expected: type[Exception],
    step: str,
) -> None:
    store = FileSnapshots(tmp_path)
    old = put(store, 100)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, refuse)
        with pytest.raises(expected, match="he log has everything"):
            put(store, 200)
    assert [path.name for path in tmp_path.iterdir()] == [old]
    assert newest(store) == old
    assert newest(store) != put(store, 200)


def test_a_source_that_fails_leaves_nothing_behind(disk: Disk) -> None:
    old = put(disk.store, 100)

    def sections() -> Iterator[Section]:
        yield SECTIONS[0]
        raise ValueError("the shard stopped")

    with pytest.raises(ValueError, match="the shard stopped"):
        write(disk.store, LOG_ID, EPOCH, 200, sections())
    assert disk.store.names() == [old]
    if isinstance(disk.store, FileSnapshots):
        assert [path.name for path in disk.directory.iterdir()] == [old]


def test_strays_and_strangers_in_the_directory_are_told_apart(tmp_path: Path) -> None:
    store = FileSnapshots(tmp_path)
    name = put(store, 100)
    (tmp_path / f"{200:020d}-000000.snapshot.unfinished").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("by hand")
    store = FileSnapshots(tmp_path)
    assert store.names() == [name]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "notes.txt"]


def test_snapshots_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    name = put(FileSnapshots(tmp_path), 100)
    assert (tmp_path / name).stat().st_mode & 0o077 == 0
