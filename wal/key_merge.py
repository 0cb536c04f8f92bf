"""The background work of the key index, in bounded slices: flush keys to a run, merge runs, tidy up.

Rules it keeps: memory is bounded by a few hundred blocks whatever the size of the runs; a slice takes some
tens of milliseconds; nothing is visible before the one transaction that changes the manifest, so a crash
between slices loses nothing and leaves at most blocks of a run that no manifest names. Runs in the worker's
thread and never touches what the owner reads, except that it may set bits in the filter. It must not know
when to work or on what: `wal.key_index` decides.

Sorting and merging are numpy's, which leaves the interpreter to others meanwhile. Keys are compared by their
leading 8 bytes; only where those are equal (by chance never, but somebody may search for such keys) by all 16.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from enum import Enum
from itertools import islice
from struct import Struct
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from wal.key_filter import ENTRY, Entries, KeyFilter
from wal.run_blocks import (
    BLOCK_ENTRIES_MAX,
    ENTRY_BYTES,
    FINGERPRINT_BYTES,
    KEY_BYTES,
    LOW_MIN,
    Manifest,
    RunInfo,
    block_entries,
    block_high,
    encode_block,
    encode_manifest,
)
from wal.runs import Block, IndexDamaged, RunStore

SORT_KEYS_MAX: Final = 65_536
"""Keys taken out of a dict and sorted in one slice (about 15 ms)."""
JOIN_KEYS_MAX: Final = 4_096
"""Keys joined at once: the interpreter is held for half a millisecond."""
READ_BLOCKS: Final = 64
"""Blocks read at once from each source of a merge: 4 sources make a slice of 1 MiB."""
SCAN_BLOCKS: Final = 256
DELETE_BLOCKS: Final = 1_024
DRAIN_KEYS: Final = 4_096
_ENTRY: Final = Struct(f"{KEY_BYTES}s{FINGERPRINT_BYTES}s")
_RAW: Final = np.dtype((np.void, ENTRY_BYTES))


class PlanKind(Enum):
    """What a plan does, for metrics and logs."""

    FLUSH = "flush"
    """Writes the sealed keys as a run of tier 0."""
    COMPACT = "compact"
    """Merges four runs of a tier into one of the next, a portion at a time."""
    COLLECT = "collect"
    """Deletes the blocks of runs that no manifest names."""
    GROW = "grow"
    """Fills a larger filter from all runs, a portion at a time."""
    DRAIN = "drain"
    """Frees the memory of flushed keys bit by bit: dropping them at once would stop everything for 20 ms."""


class Merged(NamedTuple):
    """What a plan has durably changed: the manifest that is now on disk, and the filter that covers it.

    `key_filter` is None if there are no keys yet, or if the plan left the filter alone.
    """

    manifest: Manifest
    key_filter: KeyFilter | None


Steps = Generator[None, None, Merged | None]
"""Work that yields between its slices and returns what it changed."""


class MergePlan:
    """A bounded piece of background work. `run_slice` is called in a worker thread, one call at a time."""

    def __init__(self, kind: PlanKind, steps: Steps, slices_max: int | None = None) -> None:
        self.kind = kind
        self.is_failed = False
        self.is_done = False
        self.merged: Merged | None = None
        """What it has durably changed; None until it is done, or if it changes no run."""
        self._steps = steps
        self._slices_left = slices_max

    def run_slice(self) -> bool:
        """Work for some tens of milliseconds; True: call again, False: the plan is over.

        Raises RunStoreFull or RunStoreFailed (finish the plan and begin again later; a full disk needs
        space first) or IndexDamaged (the index is to be rebuilt).
        """
        assert not self.is_done
        assert not self.is_failed
        try:
            next(self._steps)
        except StopIteration as stop:
            self.merged = stop.value
            self.is_done = True
            return False
        except BaseException:
            self.is_failed = True
            raise
        if self._slices_left is None:
            return True
        self._slices_left -= 1
        return self._slices_left > 0


class Source(Protocol):
    """Sorted entries, read once from front to back."""

    def read(self) -> Entries:
        """The next entries, at most SCAN_BLOCKS blocks of them; empty: there are no more."""
        ...


class RunSource:
    """A stored run; every block is checked, and that it follows on the one before, and the count at the end."""

    def __init__(self, store: RunStore, run: RunInfo, *, blocks_max: int = READ_BLOCKS) -> None:
        self._store = store
        self._run = run
        self._blocks_max = blocks_max
        self._low: bytes | None = LOW_MIN
        self._entries_read = 0

    def read(self) -> Entries:
        """See `Source.read`. Raises IndexDamaged."""
        run = self._run
        if self._low is None:
            if self._entries_read != run.entries:
                message = f"run {run.run_id} has {self._entries_read} entries, not {run.entries}"
                raise _damaged(message)
            return np.empty(0, dtype=ENTRY)
        blocks = self._store.scan(run.run_id, self._low, blocks_max=self._blocks_max)
        if not blocks:
            raise _damaged(f"run {run.run_id} has no block from {self._low.hex()} on")
        for block in blocks:
            if block.low != self._low:
                raise _damaged(f"run {run.run_id} lacks the block from {self._low!r} on")
            self._low = block_high(block)
        entries = np.frombuffer(b"".join(map(block_entries, blocks)), dtype=ENTRY)
        self._entries_read += len(entries)
        return entries


class ArraySource:
    """Sorted entries in memory."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries

    def read(self) -> Entries:
        """See `Source.read`."""
        size = READ_BLOCKS * BLOCK_ENTRIES_MAX
        part, self._entries = self._entries[:size], self._entries[size:]
        return part


