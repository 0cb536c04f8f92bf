"""A signal's handler that meters, or closes the client: it runs in the middle of whatever its thread is doing.

A tracer stands for the signal: it calls the handler at one line of the client's own code (and of `threading`), for every line in turn.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stripemeter import Failure, StripeMeterClient, sender
from tests.sdk.fake_meter import FakeMeter

LINES_MAX = 2_000
SECONDS_MAX = 10.0
CODE = (str(Path(sender.__file__).parent), "threading.py", "queue.py")


def run_interrupted(work: Callable[[], object], handler: Callable[[], object], at: int) -> bool:
    """Run `work` with `handler` called at its line number `at`; False when there were not so many lines."""
    lines, is_done = 0, False

    def trace(frame: Any, event: str, _argument: object) -> Any:
        nonlocal lines, is_done
        if not is_done and not any(part in frame.f_code.co_filename for part in CODE):
            return None
        if event == "line" and not is_done:
            lines += 1
            if lines == at:
                is_done = True
                handler()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return is_done


def at_every_line(prepared: Callable[[], tuple[Callable[[], object], Callable[[], object]]]) -> int:
    """How many lines were interrupted; fails when one of them never ended."""
    at, ended = 0, threading.Event()

    def run() -> None:
        nonlocal at
        while at < LINES_MAX:
            at += 1
            work, handler = prepared()
            if not run_interrupted(work, handler, at):
                break
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    is_well = ended.wait(SECONDS_MAX)
    if not is_well:
        sender._LIVE.clear()  # or the end of the tests would wait for it, too
    assert is_well, f"interrupted at its line {at} it hangs"
    return at


@pytest.mark.parametrize("does", ["track", "flush"])
def test_a_handler_may_meter_whatever_its_thread_was_doing(does: str) -> None:
    gate = threading.Event()
    sdk = StripeMeterClient(
        "http://meter.invalid",
        "acme",
        transport=FakeMeter(gate=gate),
        batch_events_max=1,
        on_error=lambda _: None,
    )

    def prepared() -> tuple[Callable[[], object], Callable[[], object]]:
        track = lambda: sdk.track("calls", "cora", 1)  # noqa: E731 - a name for what is done twice
        return track, track if does == "track" else lambda: sdk.flush(0)

    assert at_every_line(prepared) > 30
    gate.set()
    assert sdk.close()
    assert sdk.statistics().queued == 0


def test_the_first_event_and_its_handlers_share_one_thread() -> None:
    def prepared() -> tuple[Callable[[], object], Callable[[], object]]:
        sdk = StripeMeterClient("http://meter.invalid", "acme", transport=FakeMeter())
        track = lambda: sdk.track("calls", "cora", 1)  # noqa: E731 - as above

        def work() -> None:
            track()
            sys.settrace(None)
            assert sdk.close()
            counts = sdk.statistics()
            assert counts.accepted == counts.tracked > 0

        return work, track

    assert at_every_line(prepared) > 30


@pytest.mark.parametrize("does", ["track", "close"])
def test_a_handler_may_close_the_client_and_nothing_is_lost_in_silence(does: str) -> None:
    made: list[StripeMeterClient] = []
    told: list[Failure] = []

    def prepared() -> tuple[Callable[[], object], Callable[[], object]]:
        sdk = StripeMeterClient(
            "http://meter.invalid", "acme", transport=FakeMeter(), on_error=told.append
        )
        sdk.track("calls", "cora", 1)
        made.append(sdk)
        work = sdk.close if does == "close" else lambda: sdk.track("calls", "cora", 1)
        return work, sdk.close

    assert at_every_line(prepared) > 20
    made.pop().close()  # the last one had no such line
    counts = [sdk.statistics() for sdk in made]
    assert all(one.queued == 0 and one.accepted >= 1 for one in counts)
    assert sum(one.dropped for one in counts) == len(told)
    assert all(one.kind == "closed" and len(one.events) == 1 for one in told)
