"""What was pushed: a fold of intents, outcomes and decisions, per lane and target.

Rules it keeps: acknowledged units move only by an outcome or a decision that is in the log; a lane has at most one
unresolved intent, and a quarantined one counts as unresolved; what a minute of a lane holds is remembered for the newest
minutes, since reading back compares it; a restore from a backup makes every baseline of a period that had begun
doubtful. It must not know clocks, counters, Stripe's answers, or what will be pushed next.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from engine.core.billing import PushRequest
from engine.core.configured import MappingChange
from engine.core.keeping import RestoreChange
from engine.core.push_finals import FinalRow, PushFinals
from engine.core.push_records import (
    CarryInto,
    Lane,
    PushDecision,
    PushIntent,
    PushOutcome,
    Role,
    Target,
)
from engine.core.times import HOUR_US, MINUTE_US

RowT = TypeVar("RowT")
MINUTES_REMEMBERED_MAX: Final = 256
"""Per target; older ones are taken for used."""
DELIVERED_MAX: Final = 100_000
"""Identifiers kept for Stripe's reports, which come within hours; with their targets about 40 MB."""
TARGETS_PER_LANE_MAX: Final = 64
ROWS_US: Final = 100 * 24 * HOUR_US
"""From a period's start: it was over within 31 days, and Stripe takes usage of 35. What was cut over or erased in it is
remembered no longer than that, so there is as much of it as a season's cutovers touch."""
ROWS_FEW: Final = 1_024
"""So many are not worth looking through."""


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """The last answer that a target's intents were refused with, and how many times in a row; 0: it goes again at once."""

    reason: str
    code: str | None
    is_target_wide: bool
    at_us: int
    count: int


class Acknowledged(msgspec.Struct, frozen=True, array_like=True):
    """An intent that was delivered, as far as a report about it needs it."""

    target: Target
    number: int
    units: int
    minute: int
    is_twofold: bool = False
    """Stripe may have taken two events of its identifier, a day apart: a report does not say which it is about."""


class TargetState(msgspec.Struct):
    """One target's ledger. Units are whole; beyond int64 a plan refuses them."""

    target: Target
    pushed: int = 0
    """Acknowledged, or taken for it by a baseline."""
    carried: dict[CarryInto, int] = {}
    """Units of it that decisions settled elsewhere."""
    carried_in: int = 0
    """Units due here on top of the period's own use."""
    is_carried_into: bool = False
    """And stays so when as much is carried back: it may have been pushed meanwhile."""
    kept_micros: str = "0"
    """What erased customers had used before a cutover; wide, hence text."""
    kept_request: PushRequest | None = None
    """How to push it when nobody else contributes any more."""
    kept_for: tuple[str, str] = ("", "")
    """(tenant, metric) of it."""
    is_past: bool = False
    """What erased customers went on contributing to it is not known any more: nothing of it is due."""
    finalized_at_us: int | None = None
    """When Stripe finalized its invoice, if it said so."""
    minutes: dict[int, int] = {}
    """Minute (of unix time) to units acknowledged with it, for the newest minutes used."""
    floor_minute: int = -1
    """Minutes up to it may have been used and are not remembered."""
    last_intent_at_us: int = 0
    refusal: Refusal | None = None
    rejections: int = 0
    """How many times it was delivered and rejected afterwards: a delivery alone does not end that."""

    @property
    def carried_out(self) -> int:
        """All that was settled elsewhere."""
        return sum(self.carried.values())

    def is_used(self, minute: int) -> bool:
        """Whether a minute is taken, or may be."""
        return minute <= self.floor_minute or minute in self.minutes

    def acknowledged_in(self, minute: int) -> int | None:
        """Units acknowledged with a timestamp in this minute; None: not remembered."""
        return None if minute <= self.floor_minute else self.minutes.get(minute, 0)

    def add_minute(self, minute: int, units: int) -> None:
        """A minute holds that much more."""
        self.minutes[minute] = self.minutes.get(minute, 0) + units
        if len(self.minutes) > MINUTES_REMEMBERED_MAX:
            oldest = min(self.minutes)
            del self.minutes[oldest]
            self.floor_minute = max(self.floor_minute, oldest)


