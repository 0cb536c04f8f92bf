"""A counter: one customer's use of one metric in one period, and the adjustment that holds its late events.

Rules it keeps: a counter holds every aggregate, so that a mapping's aggregation can change without a recount; the
watermark is the greatest min(ts, receivedAt) folded, so a producer's fast clock can't poison it; `last` goes by event
time, then log order. Integers only. It must not know partitions, rules or records.
"""

from __future__ import annotations

from typing import Any, Final

from engine.core.quantities import INT64_MAX, INT64_MIN, pack_total

AGGREGATIONS: Final = ("sum", "max", "last")


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


class LateAdjustment:
    """The late events of one counter that wait for one decision, or were approved on arrival (policy auto)."""

    __slots__ = (
        "approved",
        "count",
        "created_at_us",
        "id",
        "last",
        "last_ts_us",
        "max",
        "sequences",
        "sum",
    )

    def __init__(self, adjustment_id: str, created_at_us: int, *, approved: bool) -> None:
        self.id = adjustment_id
        self.created_at_us = created_at_us
        self.approved = approved
        self.sum = 0
        self.count = 0
        self.max = 0
        self.last = 0
        self.last_ts_us = -(1 << 62)
        self.sequences: list[int] = []
        """Log positions of its events."""

    def add(self, sequence: int, micros: int, ts_us: int) -> None:
        """Take one late event in."""
        if self.count == 0 or micros > self.max:
            self.max = micros
        if ts_us >= self.last_ts_us:
            self.last, self.last_ts_us = micros, ts_us
        self.sum += micros
        self.count += 1
        self.sequences.append(sequence)

    def state(self) -> tuple[Any, ...]:
        """All fields as a row for snapshots; `LateAdjustment.restore` takes it back."""
        return (
            self.id,
            self.created_at_us,
            self.approved,
            pack_total(self.sum),
            self.count,
            pack_total(self.max),
            pack_total(self.last),
            self.last_ts_us,
            self.sequences,
        )

    @staticmethod
    def restore(row: tuple[Any, ...]) -> LateAdjustment:
        """An adjustment from the row that `state` gave."""
        adjustment = LateAdjustment(row[0], row[1], approved=row[2])
        (adjustment.sum, adjustment.count, adjustment.max, adjustment.last) = row[3:7]
        adjustment.last_ts_us = row[7]
        adjustment.sequences = list(row[8])
        return adjustment


def adjusted_value(
    counter: Counter | None, approved: LateAdjustment | None, aggregation: str
) -> int:
    """What counts, in micros: the counter's aggregate with its approved late events folded by the same rule."""
    if approved is None:
        return counter.value(aggregation) if counter is not None else 0
    if counter is None or counter.count == 0:
        return int(getattr(approved, aggregation))
    if aggregation == "sum":
        return counter.sum + approved.sum
    if aggregation == "max":
        return max(counter.max, approved.max)
    return approved.last if approved.last_ts_us > counter.last_ts_us else counter.last
