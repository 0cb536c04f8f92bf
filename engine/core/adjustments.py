"""Adjustments: corrections of a counter that count only while they are approved, and can be undone once.

Kinds:
- `event`   late events of one counter, folded by the metric's own rule; derived in the fold, never a record of its own
- `delta`   adds to a sum; may be negative
- `value`   replaces a max or last up to its log position; later events fold on top

Status: pending -> approved -> reverted, pending -> reverted, pending -> superseded (a replay folded its events).
Rules it keeps: the counter keeps its uncorrected aggregate, so undoing is leaving out; every late event is in
exactly one adjustment; deciding twice changes nothing the second time. It must not know partitions, tasks or records.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

from engine.core.counters import Counter, Tally
from engine.core.quantities import pack_total

Kind = Literal["event", "delta", "value"]
Status = Literal["pending", "approved", "reverted", "superseded"]
REASONS: Final = ("backfill", "correction", "promo", "credit", "manual")
LATE_ACTOR: Final = "system:late-event"
LATE_POLICY_ACTOR: Final = "system:late-policy"

CounterKey = tuple[str, str, str, int]
"""(tenant, metric, customerRef, period start)."""


class LateEvent(NamedTuple):
    """An event that an adjustment holds."""

    sequence: int
    micros: int
    ts_us: int


class Adjustment:
    """One correction of one counter. `micros` is the delta or the value; event adjustments hold their events."""

    __slots__ = (
        "actor",
        "after",
        "created_at_us",
        "customer_ref",
        "decided_at_us",
        "decided_by",
        "end_us",
        "id",
        "kind",
        "metric",
        "micros",
        "note",
        "operation_id",
        "parent_id",
        "quantities",
        "reason",
        "request_id",
        "sequence",
        "sequences",
        "start_us",
        "status",
        "tenant",
        "times_us",
    )

    def __init__(  # noqa: PLR0917 - what makes it, in the order of its record
        self,
        adjustment_id: str,
        key: CounterKey,
        end_us: int,
        kind: Kind,
        sequence: int,
        at_us: int,
    ) -> None:
        self.id = adjustment_id
        self.tenant, self.metric, self.customer_ref, self.start_us = key
        self.end_us = end_us
        self.kind: Kind = kind
        self.sequence = sequence
        """Log position of what made it: its record, or its first late event."""
        self.created_at_us = at_us
        self.status: Status = "pending"
        self.reason = "backfill"
        self.actor = LATE_ACTOR
        self.note: str | None = None
        self.request_id: str | None = None
        self.parent_id: str | None = None
        self.operation_id: str | None = None
        self.decided_at_us: int | None = None
        self.decided_by: str | None = None
        self.micros = 0
        self.sequences = array("q")
        self.times_us = array("q")
        self.quantities: list[int] = []
        self.after: Tally | None = None
        """Of a value: the events folded into its counter after it."""

    @property
    def key(self) -> CounterKey:
        """The counter it corrects."""
        return (self.tenant, self.metric, self.customer_ref, self.start_us)

    def add(self, event: LateEvent) -> None:
        """Take one late event in."""
        assert self.kind == "event", "only late events are collected"
        self.sequences.append(event.sequence)
        self.quantities.append(event.micros)
        self.times_us.append(event.ts_us)

    def events(self) -> Iterator[LateEvent]:
        """The late events it holds, in log order."""
        return map(LateEvent, self.sequences, self.quantities, self.times_us)

    def remove(self, sequences: frozenset[int]) -> None:
        """Give events up that a replay has folded; without any left it is superseded."""
        everything = sequences.issuperset(self.sequences)
        kept = [] if everything else [e for e in self.events() if e.sequence not in sequences]
        self.sequences, self.times_us, self.quantities = array("q"), array("q"), []
        for event in kept:
            self.add(event)
        if not kept:
            self.status = "superseded"

    def state(self) -> tuple[Any, ...]:
        """All fields as a row for snapshots; `restore` takes it back."""
        return (
            self.id,
            self.key,
            self.end_us,
            self.kind,
            self.sequence,
            self.created_at_us,
            self.status,
            self.reason,
            self.actor,
            self.note,
            self.request_id,
            self.parent_id,
            self.operation_id,
            self.decided_at_us,
            self.decided_by,
            pack_total(self.micros),
            list(self.sequences),
            [pack_total(q) for q in self.quantities],
            list(self.times_us),
            None if self.after is None else self.after.state(),
        )

    @staticmethod
    def restore(row: Sequence[Any]) -> Adjustment:
        """An adjustment from the row that `state` gave."""
        key = tuple(row[1])
        adjustment = Adjustment(row[0], key, row[2], row[3], row[4], row[5])
        (adjustment.status, adjustment.reason, adjustment.actor, adjustment.note) = row[6:10]
        (adjustment.request_id, adjustment.parent_id, adjustment.operation_id) = row[10:13]
        (adjustment.decided_at_us, adjustment.decided_by, adjustment.micros) = row[13:16]
        adjustment.sequences = array("q", row[16])
        adjustment.quantities = list(row[17])
        adjustment.times_us = array("q", row[18])
        adjustment.after = None if row[19] is None else Tally.restore(row[19])
        return adjustment


LateKey = tuple[CounterKey, bool, str | None]
"""(counter, approved on arrival, operation): late events that share one decision."""


class Adjustments:
    """All adjustments of one partition."""

    __slots__ = ("_collecting", "_of_counter", "_periods", "by_id", "version")

    def __init__(self) -> None:
        self.version = 0
        """Grows with every change: who looked before can tell whether it still holds. Not part of `state`."""
        self.by_id: dict[str, Adjustment] = {}
        self._of_counter: dict[CounterKey, list[Adjustment]] = {}
        self._periods: dict[tuple[str, str, str], dict[int, None]] = {}
        """Per series, the starts of the periods that have adjustments."""
        self._collecting: dict[LateKey, Adjustment] = {}

    def hold(
        self,
        key: CounterKey,
        end_us: int,
        event: LateEvent,
        *,
        at_us: int,
        auto: bool,
        operation: str | None,
    ) -> Adjustment:
        """Put a late event into its counter's open adjustment, made if there is none.

        Late events of one counter share one decision until it is made (`auto`: approved on arrival).
        """
        late_key = (key, auto, operation)
        adjustment = self._collecting.get(late_key)
        if (
            adjustment is None
            or (not auto and adjustment.status != "pending")
            or adjustment.status == "reverted"
        ):
            # The id is the position of its first event: unique in the log, and the same in every replay.
            adjustment = Adjustment(
                f"adj_{event.sequence:012x}", key, end_us, "event", event.sequence, at_us
            )
            adjustment.operation_id = operation
            if auto:
                adjustment.status = "approved"
                adjustment.decided_at_us, adjustment.decided_by = at_us, LATE_POLICY_ACTOR
            self._collecting[late_key] = adjustment
            self._file(adjustment)
        adjustment.add(event)
        self.version += 1
        return adjustment

    def create(self, adjustment: Adjustment) -> None:
        """File an adjustment that a record made."""
        assert adjustment.id not in self.by_id, "an adjustment is made once"
        self._file(adjustment)

    def fold(self, adjustment: Adjustment, sequences: frozenset[int]) -> None:
        """A replay has folded these events of an adjustment."""
        adjustment.remove(sequences)
        self.version += 1

    def _file(self, adjustment: Adjustment) -> None:
        self.version += 1
        self.by_id[adjustment.id] = adjustment
        self._of_counter.setdefault(adjustment.key, []).append(adjustment)
        self._periods.setdefault(adjustment.key[:3], {})[adjustment.start_us] = None

    def rename(self, tenant: str, names: dict[str, str]) -> None:
        """Let customers go by their pseudonyms; what a person wrote about them (`note`) goes."""
        affected = [
            a for a in self.by_id.values() if a.tenant == tenant and a.customer_ref in names
        ]
        for key in dict.fromkeys(adjustment.key for adjustment in affected):
            new_key = (tenant, key[1], names[key[2]], key[3])
            self._of_counter[new_key] = self._of_counter.pop(key)
            if (periods := self._periods.pop(key[:3], None)) is not None:
                self._periods[new_key[:3]] = periods
        for adjustment in affected:
            adjustment.customer_ref, adjustment.note = names[adjustment.customer_ref], None
        self.version += 1
        for late_key in [k for k in self._collecting if k[0][0] == tenant and k[0][2] in names]:
            (_, metric, name, start_us), auto, operation = late_key
            renamed = ((tenant, metric, names[name], start_us), auto, operation)
            self._collecting[renamed] = self._collecting.pop(late_key)

    def decide(self, adjustment_id: str, status: Status, *, at_us: int, by: str) -> None:
        """Approve or revert. What is decided like that already stays as it is; a reverted one stays reverted."""
        adjustment = self.by_id.get(adjustment_id)
        if adjustment is None or adjustment.status in (status, "reverted", "superseded"):
            return
        adjustment.status = status
        adjustment.decided_at_us, adjustment.decided_by = at_us, by
        self.version += 1

    def of_counter(self, key: CounterKey) -> Sequence[Adjustment]:
        """A counter's adjustments, oldest first."""
        return self._of_counter.get(key, ())

    def is_adjusted(self, series: tuple[str, str, str]) -> bool:
        """Whether a series has an adjustment, whatever became of it."""
        return series in self._periods

    def of_series(self, series: tuple[str, str, str]) -> Iterator[Adjustment]:
        """A customer's adjustments of a metric, of all periods."""
        for start_us in self._periods.get(series, ()):
            yield from self._of_counter[*series, start_us]

    def counters(self) -> Iterator[CounterKey]:
        """Counters that have adjustments."""
        return iter(self._of_counter)

    def state(self) -> list[Any]:
        """Rows for snapshots, oldest first."""
        return [adjustment.state() for adjustment in self.by_id.values()]

    def restore(self, rows: Sequence[Any]) -> None:
        """Put back what `state` gave."""
        assert not self.by_id, "adjustments are restored once"
        for row in rows:
            adjustment = Adjustment.restore(row)
            self._file(adjustment)
            auto = adjustment.status == "approved" and adjustment.decided_by == LATE_POLICY_ACTOR
            if adjustment.kind == "event" and (auto or adjustment.status == "pending"):
                # What is decided collects nothing more, as if it were not there; so at most one of a key does.
                self._collecting[adjustment.key, auto, adjustment.operation_id] = adjustment


