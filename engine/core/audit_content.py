"""What an audit entry shows of a control record: what it is about before and after, as plain JSON values.

Rules it keeps: nothing secret is shown, not even a key's hash; quantities are exact; instants are ISO 8601. A record
that replaces something whole (a mapping, a customer, a key, the settings) needs the one before it to say what was.
Pure; it must not know where records are read.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engine.core.configured import CustomerChange, MappingChange
from engine.core.finding_records import Finding
from engine.core.keeping import CheckpointChange, EraseChange, RestoreChange
from engine.core.push_records import PushDecision, PushIntent, PushOutcome
from engine.core.quantities import to_json, unpack_ext
from engine.core.records import (
    AdjustmentChange,
    AdjustmentMade,
    ApiKeyChange,
    ControlRecord,
    Genesis,
    OperationChange,
    PeriodClosing,
    ReplayApply,
    SettingsChange,
)
from engine.core.simulation_records import Simulation
from engine.core.times import format_instant

Content = dict[str, Any]
_MICRO_HOUR_US: Final = 3600
_SECRET: Final = frozenset(("hash",))
_RESULTS: Final = {"approve": "approved", "revert": "reverted"}


def needs_previous(record: ControlRecord) -> bool:
    """Whether what was before is in the record before it about the same."""
    match record:
        case SettingsChange() | CustomerChange() | ApiKeyChange():
            return True
        case MappingChange():
            return not record.deleted
        case Simulation():
            return record.action == "set"
        case _:
            return False


def before_of(record: ControlRecord, previous: ControlRecord | None) -> Content | None:
    """What was before; None: nothing of it."""
    match record:
        case MappingChange() if record.deleted:
            return _public(record.mapping)
        case AdjustmentChange() if record.action != "create":
            return {"status": record.was}
        case _:
            return None if previous is None else after_of(previous)


def after_of(record: ControlRecord) -> Content | None:
    """What is afterwards; None: nothing of it."""
    match record:
        case Genesis():
            return {"software": record.software, "partitions": record.partition_count}
        case MappingChange():
            return None if record.deleted else _public(record.mapping)
        case CustomerChange():
            return _public(record.customer)
        case ApiKeyChange():
            return _public(record.key)
        case AdjustmentChange():
            made = record.adjustment
            return {"status": _RESULTS[record.action]} if made is None else _made(made)
        case ReplayApply():
            events = sum(len(counter.sequences) for counter in record.counters)
            return {
                "planHash": record.plan_hash,
                "counters": len(record.counters),
                "events": events,
            }
        case OperationChange():
            return {"kind": record.kind, "status": record.status}
        case EraseChange():
            return {"erasureId": record.erasure_id, "customers": len(record.names)}
        case CheckpointChange():
            return {
                "position": record.position,
                "horizon": format_instant(record.horizon_us),
                "archives": list(record.archives),
            }
        case RestoreChange():
            return {
                "previousEpoch": record.previous_epoch,
                "backupPosition": record.backup_position,
                "backupTakenAt": format_instant(record.backup_taken_at_us),
            }
        case PushDecision():
            return _of_decision(record)
        case PushOutcome():
            return {"number": record.number, "result": record.result}
        case Finding():
            return _of_finding(record)
        case Simulation():
            return {"name": record.name} if record.action == "set" else None
        case PushIntent():
            return None
        case SettingsChange() | PeriodClosing():
            return _public(record, without=("actor", "tenantId"))


def _made(made: AdjustmentMade) -> Content:
    content = _public(made, without=("micros", "tenantId"))
    micros = made.micros
    exact = micros if isinstance(micros, int) else unpack_ext(micros.code, micros.data)
    return content | {made.kind: to_json(exact, as_string=False), "status": "pending"}


def _of_decision(record: PushDecision) -> Content:
    content = {
        "choice": record.choice,
        "into": record.into,
        "units": record.units,
        "reading": record.reading,
        "because": record.because,
    }
    return {name: value for name, value in content.items() if value is not None}


def _of_finding(record: Finding) -> Content:
    content = {
        "cause": record.cause,
        "units": record.units,
        "repair": record.repair,
        "note": record.note,
    }
    return {name: value for name, value in content.items() if value is not None}


def _public(record: msgspec.Struct, without: tuple[str, ...] = ()) -> Content:
    """A record's fields as the API names them; what is not set is left out."""
    content: Content = {}
    for field in msgspec.structs.fields(record):
        name, value = field.encode_name, getattr(record, field.name)
        if value is None or name in without or name in _SECRET:
            continue
        if name == "latenessUs":
            content["latenessHours"] = to_json(value // _MICRO_HOUR_US, as_string=False)
        elif name.endswith("Us"):
            content[name.removesuffix("Us")] = format_instant(value)
        else:
            assert not isinstance(value, bytes), "bytes are secret or unreadable"
            content[name] = value
    return content
