"""The conductor: many lanes go on in one turn of the loop, but not too many; each in its order, one course at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from engine.actors import push_conductor
from engine.actors.push_conductor import COURSES_MAX, COURSES_PER_TURN, Conductor
from engine.actors.push_connections import Connection
from engine.actors.push_course import Course, asked, recorded, sent
from engine.actors.push_recorder import PushRecorder
from engine.core.billing import Delivered, Outcome, PushRequest, Unknown
from engine.core.push_records import Lane
from engine.errors import EngineError, Unavailable
from tests.helpers.push_place import VirtualClock

REQUEST = PushRequest(
    driver="meter", identifier="i", value="1", timestamp_s=60, api_version="v", event_name="e"
)


def lane(number: int) -> Lane:
    return Lane("acct_1", "test", "mtr_1", f"cus_{number:03d}")


class Turns(trio.abc.Instrument):
    """Counts the loop's turns."""

    def __init__(self) -> None:
        self.number = 0

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002
        self.number += 1


class Disk:
    """Takes records as a log does; a test says when, and what goes wrong."""

    def __init__(self) -> None:
        self.appends: list[int] = []
        self.error: EngineError | None = None
        self.seconds = 0.001

    async def append(self, records: Sequence[Any]) -> None:
        await trio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.appends.append(len(records))


class Stage:
    """A conductor with courses that a test writes; `steps` says who went on in which turn."""

    def __init__(self, course: Callable[[Stage, Lane], Course[int | None]]) -> None:
        self.disk = Disk()
        self.clock = VirtualClock()
        self.recorder = PushRecorder(self.disk.append, trio.Lock())
        self.turns = Turns()
        self.steps: list[tuple[int, str, str]] = []
        self.under_way = self.most_under_way = 0
        self.conductor = Conductor(
            lambda one: self._counted(course, one), self.recorder, self.clock
        )

    def step(self, one: Lane, what: str) -> None:
        self.steps.append((self.turns.number, one.customer, what))

    def who(self, what: str) -> list[str]:
        return [customer for _, customer, said in self.steps if said == what]

    def _counted(
        self, course: Callable[[Stage, Lane], Course[int | None]], one: Lane
    ) -> Course[int | None]:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        again_us = yield from course(self, one)
        self.under_way -= 1
        return again_us

    async def play(self, lanes: int, seconds: float = 5) -> None:
        trio.lowlevel.add_instrument(self.turns)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.recorder.run)
            nursery.start_soon(self.conductor.run)
            await trio.sleep(0.1)
            for number in range(lanes):
                self.conductor.schedule(lane(number), self.clock.now_us())
            await trio.sleep(seconds)
            nursery.cancel_scope.cancel()
        trio.lowlevel.remove_instrument(self.turns)


def two_records(stage: Stage, one: Lane) -> Course[int | None]:
    stage.step(one, "begins")
    yield from recorded((object(),))  # type: ignore[arg-type]  # nobody reads it here
    stage.step(one, "is recorded")
    yield from recorded((object(),))  # type: ignore[arg-type]
    stage.step(one, "ends")
    return None


def most_in_a_turn(stage: Stage) -> int:
    by_turn: dict[int, int] = {}
    for turn, _, _ in stage.steps:
        by_turn[turn] = by_turn.get(turn, 0) + 1
    return max(by_turn.values())


async def turns_of_many() -> tuple[int, int]:
    """In how many turns of the loop anybody of 40 lanes went on, and how many did in one of them."""
    stage = Stage(two_records)
    await stage.play(40)
    assert len(stage.steps) == 120
    return len({turn for turn, _, _ in stage.steps}), most_in_a_turn(stage)