class LaneState(msgspec.Struct):
    """One lane's ledger."""

    lane: Lane
    role: Role = "main"
    baseline_start_us: int | None = None
    """Start of the first period that is pushed; None: no baseline yet."""
    baseline_at_us: int = 0
    """When the first one was taken: a period that had begun by then needs its own."""
    baselines: set[int] = set()
    """Starts of the periods whose baseline was taken since the last doubt."""
    doubt: str | None = None
    """Why the baseline must be taken again for periods that began before `doubt_until_us`."""
    doubt_until_us: int = 0
    awaits: PushDecision | None = None
    """A baseline that was read and waits for a person."""
    numbers: dict[int, int] = {}
    """Period start to the highest intent number."""
    open: PushIntent | None = None
    quarantine: str | None = None
    """Why the open intent waits for a person."""
    stopped: str | None = None
    series: set[tuple[str, str]] = set()
    """(tenant, metric) that were pushed here."""
    targets: dict[str, TargetState] = {}
    """By `target_key`, oldest first."""
    forgotten_until_us: int = -(1 << 62)
    """Periods that began before it are not remembered, and nothing of them is pushed."""

    @property
    def newest_intent_at_us(self) -> int:
        """When something was pushed here last; 0: never."""
        return max((state.last_intent_at_us for state in self.targets.values()), default=0)

    def target(self, target: Target) -> TargetState | None:
        """One of its targets, if anything was ever recorded of it."""
        return self.targets.get(target_key(target))

    def minutes_used(self, start_us: int) -> list[TargetState]:
        """The targets of one period: they share their lane's minutes."""
        return [state for state in self.targets.values() if state.target.start_us == start_us]


def target_key(target: Target) -> str:
    """A target's key within its lane."""
    return f"{target.start_us}:{target.scale}"


