"""Sends events to a server until each has its answer: what `stripemeter send` does.

Rules it keeps: an event's key and its bytes are made once, before the first try, and every try sends the same bytes; so
a lost answer is never a second event. Only the server's own answer about an event ends it; what may have arrived or not
(no answer, 408, 425, 429, 5xx) is sent again until the time is up, and is then named as unsent. A request that is too
large is cut in halves. It must not know who shows the answers, nor read a clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from engine.errors import EngineError
from gateway.admin_client import AdminClient, Answered, ServerSilent

PATH: Final = "/v1/events/ingest"
CHUNK_BYTES: Final = 256 << 10
"""Read from a file at once; a request holds at most so much and a line."""
LINE_BYTES_MAX: Final = 1 << 20
BATCH_EVENTS: Final = 500
RETRIED: Final = frozenset((408, 425, 429))
"""Beside every 5xx. Another 4xx is the server's last word."""
FIRST_WAIT_SECONDS: Final = 0.2
WAIT_SECONDS_MAX: Final = 10.0
SEND_SECONDS_MAX: Final = 30.0


class Line(NamedTuple):
    """A line of a file, without its end."""

    number: int
    text: bytes


class Event(NamedTuple):
    """An event as it is sent, every time."""

    line: int
    key: str
    data: bytes


class Result(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    """What became of an event, as the server says it."""

    idempotency_key: str | None
    status: str
    late: bool = False
    adjustment_id: str | None = None
    error: str | None = None
    line: int = 0
    """Where it came from; 0: not from a file."""


class _Answer(msgspec.Struct, frozen=True):
    results: list[Result]


class Unsent(EngineError):
    """The time is up and the server gave no answer about these events: they may have counted, or not."""

    def __init__(self, message: str, first_line: int) -> None:
        super().__init__(message)
        self.first_line = first_line


def lines_of(read: Callable[[int], bytes]) -> Iterator[list[Line]]:
    """The lines of what `read` gives, as they come: what is there is not held back for more. Empty lines are passed over.

    Raises EngineError when a line is longer than any event.
    """
    rest = b""
    number = 0
    while data := read(CHUNK_BYTES):
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            message = f"line {number + len(whole) + 1} is longer than {LINE_BYTES_MAX >> 20} MiB"
            raise EngineError(f"{message}: events are JSON objects, one a line")
        yield [Line(number + place, text) for place, text in enumerate(whole, 1) if text.strip()]
        number += len(whole)
    if rest.strip():
        yield [Line(number + 1, rest)]


def event_of(line: Line, key_prefix: str, tenant: str | None) -> Event | Result:
    """The event in a line, with its own key or `PREFIX:LINE`; what is wrong with a line that holds none."""
    try:
        fields = msgspec.json.decode(line.text, type=dict[str, msgspec.Raw])
        key = _text(fields.get("idempotencyKey"))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return Result(None, "error", error=f"the line is no event: {error}", line=line.number)
    if key is None:
        key = f"{key_prefix}:{line.number}"
        fields["idempotencyKey"] = msgspec.Raw(msgspec.json.encode(key))
    if tenant is not None and "tenantId" not in fields:
        fields["tenantId"] = msgspec.Raw(msgspec.json.encode(tenant))
    return Event(line.number, key, msgspec.json.encode(fields))


def _text(raw: msgspec.Raw | None) -> str | None:
    if raw is None or bytes(raw) == b"null":
        return None
    return msgspec.json.decode(raw, type=str)


class Sender:
    """One server, and how long to try."""

    def __init__(
        self,
        client: AdminClient,
        retry_seconds: float,
        *,
        monotonic: Callable[[], float],
        wait: Callable[[float], None],
        chance: Callable[[], float],
        on_wait: Callable[[str], None],
    ) -> None:
        """`chance` gives 0 to 1; `on_wait` is told why it waits, once for each time that the server goes away."""
        self._client = client
        self._retry_seconds = retry_seconds
        self._monotonic = monotonic
        self._wait = wait
        self._chance = chance
        self._on_wait = on_wait

    def send(self, events: Sequence[Event]) -> Iterator[list[Result]]:
        """The results of the events in order, as they come. Raises Unsent, or EngineError when the server refuses all."""
        for first in range(0, len(events), BATCH_EVENTS):
            yield from self._send(events[first : first + BATCH_EVENTS])

    def _send(self, events: Sequence[Event]) -> Iterator[list[Result]]:
        body = b'{"events":[' + b",".join(one.data for one in events) + b"]}"
        answered = self._answer(body, events[0])
        if answered.status == 200:
            yield self._results(answered, events)
        elif answered.status not in (400, 413):
            raise self._client.refusal(answered)
        elif len(events) > 1:
            middle = len(events) // 2
            yield from self._send(events[:middle])
            yield from self._send(events[middle:])
        else:
            why = str(self._client.refusal(answered))
            yield [Result(events[0].key, "error", error=why, line=events[0].line)]

    def _results(self, answered: Answered, events: Sequence[Event]) -> list[Result]:
        try:
            results = msgspec.json.decode(answered.content, type=_Answer).results
        except msgspec.MsgspecError:
            results = []
        if len(results) != len(events):
            raise EngineError(f"{self._client.url} does not answer as this server would")
        return [
            msgspec.structs.replace(one, line=event.line)
            for one, event in zip(results, events, strict=True)
        ]

    def _answer(self, body: bytes, first: Event) -> Answered:
        """The server's answer to these bytes, tried until there is one that is no 5xx. Raises Unsent."""
        until = self._monotonic() + self._retry_seconds
        delay = FIRST_WAIT_SECONDS
        is_told = False
        while True:
            asked = 0.0
            try:
                answered = self._client.exchange(
                    "POST", PATH, body, seconds_max=SEND_SECONDS_MAX, keep=True
                )
            except ServerSilent as error:
                why = str(error)
            else:
                if answered.status < 500 and answered.status not in RETRIED:
                    return answered
                why = f"{self._client.url} answers {answered.status}: {self._client.refusal(answered)}"
                asked = _seconds(answered.headers.get("retry-after"))
            left = until - self._monotonic()
            if left <= 0:
                raise Unsent(why, first.line)
            if not is_told:
                is_told = True
                self._on_wait(why)
            # Between half of it and all of it, so that many senders do not come back at once.
            pause = max(asked, delay * (0.5 + self._chance() / 2))
            self._wait(min(pause, left))
            delay = min(2 * delay, WAIT_SECONDS_MAX)


def _seconds(text: str | None) -> float:
    """What `Retry-After` asks for; 0 when it says nothing that is a number of seconds."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else 0.0
