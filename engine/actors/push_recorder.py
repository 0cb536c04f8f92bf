"""Makes push records durable: many lanes' in one commit.

Rules it keeps: a record is durable and folded before its lane goes on; records are appended in the order they were
given; what the log can't take now is told to whoever waits, and nothing is kept for later; what was planned before a
mapping or customer changed is not recorded after it: both hold the lock of all changes; who handed something in waits
for what becomes of it, since it can't be called back. It must not know what the records mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import trio

from engine.core.records import ControlRecord
from engine.errors import EngineError, Unavailable

RECORDS_PER_APPEND_MAX: Final = 32
"""They are folded in one turn of the loop: half a millisecond. A commit takes as long, so no push waits for it."""

GATHER_SECONDS: Final = 0.02
"""Between two appends that leave little waiting: a commit costs half a millisecond of the core that counts, and a push has
time."""


class Outdated(EngineError):
    """What the records were planned by changed before they could be recorded: plan again."""


Done = Callable[[EngineError | None], None]
"""Told once what became of records: None when they are durable and folded."""


class _Waiting(NamedTuple):
    records: Sequence[ControlRecord]
    holds: Callable[[], bool] | None
    done: Done


class PushRecorder:
    """One task that appends what the lanes hand in."""

    def __init__(
        self, append: Callable[[Sequence[ControlRecord]], Awaitable[object]], change_lock: trio.Lock
    ) -> None:
        self._append = append
        self._change_lock = change_lock
        self._queue: deque[_Waiting] = deque()
        self._wake = trio.Event()
        self._is_running = self._has_ended = False

    async def record(
        self, records: Sequence[ControlRecord], holds: Callable[[], bool] | None = None
    ) -> None:
        """Return when the records are durable and folded. Raises EngineError when they are not.

        `holds` is asked under the lock, just before: False raises Outdated and records nothing. It can't be cancelled
        while records are taken: what they were checked against must not be decided about again before they are folded.
        """
        is_done = trio.Event()
        errors: list[EngineError] = []

        def done(error: EngineError | None) -> None:
            if error is not None:
                errors.append(error)
            is_done.set()

        self.hand_in(records, holds, done)
        with trio.CancelScope(shield=self._is_running):
            await is_done.wait()
        if errors:
            raise errors[0]

    def hand_in(
        self, records: Sequence[ControlRecord], holds: Callable[[], bool] | None, done: Done
    ) -> None:
        """`record` for who waits without a task: `done` is called when it would return or raise, and must not raise.

        It is called for many in one turn, so it should do little.
        """
        if self._has_ended:
            done(_ended())
            return
        self._queue.append(_Waiting(records, holds, done))
        self._wake.set()

    async def run(self) -> None:
        """Append what waits, until cancelled: then who waits is told."""
        self._is_running = True
        try:
            while True:
                await self._append_next()
                if len(self._queue) < RECORDS_PER_APPEND_MAX:
                    await trio.sleep(GATHER_SECONDS)
        finally:
            self._is_running, self._has_ended = False, True
            while self._queue:
                self._queue.popleft().done(_ended())

    async def _append_next(self) -> None:
        """What waits, or comes first, in one append."""
        while not self._queue:
            self._wake = trio.Event()
            await self._wake.wait()
        try:
            self._change_lock.acquire_nowait()  # nearly always; waiting would cost a turn
        except trio.WouldBlock:
            await self._change_lock.acquire()
        try:
            taken: list[_Waiting] = []
            count = 0
            while self._queue and count < RECORDS_PER_APPEND_MAX:
                taken.append(self._queue.popleft())
                count += len(taken[-1].records)
            await self._append_all(taken)
        finally:
            self._change_lock.release()

    async def _append_all(self, taken: list[_Waiting]) -> None:
        """Whoever handed in is told."""
        good: list[_Waiting] = []
        for each in taken:
            if each.holds is None or each.holds():
                good.append(each)
            else:
                each.done(Outdated("a mapping or customer changed meanwhile"))
        if not good:
            return
        failed: EngineError | None = _ended()
        try:
            await self._append([record for each in good for record in each.records])
            failed = None
        except EngineError as error:
            failed = error
        finally:
            for each in good:
                each.done(failed)


def _ended() -> EngineError:
    return Unavailable("the server is stopping; retry", retry_after_seconds=2)
