"""Folds a prefix of the log: the state as it was at a position, or of a whole log that nobody serves.

Rules it keeps: the same machine as live counting (`engine.core.shard_state`) and the same start as recovery, the
nearest snapshot at or before the end, or the checkpoint where retention dropped events; of the events only what is
asked for is folded, which changes nothing, since a counter depends on its own series and on control records alone;
what was dropped and is needed is refused, never passed over; who is being erased goes by the pseudonym.
It blocks for the disk: each slice belongs into a worker thread. It must not know what the state is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from engine.actors.kept import (
    NOTHING_KNOWN,
    Survey,
    control_bytes,
    erasures_since,
    is_dropped,
    is_touched,
    survey,
    with_aliases,
)
from engine.actors.recovery import (
    CONTROL_SECTION,
    PARTITION_SECTION,
    RULES_SECTION,
    Fold,
    checkpoint_fold,
    control_of,
)
from engine.actors.shard import restore_partition
from engine.actors.tenant_parts import TenantPart, tenant_parts
from engine.core.quantities import unpack_ext
from engine.core.records import (
    ControlRecord,
    RecordError,
    RecordType,
    TenantEvents,
)
from engine.core.registry import Registry
from engine.core.rules import Rules
from engine.core.shard_state import Late, ShardState
from engine.core.times import DAY_US
from engine.errors import Gone
from engine.limits import FUTURE_US_MAX, PARTITIONS
from wal.log import Log, LogDamaged, StoredRecord
from wal.snapshot import SnapshotStore

_AHEAD_US_MAX: Final = FUTURE_US_MAX + 2 * DAY_US
"""How far an event may be ahead of its group's time: what is allowed, and a clock that stepped back in between."""
PAGE_BYTES: Final = 1 << 20
"""Of the log, folded at once: some 10,000 events, a few milliseconds."""


class Wanted(NamedTuple):
    """Whose events are folded; None: everybody's. With a tenant, `partitions` may still hold others' state."""

    tenant: str | None = None
    customer_ref: str | None = None
    metric: str | None = None
    ts_us_min: int | None = None
    """Nothing that happened before this instant is asked for: groups received well before it are passed over."""


EVERYTHING: Final = Wanted()


class Observer(Protocol):
    """Is told what is folded, in log order."""

    def events_folded(
        self,
        events: TenantEvents,
        indexes: Sequence[int],
        late: Sequence[Late],
        *,
        first_sequence: int,
        received_at_us: int,
    ) -> None:
        """Events were folded just now; those named in `late` are held by an adjustment."""
        ...

    def begin_anew(self, state: ShardState) -> None:
        """The fold begins (again): forget what was told; `state` is what is folded from now on."""
        ...

    def control_coming(self, record: ControlRecord, *, sequence: int, received_at_us: int) -> None:
        """A control record is about to be folded: the state is the one before it."""
        ...


