"""Serves all lanes from one task: hands each its turn when its time has come, and carries out what its course wishes.

Rules it keeps: a lane has one course at a time, at most COURSES_MAX lanes have one at once, and those that wait are served
in the order in which they came due; work that is there is done for many lanes in one turn of the loop, but for no more than
COURSES_PER_TURN, so that ingest comes in between. What a course waits for is answered in the order it came. It must not know
what a course does, nor which lanes have something to do.

Not a task each: to wake one costs as much as what a push has to do then, four times over, and every task that is awake
is one more that ingest waits for.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import trio

from engine.actors.push_course import Ask, Course, Record, Sending
from engine.actors.push_recorder import PushRecorder
from engine.core.push_records import Lane
from engine.errors import EngineError
from engine.ports import Clock

COURSES_MAX: Final = 64
"""Lanes served at once: requests under way, and records waited for."""
COURSES_PER_TURN: Final = 4
"""A tenth of a millisecond, a third of one where caches are cold."""
DUE_PER_TURN: Final = 64
"""Lanes moved to those that are ready; thousands may be due at once."""
STALE_MAX: Final = 64
"""Entries of the timetable that stand for nothing any more, beyond one for each lane."""
SLEEP_SECONDS_MAX: Final = 60.0
"""A wall clock may step; what is due is looked for at least this often."""
SLEEP_SECONDS_MIN: Final = 0.01
"""What comes due within it is served together."""
DRAIN_SECONDS_MAX: Final = 2.0


class _Under:
    """A lane's course under way. What comes of its wishes is only noted: it may be told in anybody's turn."""

    __slots__ = ("_note", "course", "lane")

    def __init__(
        self,
        lane: Lane,
        course: Course[int | None],
        note: Callable[[tuple[_Under, object, EngineError | None]], None],
    ) -> None:
        self.lane = lane
        self.course = course
        self._note = note

    def recorded(self, error: EngineError | None) -> None:
        """Its records are durable and folded; or why not."""
        self._note((self, None, error))

    def answered(self, answer: object) -> None:
        """What else it wished for gave this."""
        self._note((self, answer, None))


class Conductor:
    """One for all lanes. `run` it beside the recorder."""

    def __init__(
        self,
        serve: Callable[[Lane], Course[int | None]],
        recorder: PushRecorder,
        clock: Clock,
    ) -> None:
        """`serve` begins a lane's course, whose result is when to come again (wall time); None: when told to."""
        self._serve = serve
        self._recorder = recorder
        self._clock = clock
        self._heap: list[tuple[int, int, Lane]] = []
        self._due_at: dict[Lane, int] = {}
        self._entries = 0
        self._ready: deque[Lane] = deque()
        self._queued: set[Lane] = set()
        self._busy: dict[Lane, Course[int | None]] = {}
        self._again: set[Lane] = set()
        self._answers: deque[tuple[_Under, object, EngineError | None]] = deque()
        self._wake = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._is_draining = False
        self._has_moved = False
        self.moved = trio.Event()
        """Set, and replaced, whenever lanes were served."""

    # What others tell it.

    def schedule(self, lane: Lane, at_us: int) -> None:
        """Serve a lane at an instant, or earlier if that was arranged before."""
        known = self._due_at.get(lane)
        if known is not None and known <= at_us:
            return
        self._due_at[lane] = at_us
        self._entries += 1
        heapq.heappush(self._heap, (at_us, self._entries, lane))
        if len(self._heap) > 2 * len(self._due_at) + STALE_MAX:
            self._forget_stale()
        if self._heap[0][0] == at_us:
            self._wake.set()

    def _forget_stale(self) -> None:
        """A lane that is served earlier than was arranged leaves its entry: weeks away perhaps, and one more each time."""
        self._heap = []
        for lane, at_us in self._due_at.items():
            self._entries += 1
            self._heap.append((at_us, self._entries, lane))
        heapq.heapify(self._heap)

    def is_serving(self, lane: Lane) -> bool:
        """Whether a lane's course is under way."""
        return lane in self._busy

    async def drain(self) -> None:
        """Begin nothing more, and wait a moment for what is under way: what Stripe said is recorded before the end."""
        self._is_draining = True
        with trio.move_on_after(DRAIN_SECONDS_MAX):
            while self._busy:
                await self.moved.wait()

    # Its task.

    async def run(self) -> None:
        """Serve lanes until cancelled: what is under way then goes no further, and lets go what it holds."""
        try:
            async with trio.open_nursery() as self._nursery:
                while True:
                    self._take_due()
                    is_more = self._work()
                    if self._has_moved:
                        self._has_moved = False
                        self.moved.set()
                        self.moved = trio.Event()
                    if is_more:
                        await trio.lowlevel.checkpoint()
                    else:
                        await self._rest()
        finally:
            for course in self._busy.values():
                course.close()

    async def _rest(self) -> None:
        """Until there is something to do. Nobody could tell since it was looked: nothing was awaited."""
        wait = SLEEP_SECONDS_MAX
        if self._heap:
            left_us = self._heap[0][0] - self._clock.now_us()
            wait = min(wait, max(SLEEP_SECONDS_MIN, left_us / 1e6))
        self._wake = trio.Event()
        with trio.move_on_after(wait):
            await self._wake.wait()

    def _take_due(self) -> None:
        """Lanes whose time has come are ready."""
        if not self._heap:
            return
        now_us = self._clock.now_us()
        for _ in range(DUE_PER_TURN):
            if not self._heap or self._heap[0][0] > now_us:
                return
            at_us, _, lane = heapq.heappop(self._heap)
            if self._due_at.get(lane) == at_us:
                del self._due_at[lane]
                self._make_ready(lane)

    def _make_ready(self, lane: Lane) -> None:
        if lane in self._busy:
            self._again.add(lane)
        elif lane not in self._queued:
            self._queued.add(lane)
            self._ready.append(lane)

    def _work(self) -> bool:
        """Go on with some courses, those that were answered first; whether there is more to do at once."""
        for _ in range(COURSES_PER_TURN):
            if self._answers:
                self._go_on(*self._answers.popleft())
            elif self._ready and len(self._busy) < COURSES_MAX and not self._is_draining:
                lane = self._ready.popleft()
                self._queued.discard(lane)
                course = self._busy[lane] = self._serve(lane)
                self._go_on(_Under(lane, course, self._note), None, None)
            else:
                return False
        return True

    def _go_on(self, under: _Under, answer: object, error: EngineError | None) -> None:
        """A course up to its next wish, or its end."""
        course = under.course
        try:
            wish = course.send(answer) if error is None else course.throw(error)
        except StopIteration as end:
            self._ended(under.lane, end.value)
            return
        match wish:
            case Record(records, holds):
                self._recorder.hand_in(records, holds, under.recorded)
            case Sending(connection, request, stored):
                if not connection.begin_send(request, stored, under.answered):
                    self._ask(under, partial(connection.send, request, stored))
            case Ask(ask):
                self._ask(under, ask)

    def _ended(self, lane: Lane, again_us: int | None) -> None:
        del self._busy[lane]
        self._has_moved = True
        if lane in self._again:
            self._again.discard(lane)
            self._make_ready(lane)
        elif again_us is not None:
            self.schedule(lane, again_us)

    def _note(self, answer: tuple[_Under, object, EngineError | None]) -> None:
        self._answers.append(answer)
        self._wake.set()

    def _ask(self, under: _Under, ask: Callable[[], Awaitable[Any]]) -> None:
        assert self._nursery is not None, "courses go on while it runs"
        self._nursery.start_soon(self._asking, under, ask)

    async def _asking(self, under: _Under, ask: Callable[[], Awaitable[Any]]) -> None:
        under.answered(await ask())
