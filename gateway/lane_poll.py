"""Serves what waiting connections ask without giving each of them a turn of the loop.

A connection between two requests parks its task here. One task reads all that have something to say, begins what they
ask, and one answers a whole group of the log at once; a turn, a trap and a change of the kernel's interest per request
were a third of a single event's cost (docs/decisions/0006). What is not one whole, plain request, and what can't be
sent at once, goes to the connection's own task, which is in `gateway.lane`.

Rules it keeps: a parked connection is read here and nowhere else; an answer leaves only for a connection that is still
parked; one connection's defect ends that connection alone. Where the kernel has no epoll there is no poll, and every
connection reads for itself. It must not know what is answered.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from math import inf
from typing import Final, NamedTuple, Protocol

import outcome
import structlog
import trio

from engine.actors.group import Group
from gateway.ingest import Counting
from gateway.ingest_lone import LoneCounting
from gateway.lane_answers import LaneAnswers, Visit
from gateway.lane_head import HEAD_END, Head, Route, read_head
from gateway.lane_watch import Phase, Watch
from gateway.problems import Problem

RECEIVE_BYTES: Final = 64 << 10
IDLE_SECONDS_MAX: Final = 30.0
EVENTS_MAX: Final = 128
"""Connections that are read in one turn: some milliseconds of single events."""
ANSWERS_PER_TURN: Final = 128
ANSWERS_AT_ONCE_MAX: Final = 32
"""Answers that leave in the turn that counted their events: half a millisecond."""

_logger = structlog.get_logger("stripemeter.access")
_WITH_DATA: Final = (
    0 if not hasattr(select, "epoll") else select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
)
"""Told once for all that has arrived, so that a request costs no change of the kernel's interest."""
_WITHOUT_DATA: Final = 0 if not hasattr(select, "epoll") else select.EPOLLET
"""A reset is told whatever one asks for: once, and not for as long as the connection stands."""


class Unsent(NamedTuple):
    """The rest of an answer that the client does not take just now."""

    data: bytes


class Last(NamedTuple):
    """An answer after which the connection ends, not sent yet."""

    visit: Visit
    answer: bytes | Problem


Left = bytes | Unsent | Last
"""What a parked task is woken with. Bytes: read, and not for the poll; none: the client has closed."""


class Polled(Protocol):
    """What is asked of a connection."""

    phase: Phase
    deadline: float
    place: Place

    @property
    def descriptor(self) -> int:
        """The socket's."""
        ...


class Place:
    """Where a connection stands with the poll."""

    __slots__ = ("descriptor", "has_more", "is_busy", "task")

    def __init__(self) -> None:
        self.descriptor = -1
        self.task: trio.lowlevel.Task | None = None
        """Parked; None: the task is at work, or has ended."""
        self.is_busy = False
        """A request of it is being counted."""
        self.has_more = False
        """It said something meanwhile."""


