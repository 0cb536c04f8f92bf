"""A reader of LMDB waits for a file system that takes no write where others run on: its lock file is mapped, and py-lmdb
enters a reader there with the interpreter's lock held.

What a frozen file system does is done here by a system call that does not end: freezing one needs a superuser.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from wal import lmdb_file
from wal.lmdb_cells import LmdbCells
from wal.lmdb_log import LmdbLog
from wal.lmdb_runs import LmdbRuns
from wal.log import Draft
from wal.runs import Block

pytestmark = pytest.mark.lmdb
WAITS_SECONDS_MAX = 10.0


def reads_of_a_log(directory: Path) -> Iterator[Callable[[], object]]:
    with closing(LmdbLog(directory, map_bytes_start=1 << 22)) as log:
        log.append([Draft(2, 1, 5, ())])
        yield lambda: log.read(0, bytes_max=1)


def reads_of_cells(directory: Path) -> Iterator[Callable[[], object]]:
    with closing(LmdbCells(directory, map_bytes=1 << 22)) as cells:
        cells.write(0, [b"value"], b"manifest")
        yield lambda: cells.read(0, 0, 1)


def reads_of_runs(directory: Path) -> Iterator[Callable[[], object]]:
    with closing(LmdbRuns(directory, map_bytes_min=1 << 22)) as runs:
        runs.write([Block(1, bytes(16), b"block")])
        yield lambda: runs.scan(1, bytes(16), blocks_max=1)


@pytest.mark.parametrize("reads_of", [reads_of_a_log, reads_of_cells, reads_of_runs])
def test_a_reader_is_not_begun_before_the_disk_takes_writes(
    reads_of: Callable[[Path], Iterator[Callable[[], object]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_asked, takes_writes = threading.Event(), threading.Event()
    asked_about: list[Path] = []

    def utime(path: Path) -> None:
        asked_about.append(path)
        has_asked.set()
        assert takes_writes.wait(WAITS_SECONDS_MAX)
        path.stat()

    for read in reads_of(tmp_path / "directory"):
        found: list[object] = []
        with monkeypatch.context() as patched:
            patched.setattr(lmdb_file, "_touch", utime)
            reader = threading.Thread(target=lambda read=read, found=found: found.append(read()))
            reader.start()
            assert has_asked.wait(WAITS_SECONDS_MAX)
            assert not found
            takes_writes.set()
            reader.join(WAITS_SECONDS_MAX)
        assert found
        assert found[0]
        assert asked_about == [tmp_path / "directory" / "lock.mdb"]


def test_a_lock_file_that_may_not_be_written_is_for_lmdb_to_speak_of(tmp_path: Path) -> None:
    lmdb_file.wait_until_writable(tmp_path)
    assert not list(tmp_path.iterdir())