def effective_value(
    counter: Counter | None, adjustments: Sequence[Adjustment], aggregation: str
) -> int:
    """What counts, in micros: the counter's aggregate with its approved adjustments, by the metric's own rule."""
    if not adjustments:  # nearly always
        return counter.value(aggregation) if counter is not None else 0
    approved = [a for a in adjustments if a.status == "approved"]
    if aggregation == "sum":
        base = counter.sum if counter is not None else 0
        return base + sum(
            a.micros if a.kind == "delta" else sum(a.quantities)
            for a in approved
            if a.kind != "value"
        )
    values = [a for a in approved if a.kind == "value"]
    newest = max(values, key=lambda a: a.sequence) if values else None
    tally = Tally()
    if newest is not None:
        # It replaces everything up to its position: what was folded later is on top of it.
        if newest.after is not None and newest.after.count:
            tally = newest.after.copy()
            tally.max = max(tally.max, newest.micros)
        else:
            tally.max = tally.last = newest.micros
            tally.count = 1
    elif counter is not None and counter.count:
        tally = counter.tally()
    late = [
        event
        for adjustment in approved
        if adjustment.kind == "event"
        for event in adjustment.events()
        if newest is None or event.sequence > newest.sequence
    ]
    for event in sorted(late):  # of several adjustments: `last` goes by time, then by log order
        tally.add(event.micros, event.ts_us)
    return tally.max if aggregation == "max" else tally.last


def pending_count(adjustments: Sequence[Adjustment]) -> int:
    """Late events of a counter that wait for a decision."""
    return sum(len(a.sequences) for a in adjustments if a.status == "pending" and a.kind == "event")
