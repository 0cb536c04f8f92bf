"""Operations that take longer than a request: backfills, run here one at a time, and imports, sent by a command.

Rules it keeps: every step is a record (asked for, began, so far, ended), so a restart goes on where the log says and an
operation that ended never runs again; a chunk of rows is durable and counted before it is passed over, and rows have
keys, so a chunk that is sent twice around a crash counts once; live events come first: chunks are small, and wait for
their commit. Rows are marked with their operation and judged by the watermarks at its start.
It must not know HTTP, nor how a row is read (engine.core.sent_rows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

import msgspec
import structlog
import trio

from engine.actors.group import Marks
from engine.actors.log_writer import CONFLICT, DUPLICATE, LogWriter
from engine.actors.shard import Shard
from engine.core.configured import Change
from engine.core.events import KEY_REUSED, EventLimits, Refusal
from engine.core.operations import (
    BACKFILL,
    ERROR_CHARS_MAX,
    IMPORT,
    OPERATIONS_OPEN_MAX,
    ROW_ERRORS_MAX,
    Asked,
    Operation,
    Operations,
    Progress,
    RowError,
    payload_of,
)
from engine.core.records import OperationChange
from engine.core.sent_rows import (
    SOURCE_OF_BACKFILL,
    HeaderRefused,
    Meant,
    SentRow,
    lines_of,
    rows_of_csv,
    rows_of_list,
    taken,
)
from engine.errors import Conflict, EngineError, NotFound, Unavailable
from engine.limits import QUEUE_EVENTS_MAX
from engine.ports import Clock, Ids

CHUNK_ROWS: Final = 1_000
SLICE_ROWS: Final = 100
"""Rows read in one turn of the event loop: half a millisecond that a live event may wait."""
OPEN_ROWS_BYTES_MAX: Final = 64 << 20
"""What was sent for backfills that wait, in memory."""
IMPORTS_OPEN_MAX: Final = 8
"""Each keeps the watermarks at its start."""
IMPORT_IDLE_US_MAX: Final = 24 * 3600 * 1_000_000
"""An import that nobody goes on with for a day is ended: it would hold its watermarks for ever."""
CANCEL_SECONDS_MAX: Final = 10.0
_PAUSE_SECONDS: Final = (0.05, 0.2, 1.0, 5.0)
_LOOK_SECONDS: Final = 60.0
_ROW_BYTES: Final = 300
"""What a row is taken to weigh in the writer's queue."""
_ID_RANDOM_BYTES: Final = 8
_logger = structlog.get_logger("stripemeter.operations")

assert QUEUE_EVENTS_MAX > 2 * CHUNK_ROWS


