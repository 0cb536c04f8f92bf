"""Heads that a log once had, kept outside it: what shows that its tail was cut, or that it was written anew.

Rules it keeps: a mark proves what the log was up to its position and nothing after it; of several that fail the first
one is named beside the last that holds, since the damage lies between them; a mark of an epoch that a restore ended is
not held against the log, but it is said. It must not know where marks were kept, nor who signed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wal.check import Problem
from wal.log import StoredRecord


class Mark(NamedTuple):
    """A log ended at `position` (its last one), in an epoch, with a record of this hash. `at`: when, in words."""

    log_id: bytes
    position: int
    hash: bytes
    epoch: int
    at: str = ""


class MarksSeen(NamedTuple):
    """What a walk over the log says of the marks."""

    held: int
    """Marks that the log still bears out."""
    restored_away: int
    """Marks of records that a restore from a backup left behind: they are not in this log."""
    problems: tuple[Problem, ...]


class MarkWalk:
    """Give it every record of a log, in order; then ask `end`. The marks are of this log."""

    def __init__(self, marks: Sequence[Mark]) -> None:
        self._of_position: dict[int, list[Mark]] = {}
        for mark in marks:
            self._of_position.setdefault(mark.position, []).append(mark)
        self._held: list[Mark] = []
        self._failed: list[Mark] = []
        self._restored = 0
        self._epoch = 0
        self._next = 0
        self._epoch_begins: dict[int, int] = {}
        """Epoch to the position of its first record."""

    def take(self, record: StoredRecord) -> None:
        """Look at one record."""
        envelope = record.envelope
        if envelope.epoch != self._epoch:
            self._epoch_begins[envelope.epoch] = record.sequence
            self._epoch = envelope.epoch
        self._next = record.next_sequence
        for mark in self._of_position.pop(record.next_sequence - 1, ()):
            same = (mark.hash, mark.epoch) == (record.hash, envelope.epoch)
            (self._held if same else self._failed).append(mark)

    def end(self) -> MarksSeen:
        """What became of every mark."""
        cut: list[Mark] = []
        for left in self._of_position.values():
            for mark in left:
                (cut if mark.position >= self._next else self._failed).append(mark)
        failed = [mark for mark in self._failed if not self._is_restored_away(mark)]
        cut = [mark for mark in cut if not self._is_restored_away(mark)]
        last_held = max(self._held, key=lambda m: m.position, default=None)
        held = "" if last_held is None else f" The last one that holds is at {_place(last_held)}."
        problems = []
        if failed:
            first = min(failed, key=lambda m: m.position)
            message = (
                f"the log is not the one that was anchored at {_place(first)}: records at or before it were written "
                f"anew.{held}"
            )
            problems.append(Problem(first.position, message))
        if cut:
            newest = max(cut, key=lambda m: m.position)
            message = (
                f"the log ends at position {self._next - 1}, and it reached {_place(newest)}: the records after "
                f"{self._next - 1} were cut off.{held}"
            )
            problems.append(Problem(self._next, message))
        return MarksSeen(len(self._held), self._restored, tuple(problems))

    def _is_restored_away(self, mark: Mark) -> bool:
        """Whether a later epoch began at or before the mark: a restore went back behind it."""
        begins = [at for epoch, at in self._epoch_begins.items() if epoch > mark.epoch]
        is_so = bool(begins) and min(begins) <= mark.position
        self._restored += is_so
        return is_so


def _place(mark: Mark) -> str:
    return f"position {mark.position} (epoch {mark.epoch}{f', {mark.at}' if mark.at else ''})"