def sort_entries(entries: Entries) -> Entries:
    """Sorted by key; of equal keys only the first stays (the callers put the oldest first)."""
    high = entries["high"].astype(np.uint64)
    order = np.argsort(high, kind="stable")
    high = high[order]
    if len(high) > 1 and bool(np.any(high[1:] == high[:-1])):
        order = np.lexsort((entries["low"].astype(np.uint64), entries["high"].astype(np.uint64)))
        entries = _taken(entries, order)
        same = (entries["high"][1:] == entries["high"][:-1]) & (
            entries["low"][1:] == entries["low"][:-1]
        )
        return entries[np.concatenate(([True], ~same))]
    return _taken(entries, order)


def _taken(entries: Entries, order: npt.NDArray[np.int64]) -> Entries:
    """In another order. As raw bytes: moving records field by field takes eight times as long."""
    return np.take(entries.view(_RAW), order).view(ENTRY)


def merge_sources(sources: Sequence[Source]) -> Iterator[Entries]:
    """Sorted entries without a repeated key, in parts; of equal keys that of the first source stays.

    Each step takes from every source what is not beyond the last key that all of them can vouch for.
    """
    buffers: list[Entries] = [np.empty(0, dtype=ENTRY) for _ in sources]
    open_sources = set(range(len(sources)))
    while True:
        for at in sorted(open_sources):
            if len(buffers[at]) < READ_BLOCKS * BLOCK_ENTRIES_MAX:
                more = sources[at].read()
                if not len(more):
                    open_sources.discard(at)
                buffers[at] = _join((buffers[at], more))
        if not any(map(len, buffers)):
            return
        if open_sources:
            limit = min(_key(buffers[at], -1) for at in open_sources)
            counts = [_count_up_to(buffer, limit) for buffer in buffers]
        else:
            counts = [len(buffer) for buffer in buffers]
        parts = [buffer[:count] for buffer, count in zip(buffers, counts, strict=True)]
        buffers = [buffer[count:] for buffer, count in zip(buffers, counts, strict=True)]
        parts = [part for part in parts if len(part)]
        yield sort_entries(_join(parts)) if len(parts) > 1 else parts[0]


