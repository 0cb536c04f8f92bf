"""The log on LMDB: one blob per record, big-endian sequence as key, one durable transaction per append.

Rules it keeps: `sync` and `metasync` on, no write map; an error that leaves the commit's fate unknown is told
apart from one that undid it; the map grows by itself; readers never outlive one page of records, so the file
does not grow behind a long reader. It must not know what the parts mean.

Why LMDB's own behaviour is not enough (each seen in a run): it has no checksums (hence the CRC), a failed meta
write leaves the outcome unknown (hence `LogStateUnknown`), an environment used after a fork corrupts without
an error (hence the pid guard), growing the map under a reader crashes (hence the gate).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from threading import Condition

import lmdb

from wal.envelope import GENESIS_HASH, decode, replace_parts, seal
from wal.log import (
    Draft,
    Envelope,
    Head,
    LogDamaged,
    LogFull,
    LogLocked,
    LogStateUnknown,
    LogWriteFailed,
    PartState,
    StoredPart,
    StoredRecord,
)

_KEY = Struct(">Q")
_MAP_BYTES_START = 1 << 30
_MAP_BYTES_MAX = 1 << 46
_MAP_HEADROOM_BYTES = 8 << 20
"""What one commit may need beyond its blobs: tree pages, the free list, half-filled pages."""
_FULL_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class _Gate:
    """Many readers, or one who grows the map; the latter waits for the former."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._readers = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._changed:
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._readers == 0)
            yield  # holding the condition keeps new readers out


