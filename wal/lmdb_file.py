"""The file under LMDB: creating it whole, reading its two heads, and what LMDB's errors really mean.

Rules it keeps: a log's file is complete or not there; each failure becomes one of the port's errors, decided by
what is true of the disk and not by the message alone. It must not know records.

LMDB's errors, as seen with py-lmdb 3.0 on LMDB 0.9.36 (`code` is the errno, or LMDB's own negative number):

| what happened | exception, code |
|---|---|
| fdatasync or a write failed | Error, the errno |
| the disk or a file-size limit ended a write early | Error, EIO: LMDB can't tell a short write from a broken disk |
| nothing at all fitted | DiskError or Error, ENOSPC, EDQUOT or EFBIG (Python ignores SIGXFSZ) |
| the map is at its bound | MapFullError |
| the head's write failed | Error with its errno, and PanicError from every later begin |
| the same process opens it twice | Error without a code |
| no room for the lock file's blocks | SIGBUS: hence `reserve_lock_file` |
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path
from struct import Struct
from tempfile import TemporaryFile
from typing import NamedTuple

import lmdb

from wal.log import (
    LogDamaged,
    LogError,
    LogFull,
    LogLocked,
    LogStateUnknown,
    LogWriteFailed,
)

DATA_NAME = "data.mdb"
COMPACT_NAME = "compact-at-next-open"
"""An empty file beside the log: erased bytes are still in free pages of `data.mdb`."""
_LOCK_NAME = "lock.mdb"
_LOCK_BYTES = 16 << 10
"""More than LMDB's table of 126 readers takes (8 KiB)."""
_touch = os.utime
_FULL_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))

# LMDB 0.9's meta page (mdb.c, MDB_meta), in the machine's byte order, after 16 bytes of page header: magic,
# version, address, map size, the free list's tree and the main tree (48 bytes each), last page, transaction.
_META = Struct("=IIQQ48s48sQQ")
_META_OFFSET = 16
_META_MAGIC = 0xBEEFC0DE
_PAGE_BYTES_OF_TREE = Struct("=I")
"""The first field of the free list's tree is where LMDB keeps the page size."""
_PAGE_BYTES_MAX = 1 << 16
_MISSING_BYTES_MAX = 128 << 20
"""Twice the largest group: no transaction allocates more pages than that without using them."""
_READS_MAX = 3
"""Tries, as a reader beside a running writer may catch the two heads at different moments."""


def create(directory: Path) -> None:
    """Make the log's file if there is none. Raises LogFull or LogWriteFailed.

    LMDB alone writes both heads without syncing and never syncs the directory: a power loss then leaves half a
    file, or none although a record in it was acknowledged. Hence the detour over a sub-directory and a rename.
    """
    data, fresh = directory / DATA_NAME, directory / "new"
    if data.exists():
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        with lmdb.open(str(fresh), max_dbs=0, lock=False, mode=0o600) as environment:
            environment.sync(True)
        (fresh / DATA_NAME).replace(data)
        shutil.rmtree(fresh, ignore_errors=True)
        sync_directory(directory)
        sync_directory(directory.parent)
    except lmdb.Error as error:
        raise _failed(error, getattr(error, "code", None), "create the log") from error
    except OSError as error:
        raise _failed(error, error.errno, "create the log") from error


def reserve_lock_file(directory: Path, *, read_only: bool) -> None:
    """Give LMDB's lock file its blocks before LMDB maps it. Raises LogFull or LogWriteFailed.

    LMDB makes the file long without filling it and then writes through the map: on a full disk that is SIGBUS, and
    the process would end without a word. A file that has its blocks is not touched: closing any descriptor of
    it gives up the locks that this process holds on it (fcntl(2)).
    """
    lock = directory / _LOCK_NAME
    try:
        if lock.exists() and lock.stat().st_blocks * 512 >= _LOCK_BYTES:
            return
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _LOCK_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        if read_only and error.errno in (errno.EROFS, errno.EACCES):
            return  # LMDB then does without
        raise _failed(error, error.errno, "open the log") from error


def wait_until_writable(directory: Path) -> None:
    """Return once the file system takes writes: at once, but for a disk that hangs or that somebody has frozen.

    LMDB notes every reader in its mapped lock file, and py-lmdb does that with the interpreter's lock held: where that page
    can't be written now, no other thread would run, and the server could not even say that its disk is stuck. This waits
    for the same thing without that lock. It costs some microseconds, and changes nothing but a time in the inode.
    """
    with suppress(OSError):  # read-only, or gone: that is for LMDB to say
        _touch(directory / _LOCK_NAME)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verified_size(directory: Path, *, may_repair: bool) -> int:
    """The size of the log's file in bytes, after a look at its two heads. Raises LogDamaged.

    The heads must be of the last transaction and of the one before it, each in its place. LMDB takes the newer one
    and checks neither: with a bit flipped in the newer it would start from the older, and the last transaction would
    be gone without an error. The file must reach to its last page: where it does not, LMDB's map ends the process by
    SIGBUS. A few missing pages at the end can be rightful (allocated, then not needed): with `may_repair` they become
    zeros, which reading a record finds if it needed them.
    """
    data = directory / DATA_NAME
    heads = None
    for _ in range(_READS_MAX):
        heads = heads or _read_heads(data)
    size = data.stat().st_size if heads else 0
    if heads is None:
        raise _not_a_log(data, "its head is missing or damaged")
    missing = heads.size_bytes - size
    if missing > _MISSING_BYTES_MAX or (missing > 0 and not may_repair):
        raise _not_a_log(data, f"{missing} bytes of its end are missing")
    if missing > 0:
        os.truncate(data, heads.size_bytes)
        size = heads.size_bytes
    return size


