"""Usage history: cells and events added up in buckets of time.

Rules it keeps: every bucket of the range is in the answer, with 0 where nothing was used; the answer is exact, and the
same whether it is folded from cells or from events; a bucket's value follows the aggregation in force at its start.
A range that would give too much is refused with what to do. It must not know where cells are kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from engine.core.periods import Interval, bucket_end, bucket_start, buckets
from engine.core.queries import HistoryQuery, HistoryResult, HistorySeries
from engine.core.segments import Cells
from engine.core.times import INSTANT_US_END, INSTANT_US_MIN, MINUTE_US
from engine.errors import Refused

HISTORY_BUCKETS_MAX: Final = 10_000
HISTORY_GROUPS_MAX: Final = 1_000
HISTORY_POINTS_MAX: Final = 200_000
"""Groups times buckets: what one answer holds."""
_META_PREFIX: Final = "meta."
_decode_meta = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Range:
    """The buckets of a query, widened to whole ones."""

    def __init__(self, interval: Interval, since_us: int, until_us: int) -> None:
        """Raises Refused when the range is empty or has too many buckets."""
        if not INSTANT_US_MIN <= since_us < until_us <= INSTANT_US_END:
            message = "since must be before until"
            raise Refused(message, (("until", "must be later than since"),))
        try:
            self.starts_us = list(
                buckets(interval, since_us, until_us, buckets_max=HISTORY_BUCKETS_MAX)
            )
        except ValueError as error:
            raise Refused(str(error), (("interval", str(error)),)) from error
        self.since_us = bucket_start(interval, since_us)
        self.until_us = bucket_end(interval, self.starts_us[-1])

    def bucket(self, ts_us: int) -> int:
        """The index of the bucket that holds an instant of the range."""
        return bisect_right(self.starts_us, ts_us) - 1


class _Bucket:
    __slots__ = ("last", "last_ts_us", "max", "sum")

    def __init__(self, total: int, largest: int, last: int, last_ts_us: int) -> None:
        self.sum = total
        self.max = largest
        self.last = last
        self.last_ts_us = last_ts_us


class HistoryFold:
    """Adds up one line of a chart. Give it cells or events in log order."""

    def __init__(self, span: Range) -> None:
        self._span = span
        self._buckets: dict[int, _Bucket] = {}

    def add_cells(self, cells: Cells) -> None:
        """Add the cells that lie in the range: buckets start at minutes, so no cell is in two."""
        span = self._span
        inside = (cells.minute >= span.since_us // MINUTE_US) & (
            cells.minute < span.until_us // MINUTE_US
        )
        wanted = cells.rows(inside)
        for minute, total, largest, last, last_ts_us in zip(
            wanted.minute.tolist(),
            wanted.sum.tolist(),
            wanted.max.tolist(),
            wanted.last.tolist(),
            wanted.last_ts_us.tolist(),
            strict=True,
        ):
            self._add(span.bucket(minute * MINUTE_US), total, largest, last, last_ts_us)

    def add_event(self, micros: int, ts_us: int) -> None:
        """Add one event of the range."""
        self._add(self._span.bucket(ts_us), micros, micros, micros, ts_us)

    def _add(self, index: int, total: int, largest: int, last: int, last_ts_us: int) -> None:
        bucket = self._buckets.get(index)
        if bucket is None:
            self._buckets[index] = _Bucket(total, largest, last, last_ts_us)
            return
        bucket.sum += total
        bucket.max = max(bucket.max, largest)
        if last_ts_us >= bucket.last_ts_us:
            bucket.last, bucket.last_ts_us = last, last_ts_us

    def series(self, group: str | None, aggregations: Sequence[str]) -> HistorySeries:
        """The line; `aggregations` has one for each bucket, and the last one's decides the total."""
        values = [0] * len(aggregations)
        for index, bucket in self._buckets.items():
            values[index] = int(getattr(bucket, aggregations[index]))
        return HistorySeries(
            group=group, values_micros=tuple(values), total_micros=self._total(aggregations[-1])
        )

    def _total(self, aggregation: str) -> int:
        if not self._buckets:
            return 0
        if aggregation == "sum":
            return sum(bucket.sum for bucket in self._buckets.values())
        if aggregation == "max":
            return max(bucket.max for bucket in self._buckets.values())
        return self._buckets[max(self._buckets)].last


class HistoryGroups:
    """The lines of a chart, one for each value grouped by, and the one over all."""

    def __init__(self, span: Range) -> None:
        self._span = span
        self._groups: dict[str | None, HistoryFold] = {}
        self._overall = HistoryFold(span)
        self._groups_max = min(HISTORY_GROUPS_MAX, HISTORY_POINTS_MAX // len(span.starts_us))

    def add_event(self, group: str | None, micros: int, ts_us: int) -> None:
        """Add one event of the range. Raises Refused when there are too many groups."""
        fold = self._groups.get(group)
        if fold is None:
            if len(self._groups) == self._groups_max:
                message = (
                    f"there are more than {self._groups_max} groups for {len(self._span.starts_us)} buckets: "
                    "name a customerRef, or ask for a shorter range or a longer interval"
                )
                raise Refused(message, (("groupBy", message),))
            fold = self._groups[group] = HistoryFold(self._span)
        fold.add_event(micros, ts_us)
        self._overall.add_event(micros, ts_us)

    def result(self, aggregation_at: Callable[[int], str]) -> HistoryResult:
        """The answer: groups in order, the one without a value last."""
        aggregations = [aggregation_at(start_us) for start_us in self._span.starts_us]
        names = sorted(self._groups, key=lambda group: (group is None, group or ""))
        lines = [self._groups[name].series(name, aggregations) for name in names]
        overall = self._overall.series(None, aggregations)
        return _result(self._span, lines, overall)


def ungrouped_result(
    span: Range, fold: HistoryFold, aggregation_at: Callable[[int], str]
) -> HistoryResult:
    """The answer without groups."""
    line = fold.series(None, [aggregation_at(start_us) for start_us in span.starts_us])
    return _result(span, [line], line)


def _result(span: Range, lines: list[HistorySeries], overall: HistorySeries) -> HistoryResult:
    return HistoryResult(
        since_us=span.since_us,
        until_us=span.until_us,
        bucket_starts_us=tuple(span.starts_us),
        series=tuple(lines),
        total_micros=overall.total_micros,
    )


GroupOf = Callable[[str, str | None, str | None], str | None]
"""(customer, resource, meta) to the value grouped by."""


def group_of(query: HistoryQuery) -> GroupOf:
    """What a query groups by. Raises Refused for what can't be grouped by."""
    by = query.group_by
    if by == "customerRef":
        return lambda customer, _resource, _meta: customer
    if by == "resourceId":
        return lambda _customer, resource, _meta: resource
    if by is not None and by.startswith(_META_PREFIX) and len(by) > len(_META_PREFIX):
        key = by[len(_META_PREFIX) :]
        return lambda _customer, _resource, meta: _meta_value(meta, key)
    message = "groupBy must be customerRef, resourceId or meta.KEY"
    raise Refused(message, (("groupBy", message),))


def _meta_value(meta: str | None, key: str) -> str | None:
    """A value of canonical meta as text: a string as it is, anything else as its JSON."""
    if meta is None:
        return None
    raw = _decode_meta(meta).get(key)
    if raw is None:
        return None
    text = bytes(raw)
    return msgspec.json.decode(text, type=str) if text.startswith(b'"') else text.decode()
