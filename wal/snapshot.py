"""Snapshots: state at a log position, so that recovery need not fold the whole log. In files, or in memory.

Rules it keeps: a snapshot is there whole or not at all (temporary file, fsync, rename, fsync of the directory);
one that is damaged, of another log or epoch, or ahead of the log is never used, and the reason is told, since
an older one, or none, only costs time. It must not know what the state is: sections are bytes. Byte layout:
`wal.snapshot_format` and docs/INDEX_FORMAT.md.

Sections are written as they come, each with its own log position, so that the state of a million counters is
never in memory twice, and is read through a map of the file.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final, NamedTuple, Protocol

from wal.snapshot_format import (
    SECTIONS_MAX,
    Place,
    Section,
    SnapshotDamaged,
    SnapshotHeader,
    decode,
    encode_header,
    encode_section_head,
    encode_trailer,
    new_digest,
    section_at,
)

SNAPSHOTS_KEPT: Final = 2
"""The newest, and the one before it should the newest rot."""
_NAME: Final = re.compile(r"(\d{20})-(\d{6})\.snapshot")
_TEMPORARY_SUFFIX: Final = ".unfinished"
_COPIES_MAX: Final = 1_000_000
_FULL_ERRNOS: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class SnapshotError(Exception):
    """Base of what a snapshot store can raise. `str(error)` says what to do next."""


class SnapshotFull(SnapshotError):
    """No space: nothing was written, older snapshots are untouched. Try again when there is some."""


class SnapshotFailed(SnapshotError):
    """The disk refused: the new snapshot may or may not be there, older ones are untouched. Try again later."""


class Snapshot:
    """A snapshot that was checked byte for byte. Close it when its sections' data are no longer used."""

    def __init__(
        self, name: str, header: SnapshotHeader, places: tuple[Place, ...], data: memoryview
    ) -> None:
        self.name = name
        self.log_id, self.epoch, self.position = header
        self._places = places
        self._data = data
        self._map = data.obj

    @property
    def section_positions(self) -> tuple[tuple[int, int], ...]:
        """(section id, log position) of each section, in the order written."""
        return tuple((place.section_id, place.position) for place in self._places)

    def sections(self) -> Iterator[Section]:
        """The sections in the order written; `data` are views, copy what is to outlive the snapshot.

        Raises SnapshotDamaged if a section rotted since it was checked.
        """
        for place in self._places:
            yield section_at(self._data, place)

    def close(self) -> None:
        """Let go of the file. A view of a section that is still in use keeps it mapped."""
        self._data.release()
        if isinstance(self._map, mmap.mmap):
            # A section's view that is still in use keeps the map until it goes.
            with suppress(BufferError):
                self._map.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Skipped(NamedTuple):
    """A snapshot that was not used, and why (for the operator)."""

    name: str
    reason: str


class Found(NamedTuple):
    """The newest usable snapshot (None: fold the log from its start) and the newer ones that are not usable."""

    snapshot: Snapshot | None
    skipped: tuple[Skipped, ...]
    ahead: tuple[str, ...] = ()
    """Those of them that know more of this log and epoch than there is: once the log has grown they would fit it again,
    with other records in it. Whoever goes on with the log removes them."""


class SnapshotWriter(Protocol):
    """A snapshot being written: `add` each section, then `commit`, or `abort`. For one thread at a time."""

    def add(self, section: Section) -> None:
        """Write a section. Raises SnapshotFull or SnapshotFailed; then nothing is left of the snapshot."""
        ...

    def commit(self) -> str:
        """Make it durable and visible, delete what is no longer needed, return its name. Raises as `add`."""
        ...

    def abort(self) -> None:
        """Drop what was written. Does nothing after `commit` or a failure."""
        ...


class SnapshotStore(Protocol):
    """Where snapshots are kept. Blocks for the disk: call it in a worker thread."""

    def begin(self, log_id: bytes, epoch: int, position: int) -> SnapshotWriter:
        """Start a snapshot at the log's present position. Raises SnapshotFull or SnapshotFailed."""
        ...

    def newest_valid(self, log_id: bytes, epoch: int, head_sequence: int) -> Found:
        """The newest snapshot of this log and epoch with no position beyond `head_sequence`.

        Reads all of it once to check it, and says which newer ones were skipped and why.
        """
        ...

    def names(self) -> list[str]:
        """The names of all snapshots, newest first, whether usable or not."""
        ...

    def remove(self, name: str) -> None:
        """Delete one. Raises SnapshotFailed."""
        ...


