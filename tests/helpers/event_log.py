"""Appends groups of events to a log the way the log writer does, and keeps a list of what was appended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import trio

from engine.actors.group import Group
from engine.core.events import fingerprint_of, key_hash
from engine.core.partitions import partition_of
from engine.core.records import (
    PartKind,
    PeriodClosing,
    RecordType,
    encode_control,
    encode_counting,
    encode_erasable,
)
from wal.log import Draft, DraftPart, Log

ResultT = TypeVar("ResultT")


class Sent(NamedTuple):
    """An event to append; `ts_us` None: it has no time of its own."""

    tenant: str
    metric: str
    customer: str
    micros: int
    ts_us: int | None
    source: int = 0
    resource: str | None = None
    meta: str | None = None


class Logged(NamedTuple):
    """An event that was appended: what a reader must find."""

    sent: Sent
    key_text: str
    ts_us: int
    received_at_us: int
    sequence: int


class EventLog:
    """A log, what is in it, and for each group what the writer would hand to its followers."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.logged: list[Logged] = []

    def append(
        self, events: Sequence[Sent], received_at_us: int, *, controls: int = 0
    ) -> tuple[Group, int]:
        """Append one group, its control records first: (the group, the log's end)."""
        group = Group()
        key_texts: dict[str, list[str]] = {}
        drafts = []
        for _ in range(controls):
            record_type, data = encode_control(PeriodClosing(start_us=0, end_us=0, lateness_us=0))
            drafts.append(
                Draft(record_type, 1, received_at_us, (DraftPart(PartKind.CONTROL, data),))
            )
        for number, sent in enumerate(events):
            key_text = f"key-{len(self.logged) + number}"
            key_texts.setdefault(sent.tenant, []).append(key_text)
            row = (
                sent.metric,
                sent.customer,
                sent.micros,
                sent.ts_us,
                partition_of(sent.tenant, sent.customer),
                key_hash(sent.tenant, sent.customer, key_text),
                fingerprint_of(sent.metric, None, sent.micros, None, sent.source, None),
                sent.source,
                key_text,
                sent.resource,
                sent.meta,
            )
            group.add_rows(sent.tenant, (row,))
            group.events += 1
        parts = []
        for part in group.seal(received_at_us):
            parts.append(DraftPart(PartKind.COUNTING, encode_counting(part)))
            parts.append(DraftPart(PartKind.ERASABLE, encode_erasable(part)))
        if parts:
            drafts.append(Draft(RecordType.EVENTS, group.events, received_at_us, tuple(parts)))
        envelopes = self.log.append(drafts)
        group.first_sequence = sequence = envelopes[-1].sequence
        for tenant, texts in key_texts.items():
            own = [sent for sent in events if sent.tenant == tenant]
            for sent, key_text in zip(own, texts, strict=True):
                ts_us = received_at_us if sent.ts_us is None else sent.ts_us
                self.logged.append(Logged(sent, key_text, ts_us, received_at_us, sequence))
                sequence += 1
        return group, envelopes[-1].sequence + envelopes[-1].item_count


async def run_inline(function: Callable[[], ResultT]) -> ResultT:
    """A `RunBlocking` without threads: others run before and after."""
    await trio.lowlevel.checkpoint()
    try:
        return function()
    finally:
        await trio.lowlevel.checkpoint()