class OperationRunner:
    """Asks for, runs and ends operations. One per meter."""

    def __init__(
        self,
        operations: Callable[[], Operations],
        writer: LogWriter,
        shards: Sequence[Shard],
        *,
        clock: Clock,
        ids: Ids,
        limits: Callable[[], EventLimits],
    ) -> None:
        """`operations()` is the fold of what this appends."""
        self._operations = operations
        self._writer = writer
        self._shards = shards
        self._clock = clock
        self._ids = ids
        self._limits = limits
        self.asking = trio.Lock()
        """Held from a check to the record that it allows. While it is free, every operation is in `operations`."""
        self._wake = trio.Event()
        self._cancelling: set[str] = set()
        self._ended = trio.Event()
        self._sending: dict[str, int] = {}
        """Requests that are sending rows of an import just now."""
        self._ending: set[str] = set()
        self._sent = trio.Event()
        self.rows = {"accepted": 0, "duplicate": 0, "failed": 0}
        """Rows of backfills since the start, by result."""

    # Asking.

    def find(self, operation_id: str, tenant: str | None, kind: str) -> Operation:
        """An operation of a tenant (None: of any). Raises NotFound, also for another tenant's."""
        found = self._operations().by_id.get(operation_id)
        if found is None or found.kind != kind or tenant not in (None, found.tenant_id):
            raise NotFound(f"there is no {kind} {operation_id}")
        return found

    def counted(self, operation: Operation) -> tuple[int, int]:
        """(rows taken, of them late) so far."""
        if operation.accepted is not None:
            return operation.accepted, operation.late or 0
        found = [shard.state.counted_of(operation.id) for shard in self._shards]
        return sum(taken for taken, _ in found), sum(late for _, late in found)

    async def ask_backfill(
        self, tenant: str, asked: Asked, rows: bytes, change: Change
    ) -> Operation:
        """Record that a backfill is wanted; it runs when those before it are done. Raises Unavailable."""
        async with self.asking:
            waiting = self._operations().open()
            held = sum(len(one.rows) for one in waiting)
            if len(waiting) >= OPERATIONS_OPEN_MAX or held + len(rows) > OPEN_ROWS_BYTES_MAX:
                raise Unavailable(
                    "too many backfills wait for their turn; retry when one has ended",
                    retry_after_seconds=10,
                )
            record = self._created(BACKFILL, tenant, asked, change, rows)
            await self._writer.append_control(record)
            self._wake.set()
            return self._operations().by_id[record.operation_id]

    async def start_import(self, tenant: str, asked: Asked, change: Change) -> Operation:
        """The open import of the same files, to be gone on with, else a new one that has begun.

        `tenant` empty: rows of any tenant. Raises Conflict when too many are open.
        """
        async with self.asking:
            waiting = [one for one in self._operations().open() if one.kind == IMPORT]
            for one in waiting:
                same = (one.tenant_id, one.asked.historic, one.asked.identity)
                if asked.identity and same == (tenant, asked.historic, asked.identity):
                    return one
            if len(waiting) >= IMPORTS_OPEN_MAX:
                raise Conflict(f"{IMPORTS_OPEN_MAX} imports are open; finish one of them first")
            created = self._created(IMPORT, tenant, asked, change)
            begun = msgspec.structs.replace(
                created, action="begin", payload=payload_of(Progress(at_us=asked.at_us))
            )
            await self._writer.append_controls((created, begun))
            return self._operations().by_id[created.operation_id]

    def _created(
        self, kind: str, tenant: str, asked: Asked, change: Change, rows: bytes = b""
    ) -> OperationChange:
        return OperationChange(
            action="create",
            operation_id=f"op_{self._ids.token(_ID_RANDOM_BYTES).hex()}",
            tenant_id=tenant,
            kind=kind,
            change=change,
            payload=payload_of(asked),
            rows=rows,
        )

    async def cancel(self, operation: Operation, change: Change) -> None:
        """End a backfill early: at once, or after the chunk that is on its way. What counted stays counted."""
        if not operation.is_open:
            return
        self._cancelling.add(operation.id)
        async with self.asking:
            if operation.status == "pending":
                await self._end(operation, "cancelled", self._progress_of(operation), change)
        self._wake.set()
        with trio.move_on_after(CANCEL_SECONDS_MAX):
            while operation.is_open:
                await self._ended.wait()

    # Imports: the command sends the rows.

    @contextmanager
    def sending(self, operation_id: str, tenant: str | None) -> Iterator[tuple[Operation, Marks]]:
        """The marks for rows of an import that are sent now; it can't end before they are counted.

        Raises NotFound, and Conflict when it has ended.
        """
        operation = self.find(operation_id, tenant, IMPORT)
        if not operation.is_open or operation_id in self._ending:
            raise Conflict(f"import {operation_id} has ended; start another one")
        self._sending[operation_id] = self._sending.get(operation_id, 0) + 1
        try:
            yield operation, Marks(operation_id, operation.asked.historic)
        finally:
            self._sending[operation_id] -= 1
            if not self._sending[operation_id]:
                del self._sending[operation_id]
                self._sent.set()
                self._sent = trio.Event()

    async def note_progress(self, operation: Operation, progress: Progress, change: Change) -> None:
        """Record how far an import has come: every row before its cursor is durable. Raises Conflict."""
        async with self.asking:
            if not operation.is_open:
                raise Conflict(f"import {operation.id} has ended; start another one")
            await self._append(operation, "progress", progress, change)

    async def finish_import(
        self, operation: Operation, status: str, progress: Progress, change: Change
    ) -> None:
        """End an import once what is being sent is counted; a second time changes nothing."""
        assert status in ("completed", "failed", "cancelled")
        self._ending.add(operation.id)
        try:
            async with self.asking:
                while self._sending.get(operation.id):
                    await self._sent.wait()
                if operation.is_open:
                    await self._end(operation, status, progress, change)
        finally:
            self._ending.discard(operation.id)

    # Running.

    async def run(self) -> None:
        """Run backfills in the order they were asked for, until cancelled."""
        while True:
            self._wake = trio.Event()
            waiting = [one for one in self._operations().open() if one.kind == BACKFILL]
            if waiting:
                await self._run_backfill(waiting[0])
                continue
            await self._end_idle_imports()
            with trio.move_on_after(_LOOK_SECONDS):
                await self._wake.wait()

    async def _end_idle_imports(self) -> None:
        now_us = self._clock.now_us()
        for one in self._operations().open():
            is_idle = one.updated_at_us < now_us - IMPORT_IDLE_US_MAX
            if one.kind != IMPORT or not is_idle or self._sending.get(one.id):
                continue
            progress = self._progress_of(one, "nobody went on with it for a day; import again")
            try:
                await self.finish_import(one, "failed", progress, _RUNNER)
            except EngineError as error:
                _logger.warning("import_not_ended", operation=one.id, error=str(error))

    async def _run_backfill(self, operation: Operation) -> None:
        """Run one backfill from where it is to its end; a failing disk is waited for."""
        async with self.asking:
            if not operation.is_open:
                return
            if operation.status == "pending":
                progress = Progress(at_us=self._clock.now_us())
                await self._until_done(lambda: self._append(operation, "begin", progress, _RUNNER))
        status, message = "completed", ""
        try:
            rows = islice(_rows_of(operation), operation.processed, None)
            while chunk := list(islice(rows, CHUNK_ROWS)):
                if operation.id in self._cancelling:
                    status = "cancelled"
                    break
                await self._take_chunk(operation, chunk)
        except (HeaderRefused, msgspec.MsgspecError, UnicodeDecodeError) as error:
            status, message = "failed", str(error)
        last = self._progress_of(operation, message)
        await self._until_done(lambda: self._end(operation, status, last, _RUNNER))
        _logger.info("backfill_ended", operation=operation.id, status=status)

    async def _take_chunk(self, operation: Operation, chunk: Sequence[SentRow]) -> None:
        asked = operation.asked
        meant = Meant(
            operation.tenant_id,
            SOURCE_OF_BACKFILL,
            asked.metric,
            asked.customer_ref,
            asked.period_start_us,
            asked.period_end_us,
        )
        rows: list[tuple[Any, ...]] = []
        lines: list[int] = []
        errors: list[RowError] = []
        now_us = self._clock.now_us()
        for number, (line, event) in enumerate(chunk, 1):
            made = taken(event, meant, now_us, self._limits())
            if isinstance(made, Refusal):
                errors.append(RowError(line, made.error[:ERROR_CHARS_MAX]))
            else:
                rows.append(made[1])
                lines.append(line)
            if number % SLICE_ROWS == 0:
                await trio.lowlevel.checkpoint()
        verdicts: Sequence[int] = ()
        if rows:
            marks = Marks(operation.id, asked.historic)
            verdicts = await self._until_done(lambda: self._offer(operation.tenant_id, rows, marks))
        conflicts = [
            RowError(line, KEY_REUSED)
            for line, verdict in zip(lines, verdicts, strict=True)
            if verdict == CONFLICT
        ]
        errors = sorted(errors + conflicts, key=lambda error: error.line)
        duplicates = sum(verdict == DUPLICATE for verdict in verdicts)
        progress = Progress(
            at_us=now_us,
            processed=operation.processed + len(chunk),
            failed=operation.failed + len(errors),
            errors=tuple(errors[:ROW_ERRORS_MAX]),
        )
        await self._until_done(lambda: self._append(operation, "progress", progress, _RUNNER))
        self.rows["failed"] += len(errors)
        self.rows["duplicate"] += duplicates
        self.rows["accepted"] += len(chunk) - len(errors) - duplicates

    async def _offer(
        self, tenant: str, rows: Sequence[tuple[Any, ...]], marks: Marks
    ) -> Sequence[int]:
        """The rows' verdicts, once they are durable and counted."""
        offer = self._writer.offer(tenant, rows, len(rows) * _ROW_BYTES, marks)
        await offer.settled()
        return offer.verdicts

    async def _until_done(self, step: Callable[[], Any]) -> Any:
        """Do a step again until the log takes it: a full disk or queue is waited for."""
        for attempt in range(1 << 62):
            try:
                return await step()
            except EngineError as error:
                if attempt == 0:
                    _logger.warning("operation_waits", error=str(error))
                await trio.sleep(_PAUSE_SECONDS[min(attempt, len(_PAUSE_SECONDS) - 1)])
        raise AssertionError("it was tried for ever")

    def _progress_of(self, operation: Operation, message: str = "") -> Progress:
        return Progress(
            at_us=self._clock.now_us(),
            processed=operation.processed,
            failed=operation.failed,
            cursor=operation.cursor,
            message=message,
        )

    async def _end(
        self, operation: Operation, status: str, progress: Progress, change: Change
    ) -> None:
        accepted, late = self.counted(operation)
        progress = msgspec.structs.replace(progress, accepted=accepted, late=late)
        await self._append(operation, "end", progress, change, status)
        self._cancelling.discard(operation.id)
        self._ended.set()
        self._ended = trio.Event()

    async def _append(
        self,
        operation: Operation,
        action: Any,
        progress: Progress,
        change: Change,
        status: str = "processing",
    ) -> None:
        record = OperationChange(
            action=action,
            operation_id=operation.id,
            tenant_id=operation.tenant_id,
            kind=operation.kind,
            change=change,
            status=status,
            payload=payload_of(progress),
        )
        await self._writer.append_control(record)


_RUNNER: Final = Change(actor="system:operations")


def _rows_of(operation: Operation) -> Iterator[SentRow]:
    """What was sent, row by row. Raises HeaderRefused, MsgspecError or UnicodeDecodeError when it can't be read."""
    if not operation.rows:
        raise HeaderRefused("what was sent is no longer there: it was erased; send it again")
    if operation.asked.format == "csv":
        return rows_of_csv(lines_of(operation.rows.decode()))
    return rows_of_list(operation.rows)
