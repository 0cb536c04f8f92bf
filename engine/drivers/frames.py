"""What the server and the process that speaks with Stripe for it say to each other: frames of msgpack.

Rules it keeps: a frame is four bytes of length and that many of msgpack; what was written together may be read in
pieces, and the other way round; a value comes out equal to what went in, decimals with it, and only what this file
lists can come out. A key is in the first frame and in no `repr`.
It must not know processes, nor what an answer means for a push.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec
import trio

from engine import limits
from engine.core.billing import (
    AlreadyDelivered,
    Delivered,
    Destination,
    Invoiced,
    PricedItem,
    Proven,
    PushRequest,
    Reading,
    Refused,
    RejectionReport,
    Resolved,
    RetryLater,
    Unknown,
    Unread,
    Unresolved,
)

_LENGTH_BYTES: Final = 4
_RECEIVE_BYTES: Final = 1 << 16
_DECIMAL: Final = 1
"""The msgpack extension that carries a Decimal's, or a large int's, digits."""
_INT64: Final = range(-(1 << 63), 1 << 64)

ARGUMENTS: Final[Mapping[str, Any]] = {
    "prove": tuple[()],
    "send": tuple[list[PushRequest], list[int]],
    "resolve": tuple[Destination],
    "read": tuple[Resolved, str, int, int, str | None],
    "invoiced": tuple[Resolved, str, int, str | None],
    "rejections": tuple[str, str | None],
    "price": tuple[str, str | None, str | None],
    "priced_item": tuple[str, str | None],
    "cancel": tuple[PushRequest],
}
"""Each method of the port, and what it takes."""
WRITES: Final = frozenset({"send", "cancel"})
"""Methods that change what Stripe holds: only in time, or not at all."""
_RESULTS: Final[Mapping[str, Any]] = {
    kind.__name__: kind
    for kind in (
        AlreadyDelivered, Delivered, Invoiced, PricedItem, Proven, Reading, Refused, RejectionReport,
        Resolved, RetryLater, Unknown, Unread, Unresolved,
    )
}  # fmt: skip
_PRICE: Final = "price"
_NOTHING: Final = "nothing"


class Way(msgspec.Struct, frozen=True, array_like=True):
    """One key, and where it is used."""

    secret: str
    api_base: str
    meter_events_base: str

    def __repr__(self) -> str:
        return f"Way([key], {self.api_base!r}, {self.meter_events_base!r})"


class Call(msgspec.Struct, frozen=True, array_like=True):
    """Something to ask Stripe, by a method of the port. `number` is the answer's; 0 only asks for a sign of life."""

    number: int
    way: str = ""
    method: str = ""
    begin_by_us: int | None = None
    """By `engine.drivers.wire.machine_us`: later it must not be begun; None: whenever."""
    arguments: msgspec.Raw = msgspec.Raw(b"\x90")


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What a call came to; `send` has one result a request. 0: a sign of life. `failed`: why this is the last frame."""

    number: int
    results: list[tuple[str, msgspec.Raw]] = []
    failed: str | None = None


_encoder: Final = msgspec.msgpack.Encoder()
_ways: Final = msgspec.msgpack.Decoder(dict[str, Way])
_call: Final = msgspec.msgpack.Decoder(Call)
_answer: Final = msgspec.msgpack.Decoder(Answer)
_arguments: Final = {method: msgspec.msgpack.Decoder(kind) for method, kind in ARGUMENTS.items()}


def _unpacked(code: int, data: memoryview) -> object:
    assert code == _DECIMAL
    text = bytes(data).decode("ascii")
    return Decimal(text) if "." in text else int(text)


_results: Final = {name: msgspec.msgpack.Decoder(kind) for name, kind in _RESULTS.items()} | {
    _PRICE: msgspec.msgpack.Decoder(dict[str, object], ext_hook=_unpacked),
    _NOTHING: msgspec.msgpack.Decoder(None),
}


def frame(message: Mapping[str, Way] | Call | Answer) -> bytes:
    """A message as it is written."""
    body = _encoder.encode(message)
    assert len(body) <= limits.STRIPE_FRAME_BYTES_MAX
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def read_ways(body: bytes) -> dict[str, Way]:
    """The first frame to the process. Raises msgspec.MsgspecError."""
    return _ways.decode(body)


def read_call(body: bytes) -> Call:
    """A later one. Raises msgspec.MsgspecError."""
    return _call.decode(body)


def read_answer(body: bytes) -> Answer:
    """A frame from the process. Raises msgspec.MsgspecError."""
    return _answer.decode(body)


def packed_arguments(arguments: tuple[object, ...]) -> msgspec.Raw:
    """What a method is called with."""
    return msgspec.Raw(_encoder.encode(arguments))


def arguments_of(call: Call) -> tuple[Any, ...]:
    """What a call's method is to be called with. Raises KeyError, msgspec.MsgspecError."""
    found: tuple[Any, ...] = _arguments[call.method].decode(call.arguments)
    return found


