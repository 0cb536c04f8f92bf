"""What serving a lane waits for, as values: a course is a generator that yields what it wants done.

Rules it keeps: a course does nothing itself but compute, so that one task goes on with many of them in one turn of the
loop; it is sent what came of its wish, or has an EngineError thrown in where a record could not be made. It must not
know who carries the wishes out, nor why they are wished (engine.actors.push_conductor, engine.actors.push_lanes).

Not coroutines: those of trio wake up as a task each, and a turn of the loop for each of four waits is what a push
would mostly cost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from engine.actors.push_connections import Connection
from engine.core.billing import Outcome, PushRequest
from engine.core.records import ControlRecord

ResultT = TypeVar("ResultT")


class Record(NamedTuple):
    """Make records durable and folded, if `holds`, should there be one, says so just before (else Outdated is thrown in)."""

    records: Sequence[ControlRecord]
    holds: Callable[[], bool] | None


class Sending(NamedTuple):
    """Send a request once; the answer is its outcome."""

    connection: Connection
    request: PushRequest
    stored: int
    """Answers of its that the idempotency key would replay."""


class Ask(NamedTuple):
    """Anything else, which takes a task of its own; the answer is what it gives."""

    ask: Callable[[], Awaitable[object]]


Wish = Record | Sending | Ask
Course: TypeAlias = Generator[Wish, Any, ResultT]


def recorded(
    records: Sequence[ControlRecord], holds: Callable[[], bool] | None = None
) -> Course[None]:
    """Goes on when the records are durable and folded. Raises EngineError when they are not."""
    yield Record(records, holds)


def sent(connection: Connection, request: PushRequest, stored: int) -> Course[Outcome]:
    """What a request sent once came to; its connection is told."""
    answer: Outcome = yield Sending(connection, request, stored)
    connection.answered(answer)
    return answer


def asked(ask: Callable[[], Awaitable[ResultT]]) -> Course[ResultT]:
    """What something else gave."""
    found: ResultT = yield Ask(ask)
    return found
