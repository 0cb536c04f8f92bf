"""A group: what one commit makes durable together, and who waits for it.

Rules it keeps: a group is filled, then committed, then folded, then done; it fails whole; whoever waits learns of it
only when it is durable *and* counted, or failed. It must not know the log or the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import trio

from engine.core.records import ControlRecord, TenantEvents, columns
from engine.core.shard_state import Late
from engine.errors import EngineError


class Marks(NamedTuple):
    """What an operation's rows are marked with in the log."""

    operation: str
    historic: bool = False

    @property
    def extra(self) -> dict[str, Any]:
        """As the part has it."""
        found: dict[str, Any] = {"operation": self.operation}
        if self.historic:
            found["historic"] = True
        return found


def part_name(tenant: str, operation: str | None) -> str:
    """What a part of a group is called. No tenant's name holds a NUL, so names of parts differ."""
    return tenant if operation is None else f"{tenant}\0{operation}"


class Group:
    """Events and control records that share a commit.

    `rows` are accepted events by tenant, in order; `keys` maps each one's key to its fingerprint.
    """

    __slots__ = (
        "bytes",
        "columns",
        "controls",
        "done",
        "error",
        "events",
        "first_sequence",
        "is_urgent",
        "keys",
        "late",
        "marks",
        "names",
        "on_done",
        "opened_us",
        "parts",
        "received_at_us",
        "rows",
        "shards_left",
    )

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        """Of its parts, in the order in which each was begun, which is theirs in the log."""
        self.rows: dict[str, list[tuple[Any, ...]]] = {}
        """By the name of the part they will be (`part_name`): the tenant, for all but an operation's rows."""
        self.columns: dict[str, list[list[Any]]] = {}
        """Parts whose rows came by column; a part is either here or in `rows`."""
        self.marks: dict[str, Marks] = {}
        """What the parts that have marks are marked with, by name."""
        self.keys: dict[bytes, bytes] = {}
        self.controls: list[ControlRecord] = []
        self.events = 0
        self.bytes = 0
        self.opened_us = 0
        self.is_urgent = False
        """Whether somebody waits for its commit who is not content to wait for others'."""
        self.done = trio.Event()
        self.on_done: Callable[[Group], None] | None = None
        """Called once, when `done` is set, for who waits without a task of its own. It must not raise."""
        self.error: EngineError | None = None
        self.late: dict[tuple[str, int], str] = {}
        """(part's name, index in the part) of late events, to the adjustment that holds each."""
        self.first_sequence = 0
        self.received_at_us = 0
        self.parts: list[TenantEvents] = []
        self.shards_left = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not self.events and not self.controls

    def rows_of(self, name: str) -> int:
        """How many rows a part has so far."""
        columns = self.columns.get(name)
        return len(self.rows.get(name, ())) if columns is None else len(columns[0])

    def add_rows(self, name: str, rows: Sequence[tuple[Any, ...]]) -> int:
        """Put rows into a part; the index of the first."""
        columns = self.columns.get(name)
        if columns is None:
            part = self.rows.get(name)
            if part is None:
                self.names[name] = None
                part = self.rows[name] = []
            first = len(part)
            part.extend(rows)
            return first
        first = len(columns[0])
        for column, values in zip(columns, zip(*rows, strict=True), strict=True):
            column.extend(values)
        return first

    def add_columns(self, name: str, columns: Sequence[Sequence[Any]]) -> int:
        """Put rows into a part, by column (`Row`'s order). The index of the first."""
        part = self.columns.get(name)
        if part is None:
            self.names[name] = None
            before = self.rows.pop(name, None)
            part = (
                [[] for _ in columns]
                if before is None
                else list(map(list, zip(*before, strict=True)))
            )
            self.columns[name] = part
        first = len(part[0])
        for column, values in zip(part, columns, strict=True):
            column.extend(values)
        return first

    def seal(self, received_at_us: int) -> list[TenantEvents]:
        """Fix the group's content and time: its events as columns, one part per tenant."""
        self.received_at_us = received_at_us
        self.parts = []
        for name in self.names:
            tenant = name.partition("\0")[0]
            marks, rows = self.marks.get(name), self.rows.get(name)
            extra = {} if marks is None else marks.extra
            self.parts.append(
                TenantEvents._make((tenant, *self.columns[name], extra))
                if rows is None
                else columns(tenant, rows, extra)
            )
        self.rows, self.columns = {}, {}
        return self.parts

    def holds(self, tenant: str, metric: str) -> bool:
        """Whether it has an event of a metric, sealed or not yet. Reads every event: for rare questions."""
        rows, by_column, parts = self.rows, self.columns, self.parts
        return (
            any(
                row[0] == metric
                for name, of in rows.items()
                if name.partition("\0")[0] == tenant
                for row in of
            )
            or any(
                metric in part[0]
                for name, part in by_column.items()
                if name.partition("\0")[0] == tenant
            )
            or any(part.tenant == tenant and metric in part.metrics for part in parts)
        )

    def metrics_of(self, tenant: str, customer_ref: str) -> set[str]:
        """Of which metrics it has events of a customer, sealed or not yet. Reads every event, as above."""
        rows, by_column, parts = self.rows, self.columns, self.parts
        found: set[str] = set()
        for name, of in rows.items():
            if name.partition("\0")[0] == tenant:
                found.update(row[0] for row in of if row[1] == customer_ref)
        pairs = [(part.metrics, part.customers) for part in parts if part.tenant == tenant]
        for name, part in by_column.items():
            if name.partition("\0")[0] == tenant:
                pairs.append((part[0], part[1]))
        for metrics, customers in pairs:
            each = zip(metrics, customers, strict=True)
            found.update(metric for metric, customer in each if customer == customer_ref)
        return found

    def fold_returned(self, part: TenantEvents, late: Sequence[Late]) -> None:
        """A shard folded its share of a part; the last share makes the group done."""
        name = part_name(part.tenant, part.extra.get("operation") if part.extra else None)
        for index, adjustment_id in late:
            self.late[name, index] = adjustment_id

    def shard_finished(self) -> None:
        """One shard has folded all it has of this group."""
        self.shards_left -= 1
        assert self.shards_left >= 0, "a shard answered twice"
        if self.shards_left == 0:
            self.finish()

    def finish(self) -> None:
        """It is durable and counted, or failed: everyone who waits goes on."""
        self.done.set()
        if self.on_done is not None:
            self.on_done(self)

    def fail(self, error: EngineError) -> None:
        """Nothing of the group was made durable, or nothing may be assumed: everyone who waits hears why."""
        self.error = error
        self.finish()
