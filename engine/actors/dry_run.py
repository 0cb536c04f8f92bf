"""What would become of rows if they were imported now: new, late, duplicate, conflict or invalid. Changes nothing.

Rules it keeps: the same checks, the same key look-up and the same rule of lateness as the real thing; a key that came
earlier in the same dry run is a duplicate. It must not know where rows come from.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from engine.actors.supervisor import Meter
from engine.core.events import KEY_REUSED, EventLimits, Refusal
from engine.core.sent_rows import Meant, SentRow, taken

Fate = Literal["new", "late", "duplicate", "conflict", "invalid"]
FATES: Final[tuple[Fate, ...]] = ("new", "late", "duplicate", "conflict", "invalid")
KEYS_MAX: Final = 20_000_000
"""Keys of one dry run in memory, some 3 GB; later ones are told apart from the log's only."""


class Judged(NamedTuple):
    """A row's fate; `error` of a conflict or an invalid row."""

    line: int
    fate: Fate
    error: str | None = None


class DryRun:
    """Judges rows one by one, in their order."""

    def __init__(
        self, meter: Meter, meant: Meant, limits: EventLimits, *, historic: bool = False
    ) -> None:
        self._meter = meter
        self._meant = meant
        self._limits = limits
        self._historic = historic
        self._seen: dict[bytes, bytes] = {}

    def judge(self, row: SentRow) -> Judged:
        """The fate of a row. Raises Unavailable while recovering, or when the key index is damaged."""
        now_us = self._meter.clock.now_us()
        made = taken(row.event, self._meant, now_us, self._limits)
        if isinstance(made, Refusal):
            return Judged(row.line, "invalid", made.error)
        tenant, (metric, customer, _micros, ts_us, partition, key, fingerprint, *_texts) = made
        known = self._seen.get(key) or self._meter.started.writer.known_fingerprint(key)
        if known is not None:
            if fingerprint[: len(known)] == known:
                return Judged(row.line, "duplicate")
            return Judged(row.line, "conflict", KEY_REUSED)
        if len(self._seen) < KEYS_MAX:
            self._seen[key] = fingerprint
        if self._historic:
            return Judged(row.line, "new")
        state = self._meter.shards[self._meter.owner[partition]].state
        at_us = now_us if ts_us is None else ts_us
        is_late = state.is_late(partition, (tenant, metric, customer), at_us)
        return Judged(row.line, "late" if is_late else "new")
