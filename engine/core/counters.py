"""A counter: one customer's use of one metric in one period.

Rules it keeps: a counter holds every aggregate, so that a mapping's aggregation can change without a recount; the
watermark is the greatest min(ts, receivedAt) folded, so a producer's fast clock can't poison it; `last` goes by event
time, then log order. Integers only. It must not know partitions, rules or records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from engine.core.quantities import INT64_MAX, INT64_MIN, pack_total, unpack_ext

AGGREGATIONS: Final = ("sum", "max", "last")


BEFORE_ALL_US: Final = -(1 << 62)


class Tally:
    """Aggregates of some events, in micros: what a counter holds, without its period."""

    __slots__ = ("count", "last", "last_ts_us", "max", "sum")

    def __init__(self) -> None:
        self.sum = 0
        self.count = 0
        self.max = 0
        self.last = 0
        self.last_ts_us = BEFORE_ALL_US

    def add(self, micros: int, ts_us: int) -> None:
        """Fold one event: `last` goes by event time, then by the order of calls (log order)."""
        if self.count == 0 or micros > self.max:
            self.max = micros
        if ts_us >= self.last_ts_us:
            self.last, self.last_ts_us = micros, ts_us
        self.sum += micros
        self.count += 1

    def copy(self) -> Tally:
        """Another one with the same values."""
        return Tally.restore(self.state())

    def state(self) -> tuple[Any, ...]:
        """All fields as a row; `restore` takes it back."""
        return (
            pack_total(self.sum),
            self.count,
            pack_total(self.max),
            pack_total(self.last),
            self.last_ts_us,
        )

    @staticmethod
    def restore(row: Sequence[Any]) -> Tally:
        """A tally from the row that `state` gave, packed or read back."""
        tally = Tally()
        values = [
            value if isinstance(value, int) else unpack_ext(value.code, value.data) for value in row
        ]
        tally.sum, tally.count, tally.max, tally.last, tally.last_ts_us = values
        return tally


class Counter:
    """Aggregates of one (tenant, metric, customer, period), in micros; `older` is the period before it.

    Counters of one series form a list from the newest period down: the newest is nearly always the one wanted,
    and a list costs nothing when there is only one.
    """

    __slots__ = (
        "count",
        "end_us",
        "last",
        "last_ts_us",
        "max",
        "older",
        "start_us",
        "sum",
        "tallies",
        "updated_at_us",
        "watermark_us",
    )

    def __init__(self, start_us: int, end_us: int, older: Counter | None) -> None:
        self.start_us = start_us
        self.end_us = end_us
        self.older = older
        self.sum = 0
        self.count = 0
        self.max = 0
        self.last = 0
        self.last_ts_us = start_us
        self.watermark_us = start_us
        self.updated_at_us = 0
        self.tallies: list[Tally] | None = None
        """Also fed with every event folded: value adjustments ask what came after them. Not part of `state`."""

    def tally(self) -> Tally:
        """Its aggregates."""
        tally = Tally()
        tally.sum, tally.count, tally.max, tally.last = self.sum, self.count, self.max, self.last
        tally.last_ts_us = self.last_ts_us
        return tally

    def merge(self, other: Tally) -> None:
        """Fold many events at once (a replay); the watermark stays, they were behind it."""
        if other.count == 0:
            return
        if self.count == 0 or other.max > self.max:
            self.max = other.max
        if self.count == 0 or other.last_ts_us > self.last_ts_us:
            self.last, self.last_ts_us = other.last, other.last_ts_us
        self.sum += other.sum
        self.count += other.count

    def value(self, aggregation: str) -> int:
        """The aggregate that a mapping asks for, in micros."""
        assert aggregation in AGGREGATIONS, aggregation
        return int(getattr(self, aggregation))

    def state(self) -> tuple[Any, ...]:
        """All fields as a row for snapshots and comparisons; `Counter.restore` takes it back."""
        total, greatest, last = self.sum, self.max, self.last
        if not (
            # Nearly always so, and three calls would cost as much as the rest of a snapshot's row.
            INT64_MIN <= total <= INT64_MAX
            and INT64_MIN <= greatest <= INT64_MAX
            and INT64_MIN <= last <= INT64_MAX
        ):
            total, greatest, last = map(pack_total, (total, greatest, last))  # type: ignore[assignment]
        return (
            self.start_us,
            self.end_us,
            total,
            self.count,
            greatest,
            last,
            self.last_ts_us,
            self.watermark_us,
            self.updated_at_us,
        )

    @staticmethod
    def restore(row: tuple[Any, ...], older: Counter | None) -> Counter:
        """A counter from the row that `state` gave."""
        counter = Counter(row[0], row[1], older)
        (counter.sum, counter.count, counter.max, counter.last) = row[2:6]
        (counter.last_ts_us, counter.watermark_us, counter.updated_at_us) = row[6:9]
        return counter