class PrefixFold:
    """The fold of the items at positions below `end`. Call `run_slice` until it is False."""

    def __init__(
        self,
        log: Log,
        end: int,
        *,
        partitions: Iterable[int] = range(PARTITIONS),
        wanted: Wanted = EVERYTHING,
        observer: Observer | None = None,
    ) -> None:
        self._log = log
        self._end = end
        self._wanted = wanted
        self.observer = observer
        self.registry = Registry()
        self.state = ShardState(partitions)
        self._control_from = 0
        self._partition_from = [0] * PARTITIONS
        self._previous: StoredRecord | None = None
        self._survey: Survey | None = None
        """What later records say of replaced and dropped parts; None until one is met."""
        self._looked_to = log.head().next_sequence
        """Up to here the log was searched for erasures that are at work beside this."""
        self.position = 0
        """Everything before it is folded."""
        if observer is not None:
            observer.begin_anew(self.state)
        self.events_folded = 0

    def start_from(self, snapshots: SnapshotStore, log_id: bytes, epoch: int) -> None:
        """Begin at the nearest snapshot that lies within the prefix; without one the fold begins at 0."""
        assert self.position == 0, "a fold begins once"
        found = snapshots.newest_valid(log_id, epoch, self._end)
        if found.snapshot is None:
            return
        registry, rules = Registry(), Rules()
        sections: list[tuple[int, int, bytes]] = []
        control_from = 0
        try:
            with found.snapshot as snapshot:
                for section in snapshot.sections():
                    partition = section.section_id - PARTITION_SECTION
                    if section.section_id == CONTROL_SECTION:
                        registry = Registry.restore(bytes(section.data))
                        control_from = section.position
                    elif section.section_id == RULES_SECTION:
                        rules = Rules.restore(bytes(section.data))
                    elif partition in self.state.counters:
                        sections.append((partition, section.position, bytes(section.data)))
            state = ShardState(self.state.counters, rules)
            for partition, _position, data in sections:
                restore_partition(state, partition, data, unpack_ext)
        except (msgspec.MsgspecError, ValueError, TypeError, IndexError, KeyError):
            return  # recovery tells the operator; here it costs time only
        state.operations = registry.operations.running()
        self.registry, self.state = registry, state
        self._control_from = self.position = control_from
        for partition, position, _data in sections:
            self._partition_from[partition] = position

    def run_slice(self) -> bool:
        """Fold a page; True: call again. Raises Gone, LogDamaged and what reading raises."""
        if self.position >= self._end:
            return False
        page = self._log.read(self.position, bytes_max=PAGE_BYTES)
        if not page:
            return False
        for record in page:
            if record.sequence >= self._end:
                self.position = self._end
                return False
            previous = self._previous
            if previous is not None and record.envelope.previous_hash != previous.hash:
                message = f"record {record.sequence} does not follow record {previous.sequence}"
                raise LogDamaged(message, record.sequence)
            try:
                if self._begins_anew(record):
                    return True
                self._take(record)
            except (RecordError, IndexError) as error:
                message = f"record {record.sequence} can't be used: {error}"
                raise LogDamaged(message, record.sequence) from error
            self._previous = record
            self.position = record.next_sequence
        return self.position < self._end

    def _begins_anew(self, record: StoredRecord) -> bool:
        """Whether the fold must begin again, because of what was erased or dropped; then it has. Raises Gone."""
        if (
            record.sequence < self._control_from
            or not is_touched(record)
            or self._is_too_old(record)
        ):
            return False
        dropped = is_dropped(record) and record.envelope.record_type == RecordType.EVENTS
        is_stale = self._was_erased_meanwhile()
        if self._survey is not None and not dropped and not is_stale:
            return False
        found = self._survey
        if found is None or is_stale:
            found = survey(self._log, record.sequence)
            is_stale |= self._was_erased_meanwhile()
        if not dropped and not found.aliases and not is_stale:
            self._survey = found
            return False
        begin = Fold()
        if dropped:
            checkpoint = found.checkpoint
            if checkpoint is None or checkpoint.position > self._end or self.observer is not None:
                raise Gone(
                    f"retention has dropped the events at position {record.sequence}, which this answer needs: ask "
                    "for a later time, or read the archive that retention wrote"
                )
            begin = checkpoint_fold(self._log, checkpoint)
        begin.survey = self._survey = found
        begin.rename(found)
        own = list(self.state.counters)
        state = ShardState((), begin.state.rules)
        state.adopt(begin.state, own)
        self.registry, self.state = begin.registry, state
        if self.observer is not None:
            self.observer.begin_anew(state)
        self._control_from = self.position = begin.control_from
        self._partition_from = begin.partition_from
        self._previous = None
        return True

    def _was_erased_meanwhile(self) -> bool:
        """Whether an erasure that is not known went on: what was folded has names that what is left has no more."""
        erasures, self._looked_to = erasures_since(self._log, self._looked_to)
        return not erasures <= (self._survey or NOTHING_KNOWN).erasures

    def _is_too_old(self, record: StoredRecord) -> bool:
        """Whether no event of the record can be one that is asked for."""
        oldest_us = self._wanted.ts_us_min
        received_at_us = record.envelope.received_at_us
        return oldest_us is not None and received_at_us + _AHEAD_US_MAX < oldest_us

    def _take(self, record: StoredRecord) -> None:
        envelope = record.envelope
        if envelope.record_type == RecordType.EVENTS:
            self._take_events(record)
            return
        if envelope.sequence < self._control_from or is_dropped(record):
            return
        aliases = (self._survey or NOTHING_KNOWN).aliases
        control = control_of(record, control_bytes(record, aliases))
        at = {"sequence": envelope.sequence, "received_at_us": envelope.received_at_us}
        if self.observer is not None:
            self.observer.control_coming(control, **at)
        self.registry.fold(control)
        self.state.fold_control(control, **at, since=self._partition_from)

    def _take_events(self, record: StoredRecord) -> None:
        received_at_us = record.envelope.received_at_us
        if self._is_too_old(record):
            return
        for part in tenant_parts(record):
            if self._wanted.tenant not in (None, part.tenant):
                continue
            if self._wanted.metric is not None and self._wanted.metric not in part.metrics:
                continue
            self._fold(part, record.sequence, received_at_us)

    def _fold(self, part: TenantPart, record_sequence: int, received_at_us: int) -> None:
        owned = self.state.counters
        since = self._partition_from
        wanted_rows = [
            index
            for index, partition in enumerate(part.partitions)
            if partition in owned
            and record_sequence >= since[partition]
            and part.first_sequence + index < self._end
        ]
        if not wanted_rows:
            return
        events = part.decode(fold_only=True)
        events = with_aliases(events, (self._survey or NOTHING_KNOWN).aliases, record_sequence)
        _tenant, customer, metric, _oldest = self._wanted
        if customer is not None:
            wanted_rows = [i for i in wanted_rows if events.customers[i] == customer]
        if metric is not None:
            wanted_rows = [i for i in wanted_rows if events.metrics[i] == metric]
        if not wanted_rows:
            return
        late = self.state.fold_events(
            events,
            wanted_rows,
            first_sequence=part.first_sequence,
            received_at_us=received_at_us,
        )
        self.events_folded += len(wanted_rows)
        if self.observer is not None:
            self.observer.events_folded(
                events,
                wanted_rows,
                late,
                first_sequence=part.first_sequence,
                received_at_us=received_at_us,
            )
