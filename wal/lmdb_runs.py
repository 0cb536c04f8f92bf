"""The run store on disk, in LMDB: `wal.runs` says what it does.

Rules it keeps: every write is one synced transaction (never `sync=False`, `writemap` or `map_async`); the
owner's long-lived read transaction is renewed by `refresh`, since a reader that stays makes the file grow for
ever; the map grows only in `prepare`, when no transaction of this process is open. It must not know what
blocks mean. The directory holds nothing but derived data: a file that cannot be read is deleted.

A failed meta write leaves LMDB refusing every later transaction, with the commit's fate unknown. For the
log that ends the process; here `prepare` opens the environment anew, and either outcome is a good index.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import Final

import lmdb

from wal.lmdb_file import reserve_lock_file, wait_until_writable
from wal.log import LogFull, LogWriteFailed
from wal.runs import Block, IndexDamaged, RunStoreError, RunStoreFailed, RunStoreFull

_MANIFEST_KEY: Final = bytes(4)
"""Run 0 is never used, so the manifest sorts before all blocks."""
_RUN: Final = struct.Struct(">I")
_KEY_BYTES: Final = 16
_MAP_BYTES_MIN: Final = 64 << 20
_TREE_BYTES_RESERVE: Final = 4 << 20
"""Branch, leaf and free-list pages that a merge's transactions may add beside the blocks."""
_FULL_ERRNOS: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_FREE_BYTES_MIN: Final = 4 << 20
"""More than one transaction of a merge writes."""