def write(
    store: SnapshotStore, log_id: bytes, epoch: int, position: int, sections: Iterable[Section]
) -> str:
    """Write a whole snapshot from sections as they come; its name. Raises SnapshotFull or SnapshotFailed."""
    writer = store.begin(log_id, epoch, position)
    try:
        for section in sections:
            writer.add(section)
        return writer.commit()
    finally:
        writer.abort()


class MemorySnapshots:
    """Snapshots in a dict, with the bytes of the files: for tests and simulations, which may damage `files`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def begin(self, log_id: bytes, epoch: int, position: int) -> SnapshotWriter:
        """See `SnapshotStore.begin`."""
        return _MemoryWriter(self, SnapshotHeader(log_id, epoch, position))

    def newest_valid(self, log_id: bytes, epoch: int, head_sequence: int) -> Found:
        """See `SnapshotStore.newest_valid`."""
        return _newest_valid(self, log_id, epoch, head_sequence)

    def names(self) -> list[str]:
        """See `SnapshotStore.names`."""
        return sorted(self.files, reverse=True)

    def load(self, name: str) -> Snapshot:
        """The snapshot of that name. Raises SnapshotDamaged."""
        view = memoryview(self.files[name])
        return Snapshot(name, *decode(view), view)

    def remove(self, name: str) -> None:
        """Delete it."""
        del self.files[name]


class _MemoryWriter:
    def __init__(self, store: MemorySnapshots, header: SnapshotHeader) -> None:
        self._store = store
        self._header = header
        self._data = bytearray(encode_header(header))
        self._sections = 0

    def add(self, section: Section) -> None:
        assert self._sections < SECTIONS_MAX
        self._data += encode_section_head(section)
        self._data += section.data
        self._sections += 1

    def commit(self) -> str:
        self._data += encode_trailer(self._sections)
        digest = new_digest()
        digest.update(self._data)
        name = _next_name(self._header.position, self._store.names())
        self._store.files[name] = bytes(self._data + digest.digest())
        _prune(self._store, self._header, name)
        return name

    def abort(self) -> None:
        pass


class FileSnapshots:
    """Snapshots as files of a directory, readable by the owner alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for stray in directory.glob(f"*{_TEMPORARY_SUFFIX}"):
                stray.unlink()
        except OSError as error:
            raise _failed(error) from error

    def begin(self, log_id: bytes, epoch: int, position: int) -> SnapshotWriter:
        """See `SnapshotStore.begin`."""
        return _FileWriter(self, self._directory, SnapshotHeader(log_id, epoch, position))

    def newest_valid(self, log_id: bytes, epoch: int, head_sequence: int) -> Found:
        """See `SnapshotStore.newest_valid`."""
        return _newest_valid(self, log_id, epoch, head_sequence)

    def names(self) -> list[str]:
        """See `SnapshotStore.names`."""
        try:
            names = [path.name for path in self._directory.iterdir()]
        except OSError as error:
            raise _failed(error) from error
        return sorted(filter(_NAME.fullmatch, names), reverse=True)

    def load(self, name: str) -> Snapshot:
        """The snapshot of that name, mapped. Raises SnapshotDamaged."""
        try:
            with (self._directory / name).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            message = f"it cannot be read ({error})"
            raise SnapshotDamaged(message) from error
        view = memoryview(mapped)
        try:
            return Snapshot(name, *decode(view), view)
        except SnapshotDamaged:
            view.release()
            mapped.close()
            raise

    def remove(self, name: str) -> None:
        """Delete it. Raises SnapshotFailed."""
        try:
            (self._directory / name).unlink()
        except OSError as error:
            raise _failed(error) from error