class PushLedger:
    """Everything pushed, as of the records folded so far."""

    def __init__(self) -> None:
        self.lanes: dict[Lane, LaneState] = {}
        self.delivered: dict[str, Acknowledged] = {}
        """By identifier, the newest acknowledged intents: what reports may name."""
        self.frozen: dict[tuple[bytes, int], list[tuple[int, str]]] = {}
        """(series, period start) to (cutover's instant, micros so far), in order."""
        self.kept: dict[tuple[bytes, int], list[tuple[Target, str]]] = {}
        """(series of an erased customer, period start) to the targets it stays part of, less so many micros."""
        self.version = 0
        """Grows when what is frozen, kept or carried changes. Not part of `state`."""
        self.owners: dict[tuple[str, str], str] = {}
        """(account, Stripe customer) to the tenant that pushed to it first. Derived."""
        self.of_customer: dict[str, list[LaneState]] = {}
        """By Stripe customer, oldest first. Derived."""
        self.finals = PushFinals()
        self.was_shadow: set[tuple[str, str]] = set()
        self._active: dict[str, tuple[str, str, Role]] = {}
        """Mapping id to what it spoke for when it was last active."""
        self._ended: dict[tuple[str, str, Role], int] = {}
        """(tenant, metric, role) to when pushing ended last."""
        self._resumed: dict[tuple[str, str, Role], int] = {}
        """(tenant, metric, role) to when pushing began again last."""
        self.restored_at_us = 0
        self.rows_from_us = -(1 << 62)
        """Of periods that began before it is not known any more how their use was cut over."""

    # Reading.

    def lane(self, lane: Lane) -> LaneState | None:
        """A lane's ledger, if anything was ever recorded of it."""
        return self.lanes.get(lane)

    def target(self, target: Target) -> TargetState | None:
        """A target's ledger, if anything was ever recorded of it, were it only that its invoice is final."""
        lane = self.lanes.get(target.lane)
        found = None if lane is None else lane.target(target)
        if found is None and (final_us := self.finals.of_target(target)) is not None:
            return TargetState(target, finalized_at_us=final_us)
        return found

    def ended_at_us(self, tenant: str, metric: str, role: Role) -> int | None:
        """When pushing of a metric in a role ended last (its mapping was taken away); None: never."""
        return self._ended.get((tenant, metric, role))

    def resumed_at_us(self, tenant: str, metric: str, role: Role) -> int | None:
        """When pushing of a metric in a role began again last, or began after shadow mode; None: never."""
        return self._resumed.get((tenant, metric, role))

    # Folding.

    def fold(self, record: object, received_at_us: int) -> None:
        """Take a record in; those that move no ledger are passed over."""
        match record:
            case PushIntent():
                self._fold_intent(record, received_at_us)
            case PushOutcome():
                self._fold_outcome(record, received_at_us)
            case PushDecision():
                self._fold_decision(record, received_at_us)
            case MappingChange():
                self._fold_mapping(record, received_at_us)
            case RestoreChange():
                self.restored_at_us = received_at_us
                for state in self.lanes.values():
                    _doubt(state, "the log was restored from a backup", received_at_us)
            case _:
                pass

    def pushed_of(self, tenant: str, metric: str, of: Lane, start_us: int) -> list[Target]:
        """Targets of a period in whose lanes a metric was pushed, or is on its way; of `of`'s customer, whatever its object."""
        return [
            state.target
            for lane in self.of_customer.get(of.customer, ())
            if (tenant, metric) in lane.series
            and (lane.lane.account, lane.lane.mode) == (of.account, of.mode)
            for state in lane.minutes_used(start_us)
        ]

    def _lane(self, lane: Lane) -> LaneState:
        found = self.lanes.get(lane)
        if found is None:
            found = self.lanes[lane] = LaneState(lane)
            self.of_customer.setdefault(lane.customer, []).append(found)
        return found

    def _at(self, target: Target) -> tuple[LaneState, TargetState]:
        lane = self._lane(target.lane)
        key = target_key(target)
        state = lane.targets.get(key)
        if state is None:
            final_us = self.finals.of_target(target)
            state = lane.targets[key] = TargetState(target, finalized_at_us=final_us)
            if len(lane.targets) > TARGETS_PER_LANE_MAX:
                _forget_oldest(lane)
        return lane, state

    def _fold_intent(self, record: PushIntent, received_at_us: int) -> None:
        lane, state = self._at(record.target)
        assert lane.open is None, "a lane has one unresolved intent"
        lane.open = record
        lane.role = record.role
        lane.numbers[record.target.start_us] = record.number
        self._serve(lane, record)
        state.last_intent_at_us = received_at_us

    def _serve(self, lane: LaneState, record: PushIntent | PushDecision) -> None:
        if record.tenant_id:
            lane.series.add((record.tenant_id, record.metric))
            self.owners.setdefault((lane.lane.account, lane.lane.customer), record.tenant_id)

    def _fold_outcome(self, record: PushOutcome, received_at_us: int) -> None:
        lane, state = self._at(record.target)
        if record.result in ("rejected", "cancelled"):
            self._undo(record, received_at_us)
            return
        intent = lane.open
        assert intent is not None, "an outcome is of an open intent"
        assert intent.number == record.number
        assert intent.target == record.target
        if record.result == "quarantined":
            lane.quarantine = record.reason or "nobody knows whether it was applied"
            return
        lane.open, lane.quarantine = None, None
        if record.result == "delivered":
            units = int(intent.to_units) - int(intent.from_units)
            if intent.request.driver == "usage_record":
                # Not the request's value: it is the item's, with the lane's other targets of the period.
                state.pushed = int(intent.to_units)
            else:
                # Not `to_units`: what was rejected while this one was under way stays rejected.
                state.pushed += units
            minute = intent.request.timestamp_s * 1_000_000 // MINUTE_US
            state.add_minute(minute, units)
            state.refusal = None
            twofold = record.is_resent or record.proof == "reading"
            made = Acknowledged(intent.target, intent.number, units, minute, twofold)
            self._remember(intent, made)
        elif record.result == "refused":
            count = 1 if state.refusal is None else state.refusal.count + 1
            state.refusal = Refusal(
                record.reason or "", record.code, record.is_target_wide, received_at_us, count
            )

    def _remember(self, intent: PushIntent, acknowledged: Acknowledged) -> None:
        self.delivered[intent.request.identifier] = acknowledged
        if len(self.delivered) > DELIVERED_MAX:
            del self.delivered[next(iter(self.delivered))]

    def _undo(self, record: PushOutcome, received_at_us: int) -> None:
        """What was acknowledged is not there: it was rejected later, or cancelled."""
        for identifier, known in self.delivered.items():
            if (known.target, known.number) == (record.target, record.number):
                state = self._at(known.target)[1]
                state.pushed -= known.units
                if not known.minute <= state.floor_minute:
                    state.add_minute(known.minute, -known.units)
                del self.delivered[identifier]
                if record.result == "rejected":
                    # Reports come in bundles: what was rejected together is one refusal. The first is no rule yet.
                    state.rejections += state.refusal is None
                    before = 0 if state.refusal is None else state.refusal.count
                    count = max(0, state.rejections - 1, before)
                    reason = f"Stripe took it and rejected it later: {record.reason}"
                    state.refusal = Refusal(reason, record.code, False, received_at_us, count)
                return

    def _fold_decision(self, record: PushDecision, received_at_us: int) -> None:
        self.version += record.kind in ("freeze", "keep", "carry")
        if record.kind == "freeze":
            for digest, start_us, micros in record.rows:
                self.frozen.setdefault((digest, start_us), []).append((record.at_us, micros))
            until_us = received_at_us - ROWS_US
            if _take_over(self.frozen, len(record.rows), until_us):
                self.rows_from_us = max(self.rows_from_us, until_us)
            return
        if record.kind == "finalize" and record.target is None:
            self.finals.fold(record, received_at_us)
            return
        if record.kind in ("stop", "resume"):
            assert record.lane is not None
            stopped = self._lane(record.lane)
            stopped.stopped = (record.because or "stopped") if record.kind == "stop" else None
            return
        assert record.target is not None, "the other decisions are about a target"
        lane, state = self._at(record.target)
        match record.kind:
            case "baseline" | "await":
                lane.role = record.role
                self._serve(lane, record)
                lane.awaits = record if record.kind == "await" else None
                if record.kind == "baseline":
                    state.pushed = int(record.units)
                    _take_baseline(lane, record.target.start_us, received_at_us)
            case "carry":
                assert record.into is not None
                # It decided about money: a change of the mapping must not take its target away from here on.
                lane.role = record.role
                if record.tenant_id:
                    lane.series.add((record.tenant_id, record.metric))
                units = int(record.units)
                state.carried[record.into] = state.carried.get(record.into, 0) + units
                if record.into == "current":
                    into = msgspec.structs.replace(
                        record.target, start_us=record.at_us, end_us=record.until_us
                    )
                    owed = self._at(into)[1]
                    owed.carried_in, owed.is_carried_into = owed.carried_in + units, True
            case "finalize":
                state.finalized_at_us = record.at_us
            case _:  # keep; the others are dealt with above
                state.kept_micros = str(int(state.kept_micros) + int(record.micros))
                state.kept_request = record.request
                state.kept_for = (record.tenant_id, record.metric)
                lane.role = record.role
                for digest, start_us, base in record.rows:
                    self.kept.setdefault((digest, start_us), []).append((record.target, base))
                for target, _base in _take_over(
                    self.kept, len(record.rows), received_at_us - ROWS_US
                ):
                    if (known := self.target(target)) is not None:
                        known.is_past = True

    def _fold_mapping(self, record: MappingChange, received_at_us: int) -> None:
        mapping = record.mapping
        before = self._active.pop(mapping.id, None)
        role: Role = "shadow" if mapping.shadow else "main"
        now = (mapping.tenant_id, mapping.metric, role)
        if mapping.active and not record.deleted:
            self._active[mapping.id] = now
            if mapping.shadow:
                self.was_shadow.add((mapping.tenant_id, mapping.metric))
        else:
            now = ("", "", role)
        if before == now:
            return
        if before is not None:
            self._ended[before] = received_at_us
            self._doubt_lanes(before, "its mapping was taken away for a time", received_at_us)
        after_shadow = role == "main" and (*now[:2], "shadow") in self._ended
        if now in self._ended or after_shadow:
            # Who billed meanwhile is not known: a period that began before now must be looked at.
            self._resumed[now] = received_at_us
            self._doubt_lanes(now, "its mapping was taken away for a time", received_at_us)

    def _doubt_lanes(self, of: tuple[str, str, Role], because: str, at_us: int) -> None:
        for state in self.lanes.values():
            if state.role == of[2] and of[:2] in state.series:
                _doubt(state, because, at_us)

    # Snapshots.

    def state(self) -> bytes:
        """Everything as bytes for a snapshot; `restore` takes it back."""
        return msgspec.msgpack.encode(
            _Saved(
                list(self.lanes.values()),
                list(self.delivered.items()),
                list(self.frozen.items()),
                list(self.kept.items()),
                sorted(self.was_shadow),
                list(self._active.items()),
                list(self._ended.items()),
                self.restored_at_us,
                list(self._resumed.items()),
                self.rows_from_us,
                self.finals.rows(),
            )
        )

    @staticmethod
    def restore(data: bytes) -> PushLedger:
        """A ledger from the bytes that `state` gave. Raises msgspec.MsgspecError on other bytes."""
        saved = msgspec.msgpack.decode(data, type=_Saved)
        ledger = PushLedger()
        ledger.lanes = {state.lane: state for state in saved.lanes}
        for lane, state in ledger.lanes.items():
            ledger.of_customer.setdefault(lane.customer, []).append(state)
            if state.series:
                ledger.owners.setdefault((lane.account, lane.customer), min(state.series)[0])
        ledger.delivered, ledger._resumed = dict(saved.delivered), dict(saved.resumed)
        ledger.frozen, ledger.kept = dict(saved.frozen), dict(saved.kept)
        ledger.was_shadow, ledger.finals = set(saved.was_shadow), PushFinals.restore(saved.finals)
        ledger._active, ledger._ended = dict(saved.active), dict(saved.ended)
        ledger.restored_at_us, ledger.rows_from_us = saved.restored_at_us, saved.rows_from_us
        return ledger