class RunWriter:
    """Cuts sorted entries into blocks and stores them; the last block comes with the manifest."""

    def __init__(self, store: RunStore, run_id: int) -> None:
        self._store = store
        self._run_id = run_id
        self._carry = b""
        self._low = LOW_MIN
        self._last_key = b""
        self.entries = 0

    def put(self, entries: Entries) -> None:
        """Store all whole blocks so far, durably. One is held back: its range ends at the next one's key."""
        assert len(entries)
        assert self._last_key < _key(entries, 0), "a run is sorted and has no key twice"
        self._last_key = _key(entries, -1)
        self.entries += len(entries)
        data = self._carry + entries.tobytes()
        size = BLOCK_ENTRIES_MAX * ENTRY_BYTES
        blocks: list[Block] = []
        at = 0
        while len(data) - at > size:
            high = data[at + size : at + size + KEY_BYTES]
            blocks.append(encode_block(self._run_id, self._low, high, data[at : at + size]))
            self._low = high
            at += size
        self._carry = data[at:]
        if blocks:
            self._store.write(blocks)

    def finish(self, manifest: bytes) -> None:
        """Store the last block and, in the same transaction, the manifest that makes the run live."""
        blocks = []
        if self._carry:
            blocks.append(encode_block(self._run_id, self._low, None, self._carry))
        self._store.write(blocks, manifest)


def take_entries(keys_to_fingerprints: Mapping[bytes, bytes]) -> Iterator[Entries]:
    """Sorted parts of at most SORT_KEYS_MAX of the dict's entries. The dict must not change meanwhile."""
    keys = iter(keys_to_fingerprints)
    fingerprints = iter(keys_to_fingerprints.values())
    left = len(keys_to_fingerprints)
    while left:
        part = np.empty((min(left, SORT_KEYS_MAX), ENTRY_BYTES), dtype=np.uint8)
        for at in range(0, len(part), JOIN_KEYS_MAX):
            count = min(JOIN_KEYS_MAX, len(part) - at)
            joined_keys = b"".join(islice(keys, count))
            assert len(joined_keys) == count * KEY_BYTES
            rows = part[at : at + count]
            rows[:, :KEY_BYTES] = np.frombuffer(joined_keys, np.uint8).reshape(count, -1)
            rows[:, KEY_BYTES:] = _first_bytes(list(islice(fingerprints, count)))
        left -= len(part)
        yield sort_entries(part.reshape(-1).view(ENTRY))


class FedKeys:
    """Many keys in memory, with their fingerprints: concatenated columns, and no object per key."""

    __slots__ = ("_fingerprints", "_keys")

    def __init__(self) -> None:
        self._keys, self._fingerprints = bytearray(), bytearray()

    @property
    def count(self) -> int:
        """How many keys they are."""
        return len(self._keys) // KEY_BYTES

    def add(self, keys: bytes, fingerprints: bytes) -> None:
        """Concatenated keys and as many fingerprints, of one length in all calls."""
        assert len(keys) % KEY_BYTES == 0
        self._keys += keys
        self._fingerprints += fingerprints

    def sorted_parts(self) -> Iterator[Entries]:
        """All of them as one sorted part: what takes long is numpy's, and leaves the interpreter to others."""
        yield sort_entries(self._joined())

    def as_recent(self) -> dict[bytes, bytes]:
        """As a dict, in the order they were added."""
        return dict(_ENTRY.iter_unpack(self._joined().tobytes()))

    def _joined(self) -> Entries:
        """Side by side, in the order they were added."""
        table = np.empty((self.count, ENTRY_BYTES), dtype=np.uint8)
        if self.count:
            table[:, :KEY_BYTES] = np.frombuffer(self._keys, np.uint8).reshape(self.count, -1)
            column = np.frombuffer(self._fingerprints, np.uint8).reshape(self.count, -1)
            assert column.shape[1] >= FINGERPRINT_BYTES
            table[:, KEY_BYTES:] = column[:, :FINGERPRINT_BYTES]
        return table.reshape(-1).view(ENTRY)


def _first_bytes(fingerprints: list[bytes]) -> npt.NDArray[np.uint8]:
    """What the runs keep of each fingerprint. Nearly always all are of one length: live ones, or recovery's."""
    lengths = set(map(len, fingerprints))
    width = lengths.pop() if len(lengths) == 1 else FINGERPRINT_BYTES
    if lengths:
        fingerprints = [one[:FINGERPRINT_BYTES] for one in fingerprints]
    table = np.frombuffer(b"".join(fingerprints), np.uint8).reshape(len(fingerprints), width)
    assert width >= FINGERPRINT_BYTES
    return table[:, :FINGERPRINT_BYTES]


