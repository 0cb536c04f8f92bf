"""From the bytes of an ingest request to events: JSON batches, CloudEvents, gzip.

Rules it keeps: only a body that can't be read at all is refused as a whole; a bad event becomes a refusal in its own
place and its neighbours go on; nothing is decoded twice unless something was wrong. It must not know tenants,
keys or the engine's state.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec
import numpy as np

from engine.core.events import Refusal, SentEvent
from engine.core.json_depth import deeper_than
from gateway import surrogates
from gateway.surrogates import Value

JSON: Final = "application/json"
CLOUD_EVENT: Final = "application/cloudevents+json"
CLOUD_EVENT_BATCH: Final = "application/cloudevents-batch+json"
_GZIP_WINDOW: Final = 31
_CHUNK_BYTES: Final = 64 << 10
_NUMPY_BYTES_MIN: Final = 8_192
"""Of less numpy's start costs more than it saves."""
_PIECE_BYTES: Final = 32 << 10
_LOWER_CASE: Final = np.uint8(0x20)
_BRACE: Final = np.uint8(ord("{"))
_lower = np.empty(_PIECE_BYTES, np.uint8)
_is_bracket = np.empty(_PIECE_BYTES, np.bool_)
"""Room for one call at a time: bodies are read on the one thread that serves them."""


class BodyLimits(NamedTuple):
    """The settings a body is held against."""

    body_bytes_max: int
    batch_events_max: int
    json_depth_max: int


