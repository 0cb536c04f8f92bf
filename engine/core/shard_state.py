"""One shard's machine: the counters of its partitions, and the fold that moves them on.

Rules it keeps: it folds records in log order and reads nothing else, so live counting, recovery and replay are the
same code; every accepted event is either folded or held in exactly one late adjustment; a partition's state
depends only on that partition's events and on the control records. It must not know tasks, clocks or bytes.
"""

from __future__ import annotations

from collections import Counter as Tallied
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from engine.core.adjustments import (
    Adjustment,
    Adjustments,
    CounterKey,
    LateEvent,
    Status,
    effective_value,
    pending_count,
)
from engine.core.counters import Counter, Tally
from engine.core.keeping import EraseChange
from engine.core.partitions import partition_of
from engine.core.periods import period_in
from engine.core.quantities import pack_total, unpack_ext
from engine.core.records import (
    AdjustmentChange,
    ControlRecord,
    OperationChange,
    ReplayApply,
    ReplayedCounter,
    TenantEvents,
)
from engine.core.rules import Rules, Scope

Series = tuple[str, str, str]
"""(tenant, metric, customerRef)."""


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


class ShardState:
    """Counters and late adjustments of some partitions, under one copy of the rules."""

    def __init__(self, partitions: Iterable[int], rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.counters: dict[int, dict[Series, Counter]] = {p: {} for p in partitions}
        self.adjustments: dict[int, Adjustments] = {p: Adjustments() for p in self.counters}
        self.operations: set[str] = set()
        """Imports and backfills under way: their rows are judged against the watermarks at their start."""
        self.marks: dict[int, dict[str, dict[CounterKey, int]]] = {p: {} for p in self.counters}
        """Per operation, the watermark each counter had at its start, kept when the counter's first moves."""
        self.counted: dict[int, dict[str, list[int]]] = {p: {} for p in self.counters}
        """Per operation under way, [rows taken, of them late]: exact whatever was sent twice around a crash."""
        self.historic: dict[int, dict[CounterKey, int]] = {p: {} for p in self.counters}
        """Micros that historic imports folded into closed periods: counted, and never pushed."""
        self.metrics: dict[str, set[str]] = {}
        """Metrics seen per tenant: what a customer's usage is looked up by."""
        self._names: dict[str, str] = {}
        """One object per tenant and metric name, so that a million keys share it."""

    def fold_control(
        self,
        record: ControlRecord,
        *,
        sequence: int,
        received_at_us: int,
        since: Sequence[int] | None = None,
    ) -> None:
        """Take a control record in; later events are judged by it.

        `since[partition]`: partitions whose state already holds everything before that position (a snapshot's);
        what changes a partition is passed over there. Rules are always folded.
        """
        match record:
            case AdjustmentChange():
                if self._concerns(record.partition, sequence, since):
                    self._fold_adjustment(record, sequence, received_at_us)
            case ReplayApply():
                for folded in record.counters:
                    if self._concerns(folded.partition, sequence, since):
                        self._fold_replayed(folded, received_at_us)
            case OperationChange():
                self._fold_operation(record)
            case EraseChange():
                self.rules.apply(record)
                self.rename(record.tenant_id, record.names, sequence=sequence, since=since)
            case _:
                self.rules.apply(record)

    def rename(
        self,
        tenant: str,
        names: dict[str, str],
        *,
        sequence: int,
        since: Sequence[int] | None = None,
    ) -> None:
        """Let customers go by their pseudonyms, in their own partitions; no number changes. `since`: see above."""
        by_partition: dict[int, dict[str, str]] = {}
        for name, pseudonym in names.items():
            partition = partition_of(tenant, name)
            if self._concerns(partition, sequence, since):
                by_partition.setdefault(partition, {})[name] = pseudonym
        metrics = self.metrics.get(tenant, ())
        for partition, own in by_partition.items():
            table = self.counters[partition]
            for name, pseudonym in own.items():
                for metric in metrics:
                    counter = table.pop((tenant, metric, name), None)
                    if counter is not None:
                        table[self._names[tenant], self._names[metric], pseudonym] = counter
            self.adjustments[partition].rename(tenant, own)
            for marks in (*self.marks[partition].values(), self.historic[partition]):
                for key in [k for k in marks if k[0] == tenant and k[2] in own]:
                    marks[key[0], key[1], own[key[2]], key[3]] = marks.pop(key)

    def _concerns(self, partition: int, sequence: int, since: Sequence[int] | None) -> bool:
        return partition in self.counters and (since is None or sequence >= since[partition])

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
        is_marked = bool(events.extra)
        operation, is_historic = events.extra.get("operation"), bool(events.extra.get("historic"))
        for index, metric, customer, micros, ts, partition in _picked(events, indexes):
            scope = scopes.get(metric)
            if scope is None:
                scope = scopes[metric] = self.scope(tenant, metric)
            lateness_us, closed_until_us = scope
            ts_us = received_at_us if ts is None else ts
            series = (tenant, metric, customer)
            counter = tables[partition].get(series)
            if counter is None or not counter.start_us <= ts_us < counter.end_us:
                judged_by = None if is_historic else scope
                counter = self.counter_at(partition, series, counter, ts_us, judged_by)
            if counter is None:
                is_late, watermark_us = True, ts_us
            else:
                watermark_us = counter.watermark_us
                is_late = counter.end_us <= closed_until_us or ts_us < watermark_us - lateness_us
                if is_late and is_marked:
                    # Watermarks only grow: what the present one lets pass, the one at the start does too.
                    at_start_us = self._watermark(partition, series, counter, operation)
                    is_closed = counter.end_us <= closed_until_us
                    is_late = not is_historic and (is_closed or ts_us < at_start_us - lateness_us)
            if is_late or counter is None:
                event = LateEvent(first_sequence + index, micros, ts_us)
                held = self._hold(partition, series, event, received_at_us, operation)
                late.append(Late(index, held))
                continue
            if is_historic and counter.end_us <= closed_until_us:
                self._note_historic(partition, (*series, counter.start_us), micros)
            # No min() and max() here: each costs as much as finding the counter.
            if micros > counter.max or counter.count == 0:
                counter.max = micros
            if ts_us >= counter.last_ts_us:
                counter.last = micros
                counter.last_ts_us = ts_us
            counter.sum += micros
            counter.count += 1
            seen_us = ts_us if ts_us < received_at_us else received_at_us  # noqa: FURB136
            if seen_us > watermark_us:
                if self.operations:
                    self._remember(partition, (*series, counter.start_us), counter)
                counter.watermark_us = seen_us
            counter.updated_at_us = received_at_us
            if counter.tallies is not None:
                for tally in counter.tallies:
                    tally.add(micros, ts_us)
        if operation in self.operations:
            self._count(str(operation), events.partitions, indexes, late)
        return late

    def _note_historic(self, partition: int, key: CounterKey, micros: int) -> None:
        own = self.historic[partition]
        own[key] = own.get(key, 0) + micros

    def _count(
        self,
        operation: str,
        partitions: Sequence[int],
        indexes: Sequence[int],
        late: Sequence[Late],
    ) -> None:
        """Note how many rows of an operation were taken, and how many of them are late."""
        for column, rows in enumerate((indexes, [row.row for row in late])):
            for partition, count in Tallied(partitions[row] for row in rows).items():
                self.counted[partition].setdefault(operation, [0, 0])[column] += count

    def counted_of(self, operation: str) -> tuple[int, int]:
        """(rows taken, of them late) of an operation under way, in this shard's partitions."""
        found = [of[operation] for of in self.counted.values() if operation in of]
        return sum(taken for taken, _ in found), sum(late for _, late in found)

    def is_late(self, partition: int, series: Series, ts_us: int) -> bool:
        """Whether an event would be late if it were folded now. Changes nothing."""
        scope = self.rules.scope(*series[:2])
        if period_in(self.rules.schedule(*series), ts_us)[1] <= scope.closed_until_us:
            return True
        counter = self.counters[partition].get(series)
        while counter is not None and ts_us < counter.start_us:
            counter = counter.older
        if counter is None or ts_us >= counter.end_us:
            return False
        return ts_us < counter.watermark_us - scope.lateness_us

    def _watermark(
        self, partition: int, series: Series, counter: Counter, operation: str | None
    ) -> int:
        """The watermark that an operation's rows are judged against: the one at its start."""
        marks = self.marks[partition].get(operation) if operation is not None else None
        if marks is None:
            return counter.watermark_us
        return marks.get((*series, counter.start_us), counter.watermark_us)

    def _remember(self, partition: int, key: CounterKey, counter: Counter) -> None:
        for operation in self.operations:
            self.marks[partition].setdefault(operation, {}).setdefault(key, counter.watermark_us)

    def shared_name(self, name: str) -> str:
        """The one object for a tenant's or metric's name."""
        return self._names.setdefault(name, name)

    def scope(self, tenant: str, metric: str) -> Scope:
        """How a metric is judged now. From here on usage finds the metric."""
        self.metrics.setdefault(self.shared_name(tenant), set()).add(self.shared_name(metric))
        return self.rules.scope(tenant, metric)

    def counter_at(
        self,
        partition: int,
        series: Series,
        newest: Counter | None,
        ts_us: int,
        scope: Scope | None,
        *,
        period: tuple[int, int] | None = None,
    ) -> Counter | None:
        """The counter whose period holds `ts_us`, made if it must be; None if that period is closed.

        Without a scope it is made whether closed or not. `period`: the counter of exactly this one, which begins at `ts_us`.
        """
        above: Counter | None = None
        below = newest
        while below is not None and ts_us < below.start_us:
            above, below = below, below.older
        if below is not None and ts_us < (below.end_us if period is None else below.start_us + 1):
            return below
        tenant, metric, customer = series
        start_us, end_us = period or period_in(self.rules.schedule(*series), ts_us)
        if scope is not None and end_us <= scope.closed_until_us:
            return None
        counter = Counter(start_us, end_us, below)
        if above is not None:
            above.older = counter
        else:
            self.counters[partition][self._names[tenant], self._names[metric], customer] = counter
        return counter

    def _hold(
        self,
        partition: int,
        series: Series,
        event: LateEvent,
        received_at_us: int,
        operation: str | None,
    ) -> str:
        """Put a late event into its counter's adjustment; returns that adjustment's id."""
        start_us, end_us = period_in(self.rules.schedule(*series), event.ts_us)
        auto = self.rules.late_policy == "auto"
        held = self.adjustments[partition].hold(
            (*series, start_us), end_us, event, at_us=received_at_us, auto=auto, operation=operation
        )
        return held.id

    def _fold_adjustment(self, record: AdjustmentChange, sequence: int, at_us: int) -> None:
        partition = record.partition
        adjustments = self.adjustments[partition]
        if record.action != "create":
            status: Status = "approved" if record.action == "approve" else "reverted"
            for adjustment_id in record.ids:
                adjustments.decide(adjustment_id, status, at_us=at_us, by=record.change.actor)
            return
        made = record.adjustment
        assert made is not None, "a create record holds what it makes"
        key = (made.tenant_id, made.metric, made.customer_ref, made.period_start_us)
        adjustment = Adjustment(made.id, key, made.period_end_us, made.kind, sequence, at_us)
        # Of a live record a wide quantity is still in the log's form.
        micros = made.micros
        adjustment.micros = (
            micros if isinstance(micros, int) else unpack_ext(micros.code, micros.data)
        )
        adjustment.reason = made.reason
        adjustment.actor, adjustment.note = record.change.actor, made.note
        adjustment.request_id, adjustment.parent_id = made.request_id, made.parent_adjustment_id
        adjustments.create(adjustment)
        self.scope(made.tenant_id, made.metric)  # so that usage finds the metric
        if made.kind == "value":
            adjustment.after = Tally()
            self._watch(partition, adjustment)

    def _watch(self, partition: int, adjustment: Adjustment) -> None:
        """Feed a value adjustment with the events that its counter folds from now on."""
        assert adjustment.after is not None
        series = (adjustment.tenant, adjustment.metric, adjustment.customer_ref)
        newest = self.counters[partition].get(series)
        counter = self.counter_at(partition, series, newest, adjustment.start_us, None)
        assert counter is not None, "without a scope no period is closed"
        counter.tallies = [*(counter.tallies or ()), adjustment.after]

    def _fold_replayed(self, folded: ReplayedCounter, at_us: int) -> None:
        """A replay folds late events into their counter and takes them out of their adjustments."""
        partition, start_us = folded.partition, folded.period_start_us
        series = (folded.tenant_id, folded.metric, folded.customer_ref)
        self.scope(folded.tenant_id, folded.metric)
        newest = self.counters[partition].get(series)
        own = self.adjustments[partition]
        adjustments = own.of_counter((*series, start_us))
        # Held events are of the period of their own time, also where another counter reaches into it.
        period = (start_us, adjustments[0].end_us) if adjustments else None
        counter = self.counter_at(partition, series, newest, start_us, None, period=period)
        assert counter is not None, "without a scope no period is closed"
        sequences = frozenset(folded.sequences)
        waiting = [a for a in adjustments if a.kind == "event" and a.status == "pending"]
        values = [a for a in adjustments if a.after is not None]
        if values:
            events = [e for a in waiting for e in a.events() if e.sequence in sequences]
            for event in sorted(events):
                for value in values:
                    if event.sequence > value.sequence and value.after is not None:
                        value.after.add(event.micros, event.ts_us)
        for adjustment in waiting:
            own.fold(adjustment, sequences)
        counter.merge(Tally.restore(folded.tally))
        counter.updated_at_us = at_us

    def _fold_operation(self, record: OperationChange) -> None:
        if record.action == "begin":
            self.operations.add(record.operation_id)
        elif record.action == "end":
            self.operations.discard(record.operation_id)
            for partition, marks in self.marks.items():
                marks.pop(record.operation_id, None)
                self.counted[partition].pop(record.operation_id, None)

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
            adjustments = self.adjustments[partition].of_counter((*series, start_us))
            yield MetricUsage(
                metric,
                aggregation,
                start_us,
                end_us,
                effective_value(counter, adjustments, aggregation),
                counter,
                pending_count(adjustments),
            )

    def partition_state(self, partition: int) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        """A partition's counters, adjustments, operations' marks and historic sums as plain rows.

        The order is that of first appearance, so it is not canonical: compare sorted.
        """
        every = len(self.counters[partition]) or 1
        rows = [row for part in self.partition_rows(partition, every) for row in part]
        return (rows, *self.partition_corrections(partition))

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

    def partition_corrections(self, partition: int) -> tuple[list[Any], list[Any], list[Any]]:
        """The rows of its adjustments, of the marks of operations under way, and of historic sums."""
        counted = self.counted[partition]
        marks = [
            (
                operation,
                list(self.marks[partition].get(operation, {}).items()),
                counted.get(operation),
            )
            for operation in sorted(self.marks[partition].keys() | counted.keys())
        ]
        historic = [(key, pack_total(sum_)) for key, sum_ in self.historic[partition].items()]
        return self.adjustments[partition].state(), marks, historic

    def adopt(self, other: ShardState, partitions: Iterable[int]) -> None:
        """Take partitions over from another state, which must not be used for them again."""
        for partition in partitions:
            self.counters[partition] = other.counters[partition]
            self.adjustments[partition] = other.adjustments[partition]
            self.marks[partition] = other.marks[partition]
            self.counted[partition] = other.counted[partition]
            self.historic[partition] = other.historic[partition]
        self.operations = set(other.operations)
        self.metrics = {tenant: set(metrics) for tenant, metrics in other.metrics.items()}
        self._names = dict(other._names)

    def restore_partition(
        self,
        partition: int,
        rows: Sequence[Any],
        adjustments: Sequence[Any],
        marks: Sequence[Any],
        historic: Sequence[Any] = (),
    ) -> None:
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
        self.adjustments[partition].restore(adjustments)
        for adjustment in self.adjustments[partition].by_id.values():
            self.scope(adjustment.tenant, adjustment.metric)
            if adjustment.after is not None:
                self._watch(partition, adjustment)
        self.historic[partition] = {tuple(key): sum_ for key, sum_ in historic}
        for operation, of, counted in marks:
            self.marks[partition][operation] = {tuple(key): mark for key, mark in of}
            if counted is not None:
                self.counted[partition][operation] = list(counted)


def _picked(events: TenantEvents, indexes: Sequence[int]) -> Iterable[tuple[Any, ...]]:
    """(index, metric, customer, micros, time, partition) of some events: of all, if `indexes` is as long."""
    metrics, customers, micros = events.metrics, events.customers, events.micros
    times_us, partitions = events.times_us, events.partitions
    if len(indexes) == len(metrics):
        return zip(indexes, metrics, customers, micros, times_us, partitions, strict=True)
    return [(i, metrics[i], customers[i], micros[i], times_us[i], partitions[i]) for i in indexes]