class LmdbLog:
    """`wal.log.Log` in a directory of its own. See the port for what each method promises."""

    def __init__(
        self,
        directory: Path,
        *,
        stream: int = 0,
        map_bytes_start: int = _MAP_BYTES_START,
        map_bytes_max: int = _MAP_BYTES_MAX,
        read_only: bool = False,
    ) -> None:
        """Open or create the log. Raises LogLocked, LogDamaged, LogFull or LogWriteFailed."""
        self._pid = os.getpid()
        self._stream = stream
        self._map_bytes_max = map_bytes_max
        self._gate = _Gate()
        directory.mkdir(parents=True, exist_ok=True)
        data = directory / "data.mdb"
        size = data.stat().st_size if data.exists() else 0
        self._map_bytes = min(map_bytes_max, max(map_bytes_start, 2 * size))
        try:
            self._env = lmdb.open(
                str(directory),
                map_size=self._map_bytes,
                max_dbs=0,
                subdir=True,
                sync=True,
                metasync=True,
                writemap=False,
                readonly=read_only,
                readahead=True,
            )
        except lmdb.LockError as error:
            raise LogLocked(f"{directory} is in use by another process") from error
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
            message = f"{data} is not a readable log ({error}). Keep a copy, restore from a backup."
            raise LogDamaged(message) from error
        except lmdb.Error as error:
            raise _translate(error, "open the log") from error
        self._page_bytes = self._env.stat()["psize"]
        last = self._last_record()
        self._next_sequence = last.next_sequence if last else 0
        self._head_hash = last.hash if last else GENESIS_HASH
        self._epoch = last.envelope.epoch if last else 1

    def _last_record(self) -> StoredRecord | None:
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            if not cursor.last():
                return None
            return decode(bytes(cursor.value()), _sequence_of(cursor.key()))

    def append(self, drafts: Sequence[Draft]) -> tuple[Envelope, ...]:
        """See the port."""
        assert drafts, "an empty append has no position"
        assert os.getpid() == self._pid, "an LMDB environment must not cross a fork"
        envelopes, blobs = [], []
        sequence, previous = self._next_sequence, self._head_hash
        for draft in drafts:
            envelope, blob, previous = seal(
                draft,
                stream=self._stream,
                epoch=self._epoch,
                sequence=sequence,
                previous_hash=previous,
            )
            envelopes.append(envelope)
            blobs.append((_KEY.pack(sequence), blob))
            sequence += draft.item_count
        self._make_room(sum(len(blob) for _, blob in blobs))
        self._commit(blobs, appending=True)
        self._next_sequence, self._head_hash = sequence, previous
        return tuple(envelopes)

    def _make_room(self, bytes_needed: int) -> None:
        used = (self._env.info()["last_pgno"] + 1) * self._page_bytes
        wanted = used + 2 * bytes_needed + _MAP_HEADROOM_BYTES
        if wanted <= self._map_bytes:
            return
        size = min(self._map_bytes_max, max(2 * self._map_bytes, 2 * wanted))
        if size <= self._map_bytes:
            return  # at the bound: LMDB itself says when it is full
        with self._gate.alone():
            self._env.set_mapsize(size)
        self._map_bytes = size

    def _commit(self, blobs: list[tuple[bytes, bytes]], *, appending: bool) -> None:
        try:
            with self._env.begin(write=True) as transaction:
                for key, blob in blobs:
                    stored = transaction.put(key, blob, append=appending)
                    assert stored, "a position is written once"
        except lmdb.Error as error:
            self._assert_undone(error)
            raise _translate(error, "write to the log") from error

    def _assert_undone(self, cause: lmdb.Error) -> None:
        """After a failed commit: raise LogStateUnknown unless LMDB can still begin, which means it was undone."""
        try:
            with self._env.begin() as transaction, transaction.cursor() as cursor:
                last = _sequence_of(cursor.key()) if cursor.last() else -1
        except lmdb.Error as error:
            message = (
                f"the disk failed while the log's head was written ({cause}); whether the last group is on disk "
                "is unknown. The process must end; on the next start the log is read as it is on disk."
            )
            raise LogStateUnknown(message) from error
        if last >= self._next_sequence:
            raise LogStateUnknown(
                f"the disk reported an error ({cause}) for a group that it did write. The process must end."
            ) from cause

    def read(self, from_sequence: int, *, bytes_max: int) -> list[StoredRecord]:
        """See the port."""
        records: list[StoredRecord] = []
        for key_sequence, blob in self.raw(self._key_holding(from_sequence), bytes_max=bytes_max):
            record = decode(blob, key_sequence)
            if records and record.envelope.previous_hash != records[-1].hash:
                message = (
                    f"record {record.sequence} does not follow record {records[-1].sequence}: "
                    "one was changed, lost or inserted. Restore from a backup."
                )
                raise LogDamaged(message, record.sequence)
            records.append(record)
        return records

    def raw(self, from_key: int, *, bytes_max: int) -> list[tuple[int, bytes]]:
        """Stored blobs, unverified, with a key of at least `from_key`, as (key, blob). For `wal.check`."""
        found: list[tuple[int, bytes]] = []
        taken = 0
        with self._reading(from_key) as cursor:
            if cursor.set_range(_KEY.pack(from_key)):
                for key, blob in cursor:
                    found.append((_sequence_of(key), bytes(blob)))
                    taken += len(blob)
                    if taken >= bytes_max:
                        break
        return found

    def _key_holding(self, sequence: int) -> int:
        """The key of the record that holds a position: that position itself, unless a group spans it."""
        with self._reading(sequence) as cursor:
            found = cursor.set_range(_KEY.pack(sequence))
            if found and _sequence_of(cursor.key()) == sequence:
                return sequence
            if not (cursor.prev() if found else cursor.last()):
                return sequence
            before, blob = _sequence_of(cursor.key()), bytes(cursor.value())
        # A damaged record before it raises here: whether it reaches over the position can't be known.
        return before if decode(blob, before).next_sequence > sequence else sequence

    @contextmanager
    def _reading(self, near: int) -> Iterator[lmdb.Cursor]:
        assert os.getpid() == self._pid, "an LMDB environment must not cross a fork"
        with self._gate.reading():
            try:
                with self._env.begin() as transaction, transaction.cursor() as cursor:
                    yield cursor
            except lmdb.Error as error:
                message = (
                    f"the log's file can't be read near record {near} ({error}): it is damaged"
                )
                raise LogDamaged(message, near) from error

    def head(self) -> Head:
        """See the port."""
        return Head(self._next_sequence, self._head_hash, self._stream, self._epoch)

    def trim(self, before_sequence: int, record_type: int, *, records_max: int) -> int:
        """See the port. Reads and rewrites at most `records_max` records in one durable transaction."""
        rewritten: list[tuple[bytes, bytes]] = []
        position = 0
        while len(rewritten) < records_max:
            page = self.read(position, bytes_max=4 << 20)
            for record in page:
                if record.next_sequence > before_sequence:
                    page = []
                    break
                blob = trimmed(record, record_type)
                if blob is not None and len(rewritten) < records_max:
                    rewritten.append((_KEY.pack(record.sequence), blob))
            if not page:
                break
            position = page[-1].next_sequence
        if rewritten:
            self._make_room(sum(len(blob) for _, blob in rewritten))
            self._commit(rewritten, appending=False)
        return len(rewritten)

    def size_bytes(self) -> int:
        """See the port: pages in use, which is what the file takes at least."""
        return int(self._env.info()["last_pgno"] + 1) * int(self._page_bytes)

    def close(self) -> None:
        """See the port."""
        with self._gate.alone():
            self._env.close()


def trimmed(record: StoredRecord, record_type: int) -> bytes | None:
    """The record's blob without its bodies; None when it is of another type or already trimmed."""
    if record.envelope.record_type != record_type:
        return None
    if all(part.state == PartState.TRIMMED for part in record.parts):
        return None
    parts = tuple(StoredPart(part.kind, PartState.TRIMMED, b"") for part in record.parts)
    return replace_parts(record, parts)


def _sequence_of(key: bytes | memoryview) -> int:
    if len(key) != _KEY.size:
        raise LogDamaged(f"a key of the log has {len(key)} bytes instead of 8: the file is damaged")
    return int(_KEY.unpack(key)[0])


def _translate(error: lmdb.Error, doing: str) -> LogFull | LogWriteFailed | LogStateUnknown:
    text = str(error)
    code = getattr(error, "code", None)
    if isinstance(error, lmdb.PanicError):
        return LogStateUnknown(f"can't {doing}: {text}. The process must end and recover.")
    if (
        isinstance(error, lmdb.MapFullError)
        or code in _FULL_ERRNOS
        or os.strerror(errno.ENOSPC) in text
    ):
        return LogFull(
            f"can't {doing}: no space left ({text}). Free some disk space; nothing was lost."
        )
    return LogWriteFailed(
        f"can't {doing}: the disk refused ({text}). Check the disk; a retry is safe."
    )
