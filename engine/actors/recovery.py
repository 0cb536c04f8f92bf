"""Recovery: from what is on disk to the state that was acknowledged.

The newest valid snapshot, then the log after it, folded by the same code as live events; plain events many at a time
(`engine.core.fold_in_bulk`). The key index is brought up to the log's head on the way: it may be behind, or gone.
Rules it keeps: the log alone decides; a snapshot or index that does not fit it is passed over; a damaged or unknown
record refuses the start and is named.
It must not know which log is behind the port.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import msgspec
import trio

from engine.actors.kept import (
    NOTHING_KNOWN,
    Survey,
    checkpoint_sections,
    control_bytes,
    is_dropped,
    is_touched,
    survey,
    with_aliases,
)
from engine.actors.key_merger import Merging
from engine.actors.shard import restore_partition
from engine.core.audit import AuditTrail
from engine.core.fold_in_bulk import BulkFold
from engine.core.keeping import CheckpointChange, EraseChange
from engine.core.partitions import HASH_NAME
from engine.core.push_state import PushState
from engine.core.quantities import unpack_ext
from engine.core.records import (
    UNCOUNTED,
    AdjustmentChange,
    ControlRecord,
    Genesis,
    OperationChange,
    PartKind,
    RecordError,
    RecordType,
    ReplayApply,
    SettingsChange,
    decode_control,
    decode_events,
    decode_keys,
    encode_control,
)
from engine.core.registry import Registry
from engine.core.rules import Rules
from engine.core.shard_state import ShardState
from engine.errors import StartRefused
from engine.limits import PARTITIONS
from engine.ports import Clock, RunBlocking
from wal.key_index import KeyIndex
from wal.log import Draft, DraftPart, Log, LogDamaged, StoredRecord
from wal.snapshot import SnapshotError, SnapshotStore

CONTROL_SECTION = 0
RULES_SECTION = 1
AUDIT_SECTION = 2
PUSH_SECTION = 3
PARTITION_SECTION = 100
"""Section numbers in a snapshot; partition p is PARTITION_SECTION + p."""
_PAGE_BYTES = 4 << 20
_EVENTS_IN_A_TURN = 2_000
"""Between two chances for other tasks to run; one for each record would be half the cost of small ones."""
_EVENTS_OF_A_RECORD = 20
"""What a record costs beside its events, in events."""


class Progress(NamedTuple):
    """How far recovery has come: log positions."""

    position: int
    head: int


class Recovered(NamedTuple):
    """The state as of the log's head, and where it came from."""

    registry: Registry
    audit: AuditTrail
    push: PushState
    rules: Rules
    state: ShardState
    """All partitions; the supervisor deals them out to the shards."""
    snapshot_position: int
    events_folded: int
    notes: tuple[str, ...]
    """What was passed over on the way and why, for the log."""


class _StartOver(Exception):
    """A part was met that was replaced or dropped: fold again, with what the survey says of it."""


