"""Operations: backfills and imports, from being asked for to their end. A fold of their records.

Status: pending -> processing -> completed | failed | cancelled, and pending -> cancelled.
Rules it keeps: an operation that ended is never open again, so it never runs twice; counts in a progress record are
what it came to so far, not what was added, so that folding one says all; everything has a bound: errors listed,
operations kept, operations open. What was sent (`rows`) is kept only while the operation is open.
It must not know tasks, the log, or how a row is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from engine.core.records import OperationChange

OPERATIONS_KEPT_MAX: Final = 10_000
"""Ended ones beyond it are forgotten, oldest first; the log still has them."""
OPERATIONS_OPEN_MAX: Final = 100
ROW_ERRORS_MAX: Final = 1_000
ERROR_CHARS_MAX: Final = 300
BACKFILL: Final = "backfill"
IMPORT: Final = "import"
ENDED: Final = frozenset(("completed", "failed", "cancelled"))
STATUSES: Final = ("pending", "processing", "completed", "failed", "cancelled")

assert OPERATIONS_OPEN_MAX < OPERATIONS_KEPT_MAX


class RowError(msgspec.Struct, frozen=True, array_like=True):
    """Why a row did not count; its line in what was sent, from 1."""

    line: int
    error: str


class Asked(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """What an operation is to do: the payload of its `create` record."""

    at_us: int
    reason: str = ""
    format: str = "json"
    """Of a backfill's rows: `json` (a list of events) or `csv`."""
    metric: str | None = None
    customer_ref: str | None = None
    """What a backfill's rows mean that name none of their own."""
    period_start_us: int | None = None
    period_end_us: int | None = None
    rows_total: int = 0
    """0: not known beforehand."""
    historic: bool = False
    identity: str = ""
    """Of an import: what its files are, so that a second run of the command finds the first one's operation."""


class Progress(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """How far an operation has come: the payload of its other records."""

    at_us: int
    processed: int = 0
    """Rows looked at, good or bad."""
    failed: int = 0
    accepted: int | None = None
    """Of `end` only: until then the shards count them (`ShardState.counted`)."""
    late: int | None = None
    errors: tuple[RowError, ...] = ()
    """Those since the last record."""
    cursor: bytes = b""
    """Where to go on; its maker's own."""
    message: str = ""


ERASED_TEXT: Final = "(erased with a customer)"


def mentions(text: str, names: Iterable[str]) -> bool:
    """Whether a text for people holds one of these names; in doubt yes."""
    return bool(text) and any(name in text for name in names)


_encode = msgspec.msgpack.Encoder().encode
_decode_asked = msgspec.msgpack.Decoder(Asked).decode
_decode_progress = msgspec.msgpack.Decoder(Progress).decode


def payload_of(value: Asked | Progress) -> bytes:
    """The bytes for a record's `payload`."""
    return _encode(value)


class Operation(msgspec.Struct, kw_only=True):
    """One operation, as of the records folded so far."""

    id: str
    tenant_id: str
    """Empty: rows of any tenant (an import by whoever may write for all)."""
    kind: str
    actor: str
    asked: Asked
    rows: bytes = b""
    status: str = "pending"
    processed: int = 0
    failed: int = 0
    accepted: int | None = None
    late: int | None = None
    errors: list[RowError] = []
    cursor: bytes = b""
    message: str = ""
    updated_at_us: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.status not in ENDED


class Operations:
    """All operations that are kept, oldest first."""

    def __init__(self) -> None:
        self.by_id: dict[str, Operation] = {}
        self._open: dict[str, None] = {}

    def fold(self, record: OperationChange) -> None:
        """Take one record in. Raises msgspec.MsgspecError when its payload can't be read."""
        if record.action == "create":
            asked = _decode_asked(record.payload)
            self._keep(
                Operation(
                    id=record.operation_id,
                    tenant_id=record.tenant_id,
                    kind=record.kind,
                    actor=record.change.actor,
                    asked=asked,
                    rows=record.rows,
                    updated_at_us=asked.at_us,
                )
            )
            return
        operation = self.by_id.get(record.operation_id)
        if operation is None or not operation.is_open:
            return  # of an operation that another version kept no record of, or a second end
        progress = _decode_progress(record.payload)
        operation.updated_at_us = progress.at_us
        if record.action == "begin":
            operation.status = "processing"
            return
        operation.processed, operation.failed = progress.processed, progress.failed
        operation.cursor = progress.cursor
        room = ROW_ERRORS_MAX - len(operation.errors)
        operation.errors = operation.errors + list(progress.errors[: max(0, room)])
        if record.action == "end":
            operation.status = record.status
            operation.accepted, operation.late = progress.accepted, progress.late
            operation.message = progress.message
            operation.rows = b""
            del self._open[operation.id]

    def _keep(self, operation: Operation) -> None:
        self.by_id[operation.id] = operation
        if operation.is_open:
            self._open[operation.id] = None
        while len(self.by_id) > OPERATIONS_KEPT_MAX:
            oldest = next(one for one in self.by_id.values() if not one.is_open)
            del self.by_id[oldest.id]

    def rename(self, tenant: str, names: dict[str, str]) -> None:
        """Let customers go by their pseudonyms, in operations of their tenant or of all; texts with a name go.

        What was sent goes too: in a state from before an erasure its tenant's operations may be open, and have all
        ended where the erasure begins, so nobody reads it again.
        """
        for operation in self.by_id.values() if names else ():
            if operation.tenant_id not in (tenant, ""):
                continue
            if operation.tenant_id == tenant:
                operation.rows = b""
            name = operation.asked.customer_ref
            if name is not None and name in names:
                operation.asked = msgspec.structs.replace(operation.asked, customer_ref=names[name])
            operation.errors = [
                RowError(error.line, ERASED_TEXT) if mentions(error.error, names) else error
                for error in operation.errors
            ]
            if mentions(operation.message, names):
                operation.message = ERASED_TEXT

    def open(self) -> list[Operation]:
        """Those that have not ended, oldest first."""
        return [self.by_id[operation_id] for operation_id in self._open]

    def running(self) -> set[str]:
        """Those that have begun and not ended: their rows are judged by the watermarks at their start."""
        return {one.id for one in self.open() if one.status == "processing"}

    def of(self, tenant: str | None, kind: str | None = None) -> Iterator[Operation]:
        """A tenant's operations (None: everybody's), newest first."""
        for operation in reversed(self.by_id.values()):
            if tenant in (None, operation.tenant_id) and kind in (None, operation.kind):
                yield operation

    def state(self) -> list[Operation]:
        """Everything for a snapshot; `restore` takes it back."""
        return list(self.by_id.values())

    @staticmethod
    def restore(saved: list[Any]) -> Operations:
        """Operations from what `state` gave."""
        operations = Operations()
        for one in saved:
            operations._keep(one)
        return operations