class _Heads(NamedTuple):
    size_bytes: int
    """Where the last page of the newer head ends."""
    transaction: int


def _read_heads(data: Path) -> _Heads | None:
    """The file's heads, None when they do not agree or can't be read."""
    try:
        with data.open("rb") as file:
            head = file.read(2 * _PAGE_BYTES_MAX)
    except OSError:
        return None
    if len(head) < _META_OFFSET + _META.size:
        return None
    page_bytes = _PAGE_BYTES_OF_TREE.unpack_from(head, _META_OFFSET + 24)[0]
    if page_bytes > _PAGE_BYTES_MAX or len(head) < page_bytes + _META_OFFSET + _META.size:
        return None
    metas = [_META.unpack_from(head, start + _META_OFFSET) for start in (0, page_bytes)]
    if any(meta[0] != _META_MAGIC for meta in metas):
        return None
    (even_page, even), (odd_page, odd) = (meta[-2:] for meta in metas)
    just_created = even == odd == 0
    if not just_created and (even % 2 or abs(even - odd) != 1):
        return None
    last_page, transaction = (even_page, even) if even >= odd else (odd_page, odd)
    return _Heads((last_page + 1) * page_bytes, transaction)


def _not_a_log(data: Path, what: str) -> LogDamaged:
    return LogDamaged(f"{data} is not a readable log: {what}. Keep a copy, restore from a backup.")


def open_failed(error: lmdb.Error, directory: Path) -> LogError:
    """What a failed open means."""
    if isinstance(error, lmdb.LockError) or "already open in this process" in str(error):
        return LogLocked(f"the log in {directory} is in use. Stop who uses it, then start again.")
    if isinstance(error, (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError)):
        return _not_a_log(directory / DATA_NAME, str(error))
    return _failed(error, getattr(error, "code", None), "open the log")


def read_failed(error: lmdb.Error, near: int) -> LogError:
    """What a failed read means, near a record."""
    if isinstance(error, lmdb.PanicError):
        return LogStateUnknown("the log can't be read after its head failed. The process must end.")
    if isinstance(error, lmdb.MapResizedError):
        return LogLocked("another process makes the log grow. Stop it, then try again.")
    message = (
        f"the log's file can't be read near record {near} ({error}): it is damaged. "
        "Stop, keep a copy of the directory, restore from a backup."
    )
    return LogDamaged(message, near if near >= 0 else None)


def write_failed(
    error: lmdb.Error, directory: Path, used_bytes: int, bytes_needed: int
) -> LogError:
    """What a failed commit means, when it is known to be undone.

    `used_bytes` is where the file's pages end, `bytes_needed` what was to come after them.
    """
    code = getattr(error, "code", None)
    if isinstance(error, lmdb.PanicError):
        return LogStateUnknown(f"can't write to the log: {error}. The process must end.")
    if isinstance(error, lmdb.MapFullError):
        return LogFull("can't write to the log: it has reached the largest size it may take.")
    if code == errno.EIO:
        code = _room_errno(directory, used_bytes, bytes_needed) or code
    return _failed(error, code, "write to the log")


def _room_errno(directory: Path, used_bytes: int, bytes_needed: int) -> int | None:
    """Ask the disk whether it would take as many bytes at the same place of another file: its errno if not."""
    try:
        with TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), used_bytes, max(1, bytes_needed))
    except OSError as error:
        return error.errno
    return None


def copy_failed(error: Exception, doing: str = "copy the log") -> LogFull | LogWriteFailed:
    """What a failed copy means: the copy is incomplete, the log untouched."""
    code = error.errno if isinstance(error, OSError) else getattr(error, "code", None)
    return _failed(error, code, doing)


def _failed(error: Exception, code: int | None, doing: str) -> LogFull | LogWriteFailed:
    if code in _FULL_ERRNOS:
        return LogFull(
            f"can't {doing}: no space left ({error}). Free some disk space; nothing was lost."
        )
    return LogWriteFailed(
        f"can't {doing}: the disk refused ({error}). Check the disk; a retry is safe."
    )
