"""Copies of an LMDB log: for a backup, beside a running server too, and for compacting, which leaves old bytes behind.

Rules it keeps: a copy is of one moment; it appears under its name only when it is whole, synced and verified; the
original is never written to, and is replaced only by a copy that holds the same records. It must not know what the
parts mean.

Why compacting is needed at all: LMDB never overwrites a page in place. What was erased or trimmed stays readable in
free pages of the file until they are used again. The copy holds no free page; its predecessor's blocks are freed, and
whether a disk keeps them is beyond this program.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import lmdb

from wal.check import check_log
from wal.lmdb_file import (
    COMPACT_NAME,
    DATA_NAME,
    copy_failed,
    open_failed,
    reserve_lock_file,
    sync_directory,
    verified_size,
)
from wal.lmdb_log import LmdbLog
from wal.log import LogDamaged, LogError

_MAP_BYTES = 1 << 46
"""Address space alone: room for a server that makes the log grow meanwhile."""
_PROGRESS_SECONDS = 0.1
_FRESH_NAME = "compacting"


def copy_log(
    directory: Path, target: Path, progress: Callable[[int, int], None] = lambda *_: None
) -> None:
    """Copy the log of one moment to the directory `target`, synced and without free pages.

    A server may append meanwhile: LMDB lets processes read beside a writer, whose file grows while it does.
    `progress(bytes written, about how many)` is called now and then. Raises LogFull, LogWriteFailed, LogDamaged or
    LogLocked; then `target` may hold a part of a copy.
    """
    size = verified_size(directory, may_repair=False)
    try:
        target.mkdir(parents=True, mode=0o700, exist_ok=True)
    except OSError as error:
        raise copy_failed(error) from error
    reserve_lock_file(directory, read_only=True)
    try:
        environment = lmdb.open(
            str(directory), map_size=_MAP_BYTES, max_dbs=0, readonly=True, create=False
        )
    except lmdb.Error as error:
        raise open_failed(error, directory) from error
    failures: list[Exception] = []

    def work() -> None:
        try:
            environment.copy(str(target), compact=True)
            (target / DATA_NAME).chmod(
                0o600
            )  # LMDB gives it to all; until here its directory kept them out
            _sync_file(target / DATA_NAME)
            sync_directory(target)
        except (lmdb.Error, OSError) as error:
            failures.append(error)

    try:
        worker = threading.Thread(target=work)
        worker.start()
        while worker.is_alive():
            worker.join(_PROGRESS_SECONDS)
            progress(_size_of(target / DATA_NAME), size)
    finally:
        worker.join()
        environment.close()
    if failures:
        raise copy_failed(failures[0]) from failures[0]


def compact(directory: Path, progress: Callable[[int, int], None] = lambda *_: None) -> int:
    """Put a copy without free pages in the place of a log that nobody has open; the bytes it saved.

    Raises LogError; the log is then as it was. A kill at any moment leaves the old file or the new one.
    """
    fresh = directory / _FRESH_NAME
    shutil.rmtree(fresh, ignore_errors=True)
    before = _size_of(directory / DATA_NAME)
    try:
        copy_log(directory, fresh, progress)
        _must_hold_the_same(directory, fresh)
        (fresh / DATA_NAME).replace(directory / DATA_NAME)
        sync_directory(directory)
        (directory / COMPACT_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise copy_failed(error, "compact the log") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return before - _size_of(directory / DATA_NAME)


def compact_if_asked(directory: Path) -> str | None:
    """Compact a log that asked for it before it is opened: what became of it in words, None if it did not ask.

    A failure is not the start's: the mark stays, and the next start tries again.
    """
    if not (directory / COMPACT_NAME).exists() or not (directory / DATA_NAME).exists():
        shutil.rmtree(directory / _FRESH_NAME, ignore_errors=True)
        return None
    try:
        return f"the log was compacted: {compact(directory):,} bytes saved"
    except LogError as error:
        return f"the log could not be compacted, so erased bytes are still in it: {error}"


def _must_hold_the_same(directory: Path, copy: Path) -> None:
    """Raises LogDamaged unless every record of the copy is whole and it ends as the original does."""
    original = LmdbLog(directory, read_only=True)
    try:
        head, records = original.head(), original.record_count()
    finally:
        original.close()
    duplicate = LmdbLog(copy, read_only=True)
    try:
        report = check_log(duplicate, anchor=head)
    finally:
        duplicate.close()
    if report.problems:
        first = report.problems[0]
        raise LogDamaged(f"the copy is not whole: {first.message}", first.sequence)
    if (report.records, report.head_hash) != (records, head.hash):
        raise LogDamaged(f"the copy holds {report.records} records, the log {records}")


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