class Fold:
    """The state being recovered, and from which position each partition still has to be folded."""

    def __init__(self) -> None:
        self.survey: Survey | None = None
        """What is known of later records; None until it is needed."""
        self.keys_to = 0
        """The keys of every record before it were given to the index."""
        self.registry = Registry()
        self.audit = AuditTrail()
        self.push = PushState()
        self.has_push = False
        self.state = ShardState(range(PARTITIONS))
        self.control_from = 0
        self.partition_from = [0] * PARTITIONS
        self.bulk: BulkFold | None = None
        """What folds plain events many at a time; then the state lags behind until `steps_to_end` is done."""
        self.events_folded = 0
        self.notes: list[str] = []

    def restore(self, section_id: int, position: int, data: bytes) -> None:
        """Put one section of a snapshot back. Raises what decoding raises."""
        if section_id == CONTROL_SECTION:
            self.registry = Registry.restore(data)
            self.state.operations = self.registry.operations.running()
            self.control_from = position
        elif section_id == RULES_SECTION:
            self.state.rules = Rules.restore(data)
        elif section_id == AUDIT_SECTION:
            self.audit = AuditTrail.restore(data)
        elif section_id == PUSH_SECTION:
            self.push, self.has_push = PushState.restore(data), True
        else:
            partition = section_id - PARTITION_SECTION
            restore_partition(self.state, partition, data, unpack_ext)
            self.partition_from[partition] = position

    def restored(self) -> None:
        """All sections were put back: what a version that did not push could not save is made from the rest."""
        if not self.has_push:
            registry = self.registry
            customers = (customer for of in registry.customers.values() for customer in of.values())
            self.push = PushState.of_configuration(registry.mappings.values(), customers)

    def rename(self, found: Survey) -> None:
        """Let the customers of erasures under way go by their pseudonyms in the state that the fold begins with."""
        aliases = found.aliases
        for tenant in aliases.tenants():
            names = aliases.at(tenant, self.control_from - 1)
            self.registry.rename(tenant, names)
            self.push.routes.rename(tenant, names)
            self.state.rules.rename(tenant, names)
            for partition, position in enumerate(self.partition_from):
                own = aliases.at(tenant, position - 1)
                only = [0 if p == partition else 1 for p in range(PARTITIONS)]
                self.state.rename(tenant, own, sequence=0, since=only)

    def needs_survey(self, record: StoredRecord) -> bool:
        """Whether the record can't be folded before it is known what later ones say of it."""
        return self.survey is None and record.sequence >= self.control_from and is_touched(record)

    def needs_checkpoint(self, record: StoredRecord) -> bool:
        """Whether the record's events were dropped and a checkpoint stands in for them, which this began before."""
        checkpoint = None if self.survey is None else self.survey.checkpoint
        return (
            checkpoint is not None
            and self.control_from <= record.sequence < checkpoint.position
            and record.envelope.record_type == RecordType.EVENTS
            and is_dropped(record)
        )

    def take(self, record: StoredRecord, keys: KeyIndex | None) -> None:
        """Fold one record; its keys go to `keys`. Raises LogDamaged when its content can't be read."""
        envelope = record.envelope
        try:
            if envelope.record_type == RecordType.EVENTS:
                if keys is not None and record.next_sequence > max(keys.watermark, self.keys_to):
                    counting = [p.data for p in record.parts if p.kind == PartKind.COUNTING]
                    add_keys(keys, [data for data in counting if data], record.next_sequence)
                    self.keys_to = record.next_sequence
                self._take_events(record)
            elif envelope.sequence >= self.control_from and not is_dropped(record):
                known = self.survey or NOTHING_KNOWN
                control = control_of(record, control_bytes(record, known.aliases))
                self._make_way(control)
                self.registry.fold(control)
                self.audit.fold(control, envelope.sequence, envelope.received_at_us)
                self.push.fold(control, envelope.received_at_us)
                self.state.fold_control(
                    control,
                    sequence=envelope.sequence,
                    received_at_us=envelope.received_at_us,
                    since=self.partition_from,
                )
        except (RecordError, IndexError) as error:
            raise LogDamaged(
                f"record {record.sequence} can't be used: {error}", record.sequence
            ) from error

    def _take_events(self, record: StoredRecord) -> None:
        sequence = record.sequence
        if sequence < self.control_from:
            return
        if is_dropped(record):
            raise LogDamaged(
                f"record {sequence} was dropped by retention, and there is no checkpoint that holds what it counted. "
                "Restore from a backup.",
                sequence,
            )
        known = self.survey or NOTHING_KNOWN
        by_kind = [part.data for part in record.parts if part.kind == PartKind.COUNTING]
        erasable = [part.data for part in record.parts if part.kind == PartKind.ERASABLE]
        received_at_us = record.envelope.received_at_us
        partial_fold = sequence < max(self.partition_from)
        bulk = None if partial_fold or known.aliases else self.bulk
        for counting, texts in zip(by_kind, erasable, strict=True):
            if bulk is not None:
                taken = bulk.take(
                    counting, texts, first_sequence=sequence, received_at_us=received_at_us
                )
                if taken is not None:
                    sequence += taken
                    self.events_folded += taken
                    continue
            events = decode_events(counting, texts, fold_only=True)
            if self.bulk is not None:
                self.bulk.step_aside(events.tenant)
            events = with_aliases(events, known.aliases, record.sequence)
            indexes = range(events.event_count)
            if partial_fold:
                indexes = [
                    i for i in indexes if sequence >= self.partition_from[events.partitions[i]]
                ]  # type: ignore[assignment]
            self.state.fold_events(
                events,
                indexes,
                first_sequence=sequence,
                received_at_us=received_at_us,
            )
            sequence += events.event_count
            self.events_folded += len(indexes)

    def _make_way(self, control: ControlRecord) -> None:
        """Let what waits be folded under the rules before a control record."""
        if self.bulk is None or type(control) in UNCOUNTED:
            return
        if isinstance(control, AdjustmentChange | ReplayApply | EraseChange):
            self.bulk.step_aside(control.tenant_id)  # it changes or looks at counters
        self.bulk.catch_up()

    def steps_to_end(self) -> Iterator[None]:
        """Bring the state up to the last record taken, in slices."""
        if self.bulk is not None:
            yield from self.bulk.steps_aside()
            self.bulk = None


