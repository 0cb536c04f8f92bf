"""The indexer: follows the log and keeps what makes the listing of events and the history of usage fast.

Rules it keeps: it never holds up the writer: `feed` keeps references, and when too much waits it is dropped and read
from the log later; a chunk and the watermark that covers it are one durable write; what does not fit the log (another
log, another epoch, a watermark beyond its end, damage) is wiped and rebuilt from it; a disk that can't be written is
shown, tried again with backoff, and never touches ingest. Readers see all that was acknowledged before they asked.
It must not know LMDB or HTTP, nor how an answer is found (`engine.actors.index_reader`).

An event passes through: *pending* columns, as they were fed; a *segment* in memory, once a reader asks; a *chunk* on
disk, when there are CHUNK_EVENTS. Without readers there are no segments in between: a chunk is then built of all its
events at once, in a thread, which is the cheapest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import msgspec
import structlog
import trio

from engine.actors.event_counts import count_events
from engine.actors.event_records import batch_of, batches_of
from engine.actors.extents_before import extents_before
from engine.actors.group import Group
from engine.actors.index_reader import Sources, list_events, usage_history
from engine.core.extents import VERSION, ChunkExtent, Extent, OpenExtent, encode_chunk
from engine.core.queries import EventsPage, EventsQuery, HistoryQuery, HistoryResult
from engine.core.records import RecordError
from engine.core.segments import Batch, Segment, build, merge, with_names
from engine.core.summaries import Summary, decode_summary
from engine.errors import StartRefused, Unavailable
from engine.ports import RunBlocking
from wal.cells import CellsDamaged, CellStore, CellStoreError
from wal.log import Log, LogDamaged, LogError

CHUNK_EVENTS: Final = 65_536
CHUNK_POSITIONS_MAX: Final = 4 * CHUNK_EVENTS
"""A chunk also ends here, so that a start need not read more, however few of the records are events."""
SEGMENT_EVENTS: Final = 8_192
"""Built in one go on the actors' thread: about 3 ms."""
OPEN_EVENTS_MAX: Final = 4 * CHUNK_EVENTS
"""Events in memory that wait for the disk; beyond it they are read from the log again."""
_PAGE_BYTES: Final = 4 << 20
_HEADS_PER_READ: Final = 256
_WAIT_SECONDS_MAX: Final = 5.0
_TRIES_MAX: Final = 3
"""Of one answer, while the index is thrown away and built anew under it."""
_RETRY_SECONDS_MIN: Final = 0.5
_RETRY_SECONDS_MAX: Final = 60.0
ResultT = TypeVar("ResultT")
_logger = structlog.get_logger("stripemeter.index")


class _Manifest(msgspec.Struct, frozen=True):
    """What the store's chunks are of."""

    version: int
    log_id: bytes
    epoch: int
    watermark: int
    """Every event before it is in a chunk."""
    chunks: int