class Unreadable(Exception):
    """The whole request is refused: `status` 400, 413 or 415, and what to do about it."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class Sent(NamedTuple):
    """What a body held: events and refusals in the order sent, and whether a name may hold U+0000."""

    events: Sequence[SentEvent | Refusal]
    may_hold_nul: bool


class _Batch(msgspec.Struct, gc=False):
    events: list[SentEvent]


class _RawBatch(msgspec.Struct, gc=False):
    events: list[msgspec.Raw]


class _KeylessEvent(SentEvent, gc=False, kw_only=True, forbid_unknown_fields=True):
    """An event whose key is derived of its fields: one that is passed over would make two events one."""


class _CloudEvent(msgspec.Struct, gc=False):
    specversion: str
    id: str
    source: str
    type: str
    subject: str | None = None
    time: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    datacontenttype: str | None = None
    tenantid: str | None = None


_decode_batch = msgspec.json.Decoder(_Batch).decode
_decode_raw_batch = msgspec.json.Decoder(_RawBatch).decode
_decode_event = msgspec.json.Decoder(SentEvent).decode
_decode_keyless_event = msgspec.json.Decoder(_KeylessEvent).decode
_decode_cloud_event = msgspec.json.Decoder(_CloudEvent).decode
_decode_raw_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_data = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_key = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def unpack(body: bytes, encoding: bytes | None, bytes_max: int) -> bytes:
    """The body without its Content-Encoding. Raises Unreadable: 413 over the limit, 415 unknown, 400 damaged."""
    if encoding is None or encoding.lower() == b"identity":
        return body
    if encoding.lower() not in (b"gzip", b"x-gzip"):
        raise Unreadable(415, "Content-Encoding must be gzip or absent")
    unpacked = bytearray()
    rest = body
    try:
        while rest:
            member = zlib.decompressobj(_GZIP_WINDOW)
            while not member.eof:
                unpacked += member.decompress(rest, _CHUNK_BYTES)
                rest = member.unconsumed_tail
                if len(unpacked) > bytes_max:
                    raise Unreadable(413, too_large(bytes_max))
                if not rest and not member.eof:
                    unpacked += member.flush()
                    if not member.eof:
                        raise Unreadable(400, "the gzip body is cut short")
            rest = member.unused_data
    except zlib.error as error:
        raise Unreadable(400, "the body is not valid gzip") from error
    if len(unpacked) > bytes_max:
        raise Unreadable(413, too_large(bytes_max))
    return bytes(unpacked)


def too_large(bytes_max: int) -> str:
    """What a 413 says."""
    return f"the body is larger than {bytes_max} bytes; send smaller batches"


def read_events(
    body: bytes, content_type: str, limits: BodyLimits, *, has_header_key: bool = False
) -> Sent:
    """The events of a body. Raises Unreadable when there is nothing to take from it.

    `has_header_key`: the request has an `Idempotency-Key`, so no key is derived of an event's fields.
    """
    if content_type == CLOUD_EVENT:
        return _checked(body, [_cloud_event(body, whole=True)], limits)
    if content_type == CLOUD_EVENT_BATCH:
        values = _values(body, _decode_raw_list)
        _check_length(len(values), limits)
        return _checked(body, [_read_cloud_event(value) for value in values], limits)
    try:
        events: Sequence[SentEvent | Refusal] = _decode_batch(body).events
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        events = _one_by_one(body, limits)
    _check_length(len(events), limits)
    if not has_header_key and any(map(_is_keyless, events)):
        events = _without_unknown_fields(body, events)
    return _checked(body, events, limits)


def _is_keyless(event: SentEvent | Refusal) -> bool:
    return event.idempotency_key is None


def _without_unknown_fields(
    body: bytes, events: Sequence[SentEvent | Refusal]
) -> Sequence[SentEvent | Refusal]:
    """Refuse events without a key that have a field of another name: two that differ in it alone would count as one."""
    read: list[SentEvent | Refusal] = []
    values = _values(body, lambda data: _decode_raw_batch(data).events)
    for event, value in zip(events, values, strict=True):
        read.append(event)
        if isinstance(event, SentEvent) and event.idempotency_key is None:
            try:
                _decode_keyless_event(value.data)
            except msgspec.ValidationError as error:
                read[-1] = Refusal(
                    None,
                    f"{_event_error(error)}: check its spelling, put it into meta, or give the event an "
                    "idempotencyKey; else it could not be told from one that differs in this alone",
                )
            except UnicodeDecodeError:  # in a name that the decoder of known fields passed over
                read[-1] = Refusal(None, "the name of a field is not UTF-8")
    return read


def _check_length(count: int, limits: BodyLimits) -> None:
    if count == 0:
        raise Unreadable(400, "events is empty; send at least one event")
    if count > limits.batch_events_max:
        raise Unreadable(
            400,
            f"events holds {count} events; at most {limits.batch_events_max} are allowed in one request",
        )


def _checked(body: bytes, events: Sequence[SentEvent | Refusal], limits: BodyLimits) -> Sent:
    # A flat batch has a brace for itself, its list and each event and meta. Only more of them can be deep.
    if _brackets(body) > 2 + 2 * len(events) and deeper_than(body, limits.json_depth_max):
        raise Unreadable(400, f"the body nests deeper than {limits.json_depth_max} levels")
    return Sent(events, b"\\" in body and b"\\u0000" in body)


def _brackets(body: bytes) -> int:
    """How many open an array or an object, in the whole body."""
    if len(body) < _NUMPY_BYTES_MIN:
        return body.count(b"{") + body.count(b"[")
    # The bit of lower case makes one character of the two (and of no third): one pass, a sixth of the cost. In pieces
    # that stay in the processor's cache, in memory that is there: a third of what new memory for all of it costs.
    codes, found = np.frombuffer(body, np.uint8), 0
    for first in range(0, len(codes), _PIECE_BYTES):
        piece = codes[first : first + _PIECE_BYTES]
        lower, is_bracket = _lower[: len(piece)], _is_bracket[: len(piece)]
        np.bitwise_or(piece, _LOWER_CASE, out=lower)
        np.equal(lower, _BRACE, out=is_bracket)
        found += int(np.count_nonzero(is_bracket))
    return found


def _one_by_one(body: bytes, limits: BodyLimits) -> list[SentEvent | Refusal]:
    """Decode each event alone, since the batch did not decode: the good ones count, the bad ones say why."""
    values = _values(body, lambda data: _decode_raw_batch(data).events)
    _check_length(len(values), limits)
    return [_read_event(value) for value in values]


def _read_event(value: Value) -> SentEvent | Refusal:
    try:
        if not value.has_half:
            return _decode_event(value.data)
        error: Exception = ValueError(surrogates.REFUSED)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as refused:
        error = refused
    return Refusal(_key_of(value), _event_error(error))


def _values(body: bytes, decode: Callable[[bytes], Sequence[msgspec.Raw]]) -> list[Value]:
    """The values of a body's list, each still to be decoded. Raises Unreadable."""
    try:
        return [Value(bytes(raw), has_half=False) for raw in decode(body)]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        values = surrogates.values_of(body, decode)
        if values is None:
            raise Unreadable(400, _unreadable(error)) from error
        return values