def control_of(record: StoredRecord, data: bytes | None = None) -> ControlRecord:
    """A control record, with an operation's rows unless they were erased. Raises RecordError.

    `data` stands in for its first part's bytes.
    """
    control = decode_control(
        record.envelope.record_type, record.parts[0].data if data is None else data
    )
    if isinstance(control, OperationChange) and len(record.parts) > 1:
        control = msgspec.structs.replace(control, rows=record.parts[1].data)
    return control


def add_keys(keys: KeyIndex, counting_parts: list[bytes], next_position: int) -> None:
    """Give the index the keys of one event record."""
    columns = [decode_keys(counting) for counting in counting_parts]
    key_column = b"".join([own for own, _ in columns])
    fingerprints = b"".join([own for _, own in columns])
    keys.feed(key_column, fingerprints, next_position)


async def recover(
    log: Log,
    keys: KeyIndex,
    snapshots: SnapshotStore,
    log_id: bytes,
    *,
    run_blocking: RunBlocking,
    progress: Callable[[Progress], None],
) -> Recovered:
    """The state as of the log's head. Raises StartRefused naming the record that can't be used.

    Folds in pages and lets other tasks run in between, so that HTTP can answer 503 meanwhile.
    """
    head = log.head()
    notes: list[str] = []
    load = partial(_load_snapshot, snapshots, log_id, head.epoch, head.next_sequence)
    fold = await run_blocking(partial(load, Fold()))
    refused: LogDamaged | StartRefused | None = None
    async with trio.open_nursery() as nursery:
        merging = Merging(keys, run_blocking, nursery, notes)
        try:
            try:
                await _fold_log(fold, log, merging, run_blocking=run_blocking, progress=progress)
            except _StartOver:
                fold = await run_blocking(partial(_begun_anew, load, log, fold))
                await _fold_log(fold, log, merging, run_blocking=run_blocking, progress=progress)
            await merging.end()
        except (LogDamaged, StartRefused) as error:
            refused = error  # raised below: out of a nursery it would come in a group
    if isinstance(refused, LogDamaged):
        raise StartRefused(f"{refused} (`stripemeter check` lists all damage)") from refused
    if refused is not None:
        raise refused
    keys.end_feed()
    return Recovered(
        fold.registry,
        fold.audit,
        fold.push,
        fold.state.rules,
        fold.state,
        fold.control_from,
        fold.events_folded,
        (*fold.notes, *notes),
    )


def _begun_anew(load: Callable[[Fold], Fold], log: Log, before: Fold) -> Fold:
    """A fold that begins with the newest state there is and knows the survey. Raises LogDamaged."""
    found = before.survey
    assert found is not None, "it was made before the fold was given up"
    fold = load(Fold())
    checkpoint = found.checkpoint
    if checkpoint is not None and checkpoint.position > fold.control_from:
        fold = checkpoint_fold(log, checkpoint)
    fold.survey, fold.keys_to = found, before.keys_to
    fold.notes = before.notes
    fold.rename(found)
    return fold


def checkpoint_fold(log: Log, checkpoint: CheckpointChange) -> Fold:
    """A fold that begins with a checkpoint's state. Raises LogDamaged."""
    fold = Fold()
    try:
        for section_id, data in checkpoint_sections(log, checkpoint):
            fold.restore(section_id, checkpoint.position, data)
        fold.restored()
    except (msgspec.MsgspecError, ValueError, TypeError, IndexError, KeyError) as error:
        message = f"the checkpoint at position {checkpoint.position} can't be read: {error}. Restore from a backup."
        raise LogDamaged(message, checkpoint.first_sequence) from error
    return fold


