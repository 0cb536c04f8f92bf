"""An import from its files to its report: reads chunks, has them taken, keeps how far it is, sums up.

Rules it keeps: progress is noted only for rows that were acknowledged, in the order of the file, so that who goes on
passes over nothing; several chunks are on their way at once, but a bounded number; whatever a row's fate, it is
counted once in the report. It must not know whether rows go into a directory or to a server (gateway.import_targets).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

import msgspec
import trio

from engine.core.operations import ROW_ERRORS_MAX, Progress, RowError
from engine.core.sent_rows import SentRow
from engine.ports import Clock
from gateway.row_files import Chunk, Cursor, RowFile

NOTE_US: Final = 2_000_000
"""How often progress is noted: what a killed import does again, at most, plus what was on its way."""


EARLIER: Final = "(an earlier run)"


class Outcome(NamedTuple):
    """What became of a chunk's rows."""

    new: int = 0
    late: int = 0
    """Of the new ones."""
    duplicates: int = 0
    errors: Sequence[RowError] = ()


class Sending(Protocol):
    """Rows on their way."""

    async def settled(self) -> Outcome:
        """Wait until they are durable and counted. Raises EngineError when that can't be had."""
        ...


class Begun(NamedTuple):
    """An import that may be gone on with: where the last one stopped, and its counts."""

    operation_id: str
    cursor: bytes
    processed: int
    failed: int
    errors: Sequence[RowError] = ()
    """Why rows failed, as far as it is kept."""


class Target(Protocol):
    """Where rows go."""

    at_once: int
    """Chunks on their way at the same time."""

    async def begin(self, identity: str) -> Begun:
        """Begin an import of these files, or find the open one."""
        ...

    async def send(self, rows: Sequence[SentRow], *, nul: bool) -> Sending:
        """Hand rows over; waits while too many are on their way. `nul`: a name may hold U+0000."""
        ...

    async def note(self, progress: Progress) -> None:
        """Keep how far it is."""
        ...

    async def finish(self, progress: Progress) -> None:
        """End the import."""
        ...


class Report(msgspec.Struct, rename="camel"):
    """What came of an import, or (a dry run) would come of it."""

    dry_run: bool = False
    operation_id: str | None = None
    rows: int = 0
    new: int = 0
    late: int = 0
    duplicates: int = 0
    failed: int = 0
    passed_over: int = 0
    """Rows that an earlier run of the same import had done."""
    failed_before: int = 0
    """Of those: refused by that run, and still not counted."""
    errors: list[tuple[str, int, str]] = []
    """(file, line, error) of the first ROW_ERRORS_MAX rows that failed."""
    seconds: float = 0


class Files:
    """The files of one import, and which they are."""

    def __init__(self, files: Sequence[RowFile], salt: str) -> None:
        """`salt`: what else makes an import another one."""
        self.files = files
        names = "\0".join([salt, *(file.identity for file in files)])
        self.identity = blake2b(names.encode(), digest_size=16).hexdigest()
        self.bytes_total = sum(file.size_bytes for file in files)

    def bytes_read(self, chunk: Chunk) -> int:
        """Of all files, up to a chunk that was just read."""
        before = sum(file.size_bytes for file in self.files[: chunk.after.file])
        return before + self.files[chunk.after.file].read_bytes()

    def close(self) -> None:
        """Let all files go."""
        for file in self.files:
            file.close()

    def chunks(self, start: Cursor) -> Iterator[Chunk]:
        """All rows after a cursor. Raises FileRefused."""
        for file in self.files[start.file :]:
            yield from file.chunks(start if file.number == start.file else Cursor(file.number))


_encode_cursor = msgspec.msgpack.Encoder().encode
_decode_cursor = msgspec.msgpack.Decoder(Cursor).decode


class _OnItsWay(NamedTuple):
    chunk: Chunk
    sending: Sending
    bytes_read: int


