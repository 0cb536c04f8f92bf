"""What the log's records mean: their types, and the bytes of their parts.

Rules it keeps: a type's number is never used again; an event group has, per tenant, a counting part (what the
fold needs for ever) and an erasable part (texts that may name a person), so that erasing never moves a key, a
partition or a total; every encoding has one canonical form, so that equal records have equal bytes. Control
records are msgpack maps, so that a later version may add fields. It must not know how records are stored.

The byte layout is docs/LOG_FORMAT.md; golden bytes are in tests/golden.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, Literal, NamedTuple

import msgspec

from engine.core.configured import Change, CustomerChange, MappingChange
from engine.core.finding_records import FINDING_TYPES, Finding
from engine.core.keeping import KEEPING_TYPES, KeepingRecord
from engine.core.push_records import (
    PUSH_TYPES,
    PushDecision,
    PushIntent,
    PushOutcome,
    PushRecord,
)
from engine.core.quantities import pack, unpack_ext
from engine.core.simulation_records import SIMULATION_TYPES, Simulation

KEY_BYTES: Final = 16
FINGERPRINT_BYTES: Final = 16


class RecordType(IntEnum):
    """Every kind of state change. Numbers are for ever; those that no code writes yet have their place."""

    GENESIS = 1
    EVENTS = 2
    SETTINGS = 3
    MAPPING = 4
    CUSTOMER = 5
    API_KEY = 6
    PERIOD_CLOSING = 7
    ADJUSTMENT = 8
    REPLAY = 9
    OPERATION = 10
    ERASE = 11
    CHECKPOINT = 12
    RESTORE = 13
    PUSH_INTENT = 14
    PUSH_OUTCOME = 15
    PUSH_DECISION = 16
    FINDING = 17
    ALERT = 18
    SIMULATION = 19


class PartKind(IntEnum):
    """What a part holds."""

    COUNTING = 1
    ERASABLE = 2
    CONTROL = 3


class Source(IntEnum):
    """Where an event came from; the text is the HTTP contract's."""

    HTTP = 0
    SDK = 1
    ETL = 2
    IMPORT = 3
    SYSTEM = 4


SOURCE_CODES: Final = {source.name.lower(): int(source) for source in Source}
SOURCE_NAMES: Final = {int(source): source.name.lower() for source in Source}


class Row(NamedTuple):
    """One accepted event on its way into the log. The hot path builds these as plain tuples, in this order."""

    metric: str
    customer_ref: str
    quantity_micros: int
    ts_us: int | None
    """None: the event had no time of its own; it happened when the group was received."""
    partition: int
    key: bytes
    fingerprint: bytes
    source: int
    key_text: str
    resource_id: str | None
    meta: str | None
    """Canonical JSON text of an object."""


class TenantEvents(NamedTuple):
    """One tenant's events of a group, as columns of equal length, in the order they were accepted."""

    tenant: str
    metrics: Sequence[str]
    customers: Sequence[str]
    micros: Sequence[int]
    times_us: Sequence[int | None]
    partitions: Sequence[int]
    keys: Sequence[bytes]
    fingerprints: Sequence[bytes]
    sources: Sequence[int]
    key_texts: Sequence[str]
    resources: Sequence[str | None]
    metas: Sequence[str | None]
    extra: dict[str, Any]
    """Marks of the whole part (an import's id, `historic`); empty for ordinary ingest."""

    @property
    def event_count(self) -> int:
        """Events of this tenant in the group."""
        return len(self.metrics)


_encode = msgspec.msgpack.Encoder().encode
_INT64_MIN: Final = -(1 << 63)
_INT64_MAX: Final = (1 << 63) - 1


class RecordError(ValueError):
    """A record's parts do not say what their type requires: the log was written by something else."""


def columns(tenant: str, rows: Sequence[tuple[Any, ...]], extra: dict[str, Any]) -> TenantEvents:
    """Turn accepted rows (`Row` order) into columns. `rows` must not be empty."""
    assert rows, "a tenant without events has no part"
    return TenantEvents._make((tenant, *zip(*rows, strict=True), extra))


def encode_counting(events: TenantEvents) -> bytes:
    """The part that the fold needs: names, quantities, times, partitions, keys, fingerprints, sources."""
    metric_names: dict[str, int] = {}
    metric_indexes = [metric_names.setdefault(name, len(metric_names)) for name in events.metrics]
    customer_names: dict[str, int] = {}
    customer_indexes = [
        customer_names.setdefault(name, len(customer_names)) for name in events.customers
    ]
    micros = events.micros
    if max(micros) > _INT64_MAX or min(micros) < _INT64_MIN:
        micros = [pack(value) for value in micros]  # type: ignore[misc]
    return _encode(
        (
            events.tenant,
            list(metric_names),
            metric_indexes,
            customer_indexes,
            micros,
            events.times_us,
            bytes(events.partitions),
            b"".join(events.keys),
            b"".join(events.fingerprints),
            bytes(events.sources),
            events.extra,
        )
    )