class LmdbRuns:
    """One environment in `directory`. Not shared with other processes: the log's lock sees to that."""

    _environment: lmdb.Environment
    _reader: lmdb.Transaction[bytes]
    _cursor: lmdb.Cursor[bytes]
    _page_bytes: int

    def __init__(self, directory: Path, *, map_bytes_min: int = _MAP_BYTES_MIN) -> None:
        self._directory = directory
        self._map_bytes = map_bytes_min
        self._map_was_full = False
        self.wiped_because: str | None = None
        try:
            self._open()
        except (lmdb.Error, IndexDamaged) as error:
            self.wiped_because = f"the key index's file cannot be read ({error})"
            self._remove_files()
            self._open_or_fail()

    def manifest(self) -> bytes | None:
        """See `RunStore.manifest`."""
        with _reading():
            data: bytes | None = self._reader.get(_MANIFEST_KEY)
        return data

    def find_block(self, run_id: int, key: bytes) -> Block | None:
        """See `RunStore.find_block`."""
        wanted = _RUN.pack(run_id) + key
        cursor = self._cursor
        try:  # not `_reading()`: a context manager would cost a third of the lookup
            if cursor.set_range(wanted):
                if cursor.key() != wanted and not cursor.prev():
                    return None
            elif not cursor.last():
                return None
            found, data = cursor.item()
        except lmdb.Error as error:
            raise _unreadable(error) from error
        if len(found) != _RUN.size + _KEY_BYTES:
            return None
        return Block(_RUN.unpack_from(found)[0], found[_RUN.size :], data)

    def run_ids(self) -> list[int]:
        """See `RunStore.run_ids`: one seek for each run, not one for each block."""
        ids: list[int] = []
        with _reading():
            cursor = self._reader.cursor()
            run_id = 1
            while cursor.set_range(_RUN.pack(run_id)):
                ids.append(_RUN.unpack_from(cursor.key())[0])
                run_id = ids[-1] + 1
        return ids

    def refresh(self) -> None:
        """See `RunStore.refresh`."""
        try:
            fresh = self._environment.begin()
        except lmdb.Error as error:
            raise self._failure(error) from error
        self._cursor.close()
        self._reader.abort()
        self._reader = fresh
        self._cursor = fresh.cursor()

    def prepare(self, bytes_needed: int) -> None:
        """See `RunStore.prepare`."""
        try:
            self.refresh()
        except RunStoreFailed:
            # A meta page could not be written: LMDB now refuses everything, until it is opened anew.
            self._close_reader()
            self._environment.close()
            self._open_or_fail()
        info = self._environment.info()
        used_bytes = (info["last_pgno"] + 1) * self._page_bytes
        # Copy on write needs the new pages beside the old, hence twice what is asked for.
        wanted_bytes = used_bytes + 2 * bytes_needed + _TREE_BYTES_RESERVE
        if wanted_bytes <= info["map_size"] and not self._map_was_full:
            return
        self._grow(max(wanted_bytes, info["map_size"] * 2))

    def wipe(self) -> None:
        """See `RunStore.wipe`."""
        self._close_reader()
        self._environment.close()
        self._remove_files()
        self._open_or_fail()
        self._map_was_full = False

    def scan(self, run_id: int, low: bytes, *, blocks_max: int) -> list[Block]:
        """See `RunStore.scan`."""
        prefix = _RUN.pack(run_id)
        blocks: list[Block] = []
        wait_until_writable(self._directory)
        with _reading(), self._environment.begin() as reader, reader.cursor() as cursor:
            found = cursor.set_range(prefix + low)
            while found and len(blocks) < blocks_max:
                key, data = cursor.item()
                if not key.startswith(prefix):
                    break
                blocks.append(Block(run_id, key[_RUN.size :], data))
                found = cursor.next()
        return blocks

    def write(self, blocks: Sequence[Block], manifest: bytes | None = None) -> None:
        """See `RunStore.write`."""
        try:
            with self._environment.begin(write=True) as writer:
                for run_id, low, data in blocks:
                    writer.put(_RUN.pack(run_id) + low, data)
                if manifest is not None:
                    writer.put(_MANIFEST_KEY, manifest)
        except lmdb.Error as error:
            raise self._failure(error) from error

    def delete(self, run_id: int, *, blocks_max: int) -> int:
        """See `RunStore.delete`."""
        prefix = _RUN.pack(run_id)
        deleted = 0
        try:
            with self._environment.begin(write=True) as writer, writer.cursor() as cursor:
                found = cursor.set_range(prefix)
                while found and deleted < blocks_max and cursor.key().startswith(prefix):
                    cursor.delete()  # and the cursor stands on the next one
                    deleted += 1
                    found = bool(cursor.key())
        except lmdb.Error as error:
            raise self._failure(error) from error
        return deleted

    def size_bytes(self) -> int:
        """See `RunStore.size_bytes`."""
        return (self._directory / "data.mdb").stat().st_size

    def close(self) -> None:
        """See `RunStore.close`."""
        self._close_reader()
        self._environment.close()

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            reserve_lock_file(self._directory, read_only=False)
        except LogFull as error:
            raise RunStoreFull(str(error)) from error
        except LogWriteFailed as error:
            raise RunStoreFailed(str(error)) from error
        environment = lmdb.open(str(self._directory), map_size=self._map_bytes, mode=0o600)
        try:
            environment.reader_check()  # readers of a killed process would hold old pages for ever
            info = environment.info()
            # An existing file's own map size wins when it is larger.
            self._map_bytes = info["map_size"]
            self._page_bytes = environment.stat()["psize"]
            # Reading a mapped page beyond the file's end would kill the process.
            if (
                self.size_bytes() < (info["last_pgno"] + 1) * self._page_bytes
                and info["last_txnid"]
            ):
                message = "it is shorter than it says"
                raise IndexDamaged(message)
            self._reader = environment.begin()
            self._cursor = self._reader.cursor()
        except BaseException:
            environment.close()
            raise
        self._environment = environment

    def _open_or_fail(self) -> None:
        try:
            self._open()
        except (lmdb.Error, IndexDamaged) as error:
            raise self._failure(error) from error

    def _grow(self, map_bytes: int) -> None:
        """Raise the map's size. LMDB allows it only while this process has no transaction."""
        rounded_bytes = -(-map_bytes // self._page_bytes) * self._page_bytes
        self._close_reader()
        try:
            self._environment.set_mapsize(rounded_bytes)
            self._map_bytes = rounded_bytes
            self._map_was_full = False
        except lmdb.Error as error:
            raise self._failure(error) from error
        finally:
            self._reader = self._environment.begin()
            self._cursor = self._reader.cursor()

    def _close_reader(self) -> None:
        self._cursor.close()
        self._reader.abort()

    def _remove_files(self) -> None:
        for name in ("data.mdb", "lock.mdb"):
            try:
                (self._directory / name).unlink(missing_ok=True)
            except OSError as error:
                message = f"Cannot delete {self._directory / name} ({error}). Delete it by hand: it is derived."
                raise RunStoreFailed(message) from error

    def _failure(self, error: lmdb.Error | IndexDamaged) -> RunStoreError:
        """The typed error for LMDB's. Remembers a full map for the next `prepare`."""
        if isinstance(error, lmdb.MapFullError):
            self._map_was_full = True
            return RunStoreFull("The key index's map is full. It grows before the next merge.")
        code = getattr(error, "code", None)
        # A write that the disk's end cut short is EIO to LMDB.
        crowded = code == errno.EIO and disk_usage(self._directory).free < _FREE_BYTES_MIN
        if isinstance(error, lmdb.DiskError) or code in _FULL_ERRNOS or crowded:
            return RunStoreFull(
                f"No space for the key index in {self._directory}: make some ({error})."
            )
        return RunStoreFailed(
            f"The key index in {self._directory} cannot be written ({error}). Check the disk."
        )


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except lmdb.Error as error:
        raise _unreadable(error) from error


def _unreadable(error: lmdb.Error) -> IndexDamaged:
    return IndexDamaged(
        f"The key index cannot be read ({error}). It is rebuilt from the log at the next start."
    )