def _key_of(value: Value) -> str | None:
    """The idempotency key of an event that did not decode, if it can be told."""
    try:
        key = _decode_key(value.data)["idempotencyKey"]
        if value.holds_half(bytes(key)):
            return None
        return msgspec.json.decode(key, type=str)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, KeyError):
        return None


def _unreadable(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the body nests too deep"
    if isinstance(error, msgspec.ValidationError):
        return f'the body must be {{"events": [...]}}: {error}'
    return f"the body is not valid JSON: {error}"


def _event_error(error: Exception) -> str:
    """Msgspec's message, with the field first, as a client reads it."""
    if isinstance(error, RecursionError):
        return "the event nests too deep"
    text = str(error)
    message, found, path = text.partition(" - at `$.")
    if found:
        return f"{path.rstrip('`')}: {message[:1].lower()}{message[1:]}"
    return text


def _read_cloud_event(value: Value) -> SentEvent | Refusal:
    return Refusal(None, surrogates.REFUSED) if value.has_half else _cloud_event(value.data)


def _cloud_event(data: bytes, *, whole: bool = False) -> SentEvent | Refusal:
    """One CloudEvent as an event: key from source and id, type is the metric, subject the customer."""
    try:
        sent = _decode_cloud_event(data)
    except msgspec.ValidationError as error:
        return Refusal(None, _event_error(error))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        if whole:
            raise Unreadable(400, _unreadable(error)) from error
        return Refusal(None, _event_error(error))
    digest = blake2b(f"{sent.source}\0{sent.id}".encode(), digest_size=16).hexdigest()
    key = f"ce:{digest}"
    if not sent.specversion.startswith("1."):
        return Refusal(
            key, f"specversion {sent.specversion!r} is not supported; send CloudEvents 1.0"
        )
    if sent.subject is None:
        return Refusal(key, "subject: is missing; it is the customerRef")
    quantity, meta, problem = _quantity_and_meta(bytes(sent.data))
    if problem is not None:
        return Refusal(key, problem)
    fields = {
        "metric": sent.type,
        "customerRef": sent.subject,
        "quantity": quantity,
        "idempotencyKey": key,
    }
    if sent.tenantid is not None:
        fields["tenantId"] = sent.tenantid
    if sent.time is not None:
        fields["ts"] = sent.time
    if meta is not None:
        fields["meta"] = meta
    try:
        return _decode_event(_encode(fields))
    except msgspec.MsgspecError as error:
        return Refusal(key, _event_error(error))


def _quantity_and_meta(data: bytes) -> tuple[msgspec.Raw, msgspec.Raw | None, str | None]:
    """(raw quantity, raw meta or None, problem or None) of a CloudEvent's data."""
    one = msgspec.Raw(b"1")
    if not data or data == b"null":
        return one, None, None
    try:
        members = _decode_data(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return one, None, "data: must be a JSON object (quantity or value, the rest is meta)"
    quantity = members.pop("quantity", None)
    if quantity is None:
        quantity = members.pop("value", one)
    return quantity, msgspec.Raw(_encode(members)) if members else None, None
