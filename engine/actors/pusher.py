"""The pusher: brings what Stripe holds up to what was used, target by target, by differences.

Rules it keeps: work grows with what changed, not with what exists; ingest never waits for it, and it never waits for
Stripe in a place where others would. Whether and what to push is the plan's (engine.core.push_plan), how a lane is served
engine.actors.push_lanes, and when and by whom engine.actors.push_conductor.
It must not know HTTP routes, nor Stripe's library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Final

import structlog
import trio

from engine.actors.group import Group
from engine.actors.push_changes import PushChanges
from engine.actors.push_conductor import Conductor
from engine.actors.push_connections import Connection
from engine.actors.push_lanes import LaneServer
from engine.actors.push_recorder import PushRecorder
from engine.actors.shard import Shard
from engine.core.billing import Destination, Proven, Resolved, Unresolved
from engine.core.push_plan import TargetView
from engine.core.push_records import Lane, PushDecision, PushOutcome, Role, Target
from engine.core.push_state import PushState
from engine.core.push_totals import PushTotals
from engine.core.push_uses import uses_of
from engine.core.records import ControlRecord
from engine.core.registry import Registry
from engine.core.rules import Rules
from engine.core.shard_state import Series
from engine.ports import Billing, Clock

_logger = structlog.get_logger("stripemeter.push")
SERIES_PER_SLICE: Final = 4
"""An eighth of a millisecond: ingest comes in between."""
PAUSE_SECONDS_MIN: Final = 0.002
"""Shorter ones would only be another turn of the loop."""
LOOK_SECONDS_MIN, LOOK_SECONDS_MAX = 0.02, 5.0
"""How often what changed is taken in: a tenth of the interval, within these."""
RESOLVES_AT_ONCE: Final = 16


class Pusher:
    """All lanes of all accounts. `run` it beside the shards."""

    def __init__(
        self,
        state: PushState,
        *,
        billing: Mapping[Role, Billing],
        registry: Callable[[], Registry],
        rules: Rules,
        shards: Sequence[Shard],
        shard_of_customer: Callable[[str, str], tuple[Shard, int]],
        append: Callable[[Sequence[ControlRecord]], object],
        clock: Clock,
        rng: Random,
        log_id: bytes,
        epoch: int,
        interval_us: int,
        held: Callable[[], str | None],
        change_lock: trio.Lock,
    ) -> None:
        self.state = state
        self.connections: dict[Role, Connection] = {
            role: Connection(role, one, clock, rng) for role, one in billing.items()
        }
        self._registry = registry
        self.rules = rules
        self.now_us = clock.now_us
        self._clock = clock
        self._interval_us = interval_us
        self.changes = PushChanges(state.routes, shard_of_customer, shards)
        self.totals = PushTotals(
            state.routes,
            state.ledger,
            resolution=self._resolution,
            proven=self._proven,
            mapping=lambda tenant, metric: registry().active_mapping(tenant, metric),
        )
        self.recorder = PushRecorder(append, change_lock)  # type: ignore[arg-type]
        self.server = LaneServer(
            state.ledger,
            connection=self.connections.get,
            views=self._views_of,
            view=self.totals.view,
            grace_us=self.totals.grace_us,
            recorder=self.recorder,
            clock=clock,
            rng=rng,
            log_id=log_id,
            epoch=epoch,
            interval_us=interval_us,
            held=held,
            is_current=lambda: self._taken_version == state.routes.version,
        )
        self._targets_of: dict[Lane, set[Target]] = {}
        self._followers: dict[Lane, dict[Lane, None]] = {}
        """Lanes that wait until what was pushed to another is taken back: use was moved."""
        self.conductor = Conductor(self.server.serve, self.recorder, clock)
        self.schedule = self.conductor.schedule
        self._looking = trio.Lock()
        self._hurry = 0
        """How many wait for what is being taken in."""
        self._hurried = trio.Event()
        self._taken_version = -1
        """Of the routes, when all that changed was taken in last."""
        self._resolving = trio.Event()
        self.summaries: dict[Target, tuple[str, int]] = {}
        """What Stripe's whole summary of a target's period held, whoever sent it, and since when that is known."""
        self.is_settled = False
        """Whether everything there was at the start has been taken in."""

    # The tree of tasks.

    async def run(self) -> None:
        """Push until cancelled."""
        self.changes.map_everything()
        self._take_kept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.recorder.run)
            for connection in self.connections.values():
                nursery.start_soon(self._prove, connection)
            nursery.start_soon(self._look_often)
            nursery.start_soon(self._resolve_all)
            nursery.start_soon(self.conductor.run)

    async def _prove(self, connection: Connection) -> None:
        await connection.prove()
        self.changes.map_everything()
        self._resolving.set()
        for lane, state in self.state.ledger.lanes.items():
            if state.open is not None:
                self.schedule(lane, self._clock.now_us())

    async def _look_often(self) -> None:
        seconds = min(max(self._interval_us / 1e7, LOOK_SECONDS_MIN), LOOK_SECONDS_MAX)
        while True:
            until = trio.current_time() + seconds
            await self._look(None, seconds)
            self.is_settled = True
            await trio.sleep_until(until)

    async def look(self, tenant: str | None = None) -> None:
        """Take in what changed, of a tenant or (None) all. What was acknowledged before is in the totals after."""
        self._hurry += 1
        self._hurried.set()
        try:
            await self._look(tenant, 0)
        finally:
            self._hurry -= 1

    async def _look(self, tenant: str | None, within_seconds: float) -> None:
        async with self._looking:
            if not self.changes:
                self._taken_version = self.state.routes.version
                return
            # Shielded: who asks may go away, and what was handed out by then would be forgotten.
            with trio.CancelScope(shield=True):
                await self._take_in(tenant, within_seconds)
            if self.totals.unresolved():
                self._resolving.set()

    async def _take_in(self, tenant: str | None, within_seconds: float) -> None:
        """Spread over so long, if nobody hurries it: what is taken in together is pushed together, and ingest waits."""
        dirty = self.changes.dirty
        pause_seconds = within_seconds * SERIES_PER_SLICE / dirty if dirty else 0.0
        # Taken before the wait: what is fed meanwhile is not folded after it, and would count for nothing.
        taken, unfolded = self.changes.take(tenant), self.changes.unfolded()
        version = self.state.routes.version
        for group in unfolded:
            await group.done.wait()
        for number, series in enumerate(taken, 1):
            self._take(series)
            if number % SERIES_PER_SLICE == 0:
                await self._pause(pause_seconds)
        if tenant is None:
            self._taken_version = version
        # What could not be resolved may be by now, and nothing about these targets themselves has changed.
        for lane in self.server.take_undecided():
            self.schedule(lane, self._clock.now_us())

    async def _pause(self, seconds: float) -> None:
        if seconds < PAUSE_SECONDS_MIN or self._hurry:
            await trio.lowlevel.checkpoint()
            return
        self._hurried = trio.Event()
        with trio.move_on_after(seconds):
            await self._hurried.wait()

    def _take(self, series: Series) -> None:
        shard, partition = self.changes.place_of(series)
        uses = uses_of(shard.state, self.rules, partition, series)
        now_us = self._clock.now_us()
        for target in sorted(self.totals.take(series, uses), key=_order):
            of_lane = self._targets_of.setdefault(target.lane, set())
            if not self.totals.is_served(target):
                of_lane.discard(target)
            else:
                of_lane.add(target)
            self.schedule(target.lane, now_us)
            self._follow(target.lane)

    def kept_targets(self) -> set[Target]:
        """Targets that erased customers had, among those that are served."""
        kept = set()
        for targets in self._targets_of.values():
            for target in targets:
                state = self.state.ledger.target(target)
                if state is not None and state.kept_request is not None:
                    kept.add(target)
        return kept

    def _views_of(self, lane: Lane) -> Iterator[TargetView]:
        for target in tuple(self._targets_of.get(lane, ())):
            if (view := self.totals.view(target)) is not None:
                if view.not_left is not None:
                    self._followers.setdefault(view.not_left.lane, {})[lane] = None
                yield view

    def _follow(self, lane: Lane) -> None:
        """Something of a lane changed: what waits for it is looked at again."""
        for follower in self._followers.pop(lane, ()):
            self.schedule(follower, self._clock.now_us())

    def _take_kept(self) -> None:
        """Targets of erased customers have nobody who contributes; what they are owed is in the ledger."""
        for lane, state in self.state.ledger.lanes.items():
            for kept in state.targets.values():
                if kept.kept_request is not None:
                    self._targets_of.setdefault(lane, set()).add(kept.target)
                    self.schedule(lane, self._clock.now_us())

    # Resolving.

    def _proven(self, role: Role) -> Proven | None:
        connection = self.connections.get(role)
        return None if connection is None else connection.proven

    def _resolution(self, role: Role, destination: Destination) -> Resolved | Unresolved | None:
        connection = self.connections.get(role)
        if connection is None:
            return Unresolved(_NO_KEY[role])
        return connection.known(destination)

    async def _resolve_all(self) -> None:
        limiter = trio.CapacityLimiter(RESOLVES_AT_ONCE)
        under_way: set[tuple[Role, Destination]] = set()
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(LOOK_SECONDS_MAX):
                    await self._resolving.wait()
                self._resolving = trio.Event()
                # In the order they came up, not a set's: the same history asks the same again.
                wanted = dict.fromkeys(self.totals.unresolved())
                for role, connection in self.connections.items():
                    wanted |= dict.fromkeys((role, one) for one in connection.stale(1_000))
                for role, destination in wanted:
                    is_new = (role, destination) not in under_way
                    if is_new and self.connections[role].proven is not None:
                        under_way.add((role, destination))
                        await limiter.acquire_on_behalf_of((role, destination))
                        nursery.start_soon(self._resolve, role, destination, limiter, under_way)

    async def _resolve(
        self,
        role: Role,
        destination: Destination,
        limiter: trio.CapacityLimiter,
        under_way: set[tuple[Role, Destination]],
    ) -> None:
        connection = self.connections[role]
        before = connection.known(destination)
        again = await connection.resolve(destination)
        if connection.known(destination) != before or again is None:
            for series in sorted(self.totals.resolved(role, destination)):
                self.changes.add(series)
            await self.look()
        limiter.release_on_behalf_of((role, destination))
        if again is not None:
            await connection.until(again)
            self._resolving.set()
        under_way.discard((role, destination))

    async def drain(self) -> None:
        """Begin nothing more, and wait a moment for what is under way: what Stripe said is recorded before the end."""
        self._hurry += 1
        self._hurried.set()
        await self.conductor.drain()

    # What others tell it.

    def feed(self, group: Group) -> None:
        """A group is durable; its events are about to be folded."""
        self.changes.feed(group)
        for record in group.controls:
            if isinstance(record, PushDecision):
                self._decided(record)
            elif isinstance(record, PushOutcome):
                if not self.conductor.is_serving(record.target.lane):
                    self.schedule(record.target.lane, self._clock.now_us())
                self._follow(record.target.lane)

    def _decided(self, record: PushDecision) -> None:
        lane = record.lane if record.target is None else record.target.lane
        if record.target is not None and record.kind == "keep":
            self._targets_of.setdefault(record.target.lane, set()).add(record.target)
        if lane is not None:
            if not self.conductor.is_serving(lane):
                self.schedule(lane, self._clock.now_us())
            self._follow(lane)


def _order(target: Target) -> tuple[int, str, str, str]:
    """Any order will do, as long as it is the same in every process."""
    return target.start_us, target.scale, target.lane.object_id, target.lane.customer


_NO_KEY: Final[dict[Role, str]] = {
    "main": "no Stripe key is set, and the simulator is off: set STRIPE_SECRET_KEY",
    "shadow": "shadow mode needs STRIPE_TEST_SECRET_KEY",
}
