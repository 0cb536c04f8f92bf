"""Fills `engine.ports.Billing` by a process of its own, so that speaking HTTP and TLS takes no time from ingest.

Rules it keeps, since a lost answer that is taken for "never left" could bill twice:
- what was handed to the process and not answered is *unknown* when the process ends, whatever it had done with it;
- what was not handed to it never left, and waits for a process no longer than it would for a connection;
- a write carries the instant by which it must begin: a process that was stopped for hours sends nothing then;
- answers for tasks are handed out one a tick, so that many that come at once don't hold up ingest; those for who only takes
  note of them, several a tick.

The process is started again when it ends, with growing waits, and killed when it gives no sign of life. One that can't be
started at all is told in one line, and calls are made in this process. Keys go by the socket, never by argv or the environment.
It must not know the log, the plan, or what a call means.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, NamedTuple, cast

import structlog
import trio

from engine import limits
from engine.core.billing import (
    Destination,
    Invoiced,
    Outcome,
    PricedItem,
    Proven,
    PushRequest,
    Reading,
    RejectionReport,
    Resolved,
    RetryLater,
    Unknown,
    Unread,
    Unresolved,
)
from engine.drivers.billing import StripeBilling
from engine.drivers.frames import (
    WRITES,
    Call,
    FrameReader,
    FrameWriter,
    Way,
    frame,
    packed_arguments,
    read_answer,
    result_of,
)
from engine.drivers.wire import machine_us
from engine.ports import Billing

_logger = structlog.get_logger("stripemeter.stripe")
MODULE: Final = "engine.drivers.sender"
START_SECONDS_MAX: Final = 30
"""From its start to its first sign of life; half a second is usual."""
RESTART_SECONDS_MIN, RESTART_SECONDS_MAX = 0.1, 30.0
STEADY_SECONDS: Final = 60
"""A process that lived so long is started again at once."""
LIFE_SECONDS: Final = 5
"""Between two questions for a sign of life."""
SILENCES_MAX: Final = 3
"""Questions in a row without any answer after which it is killed."""
END_SECONDS_MAX: Final = 2
"""For a process whose socket ended to end itself."""
NOTES_PER_TICK: Final = 16
"""Answers that are only taken note of: a quarter of a millisecond."""
_SECRETS: Final = ("STRIPE", "AWS_")
"""Variables that begin so are not the process's business."""


_ENDED: Final = "the process that speaks with Stripe ended before the answer"


class _Pending(NamedTuple):
    """A call that was handed over."""

    told: Callable[[list[object] | None], None]
    """Called once with its results; None: the process ended first."""
    wakes_task: bool


