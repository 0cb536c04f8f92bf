"""Corrections: adjustments are created, approved and reverted, each as a record; nothing that was counted is edited.

Rules it keeps: check and record are under the lock of all changes, so no two decisions pass each other; what is decided
already is answered and not recorded again; a `requestId` makes one adjustment however often it is sent; a decision on
many is one commit, all of it or nothing. A record is durable and folded when a call returns.
It must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

import trio

from engine.actors.administration import By
from engine.actors.supervisor import Meter
from engine.core.adjustments import REASONS, Adjustment
from engine.core.configured import Change
from engine.core.periods import period_in
from engine.core.quantities import format_micros, pack
from engine.core.records import AdjustmentChange, AdjustmentMade
from engine.core.times import DAY_US, INSTANT_US_END, format_date, format_instant
from engine.errors import Conflict, NotFound, Refused
from engine.limits import METRIC_CHARS_MAX, NAME_CHARS_MAX, QUANTITY_MICROS_LIMIT

NOTE_CHARS_MAX: Final = 1_000
ID_RANDOM_BYTES: Final = 8
RECORD_IDS_MAX: Final = 10_000
"""Adjustments that one record decides on: some 200 kB."""
DECISION_IDS_MAX: Final = 100_000
"""Adjustments of one decision: its records are one commit, and each shard folds its share in one turn."""
AHEAD_US_MAX: Final = 366 * DAY_US
"""A correction may be for a period that begins within a year: a promised credit, not a mistyped year."""
MADE_REASONS: Final = REASONS
Decision = Literal["approve", "revert"]
assert len(f"adj_{'0' * 16}") != len(f"adj_{0:012x}"), "made ids differ from those of late events"


class Draft(NamedTuple):
    """An adjustment as a client asks for it. `micros` is the delta or the value."""

    tenant: str
    metric: str
    customer_ref: str
    period_at_us: int
    """The period's start, or (`period_is_date`) the midnight that begins its day."""
    period_is_date: bool
    kind: Literal["delta", "value"]
    micros: int
    reason: str
    note: str | None
    request_id: str | None
    parent_id: str | None


class Filter(NamedTuple):
    """Which adjustments; None: any."""

    tenant: str | None
    metric: str | None = None
    customer_ref: str | None = None
    period_at_us: int | None = None
    """They begin at this instant or (midnight) within the day that it begins."""
    status: str | None = None
    reason: str | None = None
    kind: str | None = None
    operation_id: str | None = None

    def matches(self, adjustment: Adjustment) -> bool:
        """Whether an adjustment is meant."""
        return (
            (self.tenant is None or adjustment.tenant == self.tenant)
            and (self.metric is None or adjustment.metric == self.metric)
            and (self.customer_ref is None or adjustment.customer_ref == self.customer_ref)
            and (self.period_at_us is None or starts_at(adjustment.start_us, self.period_at_us))
            and (self.status is None or adjustment.status == self.status)
            and (self.reason is None or adjustment.reason == self.reason)
            and (self.kind is None or adjustment.kind == self.kind)
            and (self.operation_id is None or adjustment.operation_id == self.operation_id)
        )


class Created(NamedTuple):
    """An adjustment, and whether this call made it (else an earlier one with the same requestId)."""

    adjustment: Adjustment
    is_new: bool


class Decided(NamedTuple):
    """What a decision on many did, or (dry run) would do."""

    ids: tuple[str, ...]
    """Those whose status changes, oldest first."""
    unchanged: int
    """Those that the filter means and that were decided like this before, or can't be any more."""
    late_events: int
    """Late events in those that change."""


