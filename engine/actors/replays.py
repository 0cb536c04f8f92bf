"""Replays: late events are folded into open periods under another watermark or lateness, after a preview.

Rules it keeps: a preview changes nothing; what is applied is the plan that was reviewed, or nothing (`expect`); the plan
and its record have no await in between, under the lock of all changes, so no closing and no decision comes between
them; the same plan is applied once, however often it is sent. The plan itself is `engine.core.replay`.
It must not know HTTP.
"""

from __future__ import annotations

from typing import NamedTuple

import trio

from engine.actors.administration import By
from engine.actors.supervisor import Meter
from engine.core.configured import Change
from engine.core.records import ReplayApply
from engine.core.replay import Planner, ReplayPlan, ReplayRequest
from engine.core.times import DAY_US, INSTANT_US_END, INSTANT_US_MIN
from engine.errors import Conflict

_MONTH_US_MAX = 31 * DAY_US
_SLICE_EVENTS = 500
"""Late events looked at in one turn: about a millisecond."""


class Applied(NamedTuple):
    """A plan, and whether it was applied before this call (then it is empty)."""

    plan: ReplayPlan
    was_applied: bool


class Replays:
    """Plans and applies replays. One per meter."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    async def preview(self, request: ReplayRequest) -> ReplayPlan:
        """The plan as of its return; everything acknowledged before the call is in it."""
        planner = await self._looked(request)
        return planner.plan(shard.state for shard in self._meter.shards)

    async def _looked(self, request: ReplayRequest) -> Planner:
        """A planner that has looked at everything, in slices; what moves meanwhile it looks at again."""
        assert self._meter.started is not None  # raises while recovering
        planner = Planner(request)
        looked_at = 0
        for shard in self._meter.shards:
            for partition in list(shard.state.adjustments):
                looked_at += planner.look(shard.state, partition)
                if looked_at >= _SLICE_EVENTS:
                    looked_at = 0
                    await trio.lowlevel.checkpoint()
        return planner

    async def apply(self, request: ReplayRequest, expect: str | None, by: By) -> Applied:
        """Plan again and record it, durable and folded on return.

        Raises Conflict when `expect` is given and the plan is another one now: nothing was changed.
        """
        meter = self._meter
        async with meter.change_lock:
            planner = await self._looked(request)
            # No await from here to the record: the plan is of this moment.
            found = planner.plan(shard.state for shard in meter.shards)
            if expect is not None and expect != found.plan_hash:
                if meter.registry.was_applied(request.tenant, expect):
                    return Applied(found._replace(plan_hash=expect), was_applied=True)
                raise Conflict(
                    "the plan is no longer what was reviewed: events or decisions came in between. "
                    "Look at a new dry run and apply its planHash"
                )
            if found.counters:
                await meter.append_controls(
                    (
                        ReplayApply(
                            tenant_id=request.tenant,
                            plan_hash=found.plan_hash,
                            counters=found.counters,
                            change=Change(actor=by.actor, request_id=by.request_id),
                        ),
                    )
                )
            return Applied(found, was_applied=False)

    def metrics(self, tenant: str) -> list[str]:
        """Metrics that the tenant has usage of, in order."""
        return sorted(
            set().union(*(shard.state.metrics.get(tenant, ()) for shard in self._meter.shards))
        )

    def open_range(self, tenant: str, metrics: list[str], now_us: int) -> tuple[int, int]:
        """From when to when the open periods of these metrics are, half-open, at least.

        Where customers have periods of their own it begins a month before what is closed.
        """
        rules = self._meter.rules
        starts_us = []
        for metric in metrics:
            start_us = rules.scope(tenant, metric).closed_until_us
            kinds = {part.kind for part in rules.schedule(tenant, metric, "")}
            starts_us.append(start_us - _MONTH_US_MAX if "subscription" in kinds else start_us)
        first_us = min(starts_us, default=rules.closed_until_us)
        end_us = min(now_us + DAY_US, INSTANT_US_END - 1)
        return max(first_us, INSTANT_US_MIN), end_us
