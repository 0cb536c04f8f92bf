"""From what a client sent to a row of the log: checks, normalisation, key and fingerprint.

Rules it keeps: a bad event is a value that says what to do, and never touches its neighbours; the key is a hash of
(tenant, customer, idempotency key); the fingerprint is of what the client *sent*, normalised, so that a retry
equals its first attempt and another payload under the same key does not. Pure: now is a parameter.
It must not know HTTP, JSON bodies or the log.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from engine.core.partitions import partition_of
from engine.core.quantities import QuantityError, parse_json
from engine.core.records import SOURCE_CODES, Row
from engine.core.times import INSTANT_US_MIN, TimeError, format_instant, parse_instant
from engine.limits import FUTURE_US_MAX, METRIC_CHARS_MAX, NAME_CHARS_MAX

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX)]
_Metric = Annotated[str, msgspec.Meta(min_length=1, max_length=METRIC_CHARS_MAX)]


class SentEvent(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """An event as the wire has it. Quantity and meta stay raw: no float ever holds them."""

    metric: _Metric
    customer_ref: _Name
    quantity: msgspec.Raw
    tenant_id: _Name | None = None
    resource_id: _Name | None = None
    ts: str | None = None
    meta: msgspec.Raw = msgspec.Raw()
    idempotency_key: _Name | None = None
    source: str | None = None


class EventLimits(NamedTuple):
    """The settings an event is held against."""

    meta_bytes_max: int
    horizon_us: int = INSTANT_US_MIN
    """Older events are refused: retention has dropped what they would be held against."""


class Refusal(NamedTuple):
    """Why an event was refused, for its sender, and its key if it had one."""

    idempotency_key: str | None
    error: str


KEY_REUSED: Final = "idempotency key reused with a different event"
NEEDS_KEY_OR_TIME: Final = (
    "an event without ts needs an idempotencyKey (or an Idempotency-Key header): with neither, a retry could not "
    "be told from a second event"
)
_NO_META: Final = msgspec.Raw()


def _canonical_number(text: str) -> msgspec.Raw:
    """A number of a meta value as canonical text: digits without trailing zeros, then the power of ten.

    1.50, 1.5 and 15e-1 are one number and one text; nothing passes through a binary float, so 1e400 stays 1e400.
    """
    body, _, exponent_text = text.lower().partition("e")
    if len(exponent_text) > 9:
        message = "a number's exponent is out of range"
        raise ValueError(message)
    sign = "-" if body.startswith("-") else ""
    whole, _, fraction = body.lstrip("-").partition(".")
    digits = (whole + fraction).lstrip("0")
    exponent = int(exponent_text or 0) - len(fraction)
    stripped = digits.rstrip("0")
    exponent += len(digits) - len(stripped)
    if not stripped:
        return msgspec.Raw(b"0")
    if exponent == 0:
        return msgspec.Raw(f"{sign}{stripped}".encode())
    if -len(stripped) < exponent < 0:
        return msgspec.Raw(f"{sign}{stripped[:exponent]}.{stripped[exponent:]}".encode())
    if exponent < 0 and exponent > -20:
        return msgspec.Raw(f"{sign}0.{'0' * (-exponent - len(stripped))}{stripped}".encode())
    if 0 < exponent < 20:
        return msgspec.Raw(f"{sign}{stripped}{'0' * exponent}".encode())
    return msgspec.Raw(f"{sign}{stripped}e{exponent}".encode())


_meta_decode = msgspec.json.Decoder(float_hook=_canonical_number).decode
_meta_encode = msgspec.json.Encoder(order="sorted", decimal_format="number").encode


def key_hash(tenant: str, customer_ref: str, key_text: str) -> bytes:
    """The 16-byte dedupe key. NUL can't occur in a name, so the joined text has one reading."""
    text = f"{tenant}\0{customer_ref}\0{key_text}"
    return blake2b(text.encode(), digest_size=16).digest()