class Corrections:
    """Adjustments as people see and decide them. One per meter."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    # Reading.

    def adjustment(self, adjustment_id: str, tenant: str | None) -> Adjustment:
        """An adjustment by id, of a tenant or (None) of any. Raises NotFound, also for another tenant's."""
        return self._find(adjustment_id, tenant)[1]

    async def matching(self, wanted: Filter) -> list[Adjustment]:
        """All that match, newest first. Lets others run in between, so one may have changed since it was found."""
        found: list[Adjustment] = []
        for _partition, adjustments in self._candidates(wanted):
            found += filter(wanted.matches, adjustments)
            await trio.lowlevel.checkpoint()
        found.sort(key=lambda adjustment: -adjustment.sequence)
        return found

    def _find(self, adjustment_id: str, tenant: str | None) -> tuple[int, Adjustment]:
        for shard in self._meter.shards:
            for partition, adjustments in shard.state.adjustments.items():
                found = adjustments.by_id.get(adjustment_id)
                if found is not None and tenant in (None, found.tenant):
                    return partition, found
        raise NotFound(f"there is no adjustment {adjustment_id[:NAME_CHARS_MAX]}")

    def _candidates(self, wanted: Filter) -> Iterator[tuple[int, list[Adjustment]]]:
        """Adjustments by partition; where the customer is known, of its partition alone."""
        only: int | None = None
        if wanted.tenant is not None and wanted.customer_ref is not None:
            only = self._meter.shard_of_customer(wanted.tenant, wanted.customer_ref)[1]
        for shard in self._meter.shards:
            for partition, adjustments in shard.state.adjustments.items():
                if adjustments.by_id and only in (None, partition):
                    yield partition, list(adjustments.by_id.values())

    # Changing.

    async def create(self, draft: Draft, by: By) -> Created:
        """Record a new adjustment, pending. Raises Refused, or Conflict for a requestId of another content."""
        _check_texts(draft)
        meter = self._meter
        async with meter.change_lock:
            assert meter.started is not None  # raises while recovering
            period = self._period(draft)
            if draft.request_id is not None:
                known = meter.registry.adjustment_requests.get((draft.tenant, draft.request_id))
                if known is not None:
                    first = self._find(known[1], draft.tenant)[1]
                    return Created(_same(first, draft, period[0]), is_new=False)
            self._check_kind(draft, period[0])
            if draft.parent_id is not None:
                self._check_parent(draft)
            made = AdjustmentMade(
                id=f"adj_{meter.ids.token(ID_RANDOM_BYTES).hex()}",
                tenant_id=draft.tenant,
                metric=draft.metric,
                customer_ref=draft.customer_ref,
                period_start_us=period[0],
                period_end_us=period[1],
                kind=draft.kind,
                micros=pack(draft.micros),
                reason=draft.reason,
                note=draft.note,
                request_id=draft.request_id,
                parent_adjustment_id=draft.parent_id,
            )
            record = AdjustmentChange(
                action="create",
                partition=meter.shard_of_customer(draft.tenant, draft.customer_ref)[1],
                change=_change(by),
                tenant_id=draft.tenant,
                adjustment=made,
            )
            await meter.append_controls((record,))
            return Created(self._find(made.id, draft.tenant)[1], is_new=True)

    def _period(self, draft: Draft) -> tuple[int, int]:
        """The period that the draft names. Raises Refused naming the right start."""
        schedule = self._meter.rules.schedule(draft.tenant, draft.metric, draft.customer_ref)
        at_us = draft.period_at_us
        last_us = at_us + DAY_US - 1 if draft.period_is_date else at_us
        if last_us >= min(INSTANT_US_END, self._meter.clock.now_us() + AHEAD_US_MAX):
            raise _wrong("periodStart", "must be within a year from now")
        period = period_in(schedule, last_us)
        if at_us <= period[0] <= last_us:
            return period
        holds = period_in(schedule, at_us)
        start = format_date(holds[0]) if holds[0] % DAY_US == 0 else format_instant(holds[0])
        raise _wrong(
            "periodStart",
            f"is not the start of a period of this customer's {draft.metric}: the one that holds it starts at {start}",
        )

    def _check_kind(self, draft: Draft, start_us: int) -> None:
        aggregation = self._meter.rules.aggregation(draft.tenant, draft.metric, start_us)
        if (draft.kind == "delta") != (aggregation == "sum"):
            fits = "delta" if aggregation == "sum" else "value"
            raise _wrong(
                "kind", f"must be {fits}: the metric is counted by {aggregation} in that period"
            )
        if draft.kind == "value" and draft.micros < 0:
            raise _wrong("value", "must not be negative")
        if draft.kind == "delta" and draft.micros == 0:
            raise _wrong("delta", "must not be 0, which corrects nothing")
        assert abs(draft.micros) < QUANTITY_MICROS_LIMIT, "what was parsed is within its bound"

    def _check_parent(self, draft: Draft) -> None:
        assert draft.parent_id is not None
        try:
            self._find(draft.parent_id, draft.tenant)
        except NotFound:
            raise _wrong("parentAdjustmentId", "names no adjustment of this tenant") from None

    async def decide(
        self, adjustment_id: str, tenant: str | None, decision: Decision, by: By
    ) -> Adjustment:
        """Approve or revert one; decided like that already it stays as it is. Raises NotFound or Conflict."""
        meter = self._meter
        async with meter.change_lock:
            assert meter.started is not None
            partition, adjustment = self._find(adjustment_id, tenant)
            if adjustment.status == _result(decision):
                return adjustment
            if not _can(adjustment, decision):
                what = {
                    "reverted": "it was reverted: create another one to correct the counter again",
                    "superseded": "a replay folded its events into the counter: correct that with a new adjustment",
                }[adjustment.status]
                raise Conflict(f"adjustment {adjustment_id} can't be {_result(decision)}: {what}")
            await meter.append_controls(_records(partition, [adjustment], decision, by))
            return adjustment

    async def decide_many(
        self, wanted: Filter, decision: Decision, by: By, *, dry_run: bool
    ) -> Decided:
        """Approve or revert all that match, as one commit. Raises Refused when they are too many."""
        assert wanted.tenant is not None, "a decision is on one tenant's"
        meter = self._meter
        async with meter.change_lock:
            assert meter.started is not None
            chosen: list[tuple[int, list[Adjustment]]] = []
            matching = changing = 0
            for partition, adjustments in self._candidates(wanted):
                meant = list(filter(wanted.matches, adjustments))
                matching += len(meant)
                able = [one for one in meant if _can(one, decision)]
                changing += len(able)
                if able:
                    chosen.append((partition, able))
            if changing > DECISION_IDS_MAX:
                message = f"the filter means {changing} adjustments, at most {DECISION_IDS_MAX} are decided at once"
                raise Refused(f"{message}: narrow it by metric, customerRef or periodStart")
            every = sorted((one for _, of in chosen for one in of), key=lambda one: one.sequence)
            decided = Decided(
                tuple(one.id for one in every),
                matching - changing,
                sum(len(one.sequences) for one in every),
            )
            if chosen and not dry_run:
                records = [r for p, of in chosen for r in _records(p, of, decision, by)]
                await meter.append_controls(records)
            return decided


