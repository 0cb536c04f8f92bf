"""The log on LMDB: one blob per record, big-endian sequence as key, one durable transaction per append.

Rules it keeps: `sync` and `metasync` on, no write map; an error that leaves the commit's fate unknown is told
apart from one that undid it; the map grows by itself; readers never outlive one page of records, so the file
does not grow behind a long reader. It must not know what the parts mean.

Why LMDB's own behaviour is not enough (each seen in a run): it has no checksums (hence the CRC), a failed meta
write leaves the outcome unknown (hence `LogStateUnknown`), an environment used after a fork corrupts without
an error (hence the pid guard), growing the map under a reader crashes (hence the gate), a write that ends early
because the disk is full is reported as EIO (hence the probe for room), and a flipped bit in a meta page can bring
back an older tree that looks whole (hence `lmdb_file.verified_size`).

A bit flipped in another of its pages can hide the last records: the anchor beside the file shows that (`wal.anchor`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import Struct
from threading import Condition

import lmdb

from wal.anchor import ANCHOR_NAME, APPENDS_BETWEEN_ANCHORS, read_anchor, write_anchor
from wal.envelope import GENESIS_HASH, decode, replaced, seal, trimmed
from wal.lmdb_file import (
    COMPACT_NAME,
    create,
    open_failed,
    read_failed,
    reserve_lock_file,
    verified_size,
    wait_until_writable,
    write_failed,
)
from wal.log import (
    Draft,
    Envelope,
    Head,
    LogDamaged,
    LogStateUnknown,
    LogWriteFailed,
    Replacement,
    StoredRecord,
    scan,
)

_KEY = Struct(">Q")
_MAP_BYTES_START = 1 << 30
_MAP_BYTES_MAX = 1 << 46
_MAP_HEADROOM_BYTES = 8 << 20
"""What one commit may need beyond its blobs: tree pages, the free list, half-filled pages."""


class _Gate:
    """Many readers, or one who grows the map; who grows it waits for the former, and new ones for that."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._readers = 0
        self._wanted_alone = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._changed:
            # Readers that overlap without an end must not starve the writer.
            self._changed.wait_for(lambda: not self._wanted_alone)
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
            self._wanted_alone = True
            try:
                self._changed.wait_for(lambda: self._readers == 0)
                yield  # holding the condition keeps new readers out
            finally:
                self._wanted_alone = False
                self._changed.notify_all()


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
        """Open or create the log. Raises LogLocked, LogDamaged, LogFull or LogWriteFailed.

        `read_only` is for checking and copying: it never writes, and it opens a log whose last record is damaged,
        so that `check_log` can name every record that is.
        """
        self._pid = os.getpid()
        self._directory = directory
        self._stream = stream
        self._read_only = read_only
        self._map_bytes_max = map_bytes_max
        self._gate = _Gate()
        self._broken_by: str | None = None
        self._appends = 0
        self._trimmed_to: dict[int, int] = {}
        """By record type: every record that ends here or earlier is known to be trimmed."""
        if not read_only:
            create(directory)
        size = verified_size(directory, may_repair=not read_only)
        self._map_bytes = min(map_bytes_max, max(map_bytes_start, 2 * size))
        reserve_lock_file(directory, read_only=read_only)
        try:
            self._env = lmdb.open(
                str(directory),
                map_size=self._map_bytes,
                max_dbs=0,
                sync=True,
                metasync=True,
                writemap=False,
                readonly=read_only,
                create=False,
                mode=0o600,
            )
        except lmdb.Error as error:
            raise open_failed(error, directory) from error
        try:
            self._page_bytes = int(self._env.stat()["psize"])
            self._head = Head(0, GENESIS_HASH, stream, 1)
            if not read_only:
                self._head = self._stored_head()
                self._hold_against_anchor()
        except BaseException:
            self._env.close()
            raise

    def _stored_head(self) -> Head:
        with self._reading(-1) as cursor:
            if not cursor.last():
                if self.record_count():
                    raise LogDamaged("the log's file says it holds records, and none is found")
                return Head(0, GENESIS_HASH, self._stream, 1)
            key, blob = _sequence_of(cursor.key()), bytes(cursor.value())
        last = decode(blob, key)
        if last.envelope.stream != self._stream:
            message = (
                f"the log in {self._directory} is stream {last.envelope.stream}, not {self._stream}: "
                "it belongs to another configuration. Point to the right directory."
            )
            raise LogDamaged(message, key)
        return Head(last.next_sequence, last.hash, self._stream, last.envelope.epoch)

    def anchor(self) -> Head | None:
        """A head that this log is known to have had. For `wal.check`."""
        return read_anchor(self._directory)

    def _hold_against_anchor(self) -> None:
        anchor = self.anchor()
        if anchor is None or anchor.next_sequence == 0 or anchor.hash == self._head.hash:
            return
        with self._reading(anchor.next_sequence) as cursor:
            blobs = _page(cursor, 1) if _seek_holding(cursor, anchor.next_sequence - 1) else []
        if blobs and decode(blobs[0][1], blobs[0][0]).hash == anchor.hash:
            return
        message = (
            f"the log in {self._directory} ends at {self._head.next_sequence} and does not hold what it held when it "
            f"ended at {anchor.next_sequence}: its last records were lost. Keep a copy, restore from a backup. If an "
            f"older file was put there on purpose, remove the file `{ANCHOR_NAME}` beside it."
        )
        raise LogDamaged(message, self._head.next_sequence)

    def append(self, drafts: Sequence[Draft]) -> tuple[Envelope, ...]:
        """See the port."""
        assert drafts, "an empty append has no position"
        self._guard(writing=True)
        envelopes, blobs = [], []
        sequence, previous, stream, epoch = self._head
        for draft in drafts:
            envelope, blob, previous = seal(
                draft,
                stream=stream,
                epoch=epoch,
                sequence=sequence,
                previous_hash=previous,
            )
            envelopes.append(envelope)
            blobs.append((_KEY.pack(sequence), blob))
            sequence += draft.item_count
        self._make_room(sum(len(blob) for _, blob in blobs))
        self._commit(blobs, appending=True)
        # One reference: a reader sees the new position and the new hash, or neither.
        self._head = Head(sequence, previous, stream, epoch)
        self._appends += 1
        if self._appends % APPENDS_BETWEEN_ANCHORS == 0:
            write_anchor(self._directory, self._head)
            self._forget_dead_readers()
        return tuple(envelopes)

    def _forget_dead_readers(self) -> None:
        """A backup that was killed would else hold the pages it saw for ever, and the file would grow."""
        with suppress(lmdb.Error):
            self._env.reader_check()

    def _make_room(self, bytes_needed: int) -> None:
        wanted = self.size_bytes() + 2 * bytes_needed + _MAP_HEADROOM_BYTES
        if wanted <= self._map_bytes:
            return
        size = min(self._map_bytes_max, max(2 * self._map_bytes, 2 * wanted))
        if size <= self._map_bytes:
            return  # at the bound: LMDB itself says when it is full
        with self._gate.alone():
            try:
                self._env.set_mapsize(size)
            except lmdb.Error as error:
                # LMDB has unmapped the file by now, so the environment is gone.
                message = (
                    f"the map can't grow to {size} bytes ({error}). Raise the limit on address space; the process "
                    "must end. Nothing was appended."
                )
                raise self._broken(message) from error
        self._map_bytes = size

    def _commit(self, blobs: list[tuple[bytes, bytes]], *, appending: bool) -> None:
        try:
            with self._env.begin(write=True) as transaction:
                for key, blob in blobs:
                    stored = transaction.put(key, blob, append=appending)
                    assert stored, "a position is written once"
        except lmdb.Error as error:
            self._assert_undone(error)
            used = self.size_bytes()
            bytes_needed = sum(len(blob) for _, blob in blobs)
            raise write_failed(error, self._directory, used, bytes_needed) from error

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
            raise self._broken(message) from error
        if last >= self._head.next_sequence:
            message = f"the disk reported an error ({cause}) for a group that it did write. The process must end."
            raise self._broken(message) from cause

    def _broken(self, message: str) -> LogStateUnknown:
        """The error to raise; from now on every call raises it."""
        self._broken_by = message
        return LogStateUnknown(message)

    def read(self, from_sequence: int, *, bytes_max: int) -> list[StoredRecord]:
        """See the port."""
        if from_sequence >= self._head.next_sequence and not self._read_only:
            self._guard()
            return []  # who follows the log asks here most of the time
        with self._reading(from_sequence) as cursor:
            blobs = _page(cursor, bytes_max) if _seek_holding(cursor, from_sequence) else []
        records: list[StoredRecord] = []
        for key_sequence, blob in blobs:
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
        with self._reading(from_key) as cursor:
            found = cursor.set_range(_KEY.pack(from_key))
            return _page(cursor, bytes_max, from_key - 1) if found else []

    def record_count(self) -> int:
        """How many records LMDB's tree says it holds. For `wal.check`."""
        self._guard()
        return int(self._env.stat()["entries"])

    def _guard(self, *, writing: bool = False) -> None:
        assert os.getpid() == self._pid, "an LMDB environment must not cross a fork"
        assert not (writing and self._read_only), "opened to read"
        if self._broken_by is not None:
            raise LogStateUnknown(self._broken_by)

    @contextmanager
    def _reading(self, near: int) -> Iterator[lmdb.Cursor]:
        self._guard()
        if not self._read_only:  # else it may not be ours
            wait_until_writable(self._directory)
        with self._gate.reading():
            try:
                with self._env.begin() as transaction, transaction.cursor() as cursor:
                    yield cursor
            except lmdb.Error as error:
                raise read_failed(error, near) from error

    def head(self) -> Head:
        """See the port."""
        return self._stored_head() if self._read_only else self._head

    def trim(self, before_sequence: int, record_type: int, *, records_max: int) -> int:
        """See the port. Rewrites at most `records_max` records in one durable transaction.

        The first call after opening reads from the log's start, later ones from where the last one came to.
        """
        assert records_max >= 1, "trimming nothing says nothing about what is left"
        self._guard(writing=True)
        rewritten: list[tuple[bytes, bytes]] = []
        position = self._trimmed_to.get(record_type, 0)
        for record in scan(self, position):
            if record.next_sequence > before_sequence:
                break
            blob = trimmed(record, record_type)
            if blob is not None:
                rewritten.append((_KEY.pack(record.sequence), blob))
            position = record.next_sequence
            if len(rewritten) == records_max:
                break
        if rewritten:
            self._make_room(sum(len(blob) for _, blob in rewritten))
            self._commit(rewritten, appending=False)
        self._trimmed_to[record_type] = position
        return len(rewritten)

    def replace(self, replacements: Sequence[Replacement]) -> None:
        """See the port."""
        self._guard(writing=True)
        rewritten: list[tuple[bytes, bytes]] = []
        for sequence, parts in replacements:
            with self._reading(sequence) as cursor:
                stored = cursor.set_key(_KEY.pack(sequence))
                assert stored, f"no record begins at {sequence}"
                blob = bytes(cursor.value())
            rewritten.append((_KEY.pack(sequence), replaced(decode(blob, sequence), parts)))
        if rewritten:
            self._make_room(sum(len(blob) for _, blob in rewritten))
            self._commit(rewritten, appending=False)

    def raise_epoch(self, draft: Draft, epoch: int) -> Envelope:
        """See the port."""
        assert self._head.epoch < epoch < 1 << 32, "an epoch only rises"
        before = self._head
        self._head = before._replace(epoch=epoch)
        try:
            return self.append([draft])[0]
        except BaseException:
            self._head = before
            raise

    def compact_at_next_open(self) -> None:
        """See the port: leaves a mark that `wal.lmdb_copy.compact_if_asked` looks for. Raises LogWriteFailed."""
        try:
            (self._directory / COMPACT_NAME).touch(mode=0o600)
        except OSError as error:
            raise LogWriteFailed(f"can't ask for the log's compaction: {error}") from error

    def size_bytes(self) -> int:
        """See the port: pages in use, which is what the file takes at least."""
        return int(self._env.info()["last_pgno"] + 1) * self._page_bytes

    def close(self) -> None:
        """See the port."""
        if self._appends and os.getpid() == self._pid:
            write_anchor(self._directory, self._head)
        with self._gate.alone():
            self._env.close()


