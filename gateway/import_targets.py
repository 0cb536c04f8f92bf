"""Where an import's rows go: into a stopped server's directory, by the engine in this process, or nowhere (a dry run).

Rules it keeps: rows take the same checks, the same writer and the same fold as live events, marked with their
operation; a full queue or a key index that catches up is waited for. Through a running server: gateway.import_server.
It must not know files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import structlog
import trio

from engine.actors.dry_run import DryRun
from engine.actors.group import Marks
from engine.actors.log_writer import ACCEPTED, CONFLICT, DUPLICATE, Offer
from engine.actors.supervisor import Meter
from engine.config import Settings
from engine.core.configured import Change
from engine.core.events import KEY_REUSED, EventLimits
from engine.core.operations import ERROR_CHARS_MAX, Asked, Operation, Progress, RowError
from engine.core.rows_in_bulk import Taker
from engine.core.sent_rows import Meant, SentRow
from engine.errors import Unavailable
from gateway import collector
from gateway.data_directory import DataDirectory
from gateway.importing import Begun, Outcome, Sending
from gateway.opening import first_of, open_meter

_ROW_BYTES: Final = 300
_PAUSE_SECONDS: Final = 0.02
_WAIT_SECONDS_MAX: Final = 600.0
_ACTOR: Final = Change(actor="cli")
ResultT = TypeVar("ResultT")


class _Taken:
    """Rows that were offered; `lines` of each tenant's in the order of its offer."""

    def __init__(self, offers: list[tuple[Offer, list[int]]], errors: list[RowError]) -> None:
        self._offers = offers
        self._errors = errors

    async def settled(self) -> Outcome:
        """See Sending."""
        new = late = duplicates = 0
        errors = self._errors
        for offer, lines in self._offers:
            await offer.settled()
            verdicts = offer.verdicts
            new += verdicts.count(ACCEPTED)
            duplicates += verdicts.count(DUPLICATE)
            if CONFLICT in verdicts:
                errors += [
                    RowError(line, KEY_REUSED)
                    for line, verdict in zip(lines, offer.verdicts, strict=True)
                    if verdict == CONFLICT
                ]
            held = offer.own_group.late if offer.own_group is not None else {}
            if held:
                late += sum((offer.part, at) in held for at in offer.positions)
        return Outcome(new, late, duplicates, sorted(errors, key=lambda error: error.line))


class DirectoryTarget:
    """A meter in this process."""

    at_once = 4

    def __init__(self, meter: Meter, meant: Meant, limits: EventLimits, *, historic: bool) -> None:
        self._meter = meter
        self._meant = meant
        self._taker = Taker(meant, limits)
        self._historic = historic
        self._operation: Operation | None = None

    async def begin(self, identity: str) -> Begun:
        """See Target."""
        asked = Asked(at_us=self._meter.clock.now_us(), historic=self._historic, identity=identity)
        runner = self._meter.started.operations
        tenant = self._meant.tenant or ""
        operation = self._operation = await runner.start_import(tenant, asked, _ACTOR)
        return Begun(
            operation.id,
            operation.cursor,
            operation.processed,
            operation.failed,
            tuple(operation.errors),
        )

    async def send(self, rows: Sequence[SentRow], *, nul: bool) -> Sending:
        """See Target."""
        assert self._operation is not None, "begin first"
        now_us = self._meter.clock.now_us()
        tenants, refused = self._taker.take(rows, now_us, nul=nul)
        errors = [RowError(line, why.error[:ERROR_CHARS_MAX]) for line, why in refused]
        marks = Marks(self._operation.id, self._historic)
        offers = [
            (await self._offer(tenant, of.columns, marks), of.lines)
            for tenant, of in tenants.items()
        ]
        return _Taken(offers, errors)

    async def _offer(self, tenant: str, columns: Sequence[list[Any]], marks: Marks) -> Offer:
        size_bytes = _ROW_BYTES * len(columns[0])
        with trio.fail_after(_WAIT_SECONDS_MAX):
            while True:
                try:
                    return self._meter.started.writer.offer_columns(
                        tenant, columns, size_bytes, marks
                    )
                except Unavailable:  # a full queue, or the key index catches up
                    await trio.sleep(_PAUSE_SECONDS)

    async def note(self, progress: Progress) -> None:
        """See Target."""
        assert self._operation is not None, "begin first"
        await self._meter.started.operations.note_progress(self._operation, progress, _ACTOR)

    async def finish(self, progress: Progress) -> None:
        """See Target."""
        assert self._operation is not None, "begin first"
        runner = self._meter.started.operations
        await runner.finish_import(self._operation, "completed", progress, _ACTOR)


class _Judged:
    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    async def settled(self) -> Outcome:
        """See Sending."""
        return self._outcome


class DryTarget:
    """Takes nothing: says what a meter in this process would make of the rows."""

    at_once = 1

    def __init__(self, meter: Meter, meant: Meant, limits: EventLimits, *, historic: bool) -> None:
        self._dry_run = DryRun(meter, meant, limits, historic=historic)

    async def begin(self, identity: str) -> Begun:  # noqa: ARG002 - nothing is begun
        """See Target."""
        return Begun("", b"", 0, 0)

    async def send(self, rows: Sequence[SentRow], *, nul: bool) -> Sending:
        """See Target."""
        await trio.lowlevel.checkpoint()
        fates = self._dry_run.judge_all(rows, nul=nul)
        errors = [RowError(line, error) for line, error in fates.errors]
        return _Judged(Outcome(fates.new + fates.late, fates.late, fates.duplicates, errors))

    async def note(self, progress: Progress) -> None:
        """See Target."""

    async def finish(self, progress: Progress) -> None:
        """See Target."""


def in_directory(
    settings: Settings, work: Callable[[Meter], Awaitable[ResultT]], *, dry_run: bool
) -> ResultT:
    """Open the directory's meter without HTTP, do the work, stop in order; the work's result.

    A dry run appends nothing; of a directory without a log it looks at an empty one elsewhere. Raises StartRefused,
    and what the work raises.
    """
    directory = DataDirectory(settings.data_path)
    if dry_run and not (directory.log_path / "data.mdb").exists():
        with tempfile.TemporaryDirectory(prefix="stripemeter-") as empty:
            return _in_locked(settings, DataDirectory(Path(empty) / "data"), work, dry_run=False)
    return _in_locked(settings, directory, work, dry_run=dry_run)


def _in_locked(
    settings: Settings,
    directory: DataDirectory,
    work: Callable[[Meter], Awaitable[ResultT]],
    *,
    dry_run: bool,
) -> ResultT:
    directory.lock()
    try:
        collector.pause()
        # One shard: groups need no splitting. Another number is no other state.
        alone = msgspec.structs.replace(settings, shards=1)
        meter = open_meter(
            alone, directory, is_read_only=dry_run, is_indexing=False, keeps_settings=True
        )
        return trio.run(_run, meter, work)
    except BaseExceptionGroup as group:
        # What failed first, out of its nursery: the command line wants the one line.
        raise first_of(group) from None
    finally:
        collector.resume()
        directory.release()


async def _run(meter: Meter, work: Callable[[Meter], Awaitable[ResultT]]) -> ResultT:
    ready = trio.Event()
    results: list[ResultT] = []

    def on_ready() -> None:
        collector.resume()
        ready.set()

    async def serve() -> None:
        await ready.wait()
        results.append(await work(meter))

    await meter.run(serve, on_ready)
    return results[0]


def quiet_engine() -> None:
    """The engine's own log lines are for servers: a command shows its report."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