def starts_at(start_us: int, at_us: int) -> bool:
    """Whether a period that starts at `start_us` is the one named by an instant, or by a day's midnight."""
    return start_us == at_us or (at_us % DAY_US == 0 and at_us <= start_us < at_us + DAY_US)


def _can(adjustment: Adjustment, decision: Decision) -> bool:
    allowed = ("pending",) if decision == "approve" else ("pending", "approved")
    return adjustment.status in allowed


def _result(decision: Decision) -> str:
    return "approved" if decision == "approve" else "reverted"


def _records(
    partition: int, adjustments: list[Adjustment], decision: Decision, by: By
) -> list[AdjustmentChange]:
    """The records of a decision on adjustments of one partition and tenant."""
    records = []
    for was in ("pending", "approved"):
        ids = [one.id for one in adjustments if one.status == was]
        records += [
            AdjustmentChange(
                action=decision,
                partition=partition,
                change=_change(by),
                tenant_id=adjustments[0].tenant,
                ids=tuple(ids[start : start + RECORD_IDS_MAX]),
                was="approved" if was == "approved" else "pending",
            )
            for start in range(0, len(ids), RECORD_IDS_MAX)
        ]
    return records


def _change(by: By) -> Change:
    return Change(actor=by.actor, request_id=by.request_id)


def _same(first: Adjustment, draft: Draft, start_us: int) -> Adjustment:
    """The adjustment that a requestId made. Raises Conflict when this draft says something else."""
    sent = (draft.metric, draft.customer_ref, start_us, draft.kind, draft.micros)
    sent_words = (draft.reason, draft.note, draft.parent_id)
    made = (first.metric, first.customer_ref, first.start_us, first.kind, first.micros)
    if (sent, sent_words) == (made, (first.reason, first.note, first.parent_id)):
        return first
    raise Conflict(
        f"requestId {draft.request_id!r} made adjustment {first.id} of another content "
        f"({first.kind} {format_micros(first.micros)}): use another requestId for another adjustment"
    )


def _check_texts(draft: Draft) -> None:
    """Raises Refused naming every field that is wrong."""
    texts = (
        ("metric", draft.metric, METRIC_CHARS_MAX),
        ("customerRef", draft.customer_ref, NAME_CHARS_MAX),
        ("note", draft.note, NOTE_CHARS_MAX),
        ("requestId", draft.request_id, NAME_CHARS_MAX),
        ("parentAdjustmentId", draft.parent_id, NAME_CHARS_MAX),
    )
    errors = [
        (name, f"must have 1 to {chars_max} characters, none U+0000")
        for name, text, chars_max in texts
        if text is not None and (not 1 <= len(text) <= chars_max or "\0" in text)
    ]
    if draft.reason not in MADE_REASONS:
        errors.append(("reason", f"must be one of {', '.join(MADE_REASONS)}"))
    if errors:
        raise Refused(f"{errors[0][0]} {errors[0][1]}", tuple(errors))


def _wrong(field: str, message: str) -> Refused:
    return Refused(f"{field} {message}", ((field, message),))