class Import:
    """One run of an import."""

    def __init__(
        self,
        files: Files,
        target: Target,
        clock: Clock,
        *,
        on_progress: Callable[[Report, int], None],
        on_error: Callable[[str, int, str], None],
    ) -> None:
        """`on_progress(report so far, bytes read)` after each chunk; `on_error(file, line, error)` for each bad row."""
        self._files = files
        self._target = target
        self._clock = clock
        self._on_progress = on_progress
        self._on_error = on_error
        self.report = Report()
        self._before = Begun("", b"", 0, 0)
        self._noted_us = 0
        self._new_errors: list[RowError] = []

    async def run(self) -> Report:
        """Take all files. Raises EngineError; what was acknowledged stays, and a second run goes on there."""
        started_us = self._clock.monotonic_us()
        self._before = await self._target.begin(self._files.identity)
        report = self.report
        report.operation_id = self._before.operation_id or None
        start = _cursor_of(self._before.cursor, len(self._files.files))
        report.passed_over = self._before.processed if start != Cursor() else 0
        if report.passed_over:
            report.failed_before = self._before.failed
            self._tell_of_before()
        else:
            self._before = self._before._replace(processed=0, failed=0)
        self._noted_us = started_us
        chunks = self._files.chunks(start)
        window: deque[_OnItsWay] = deque()
        last = start
        while chunk := await trio.to_thread.run_sync(partial(next, chunks, None)):
            sending = await self._target.send(chunk.rows, nul=chunk.nul)
            window.append(_OnItsWay(chunk, sending, self._files.bytes_read(chunk)))
            if len(window) >= self._target.at_once:
                last = await self._settle(window.popleft())
                await self._note_if_due(last)
        while window:
            last = await self._settle(window.popleft())
        report.seconds = (self._clock.monotonic_us() - started_us) / 1e6
        await self._target.finish(self._progress(last))
        return report

    def _tell_of_before(self) -> None:
        """Errors of rows that are passed over: the run that found them was interrupted, and perhaps nobody saw them."""
        # Of several files it is not kept which one a line is of.
        name = self._files.files[0].name if len(self._files.files) == 1 else EARLIER
        for error in self._before.errors:
            self.report.errors.append((name, error.line, error.error))
            self._on_error(name, error.line, error.error)

    async def _settle(self, way: _OnItsWay) -> Cursor:
        outcome = await way.sending.settled()
        report = self.report
        report.rows += len(way.chunk.rows)
        report.new += outcome.new
        report.late += outcome.late
        report.duplicates += outcome.duplicates
        report.failed += len(outcome.errors)
        name = self._files.files[way.chunk.after.file].name
        for error in outcome.errors:
            if len(report.errors) < ROW_ERRORS_MAX:
                report.errors.append((name, error.line, error.error))
            self._on_error(name, error.line, error.error)
        self._new_errors += outcome.errors[: ROW_ERRORS_MAX - len(self._new_errors)]
        self._on_progress(report, way.bytes_read)
        return way.chunk.after

    async def _note_if_due(self, cursor: Cursor) -> None:
        now_us = self._clock.monotonic_us()
        if now_us - self._noted_us >= NOTE_US:
            self._noted_us = now_us
            await self._target.note(self._progress(cursor))

    def _progress(self, cursor: Cursor) -> Progress:
        errors, self._new_errors = self._new_errors, []
        return Progress(
            at_us=self._clock.now_us(),
            processed=self._before.processed + self.report.rows,
            failed=self._before.failed + self.report.failed,
            errors=tuple(errors),
            cursor=_encode_cursor(cursor),
        )


def _cursor_of(data: bytes, file_count: int) -> Cursor:
    """The cursor that was noted; the beginning, when none was or it is not of these files."""
    if not data:
        return Cursor()
    try:
        cursor = _decode_cursor(data)
    except msgspec.MsgspecError:
        return Cursor()
    return cursor if 0 <= cursor.file < file_count else Cursor()
