"""Repairs of what reconciliation found: those that people apply, and those that a mapping allows to be made alone.

Rules it keeps: nothing is sent again unless Stripe refused it, a report names it, or its cancel succeeded; what is
taken back is at most what Stripe is seen to hold too much just before, not when it was found; every repair is recorded with who made it, and is made
once. Alone only what is proven is repaired: a cancel that succeeded is the proof. It must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from fractions import Fraction
from typing import Final

import msgspec
import structlog
import trio

from engine.actors.push_desk import Asker, PushDesk
from engine.actors.pusher import Pusher
from engine.actors.recon_reader import ReconReader
from engine.core.billing import Delivered, PushRequest, Unread, same_units
from engine.core.finding_records import Finding, Repair
from engine.core.findings import OpenFinding
from engine.core.push_baselines import baseline_need
from engine.core.push_ledger import Acknowledged, LaneState
from engine.core.push_plan import TargetView
from engine.core.push_records import PushDecision, PushOutcome, Target, target_id
from engine.core.reconciling import Issue
from engine.core.registry import Registry
from engine.core.times import HOUR_US
from engine.errors import Conflict, EngineError, NotFound
from engine.ports import Clock

_logger = structlog.get_logger("stripemeter.reconcile")
AUTO_ACTOR: Final = "system:auto-repair"
AUTO_AFTER_US: Final = HOUR_US
"""How long a summary may lack a push before it is cancelled and sent anew without a person."""
CANCELS_MAX: Final = 20
"""Pushes of one target that one repair cancels."""


class Repairs:
    """Makes them."""

    def __init__(
        self,
        pusher: Pusher,
        desk: PushDesk,
        reader: ReconReader,
        registry: Callable[[], Registry],
        clock: Clock,
        *,
        issues_now: Callable[[Target], Awaitable[tuple[Issue, ...] | None]],
        look_soon: Callable[[Target], None],
        units_now: Callable[[OpenFinding], Awaitable[str]],
    ) -> None:
        """`issues_now`: a target's differences by a new reading of Stripe; None: there is none.

        `units_now`: what a finding about use that goes nowhere comes to by now.
        """
        self._pusher = pusher
        self._desk = desk
        self._reader = reader
        self._registry = registry
        self._clock = clock
        self._issues_now = issues_now
        self._look_soon = look_soon
        self._units_now = units_now
        self._applying = trio.Lock()
        """Asked for twice at once a repair is made once: the second finds that it was."""

    async def apply(
        self, tenant: str | None, wanted: str, by: Asker, note: str | None, choice: Repair | None
    ) -> OpenFinding:
        """Make a finding's repair, or accept it. Raises NotFound or Conflict."""
        async with self._applying:
            return await self._apply(tenant, wanted, by, note, choice)

    async def _apply(
        self, tenant: str | None, wanted: str, by: Asker, note: str | None, choice: Repair | None
    ) -> OpenFinding:
        found = self._pusher.state.findings.by_id(wanted)
        if found is None or (tenant is not None and found.record.tenant_id != tenant):
            raise NotFound(f"there is no suggestion {wanted}: it was never made, or is dealt with")
        if found.record.account:
            raise Conflict(
                f"{found.record.count} totals of an account are behind: there is nothing to repair or to accept, "
                "it ends when they are right"
            )
        repair = choice or found.record.repair
        if repair is None:
            raise Conflict(
                f"for {found.record.cause!r} there is no repair to apply: see its reason"
            )
        if repair not in ("accept", found.record.repair):
            raise Conflict(f"its repair is {found.record.repair}, or accept")
        if found.applied is not None and repair != "accept":
            raise Conflict("its repair was made before; it ends when the numbers agree")
        await self._make(found, repair, by)
        records: list[Finding] = []
        known = found.record
        if known.target is None:
            # What is accepted is what there is by now: the record has what it came to when it was found.
            known = msgspec.structs.replace(
                known, action="change", id=found.id, units=await self._units_now(found)
            )
            records.append(known)
        record = msgspec.structs.replace(
            known,
            action="accept" if repair == "accept" else "apply",
            id=found.id,
            repair=repair,
            actor=by.actor,
            request_id=by.request_id,
            note=note,
        )
        await self._pusher.recorder.record((*records, record))
        _logger.info("repaired", id=found.id, cause=found.record.cause, repair=repair)
        return found

    async def _make(self, found: OpenFinding, repair: Repair, by: Asker) -> None:
        if repair == "accept":
            return
        target = found.record.target
        if target is None:
            raise Conflict("it is about many targets: there is nothing to repair at one of them")
        match repair:
            case "take_back":
                await self._take_back(found.record, target, by)
            case "carry_forward":
                await self._desk.carry_forward(None, target_id(target), "current", by)
            case "push_again":
                self._pusher.server.runtime(target.lane).forced.add(target)
                self._pusher.schedule(target.lane, self._clock.now_us())
            case "resume":
                await self._desk.resume(None, target_id(target), by)
            case "settle_delivered":
                await self._still(target, repair, Fraction(0))
                await self._desk.settle(None, target_id(target), delivered=True, by=by)
            case "resend":
                if not await self._cancel_missing(target, by.actor):
                    raise Conflict(
                        "nothing of it could be cancelled at Stripe: what is not cancelled is not sent again"
                    )

    async def _still(self, target: Target, repair: Repair, units_min: Fraction) -> None:
        """Raises Conflict unless Stripe holds now what this repair is for: since it was found somebody may have mended it."""
        issues = await self._issues_now(target)
        if issues is None:
            raise Conflict(
                "Stripe could not be read just now, or it is being pushed to, and nothing is repaired by what it held "
                "earlier: retry"
            )
        if not any(one.repair == repair and abs(one.units) >= units_min for one in issues):
            self._look_soon(target)
            raise Conflict(
                "Stripe holds something else by now than when this was found: it is looked at again"
            )

    # Taking back.

    async def _take_back(self, record: Finding, target: Target, by: Asker) -> None:
        """What Stripe holds too much counts as pushed from now on: the pusher takes it back by a difference."""
        excess = -int(Fraction(record.units))
        if excess <= 0:
            raise Conflict("less than one unit is too much, and only whole ones can be taken back")
        await self._still(target, "take_back", Fraction(excess))
        pusher = self._pusher

        def make() -> PushDecision:
            ledger = pusher.state.ledger
            lane, state = ledger.lane(target.lane), ledger.target(target)
            view = pusher.totals.view(target)
            if lane is None or state is None or view is None:
                raise Conflict("nothing was pushed to it")
            if lane.open is not None or lane.awaits is not None:
                raise Conflict("a push of it is under way, or waits for a decision: retry later")
            if baseline_need(view, ledger) is not None:
                raise Conflict("it waits for a baseline: decide that first")
            planned = pusher.server.planned(view)
            if planned.standing in ("finalized", "stopped"):
                raise Conflict("its invoice is final or it is stopped: make a credit at Stripe")
            units = state.pushed + excess
            return PushDecision(
                kind="baseline",
                choice="stripe",
                actor=by.actor,
                request_id=by.request_id,
                target=target,
                units=str(units),
                because=f"Stripe holds {excess} more than was pushed: it is taken back",
                role=view.role,
                tenant_id=view.tenant,
                metric=view.metric,
            )

        await pusher.server.decide(target.lane, make)

    # Sending anew.

    async def _cancel_missing(self, target: Target, actor: str) -> int:
        """Cancel what the summary lacks; how many. What was cancelled is due again, as a new intent."""
        pusher = self._pusher
        view = pusher.totals.view(target)
        connection = None if view is None else pusher.connections.get(view.role)
        if view is None or connection is None or view.driver == "usage_record":
            return 0
        cancelled = 0
        known = [
            (identifier, one)
            for identifier, one in pusher.state.ledger.delivered.items()
            if one.target == target
        ]
        for identifier, one in reversed(known[-CANCELS_MAX:]):
            if not await self._is_missing(target, view, one):
                continue
            answer = await connection.billing.cancel(_request_of(view, identifier, one))
            if not isinstance(answer, Delivered):
                continue

            def make(one: Acknowledged = one, identifier: str = identifier) -> PushOutcome:
                if identifier not in pusher.state.ledger.delivered:
                    raise Conflict("it was rejected or cancelled meanwhile")
                return PushOutcome(
                    target=target,
                    number=one.number,
                    result="cancelled",
                    proof="answer",
                    reason="Stripe's summary did not show it; it is cancelled there and sent anew",
                    actor=actor,
                    tenant_id=view.tenant,
                )

            await pusher.server.decide(target.lane, make)
            cancelled += 1
        return cancelled

    async def _is_missing(self, target: Target, view: TargetView, one: Acknowledged) -> bool:
        """Whether the minute of a push lacks just its units."""
        lane = self._pusher.state.ledger.lane(target.lane)
        known = None if lane is None else _acknowledged(lane, target, one.minute)
        if known is None or one.units <= 0:
            return False
        answer = await self._reader.read_minute(view, one.minute)
        return not isinstance(answer, Unread) and same_units(answer.units, known - one.units)

    # Alone.

    async def make_proven(self, ids: Iterable[str]) -> None:
        """Repair what may be repaired without a person, of these targets."""
        findings = self._pusher.state.findings
        now_us = self._clock.now_us()
        for key in ids:
            for found in tuple(findings.of_target(key)):
                record = found.record
                if record.repair != "resend" or found.applied is not None:
                    continue
                mapping = self._registry().active_mapping(record.tenant_id, record.metric)
                if mapping is None or not mapping.auto_repair:
                    continue
                if now_us < found.opened_at_us + AUTO_AFTER_US:
                    continue
                try:
                    await self.apply(
                        None, found.id, Asker(AUTO_ACTOR, None), "autoRepair", "resend"
                    )
                except EngineError as error:
                    _logger.info("not_repaired", id=found.id, reason=str(error))


def _acknowledged(lane: LaneState, target: Target, minute: int) -> int | None:
    known = [state.acknowledged_in(minute) for state in lane.minutes_used(target.start_us)]
    return None if None in known else sum(units or 0 for units in known)


def _request_of(view: TargetView, identifier: str, one: Acknowledged) -> PushRequest:
    """The request as far as its cancel needs it."""
    return PushRequest(
        driver=view.driver,
        identifier=identifier,
        value=str(one.units),
        timestamp_s=one.minute * 60,
        api_version=view.resolved.api_version,
        event_name=view.resolved.event_name,
        customer=view.target.lane.customer,
        customer_key=view.resolved.customer_key,
        value_key=view.resolved.value_key,
        connect_account=view.connect_account,
    )
