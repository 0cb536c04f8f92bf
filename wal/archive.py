"""Archives: files that hold records whose bodies retention drops from the log. In a directory, or in memory.

Rules it keeps: a file appears under its name only when it is whole, synced and was read back record by record; what
is read is verified as in the log, so a record of an archive still matches its envelope in the log. It must not know
what the parts mean.

A file is gzip of: `SMARC` and the version 1; per record its sequence (8 bytes), the blob's length (4) and the blob, as
in the log; eight bytes 0xFF; blake2b-256 of all before.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from struct import Struct
from typing import IO, Final, Protocol

from wal.envelope import decode, replace_parts
from wal.lmdb_file import sync_directory
from wal.log import LogDamaged, StoredRecord

_MAGIC: Final = b"SMARC\x01"
_ENTRY: Final = Struct(">QI")
_SEQUENCE: Final = Struct(">Q")
_END: Final = b"\xff" * 8
_DIGEST_BYTES: Final = 32
_LEVEL: Final = 6
_UNFINISHED: Final = ".unfinished"
SUFFIX: Final = ".smlog.gz"


class ArchiveError(Exception):
    """An archive can't be written or read; nothing was dropped because of it. Says what to do next."""


class ArchiveStore(Protocol):
    """Where archives are kept. Blocks for the disk: call it in a worker thread."""

    def write(self, name: str, records: Iterable[StoredRecord]) -> None:
        """Keep records under a name, whole and verified; one of that name is replaced. Raises ArchiveError."""
        ...

    def read(self, name: str) -> Iterator[StoredRecord]:
        """The records of an archive, each verified. Raises ArchiveError, at the end too if the file was changed."""
        ...

    def names(self) -> list[str]:
        """All archives, oldest first."""
        ...

    def sweep(self) -> None:
        """Remove what a kill left half written; not while one is being written. Raises ArchiveError."""
        ...


def name_of(first_sequence: int, next_sequence: int) -> str:
    """The name of the archive of these positions."""
    return f"events-{first_sequence:020d}-{next_sequence:020d}{SUFFIX}"


class FileArchives:
    """Archives as files of a directory, readable by the owner alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, name: str, records: Iterable[StoredRecord]) -> None:
        """See ArchiveStore.write."""
        temporary = self._directory / (name + _UNFINISHED)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.sweep()
            temporary.touch(mode=0o600)
            with temporary.open("wb") as file:
                written = _write(file, records)
                file.flush()
                os.fsync(file.fileno())
            with temporary.open("rb") as file:
                _must_equal(written, _read(file, name))
            temporary.replace(self._directory / name)
            sync_directory(self._directory)
        except OSError as error:
            raise ArchiveError(
                f"the archive {name} can't be written ({error}): make room, then run it again"
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def read(self, name: str) -> Iterator[StoredRecord]:
        """See ArchiveStore.read."""
        try:
            with (self._directory / name).open("rb") as file:
                yield from _read(file, name)
        except OSError as error:
            raise ArchiveError(f"the archive {name} can't be read ({error})") from error

    def names(self) -> list[str]:
        """See ArchiveStore.names."""
        try:
            return sorted(path.name for path in self._directory.glob(f"*{SUFFIX}"))
        except OSError as error:
            raise ArchiveError(f"the archives can't be listed ({error})") from error

    def sweep(self) -> None:
        """See ArchiveStore.sweep."""
        try:
            for stray in self._directory.glob(f"*{_UNFINISHED}"):
                stray.unlink()
        except OSError as error:
            raise ArchiveError(f"an unfinished archive can't be removed ({error})") from error


class MemoryArchives:
    """Archives in a dict, with the bytes of the files: for tests and simulations."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def write(self, name: str, records: Iterable[StoredRecord]) -> None:
        """See ArchiveStore.write."""
        file = BytesIO()
        written = _write(file, records)
        _must_equal(written, _read(BytesIO(file.getvalue()), name))
        self.files[name] = file.getvalue()

    def read(self, name: str) -> Iterator[StoredRecord]:
        """See ArchiveStore.read."""
        yield from _read(BytesIO(self.files[name]), name)

    def names(self) -> list[str]:
        """See ArchiveStore.names."""
        return sorted(self.files)

    def sweep(self) -> None:
        """See ArchiveStore.sweep."""


def rewrite(store: ArchiveStore, name: str, change: Callable[[StoredRecord], StoredRecord]) -> None:
    """Replace an archive by one of changed records: whole, or not at all. Raises ArchiveError.

    `change` returns the record itself where nothing is to be done; an archive of such records alone is only read, as
    packing it again takes several times as long.
    """
    if any(change(record) is not record for record in store.read(name)):
        store.write(name, map(change, store.read(name)))


def _write(file: IO[bytes], records: Iterable[StoredRecord]) -> tuple[int, bytes]:
    """Write a whole archive; how many records, and the digest."""
    digest, count = blake2b(digest_size=_DIGEST_BYTES), 0
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=_LEVEL, mtime=0) as packed:

        def put(data: bytes) -> None:
            digest.update(data)
            packed.write(data)

        put(_MAGIC)
        for record in records:
            blob = replace_parts(record, record.parts)
            put(_ENTRY.pack(record.sequence, len(blob)))
            put(blob)
            count += 1
        put(_END)
        packed.write(digest.digest())
    return count, digest.digest()


def _read(file: IO[bytes], name: str) -> Iterator[StoredRecord]:
    digest = blake2b(digest_size=_DIGEST_BYTES)
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as packed:

            def take(size_bytes: int) -> bytes:
                data = packed.read(size_bytes)
                if len(data) != size_bytes:
                    raise ArchiveError(f"the archive {name} is cut short: restore it from a backup")
                digest.update(data)
                return data

            if take(len(_MAGIC)) != _MAGIC:
                raise ArchiveError(f"{name} is not an archive that this version reads")
            while (head := take(_SEQUENCE.size)) != _END:
                (length,) = Struct(">I").unpack(take(4))
                yield decode(take(length), _SEQUENCE.unpack(head)[0])
            if packed.read() != digest.digest():
                raise ArchiveError(f"the archive {name} was changed: restore it from a backup")
    except (EOFError, zlib.error, gzip.BadGzipFile, LogDamaged) as error:
        raise ArchiveError(
            f"the archive {name} is damaged ({error}): restore it from a backup"
        ) from error


def _must_equal(written: tuple[int, bytes], read_back: Iterator[StoredRecord]) -> None:
    """Raises ArchiveError unless what can be read is what was written (its digest is compared on the way)."""
    count = sum(1 for _ in read_back)
    if count != written[0]:
        raise ArchiveError(f"{written[0]} records were archived and {count} can be read back")
