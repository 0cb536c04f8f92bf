"""The audit trail as people read it: who changed what, when, by which request, and what was before and after.

Rules it keeps: every entry is read from the log, so it says what the record says; a tenant's trail holds that tenant's
records alone; a record that can't be read any more is named as such, not left out in silence. Newest first, by log
position, so that a cursor is stable while records are added. It must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from engine.actors.supervisor import Meter
from engine.core.audit import AuditQuery, Subject, subject_of
from engine.core.audit_content import Content, after_of, before_of, needs_previous
from engine.core.records import ControlRecord, RecordError, decode_control
from engine.errors import Unavailable
from wal.log import Log, LogError, PartState

_SPARE: Final = 8
"""Positions read beyond a page: a hash that matched too much must not make a page look like the last."""


class Entry(NamedTuple):
    """One control record in the trail. `subject` None: it was erased or trimmed."""

    sequence: int
    at_us: int
    subject: Subject | None
    before: Content | None
    after: Content | None


class AuditPage(NamedTuple):
    """Newest first. `next_before`: ask on before this position; None: there is no more."""

    entries: tuple[Entry, ...]
    total: int
    next_before: int | None


class _Read(NamedTuple):
    sequence: int
    at_us: int
    record: ControlRecord | None


class AuditReader:
    """Reads the trail of one meter."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    async def page(self, query: AuditQuery, limit: int) -> AuditPage:
        """At most `limit` entries. Raises Unavailable when the log can't be read."""
        meter = self._meter
        assert meter.started is not None  # raises while recovering
        positions, total = meter.audit.positions(query, limit + _SPARE)
        read = await self._read(positions)
        kept = [one for one in read if _matches(one, query)]
        previous = await self._previous(kept[:limit])
        entries = tuple(
            Entry(
                one.sequence,
                one.at_us,
                None if one.record is None else subject_of(one.record),
                None if one.record is None else before_of(one.record, earlier),
                None if one.record is None else after_of(one.record),
            )
            for one, earlier in zip(kept[:limit], previous, strict=True)
        )
        more = len(kept) > limit or total > len(positions)
        last = entries[-1].sequence if entries else (positions[-1] if positions else None)
        return AuditPage(entries, total, last if more else None)

    async def _previous(self, page: Sequence[_Read]) -> list[ControlRecord | None]:
        """For each entry the record before it about the same, where what was before is in that."""
        wanted: list[list[int]] = []
        for one in page:
            subject = None if one.record is None else subject_of(one.record)
            if one.record is None or subject is None or not needs_previous(one.record):
                wanted.append([])
                continue
            earlier = AuditQuery(subject.tenant, subject.targets[0], None, None, None, one.sequence)
            wanted.append(self._meter.audit.positions(earlier, 2)[0])
        read = {r.sequence: r for r in await self._read([p for of in wanted for p in of])}
        found: list[ControlRecord | None] = []
        for one, of in zip(page, wanted, strict=True):
            subject = None if one.record is None else subject_of(one.record)
            same = (read[p].record for p in of if subject and _is_about(read[p], subject))
            found.append(next(same, None))
        return found

    async def _read(self, positions: Sequence[int]) -> list[_Read]:
        if not positions:
            return []
        try:
            return await self._meter.run_blocking(partial(_read_all, self._meter.log, positions))
        except (LogError, RecordError) as error:
            raise Unavailable(f"the audit trail can't be read: {error}") from error


def _read_all(log: Log, positions: Sequence[int]) -> list[_Read]:
    """In a thread: the control records at these positions. Raises LogError or RecordError."""
    found = []
    for position in positions:
        records = log.read(position, bytes_max=1)
        assert records, "the log holds every position of its trail"
        stored = records[0]
        assert stored.sequence == position, "the trail names where records begin"
        part = stored.parts[0]
        record = None
        if part.state == PartState.INTACT:
            record = decode_control(stored.envelope.record_type, part.data)
        found.append(_Read(position, stored.envelope.received_at_us, record))
    return found


def _matches(one: _Read, query: AuditQuery) -> bool:
    """Whether a record is what was asked for: the trail's hashes only say perhaps."""
    if one.record is None:  # nothing says whose it was; only an operator of all tenants sees it
        return query.tenant is None and query.target is None and query.actor is None
    subject = subject_of(one.record)
    assert subject is not None, "the trail names only what is in it"
    return (
        query.tenant in (None, subject.tenant)
        and query.actor in (None, subject.actor)
        and (query.target is None or query.target in subject.targets)
    )


def _is_about(one: _Read, subject: Subject) -> bool:
    found = None if one.record is None else subject_of(one.record)
    return found is not None and (found.tenant, found.targets) == (subject.tenant, subject.targets)
