"""What reconciliation knows: a fold of findings, and of what the records of pushing say about Stripe's summaries.

Rules it keeps: of each difference at most one finding is open; what Stripe held at a baseline beside our own is no
difference; which pushes are not confirmed yet bounds how far a summary may lag; ended findings are kept, the newest
ENDED_MAX. It must not know clocks, readings that did not agree, or how a difference is judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Final

import msgspec

from engine.core.configured import MappingChange
from engine.core.finding_records import Finding, finding_key, subject_of_finding
from engine.core.push_ledger import PushLedger
from engine.core.push_plan import UNITS_MAX
from engine.core.push_records import PushDecision, PushOutcome, Target, target_id

ENDED_MAX: Final = 10_000
OPEN_MAX: Final = 50_000
"""Findings that are open at once; the reconciler opens no more, and says so."""
MARKS_MAX: Final = 500_000
"""Targets of which something is remembered; the oldest are forgotten."""
ACCEPTED_MAX: Final = 100_000


class Mark(msgspec.Struct, array_like=True):
    """What is known of a target beside its ledger. Units are whole, a reading is decimal text."""

    offset: str = "0"
    """What Stripe held at the baseline, less what counts as pushed from then on."""
    plus: int = 0
    minus: int = 0
    """Units acknowledged since Stripe confirmed the total last: those that add, those that take away (0 or below)."""
    confirmed: str | None = None
    """What Stripe's summary held when it was as it should be."""
    confirmed_at_us: int = 0
    invoiced: str | None = None
    """Units on the final invoice."""
    rejected: str | None = None
    """Why Stripe rejected a push after it had taken it, until the total is confirmed again."""
    minus_at_us: int = 0
    """When something was taken away last."""
    exists: bool = False
    """Its intent in quarantine was refused since Stripe knew the identifier before it was sent."""
    missing: int = 0
    """Units of ours that a person accepted as missing at Stripe: should they show there after all, they are nobody else's."""


NO_MARK: Final = Mark()


class OpenFinding(msgspec.Struct, array_like=True):
    """A finding that is not ended."""

    id: str
    record: Finding
    """The newest `open` or `change`."""
    opened_at_us: int
    changed_at_us: int
    applied: Finding | None = None
    """Its repair, once that was made."""


class EndedFinding(msgspec.Struct, array_like=True, frozen=True):
    """A finding that is resolved or accepted."""

    id: str
    record: Finding
    opened_at_us: int
    ended_at_us: int
    how: str
    """`resolve` or `accept`."""
    by: str