def _seek_holding(cursor: lmdb.Cursor, sequence: int) -> bool:
    """Put the cursor on the record that holds a position, else on the next one; False at the log's end."""
    key = _KEY.pack(sequence)
    found = cursor.set_range(key)
    if found and _sequence_of(cursor.key()) == sequence:
        return True
    if cursor.prev() if found else cursor.last():
        before = _sequence_of(cursor.key())
        # A damaged record before it raises here: whether it reaches over the position can't be known.
        if decode(bytes(cursor.value()), before).next_sequence > sequence:
            return True
    return bool(cursor.set_range(key))


def _page(cursor: lmdb.Cursor, bytes_max: int, after: int = -1) -> list[tuple[int, bytes]]:
    """Blobs from the cursor on, at least one, until they are `bytes_max` together; keys rise from `after`."""
    found: list[tuple[int, bytes]] = []
    taken, previous = 0, after
    for key, blob in cursor:
        sequence = _sequence_of(key)
        if sequence <= previous:  # damaged tree pages can lead in a circle
            message = f"record {sequence} is stored after record {previous}: the file is damaged"
            raise LogDamaged(message, sequence)
        found.append((sequence, bytes(blob)))
        taken, previous = taken + len(blob), sequence
        if taken >= bytes_max:
            break
    return found


def _sequence_of(key: bytes | memoryview) -> int:
    if len(key) != _KEY.size:
        raise LogDamaged(f"a key of the log has {len(key)} bytes instead of 8: the file is damaged")
    return int(_KEY.unpack(key)[0])
