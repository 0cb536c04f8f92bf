"""A fork beside spools at work: SQLite's own locks must not be held at that moment, or the child's first event hangs.

The children here end at once, and check what the fork copied.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stripemeter import StripeMeterClient, forks
from stripemeter.spool import Spool
from tests.sdk.fake_meter import FakeMeter


class Held:
    """A connection whose statements wait until they may go on."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.inside, self.go_on = threading.Event(), threading.Event()

    def execute(self, *arguments: Any) -> Any:
        self.inside.set()
        assert self.go_on.wait(10)
        return self.real.execute(*arguments)

    def close(self) -> None:
        self.real.close()


@contextmanager
def busy(tmp_path: Path, what: str) -> Iterator[tuple[Held, list[str]]]:
    """A spool in the middle of its work, in another thread; the list is filled when that is done."""
    spool = Spool(str(tmp_path / "spool.db"), "here", 30.0, 1_000, sync=False)
    place = "_beside" if what == "checkpoint" else "_connection"
    held = Held(getattr(spool, place))
    setattr(spool, place, held)
    done: list[str] = []
    work = spool.checkpoint if what == "checkpoint" else lambda: spool.insert("{}")

    def run() -> None:
        work()
        done.append(what)

    thread = threading.Thread(target=run)
    thread.start()
    assert held.inside.wait(5)
    try:
        yield held, done
    finally:
        held.go_on.set()
        thread.join(5)
        spool.close()


def child_sees(true_in_child: Any) -> bool:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if true_in_child() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("what", ["insert", "checkpoint"])
def test_a_fork_waits_until_no_spool_is_in_the_middle_of_its_work(
    tmp_path: Path, what: str
) -> None:
    with busy(tmp_path, what) as (held, done):
        threading.Timer(0.1, held.go_on.set).start()
        assert child_sees(lambda: done == [what])


def test_a_disk_that_hangs_holds_up_a_fork_for_a_moment_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "WAIT_SECONDS_MAX", 0.05)
    with busy(tmp_path, "insert") as (_, done):
        began = time.monotonic()
        assert child_sees(lambda: done == [])
        assert time.monotonic() - began < 2


def test_after_a_fork_parent_and_child_spool_on(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with StripeMeterClient(
        "http://meter.invalid", "acme", transport=FakeMeter(), spool=path
    ) as sdk:
        sdk.track("calls", "cora", 1)
        assert child_sees(lambda: sdk.track("calls", "kid", 1).status == "queued")
        tracked = threading.Thread(target=lambda: sdk.track("calls", "cora", 2))
        tracked.start()
        tracked.join(5)
        assert not tracked.is_alive()
        assert sdk.flush(5)
        assert sdk.statistics().accepted == 2
