"""An event group's part as columns of numbers: what folding many events at once needs, and no object per event.

Rules it keeps: a column holds what `engine.core.records.decode_events` finds in it; a part of which anything is not
plainly so (marks, wide quantities, columns that don't fit, other bytes) is not decoded here at all: the general way
takes it, or says what is wrong. It must not know counters.

In msgpack a column whose numbers are all of one width is a table of bytes, which numpy reads as it stands.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from engine.core.records import FINGERPRINT_BYTES, KEY_BYTES
from engine.limits import PARTITIONS

Numbers = npt.NDArray[np.int64]


class EventColumns(NamedTuple):
    """One tenant's events of a group; all columns have one length, and every index has its name."""

    tenant: str
    metric_names: list[str]
    customer_names: list[str]
    metric_indexes: Numbers
    customer_indexes: Numbers
    micros: Numbers
    times_us: Numbers
    """Of an event without a time of its own, when its group was received."""
    partitions: npt.NDArray[np.uint8]


class _Counting(msgspec.Struct, array_like=True, frozen=True):
    tenant: str
    metric_names: list[str]
    metric_indexes: msgspec.Raw
    customer_indexes: msgspec.Raw
    micros: msgspec.Raw
    times_us: msgspec.Raw
    partitions: bytes
    keys: bytes
    fingerprints: bytes
    sources: bytes
    extra: dict[str, msgspec.Raw]


class _OnlyCustomers(msgspec.Struct, array_like=True, frozen=True):
    customer_names: list[str]


_decode_counting = msgspec.msgpack.Decoder(_Counting).decode
_decode_customers = msgspec.msgpack.Decoder(_OnlyCustomers).decode
_decode_integers = msgspec.msgpack.Decoder(list[int]).decode
_decode_times = msgspec.msgpack.Decoder(list[int | None]).decode
_NIL: Final = 0xC0
_FIXINT_END: Final = 0x80
_FIXARRAY_COUNT_MAX: Final = 15
_ARRAY16_COUNT_MAX: Final = 0xFFFF
_FORMS: Final = {
    2: {0xCC: ">u1", 0xD0: ">i1"},
    3: {0xCD: ">u2", 0xD1: ">i2"},
    5: {0xCE: ">u4", 0xD2: ">i4"},
    9: {0xCF: ">u8", 0xD3: ">i8"},
}
"""By the bytes of a number, tag included: what the tags say of the rest."""


def decode_columns(counting: bytes, erasable: bytes, received_at_us: int) -> EventColumns | None:
    """Both parts of a tenant's events in a group; None: only the general way can tell what they say."""
    try:
        part = _decode_counting(counting)
        customer_names = _decode_customers(erasable).customer_names
        count = len(part.partitions)
        fits = (
            len(part.sources) == count
            and len(part.keys) == count * KEY_BYTES
            and len(part.fingerprints) == count * FINGERPRINT_BYTES
        )
        if part.extra or not fits or not count:
            return None
        columns = EventColumns(
            part.tenant,
            part.metric_names,
            customer_names,
            _integers(part.metric_indexes, count),
            _integers(part.customer_indexes, count),
            _integers(part.micros, count),
            _times(part.times_us, count, received_at_us),
            np.frombuffer(part.partitions, np.uint8),
        )
    except (msgspec.MsgspecError, ValueError, OverflowError, TypeError):
        return None
    is_named = (
        _is_within(columns.metric_indexes, len(part.metric_names))
        and _is_within(columns.customer_indexes, len(customer_names))
        and _is_within(columns.partitions, PARTITIONS)
    )
    return columns if is_named else None


def _is_within(indexes: npt.NDArray[np.integer], count: int) -> bool:
    return bool(indexes.min() >= 0 and indexes.max() < count)


def _integers(raw: msgspec.Raw, count: int) -> Numbers:
    """Raises ValueError, OverflowError or msgspec.MsgspecError if they are anything but `count` int64."""
    body = _body(raw, count)
    found = None if body is None else _of_one_width(body, count)
    return _numbers(_decode_integers(raw), count) if found is None else found


def _times(raw: msgspec.Raw, count: int, received_at_us: int) -> Numbers:
    """The same; nil stands for the time of receipt."""
    body = _body(raw, count)
    if body is not None and len(body) == count and bool((body == _NIL).all()):
        return np.full(count, received_at_us, np.int64)
    found = None if body is None else _of_one_width(body, count)
    if found is not None:
        return found
    times = _decode_times(raw)
    return _numbers([received_at_us if time is None else time for time in times], count)


def _numbers(values: list[int], count: int) -> Numbers:
    if len(values) != count:
        message = "the columns of an event group have different lengths"
        raise ValueError(message)
    return np.fromiter(values, np.int64, count)


def _body(raw: msgspec.Raw, count: int) -> npt.NDArray[np.uint8] | None:
    """The bytes of an array's elements; None if its head is not the shortest that says `count`."""
    if count <= _FIXARRAY_COUNT_MAX:
        head = bytes([0x90 | count])
    elif count <= _ARRAY16_COUNT_MAX:
        head = b"\xdc" + count.to_bytes(2, "big")
    else:
        head = b"\xdd" + count.to_bytes(4, "big")
    whole = memoryview(raw)
    if whole[: len(head)] != head:
        return None
    return np.frombuffer(whole, np.uint8, offset=len(head))


def _of_one_width(body: npt.NDArray[np.uint8], count: int) -> Numbers | None:
    """The numbers, if all have one tag; None if not.

    One tag at every multiple of its width is proof: an element that begins there ends where the next begins.
    """
    width, rest = divmod(len(body), count)
    if rest:
        return None
    if width == 1:
        return body.astype(np.int64) if int(body.max()) < _FIXINT_END else None
    form = _FORMS.get(width, {}).get(int(body[0]))
    table = body.reshape(count, width)
    if form is None or not bool((table[:, 0] == body[0]).all()):
        return None
    numbers = np.ascontiguousarray(table[:, 1:]).view(form).reshape(count)
    if form == ">u8" and int(table[:, 1].max()) >= _FIXINT_END:
        return None  # beyond an int64
    return numbers.astype(np.int64)
