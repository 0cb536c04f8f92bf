"""What answers of the process that speaks with Stripe do to ingest: in how many turns of the loop they are handed out."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import trio

from engine.drivers import remote
from engine.drivers.frames import FrameReader, read_answer, result_of
from engine.drivers.remote import StripeProcess
from tests.drivers.fake_stripe import FakeStripe, fake_stripe, meter_event_reply
from tests.drivers.test_remote import answered, pid_of, process_for, until
from tests.drivers.test_stripe_billing import METER

pytestmark = pytest.mark.slow


class Ticks(trio.abc.Instrument):
    """Counts the loop's turns."""

    def __init__(self) -> None:
        self.number = 0

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002
        self.number += 1


async def answers_come_together(made: StripeProcess, fake: FakeStripe, calls: int) -> None:
    """Let a stopped process go on, and stand still until it has handed over the answers to all that it was asked."""
    fake.gate = trio.Event()
    await trio.sleep(0.2)
    os.kill(pid_of(made), signal.SIGCONT)
    await until(lambda: len(fake.calls) == calls)
    os.kill(pid_of(made), signal.SIGSTOP)
    fake.gate.set()
    await until(lambda: fake.answered == calls)
    os.kill(pid_of(made), signal.SIGCONT)
    rests = 0
    while rests < 10:  # on a machine that others use it may be made to wait in between
        time.sleep(0.02)
        state = Path(f"/proc/{pid_of(made)}/stat").read_text().rpartition(")")[2].split()[0]
        rests = rests + 1 if state == "S" else 0


async def answers_at_once() -> list[int]:
    """In which tick each of many callers went on, whose answers had all come."""
    ticks = Ticks()
    went_on: list[int] = []
    async with fake_stripe(meter_event_reply) as fake, process_for(fake) as made:
        billing = made.billing("main")
        await answered(billing)
        os.kill(pid_of(made), signal.SIGSTOP)

        async def send() -> None:
            await billing.send([METER], [0])
            went_on.append(ticks.number)

        trio.lowlevel.add_instrument(ticks)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(send)
            await answers_come_together(made, fake, 21)
        trio.lowlevel.remove_instrument(ticks)
    return went_on


async def test_answers_that_come_together_are_handed_out_one_a_tick() -> None:
    went_on = await answers_at_once()
    assert len(set(went_on)) == len(went_on) == 20


async def test_canary_answers_handed_out_all_at_once_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nothing() -> None:
        return

    async def hand_out(self: StripeProcess, reader: FrameReader) -> str | None:
        while (body := await reader.next()) is not None:
            answer = read_answer(body)
            if (pending := self._pending.pop(answer.number, None)) is not None:
                pending.told([result_of(one) for one in answer.results])
        return None

    monkeypatch.setattr(StripeProcess, "_hand_out", hand_out)
    went_on = await answers_at_once()
    assert len(set(went_on)) < 20


async def test_answers_that_are_only_noted_come_several_a_tick() -> None:
    ticks = Ticks()
    told: list[int] = []
    async with fake_stripe(meter_event_reply) as fake, process_for(fake) as made:
        billing = made.billing("main")
        await until(lambda: made.starts == 1)
        os.kill(pid_of(made), signal.SIGSTOP)
        trio.lowlevel.add_instrument(ticks)
        for _ in range(40):
            assert billing.begin_send(METER, 0, lambda _: told.append(ticks.number))
        await answers_come_together(made, fake, 40)
        await until(lambda: len(told) == 40)
        trio.lowlevel.remove_instrument(ticks)
    assert len(set(told)) <= 40 / remote.NOTES_PER_TICK + 2
    assert max(told.count(tick) for tick in told) <= remote.NOTES_PER_TICK
