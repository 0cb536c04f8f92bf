"""Baselines: what Stripe may hold already for a target that is new here, or whose past is in doubt.

Rules it keeps: a target never bills a period twice because it is new, was restored, re-activated or a shadow; what
happened while nobody looked is a person's to judge, even where Stripe holds nothing; a reading is never taken for more
than it says. It must not know tasks, the log, or Stripe's library.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import msgspec

from engine.core.billing import same_units
from engine.core.push_ledger import PushLedger, TargetState
from engine.core.push_plan import TargetView, due_units
from engine.core.push_records import BaselineChoice, PushDecision
from engine.core.times import MINUTE_US


class BaselineNeed(NamedTuple):
    """Why Stripe must be read before a target is pushed; `person`: even an empty reading waits for a decision."""

    because: str
    person: bool


def baseline_need(view: TargetView, ledger: PushLedger) -> BaselineNeed | None:
    """Whether a baseline comes before a target's next intent; None: it has one that holds."""
    target = view.target
    lane = ledger.lane(target.lane)
    if lane is not None and lane.baseline_start_us is not None:
        if target.start_us in lane.baselines:
            return None
        if lane.doubt is not None and target.start_us < lane.doubt_until_us:
            return BaselineNeed(lane.doubt, person=True)
        if target.start_us >= lane.baseline_at_us:
            return None
    if ledger.restored_at_us > target.start_us:
        return BaselineNeed("the log was restored from a backup within the period", person=True)
    of_metric = (view.tenant, view.metric)
    resumed_us = ledger.resumed_at_us(*of_metric, view.role)
    if resumed_us is not None and resumed_us > target.start_us:
        shadow_us = ledger.ended_at_us(*of_metric, "shadow")
        if view.role == "main" and shadow_us is not None and shadow_us > target.start_us:
            return BaselineNeed("its mapping was in shadow mode within the period", person=True)
        return BaselineNeed("its mapping was not active for a part of the period", person=True)
    return BaselineNeed("nothing was pushed to it before", person=False)


def baseline_range(view: TargetView, now_us: int) -> tuple[int, int]:
    """(start, end) in unix seconds of what is read: whole minutes that hold the period so far."""
    start = view.target.start_us // MINUTE_US
    end = min(-(-view.target.end_us // MINUTE_US), now_us // MINUTE_US + 1)
    return start * 60, max(end, start + 1) * 60


def baseline_decision(
    view: TargetView,
    state: TargetState | None,
    need: BaselineNeed,
    reading: str,
    *,
    beside: int = 0,
    choice: BaselineChoice | None = None,
    actor: str = "system:pusher",
    request_id: str | None = None,
) -> PushDecision:
    """The baseline that a reading and a choice make; without a choice where one is needed: `await`.

    Nothing at Stripe and nothing doubtful: all of the period is due. The mapping's choice is for a Stripe that holds
    something, and for a target that is new: what happened in between is a person's to judge. `beside`: units
    pushed to the lane's other targets of the period, which the reading holds too.
    """
    if choice is None and not need.person:
        choice = "period" if same_units(reading, 0) else view.baseline
    common = PushDecision(
        kind="await",
        actor=actor,
        request_id=request_id,
        target=view.target,
        reading=reading,
        because=f"{need.because}; Stripe held {reading} when it was read",
        role=view.role,
        tenant_id=view.tenant,
        metric=view.metric,
    )
    if choice is None:
        return common
    units = 0 if state is None else state.pushed
    if choice == "now":
        units += due_units(view, state) - (0 if state is None else state.carried_in)
    elif choice == "stripe":
        units = int(Fraction(reading)) - beside
    return msgspec.structs.replace(common, kind="baseline", choice=choice, units=str(units))