class Indexer:
    """One task: fed by the writer, asked by the gateway."""

    def __init__(
        self,
        log: Log,
        cells: CellStore,
        log_id: bytes,
        run_blocking: RunBlocking,
        *,
        chunk_events: int = CHUNK_EVENTS,
    ) -> None:
        """Make it before the first group is published: from the log's present end on it is fed."""
        self._log = log
        self._cells = cells
        self._log_id = log_id
        self._epoch = log.head().epoch
        self._run_blocking = run_blocking
        self._chunk_events = chunk_events
        self._fed = log.head().next_sequence
        self._position: int | None = None
        """Everything before it is indexed; None until the store was read."""
        self._advanced = trio.Event()
        self._wake = trio.Event()
        self._idle = trio.Event()
        """Set when `run` finds nothing to do."""
        self._chunks: list[Extent] = []
        self._unwritten: OpenExtent | None = None
        """A chunk that is on its way to the disk."""
        self._sealing: trio.Event | None = None
        """While pending events are being built into a chunk; set when they can be read again."""
        self._segments: list[OpenExtent] = []
        self._pending: deque[Batch] = deque()
        self._pending_events = 0
        self._open_from = 0
        self._built_to = 0
        """Everything before it is in a chunk or a segment."""
        self._damage: CellsDamaged | None = None
        self._times_anew = 0
        self.last_error: str | None = None
        """Why the index can't be kept now; None while it can. Shown in readiness."""
        self.rebuilt_because: str | None = None
        """Why the stored index was thrown away at start or later; None if it was not."""

    # Following.

    def feed(self, group: Group, next_sequence: int) -> None:
        """A group is published; the log ends at `next_sequence` now. Call it for each group, in order. Cheap."""
        fed_before, self._fed = self._fed, next_sequence
        position = self._position
        if position is None or fed_before > position or self._is_full(group.events):
            self._wake.set()  # it is behind, and reads from the log
            return
        if next_sequence <= position:
            return  # it was ahead: it read the log's end before it was told
        sequence = group.first_sequence
        for part in group.parts:
            self._pending.append(batch_of(part, sequence, group.received_at_us))
            sequence += part.event_count
        self._pending_events += group.events
        self._advance(next_sequence)
        if self._is_chunk_due():
            self._wake.set()

    def forget(self, because: str) -> None:
        """Throw the index away and build it again from the log: what it holds was erased there."""
        self._damage = CellsDamaged(because)
        self._wake.set()

    @property
    def lag(self) -> int:
        """How many positions of what was published are not indexed yet."""
        return max(0, self._fed - (self._position or 0))

    async def settled(self) -> None:
        """Wait until nothing is due: all of the log is indexed, and every full chunk is on the disk."""
        while self.lag or self._position is None or self._unwritten or self._is_chunk_due():
            await self._idle.wait()

    def _advance(self, position: int) -> None:
        self._position = position
        self._advanced.set()
        self._advanced = trio.Event()

    def _is_full(self, more: int) -> bool:
        # A chunk's worth of room is always there for one group, else a large one could never be taken.
        return self._open_events() > 0 and self._open_events() + more > OPEN_EVENTS_MAX

    def _open_events(self) -> int:
        unwritten = self._unwritten.summary.event_count if self._unwritten else 0
        built = sum(extent.summary.event_count for extent in self._segments)
        return unwritten + built + self._pending_events

    def _is_chunk_due(self) -> bool:
        if self._unwritten is not None or self._position is None:
            return False
        return (
            self._open_events() >= self._chunk_events
            or self._position - self._open_from >= CHUNK_POSITIONS_MAX
        )

    async def run(self) -> None:
        """Follow the log until cancelled."""
        delay_seconds = _RETRY_SECONDS_MIN
        while True:
            try:
                await self._follow()
            except CellsDamaged as error:
                self._damage = error
                self.last_error = str(error)
            except (CellStoreError, LogError, RecordError) as error:
                if self.last_error is None:
                    _logger.warning("index_not_kept", error=str(error))
                self.last_error = str(error)
                await trio.sleep(delay_seconds)
                delay_seconds = min(_RETRY_SECONDS_MAX, 2 * delay_seconds)
                continue
            delay_seconds = _RETRY_SECONDS_MIN

    async def _follow(self) -> None:
        """Do what is due and wait for more. Raises CellStoreError, LogError."""
        if self._damage is not None:
            await self._start_anew(str(self._damage))
        if self._position is None:
            await self._load()
        assert self._position is not None
        if self._unwritten is not None:
            await self._write(self._unwritten)
        elif self._is_chunk_due():
            await self._close_chunk()
        elif self._position < self._fed:
            await self._read_page(self._position)
        else:
            self.last_error = None
            self._wake = trio.Event()
            self._idle.set()
            self._idle = trio.Event()
            await self._wake.wait()

    async def _read_page(self, position: int) -> None:
        """Take in some records from the log: the feed was dropped, or began later."""
        batches, next_position = await self._run_blocking(
            partial(_batches_from, self._log, position)
        )
        self._pending.extend(batches)
        self._pending_events += sum(len(batch.metrics) for batch in batches)
        self._advance(max(next_position, self._fed) if next_position == position else next_position)

    # Chunks.

    async def _close_chunk(self) -> None:
        """Make one chunk of everything in memory."""
        assert self._position is not None
        assert self._unwritten is None
        from_position, to_position = self._open_from, self._position
        segments = [extent.segment for extent in self._segments]
        batches = list(self._pending)
        self._segments, self._pending, self._pending_events = [], deque(), 0
        self._sealing = trio.Event()
        try:
            if segments or batches:
                whole = await self._run_blocking(
                    partial(_united, segments, batches, (from_position, to_position))
                )
                self._unwritten = OpenExtent(whole)
            self._open_from = self._built_to = to_position
        finally:
            self._sealing.set()
            self._sealing = None
        if self._unwritten is None:
            await self._run_blocking(partial(self._cells.write, 0, (), self._manifest(0)))

    async def _write(self, extent: OpenExtent) -> None:
        number = len(self._chunks)
        await self._run_blocking(partial(self._store, number, extent.segment))
        if self._damage is None:
            self._chunks.append(self._chunk(number, extent.summary))
            self._unwritten = None
            self.last_error = None

    def _store(self, number: int, segment: Segment) -> None:
        """In a thread: write a chunk and the manifest that counts it."""
        self._cells.write(number, encode_chunk(segment), self._manifest(1))

    def _manifest(self, more: int) -> bytes:
        return msgspec.msgpack.encode(
            _Manifest(VERSION, self._log_id, self._epoch, self._open_from, len(self._chunks) + more)
        )

    def _chunk(self, number: int, summary: Summary) -> ChunkExtent:
        def read(first: int, count: int) -> list[bytes]:
            return self._cells.read(number, first, count)

        return ChunkExtent(summary, read)

    async def _load(self) -> None:
        """Take up what the store holds, if it is of this log."""
        if self._cells.wiped_because is not None:
            self.rebuilt_because = self._cells.wiped_because
        manifest, summaries = await self._run_blocking(self._stored)
        self._chunks = [self._chunk(number, summary) for number, summary in enumerate(summaries)]
        self._open_from = self._built_to = manifest.watermark
        self._advance(manifest.watermark)

    def _stored(self) -> tuple[_Manifest, list[Summary]]:
        """In a thread: the manifest and the summaries of all chunks. Raises CellsDamaged if they don't fit."""
        data = self._cells.manifest()
        if data is None:
            return _Manifest(VERSION, self._log_id, self._epoch, 0, 0), []
        try:
            manifest = msgspec.msgpack.decode(data, type=_Manifest)
        except msgspec.MsgspecError as error:
            raise CellsDamaged("the usage index is of another version") from error
        found = (manifest.version, manifest.log_id, manifest.epoch)
        if found != (VERSION, self._log_id, self._epoch):
            raise CellsDamaged("the usage index is of another version, log or epoch")
        if manifest.watermark > self._log.head().next_sequence:
            raise CellsDamaged("the usage index is ahead of the log")
        summaries: list[Summary] = []
        while len(summaries) < manifest.chunks:
            count = min(_HEADS_PER_READ, manifest.chunks - len(summaries))
            heads = self._cells.heads(len(summaries), chunks_max=count)
            if len(heads) != count:
                raise CellsDamaged(
                    f"chunk {len(summaries) + len(heads)} of the usage index is missing"
                )
            summaries.extend(map(decode_summary, heads))
        return manifest, summaries

    async def wipe_if_unfit(self) -> None:
        """Instead of `run`, where the log grows and is not indexed: what does not fit the log now might fit it then.

        Raises StartRefused.
        """
        try:
            try:
                await self._run_blocking(self._stored)
            except CellsDamaged as error:
                await self._start_anew(str(error))
        except CellStoreError as error:
            raise StartRefused(f"the usage index can't be read or wiped: {error}") from error

    async def _start_anew(self, because: str) -> None:
        """Throw the index away; it is then rebuilt from the log."""
        _logger.warning("index_rebuilt", because=because)
        self.rebuilt_because = because
        self._position = None
        self._chunks, self._segments, self._unwritten = [], [], None
        self._pending, self._pending_events = deque(), 0
        await self._run_blocking(self._cells.wipe)
        self._times_anew += 1
        self._damage = None

    # Reading.

    async def events(self, query: EventsQuery) -> EventsPage:
        """One page of the listing. See `engine.core.queries`. Raises Refused or Unavailable."""
        return await self._answer(partial(list_events, query), query.as_of)

    async def history(
        self, query: HistoryQuery, aggregation_at: Callable[[int], str]
    ) -> HistoryResult:
        """Usage in buckets of time. See `engine.core.queries`. Raises Refused or Unavailable."""
        return await self._answer(partial(usage_history, query, aggregation_at), query.as_of)

    async def extents(self) -> list[Extent]:
        """The index of everything acknowledged before the call, in log order. Raises Unavailable."""
        return await self._extents()

    async def counts(
        self, tenant: str, metrics: frozenset[str] | None, start_us: int, end_us: int
    ) -> dict[str, int]:
        """Events of a range of event time by metric. See `engine.actors.event_counts`. Raises Unavailable."""
        return await self._answer(partial(count_events, tenant, metrics, start_us, end_us), None)

    async def _answer(
        self, ask: Callable[[Sources], Awaitable[ResultT]], as_of: int | None
    ) -> ResultT:
        """What `ask` finds in one index: chunks go by numbers, which mean other events once it is built anew."""
        for _ in range(_TRIES_MAX):
            extents = await self._extents()
            times_anew = self._times_anew
            try:
                found = await self._ask(ask, extents, as_of, times_anew)
            except Exception:
                if times_anew == self._times_anew:
                    raise
            else:
                if times_anew == self._times_anew:
                    return found
        raise Unavailable("the usage index was built anew meanwhile; retry", retry_after_seconds=5)

    async def _ask(
        self,
        ask: Callable[[Sources], Awaitable[ResultT]],
        extents: list[Extent],
        as_of: int | None,
        times_anew: int,
    ) -> ResultT:
        try:
            if as_of is not None:
                extents = await extents_before(extents, as_of, self._log, self._run_blocking)
            return await ask(Sources(extents, self._log, self._run_blocking))
        except CellsDamaged as error:
            # Of what was thrown away meanwhile nothing can be said; what is kept now is damaged.
            if times_anew == self._times_anew and self._damage is None:
                self._damage = error
                self._wake.set()
            message = f"the usage index is damaged and is being rebuilt ({error}); retry"
            raise Unavailable(message, retry_after_seconds=5) from error
        except (CellStoreError, LogError, RecordError) as error:
            raise Unavailable(f"events can't be read: {error}") from error

    async def caught_up(self, position: int) -> None:
        """Wait until everything before a position is indexed. Raises Unavailable when that takes too long."""
        with trio.move_on_after(_WAIT_SECONDS_MAX):
            while self._position is None or self._position < position or self._damage is not None:
                await self._advanced.wait()
            return
        why = self.last_error or f"{self.lag} positions of the log are still to be indexed"
        raise Unavailable(
            f"the usage index is not up to date ({why}); retry", retry_after_seconds=5
        )

    async def _extents(self) -> list[Extent]:
        """Everything acknowledged before the call, in log order."""
        target = self._fed
        while True:
            # After each wait: what was there may have been thrown away meanwhile.
            await self.caught_up(target)
            if self._sealing is not None:
                await self._sealing.wait()
            elif self._built_to < target:
                self._build_segment()
                await trio.lowlevel.checkpoint()
            else:
                unwritten = [] if self._unwritten is None else [self._unwritten]
                return [*self._chunks, *unwritten, *self._segments]

    def _build_segment(self) -> None:
        """Move some pending events into a segment."""
        batches: list[Batch] = []
        room = SEGMENT_EVENTS
        while self._pending and room > 0:
            batch = self._pending.popleft()
            if len(batch.metrics) > room:
                self._pending.appendleft(_cut(batch, room, None))
                batch = _cut(batch, 0, room)
            batches.append(batch)
            room -= len(batch.metrics)
        self._pending_events -= SEGMENT_EVENTS - room
        assert self._position is not None
        end = self._pending[0].first_sequence if self._pending else self._position
        if batches:
            self._segments.append(OpenExtent(build(batches, self._built_to, end)))
        self._built_to = end
        # Many readers make many small segments: each is merged while the one before is no larger than twice it.
        while len(self._segments) >= 2:
            before, last = (extent.segment for extent in self._segments[-2:])
            events = before.summary.event_count, last.summary.event_count
            if events[0] > 2 * events[1] or sum(events) > SEGMENT_EVENTS:
                break
            self._segments[-2:] = [OpenExtent(merge([before, last]))]


