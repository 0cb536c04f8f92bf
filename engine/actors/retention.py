"""Retention: bodies of old event groups leave the log, after an archive and a checkpoint that stand in for them.

The order that is the product: *archived and read back, then the checkpoint durable, then dropped*. Killed at any
moment it goes on: an archive is written again under its name, sections without a commit mean nothing, bodies that are
still there are dropped later. Rules it keeps: only a prefix of the log, so that one state stands in for it; nothing is
dropped while an erasure is under way; ingest waits for one small slice at a time. It must not know files or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from typing import Final, NamedTuple

import structlog
import trio

from engine.actors.appender import as_engine_error
from engine.actors.kept import NOTHING_KNOWN, is_dropped
from engine.actors.log_writer import LogWriter
from engine.actors.recovery import (
    AUDIT_SECTION,
    CONTROL_SECTION,
    PARTITION_SECTION,
    PUSH_SECTION,
    RULES_SECTION,
    Fold,
    checkpoint_fold,
)
from engine.actors.shard import encode_partition
from engine.core.keeping import SECTION_BYTES_MAX, CheckpointChange
from engine.core.records import PartKind, RecordError, RecordType, decode_control
from engine.core.registry import Registry
from engine.core.retention import horizon_of, newest_us
from engine.core.rules import Rules
from engine.core.times import INSTANT_US_MIN
from engine.errors import Conflict, EngineError, Unavailable
from engine.limits import PARTITIONS
from engine.ports import Clock, Fatal, Ids, ResultT, RunBlocking
from wal.archive import ArchiveError, ArchiveStore, name_of
from wal.log import (
    Log,
    LogDamaged,
    LogError,
    LogStateUnknown,
    PartState,
    Replacement,
    StoredPart,
    StoredRecord,
)

PASS_BYTES_MAX: Final = 1 << 30
"""Of bodies that one checkpoint and one archive stand in for."""
SLICE_BYTES_MAX: Final = 8 << 20
"""Of bodies dropped in one commit: some 10 ms in which no other can be acknowledged."""
_PAGE_BYTES: Final = 4 << 20
_COUNTER_BYTES: Final = 100
"""What a counter takes in a checkpoint: dropping less than it adds is left for another day."""
_ID_BYTES: Final = 8
_FIRST_SECONDS: Final = 60.0
_EVERY_SECONDS: Final = 86_400.0
_logger = structlog.get_logger("stripemeter.retention")


class RetentionPlan(NamedTuple):
    """What can be dropped now: event groups from `first_sequence` up to `position`, and what they hold."""

    horizon_us: int
    first_sequence: int
    position: int
    """Equal to `first_sequence`: nothing can."""
    groups: int
    events: int
    size_bytes: int


class Retention:
    """One task, and what people ask of it. It shares `busy` with the eraser: one of them at a time."""

    def __init__(
        self,
        *,
        log: Log,
        writer: LogWriter,
        archives: ArchiveStore,
        registry: Registry,
        rules: Rules,
        clock: Clock,
        ids: Ids,
        run_blocking: RunBlocking,
        busy: trio.Lock,
        held: Callable[[], str | None],
        days: int,
    ) -> None:
        """`days` 0: nothing is dropped unless a person asks. `held()`: why the clock can't be trusted now."""
        self._log = log
        self._writer = writer
        self._archives = archives
        self._registry = registry
        self._rules = rules
        self._clock = clock
        self._ids = ids
        self._run_blocking = run_blocking
        self._busy = busy
        self._held = held
        self.days = days
        self.last_error: str | None = None
        """Why the last run failed; None after one that worked."""

    async def run(self) -> None:
        """Finish what a crash cut short, then drop what is due once a day, until cancelled."""
        await trio.sleep(_FIRST_SECONDS)
        while True:
            try:
                await self.finish()
                if self.days:
                    commit = self._registry.checkpoint
                    worth_bytes = 0 if commit is None else commit.counters * _COUNTER_BYTES
                    await self.apply(self.days, "system:retention", worth_bytes=worth_bytes)
                self.last_error = None
            except (EngineError, LogError) as error:
                self.last_error = str(error)
                _logger.warning("retention_failed", error=str(error))
            await trio.sleep(_EVERY_SECONDS)

    async def plan(self, days: int) -> RetentionPlan:
        """What a pass would drop now. Changes nothing. Raises Unavailable, also while the clock can't be trusted."""
        if (why := self._held()) is not None:
            # By a clock that is years ahead everything in a closed period is old, and it does not come back.
            raise Unavailable(f"retention is held: {why}", retry_after_seconds=60)
        commit = self._registry.checkpoint
        first = 0 if commit is None else commit.position
        horizon_us = horizon_of(self._rules, self._clock.now_us(), days)
        if commit is not None:
            horizon_us = max(horizon_us, commit.horizon_us)
        plan = RetentionPlan(horizon_us, first, first, 0, 0, 0)
        if horizon_us <= INSTANT_US_MIN:
            return plan
        position = first
        while plan.size_bytes < PASS_BYTES_MAX:
            page = await self._blocking(partial(self._log.read, position, bytes_max=_PAGE_BYTES))
            if not page:
                break
            plan, is_over = await self._blocking(partial(_taken, plan, page))
            if is_over:
                break
            position = page[-1].next_sequence
        return plan

    async def apply(self, days: int, actor: str, *, worth_bytes: int = 0) -> list[RetentionPlan]:
        """Drop all that can be dropped now: the passes it took. Raises Conflict, Unavailable or StorageFull.

        A pass that would drop no more than `worth_bytes` waits until there is more.
        """
        done: list[RetentionPlan] = []
        async with self._busy:
            if self._registry.erasures:
                raise Conflict("an erasure is under way: retention runs when it has ended")
            # None of them between the plan and the pass: then the state at its position still has the names.
            while not self._registry.erasures:
                plan = await self.plan(days)
                if plan.position == plan.first_sequence or plan.size_bytes < worth_bytes:
                    break
                await self._pass(plan, actor)
                done.append(plan)
        return done

    async def _pass(self, plan: RetentionPlan, actor: str) -> None:
        name = name_of(plan.first_sequence, plan.position)
        await self._blocking(partial(self._archives.write, name, self._bodies(plan)))
        fold = await self._folded_to(plan.position)
        old = self._registry.checkpoint
        archives = (*(old.archives if old is not None else ()), name)
        await self.write_checkpoint(fold, plan.position, plan.horizon_us, archives, actor)
        await self.drop()
        _logger.info(
            "retention_dropped",
            events=plan.events,
            groups=plan.groups,
            position=plan.position,
            archive=name,
        )

    def _bodies(self, plan: RetentionPlan) -> Iterator[StoredRecord]:
        """In a thread: the event groups of a plan."""
        for record in _records(self._log, plan.first_sequence, plan.position):
            if record.envelope.record_type == RecordType.EVENTS:
                yield record

    async def _folded_to(self, position: int) -> Fold:
        """The state at a position: the checkpoint before it, and what follows."""
        commit = self._registry.checkpoint
        fold = Fold()
        if commit is not None:
            fold = await self._blocking(partial(checkpoint_fold, self._log, commit))
        fold.survey = NOTHING_KNOWN  # no erasure is under way
        at = fold.control_from
        while at < position:
            page = await self._blocking(partial(self._log.read, at, bytes_max=_PAGE_BYTES))
            for record in page:
                if record.sequence < position:
                    try:
                        fold.take(record, None)
                    except LogDamaged as error:
                        raise _held_up(error) from error
                    await trio.lowlevel.checkpoint()
            at = page[-1].next_sequence
        return fold

    async def write_checkpoint(
        self, fold: Fold, position: int, horizon_us: int, archives: tuple[str, ...], actor: str
    ) -> None:
        """Make a state durable as a checkpoint, section by section, then its commit. Raises EngineError."""
        checkpoint_id = self._ids.token(_ID_BYTES).hex()
        first_sequence = self._log.head().next_sequence
        digest, sections, counters = blake2b(digest_size=32), 0, 0
        for section_id, data in _sections(fold):
            for start in range(0, len(data), SECTION_BYTES_MAX):
                piece = data[start : start + SECTION_BYTES_MAX]
                digest.update(piece)
                sections += 1
                await self._writer.append_control(
                    CheckpointChange(
                        action="section",
                        checkpoint_id=checkpoint_id,
                        position=position,
                        section_id=section_id,
                        data=piece,
                    )
                )
            if section_id >= PARTITION_SECTION:
                counters += len(fold.state.counters[section_id - PARTITION_SECTION])
        await self._writer.append_control(
            CheckpointChange(
                action="commit",
                checkpoint_id=checkpoint_id,
                position=position,
                horizon_us=horizon_us,
                first_sequence=first_sequence,
                sections=sections,
                digest=digest.digest(),
                counters=counters,
                archives=archives,
                actor=actor,
            )
        )

    async def finish(self) -> None:
        """Drop what the newest checkpoint stands in for, if a crash kept that from being done."""
        async with self._busy:
            commit = self._registry.checkpoint
            if commit is None:
                return
            [last] = (
                await self._blocking(partial(self._log.read, commit.position - 1, bytes_max=1))
            )[:1]
            if not is_dropped(last):
                await self.drop()

    async def drop(self) -> None:
        """Drop bodies before the checkpoint, and the sections of every other one, in slices. Hold `busy`."""
        commit = self._registry.checkpoint
        position = 0
        while True:
            slice_ = await self._blocking(partial(_due, self._log, position, commit))
            if slice_.replacements:
                await self._alone(partial(self._log.replace, slice_.replacements))
            if slice_.next_position == position:
                break
            position = slice_.next_position

    async def _alone(self, work: Callable[[], None]) -> None:
        try:
            await self._writer.alone_with_log(work)
        except LogStateUnknown as error:
            raise Fatal(str(error)) from error
        except LogError as error:
            raise as_engine_error(error) from error

    async def _blocking(self, work: Callable[[], ResultT]) -> ResultT:
        try:
            return await self._run_blocking(work)
        except (ArchiveError, LogError, RecordError) as error:
            raise _held_up(error) from error


