"""The process that speaks with Stripe, in a simulated world: another task, which dies with requests under way.

Rules it keeps: both ends are the real ones (engine.drivers.remote, engine.drivers.sender) and talk in real frames; only
the process, its socket and the machine's clock are stand-ins. Answers come turns later, out of order, or never: it is
killed before a request leaves, while one is under way, or with answers it has not told. It must not know what is pushed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import trio
import trio.testing

from engine.drivers import remote, sender, wire
from engine.drivers.billing import StripeBilling
from engine.drivers.frames import (
    Answer,
    Call,
    FrameReader,
    FrameWriter,
    Way,
    frame,
    read_call,
    read_ways,
)
from engine.drivers.remote import StripeProcess
from engine.drivers.wire import Wire, ensure_in_time
from tests.helpers.push_place import KEY
from tests.helpers.simulator_wire import BASE

BEGIN_SECONDS: Final = (0, 0, 0, 0.3, 5)
ANSWER_SECONDS: Final = (0, 0, 0.001, 0.02, 0.4, 6)
MODULES: Final = (remote, sender, wire)


def set_machine_clock(clock: Callable[[], int] | None) -> None:
    """The machine's clock, as the three modules that ask it know it; None: the real one."""
    for module in MODULES:
        module.machine_us = clock or _MACHINE_US  # type: ignore[attr-defined]


_MACHINE_US: Final = wire.machine_us


def virtual_machine_us() -> int:
    """The machine's clock in virtual time."""
    return int(trio.current_time() * 1_000_000)


class _TimelyWire:
    """What the real wires ask before the first byte."""

    name = "timely"

    def __init__(self, inner: Wire) -> None:
        self._inner = inner

    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> wire.Answer:
        """As the inner one, in time or not at all."""
        ensure_in_time()
        return await self._inner.exchange(method, url, headers, body)

    async def aclose(self) -> None:
        """Nothing is open."""


class _LateWriter:
    """Tells answers late and in any order, or dies of the attempt."""

    def __init__(self, child: _Child, inner: FrameWriter, nursery: trio.Nursery) -> None:
        self._child, self._inner, self._nursery = child, inner, nursery

    def put(self, written: bytes) -> None:
        """Sooner or later, or never."""
        self._nursery.start_soon(self._tell, written)

    async def _tell(self, written: bytes) -> None:
        self._child.may_die()
        await trio.sleep(self._child.rng.choice(ANSWER_SECONDS))
        self._inner.put(written)
        self._child.may_die()


class _Child:
    """`engine.drivers.sender.serve` without a process around it; takes the place of a Popen."""

    pid, returncode = 1, -9

    def __init__(self, made: SimulatedSender) -> None:
        self.rng = made.rng
        self._made = made
        self._scope = trio.CancelScope()

    def kill(self) -> None:
        """At once, whatever is under way."""
        self._scope.cancel()

    def may_die(self) -> None:
        """Now, perhaps."""
        if self._made.may_die() and self.rng.random() < self._made.death_rate:
            self._made.deaths += 1
            self.kill()

    async def run(self, stream: trio.abc.Stream) -> None:
        """Answer calls until it is killed or the other end is closed."""
        with self._scope:
            reader = FrameReader(stream)
            first = await reader.next()
            assert first is not None
            timely = _TimelyWire(self._made.wire)
            ways = {
                name: StripeBilling(
                    way.secret, api_base=way.api_base, meter_events_base=BASE, wire=timely
                )
                for name, way in read_ways(first).items()
            }
            async with trio.open_nursery() as nursery:
                writer = FrameWriter(stream, sender.GATHER_SECONDS)
                late: Any = _LateWriter(self, writer, nursery)
                nursery.start_soon(writer.run)
                writer.put(frame(Answer(0)))
                while (body := await reader.next()) is not None:
                    call = read_call(body)
                    if call.number:
                        self.may_die()
                    nursery.start_soon(self._answer, call, ways.get(call.way), late)
                nursery.cancel_scope.cancel()
        # What it had heard of errors, nobody else may have.
        self._made.died()
        await trio.aclose_forcefully(stream)

    async def _answer(self, call: Call, billing: Any, late: Any) -> None:
        """The machine may sleep while it has a call that is not begun."""
        await trio.sleep(self.rng.choice(BEGIN_SECONDS))
        await sender.answer(call, billing, late)


class SimulatedSender(StripeProcess):
    """A `StripeProcess` whose process is a task. Run `run` beside the meter, as the composition root does."""

    def __init__(
        self,
        wire: Wire,
        rng: random.Random,
        *,
        death_rate: float,
        may_die: Callable[[], bool],
        died: Callable[[], None],
    ) -> None:
        """`died`: is told whenever it did. `may_die`: whether it dies of itself at this time."""
        super().__init__({"main": Way(KEY, BASE, BASE)})
        self.wire, self.rng = wire, rng
        self.death_rate, self.may_die, self.died = death_rate, may_die, died
        self.deaths = 0

    async def _go_on_here(self, reason: str, stack: AsyncExitStack) -> None:
        """A machine that slept while it started it: then calls are made without it."""
        assert reason
        assert stack is not None
        self._direct["main"] = StripeBilling(
            KEY, api_base=BASE, meter_events_base=BASE, wire=self.wire
        )
        self._there.set()

    async def _live(self) -> str:
        ours, its = trio.testing.memory_stream_pair()
        child = _Child(self)
        self.process = child  # type: ignore[assignment]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.run, its)
            try:
                said = await self._converse(ours)  # type: ignore[arg-type]
            finally:
                self._forget_pending()
                self.process = None
                child.kill()
        return said or "it was killed"