def _cut(batch: Batch, first: int, end: int | None) -> Batch:
    which = slice(first, end)
    return Batch(
        batch.tenant,
        batch.metrics[which],
        batch.customers[which],
        batch.micros[which],
        batch.times_us[which],
        batch.sources[which],
        batch.first_sequence + first,
        batch.received_at_us,
    )


def _united(
    segments: Sequence[Segment], batches: Sequence[Batch], positions: tuple[int, int]
) -> Segment:
    """In a thread: one segment with a name filter, of all these."""
    parts = list(segments)
    if batches:
        parts.append(build(batches, *positions))
    whole = with_names(merge(parts) if len(parts) > 1 else parts[0])
    summary = whole.summary._replace(from_position=positions[0], to_position=positions[1])
    return whole._replace(summary=summary)


def _batches_from(log: Log, position: int) -> tuple[list[Batch], int]:
    """In a thread: the events of the log's next page, and where it ends. Raises LogDamaged."""
    batches: list[Batch] = []
    for record in log.read(position, bytes_max=_PAGE_BYTES):
        try:
            batches.extend(batches_of(record))
        except RecordError as error:
            raise LogDamaged(
                f"record {record.sequence} can't be read: {error}", record.sequence
            ) from error
        position = record.next_sequence
    return batches, position