class LanePoll:
    """One per server."""

    def __init__(self, answers: LaneAnswers, watch: Watch, body_bytes_max: int) -> None:
        self._answers = answers
        self._watch = watch
        self._body_bytes_max = body_bytes_max
        self._epoll = select.epoll()
        self._connections: dict[int, Polled] = {}
        self._counted: dict[Group, list[tuple[Polled, Visit, Counting | LoneCounting]]] = {}
        """Whose answers wait for a group."""
        self._done: list[Group] = []
        self._wake = trio.Event()

    @classmethod
    def where_possible(
        cls, answers: LaneAnswers, watch: Watch, body_bytes_max: int
    ) -> LanePoll | None:
        """A poll; None where the system has no epoll."""
        return cls(answers, watch, body_bytes_max) if hasattr(select, "epoll") else None

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._answer_groups)
        finally:
            self._epoll.close()

    # What a connection calls.

    async def park(self, connection: Polled) -> Left:
        """Wait, and be served, until there is something that the connection must do itself."""
        place = connection.place
        self._listen(connection)
        connection.phase = Phase.IDLE
        connection.deadline = trio.current_time() + IDLE_SECONDS_MAX
        place.task = trio.lowlevel.current_task()
        place.is_busy = place.has_more = False

        def abort(_: object) -> trio.lowlevel.Abort:
            place.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        left: Left = await trio.lowlevel.wait_task_rescheduled(abort)
        # Not heard until it parks again: its own task reads meanwhile.
        self._epoll.modify(place.descriptor, _WITHOUT_DATA)
        return left

    def _listen(self, connection: Polled) -> None:
        """Hear of the connection from now on; of what has already arrived, at once."""
        place, events = connection.place, _WITH_DATA
        if place.descriptor < 0:
            place.descriptor = connection.descriptor
            self._epoll.register(place.descriptor, events)
            self._connections[place.descriptor] = connection
        else:
            self._epoll.modify(place.descriptor, events)

    def leave(self, connection: Polled) -> None:
        """The connection has ended, or is not the lane's any more. Its descriptor may be another's by now."""
        descriptor = connection.place.descriptor
        if self._connections.get(descriptor) is connection:
            del self._connections[descriptor]
            with suppress(OSError, ValueError):
                self._epoll.unregister(descriptor)

    # Reading.

    async def _read(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            gathered = self._answers.gather()
            try:
                for descriptor, _ in self._epoll.poll(0, EVENTS_MAX):
                    self._hear(descriptor)
            finally:
                if gathered is not None:
                    gathered.commit_now()

    def _hear(self, descriptor: int) -> None:
        """A connection says something."""
        connection = self._connections.get(descriptor)
        if connection is None or connection.place.task is None:
            return
        if connection.place.is_busy:
            connection.place.has_more = True
            return
        try:
            self._serve(connection)
        except Exception:  # as in a task of its own: any client could end the meter else
            _logger.exception("connection_failed")
            self._end(connection)

    def _serve(self, connection: Polled) -> None:
        """Read a connection, and begin what it asks or give it to its task."""
        try:
            data = os.read(connection.place.descriptor, RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        end = data.find(HEAD_END) + len(HEAD_END)
        # What filled the buffer goes on; so does what asks for more than one thing.
        if end < len(HEAD_END) or len(data) == RECEIVE_BYTES:
            self._resume(connection, data)
            return
        head = read_head(data[:end], self._body_bytes_max)
        is_whole = len(data) == end + head.length
        if not is_whole or head.close or self._watch.is_draining:
            self._resume(connection, data)
        elif head.route is Route.USAGE:
            self._send(connection, self._answers.usage(head, close=False))
        elif head.route is Route.INGEST and self._answers.is_plain_ingest(head):
            self._begin(connection, head, data[end:])
        else:
            self._resume(connection, data)

    def _begin(self, connection: Polled, head: Head, body: bytes) -> None:
        visit = self._answers.begin_ingest(head)
        begun = self._answers.count(visit, body)
        if isinstance(begun, bytes | Problem):
            self._answer(connection, visit, begun)
            return
        connection.place.is_busy = True
        connection.phase, connection.deadline = Phase.ANSWER, inf
        self._await_groups(connection, visit, begun)

    # Answering.

    def _await_groups(
        self, connection: Polled, visit: Visit, counting: Counting | LoneCounting
    ) -> None:
        """Answer when all groups are done: now, or when the first that is not is."""
        for group in counting.groups:
            if not group.done.is_set():
                waiting = self._counted.get(group)
                if waiting is None:
                    waiting = self._counted[group] = []
                    assert group.on_done is None, "one poll a meter"
                    group.on_done = self._note_done
                waiting.append((connection, visit, counting))
                return
        self._answer(connection, visit, self._answers.counted(visit, counting))

    def _note_done(self, group: Group) -> None:
        """A group is done. Few are answered at once: a turn of the loop costs more than their answers."""
        if self._done or len(self._counted[group]) > ANSWERS_AT_ONCE_MAX:
            self._done.append(group)
            self._wake.set()
        else:
            for waiting in self._counted.pop(group):
                self._answer_one(*waiting)

    async def _answer_groups(self) -> None:
        while True:
            if not self._done:
                self._wake = trio.Event()
                await self._wake.wait()
            for group in self._done.copy():
                for number, waiting in enumerate(self._counted.pop(group), 1):
                    self._answer_one(*waiting)
                    if number % ANSWERS_PER_TURN == 0:
                        await trio.lowlevel.checkpoint()
                self._done.remove(group)

    def _answer_one(
        self, connection: Polled, visit: Visit, counting: Counting | LoneCounting
    ) -> None:
        try:
            self._await_groups(connection, visit, counting)
        except Exception:  # as above
            _logger.exception("connection_failed")
            self._end(connection)

    def _answer(self, connection: Polled, visit: Visit, answer: bytes | Problem) -> None:
        if connection.place.task is None:
            return  # it was cut off meanwhile; what was counted stays counted
        is_last = self._watch.is_draining or (isinstance(answer, Problem) and answer.close)
        if is_last:
            self._resume(connection, Last(visit, answer))
        else:
            self._send(connection, self._answers.end_ingest(visit, answer, close=False))

    def _send(self, connection: Polled, data: bytes) -> None:
        """Send an answer; then the connection waits for the next request."""
        place = connection.place
        try:
            sent = os.write(place.descriptor, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._resume(connection, b"")
            return
        if sent < len(data):
            self._resume(connection, Unsent(data[sent:]))
            return
        place.is_busy = False
        connection.phase = Phase.IDLE
        connection.deadline = trio.current_time() + IDLE_SECONDS_MAX
        if place.has_more:
            place.has_more = False
            self._listen(connection)  # its turn comes when the kernel tells of it again

    def _end(self, connection: Polled) -> None:
        """Let the connection end, as if its client had closed it."""
        if connection.place.task is not None:
            self._resume(connection, b"")

    def _resume(self, connection: Polled, left: Left) -> None:
        task = connection.place.task
        assert task is not None, "nobody is parked"
        connection.place.task = None
        trio.lowlevel.reschedule(task, outcome.Value(left))