class _FileWriter:
    def __init__(self, store: FileSnapshots, directory: Path, header: SnapshotHeader) -> None:
        self._store = store
        self._directory = directory
        self._header = header
        self._name = _next_name(header.position, store.names())
        self._temporary = directory / (self._name + _TEMPORARY_SUFFIX)
        self._digest = new_digest()
        self._sections = 0
        self._file: IO[bytes] | None = None
        try:
            self._temporary.touch(mode=0o600)
            self._file = self._temporary.open("wb")
            self._put(encode_header(header))
        except OSError as error:
            self.abort()
            raise _failed(error) from error
        except BaseException:
            self.abort()
            raise

    def add(self, section: Section) -> None:
        assert self._sections < SECTIONS_MAX
        try:
            self._put(encode_section_head(section))
            self._put(section.data)
        except OSError as error:
            self.abort()
            raise _failed(error) from error
        self._sections += 1

    def commit(self) -> str:
        assert self._file is not None, "aborted or committed before"
        try:
            self._put(encode_trailer(self._sections))
            self._file.write(self._digest.digest())
            self._file.flush()
            # Before the rename: a name must never stand for bytes that a power loss could take.
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            self._temporary.replace(self._directory / self._name)
            _sync_directory(self._directory)
        except OSError as error:
            self.abort()
            raise _failed(error) from error
        _prune(self._store, self._header, self._name)
        return self._name

    def abort(self) -> None:
        if self._file is not None:
            # Closing flushes, which a full disk refuses; the file goes anyway.
            with suppress(OSError):
                self._file.close()
            self._file = None
        with suppress(OSError):  # what stays is removed by the next start
            self._temporary.unlink(missing_ok=True)

    def _put(self, data: bytes | memoryview) -> None:
        assert self._file is not None, "aborted or committed before"
        self._digest.update(data)
        self._file.write(data)


class _Files(Protocol):
    """What choosing and pruning need of a store."""

    def names(self) -> list[str]: ...

    def load(self, name: str) -> Snapshot: ...

    def remove(self, name: str) -> None: ...


def _newest_valid(store: _Files, log_id: bytes, epoch: int, head_sequence: int) -> Found:
    skipped: list[Skipped] = []
    ahead: list[str] = []
    try:
        names = store.names()
    except SnapshotError as error:
        return Found(None, (Skipped("all", f"{error}"),))
    for name in names:
        try:
            snapshot = store.load(name)
        except SnapshotDamaged as error:
            skipped.append(Skipped(name, f"{error}"))
            continue
        reason = _unusable(snapshot, log_id, epoch, head_sequence)
        if reason is None:
            return Found(snapshot, tuple(skipped), tuple(ahead))
        if (snapshot.log_id, snapshot.epoch) == (log_id, epoch):
            ahead.append(name)
        snapshot.close()
        skipped.append(Skipped(name, reason))
    return Found(None, tuple(skipped), tuple(ahead))


def _unusable(snapshot: Snapshot, log_id: bytes, epoch: int, head_sequence: int) -> str | None:
    if snapshot.log_id != log_id:
        return "it belongs to another log"
    if snapshot.epoch != epoch:
        return f"it is of epoch {snapshot.epoch}, the log is in {epoch}"
    newest = max([snapshot.position, *(position for _, position in snapshot.section_positions)])
    if newest > head_sequence:
        return f"it knows the log up to {newest}, but it ends at {head_sequence}"
    return None


def _prune(store: _Files, header: SnapshotHeader, newest: str) -> None:
    """Keep `newest` and the next older one that is valid for the same log; delete all others.

    One of a later position is of a log whose end was lost: it would be skipped at every start.
    """
    kept = 1
    for name in store.names():
        if name == newest:
            continue
        if name < newest and kept < SNAPSHOTS_KEPT and _is_valid_for(store, name, header):
            kept += 1
        else:
            store.remove(name)


def _is_valid_for(store: _Files, name: str, header: SnapshotHeader) -> bool:
    try:
        with store.load(name) as snapshot:
            return (snapshot.log_id, snapshot.epoch) == (header.log_id, header.epoch)
    except SnapshotDamaged:
        return False


def _next_name(position: int, names: list[str]) -> str:
    """A name that sorts after every snapshot of a position up to this one."""
    used = [int(name[21:27]) for name in names if int(name[:20]) == position]
    copy = max(used, default=-1) + 1
    assert copy < _COPIES_MAX
    return f"{position:020d}-{copy:06d}.snapshot"


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(error: OSError) -> SnapshotError:
    if error.errno in _FULL_ERRNOS:
        return SnapshotFull(
            f"No space for a snapshot ({error}). Free some; the log has everything."
        )
    return SnapshotFailed(f"The disk refused a snapshot ({error}). The log has everything.")
