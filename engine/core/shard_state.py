"""One shard's machine: the counters of its partitions, and the fold that moves them on.

Rules it keeps: it folds records in log order and reads nothing else, so live counting, recovery and replay are the
same code; every accepted event is either folded or held in exactly one late adjustment; a partition's state
depends only on that partition's events and on the control records. It must not know tasks, clocks or bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from engine.core.counters import Counter, LateAdjustment, adjusted_value
from engine.core.periods import period_in
from engine.core.records import ControlRecord, TenantEvents
from engine.core.rules import Rules, Scope

Series = tuple[str, str, str]
"""(tenant, metric, customerRef)."""
LateKey = tuple[str, str, str, int, int, bool]
"""(tenant, metric, customerRef, period start, period end, approved on arrival)."""


class Late(NamedTuple):
    """An event of the group that was not folded: its row in the tenant's part, and what holds it."""

    row: int
    adjustment_id: str


class MetricUsage(NamedTuple):
    """One metric of a customer in one period, as counted so far; quantities in micros.

    `current` follows the aggregation and includes approved late events; `pending_count` late events wait.
    """

    metric: str
    aggregation: str
    start_us: int
    end_us: int
    current: int
    counter: Counter | None
    pending_count: int


def _picked(events: TenantEvents, indexes: Sequence[int]) -> Iterable[tuple[Any, ...]]:
    """(index, metric, customer, micros, time, partition) of some events: of all, if `indexes` is as long."""
    metrics, customers, micros = events.metrics, events.customers, events.micros
    times_us, partitions = events.times_us, events.partitions
    if len(indexes) == len(metrics):
        return zip(indexes, metrics, customers, micros, times_us, partitions, strict=True)
    return [(i, metrics[i], customers[i], micros[i], times_us[i], partitions[i]) for i in indexes]