def encode_erasable(events: TenantEvents) -> bytes:
    """The part that erasing replaces: customer references, key texts, resources, meta."""
    customers = list(dict.fromkeys(events.customers))
    return _encode((customers, events.key_texts, events.resources, events.metas))


class _Counting(msgspec.Struct, array_like=True, frozen=True):
    tenant: str
    metric_names: list[str]
    metric_indexes: list[int]
    customer_indexes: list[int]
    micros: list[Any]
    times_us: list[int | None]
    partitions: bytes
    keys: bytes
    fingerprints: bytes
    sources: bytes
    extra: dict[str, Any]


class _Erasable(msgspec.Struct, array_like=True, frozen=True):
    customer_names: list[str]
    key_texts: list[str]
    resources: list[str | None]
    metas: list[str | None]


class _OnlyCustomers(msgspec.Struct, array_like=True, frozen=True):
    customer_names: list[str]


class _OnlyKeys(msgspec.Struct, array_like=True, frozen=True):
    """A counting part of which everything before the keys is passed over: a quarter of the cost."""

    tenant: msgspec.Raw
    metric_names: msgspec.Raw
    metric_indexes: msgspec.Raw
    customer_indexes: msgspec.Raw
    micros: msgspec.Raw
    times_us: msgspec.Raw
    partitions: msgspec.Raw
    keys: bytes
    fingerprints: bytes


_decode_counting = msgspec.msgpack.Decoder(_Counting, ext_hook=unpack_ext).decode
_decode_only_keys = msgspec.msgpack.Decoder(_OnlyKeys).decode
_decode_erasable = msgspec.msgpack.Decoder(_Erasable).decode
_decode_only_customers = msgspec.msgpack.Decoder(_OnlyCustomers).decode


def decode_events(counting: bytes, erasable: bytes, *, fold_only: bool = False) -> TenantEvents:
    """Both parts back to columns. Raises RecordError if they do not fit together.

    `fold_only` leaves out the columns that counting does not need (they are empty): half the cost.
    """
    try:
        part = _decode_counting(counting)
        count = len(part.metric_indexes)
        fits = (
            len(part.customer_indexes) == len(part.micros) == len(part.times_us) == count
            and len(part.partitions) == len(part.sources) == count
            and len(part.keys) == count * KEY_BYTES
            and len(part.fingerprints) == count * FINGERPRINT_BYTES
        )
        if fold_only:
            customer_names = _decode_only_customers(erasable).customer_names
            texts = _Erasable(customer_names, [], [], [])
        else:
            texts = _decode_erasable(erasable)
            customer_names = texts.customer_names
            fits = (
                fits and len(texts.key_texts) == len(texts.resources) == len(texts.metas) == count
            )
        if not fits:
            raise RecordError("the columns of an event group have different lengths")
        metric_names = part.metric_names
        return TenantEvents(
            part.tenant,
            [metric_names[i] for i in part.metric_indexes],
            [customer_names[i] for i in part.customer_indexes],
            part.micros,
            part.times_us,
            part.partitions,
            [] if fold_only else split_column(part.keys, KEY_BYTES),
            [] if fold_only else split_column(part.fingerprints, FINGERPRINT_BYTES),
            part.sources,
            texts.key_texts,
            texts.resources,
            texts.metas,
            part.extra,
        )
    except (msgspec.MsgspecError, IndexError, TypeError, ValueError) as error:
        raise RecordError(f"an event group can't be read: {error}") from error


def decode_keys(counting: bytes) -> tuple[bytes, bytes]:
    """Only the keys and fingerprints of a counting part, concatenated: what the key index is rebuilt from."""
    try:
        part = _decode_only_keys(counting)
    except (msgspec.MsgspecError, ValueError) as error:
        raise RecordError(f"an event group can't be read: {error}") from error
    keys, fingerprints = part.keys, part.fingerprints
    if len(keys) % KEY_BYTES or len(keys) * FINGERPRINT_BYTES != len(fingerprints) * KEY_BYTES:
        raise RecordError("the columns of an event group have different lengths")
    return keys, fingerprints


def split_column(data: bytes, width: int) -> list[bytes]:
    """Cut a fixed-width column into its values."""
    return [data[i : i + width] for i in range(0, len(data), width)]


# Control records.


