"""`stripemeter serve` with small bounds, slow phases or a planted fault: what a test needs and no setting offers.

Rules it keeps: without any of the variables below it is the real thing; it changes numbers, adds waiting, or breaks one
promise on purpose, and never repairs anything. Nothing of it is in the wheel.

SMALL_SNAPSHOT_EVENTS  events between snapshots
SMALL_RECENT_KEYS   keys in memory before they are merged into a run (merges happen all the time)
SMALL_QUEUE_EVENTS  the log writer's bound
SMALL_PAGE_BYTES    the page of recovery
SMALL_READ_SECONDS  how long a connection may be silent
CLOCK_FILE          a file with microseconds that are added to the wall clock, read at every look at it
SMALL_LOG_BYTES     of log lines that may wait for a reader
SMALL_CLOSER_SECONDS  how often it is looked whether a period closes
SLOW_PHASE          recovery, snapshot, merge or commit: waits SLOW_MS before and after each of its steps, and says so
PLANT               a fault of `PLANTS`: the tests must find it
SENDER_PLANT        a fault of the process that speaks with Stripe (tests.helpers.sender_planted)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any, cast

import trio

from engine.actors import log_writer, period_closer, recovery
from engine.actors.group import Group
from engine.actors.push_course import Course, Record, Sending, asked, sent
from engine.actors.push_lanes import LaneServer
from engine.actors.push_runtime import LaneRuntime
from engine.actors.supervisor import MeterOptions
from engine.core.billing import Outcome
from engine.core.push_plan import Close
from engine.core.push_records import Lane, PushIntent
from engine.drivers import remote
from gateway import log_output, opening
from gateway import main as composition
from gateway.cli.serve import command
from gateway.hypercorn_repairs import RepairedH11
from gateway.ingest import Counting
from gateway.ingest_lone import LoneCounting
from gateway.system import SystemClock
from wal import snapshot
from wal.key_index import KeyIndex
from wal.key_merge import MergePlan
from wal.lmdb_log import LmdbLog


def plant_early_answer() -> None:
    """Acknowledge what is not on disk yet."""
    for counting in (Counting, LoneCounting):
        counting.groups = property(lambda _: [])  # type: ignore[assignment]


def plant_deaf_to_errors() -> None:
    """Acknowledge what the disk refused."""

    def fail(group: Group, _error: Exception) -> None:
        group.finish()

    Group.fail = fail  # type: ignore[assignment,method-assign]


def plant_forgotten_keys() -> None:
    """Know no key that was stored before the start: a retry counts twice."""
    KeyIndex.known = lambda *_: {}  # type: ignore[method-assign,assignment]
    KeyIndex.lookup = lambda *_: None  # type: ignore[method-assign]


def plant_lost_merge() -> None:
    """Drop the keys of a flush instead of keeping them."""
    add = KeyIndex.add

    def add_few(index: KeyIndex, keys: dict[bytes, bytes], position: int) -> None:
        add(index, {key: value for key, value in dict(keys).items() if key[0] % 8}, position)

    KeyIndex.add = add_few  # type: ignore[method-assign,assignment]


def plant_no_hard_exit() -> None:
    """Wait for ever for a client that never reads."""
    composition._exit_hard_after = lambda _seconds: None


def plant_failing_connection() -> None:
    """A defect in the HTTP protocol: some bytes of a client raise where nobody expects it."""
    handle = RepairedH11.handle

    async def fails(protocol: RepairedH11, event: Any) -> None:
        if b"x-planted" in getattr(event, "data", b""):
            raise RuntimeError("planted")
        await handle(protocol, event)

    RepairedH11.handle = fails  # type: ignore[method-assign]


def plant_early_hand_over() -> None:
    """Let a request leave before its intent is on disk."""
    begin = LaneServer._begin

    def early(server: LaneServer, lane: Lane, runtime: LaneRuntime) -> Course[int | None]:
        course = begin(server, lane, runtime)
        said: Outcome | None = None
        answer: object = None
        while True:
            try:
                wish = course.send(answer)
            except StopIteration as end:
                return cast("int | None", end.value)
            if isinstance(wish, Record) and isinstance(wish.records[0], PushIntent):
                connection = server._connection("main")
                assert connection is not None
                said = yield from sent(connection, wish.records[0].request, 0)
                yield from asked(partial(trio.sleep, 0.1))
                answer = yield wish
            elif isinstance(wish, Sending) and said is not None:
                answer, said = said, None
            else:
                answer = yield wish

    LaneServer._begin = early  # type: ignore[method-assign]


def plant_early_outcome() -> None:
    """Record that Stripe took a push before it was asked."""
    send = LaneServer._send

    def early(
        server: LaneServer, intent: PushIntent, runtime: LaneRuntime, *more: Any
    ) -> Course[None]:
        connection = more[0]
        request = intent.request
        yield from server._delivered(intent, runtime, Close("delivered", "answer"))
        yield from asked(partial(trio.sleep, 0.05))
        yield from sent(connection, request, 0)

    assert send
    LaneServer._send = early  # type: ignore[method-assign,assignment]


PLANTS: dict[str, Callable[[], None]] = {
    "early-answer": plant_early_answer,
    "early-hand-over": plant_early_hand_over,
    "early-outcome": plant_early_outcome,
    "deaf-to-errors": plant_deaf_to_errors,
    "failing-connection": plant_failing_connection,
    "forgotten-keys": plant_forgotten_keys,
    "lost-merge": plant_lost_merge,
    "no-hard-exit": plant_no_hard_exit,
}


SLOW_PLACES: dict[str, tuple[type, str]] = {
    "recovery": (LmdbLog, "read"),
    "snapshot": (snapshot._FileWriter, "add"),
    "merge": (MergePlan, "run_slice"),
    "commit": (LmdbLog, "append"),
}


def slow(phase: str, seconds: float) -> None:
    """Make the phase's method log `slow_PHASE` and wait before it does its work, and wait after."""
    owner, name = SLOW_PLACES[phase]
    method = getattr(owner, name)
    line = f'{{"event": "slow_{phase}"}}\n'

    @wraps(method)
    def waiting(*arguments: Any, **named: Any) -> Any:
        sys.stderr.write(line)
        time.sleep(seconds)
        result = method(*arguments, **named)
        time.sleep(seconds)
        return result

    setattr(owner, name, waiting)