async def test_lanes_go_on_together_but_not_more_than_ingest_can_wait_for(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    turns, most = await turns_of_many()
    assert turns <= 120 / COURSES_PER_TURN + 10
    assert most == COURSES_PER_TURN


async def test_canary_one_lane_a_turn_and_all_at_once_are_found(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(push_conductor, "COURSES_PER_TURN", 1)
    turns, _ = await turns_of_many()
    assert turns > 120 / COURSES_PER_TURN + 10
    monkeypatch.setattr(push_conductor, "COURSES_PER_TURN", 1_000)
    _, most = await turns_of_many()
    assert most > COURSES_PER_TURN


async def test_so_many_lanes_are_served_at_once_and_the_others_in_the_order_they_came_due(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    def slow(stage: Stage, one: Lane) -> Course[int | None]:
        stage.step(one, "begins")
        yield from asked(lambda: trio.sleep(1))
        return None

    stage = Stage(slow)
    await stage.play(3 * COURSES_MAX)
    assert stage.most_under_way == COURSES_MAX
    assert stage.who("begins") == [lane(number).customer for number in range(3 * COURSES_MAX)]


async def test_a_lane_that_comes_due_while_it_is_served_is_served_again_afterwards(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    def restless(stage: Stage, one: Lane) -> Course[int | None]:
        stage.step(one, "begins")
        assert stage.under_way == 1, "one course a lane"
        if len(stage.steps) < 4:
            stage.conductor.schedule(one, stage.clock.now_us())
        yield from asked(lambda: trio.sleep(0.2))
        return None

    stage = Stage(restless)
    await stage.play(1)
    assert len(stage.steps) == 4


async def test_a_lane_comes_again_when_it_said_and_not_before(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    at_us: list[int] = []

    def paced(stage: Stage, one: Lane) -> Course[int | None]:
        at_us.append(stage.clock.now_us())
        yield from recorded((one,))  # type: ignore[arg-type]
        return at_us[-1] + 1_000_000

    await Stage(paced).play(1, 4.5)
    assert len(at_us) == 5
    waits = [later - sooner for sooner, later in pairwise(at_us)]
    assert all(1_000_000 <= wait < 1_020_000 for wait in waits)


async def test_what_the_log_refuses_is_thrown_into_the_course_that_wished_it(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    def refused(stage: Stage, one: Lane) -> Course[int | None]:
        try:
            yield from recorded((one,), lambda: one != lane(2))  # type: ignore[arg-type]
        except EngineError as error:
            stage.step(one, type(error).__name__)
        else:
            stage.step(one, "is recorded")
        return None

    stage = Stage(refused)
    await stage.play(4)
    assert stage.who("Outdated") == [lane(2).customer]
    assert len(stage.who("is recorded")) == 3
    stage = Stage(refused)
    stage.disk.error = Unavailable("the disk is gone")
    await stage.play(4)
    assert (len(stage.who("Unavailable")), stage.who("is recorded")) == (3, [])


async def test_a_stop_begins_nothing_more_and_waits_for_what_is_under_way(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    stage = Stage(two_records)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.recorder.run)
        nursery.start_soon(stage.conductor.run)
        for number in range(3):
            stage.conductor.schedule(lane(number), stage.clock.now_us())
        await trio.testing.wait_all_tasks_blocked()
        assert len(stage.who("begins")) == 3
        stage.conductor.schedule(lane(9), stage.clock.now_us())
        await stage.conductor.drain()
        assert (len(stage.who("ends")), len(stage.who("begins"))) == (3, 3)
        nursery.cancel_scope.cancel()


class Prompt:
    """A way to Stripe that needs no task to wait with, while it `is_there`."""

    def __init__(self, *, is_there: bool = True) -> None:
        self.is_there = is_there
        self.begun: list[Callable[[Outcome], None]] = []
        self.sent = 0

    def begin_send(
        self, request: PushRequest, attempt: int, done: Callable[[Outcome], None]
    ) -> bool:
        assert (request, attempt) == (REQUEST, 0)
        if self.is_there:
            self.begun.append(done)
        return self.is_there

    async def send(
        self, requests: Sequence[PushRequest], _attempts: Sequence[int]
    ) -> list[Outcome]:
        self.sent += 1
        await trio.sleep(0.1)
        return [Unknown("no answer") for _ in requests]


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_request_goes_without_a_task_where_it_can_and_with_one_where_not(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
    is_there: bool,
) -> None:
    prompt: Any = Prompt(is_there=is_there)
    connection = Connection("main", prompt, VirtualClock(), Random(1))

    def sends(stage: Stage, one: Lane) -> Course[int | None]:
        answer = yield from sent(connection, REQUEST, 0)
        stage.step(one, type(answer).__name__)
        return None

    stage = Stage(sends)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.play, 5)
        await trio.sleep(1)
        assert (len(prompt.begun), prompt.sent) == ((5, 0) if is_there else (0, 5))
        for done in reversed(prompt.begun):
            done(Delivered())
            assert not stage.who("Delivered"), "what is told is only noted"
    found = "Delivered" if is_there else "Unknown"
    assert len(stage.who(found)) == len(stage.steps) == 5


async def test_lanes_that_keep_coming_early_leave_nothing_behind_in_the_timetable(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    """Each course wants to come again in weeks, and something changes long before: as with a decision nobody takes."""

    def in_weeks(stage: Stage, one: Lane) -> Course[int | None]:
        stage.step(one, "begins")
        yield from recorded((object(),))  # type: ignore[arg-type]
        return stage.clock.now_us() + 10**13 + len(stage.steps) * (-1) ** len(stage.steps)

    stage = Stage(in_weeks)
    conductor = stage.conductor
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.recorder.run)
        nursery.start_soon(conductor.run)
        conductor.schedule(lane(9), stage.clock.now_us() + 10**12)
        for _ in range(300):
            for number in range(3):
                conductor.schedule(lane(number), stage.clock.now_us())
            await trio.sleep(1)
        assert len(stage.steps) == 900
        assert len(conductor._heap) <= 2 * 4 + push_conductor.STALE_MAX + 3
        stage.clock.start_us += 2 * 10**13  # and what was arranged still comes
        conductor.schedule(lane(0), stage.clock.now_us())
        await trio.sleep(100)
        assert {f"cus_{n:03d}" for n in (0, 1, 2, 9)} <= {c for _, c, _ in stage.steps[900:]}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("waits_for", ["lock", "disk"])
async def test_who_waits_for_a_record_hears_that_nobody_records_any_more(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
    waits_for: str,
) -> None:
    """Who waits can't be cancelled, so a stop would wait for them."""
    disk, lock = Disk(), trio.Lock()
    disk.seconds = 60
    recorder = PushRecorder(disk.append, lock)
    heard: list[str] = []

    async def ask() -> None:
        with pytest.raises(Unavailable):
            await recorder.record((object(),))  # type: ignore[arg-type]  # nobody reads it here
        heard.append("unavailable")

    if waits_for == "lock":
        await lock.acquire()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.run)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert heard == ["unavailable"] * 2
    assert disk.appends == []
    with trio.fail_after(30):
        await ask()  # and who comes later hears it at once


async def test_what_a_course_holds_is_let_go_when_nobody_serves_lanes_any_more(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    """A decision that waits for the lane's lock would else wait for ever."""
    held = trio.Semaphore(1, max_value=1)

    def holding(_stage: Stage, _one: Lane) -> Course[int | None]:
        held.acquire_nowait()
        try:
            yield from recorded((object(),))  # type: ignore[arg-type]  # nobody reads it here
        finally:
            held.release()
        return None

    stage = Stage(holding)
    stage.disk.seconds = 60
    await stage.play(1, seconds=1)
    with trio.fail_after(30):
        await held.acquire()


async def test_a_lane_that_is_due_now_is_served_now_also_when_the_timetable_is_made_anew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def at_once(stage: Stage, one: Lane) -> Course[int | None]:
        stage.step(one, "begins")
        return None
        yield  # a course

    stage = Stage(at_once)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.recorder.run)
        nursery.start_soon(stage.conductor.run)
        await trio.testing.wait_all_tasks_blocked()
        at_us = stage.clock.now_us() + 3_600_000_000
        entries = push_conductor.STALE_MAX + 2
        for number in range(entries):
            stage.conductor.schedule(lane(1), at_us - number)
        await trio.testing.wait_all_tasks_blocked()
        before = autojump_clock.current_time()
        stage.conductor.schedule(lane(1), stage.clock.now_us())
        while not stage.steps:
            await trio.sleep(0.01)
        assert autojump_clock.current_time() - before < 1
        nursery.cancel_scope.cancel()
