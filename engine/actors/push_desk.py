"""What people ask of pushing: reports per target, flushing, and the decisions that only a person can make.

Rules it keeps: a report is of now, with everything acknowledged before the question in it; a tenant sees its own
targets and nothing else; a decision is checked under the lane's lock and recorded with who made it.
It must not know HTTP.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final, NamedTuple

import trio

from engine.actors.push_connections import ConnectionReport
from engine.actors.push_invoices import note_final
from engine.actors.pusher import Pusher
from engine.core.periods import period_in
from engine.core.push_baselines import (
    BaselineNeed,
    baseline_decision,
    baseline_need,
)
from engine.core.push_plan import (
    finalization_us,
    may_be_twofold,
    remainder_text,
)
from engine.core.push_records import (
    BaselineChoice,
    CarryInto,
    PushDecision,
    PushIntent,
    PushOutcome,
    Role,
    Target,
    target_id,
)
from engine.errors import Conflict, NotFound
from engine.ports import Clock

FLUSH_SLICE_US: Final = 500_000
FLUSH_PAUSE_US: Final = 5_000


class Unproven(Conflict):
    """What Stripe reports may be about another event than the one that counts."""


class TargetReport(NamedTuple):
    """One target for a person's eyes. Units are whole; `local_micros` is millionths of the customer's own use."""

    id: str
    target: Target
    role: Role
    tenant: str
    metric: str
    customer_refs: tuple[str, ...]
    local_micros: int
    billable: int
    pushed: int
    confirmed: str | None
    confirmed_at_us: int | None
    due: int
    remainder: Fraction
    standing: str
    reason: str | None
    next_at_us: int | None
    open: PushIntent | None
    last_error: str | None
    needs_baseline: bool
    carried: dict[CarryInto, int]
    carried_in: int
    finalization_us: int

    @property
    def needs_person(self) -> bool:
        """Whether it stays as it is until somebody decides."""
        return self.standing in ("awaiting_baseline", "quarantined", "stopped", "refused") or (
            (self.standing == "finalized" and self.due != 0)
            or (self.standing == "held" and self.due < 0)
        )


class Asker(NamedTuple):
    """Who decides, and under which request."""

    actor: str
    request_id: str | None


class PushDesk:
    """Reads a pusher and hands decisions to it."""

    def __init__(self, pusher: Pusher, clock: Clock) -> None:
        self._pusher = pusher
        self._clock = clock

    async def targets(
        self, tenant: str | None, customer_ref: str | None = None
    ) -> list[TargetReport]:
        """Every target of a tenant (None: of all), sorted by period, metric and Stripe customer."""
        await self._pusher.look(tenant)
        found = []
        for target in set(self._pusher.totals.targets) | self._pusher.kept_targets():
            report = self.report(target)
            if report is None or (tenant is not None and report.tenant != tenant):
                continue
            if customer_ref is None or customer_ref in report.customer_refs:
                found.append(report)
        found.sort(key=_order)
        return found

    async def target(self, tenant: str | None, wanted: str) -> TargetReport:
        """One by its id. Raises NotFound, also for another tenant's."""
        for report in await self.targets(tenant):
            if report.id == wanted:
                return report
        raise NotFound(f"there is no push target {wanted}")

    def report(self, target: Target) -> TargetReport | None:
        """A target as it stands now; None: nobody contributes to it."""
        pusher = self._pusher
        view = pusher.totals.view(target)
        if view is None:
            return None
        ledger = pusher.state.ledger
        lane, state = ledger.lane(target.lane), ledger.target(target)
        planned = pusher.server.planned(view)
        runtime = pusher.server.runtimes.get(target.lane)
        confirmed = pusher.server.confirmed.get(target)
        is_open = lane is not None and lane.open is not None and lane.open.target == target
        error = None if runtime is None else runtime.last_error
        if error is None and state is not None and state.refusal is not None:
            error = state.refusal.reason
        return TargetReport(
            id=target_id(target),
            target=target,
            role=view.role,
            tenant=view.tenant,
            metric=view.metric,
            customer_refs=tuple(sorted(ref for _t, _m, ref in pusher.totals.series_of(target))),
            local_micros=view.local_micros,
            billable=planned.billable,
            pushed=planned.pushed,
            confirmed=None if confirmed is None else confirmed[0],
            confirmed_at_us=None if confirmed is None else confirmed[1],
            due=planned.due,
            remainder=remainder_text(view.local_micros, target.scale),
            standing=planned.standing,
            reason=planned.reason,
            next_at_us=None if planned.at_us is None else max(planned.at_us, self._clock.now_us()),
            open=lane.open if lane is not None and is_open else None,
            last_error=error,
            needs_baseline=lane is not None and lane.awaits is not None,
            carried={} if state is None else dict(state.carried),
            carried_in=0 if state is None else state.carried_in,
            finalization_us=finalization_us(target, state, view.grace_us),
        )

    def unroutable(self, tenant: str | None) -> list[tuple[str, str, str, str]]:
        """(tenant, metric, customerRef, why) of mapped usage that goes nowhere, sorted."""
        return sorted(
            (*series, reason)
            for series, reason in self._pusher.totals.unroutable.items()
            if tenant is None or series[0] == tenant
        )

    async def flush(
        self, tenant: str | None, customer_ref: str | None, timeout_us: int
    ) -> list[TargetReport]:
        """Push what is due now, whatever the pace; the reports when Stripe has it all, or at the time-out."""
        pusher = self._pusher
        again_us = began_us = self._clock.monotonic_us()
        forced: set[Target] = set()
        while True:
            moved, looked_us = pusher.conductor.moved, self._clock.monotonic_us()
            reports = await self.targets(tenant, customer_ref)
            behind = [report for report in reports if is_behind(report)]
            is_all_there = not behind and not self._is_waiting(tenant, customer_ref)
            now_us = self._clock.monotonic_us()
            if is_all_there or now_us >= began_us + timeout_us:
                return reports
            # Again from time to time: a push that was just being recorded took what it was told, and not the rest.
            is_time = now_us >= again_us
            again_us = now_us + FLUSH_SLICE_US if is_time else again_us
            for report in behind:
                target = report.target
                if target not in forced or (is_time and report.standing != "refused"):
                    forced.add(target)
                    pusher.server.runtime(target.lane).forced.add(target)
                    pusher.schedule(target.lane, self._clock.now_us())
            # A look costs as much as there are targets, and ingest waits for it: a fifth of the time is enough.
            await trio.sleep((FLUSH_PAUSE_US + 4 * (now_us - looked_us)) / 1e6)
            with trio.move_on_after(FLUSH_SLICE_US / 1e6):
                await moved.wait()

    def _is_waiting(self, tenant: str | None, customer_ref: str | None) -> bool:
        """Whether usage has no target only because Stripe has not said yet where it goes."""
        totals = self._pusher.totals
        return any(
            tenant in (None, series[0])
            and customer_ref in (None, series[2])
            and totals.is_waiting(series)
            for series in totals.unroutable
        )

    def connections(self) -> dict[Role, ConnectionReport]:
        """Each key, as far as it may be shown."""
        return {role: one.report() for role, one in self._pusher.connections.items()}

    # Decisions.

    async def decide_baseline(
        self, tenant: str | None, wanted: str, choice: BaselineChoice, by: Asker
    ) -> TargetReport:
        """What of a target that waits counts as pushed. Raises NotFound or Conflict."""
        report = await self.target(tenant, wanted)
        target = report.target
        if choice == "now" and target.lane.object_id.startswith("si_"):
            raise Conflict(
                "usage records replace the total at Stripe, so `now` can't be kept: choose `period` or `stripe`"
            )

        def make() -> PushDecision:
            ledger = self._pusher.state.ledger
            lane = ledger.lane(target.lane)
            view = self._pusher.totals.view(target)
            if lane is None or lane.awaits is None or lane.awaits.target != target or view is None:
                raise Conflict("the target does not wait for a baseline")
            need = baseline_need(view, ledger) or BaselineNeed("decided", person=True)
            reading = lane.awaits.reading or "0"
            beside = sum(
                each.pushed for each in lane.minutes_used(target.start_us) if each.target != target
            )
            return baseline_decision(
                view,
                ledger.target(target),
                need,
                reading,
                beside=beside,
                choice=choice,
                actor=by.actor,
                request_id=by.request_id,
            )

        await self._pusher.server.decide(target.lane, make)
        return await self.target(tenant, wanted)

    async def carry_forward(
        self, tenant: str | None, wanted: str, into: CarryInto, by: Asker
    ) -> TargetReport:
        """Settle what is left of a finalized target. Raises NotFound or Conflict."""
        report = await self.target(tenant, wanted)
        target = report.target

        def make() -> PushDecision:
            now = self.report(target)
            if now is None or now.standing != "finalized" or now.due == 0:
                raise Conflict(
                    "nothing is left to carry forward: the target is not final, or all of it is pushed"
                )
            at_us = until_us = 0
            if into == "current":
                at_us, until_us = self._period_now(now)
            return PushDecision(
                kind="carry",
                actor=by.actor,
                request_id=by.request_id,
                target=target,
                units=str(now.due),
                into=into,
                at_us=at_us,
                until_us=until_us,
                role=now.role,
                tenant_id=now.tenant,
                metric=now.metric,
            )

        await self._pusher.server.decide(target.lane, make)
        for customer_ref in report.customer_refs:
            self._pusher.changes.add((report.tenant, report.metric, customer_ref))
        return await self.target(tenant, wanted)

    def _period_now(self, report: TargetReport) -> tuple[int, int]:
        """The running period of a target's customers: what is carried forward goes there."""
        customer_ref = report.customer_refs[0] if report.customer_refs else ""
        schedule = self._pusher.rules.schedule(report.tenant, report.metric, customer_ref)
        return period_in(schedule, self._clock.now_us())

    async def settle(
        self, tenant: str | None, wanted: str, *, delivered: bool, by: Asker
    ) -> TargetReport:
        """Say what became of a quarantined intent. Raises NotFound or Conflict."""
        report = await self.target(tenant, wanted)

        def make() -> PushOutcome:
            lane = self._pusher.state.ledger.lane(report.target.lane)
            intent = None if lane is None else lane.open
            if lane is None or lane.quarantine is None or intent is None:
                raise Conflict("the target has no intent in quarantine")
            if intent.target != report.target:
                raise Conflict("the intent in quarantine is of another target of its lane")
            return PushOutcome(
                target=intent.target,
                number=intent.number,
                result="delivered" if delivered else "withdrawn",
                proof="person",
                reason=f"decided by {by.actor}",
                actor=by.actor,
                tenant_id=report.tenant,
            )

        await self._pusher.server.decide(report.target.lane, make)
        return await self.target(tenant, wanted)

    async def resume(self, tenant: str | None, wanted: str, by: Asker) -> TargetReport:
        """Push to a stopped lane again. Raises NotFound or Conflict."""
        report = await self.target(tenant, wanted)
        lane_key = report.target.lane

        def make() -> PushDecision:
            lane = self._pusher.state.ledger.lane(lane_key)
            if lane is None or lane.stopped is None:
                raise Conflict("the target is not stopped")
            return PushDecision(
                kind="resume",
                actor=by.actor,
                request_id=by.request_id,
                lane=lane_key,
                tenant_id=report.tenant,
                metric=report.metric,
            )

        await self._pusher.server.decide(lane_key, make)
        return await self.target(tenant, wanted)

    # What Stripe tells.

    async def report_rejected(self, identifier: str, reason: str, actor: str) -> bool:
        """Stripe says that it rejected an event after it had taken it; False: it is not one of ours.

        The report may overtake the answer, or stand for one that was lost: then the open intent is refused.
        Raises Conflict when it was reported before, Unproven when Stripe may have taken two events of this
        identifier: to push anew then could bill twice, and reading back says what is missing.
        """
        ledger = self._pusher.state.ledger
        known = ledger.delivered.get(identifier)
        found = known or next(
            (
                state.open
                for state in ledger.lanes.values()
                if state.open is not None and state.open.request.identifier == identifier
            ),
            None,
        )
        if found is None:
            return False

        def make() -> PushOutcome:
            lane = ledger.lane(found.target.lane)
            under_way = None if lane is None else lane.open
            is_open = under_way is not None and under_way.request.identifier == identifier
            if not is_open and identifier not in ledger.delivered:
                raise Conflict("it was reported before")
            if is_open:
                assert under_way is not None
                attempts = self._pusher.server.runtime(found.target.lane).attempts
                twofold = may_be_twofold(under_way, attempts, self._clock.now_us())
            else:
                twofold = ledger.delivered[identifier].is_twofold
            if twofold:
                raise Unproven("it was sent twice, a day apart: the report may be about the first")
            return PushOutcome(
                target=found.target,
                number=found.number,
                result="refused" if is_open else "rejected",
                proof="report",
                reason=reason,
                actor=actor,
            )

        await self._pusher.server.decide(found.target.lane, make)
        return True

    async def invoice_finalized(
        self, account: str, customer: str, period_end_us: int, finalized_at_us: int, actor: str
    ) -> int:
        """An invoice takes nothing more in: the targets of its customer and period are final; how many, or 1 for none yet."""
        decision = PushDecision(
            kind="finalize",
            actor=actor,
            at_us=finalized_at_us,
            until_us=period_end_us,
            account=account,
            customer=customer,
        )
        return await note_final(self._pusher, decision, self._clock.now_us())

    async def stop(self, account: str, customer: str, reason: str, actor: str) -> int:
        """A customer is gone at Stripe: its lanes are unbillable; how many."""
        lanes = [
            lane
            for lane, state in self._pusher.state.ledger.lanes.items()
            if (lane.account, lane.customer) == (account, customer) and state.stopped is None
        ]
        for lane in lanes:
            decision = PushDecision(kind="stop", actor=actor, lane=lane, because=reason)
            await self._pusher.server.decide(lane, lambda d=decision: d)  # type: ignore[misc]
        return len(lanes)


def is_behind(report: TargetReport) -> bool:
    """Whether pushing goes on by itself until Stripe has more."""
    return report.standing in ("due", "in_flight") or (
        report.standing == "refused" and report.due != 0
    )


def _order(report: TargetReport) -> tuple[object, ...]:
    target = report.target
    return (
        -target.start_us,
        report.tenant,
        report.metric,
        target.lane.customer,
        report.role,
        report.id,
    )
