"""A log in memory on a fake disk that fails the way real disks do: for tests and simulations.

Rules it keeps: the same port and the same bytes as the LMDB log. The disk below it keeps what was written but not
synced apart, loses or tears it at a crash, fills up, fails on request. Like LMDB, the log writes data, syncs,
and then writes one head that makes it count; a failure of that last write leaves the outcome unknown.
It must not know trio: latency is the caller's, who runs `append` where a thread would be.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from random import Random
from typing import Literal

from wal.envelope import GENESIS_HASH, decode, replaced, seal, trimmed
from wal.log import (
    Draft,
    Envelope,
    Head,
    LogDamaged,
    LogFull,
    LogStateUnknown,
    LogWriteFailed,
    Replacement,
    StoredRecord,
    scan,
)

Operation = Literal["write", "sync", "head"]
Verdict = Literal["ok", "error", "full", "done-but-reported-failed"]


class FakeDisk:
    """Blobs by key, a head that says how far they count, and the faults of a real disk.

    `fault(operation)` is asked before each operation; `capacity_bytes` bounds what fits (None: no bound, and
    nothing is counted, since simulations append without an end).
    """

    def __init__(
        self,
        *,
        capacity_bytes: int | None = None,
        fault: Callable[[Operation], Verdict] | None = None,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.fault = fault or (lambda _operation: "ok")
        self.durable: dict[int, bytes] = {}
        self.unsynced: dict[int, bytes] = {}
        self.head = 0
        """Durable: blobs with a key below it count."""
        self.broken = False
        """A head write failed: nothing works until the process ends."""

    def used_bytes(self) -> int:
        """Bytes of all blobs, synced or not."""
        return sum(map(len, self.durable.values())) + sum(map(len, self.unsynced.values()))

    def crash(self, rng: Random) -> None:
        """Power loss: every unsynced blob is lost, kept, or torn; then the machine starts again."""
        for key, blob in self.unsynced.items():
            fate = rng.randrange(3)
            if fate == 1:
                self.durable[key] = blob
            elif fate == 2:
                self.durable[key] = blob[: rng.randrange(len(blob))]
        self.unsynced = {}
        self.broken = False

    def flip(self, rng: Random, key: int) -> None:
        """Rot: flip one bit of a durable blob."""
        blob = bytearray(self.durable[key])
        bit = rng.randrange(len(blob) * 8)
        blob[bit // 8] ^= 1 << bit % 8
        self.durable[key] = bytes(blob)


class MemoryLog:
    """`wal.log.Log` on a FakeDisk. Opening one on the disk of a crashed one is a restart."""

    def __init__(self, disk: FakeDisk | None = None, *, stream: int = 0) -> None:
        self.disk = disk or FakeDisk()
        self.disk.broken = False  # what broke was the process before
        self._stream = stream
        self._trimmed_to: dict[int, int] = {}
        keys = sorted(key for key in self.disk.durable if key < self.disk.head)
        # What lies beyond the head was never committed: torn or not, it does not exist.
        self.disk.durable = {key: self.disk.durable[key] for key in keys}
        self._keys = keys
        last = decode(self.disk.durable[keys[-1]], keys[-1]) if keys else None
        self._next_sequence = last.next_sequence if last else 0
        self._head_hash = last.hash if last else GENESIS_HASH
        self._epoch = last.envelope.epoch if last else 1
        if last and last.envelope.stream != stream:
            message = f"the fake disk holds stream {last.envelope.stream}, not {stream}"
            raise LogDamaged(message, last.sequence)

    def append(self, drafts: Sequence[Draft]) -> tuple[Envelope, ...]:
        """See the port."""
        assert drafts, "an empty append has no position"
        self._guard()
        envelopes: list[Envelope] = []
        blobs: dict[int, bytes] = {}
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
            blobs[sequence] = blob
            sequence += draft.item_count
        assert all(key >= self.disk.head for key in blobs), "a position is written once"
        self._commit(blobs, sequence)
        self._keys.extend(blobs)
        self._next_sequence, self._head_hash = sequence, previous
        return tuple(envelopes)

    def _commit(self, blobs: dict[int, bytes], head: int) -> None:
        disk = self.disk
        verdict = disk.fault("write")
        capacity, added = disk.capacity_bytes, sum(map(len, blobs.values()))
        full = capacity is not None and sum(map(len, disk.durable.values())) + added > capacity
        if verdict == "full" or full:
            raise LogFull("the fake disk is full")
        if verdict != "ok":
            raise LogWriteFailed("the fake disk refused a write")
        # A blob that replaces one lands beside it, as LMDB never overwrites a live page: it counts with the head.
        disk.unsynced = {key: blob for key, blob in blobs.items() if key >= disk.head}
        if disk.fault("sync") != "ok":
            raise LogWriteFailed("the fake disk refused to sync")
        disk.durable |= disk.unsynced
        disk.unsynced = {}
        verdict = disk.fault("head")
        if verdict in ("ok", "done-but-reported-failed"):
            disk.durable |= blobs
            disk.head = head
        if verdict != "ok":
            disk.broken = True
            raise LogStateUnknown("the fake disk failed at the head: the outcome is unknown")

    def _guard(self) -> None:
        if self.disk.broken:
            raise LogStateUnknown("the fake disk is broken: the process must end")

    def read(self, from_sequence: int, *, bytes_max: int) -> list[StoredRecord]:
        """See the port."""
        records: list[StoredRecord] = []
        for key, blob in self.raw(self._key_holding(from_sequence), bytes_max=bytes_max):
            record = decode(blob, key)
            if records and record.envelope.previous_hash != records[-1].hash:
                raise LogDamaged(f"record {key} does not follow record {records[-1].sequence}", key)
            records.append(record)
        return records

    def raw(self, from_key: int, *, bytes_max: int) -> list[tuple[int, bytes]]:
        """Stored blobs, unverified, with a key of at least `from_key`, as (key, blob)."""
        self._guard()
        found: list[tuple[int, bytes]] = []
        taken = 0
        for key in self._keys[bisect_left(self._keys, from_key) :]:
            blob = self.disk.durable[key]
            found.append((key, blob))
            taken += len(blob)
            if taken >= bytes_max:
                break
        return found

    def _key_holding(self, sequence: int) -> int:
        """The key of the record that holds a position: that position itself, unless a group spans it."""
        index = bisect_left(self._keys, sequence)
        if self._keys[index : index + 1] == [sequence] or index == 0:
            return sequence
        before = self._keys[index - 1]
        return (
            before
            if decode(self.disk.durable[before], before).next_sequence > sequence
            else sequence
        )

    def record_count(self) -> int:
        """How many records the log says it holds. For `wal.check`."""
        return len(self._keys)

    def head(self) -> Head:
        """See the port."""
        return Head(self._next_sequence, self._head_hash, self._stream, self._epoch)

    def trim(self, before_sequence: int, record_type: int, *, records_max: int) -> int:
        """See the port."""
        assert records_max >= 1, "trimming nothing says nothing about what is left"
        self._guard()
        rewritten: dict[int, bytes] = {}
        position = self._trimmed_to.get(record_type, 0)
        for record in scan(self, position):
            if record.next_sequence > before_sequence:
                break
            blob = trimmed(record, record_type)
            if blob is not None:
                rewritten[record.sequence] = blob
            position = record.next_sequence
            if len(rewritten) == records_max:
                break
        if rewritten:
            self._commit(rewritten, self._next_sequence)
        self._trimmed_to[record_type] = position
        return len(rewritten)

    def replace(self, replacements: Sequence[Replacement]) -> None:
        """See the port."""
        self._guard()
        rewritten: dict[int, bytes] = {}
        for sequence, parts in replacements:
            assert sequence in self.disk.durable, f"no record begins at {sequence}"
            record = decode(self.disk.durable[sequence], sequence)
            rewritten[sequence] = replaced(record, parts)
        if rewritten:
            self._commit(rewritten, self._next_sequence)

    def raise_epoch(self, draft: Draft, epoch: int) -> Envelope:
        """See the port."""
        assert self._epoch < epoch < 1 << 32, "an epoch only rises"
        before, self._epoch = self._epoch, epoch
        try:
            return self.append([draft])[0]
        except BaseException:
            self._epoch = before
            raise

    def compact_at_next_open(self) -> None:
        """See the port: a replaced blob is gone at once."""

    def size_bytes(self) -> int:
        """See the port."""
        return self.disk.used_bytes()

    def close(self) -> None:
        """See the port: nothing to release."""