async def _fold_log(
    fold: Fold,
    log: Log,
    merging: Merging,
    *,
    run_blocking: RunBlocking,
    progress: Callable[[Progress], None],
) -> None:
    """Fold what the snapshot and the key index don't have yet. Raises LogDamaged."""
    keys = merging.keys
    head_sequence = log.head().next_sequence
    position = min(fold.control_from, keys.watermark)
    fold.bulk = BulkFold(fold.state)
    previous: StoredRecord | None = None
    work = 0
    while position < head_sequence:
        page = await run_blocking(partial(log.read, position, bytes_max=_PAGE_BYTES))
        for record in page:
            if previous is not None and record.envelope.previous_hash != previous.hash:
                message = f"record {record.sequence} does not follow record {previous.sequence}"
                raise LogDamaged(message, record.sequence)
            if fold.needs_survey(record):
                fold.survey = await run_blocking(partial(survey, log, record.sequence))
                if fold.survey.aliases:
                    raise _StartOver
            if fold.needs_checkpoint(record):
                raise _StartOver
            fold.take(record, keys)
            previous = record
            work += _EVENTS_OF_A_RECORD + record.envelope.item_count
            if work >= _EVENTS_IN_A_TURN or keys.is_full:
                work = 0
                await merging.keys_added()
                await trio.lowlevel.checkpoint()
        if not page:
            break
        position = page[-1].next_sequence
        progress(Progress(position, head_sequence))
    for _ in fold.steps_to_end():
        await trio.lowlevel.checkpoint()


def _load_snapshot(
    snapshots: SnapshotStore, log_id: bytes, epoch: int, head_sequence: int, fold: Fold
) -> Fold:
    """The fold as the newest valid snapshot has it; an empty one if there is none that can be read."""
    found = snapshots.newest_valid(log_id, epoch, head_sequence)
    fold.notes.extend(f"snapshot {name} passed over: {reason}" for name, reason in found.skipped)
    _remove(snapshots, found.ahead)
    if found.snapshot is None:
        return fold
    loaded = Fold()
    loaded.notes = fold.notes
    try:
        with found.snapshot as snapshot:
            for section in snapshot.sections():
                loaded.restore(section.section_id, section.position, bytes(section.data))
        loaded.restored()
        if not len(loaded.audit):
            raise ValueError("it is of a version without an audit trail")
    except (msgspec.MsgspecError, ValueError, TypeError, IndexError, KeyError) as error:
        fold.notes.append(f"the newest snapshot can't be read ({error}); the whole log is folded")
        return fold
    return loaded


def _remove(snapshots: SnapshotStore, ahead: tuple[str, ...]) -> None:
    """Remove snapshots of what the log went on to be before its file was replaced by an older one."""
    for name in ahead:
        try:
            snapshots.remove(name)
        except SnapshotError as error:
            message = f"snapshot {name} is of a log that went on otherwise; delete it ({error})"
            raise StartRefused(message) from error


def genesis_drafts(
    log: Log, log_id: bytes, software: str, settings: SettingsChange, clock: Clock
) -> None:
    """Give an empty log its first records. Blocks for the disk."""
    genesis = Genesis(
        log_id=log_id, partition_count=PARTITIONS, partition_hash=HASH_NAME, software=software
    )
    now_us = clock.now_us()
    drafts = []
    for record in (genesis, settings):
        record_type, data = encode_control(record)
        drafts.append(Draft(record_type, 1, now_us, (DraftPart(PartKind.CONTROL, data),)))
    log.append(drafts)


def read_genesis(log: Log) -> Genesis:
    """The log's first record. Raises StartRefused if this program can't serve such a log."""
    try:
        first = log.read(0, bytes_max=1)[0]
        genesis = decode_control(first.envelope.record_type, first.parts[0].data)
    except (LogDamaged, RecordError, IndexError) as error:
        raise StartRefused(f"the log's first record can't be used: {error}") from error
    if not isinstance(genesis, Genesis):
        raise StartRefused("record 0 is not what a log begins with: this is not a StripeMeter log")
    if genesis.partition_count != PARTITIONS or genesis.partition_hash != HASH_NAME:
        raise StartRefused(
            f"the log deals customers to {genesis.partition_count} partitions by {genesis.partition_hash}; this "
            f"version knows {PARTITIONS} by {HASH_NAME}. Install the version that wrote it."
        )
    return genesis