def step_clock(file: Path) -> None:
    """Let a file move the wall clock; the monotonic one stays true."""
    now_us = SystemClock.now_us
    SystemClock.now_us = lambda clock: now_us(clock) + int(file.read_text())  # type: ignore[method-assign]


def apply(environ: dict[str, str]) -> None:
    """Put in force what the variables say."""
    small = {
        field: int(environ[name])
        for name, field in (
            ("SMALL_RECENT_KEYS", "recent_keys_max"),
            ("SMALL_SNAPSHOT_EVENTS", "snapshot_every_events"),
        )
        if name in environ
    }

    def options(**named: Any) -> MeterOptions:
        return MeterOptions(**{**named, **small})

    opening.MeterOptions = options  # type: ignore[misc,assignment]
    if "SMALL_QUEUE_EVENTS" in environ:
        log_writer.QUEUE_EVENTS_MAX = int(environ["SMALL_QUEUE_EVENTS"])  # type: ignore[misc]
    if "CLOCK_FILE" in environ:
        step_clock(Path(environ["CLOCK_FILE"]))
    if "SMALL_CLOSER_SECONDS" in environ:
        period_closer._EVERY_SECONDS = float(environ["SMALL_CLOSER_SECONDS"])  # type: ignore[misc]
    if "SMALL_LOG_BYTES" in environ:
        log_output.WAITING_BYTES_MAX = int(environ["SMALL_LOG_BYTES"])  # type: ignore[misc]
    if "SMALL_READ_SECONDS" in environ:
        composition._IDLE_SECONDS_MAX = int(environ["SMALL_READ_SECONDS"])  # type: ignore[misc]
    if "SMALL_PAGE_BYTES" in environ:
        recovery._PAGE_BYTES = int(environ["SMALL_PAGE_BYTES"])
    if phase := environ.get("SLOW_PHASE"):
        slow(phase, float(environ.get("SLOW_MS", "5")) / 1000)
    if "SENDER_PLANT" in environ:
        remote.MODULE = "tests.helpers.sender_planted"  # type: ignore[misc]
    if plant := environ.get("PLANT"):
        PLANTS[plant]()


if __name__ == "__main__":
    from gateway.cli import main as command_line

    apply(dict(os.environ))
    command_line.cli.add_command(command, "serve")
    sys.exit(command_line.main(["serve", *sys.argv[1:]]))