class Findings:
    """Everything found, as of the records folded so far."""

    def __init__(self) -> None:
        self.open: dict[str, OpenFinding] = {}
        """By `finding_key`, oldest first."""
        self.open_of: dict[str, set[str]] = {}
        """Keys of open findings by what they are about. Not part of `state`."""
        self.ended: dict[str, EndedFinding] = {}
        """By id, oldest first."""
        self.marks: dict[str, Mark] = {}
        """By target id."""
        self.accepted: dict[str, str] = {}
        """By finding key: the units that a person accepted."""
        self.mapped_at_us: dict[tuple[str, str], int] = {}
        """(tenant, metric) to when it was mapped first."""

    def mark(self, target: Target) -> Mark:
        """What is known of a target."""
        return self.marks.get(target_id(target), NO_MARK)

    def by_id(self, wanted: str) -> OpenFinding | None:
        """An open finding by its id."""
        return next((one for one in self.open.values() if one.id == wanted), None)

    # Folding.

    def fold(self, record: object, received_at_us: int, ledger: PushLedger) -> None:
        """Take a record in, before the ledger does; those that say nothing here are passed over."""
        match record:
            case Finding():
                self._fold_finding(record, received_at_us)
            case PushOutcome():
                self._fold_outcome(record, received_at_us, ledger)
            case PushDecision() if record.kind == "baseline":
                self._fold_baseline(record, ledger)
            case MappingChange() if record.mapping.active:
                key = (record.mapping.tenant_id, record.mapping.metric)
                self.mapped_at_us.setdefault(key, received_at_us)
            case _:
                pass

    def _marked(self, key: str) -> Mark:
        found = self.marks.get(key)
        if found is None:
            found = self.marks[key] = Mark()
            if len(self.marks) > MARKS_MAX:
                del self.marks[next(iter(self.marks))]
        return found

    def _fold_finding(self, record: Finding, at_us: int) -> None:
        if record.action == "confirm":
            for key, reading, invoiced in record.rows:
                mark = self._marked(key)
                mark.plus = mark.minus = 0
                mark.confirmed, mark.confirmed_at_us = reading, at_us
                mark.rejected = None
                mark.invoiced = invoiced if invoiced is not None else mark.invoiced
            return
        key = finding_key(record)
        if record.action == "open":
            self._open(OpenFinding(record.id, record, at_us, at_us))
            return
        known = self.open.get(key)
        if known is None or known.id != record.id:
            return  # It was ended meanwhile.
        if record.action == "change":
            known.record, known.changed_at_us = record, at_us
        elif record.action == "apply":
            known.applied, known.changed_at_us = record, at_us
        else:
            self._end(key, known, record, at_us)

    def _open(self, one: OpenFinding) -> None:
        key = finding_key(one.record)
        self.open[key] = one
        self.open_of.setdefault(subject_of_finding(one.record), set()).add(key)

    def _end(self, key: str, known: OpenFinding, record: Finding, at_us: int) -> None:
        del self.open[key]
        subject = subject_of_finding(known.record)
        self.open_of[subject].discard(key)
        if not self.open_of[subject]:
            del self.open_of[subject]
        self.ended[known.id] = EndedFinding(
            known.id, known.record, known.opened_at_us, at_us, record.action, record.actor
        )
        if len(self.ended) > ENDED_MAX:
            del self.ended[next(iter(self.ended))]
        if record.action != "accept":
            return
        target = known.record.target
        if target is not None and known.record.gap == "stripe":
            # From now on Stripe is expected to hold so much more (or less) than was pushed.
            mark = self._marked(target_id(target))
            mark.offset = str(Fraction(mark.offset) - Fraction(known.record.units))
            if known.record.cause == "behind":
                mark.missing = max(0, mark.missing + int(Fraction(known.record.units)))
            return
        self.accepted.pop(key, None)
        self.accepted[key] = known.record.units
        if len(self.accepted) > ACCEPTED_MAX:
            del self.accepted[next(iter(self.accepted))]

    def _fold_outcome(self, record: PushOutcome, at_us: int, ledger: PushLedger) -> None:
        lane = ledger.lane(record.target.lane)
        mark = self._marked(target_id(record.target))
        if record.result == "delivered" and lane is not None and lane.open is not None:
            units = int(lane.open.to_units) - int(lane.open.from_units)
            if units > 0:
                mark.plus = min(mark.plus + units, UNITS_MAX)
            else:
                mark.minus, mark.minus_at_us = max(mark.minus + units, -UNITS_MAX), at_us
        if record.proof == "report":
            mark.rejected = record.reason or "Stripe rejected it"
        if record.result == "rejected":
            return  # Stripe says that it was never counted: its summary has nothing of it to lose.
        if record.result == "cancelled":
            for known in ledger.delivered.values():
                if (known.target, known.number) == (record.target, record.number):
                    # Until the total is confirmed nobody knows whether Stripe shows it still.
                    mark.minus = max(mark.minus - abs(known.units), -UNITS_MAX)
                    mark.minus_at_us = at_us
                    break
            return
        mark.exists = record.result == "quarantined" and record.proof == "exists"

    def _fold_baseline(self, record: PushDecision, ledger: PushLedger) -> None:
        assert record.target is not None
        if record.reading is None:
            return
        lane = ledger.lane(record.target.lane)
        of_period = [] if lane is None else lane.minutes_used(record.target.start_us)
        beside = sum(each.pushed for each in of_period if each.target != record.target)
        beside_offsets = sum(
            Fraction(self.mark(each.target).offset)
            for each in of_period
            if each.target != record.target
        )
        mark = self._marked(target_id(record.target))
        offset = Fraction(record.reading) - int(record.units) - beside - beside_offsets
        if record.choice == "period" and offset < 0:
            # What was pushed before is not all visible yet: it still is what Stripe is expected to hold.
            offset = Fraction(0)
        mark.offset, mark.missing = str(offset), 0

    # Reading.

    def of_target(self, key: str) -> Iterator[OpenFinding]:
        """The open findings about a target, by its id."""
        for one in sorted(self.open_of.get(key, ())):
            yield self.open[one]

    # Snapshots.

    def state(self) -> bytes:
        """Everything as bytes for a snapshot; `restore` takes it back."""
        return msgspec.msgpack.encode(
            _Saved(
                list(self.open.values()),
                list(self.ended.values()),
                list(self.marks.items()),
                list(self.accepted.items()),
                [(*key, at_us) for key, at_us in self.mapped_at_us.items()],
            )
        )

    @staticmethod
    def restore(data: bytes) -> Findings:
        """Findings from the bytes that `state` gave. Raises msgspec.MsgspecError on other bytes."""
        saved = msgspec.msgpack.decode(data, type=_Saved)
        found = Findings()
        for one in saved.open:
            found._open(one)
        found.ended = {one.id: one for one in saved.ended}
        found.marks, found.accepted = dict(saved.marks), dict(saved.accepted)
        found.mapped_at_us = {(tenant, metric): at for tenant, metric, at in saved.mapped_at_us}
        return found


class _Saved(msgspec.Struct, array_like=True):
    open: list[OpenFinding]
    ended: list[EndedFinding]
    marks: list[tuple[str, Mark]]
    accepted: list[tuple[str, str]]
    mapped_at_us: list[tuple[str, str, int]]


assert OPEN_MAX <= MARKS_MAX
