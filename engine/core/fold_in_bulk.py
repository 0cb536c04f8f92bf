"""The fold of many events at once, for recovery: columns in, the same counters as `ShardState.fold_events` makes.

Rules it keeps: it moves a counter only by events that are plainly in its period, open and not late; all events of a
counter with any other go through `fold_events`, in log order, so there is one place that judges. Events wait until
they are many; who is about to change the state or the rules calls `catch_up` or `step_aside` first.
It must not know records or the log.

Counters do not depend on each other, and a counter's events stay in order, so what waits may be folded tenant by tenant.
A tenant's counters have *slots*: rows of numbers, the counter's or what to add to it, which `step_aside` writes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.core.counters import Counter
from engine.core.event_columns import EventColumns, Numbers, decode_columns
from engine.core.quantities import INT64_MAX, INT64_MIN
from engine.core.records import TenantEvents, decode_events
from engine.core.rules import Scope
from engine.core.shard_state import ShardState
from engine.limits import PARTITIONS

EVENTS_AT_ONCE: Final = 16_384
"""Of a tenant: more of them fold no cheaper, and take the event loop's thread for longer (5 ms)."""
EVENTS_WAITING_MAX: Final = 65_536
"""Of all tenants: 20 MB."""
EVENTS_IN_BULK_MIN: Final = 256
"""Of fewer, numpy's own start costs more than it saves."""
SMALL_PART_BYTES: Final = 8_192
"""Some 180 events. Smaller parts become columns together, for the same reason."""
CELLS_MAX: Final = 1 << 24
"""Of a tenant's table of slots, metrics times customers: 64 MB. Beyond it the tenant begins again without slots."""
SLOTS_FREED_MAX: Final = 65_536
"""The same if so many of its slots are no counter's any more."""
COUNTERS_AT_ONCE: Final = 4_096
"""Written back between two chances for other tasks to run (3 ms)."""
_ODD: Final = 0
"""The slot of counters that the general way folds: no time is in its period."""
_NO_SLOT: Final = -1
_NO_PARTITION: Final = 255
_START, _END, _SUM, _COUNT, _MAX, _LAST, _LAST_TS, _WATERMARK, _UPDATED = range(9)
_FIELDS: Final = 9
_Mask = npt.NDArray[np.bool_]


class _Part(NamedTuple):
    """Where waiting events come from, for the general way."""

    counting: bytes
    erasable: bytes
    events: TenantEvents | None
    """What the two say, if it is known."""
    first_sequence: int
    received_at_us: int
    event_count: int


class _Waiting(NamedTuple):
    """Events as columns of equal length, names as the tenant's numbers."""

    metrics: Numbers
    customers: Numbers
    micros: Numbers
    times_us: Numbers
    received_us: Numbers
    partitions: npt.NDArray[np.uint8]

    def picked(self, rows: _Mask) -> _Waiting:
        """Some of them, in order."""
        return _Waiting._make(column[rows] for column in self)


