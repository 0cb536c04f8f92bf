"""What can go wrong, as an app sees it: exceptions of direct calls, and the failures that `on_error` is told.

Rules it keeps: every text says what to do next; none holds an API key. It must not know how anything is sent.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from stripemeter.events import Event


class StripeMeterError(Exception):
    """All of this package's exceptions."""


class InvalidEvent(StripeMeterError, ValueError):
    """An argument can't be an event's; nothing was sent."""


class EventRejected(StripeMeterError):
    """The server will not count it, now or later. `status` is that of the answer."""

    def __init__(self, detail: str, status: int) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status


class RequestRefused(StripeMeterError):
    """A question that the server does not answer as it is. `status` is that of the answer."""

    def __init__(self, detail: str, status: int) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status


class MeterUnavailable(StripeMeterError):
    """No answer after all attempts. Whether the events were counted is unknown: track them again with the same keys."""

    def __init__(self, detail: str, idempotency_keys: tuple[str, ...] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.idempotency_keys = idempotency_keys


class QueueFull(StripeMeterError):
    """The buffer is full and its policy is "raise"; the event was not taken."""


class ClientClosed(StripeMeterError):
    """The client was closed before this call."""


class Failure(NamedTuple):
    """What `on_error` is told: events that will not be counted, and why.

    `kind`: "invalid" (an argument), "rejected" (the server's word), "unavailable" (a direct call's attempts are used up),
    "dropped" (no room), "closed" (the client ended first), "spool" (the spool has trouble; no event is lost by that
    alone), "internal" (an unexpected error; what was on its way is sent again).
    """

    kind: str
    detail: str
    events: tuple[Event, ...] = ()
    status: Optional[int] = None
