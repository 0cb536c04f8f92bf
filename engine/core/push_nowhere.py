"""Use of mapped metrics that goes nowhere: whose it is, why, and which part of which periods.

Rules it keeps: a part that is nothing goes nowhere in no way worth a word; what reaches a target is told of no period. It
must not know destinations, or what is done about it.
"""

from __future__ import annotations

from typing import TypeVar

from engine.core.push_uses import PeriodUse
from engine.core.shard_state import Series

KeyT = TypeVar("KeyT")
ItemT = TypeVar("ItemT")


class PushNowhere:
    """By series, as of when each was taken in last."""

    def __init__(self) -> None:
        self.reasons: dict[Series, str] = {}
        """Whose use goes nowhere, or is not known yet to go anywhere, and why."""
        self.incomplete: dict[Series, str] = {}
        """Of whom some route can't be followed, were it one by which nothing goes, and why: that may change unseen."""
        self._placed: dict[Series, dict[int, int]] = {}
        """Of these, start of a period of which a part goes nowhere to the micros of it that do reach a target."""

    def add(
        self, series: Series, use: PeriodUse, micros: int, reason: str, *, is_waiting: bool = False
    ) -> None:
        """So much of a period's use goes nowhere; `is_waiting`: or somewhere, were it nothing, and nobody has said where."""
        self.incomplete[series] = reason
        if micros or is_waiting:
            self.reasons[series] = reason
        if micros:
            placed = self._placed.setdefault(series, {})
            placed[use.start_us] = placed.get(use.start_us, use.micros) - micros

    def forget(self, series: Series) -> None:
        """It is taken in again."""
        self.reasons.pop(series, None)
        self.incomplete.pop(series, None)
        self._placed.pop(series, None)

    def has_part(self, series: Series, start_us: int) -> bool:
        """Whether some of a period's use goes nowhere."""
        return start_us in self._placed.get(series, ())

    def micros(self, series: Series, use: PeriodUse) -> int:
        """How much of a period's use goes nowhere, if what grew since it was taken in goes there, too."""
        placed = self._placed.get(series, {}).get(use.start_us)
        return 0 if placed is None else use.micros - placed


def discard(table: dict[KeyT, set[ItemT]], key: KeyT, item: ItemT) -> None:
    """Take an item out of a table of sets that holds no empty ones."""
    if (items := table.get(key)) is not None:
        items.discard(item)
        if not items:
            del table[key]