class BulkFold:
    """Folds events into a state in which nobody else changes counters meanwhile."""

    def __init__(self, state: ShardState) -> None:
        self._state = state
        self._tenants: dict[str, _Tenant] = {}
        self._waiting = 0

    def take(
        self, counting: bytes, erasable: bytes, *, first_sequence: int, received_at_us: int
    ) -> int | None:
        """Take a tenant's part of a group in: how many events. None: it is for the general way.

        In that case `step_aside` for its tenant before the general way folds it. Raises RecordError.
        """
        if self._state.operations:
            return None  # each counter's first move is to be remembered
        columns: EventColumns | TenantEvents | None
        if len(counting) < SMALL_PART_BYTES:
            columns = decode_events(counting, erasable, fold_only=True)
            columns = columns if _is_plain(columns) else None
        else:
            columns = decode_columns(counting, erasable, received_at_us)
        if columns is None:
            return None
        tenant = self._tenants.get(columns.tenant)
        if tenant is None:
            name = self._state.shared_name(columns.tenant)
            tenant = self._tenants[name] = _Tenant(self._state, name)
        count = len(columns.micros)
        events = columns if isinstance(columns, TenantEvents) else None
        part = _Part(counting, erasable, events, first_sequence, received_at_us, count)
        if isinstance(columns, EventColumns):
            tenant.add(part, columns)
        else:
            tenant.add_small(part)
        self._waiting += count
        if tenant.waiting_count >= EVENTS_AT_ONCE:
            self._waiting -= tenant.waiting_count
            tenant.fold()
        elif self._waiting >= EVENTS_WAITING_MAX:
            self.catch_up()
        return count

    def catch_up(self) -> None:
        """Fold all that waits: the rules are about to change."""
        for tenant in self._tenants.values():
            tenant.fold()
        self._waiting = 0

    def step_aside(self, tenant: str | None = None) -> None:
        """Bring the state up to what was taken (of one tenant): somebody else is about to change it."""
        for _ in self.steps_aside(tenant):
            pass

    def steps_aside(self, tenant: str | None = None) -> Iterator[None]:
        """The same in slices. Take nothing between them."""
        for name in list(self._tenants) if tenant is None else [tenant]:
            own = self._tenants.pop(name, None)
            if own is not None:
                self._waiting -= own.waiting_count
                own.fold()
                yield from own.write_back()