class StripeProcess:
    """The process, and who waits for it. `billing` gives the port for a way; run `run` beside them."""

    def __init__(self, ways: Mapping[str, Way], command: Sequence[str] | None = None) -> None:
        """`command`: what to start, with the socket's number to follow."""
        self._ways = dict(ways)
        self._command = command or (sys.executable, "-P", "-m", MODULE)
        self._writer: FrameWriter | None = None
        """Of the process that is there; None: there is none."""
        self._there = trio.Event()
        """Set while there is one, or calls are made here."""
        self._pending: dict[int, _Pending] = {}
        self._number = 0
        self._silences = 0
        self._direct: dict[str, Billing] = {}
        """Filled when no process could be started."""
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        """Processes that gave a sign of life."""
        self.lost = 0
        """Calls whose process ended before it answered."""

    @property
    def is_here(self) -> bool:
        """Whether calls are made in this process after all."""
        return bool(self._direct)

    def billing(self, way: str) -> RemoteBilling:
        """The port for one of the ways."""
        assert way in self._ways
        return RemoteBilling(self, way)

    # Its life.

    async def run(self) -> None:
        """Keep a process there until cancelled; at the end it is gone."""
        wait_seconds = RESTART_SECONDS_MIN
        async with AsyncExitStack() as stack:
            while True:
                began, starts = trio.current_time(), self.starts
                reason = await self._live()
                if self.starts == 0:
                    await self._go_on_here(reason, stack)
                    await trio.sleep_forever()
                if self.starts > starts and trio.current_time() - began > STEADY_SECONDS:
                    wait_seconds = RESTART_SECONDS_MIN
                _logger.warning("stripe_process_ended", reason=reason, again_seconds=wait_seconds)
                await trio.sleep(wait_seconds)
                wait_seconds = min(2 * wait_seconds, RESTART_SECONDS_MAX)

    async def _go_on_here(self, reason: str, stack: AsyncExitStack) -> None:
        _logger.warning("stripe_process_off", reason=reason, note="pushing in the server's process")
        for name, way in self._ways.items():
            driver = StripeBilling(
                way.secret, api_base=way.api_base, meter_events_base=way.meter_events_base
            )
            self._direct[name] = await stack.enter_async_context(driver)
        self._there.set()

    async def _live(self) -> str:
        """One process from its start to its end; why it ended, in words."""
        try:
            ours, its = socket.socketpair()
        except OSError as error:  # no descriptors are left
            return f"can't start it: {error.strerror or error}"
        try:
            with its:
                process = self._start(its)
        except OSError as error:
            ours.close()
            return f"can't start it: {error.strerror or error}"
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        said: str | None = None
        try:
            said = await self._converse(stream)
        finally:
            self._forget_pending()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
                await _end(process)
            self.process = None
        return said or f"it ended with {process.returncode}"

    def _start(self, its: socket.socket) -> subprocess.Popen[bytes]:
        """Here and not in a thread: Linux would take the thread's end for the parent's."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(_SECRETS)
        }
        # The same code as here, in the same order of preference.
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
        self.process = subprocess.Popen(
            [*self._command, str(its.fileno())],
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
            process_group=0,  # a terminal's Ctrl-C is the server's to heed
        )
        return self.process

    async def _converse(self, stream: trio.SocketStream) -> str | None:
        """Hand calls over and answers out until the process is gone; its last words, if it had any."""
        reader, writer = FrameReader(stream), FrameWriter(stream)
        writer.put(frame(self._ways))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            first: bytes | None = None
            with trio.move_on_after(START_SECONDS_MAX):
                first = await reader.next()
            said = None if first is None else read_answer(first).failed
            if first is not None and said is None:
                assert self.process is not None
                _logger.info("stripe_process", pid=self.process.pid)
                self.starts += 1
                self._silences = 0
                self._writer = writer
                self._there.set()
                nursery.start_soon(self._watch, self.process)
                said = await self._hand_out(reader)
            nursery.cancel_scope.cancel()
        return said

    async def _hand_out(self, reader: FrameReader) -> str | None:
        notes = 0
        while (body := await reader.next()) is not None:
            answer = read_answer(body)
            self._silences = 0
            if answer.failed is not None:
                return answer.failed
            pending = self._pending.pop(answer.number, None)
            if pending is not None:
                pending.told([result_of(one) for one in answer.results])
                notes += 1
                # A task that goes on now may have much to do: one at a time, so that ingest comes in between.
                if pending.wakes_task or notes % NOTES_PER_TICK == 0:
                    await trio.lowlevel.checkpoint()
        return None

    async def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Kill it when it is alive and does nothing. Its questions are counted, not the time: we may have been stopped too."""
        while True:
            await trio.sleep(LIFE_SECONDS)
            if self._silences == SILENCES_MAX:
                _logger.warning("stripe_process_silent", seconds=LIFE_SECONDS * SILENCES_MAX)
                process.kill()
                return
            self._silences += 1
            if self._writer is not None:
                self._writer.put(frame(Call(0)))

    def _forget_pending(self) -> None:
        """The process is gone: nobody will ever know what it did with what it was given."""
        self._writer = None
        if self._there.is_set():
            self._there = trio.Event()
        pending, self._pending = self._pending, {}
        self.lost += len(pending)
        for each in pending.values():
            each.told(None)

    # Calls.

    async def call(
        self,
        way: str,
        method: str,
        arguments: tuple[object, ...],
        failed: Callable[[str, bool], object],
    ) -> list[object]:
        """What a call came to. `failed(reason, may have left)` says it where no answer says it."""
        begin_by_us = machine_us() + limits.STRIPE_BEGIN_SECONDS * 1_000_000
        if not self._there.is_set():
            with trio.move_on_after(limits.STRIPE_CONNECT_SECONDS):
                await self._there.wait()
        if self._direct:
            made = await getattr(self._direct[way], method)(*arguments)
            return made if isinstance(made, list) else [made]
        writer = self._writer
        if writer is None:
            return [
                failed(
                    "the process that speaks with Stripe is not there; it is started again", False
                )
            ]
        if len(self._pending) >= limits.STRIPE_CALLS_MAX:
            return [failed(f"{limits.STRIPE_CALLS_MAX} calls to Stripe are under way", False)]
        done = trio.Event()
        found: list[object] | None = None

        def told(results: list[object] | None) -> None:
            nonlocal found
            found = results
            done.set()

        number = self._hand_over(
            writer, way, method, arguments, _Pending(told, True), begin_by_us=begin_by_us
        )
        try:
            await done.wait()
        finally:
            self._pending.pop(number, None)
        return [failed(_ENDED, True)] if found is None else found

    def begin_call(
        self,
        way: str,
        method: str,
        arguments: tuple[object, ...],
        done: Callable[[list[object] | None], None],
    ) -> bool:
        """`call` for who waits without a task: `done` gets its results, or None when the process ended first.

        False: it could not be handed over just now, and nothing was.
        """
        writer = self._writer
        if writer is None or len(self._pending) >= limits.STRIPE_CALLS_MAX:
            return False
        begin_by_us = machine_us() + limits.STRIPE_BEGIN_SECONDS * 1_000_000
        self._hand_over(
            writer, way, method, arguments, _Pending(done, False), begin_by_us=begin_by_us
        )
        return True

    def _hand_over(
        self,
        writer: FrameWriter,
        way: str,
        method: str,
        arguments: tuple[object, ...],
        pending: _Pending,
        *,
        begin_by_us: int,
    ) -> int:
        """The call's number."""
        self._number += 1
        number = self._number
        self._pending[number] = pending
        until_us = begin_by_us if method in WRITES else None
        writer.put(frame(Call(number, way, method, until_us, packed_arguments(arguments))))
        return number


