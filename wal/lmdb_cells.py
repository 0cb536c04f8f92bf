"""The cell store on disk, in LMDB: `wal.cells` says what it does.

Rules it keeps: every write is one synced transaction (never `sync=False`, `writemap` or `map_async`); no reader
outlives one call, since one that stays makes the file grow for ever. The directory holds nothing but derived data:
a file that cannot be read is deleted. It must not know what the values mean.

The map is as large as it may ever get from the start: it is address space, not memory, and so it need not grow
beside readers in other threads. A failed meta write leaves LMDB refusing every later transaction, with the commit's
fate unknown; the next write opens the file anew, and either outcome is a good store, since the manifest tells.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from threading import Lock
from typing import Final

import lmdb

from wal.cells import (
    MANIFEST_PLACE,
    PLACE,
    CellsDamaged,
    CellStoreError,
    CellStoreFailed,
    CellStoreFull,
    opened,
    sealed,
)
from wal.lmdb_file import reserve_lock_file, wait_until_writable
from wal.log import LogFull, LogWriteFailed

MAP_BYTES: Final = 1 << 40
"""Some 10^10 events."""
_FULL_ERRNOS: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_FREE_BYTES_MIN: Final = 16 << 20
"""More than one chunk takes."""


class LmdbCells:
    """One environment in `directory`. Not shared with other processes: the log's lock sees to that."""

    _environment: lmdb.Environment

    def __init__(self, directory: Path, *, map_bytes: int = MAP_BYTES) -> None:
        """Open or create the store. Raises CellStoreFull or CellStoreFailed."""
        self._directory = directory
        self._map_bytes = map_bytes
        self._lock = Lock()
        """Held by a reader for one call, and while the environment is replaced."""
        self._must_reopen = False
        self.wiped_because: str | None = None
        try:
            self._open()
        except (lmdb.Error, CellsDamaged) as error:
            self.wiped_because = f"the usage index's file can't be read ({error})"
            self._remove_files()
            self._open_or_fail()

    def manifest(self) -> bytes | None:
        """See `CellStore.manifest`."""
        with self._reading() as reader:
            stored: bytes | None = reader.get(MANIFEST_PLACE)
        return None if stored is None else opened(MANIFEST_PLACE, stored)

    def heads(self, first_chunk: int, *, chunks_max: int) -> list[bytes]:
        """See `CellStore.heads`."""
        found: list[tuple[bytes, bytes]] = []
        with self._reading() as reader:
            for chunk in range(first_chunk, first_chunk + chunks_max):
                place = PLACE.pack(chunk, 0)
                if (stored := reader.get(place)) is None:
                    break
                found.append((place, stored))
        return [opened(place, stored) for place, stored in found]

    def read(self, chunk: int, first: int, count: int) -> list[bytes]:
        """See `CellStore.read`."""
        places = [PLACE.pack(chunk, number) for number in range(first, first + count)]
        with self._reading() as reader:
            found = [reader.get(place) for place in places]
        return [opened(place, stored) for place, stored in zip(places, found, strict=True)]

    def write(self, chunk: int, values: Sequence[bytes], manifest: bytes) -> None:
        """See `CellStore.write`."""
        if self._must_reopen:
            self._replace(wipe=False)
        try:
            with self._environment.begin(write=True) as writer:
                for number, value in enumerate(values):
                    place = PLACE.pack(chunk, number)
                    writer.put(place, sealed(place, value))
                writer.put(MANIFEST_PLACE, sealed(MANIFEST_PLACE, manifest))
        except lmdb.Error as error:
            failure = self._failure(error)
            self._must_reopen = not isinstance(failure, CellStoreFull)
            raise failure from error

    def wipe(self) -> None:
        """See `CellStore.wipe`."""
        self._replace(wipe=True)

    def size_bytes(self) -> int:
        """See `CellStore.size_bytes`."""
        return (self._directory / "data.mdb").stat().st_size

    def close(self) -> None:
        """See `CellStore.close`."""
        with self._lock:
            self._environment.close()

    def _replace(self, *, wipe: bool) -> None:
        """Close the environment and open it anew, on empty files if `wipe`."""
        with self._lock:
            self._environment.close()
            if wipe:
                self._remove_files()
            self._open_or_fail()
        self._must_reopen = False

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        wait_until_writable(self._directory)
        try:
            with self._lock, self._environment.begin() as reader:
                yield reader
        except lmdb.PanicError as error:
            message = "the usage index's disk failed; its next write opens it anew"
            raise CellStoreFailed(message) from error
        except lmdb.Error as error:
            raise CellsDamaged(f"the usage index can't be read ({error})") from error

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            reserve_lock_file(self._directory, read_only=False)
        except LogFull as error:
            raise CellStoreFull(str(error)) from error
        except LogWriteFailed as error:
            raise CellStoreFailed(str(error)) from error
        environment = lmdb.open(str(self._directory), map_size=self._map_bytes, mode=0o600)
        try:
            environment.reader_check()  # readers of a killed process would hold old pages for ever
            info = environment.info()
            # Reading a mapped page beyond the file's end would kill the process.
            used_bytes = (info["last_pgno"] + 1) * environment.stat()["psize"]
            if info["last_txnid"] and self.size_bytes() < used_bytes:
                raise CellsDamaged("it is shorter than it says")
        except BaseException:
            environment.close()
            raise
        self._environment = environment

    def _open_or_fail(self) -> None:
        try:
            self._open()
        except (lmdb.Error, CellsDamaged) as error:
            raise self._failure(error) from error

    def _remove_files(self) -> None:
        for name in ("data.mdb", "lock.mdb"):
            try:
                (self._directory / name).unlink(missing_ok=True)
            except OSError as error:
                message = f"can't delete {self._directory / name} ({error}); delete it by hand: it is derived"
                raise CellStoreFailed(message) from error

    def _failure(self, error: lmdb.Error | CellsDamaged) -> CellStoreError:
        if isinstance(error, lmdb.MapFullError):
            return CellStoreFull("the usage index has reached the largest size it may take")
        code = getattr(error, "code", None)
        # A write that the disk's end cut short is EIO to LMDB.
        crowded = code == errno.EIO and disk_usage(self._directory).free < _FREE_BYTES_MIN
        if isinstance(error, lmdb.DiskError) or code in _FULL_ERRNOS or crowded:
            return CellStoreFull(
                f"no space for the usage index in {self._directory}: make some ({error})"
            )
        return CellStoreFailed(
            f"the usage index in {self._directory} can't be written ({error}): check the disk"
        )