class _Tenant:
    """One tenant's waiting events and slots."""

    def __init__(self, state: ShardState, tenant: str) -> None:
        self._state, self._tenant = state, tenant
        self._parts: list[_Part] = []
        self._columns: list[_Waiting] = []
        """Of all parts, one for several small ones."""
        self._small: list[_Part] = []
        """Parts that came after those, and are no columns yet."""
        self.waiting_count = 0
        self._begin()

    def _begin(self) -> None:
        """Without names and slots."""
        assert not self._parts, "numbers of names that wait must stay"
        self._metrics: dict[str, int] = {}
        """Names are the state's own objects, so that a million series share them."""
        self._customers: dict[str, int] = {}
        self._partition_of = np.full(64, _NO_PARTITION, np.uint8)
        """By customer."""
        self._slots = np.full((4, 64), _NO_SLOT, np.int32)
        """By metric and customer."""
        self._counters: list[Counter | None] = [None]
        """By slot."""
        self._rows = np.zeros((_FIELDS, 64), np.int64)
        """By field and slot. _SUM and _COUNT are what to add to the counter, the others its own."""
        self._rows[_START, _ODD], self._rows[_END, _ODD] = INT64_MAX, INT64_MIN
        self._sum_bound = 0
        self._freed = 0

    def add(self, part: _Part, columns: EventColumns) -> None:
        """Let a part wait."""
        self._join_small()
        names = list(map(self._state.shared_name, columns.metric_names))
        metrics = _numbers_of(self._metrics, names)
        customers = _numbers_of(self._customers, columns.customer_names)
        waiting = _Waiting(
            metrics[columns.metric_indexes],
            customers[columns.customer_indexes],
            columns.micros,
            columns.times_us,
            np.full(part.event_count, part.received_at_us, np.int64),
            columns.partitions,
        )
        self._columns.append(waiting)
        self._parts.append(part)
        self.waiting_count += part.event_count

    def add_small(self, part: _Part) -> None:
        """Let a part wait of which only `events` is looked at."""
        self._small.append(part)
        self.waiting_count += part.event_count

    def _join_small(self) -> None:
        """Make the small parts that wait columns."""
        parts, self._small = self._small, []
        if not parts:
            return
        count = sum(part.event_count for part in parts)
        metrics, customers, micros, times_us = (list[Any]() for _ in range(4))
        received_us: list[int] = []
        for part in parts:
            events = part.events
            assert events is not None, "a small part is decoded when it is taken"
            metrics += events.metrics
            customers += events.customers
            micros += events.micros
            times_us += [part.received_at_us if us is None else us for us in events.times_us]
            received_us += [part.received_at_us] * part.event_count
        partitions = b"".join(bytes(part.events.partitions) for part in parts if part.events)
        _numbers_of(self._metrics, list(map(self._state.shared_name, dict.fromkeys(metrics))))
        _numbers_of(self._customers, list(dict.fromkeys(customers)))
        numbers = (
            map(self._metrics.__getitem__, metrics),
            map(self._customers.__getitem__, customers),
            micros,
            times_us,
            received_us,
        )
        columns = (np.fromiter(column, np.int64, count) for column in numbers)
        waiting = _Waiting._make((*columns, np.frombuffer(partitions, np.uint8)))
        self._columns.append(waiting)
        self._parts += parts

    def fold(self) -> None:
        """Fold what waits."""
        if not self.waiting_count:
            return
        if self.waiting_count < EVENTS_IN_BULK_MIN and len(self._counters) == 1:
            for part in (*self._parts, *self._small):
                self._fold_generally(part, range(part.event_count))
        else:
            self._join_small()
            self._fold_waiting()
        self._parts, self._small, self._columns, self.waiting_count = [], [], [], 0
        crowded = len(self._metrics) * len(self._customers) > CELLS_MAX
        if crowded or self._freed > SLOTS_FREED_MAX:
            for _ in self.write_back():
                pass
            self._begin()

    def _fold_waiting(self) -> None:
        if len(self._columns) == 1:
            events = self._columns[0]
        else:
            events = _Waiting._make(
                np.concatenate(column) for column in zip(*self._columns, strict=True)
            )
        self._make_room()
        scopes = [self._state.scope(self._tenant, metric) for metric in self._metrics]
        slots = self._slots_of(events, scopes)
        is_odd = self._move_watermarks(events, slots, scopes)
        if is_odd is not None:
            self._fold_odd(events, slots, is_odd)
            events, slots = events.picked(~is_odd), slots[~is_odd]
        if len(slots):
            self._fold_plain(events, slots)

    def _make_room(self) -> None:
        """For all names that have numbers."""
        metrics, customers = self._slots.shape
        if len(self._metrics) > metrics or len(self._customers) > customers:
            wanted = (_grown(metrics, len(self._metrics)), _grown(customers, len(self._customers)))
            slots = np.full(wanted, _NO_SLOT, np.int32)
            slots[:metrics, :customers] = self._slots
            self._slots = slots
            partition_of = np.full(wanted[1], _NO_PARTITION, np.uint8)
            partition_of[:customers] = self._partition_of
            self._partition_of = partition_of

    def _slots_of(self, events: _Waiting, scopes: Sequence[Scope]) -> npt.NDArray[np.int32]:
        """Each event's slot; counters that are not there are made, as their first event makes them."""
        slots = self._slots[events.metrics, events.customers]
        missing = np.flatnonzero(slots == _NO_SLOT)
        if not len(missing):
            return slots
        cells = events.metrics[missing] * self._slots.shape[1] + events.customers[missing]
        first = missing[np.sort(np.unique(cells, return_index=True)[1])]
        counters = self._counters_of(events, first, scopes)
        slot = len(self._counters)
        places: list[int] = []
        for counter in counters:
            places.append(_ODD if counter is None else slot)
            slot += counter is not None
        self._slots[events.metrics[first], events.customers[first]] = places
        unknown = first[self._partition_of[events.customers[first]] == _NO_PARTITION]
        self._partition_of[events.customers[unknown]] = events.partitions[unknown]
        self._load([counter for counter in counters if counter is not None])
        return self._slots[events.metrics, events.customers]

    def _counters_of(
        self, events: _Waiting, rows: Numbers, scopes: Sequence[Scope]
    ) -> list[Counter | None]:
        """The newest counter of each row's series; None where only the general way may move it, or make it."""
        tenant, tables, counter_at = self._tenant, self._state.counters, self._state.counter_at
        metric_names, customer_names = list(self._metrics), list(self._customers)
        rules = self._state.rules
        # Of a metric that goes by calendar months all customers have the same period: the one that was looked up last.
        months = [(0, 0) if rules.is_by_calendar(tenant, name) else None for name in metric_names]
        found: list[Counter | None] = []
        columns = (
            events.metrics[rows].tolist(),
            events.customers[rows].tolist(),
            events.partitions[rows].tolist(),
            events.times_us[rows].tolist(),
        )
        for metric, customer, partition, ts_us in zip(*columns, strict=True):
            table = tables[partition]
            series = (tenant, metric_names[metric], customer_names[customer])
            counter = table.get(series)
            if counter is not None:
                is_odd = counter.tallies is not None or _is_wide(counter)
                found.append(None if is_odd else counter)
                continue
            month = months[metric]
            if month is not None and month[0] <= ts_us < month[1]:
                counter = table[series] = Counter(month[0], month[1], None)
            else:
                counter = counter_at(partition, series, None, ts_us, scopes[metric])
                if counter is not None and month is not None:
                    months[metric] = (counter.start_us, counter.end_us)
            found.append(counter)
        return found

    def _load(self, found: list[Counter]) -> None:
        """Give counters the next slots."""
        begin, end = len(self._counters), len(self._counters) + len(found)
        self._counters += found
        if end > self._rows.shape[1]:
            rows = np.zeros((_FIELDS, _grown(self._rows.shape[1], end)), np.int64)
            rows[:, :begin] = self._rows[:, :begin]
            self._rows = rows
        rows = self._rows[:, begin:end]
        rows[_START] = [counter.start_us for counter in found]
        rows[_END] = [counter.end_us for counter in found]
        counts = np.array([counter.count for counter in found], np.int64)
        if counts.any():
            rows[_MAX] = [counter.max for counter in found]
            rows[_MAX][counts == 0] = INT64_MIN
            rows[_LAST] = [counter.last for counter in found]
            rows[_LAST_TS] = [counter.last_ts_us for counter in found]
            rows[_WATERMARK] = [counter.watermark_us for counter in found]
        else:
            rows[_MAX], rows[_LAST] = INT64_MIN, 0
            rows[_LAST_TS] = rows[_WATERMARK] = rows[_START]

    def _move_watermarks(
        self, events: _Waiting, slots: npt.NDArray[np.int32], scopes: Sequence[Scope]
    ) -> _Mask | None:
        """Which events are of counters with any that is not plainly in time; None: none is.

        The others' watermarks are moved.
        """
        fits = self._has_room_for_sums(
            events.micros
        )  # before a watermark moves: it may write counters back
        metrics, times_us = events.metrics, events.times_us
        lateness_us = np.array([scope.lateness_us for scope in scopes], np.int64)
        closed_us = np.array([scope.closed_until_us for scope in scopes], np.int64)
        watermarks, ends = self._rows[_WATERMARK], self._rows[_END][slots]
        before = watermarks[slots]
        np.maximum.at(watermarks, slots, np.minimum(times_us, events.received_us))
        # Watermarks only grow: what the last one lets pass, the one at the event did too.
        is_bad = times_us < watermarks[slots] - lateness_us[metrics]
        is_bad |= times_us < self._rows[_START][slots]
        is_bad |= times_us >= ends
        is_bad |= ends <= closed_us[metrics]
        is_bad |= self._partition_of[events.customers] != events.partitions
        if not fits:
            is_bad[:] = True
        if not is_bad.any():
            return None
        has_bad = np.zeros(len(self._counters), np.bool_)
        has_bad[slots[is_bad]] = True
        is_odd: _Mask = has_bad[slots]
        watermarks[slots[is_odd]] = before[is_odd]
        return is_odd

    def _has_room_for_sums(self, micros: Numbers) -> bool:
        """Whether no sum can leave an int64 if these are added to any slot. What was added before is written back."""
        added = max(-int(micros.min()), int(micros.max())) * len(micros)
        if self._sum_bound + added > INT64_MAX:
            for _ in self.write_back():
                pass
        self._sum_bound += added
        return added <= INT64_MAX

    def _fold_odd(self, events: _Waiting, slots: npt.NDArray[np.int32], is_odd: _Mask) -> None:
        """Fold what is not plain the general way. Its counters lose their slots: they may have a newer one after it."""
        odd_slots = np.unique(slots[is_odd])
        self._freed += len(odd_slots)
        self._write(odd_slots[odd_slots != _ODD])
        self._slots[events.metrics[is_odd], events.customers[is_odd]] = _NO_SLOT
        rows = np.flatnonzero(is_odd)
        begin = 0
        for part in self._parts:
            end = begin + part.event_count
            low, high = np.searchsorted(rows, (begin, end))
            if low < high:
                self._fold_generally(part, (rows[low:high] - begin).tolist())
            begin = end

    def _fold_generally(self, part: _Part, indexes: Sequence[int]) -> None:
        events = part.events or decode_events(part.counting, part.erasable, fold_only=True)
        self._state.fold_events(
            events,
            indexes,
            first_sequence=part.first_sequence,
            received_at_us=part.received_at_us,
        )

    def _fold_plain(self, events: _Waiting, slots: npt.NDArray[np.int32]) -> None:
        """Move the slots on, but for the watermarks."""
        rows, micros, times_us = self._rows, events.micros, events.times_us
        np.add.at(rows[_SUM], slots, micros)
        np.add.at(rows[_COUNT], slots, 1)
        np.maximum.at(rows[_MAX], slots, micros)
        # Of repeated indexes the last one's value stays: that of the last event in log order.
        rows[_UPDATED][slots] = events.received_us
        if bool((times_us[1:] < times_us[:-1]).any()):
            order = np.argsort(times_us, kind="stable")
            slots, micros, times_us = slots[order], micros[order], times_us[order]
        is_last = times_us >= rows[_LAST_TS][slots]
        if not is_last.all():
            slots, micros, times_us = slots[is_last], micros[is_last], times_us[is_last]
        rows[_LAST][slots] = micros
        rows[_LAST_TS][slots] = times_us

    def write_back(self) -> Iterator[None]:
        """Bring all counters up to their slots, in slices. The slots stay."""
        touched = np.flatnonzero(self._rows[_COUNT])
        for begin in range(0, len(touched), COUNTERS_AT_ONCE):
            self._write(touched[begin : begin + COUNTERS_AT_ONCE])
            yield
        self._sum_bound = 0

    def _write(self, slots: npt.NDArray[np.integer]) -> None:
        """Bring the counters of these slots up to them."""
        rows = self._rows[:, slots]
        self._rows[_SUM, slots] = self._rows[_COUNT, slots] = 0
        counters = [self._counters[slot] for slot in slots.tolist()]
        times: dict[int, int] = {}
        """One object for equal ones, of which a million counters have few."""
        for counter, sum_, count, max_, last, last_ts_us, watermark_us, updated_us in zip(
            counters, *rows[_SUM:].tolist(), strict=True
        ):
            if not count:
                continue
            assert counter is not None, "the odd slot counts nothing"
            counter.sum += sum_
            counter.count += count
            counter.max = max_
            counter.last = last
            counter.last_ts_us = times.setdefault(last_ts_us, last_ts_us)
            counter.watermark_us = times.setdefault(watermark_us, watermark_us)
            counter.updated_at_us = times.setdefault(updated_us, updated_us)


def _numbers_of(numbers: dict[str, int], names: list[str]) -> Numbers:
    """The number of each name; new ones get the next."""
    found = list(map(numbers.get, names))
    if None in found:
        found = [numbers.setdefault(name, len(numbers)) for name in names]
    return np.array(found, np.int64)


def _is_plain(events: TenantEvents) -> bool:
    """Whether a small part fits in columns; its indexes have their names already."""
    micros = events.micros
    return (
        not events.extra
        and bool(micros)
        and min(micros) >= INT64_MIN
        and max(micros) <= INT64_MAX
        and max(events.partitions) < PARTITIONS
    )


def _grown(size: int, wanted: int) -> int:
    """A size that is doubled until it holds `wanted`."""
    while size < wanted:
        size *= 2
    return size


def _is_wide(counter: Counter) -> bool:
    """Whether its values are no int64. Its sum may be."""
    return not (INT64_MIN <= counter.max <= INT64_MAX and INT64_MIN <= counter.last <= INT64_MAX)