def fingerprint_of(  # noqa: PLR0917 - on the hot path
    metric: str,
    resource_id: str | None,
    micros: int,
    ts_us: int | None,
    source: int,
    meta: str | None,
) -> bytes:
    """16 bytes that tell two payloads apart: quantity in micros, instants in UTC, meta canonical."""
    text = f"{metric}\0{resource_id or ''}\0{micros}\0{'' if ts_us is None else ts_us}\0{source}\0{meta or ''}"
    return blake2b(text.encode(), digest_size=16).digest()


def accept(  # noqa: PLR0917 - on the hot path
    sent: SentEvent,
    tenant: str,
    header_key: str | None,
    now_us: int,
    limits: EventLimits,
    default_source: int = 0,
) -> Row | Refusal:
    """The row of a valid event, else the reason it is refused.

    `tenant` is the tenant it counts for; `header_key` the key that a request header gives this event (its own
    wins). An event without a source is stored under `default_source`, with the fingerprint of one without, so that
    the same event by another way in is the same. Costs about 2 µs.
    """
    key_text = sent.idempotency_key or header_key
    try:
        micros = parse_json(bytes(sent.quantity))
        if micros < 0:
            return Refusal(key_text, "quantity must not be negative; corrections are adjustments")
        ts_us = None if sent.ts is None else parse_instant(sent.ts)
    except QuantityError as error:
        return Refusal(key_text, f"quantity {error}")
    except TimeError as error:
        return Refusal(key_text, f"ts {error}")
    if ts_us is None:
        if key_text is None:
            return Refusal(None, NEEDS_KEY_OR_TIME)
    elif ts_us > now_us + FUTURE_US_MAX:
        return Refusal(key_text, "ts is more than 1 hour ahead of the server's clock")
    elif ts_us < limits.horizon_us:
        horizon = format_instant(limits.horizon_us)
        return Refusal(key_text, f"ts is before {horizon}: retention has dropped events that old")
    source = 0 if sent.source is None else SOURCE_CODES.get(sent.source, -1)
    if source < 0:
        return Refusal(key_text, f"source must be one of {', '.join(sorted(SOURCE_CODES))}")
    meta: str | None = None
    if sent.meta != _NO_META:
        meta, problem = canonical_meta(bytes(sent.meta), limits.meta_bytes_max)
        if problem is not None:
            return Refusal(key_text, problem)
    metric, customer, resource = sent.metric, sent.customer_ref, sent.resource_id
    fingerprint = fingerprint_of(metric, resource, micros, ts_us, source, meta)
    if key_text is None:
        key_text = "auto:" + fingerprint.hex()
    key = key_hash(tenant, customer, key_text)
    partition = partition_of(tenant, customer)
    # A plain tuple in Row's order: building the named one costs three times as much.
    return (  # type: ignore[return-value]
        metric,
        customer,
        micros,
        ts_us,
        partition,
        key,
        fingerprint,
        source if sent.source is not None else default_source,
        key_text,
        resource,
        meta,
    )


def holds_nul(sent: SentEvent, tenant: str) -> bool:
    """Whether a name holds U+0000, which separates names in the key's text. Asked only if the body may."""
    names = (tenant, sent.metric, sent.customer_ref, sent.resource_id, sent.idempotency_key)
    return any(name is not None and "\0" in name for name in names)


NUL_REFUSED: Final = "names must not hold the character U+0000"


def canonical_meta(raw: bytes, bytes_max: int) -> tuple[str | None, str | None]:
    """(canonical JSON text or None for null, problem or None): keys sorted, numbers exact, no blanks."""
    if len(raw) > bytes_max:
        return None, f"meta is {len(raw)} bytes; at most {bytes_max} are allowed"
    try:
        value: Any = _meta_decode(raw)
    except (msgspec.MsgspecError, RecursionError, ValueError, ArithmeticError) as error:
        return None, f"meta can't be read: {error}"
    if value is None:
        return None, None
    if not isinstance(value, dict):
        return None, "meta must be a JSON object"
    return _meta_encode(value).decode(), None
