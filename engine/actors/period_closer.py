"""The period closer: appends the record that closes a period once its end and the lateness window are past.

Rules it keeps: closing is a record, so the fold never asks a clock; a wall clock that jumps more than five minutes
against the monotonic one holds all closings until it agrees again, since a period that was closed too early can't
be opened. It must not know how an event is judged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import structlog
import trio

from engine.core.closings import anchored_end, due_closing
from engine.core.records import PeriodClosing
from engine.core.rules import Rules
from engine.errors import EngineError
from engine.limits import CLOCK_JUMP_US_MAX
from engine.ports import Clock

_logger = structlog.get_logger("stripemeter.periods")
_EVERY_SECONDS = 30.0
_ANCHORS_PER_SLICE = 2_000


class PeriodCloser:
    """One task: looks twice a minute whether a period's time is up."""

    def __init__(
        self,
        rules: Rules,
        clock: Clock,
        append: Callable[[PeriodClosing], Awaitable[object]],
    ) -> None:
        self._rules = rules
        self._clock = clock
        self._append = append
        self._offset_us = clock.now_us() - clock.monotonic_us()
        self.held_because: str | None = None
        """Why closings are held; None while they are not. Shown in readiness."""

    async def run(self) -> None:
        """Close what is due, until cancelled."""
        while True:
            await self.close_due()
            await trio.sleep(_EVERY_SECONDS)

    def why_held(self) -> str | None:
        """Why nothing that can't be undone may follow the wall clock now; None while it may."""
        self._clock_is_sane()
        return self.held_because

    async def close_due(self) -> None:
        """Append a closing for every scope that has one due now, unless the clock can't be trusted."""
        if not self._clock_is_sane():
            return
        scopes: list[tuple[str, str] | None] = [None]
        scopes += [(tenant, metric) for tenant, metric, _ in self._rules.own_scopes()]
        for own in scopes:
            closing = due_closing(self._rules, own, self._clock.now_us())
            if "subscription" in self._rules.kinds_in_use(own=own):
                closing = await self._with_anchors(own, closing)
            if closing is None:
                continue
            try:
                await self._append(closing)
            except EngineError as error:
                _logger.warning("period_closing_failed", error=str(error))
                return

    async def _with_anchors(
        self, own: tuple[str, str] | None, closing: PeriodClosing | None
    ) -> PeriodClosing | None:
        """The same, following the customers' own period ends too; in slices, there may be many."""
        for anchors in _slices(self._rules, _ANCHORS_PER_SLICE):
            closing = anchored_end(self._rules, own, self._clock.now_us(), anchors, closing)
            await trio.lowlevel.checkpoint()
        return closing

    def _clock_is_sane(self) -> bool:
        moved_us = self._clock.now_us() - self._clock.monotonic_us() - self._offset_us
        if abs(moved_us) <= CLOCK_JUMP_US_MAX:
            self.held_because = None
            return True
        self.held_because = f"the wall clock moved {moved_us / 1e6:+.0f} s against the monotonic one; set it right or restart"
        _logger.warning("period_closings_held", reason=self.held_because)
        return False


def _slices(rules: Rules, size: int) -> Iterator[list[int]]:
    anchors = [
        anchor
        for history in list(rules.anchors.values())
        for _, anchor in history
        if anchor is not None
    ]
    for start in range(0, len(anchors), size):
        yield anchors[start : start + size]