def packed_result(result: object) -> tuple[str, msgspec.Raw]:
    """One result, under the name of what it is."""
    if result is None:
        return _NOTHING, msgspec.Raw(_encoder.encode(None))
    if isinstance(result, dict):
        return _PRICE, msgspec.Raw(_encoder.encode(_exact(result)))
    name = type(result).__name__
    assert _RESULTS[name] is type(result)
    return name, msgspec.Raw(_encoder.encode(result))


def result_of(packed: tuple[str, msgspec.Raw]) -> object:
    """What was packed. Raises KeyError, msgspec.MsgspecError."""
    name, raw = packed
    return _results[name].decode(raw)


def _exact(value: object) -> object:
    """JSON with its numbers as they are: msgpack has no decimals, and its integers end at 64 bits."""
    match value:
        case dict():
            return {name: _exact(each) for name, each in value.items()}
        case list():
            return [_exact(each) for each in value]
        case Decimal():
            text = format(value, "f")
            return msgspec.msgpack.Ext(_DECIMAL, (text if "." in text else f"{text}.").encode())
        case int() if value not in _INT64:
            return msgspec.msgpack.Ext(_DECIMAL, str(value).encode())
        case _:
            return value


class FrameReader:
    """Takes frames from a stream, one at a time."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._received = bytearray()

    async def next(self) -> bytes | None:
        """The next frame's body; None: the other side has gone, whatever it was about to say.

        A checkpoint only when it has to wait.
        """
        while True:
            if (body := self._taken()) is not None:
                return body
            try:
                data = await self._stream.receive_some(_RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not data:
                return None
            self._received += data

    def _taken(self) -> bytes | None:
        received = self._received
        if len(received) < _LENGTH_BYTES:
            return None
        ends = _LENGTH_BYTES + int.from_bytes(received[:_LENGTH_BYTES], "big")
        assert ends <= _LENGTH_BYTES + limits.STRIPE_FRAME_BYTES_MAX, "not a frame of ours"
        if len(received) < ends:
            return None
        body = bytes(received[_LENGTH_BYTES:ends])
        del received[:ends]
        return body


class FrameWriter:
    """Writes what many tasks have to say: what came up meanwhile goes in one piece. Run `run` beside them."""

    def __init__(self, stream: trio.abc.SendStream, gather_seconds: float = 0) -> None:
        """`gather_seconds`: how long a frame may wait for others that go in one piece with it."""
        self._stream = stream
        self._gather_seconds = gather_seconds
        self._waiting: list[bytes] = []
        self._wake = trio.Event()

    def put(self, written: bytes) -> None:
        """Write a frame soon. Bounded by the calls that there may be at once."""
        self._waiting.append(written)
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled, or until the other side has gone: then who reads sees it too."""
        while True:
            await self._wake.wait()
            if self._gather_seconds:
                await trio.sleep(self._gather_seconds)
            self._wake = trio.Event()
            taken, self._waiting = self._waiting, []
            try:
                await self._stream.send_all(b"".join(taken))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