class Genesis(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A log's first record: what it is and what is pinned in it for ever."""

    log_id: bytes
    partition_count: int
    partition_hash: str
    software: str


class SettingsChange(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The settings that change a total, appended at start when they differ from the log's last."""

    lateness_us: int
    late_policy: str
    actor: str


class ApiKey(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """An API key without its secret: only a keyed hash of it."""

    id: str
    name: str
    tenant_id: str
    prefix: str
    hash: bytes
    scopes: tuple[str, ...]
    created_at_us: int
    expires_at_us: int | None = None
    revoked_at_us: int | None = None


class ApiKeyChange(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A key was created, rotated (same id, other prefix and hash) or revoked."""

    action: str
    key: ApiKey
    change: Change


class PeriodClosing(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Periods that end at or before `end_us` are closed; without tenant and metric: of all without own lateness."""

    start_us: int
    end_us: int
    lateness_us: int
    tenant_id: str | None = None
    metric: str | None = None


class AdjustmentMade(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """An adjustment as its record makes it: a delta of a sum, or a value of a max or last."""

    id: str
    tenant_id: str
    metric: str
    customer_ref: str
    period_start_us: int
    period_end_us: int
    kind: Literal["delta", "value"]
    micros: Any
    """An integer of millionths; on its way into the log `pack`ed, since it may be wide."""
    reason: str
    note: str | None = None
    request_id: str | None = None
    """The client's own, that makes creating it twice make one."""
    parent_adjustment_id: str | None = None


class AdjustmentChange(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An adjustment was created, or some of a partition were approved or reverted."""

    action: Literal["create", "approve", "revert"]
    partition: int
    change: Change
    tenant_id: str
    adjustment: AdjustmentMade | None = None
    ids: tuple[str, ...] = ()
    was: Literal["pending", "approved"] = "pending"
    """The status of all of them before: for the audit trail, the fold does not read it."""


class ReplayedCounter(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What a replay folds into one counter: positions of late events, and what they come to.

    `tally` is (sum, count, max, last, time of last), quantities in the log's form.
    """

    partition: int
    tenant_id: str
    metric: str
    customer_ref: str
    period_start_us: int
    sequences: tuple[int, ...]
    tally: tuple[Any, ...]


class ReplayApply(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A replay that was reviewed is applied: folding it reads nothing else."""

    tenant_id: str
    plan_hash: str
    counters: tuple[ReplayedCounter, ...]
    change: Change


class OperationChange(
    msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True
):
    """An operation was asked for, began, went on, or ended; its rows are judged by the watermarks at `begin`."""

    action: Literal["create", "begin", "progress", "end"]
    operation_id: str
    tenant_id: str
    kind: str
    change: Change
    status: str = "pending"
    payload: bytes = b""
    """What is to be done (on `create`), or how far it has come: msgpack (engine.core.operations)."""
    rows: bytes = b""
    """On `create`: what was sent. In the log it is a part of its own, which erasing can take away."""


ControlRecord = (
    Genesis
    | SettingsChange
    | MappingChange
    | CustomerChange
    | ApiKeyChange
    | PeriodClosing
    | AdjustmentChange
    | ReplayApply
    | OperationChange
    | KeepingRecord
    | PushRecord
    | Finding
    | Simulation
)
CONTROL_TYPES: Final[dict[int, type[ControlRecord]]] = {
    RecordType.GENESIS: Genesis,
    RecordType.SETTINGS: SettingsChange,
    RecordType.MAPPING: MappingChange,
    RecordType.CUSTOMER: CustomerChange,
    RecordType.API_KEY: ApiKeyChange,
    RecordType.PERIOD_CLOSING: PeriodClosing,
    RecordType.ADJUSTMENT: AdjustmentChange,
    RecordType.REPLAY: ReplayApply,
    RecordType.OPERATION: OperationChange,
    **KEEPING_TYPES,
    **PUSH_TYPES,
    **FINDING_TYPES,
    **SIMULATION_TYPES,
}
UNCOUNTED: Final[frozenset[type[ControlRecord]]] = frozenset(
    {ApiKeyChange, Finding, PushDecision, PushIntent, PushOutcome, Simulation}
)
"""Records that say nothing of how events count: shards need not be told of them, however many there are."""
_TYPE_OF: Final = {struct: record_type for record_type, struct in CONTROL_TYPES.items()}
_DECODERS: Final = {
    record_type: msgspec.msgpack.Decoder(struct, ext_hook=unpack_ext)
    for record_type, struct in CONTROL_TYPES.items()
}


def encode_control(record: ControlRecord) -> tuple[int, bytes]:
    """A control record's type and the bytes of its first part."""
    return int(_TYPE_OF[type(record)]), _encode(record)


def decode_control(record_type: int, data: bytes) -> ControlRecord:
    """A control record back. Raises RecordError for a type this program doesn't know: it is too old."""
    decoder = _DECODERS.get(record_type)
    if decoder is None:
        unknown = f"its type is {record_type}, which this version does not know: the log was written by a newer"
        raise RecordError(f"{unknown} version. Install that one.")
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        message = f"a {RecordType(record_type).name} record can't be read: {error}"
        raise RecordError(message) from error