class ShardState:
    """Counters and late adjustments of some partitions, under one copy of the rules."""

    def __init__(self, partitions: Iterable[int], rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.counters: dict[int, dict[Series, Counter]] = {p: {} for p in partitions}
        self.late: dict[int, dict[LateKey, LateAdjustment]] = {p: {} for p in self.counters}
        self.metrics: dict[str, set[str]] = {}
        """Metrics seen per tenant: what a customer's usage is looked up by."""
        self._names: dict[str, str] = {}
        """One object per tenant and metric name, so that a million keys share it."""

    def fold_control(self, record: ControlRecord) -> None:
        """Take a control record into the rules; later events are judged by it."""
        self.rules.apply(record)

    def fold_events(
        self,
        events: TenantEvents,
        indexes: Sequence[int],
        *,
        first_sequence: int,
        received_at_us: int,
    ) -> list[Late]:
        """Fold the events at `indexes` (all of this shard's partitions); the late ones are returned.

        `first_sequence` is the log position of the part's first event, `received_at_us` the group's.
        Costs about half a microsecond an event.
        """
        late: list[Late] = []
        tenant = events.tenant
        scopes: dict[str, Scope] = {}
        tables = self.counters
        for index, metric, customer, micros, ts, partition in _picked(events, indexes):
            scope = scopes.get(metric)
            if scope is None:
                scope = scopes[metric] = self._scope(tenant, metric)
            lateness_us, closed_until_us = scope
            ts_us = received_at_us if ts is None else ts
            series = (tenant, metric, customer)
            counter = tables[partition].get(series)
            if counter is None or not counter.start_us <= ts_us < counter.end_us:
                counter = self._counter_at(partition, series, counter, ts_us, scope)
            if (
                counter is None
                or counter.end_us <= closed_until_us
                or ts_us < (watermark_us := counter.watermark_us) - lateness_us
            ):
                sequence = first_sequence + index
                held = self._hold(partition, series, sequence, micros, ts_us, received_at_us)
                late.append(Late(index, held))
                continue
            # No min() and max() here: each costs as much as finding the counter.
            if counter.count == 0 or micros > counter.max:
                counter.max = micros
            if ts_us >= counter.last_ts_us:
                counter.last = micros
                counter.last_ts_us = ts_us
            counter.sum += micros
            counter.count += 1
            seen_us = ts_us if ts_us < received_at_us else received_at_us  # noqa: FURB136
            if seen_us > watermark_us:
                counter.watermark_us = seen_us
            counter.updated_at_us = received_at_us
        return late

    def _scope(self, tenant: str, metric: str) -> Scope:
        seen = self.metrics.get(tenant)
        if seen is None:
            seen = self.metrics[self._names.setdefault(tenant, tenant)] = set()
        seen.add(self._names.setdefault(metric, metric))
        return self.rules.scope(tenant, metric)

    def _counter_at(
        self, partition: int, series: Series, newest: Counter | None, ts_us: int, scope: Scope
    ) -> Counter | None:
        """The counter whose period holds `ts_us`, made if it must be; None if that period is closed."""
        above: Counter | None = None
        below = newest
        while below is not None and ts_us < below.start_us:
            above, below = below, below.older
        if below is not None and ts_us < below.end_us:
            return below
        tenant, metric, customer = series
        start_us, end_us = period_in(self.rules.schedule(tenant, metric, customer), ts_us)
        if end_us <= scope.closed_until_us:
            return None
        counter = Counter(start_us, end_us, below)
        if above is not None:
            above.older = counter
        else:
            key = (self._names[tenant], self._names[metric], customer)
            self.counters[partition][key] = counter
        return counter

    def _hold(  # noqa: PLR0917 - on the path of a flood of late events
        self,
        partition: int,
        series: Series,
        sequence: int,
        micros: int,
        ts_us: int,
        received_at_us: int,
    ) -> str:
        """Put a late event into its counter's adjustment; returns that adjustment's id."""
        approved = self.rules.late_policy == "auto"
        start_us, end_us = period_in(self.rules.schedule(*series), ts_us)
        key = (*series, start_us, end_us, approved)
        adjustment = self.late[partition].get(key)
        if adjustment is None:
            # The id is the position of its first event: unique in the log, and the same in every replay.
            adjustment = LateAdjustment(f"adj_{sequence:012x}", received_at_us, approved=approved)
            self.late[partition][key] = adjustment
        adjustment.add(sequence, micros, ts_us)
        return adjustment.id

    def usage(
        self, partition: int, tenant: str, customer_ref: str, metrics: Iterable[str], at_us: int
    ) -> Iterator[MetricUsage]:
        """Each metric's use in the period that holds `at_us`; a metric without use is there with zeros."""
        for metric in metrics:
            series = (tenant, metric, customer_ref)
            counter = self.counters[partition].get(series)
            while counter is not None and counter.start_us > at_us:
                counter = counter.older
            if counter is not None and at_us >= counter.end_us:
                counter = None
            if counter is not None:
                start_us, end_us = counter.start_us, counter.end_us
            else:
                start_us, end_us = period_in(self.rules.schedule(*series), at_us)
            aggregation = self.rules.aggregation(tenant, metric, at_us)
            late = self.late[partition]
            approved = late.get((*series, start_us, end_us, True)) if late else None
            pending = late.get((*series, start_us, end_us, False)) if late else None
            yield MetricUsage(
                metric,
                aggregation,
                start_us,
                end_us,
                adjusted_value(counter, approved, aggregation),
                counter,
                pending.count if pending is not None else 0,
            )

    def partition_state(self, partition: int) -> tuple[list[Any], list[Any]]:
        """A partition's counters and late adjustments as plain rows, for a snapshot or a comparison.

        The order is that of first appearance, so it is not canonical: compare sorted.
        """
        every = len(self.counters[partition]) or 1
        rows = [row for part in self.partition_rows(partition, every) for row in part]
        return rows, self.partition_late(partition)

    def partition_rows(self, partition: int, rows_max: int) -> Iterator[list[Any]]:
        """The counters' rows, at most `rows_max` series at once; nothing may be folded before the last."""
        rows: list[Any] = []
        for series, newest in self.counters[partition].items():
            chain = [newest.state()]
            older = newest.older
            while older is not None:
                chain.append(older.state())
                older = older.older
            rows.append((series, chain))
            if len(rows) == rows_max:
                yield rows
                rows = []
        if rows:
            yield rows

    def partition_late(self, partition: int) -> list[Any]:
        """The late adjustments' rows."""
        return [(key, held.state()) for key, held in self.late[partition].items()]

    def adopt(self, other: ShardState, partitions: Iterable[int]) -> None:
        """Take partitions over from another state, which must not be used for them again."""
        for partition in partitions:
            self.counters[partition] = other.counters[partition]
            self.late[partition] = other.late[partition]
        self.metrics = {tenant: set(metrics) for tenant, metrics in other.metrics.items()}
        self._names = dict(other._names)

    def restore_partition(self, partition: int, rows: Sequence[Any], late: Sequence[Any]) -> None:
        """Put back what `partition_state` gave; the partition must be empty."""
        assert not self.counters[partition], "a partition is restored once"
        table = self.counters[partition]
        names = self._names
        for (tenant, metric, customer), chain in rows:
            shared_tenant = names.setdefault(tenant, tenant)
            shared_metric = names.setdefault(metric, metric)
            self.metrics.setdefault(shared_tenant, set()).add(shared_metric)
            newest: Counter | None = None
            for row in reversed(chain):
                newest = Counter.restore(row, newest)
            assert newest is not None, "a series has at least one counter"
            table[shared_tenant, shared_metric, customer] = newest
        for key, row in late:
            self.late[partition][tuple(key)] = LateAdjustment.restore(row)
            self.metrics.setdefault(key[0], set()).add(key[1])