def _held_up(error: Exception) -> Unavailable:
    return Unavailable(f"retention can't go on: {error}", retry_after_seconds=60)


class _Slice(NamedTuple):
    replacements: list[Replacement]
    next_position: int


def _taken(plan: RetentionPlan, page: list[StoredRecord]) -> tuple[RetentionPlan, bool]:
    """The plan with those groups of a page that are old as a whole; True when one was met that is not."""
    for record in page:
        envelope = record.envelope
        if envelope.record_type != RecordType.EVENTS:
            continue
        for part in record.parts:
            if part.kind != PartKind.COUNTING or part.state == PartState.TRIMMED:
                continue
            if newest_us(part.data, envelope.received_at_us) >= plan.horizon_us:
                return plan, True
        plan = plan._replace(
            position=record.next_sequence,
            groups=plan.groups + 1,
            events=plan.events + envelope.item_count,
            size_bytes=plan.size_bytes + sum(len(part.data) for part in record.parts),
        )
    return plan, False


def _records(log: Log, position: int, end: int) -> Iterator[StoredRecord]:
    while position < end and (page := log.read(position, bytes_max=_PAGE_BYTES)):
        for record in page:
            if record.sequence >= end:
                return
            yield record
        position = page[-1].next_sequence


def _due(log: Log, position: int, commit: CheckpointChange | None) -> _Slice:
    """In a thread: what is to be dropped in the next stretch of the log, and where that ends."""
    replacements: list[Replacement] = []
    size_bytes = 0
    for record in log.read(position, bytes_max=SLICE_BYTES_MAX):
        position = record.next_sequence
        if is_dropped(record) or not _is_due(record, commit):
            continue
        parts = tuple(StoredPart(part.kind, PartState.TRIMMED, b"") for part in record.parts)
        replacements.append(Replacement(record.sequence, parts))
        size_bytes += sum(len(part.data) for part in record.parts)
        if size_bytes >= SLICE_BYTES_MAX:
            break
    return _Slice(replacements, position)


def _is_due(record: StoredRecord, commit: CheckpointChange | None) -> bool:
    record_type = record.envelope.record_type
    if record_type == RecordType.EVENTS:
        return commit is not None and record.next_sequence <= commit.position
    if record_type != RecordType.CHECKPOINT:
        return False
    control = decode_control(record_type, record.parts[0].data)
    assert isinstance(control, CheckpointChange)
    kept = None if commit is None else commit.checkpoint_id
    return control.action == "section" and control.checkpoint_id != kept


def _sections(fold: Fold) -> Iterator[tuple[int, bytes]]:
    """The state of a fold as the sections of a snapshot."""
    yield CONTROL_SECTION, fold.registry.state()
    yield RULES_SECTION, fold.state.rules.state()
    yield AUDIT_SECTION, fold.audit.state()
    yield PUSH_SECTION, fold.push.state()
    for partition in range(PARTITIONS):
        yield PARTITION_SECTION + partition, encode_partition(fold.state, partition)
