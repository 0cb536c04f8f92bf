"""The thread that appends: one append at a time, its end told once, nothing lost on the way out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from engine.core.records import RecordType
from gateway.system import AppendThread
from wal.log import Envelope

ENVELOPE = Envelope(1, RecordType.EVENTS, 0, 1, 0, 1, 7, bytes(32), ())


def held(go: threading.Event, ended: list[str]) -> Callable[[], tuple[Envelope, ...]]:
    def append() -> tuple[Envelope, ...]:
        assert go.wait(10)
        ended.append(threading.current_thread().name)
        return (ENVELOPE,)

    return append


def open_descriptors() -> int:
    """How many this process has open; 0 where the system does not tell."""
    where = Path("/proc/self/fd")
    return len(list(where.iterdir())) if where.is_dir() else 0


async def test_an_append_runs_beside_the_loop_and_its_end_is_told() -> None:
    appender, go, ended = AppendThread(), threading.Event(), list[str]()
    try:
        for _ in range(3):
            go.clear()
            appender.start(held(go, ended))
            with trio.move_on_after(0.05) as scope:
                await trio.sleep_forever()
            assert scope.cancelled_caught, "the loop goes on meanwhile"
            go.set()
            with trio.fail_after(60):
                assert await appender.finished() == (ENVELOPE,)
    finally:
        appender.close()
    assert ended == ["append"] * 3


async def test_what_an_append_raises_comes_out_and_the_next_one_runs() -> None:
    appender = AppendThread()

    def fail() -> tuple[Envelope, ...]:
        raise OSError("no disk")

    try:
        appender.start(fail)
        with pytest.raises(OSError, match="no disk"):
            await appender.finished()
        appender.start(lambda: (ENVELOPE,))
        assert await appender.finished() == (ENVELOPE,)
    finally:
        appender.close()


async def test_who_is_cancelled_while_one_is_under_way_still_hears_of_its_end() -> None:
    appender, go, heard = AppendThread(), threading.Event(), list[tuple[Envelope, ...]]()

    async def follow() -> None:
        while True:
            heard.append(await appender.finished())

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
            appender.start(held(go, []))
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.sleep(0.05)
            assert not heard
            go.set()
    finally:
        appender.close()
    assert heard == [(ENVELOPE,)]


async def test_closing_waits_for_the_append_under_way_and_leaves_nothing_behind() -> None:
    descriptors = open_descriptors()
    appender, go, ended = AppendThread(), threading.Event(), list[str]()
    appender.start(held(go, ended))
    threading.Timer(0.05, go.set).start()
    await trio.to_thread.run_sync(appender.close)
    assert ended == ["append"]
    assert not any(thread.name == "append" for thread in threading.enumerate())
    assert open_descriptors() == descriptors


def test_one_that_is_never_used_has_no_thread() -> None:
    AppendThread().close()
    assert not any(thread.name == "append" for thread in threading.enumerate())