class _Saved(msgspec.Struct, array_like=True):
    lanes: list[LaneState]
    delivered: list[tuple[str, Acknowledged]]
    frozen: list[tuple[tuple[bytes, int], list[tuple[int, str]]]]
    kept: list[tuple[tuple[bytes, int], list[tuple[Target, str]]]]
    was_shadow: list[tuple[str, str]]
    active: list[tuple[str, tuple[str, str, Role]]]
    ended: list[tuple[tuple[str, str, Role], int]]
    restored_at_us: int
    resumed: list[tuple[tuple[str, str, Role], int]] = []
    rows_from_us: int = -(1 << 62)
    finals: list[FinalRow] = []


def _take_over(rows: dict[tuple[bytes, int], list[RowT]], added: int, until_us: int) -> list[RowT]:
    """Take out the rows of periods that began before an instant, whenever there are twice as many as the last time."""
    if len(rows) < ROWS_FEW or len(rows).bit_length() == max(0, len(rows) - added).bit_length():
        return []
    over = [key for key in rows if key[1] < until_us]
    return [row for key in over for row in rows.pop(key)]


def _take_baseline(lane: LaneState, start_us: int, at_us: int) -> None:
    if lane.baseline_start_us is None:
        lane.baseline_start_us, lane.baseline_at_us = start_us, at_us
    # A later one, taken again after a doubt, does not put the periods before it out of reach.
    lane.baseline_start_us = min(lane.baseline_start_us, start_us)
    lane.baselines.add(start_us)


def _doubt(lane: LaneState, because: str, at_us: int) -> None:
    lane.doubt, lane.doubt_until_us = because, at_us
    lane.awaits = None
    lane.baselines.clear()


def _forget_oldest(lane: LaneState) -> None:
    """Drop the oldest period's targets; one that has an intent under way stays, with all after it."""
    oldest = min(state.target.start_us for state in lane.targets.values())
    if lane.open is not None and lane.open.target.start_us == oldest:
        return
    for key in [key for key, state in lane.targets.items() if state.target.start_us == oldest]:
        del lane.targets[key]
    lane.numbers.pop(oldest, None)
    lane.baselines.discard(oldest)
    lane.forgotten_until_us = max(lane.forgotten_until_us, oldest + 1)