async def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself when its socket does; if not, it is ended."""
    with trio.move_on_after(END_SECONDS_MAX):
        while process.poll() is None:  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.01)
    if process.poll() is None:
        process.kill()
        process.wait()


class RemoteBilling:
    """One key's way to Stripe through a `StripeProcess`. See the port for what each method gives."""

    def __init__(self, process: StripeProcess, way: str) -> None:
        self._process = process
        self._way = way

    async def _ask(
        self, method: str, *arguments: object, failed: Callable[[str, bool], object]
    ) -> Any:
        return (await self._process.call(self._way, method, arguments, failed))[0]

    async def prove(self) -> Proven | Unread:
        """See the port."""
        return cast("Proven | Unread", await self._ask("prove", failed=_unread))

    async def send(self, requests: Sequence[PushRequest], attempts: Sequence[int]) -> list[Outcome]:
        """See the port."""
        found = await self._process.call(self._way, "send", (requests, attempts), _unsent)
        if len(found) != len(requests):
            assert len(found) == 1, "one result a request, or one for all"
            found *= len(requests)
        return cast("list[Outcome]", found)

    def begin_send(
        self, request: PushRequest, attempt: int, done: Callable[[Outcome], None]
    ) -> bool:
        """See the port."""

        def told(results: list[object] | None) -> None:
            done(_unsent(_ENDED, True) if results is None else cast("Outcome", results[0]))

        return self._process.begin_call(self._way, "send", ((request,), (attempt,)), told)

    async def resolve(self, destination: Destination) -> Resolved | Unresolved:
        """See the port."""
        found = await self._ask("resolve", destination, failed=_unresolved)
        return cast("Resolved | Unresolved", found)

    async def read(
        self,
        resolved: Resolved,
        customer: str,
        start_s: int,
        end_s: int,
        connect_account: str | None,
    ) -> Reading | Unread:
        """See the port."""
        found = await self._ask(
            "read", resolved, customer, start_s, end_s, connect_account, failed=_unread
        )
        return cast("Reading | Unread", found)

    async def invoiced(
        self, resolved: Resolved, customer: str, end_s: int, connect_account: str | None
    ) -> Invoiced | Unread | None:
        """See the port."""
        found = await self._ask(
            "invoiced", resolved, customer, end_s, connect_account, failed=_unread
        )
        return cast("Invoiced | Unread | None", found)

    async def rejections(
        self, event_id: str, connect_account: str | None
    ) -> RejectionReport | Unread:
        """See the port."""
        found = await self._ask("rejections", event_id, connect_account, failed=_unread)
        return cast("RejectionReport | Unread", found)

    async def price(
        self, price: str, currency: str | None, connect_account: str | None
    ) -> dict[str, object] | Unread:
        """See the port."""
        found = await self._ask("price", price, currency, connect_account, failed=_unread)
        return cast("dict[str, object] | Unread", found)

    async def priced_item(self, item: str, connect_account: str | None) -> PricedItem | Unread:
        """See the port."""
        found = await self._ask("priced_item", item, connect_account, failed=_unread)
        return cast("PricedItem | Unread", found)

    async def cancel(self, request: PushRequest) -> Outcome:
        """See the port."""
        return cast("Outcome", await self._ask("cancel", request, failed=_unsent))


def _unsent(reason: str, may_have_left: bool) -> Outcome:
    return Unknown(reason) if may_have_left else RetryLater(reason, is_account_wide=True)


def _unread(reason: str, _may_have_left: bool) -> Unread:
    return Unread(reason)


def _unresolved(reason: str, _may_have_left: bool) -> Unresolved:
    return Unresolved(reason, is_temporary=True)