def flush_steps(
    store: RunStore,
    manifest: Manifest,
    sorted_parts: Iterator[Entries],
    keys_count: int,
    position: int,
    *,
    run_id: int,
    key_filter: KeyFilter | None,
    growing: KeyFilter | None = None,
) -> Steps:
    """Write the sealed keys as a run of tier 0 and move the watermark to `position`, in one transaction.

    `sorted_parts` are all of them, `keys_count` together. They go into the filter, were it full, and into the one that is
    being filled to take its place.
    """
    sources: list[ArraySource] = []
    for part in sorted_parts:
        sources.append(ArraySource(part))
        yield
    keys_after = sum(run.entries for run in manifest.runs) + keys_count
    if keys_count and key_filter is None:
        key_filter = KeyFilter(keys_after)
        yield from filter_steps(store, manifest.runs, key_filter)
    writer = RunWriter(store, run_id)
    for entries in merge_sources(sources):
        assert key_filter is not None
        # Before the run is visible: the owner asks this filter already, and may only get a wrong "maybe".
        key_filter.add(entries)
        if growing is not None:
            growing.add(entries)
        writer.put(entries)
        yield
    runs = manifest.runs
    if writer.entries:
        runs = (*runs, RunInfo(run_id, 0, writer.entries))
    after = manifest._replace(watermark=position, next_run_id=run_id + 1, runs=runs)
    writer.finish(encode_manifest(after))
    return Merged(after, key_filter)


def compact_steps(
    store: RunStore, inputs: Sequence[RunInfo], run_id: int, current: Callable[[], Manifest]
) -> Steps:
    """Merge adjacent runs of a tier, oldest first, into one of the next, and take their place in `current`."""
    writer = RunWriter(store, run_id)
    for entries in merge_sources([RunSource(store, run) for run in inputs]):
        writer.put(entries)
        yield
    manifest = current()
    at = manifest.runs.index(inputs[0])
    assert manifest.runs[at : at + len(inputs)] == tuple(inputs)
    output = RunInfo(run_id, inputs[0].tier + 1, writer.entries)
    after = manifest._replace(
        next_run_id=max(manifest.next_run_id, run_id + 1),
        runs=(*manifest.runs[:at], output, *manifest.runs[at + len(inputs) :]),
    )
    writer.finish(encode_manifest(after))
    return Merged(after, None)


def filter_steps(store: RunStore, runs: Sequence[RunInfo], into: KeyFilter) -> Steps:
    """Add every key of the runs to the filter, checking every block. Raises IndexDamaged."""
    for run in runs:
        source = RunSource(store, run, blocks_max=SCAN_BLOCKS)
        while len(entries := source.read()):
            into.add(entries)
            yield
    return None


def drain_steps(keys_to_fingerprints: dict[bytes, bytes]) -> Steps:
    """Empty the dict a little at a time."""
    while keys_to_fingerprints:
        for _ in range(min(DRAIN_KEYS, len(keys_to_fingerprints))):
            keys_to_fingerprints.popitem()
        yield
    return None


def collect_steps(store: RunStore, run_ids: Sequence[int]) -> Steps:
    """Delete all blocks of the runs."""
    for run_id in run_ids:
        while store.delete(run_id, blocks_max=DELETE_BLOCKS):
            yield
    return None


def _join(parts: Sequence[Entries]) -> Entries:
    """One after the other. As raw bytes: concatenating records turns them into the machine's byte order."""
    return np.concatenate([part.view(_RAW) for part in parts]).view(ENTRY)


def _key(entries: Entries, at: int) -> bytes:
    entry: bytes = entries[at].tobytes()
    return entry[:KEY_BYTES]


def _count_up_to(entries: Entries, limit: bytes) -> int:
    """How many leading entries have a key <= limit."""
    high = entries["high"].astype(np.uint64)
    leading = np.uint64(int.from_bytes(limit[:8], "big"))
    start = int(np.searchsorted(high, leading, side="left"))
    stop = int(np.searchsorted(high, leading, side="right"))
    # Between them the leading halves are equal: their trailing halves are in order too.
    low = entries["low"][start:stop].astype(np.uint64)
    trailing = np.uint64(int.from_bytes(limit[8:], "big"))
    return start + int(np.searchsorted(low, trailing, side="right"))


def _damaged(what: str) -> IndexDamaged:
    return IndexDamaged(
        f"The key index is damaged: {what}. It is rebuilt from the log at the next start."
    )
