"""The audit trail's index: where in the log each control record is, whom it concerns, and what it is about.

Rules it keeps: it holds positions and short hashes, never content: who reads an entry reads its record, so the trail
can't say anything but the log; it is a fold of the control records alone; its memory is bounded, the oldest go first;
a hash may match too much, never too little, so readers check what they read. It must not know how records are stored.

Progress of an operation is not in it: it decides nothing, and there may be thousands.
"""

from __future__ import annotations

from array import array
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec
import numpy as np

from engine.core.configured import CustomerChange, MappingChange
from engine.core.finding_records import Finding
from engine.core.keeping import CheckpointChange, EraseChange, RestoreChange
from engine.core.push_records import PushDecision, PushIntent, PushOutcome, PushRecord, target_id
from engine.core.records import (
    AdjustmentChange,
    ApiKeyChange,
    ControlRecord,
    Genesis,
    OperationChange,
    PeriodClosing,
    ReplayApply,
    SettingsChange,
)
from engine.core.simulation_records import Simulation

ENTRIES_MAX: Final = 1_000_000
TARGETS_MAX: Final = 4_000_000
"""Together at most 60 MB."""
START_ACTOR: Final = "system:start"
CLOSER_ACTOR: Final = "system:period-closer"


class Subject(NamedTuple):
    """Whom a record concerns (None: no tenant), who made it, what was done, and to what."""

    tenant: str | None
    actor: str
    action: str
    targets: tuple[str, ...]
    request_id: str | None


def subject_of(record: ControlRecord) -> Subject | None:
    """What a record is in the trail; None: it is not in it."""
    match record:
        case Genesis():
            return Subject(None, START_ACTOR, "log.created", ("log",), None)
        case SettingsChange():
            return Subject(None, record.actor, "settings.changed", ("settings",), None)
        case MappingChange():
            mapping, change = record.mapping, record.change
            action = "mapping.deleted" if record.deleted else "mapping.set"
            target = f"mapping:{mapping.id}"
            return Subject(mapping.tenant_id, change.actor, action, (target,), change.request_id)
        case CustomerChange():
            customer, change = record.customer, record.change
            target = f"customer:{customer.customer_ref}"
            actor, request_id = change.actor, change.request_id
            return Subject(customer.tenant_id, actor, "customer.set", (target,), request_id)
        case ApiKeyChange():
            key, change = record.key, record.change
            action = f"api-key.{record.action}"
            target = f"api-key:{key.id}"
            return Subject(key.tenant_id, change.actor, action, (target,), change.request_id)
        case PeriodClosing():
            target = f"period:{record.metric or '*'}"
            return Subject(record.tenant_id, CLOSER_ACTOR, "period.closed", (target,), None)
        case AdjustmentChange():
            made, change = record.adjustment, record.change
            ids = record.ids if made is None else (made.id,)
            targets = tuple(f"adjustment:{one}" for one in ids)
            action = f"adjustment.{record.action}"
            return Subject(record.tenant_id, change.actor, action, targets, change.request_id)
        case ReplayApply():
            change, target = record.change, f"replay:{record.plan_hash}"
            actor, request_id = change.actor, change.request_id
            return Subject(record.tenant_id, actor, "replay.apply", (target,), request_id)
        case OperationChange():
            if record.action == "progress":
                return None
            change, target = record.change, f"operation:{record.operation_id}"
            action = f"operation.{record.action}"
            return Subject(record.tenant_id, change.actor, action, (target,), change.request_id)
        case EraseChange():
            if record.action not in ("begin", "end"):
                return None
            action, target = f"erasure.{record.action}", f"erasure:{record.erasure_id}"
            return Subject(record.tenant_id, record.actor, action, (target,), record.request_id)
        case CheckpointChange():
            if record.action != "commit":
                return None
            target = f"checkpoint:{record.checkpoint_id}"
            return Subject(None, record.actor, "retention.checkpoint", (target,), None)
        case RestoreChange():
            return Subject(None, record.actor, "log.restored", ("log",), None)
        case PushDecision() | PushOutcome() | PushIntent():
            return _of_push(record)
        case Simulation():
            if record.action not in ("set", "delete"):
                return None  # a run changes nothing, and is kept where it is asked for
            change, target = record.change, f"scenario:{record.id}"
            action = "scenario.deleted" if record.action == "delete" else "scenario.set"
            return Subject(record.tenant_id, change.actor, action, (target,), change.request_id)
        case Finding():
            # What was found is by the thousand, and in the reports; what was decided or repaired is here.
            if record.action not in ("accept", "apply"):
                return None
            action, about = f"finding.{record.action}", f"finding:{record.id}"
            return Subject(
                record.tenant_id or None, record.actor, action, (about,), record.request_id
            )


