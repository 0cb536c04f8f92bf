"""Makes push records durable: many lanes' in one commit.

Rules it keeps: a record is durable and folded before its lane goes on; records are appended in the order they were
given; what the log can't take now is told to whoever waits, and nothing is kept for later; what was planned before a
mapping or customer changed is not recorded after it: both hold the lock of all changes. It must not know what the
records mean.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from engine.core.records import ControlRecord
from engine.errors import EngineError

RECORDS_PER_APPEND_MAX: Final = 16
"""They are folded in one turn of the loop: a quarter of a millisecond. A commit takes longer, so no push waits for it."""

GATHER_SECONDS: Final = 0.01
"""Between two appends that leave little waiting: a commit costs half a millisecond of the core that counts, and a push has
time."""


class Outdated(EngineError):
    """What the records were planned by changed before they could be recorded: plan again."""


class _Waiting:
    __slots__ = ("done", "error", "holds", "records")

    def __init__(self, records: Sequence[ControlRecord], holds: Callable[[], bool]) -> None:
        self.records = records
        self.holds = holds
        self.done = trio.Event()
        self.error: EngineError | None = None


class PushRecorder:
    """One task that appends what the lanes hand in."""

    def __init__(
        self, append: Callable[[Sequence[ControlRecord]], Awaitable[object]], change_lock: trio.Lock
    ) -> None:
        self._append = append
        self._change_lock = change_lock
        self._queue: list[_Waiting] = []
        self._wake = trio.Event()

    async def record(
        self, records: Sequence[ControlRecord], holds: Callable[[], bool] = lambda: True
    ) -> None:
        """Return when the records are durable and folded. Raises EngineError when they are not.

        `holds` is asked under the lock, just before: False raises Outdated and records nothing.
        """
        waiting = _Waiting(records, holds)
        self._queue.append(waiting)
        self._wake.set()
        await waiting.done.wait()
        if waiting.error is not None:
            raise waiting.error

    async def run(self) -> None:
        """Append what waits, until cancelled."""
        while True:
            while not self._queue:
                self._wake = trio.Event()
                await self._wake.wait()
            taken: list[_Waiting] = []
            count = 0
            while self._queue and count < RECORDS_PER_APPEND_MAX:
                taken.append(self._queue.pop(0))
                count += len(taken[-1].records)
            async with self._change_lock:
                await self._append_all(taken)
            for each in taken:
                each.done.set()
                # Whoever goes on now has a request to make: one at a time, so that ingest comes in between.
                await trio.lowlevel.checkpoint()
            if len(self._queue) < RECORDS_PER_APPEND_MAX:
                await trio.sleep(GATHER_SECONDS)

    async def _append_all(self, taken: list[_Waiting]) -> None:
        good = [each for each in taken if each.holds()]
        for each in taken:
            if each not in good:
                each.error = Outdated("a mapping or customer changed meanwhile")
        if not good:
            return
        try:
            await self._append([record for each in good for record in each.records])
        except EngineError as error:
            for each in good:
                each.error = error
