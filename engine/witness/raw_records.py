"""Records of the log decoded by docs/LOG_FORMAT.md alone: msgpack to plain values, names of customers resolved.

Rules it keeps: no code of the engine's records is used, so that a mistake there is not repeated here; whom a name
stands for after erasures is told by the `begin` records alone; a body that retention dropped comes from the archives
or is missing, and then it is named. It must not know how totals are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from wal.log import PartState, StoredRecord

GENESIS, EVENTS, SETTINGS, MAPPING, CUSTOMER = 1, 2, 3, 4, 5
CLOSING, ADJUSTMENT, REPLAY, OPERATION, ERASE = 7, 8, 9, 10, 11
RESTORE, INTENT, OUTCOME, DECISION, FINDING = 13, 14, 15, 16, 17
_WIDE: Final = (1, 2)
_REPLACED: Final = (PartState.TOMBSTONE, PartState.TRIMMED)
Archived = Callable[[int], StoredRecord | None]
"""The record at a position, from the archives."""


class Unusable(ValueError):
    """A record can't be recounted; says which and why."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class RawEvent(NamedTuple):
    """One event as it is stored. `ts_us`: when it happened, or when its group was received."""

    position: int
    metric: str
    customer: str
    micros: int
    ts_us: int


class RawGroup(NamedTuple):
    """One tenant's events of a group."""

    position: int
    """Of the group's record."""
    received_at_us: int
    events: list[RawEvent]
    marks: dict[str, Any]


class Names:
    """Who a customer goes by in the end: every `begin` of an erasure renames what lies before it."""

    def __init__(self) -> None:
        self._renamings: list[tuple[int, str, dict[str, str]]] = []

    def hear(self, record: StoredRecord) -> None:
        """Look at a record; all but the `begin` records of erasures are passed over."""
        if record.envelope.record_type == ERASE and record.parts[0].data:
            said = unpack(record.parts[0].data)
            if said["action"] == "begin" and said.get("names"):
                self._renamings.append((record.sequence, said["tenantId"], said["names"]))

    def known_as(self, tenant: str, customer: str, position: int) -> str:
        """The last name of who was called so at a position."""
        for begin, of_tenant, names in self._renamings:
            if of_tenant == tenant and position < begin:
                customer = names.get(customer, customer)
        return customer


def _wide(code: int, data: memoryview) -> int:
    if code not in _WIDE:
        message = f"the msgpack extension {code} is none of this log's"
        raise ValueError(message)
    return int.from_bytes(data, "big", signed=True)


_decode = msgspec.msgpack.Decoder(ext_hook=_wide).decode


def unpack(data: bytes) -> Any:
    """A part's msgpack as plain values; wide numbers are ints."""
    return _decode(data)


def control_of(record: StoredRecord) -> dict[str, Any] | None:
    """A control record's map; None: its body is gone. Raises Unusable."""
    part = record.parts[0]
    if part.state in _REPLACED:
        return None
    try:
        found = unpack(part.data)
    except (msgspec.MsgspecError, ValueError) as error:
        message = f"record {record.sequence} can't be read: {error}"
        raise Unusable(message, record.sequence) from error
    if not isinstance(found, dict):
        message = f"record {record.sequence} is no map, as a control record is"
        raise Unusable(message, record.sequence)
    return found


class _OnlyTenant(msgspec.Struct, array_like=True):
    tenant: str


_decode_tenant = msgspec.msgpack.Decoder(_OnlyTenant).decode


def groups_of(
    record: StoredRecord, tenant: str, names: Names, archived: Archived
) -> Iterator[RawGroup]:
    """A tenant's events in an event group. Raises Unusable when they are gone, or not as the format says."""
    if any(part.state == PartState.TRIMMED for part in record.parts):
        whole = archived(record.sequence)
        if whole is None or whole.envelope != record.envelope:
            message = (
                f"retention dropped the events of record {record.sequence}, and the archives beside the log do not "
                "hold them: put the archive files back"
            )
            raise Unusable(message, record.sequence)
        record = whole
    first = record.sequence
    received_us = record.envelope.received_at_us
    try:
        for counting, erasable in zip(record.parts[::2], record.parts[1::2], strict=True):
            if _decode_tenant(counting.data).tenant != tenant:
                first += len(unpack(counting.data)[2])
                continue
            columns, customers = unpack(counting.data), unpack(erasable.data)[0]
            metric_names, metric_of, customer_of, micros, times = columns[1:6]
            known = [names.known_as(tenant, name, record.sequence) for name in customers]
            events = [
                RawEvent(
                    first + row,
                    metric_names[metric],
                    known[customer],
                    quantity,
                    received_us if time is None else time,
                )
                for row, (metric, customer, quantity, time) in enumerate(
                    zip(metric_of, customer_of, micros, times, strict=True)
                )
            ]
            yield RawGroup(record.sequence, received_us, events, columns[10])
            first += len(events)
    except (msgspec.MsgspecError, ValueError, IndexError, TypeError) as error:
        message = f"the events of record {record.sequence} can't be read: {error}"
        raise Unusable(message, record.sequence) from error
    if first != record.next_sequence:
        message = f"record {record.sequence} does not hold as many events as it takes positions"
        raise Unusable(message, record.sequence)