def _of_push(record: PushRecord) -> Subject | None:
    """Decisions are in the trail; what the pusher finds out is in the ledger, by the thousand."""
    if isinstance(record, PushIntent) or record.target is None:
        return None
    request_id: str | None = None
    if isinstance(record, PushDecision):
        action, request_id = f"push.{record.kind}", record.request_id
    elif record.proof == "person":
        action = f"push.{record.result}"
    else:
        return None
    about = f"push:{target_id(record.target)}"
    return Subject(record.tenant_id or None, record.actor, action, (about,), request_id)


class AuditQuery(NamedTuple):
    """Which entries; None: any. `before_sequence`: only those before that position."""

    tenant: str | None
    target: str | None
    actor: str | None
    start_us: int | None
    end_us: int | None
    before_sequence: int | None


class AuditTrail:
    """Positions of the control records, oldest first."""

    def __init__(self) -> None:
        self._sequences = array("q")
        self._times_us = array("q")
        assert array("I").itemsize == 4, "a hash has 32 bits"
        self._tenants = array("I")
        self._actors = array("I")
        self._targets_from = array("q")
        """Where each entry's targets begin, counted from the first ever; the last entry's go to the end."""
        self._targets = array("I")
        self._targets_dropped = 0

    def fold(self, record: ControlRecord, sequence: int, received_at_us: int) -> None:
        """Take one control record in."""
        subject = subject_of(record)
        if subject is None:
            return
        assert not self._sequences or sequence > self._sequences[-1], "records come in log order"
        self._sequences.append(sequence)
        self._times_us.append(received_at_us)
        self._tenants.append(_hash(subject.tenant or ""))
        self._actors.append(_hash(subject.actor))
        self._targets_from.append(self._targets_dropped + len(self._targets))
        self._targets.extend(map(_hash, subject.targets))
        if len(self._sequences) > ENTRIES_MAX or len(self._targets) > TARGETS_MAX:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Give up the older half: a tenth at a time would move everything ten times as often."""
        half = (len(self._sequences) + 1) // 2
        kept_from = self._targets_from[half] if half < len(self._targets_from) else None
        if kept_from is None:
            return  # one entry alone; its targets are bounded by a record's
        del self._targets[: kept_from - self._targets_dropped]
        self._targets_dropped = kept_from
        for column in (
            self._sequences,
            self._times_us,
            self._tenants,
            self._actors,
            self._targets_from,
        ):
            del column[:half]

    def __len__(self) -> int:
        return len(self._sequences)

    def positions(self, query: AuditQuery, count: int) -> tuple[list[int], int]:
        """At most `count` positions that may match, newest first, and how many there are. Whoever reads them checks.

        Some milliseconds for a full trail.
        """
        sequences = np.frombuffer(self._sequences, np.int64)
        matches = np.ones(len(sequences), np.bool_)
        if query.before_sequence is not None:
            matches &= sequences < query.before_sequence
        if query.tenant is not None:
            matches &= np.frombuffer(self._tenants, np.uint32) == _hash(query.tenant)
        if query.actor is not None:
            matches &= np.frombuffer(self._actors, np.uint32) == _hash(query.actor)
        # No search: the clock may have stepped back, so times are not in order.
        times_us = np.frombuffer(self._times_us, np.int64)
        if query.start_us is not None:
            matches &= times_us >= query.start_us
        if query.end_us is not None:
            matches &= times_us < query.end_us
        if query.target is not None:
            targets = np.frombuffer(self._targets, np.uint32)
            found = np.flatnonzero(targets == _hash(query.target)) + self._targets_dropped
            firsts = np.frombuffer(self._targets_from, np.int64)
            about = np.zeros(len(sequences), np.bool_)
            about[np.searchsorted(firsts, found, "right") - 1] = True
            matches &= about
        rows = np.flatnonzero(matches)
        return sequences[rows[::-1][:count]].tolist(), len(rows)

    def state(self) -> bytes:
        """Everything as bytes for a snapshot; `restore` takes it back."""
        columns = (self._sequences, self._times_us, self._tenants, self._actors)
        return msgspec.msgpack.encode(
            (
                [column.tobytes() for column in columns],
                self._targets_from.tobytes(),
                self._targets.tobytes(),
                self._targets_dropped,
            )
        )

    @staticmethod
    def restore(data: bytes) -> AuditTrail:
        """A trail from the bytes that `state` gave. Raises msgspec.MsgspecError or ValueError on other bytes."""
        saved: Any = msgspec.msgpack.decode(data, type=tuple[list[bytes], bytes, bytes, int])
        columns, targets_from, targets, dropped = saved
        trail = AuditTrail()
        trail._sequences.frombytes(columns[0])
        trail._times_us.frombytes(columns[1])
        trail._tenants.frombytes(columns[2])
        trail._actors.frombytes(columns[3])
        trail._targets_from.frombytes(targets_from)
        trail._targets.frombytes(targets)
        trail._targets_dropped = dropped
        return trail


def _hash(text: str) -> int:
    return crc32(text.encode())
