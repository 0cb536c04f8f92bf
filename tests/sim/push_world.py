"""A meter that pushes, in a seeded world: months of virtual time, a Stripe that fails, disks that fail, power cuts.

One seed is one history. Customers use metrics, some late; a person corrects, maps, decides; Stripe loses answers, is
slow, refuses, lags, rejects afterwards, is away for minutes or for weeks. In some worlds a process of its own speaks with
Stripe, as it does in production, and dies of itself now and then (tests.sim.push_sender). Every request is held against the rules as
it leaves (tests.sim.push_wire), every start against the raw log (tests.sim.push_books), and in the end Stripe against
what was used.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio
import trio._core._run as scheduler
import trio.testing

from engine.actors import push_conductor
from engine.actors.push_desk import Unproven
from engine.actors.supervisor import Meter, MeterOptions
from engine.core.configured import Mapping
from engine.core.events import EventLimits, Refusal, SentEvent, accept
from engine.core.push_records import Role
from engine.core.times import format_instant, parse_instant
from engine.errors import Conflict, EngineError, StartRefused
from engine.limits import STRIPE_BEGIN_SECONDS
from engine.ports import Billing, Fatal, ResultT
from gateway.simulator.ledger import Settings
from tests.helpers.push_place import BY, PushPlace
from tests.sim.push_books import (
    ANCHOR,
    TENANT,
    Delta,
    DurableLog,
    Metric,
    Use,
    Used,
    assert_same_ledger,
    whole_units,
)
from tests.sim.push_sender import SimulatedSender, set_machine_clock, virtual_machine_us
from tests.sim.push_wire import StripeTruth, WatchedWire
from tests.sim.violation import Violation
from wal.memory_log import MemoryLog, Operation, Verdict

DAY = 86_400
COURSES_MAX = 6
"""So that lanes wait for each other."""
METERS = ("calls", "bytes", "seats", "level")
METRICS = (
    Metric("calls", "calls", "sum", "1"),
    Metric("bulk", "calls", "sum", "1000"),
    Metric("bytes", "bytes", "sum", "0.001"),
    Metric("seats", "seats", "max", "1"),
    Metric("level", "level", "last", "1"),
)
STARTS = (
    "2026-10-24T10:00:00Z",
    "2026-10-31T23:30:00Z",
    "2026-11-01T00:20:00Z",
    "2026-11-26T09:00:00Z",
)
QUANTITIES = {
    "sum": ("1", "3", "0.5", "2.25", "0.0004", "1000", "250"),
    "max": ("1", "5", "90", "100", "7.5"),
    "last": ("100", "90", "100", "0", "12.25"),
}
REMOTE_SHARE = 0.4
"""Of the worlds, those in which a process of its own speaks with Stripe."""
BEACON = "cus_beacon"
"""Uses something now and then in the end, so that there are later pushes to compare with."""


def is_remote(seed: int) -> bool:
    """Whether a process of its own speaks with Stripe in a world."""
    rng = random.Random(f"remote {seed}")
    return rng.random() < REMOTE_SHARE


class PushWorld(PushPlace):
    """Everything that outlives a crash."""

    def __init__(self, seed: int, clock: trio.testing.MockClock) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        rng = self.rng
        lag = rng.choice((0.0, 0.0, 60.0, 5000.0, 3.0 * DAY))
        super().__init__(
            stripe=Settings(
                auto_create=True,
                meters=METERS,
                seed=str(seed),
                lag_seconds_min=lag,
                lag_seconds_max=lag,
            ),
            start_us=parse_instant(rng.choice(STARTS)),
            interval_us=rng.choice((8, 30, 600)) * 1_000_000,
        )
        self.mock = clock
        self.lateness_us = rng.choice((1, 48, 240)) * 3_600_000_000
        self.late_policy = rng.choice(("review", "review", "auto"))
        self.grace_us = rng.choice((1, 1, 72)) * 3_600_000_000
        self.metrics = rng.sample(METRICS, rng.choice((1, 2, 3)))
        self.refs = {"cus_anna": "cus_anna"}
        if rng.random() < 0.6:
            self.refs["team"] = rng.choice(("cus_anna", "cus_ben"))
        self.customers = {**self.refs, BEACON: BEACON}
        self.is_upward = rng.random() < 0.5
        self.used = Used(ANCHOR if rng.random() < 0.3 else None)
        self.truth = StripeTruth(self.stripe)
        self.books = DurableLog(self.disk)
        self.disk.fault = self._disk_fault
        self.calm = False
        self.error_rate = rng.choice((0.0, 0.0, 0.03, 0.2))
        self.latency_seconds_max = rng.choice((0.0, 0.002, 0.3))
        self.power: trio.CancelScope | None = None
        self.points = 0
        """Until the power is cut; below 0 it is not."""
        self.trace: list[Any] = []
        self.unproven: set[str] = set()
        """Identifiers of which Stripe rejected an event, and nobody can tell which of two that were sent."""
        self.numbers = 0
        self.is_mapped_late = self.used.anchor is None and rng.random() < 0.2
        self.sender_rng = random.Random(f"sender {seed}")
        self.is_remote = is_remote(seed)
        self.death_rate = self.sender_rng.choice((0.0, 0.02, 0.2))
        self.sender: SimulatedSender | None = None
        """The process that speaks with Stripe, in this life."""
        self.deaths = 0
        self.watched = self._make_wire()
        self.wire = self.watched  # type: ignore[assignment]

    def billing(self) -> dict[Role, Billing]:
        """The ways to Stripe of the next meter."""
        return super().billing() if self.sender is None else {"main": self.sender.billing("main")}

    @asynccontextmanager
    async def speaking(self) -> AsyncIterator[None]:
        """A life of the process that speaks with Stripe, where there is one."""
        if not self.is_remote:
            yield
            return
        self.sender = SimulatedSender(
            self.watched,
            self.sender_rng,
            death_rate=self.death_rate,
            may_die=lambda: not self.calm,
            died=self.watched.failed_keys.clear,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sender.run)
            await trio.sleep(self.sender_rng.choice((0, 0.1)))
            yield
            nursery.cancel_scope.cancel()
        self.deaths += self.sender.deaths

    def _make_wire(self) -> WatchedWire:
        return WatchedWire(
            self.truth,
            self.books,
            self.rng,
            sender="main",
            period_of=self.used.period_of,
            grace_us=self.grace_us,
            late_us=STRIPE_BEGIN_SECONDS * 1_000_000 if self.is_remote else 0,
            point=self.point,
            check=self.check_upward,
        )

    # Faults of the machine.

    def point(self) -> None:
        """The power may be cut here."""
        self.points -= 1
        if self.points == 0 and self.power is not None:
            self.power.cancel()

    def _disk_fault(self, operation: Operation) -> Verdict:
        roll = 1.0 if self.calm else self.rng.random()
        if operation == "head":
            if roll < self.error_rate / 40:
                return self.rng.choice(("error", "done-but-reported-failed"))
            return "ok"
        return "error" if roll < self.error_rate else "ok"

    async def run_blocking(self, function: Callable[[], ResultT]) -> ResultT:
        """A thread that takes virtual time; a crash may fall on either side of what it does."""
        self.point()
        await trio.sleep(self.rng.random() * self.latency_seconds_max)
        result = function()
        self.point()
        await trio.sleep(self.rng.random() * self.latency_seconds_max / 4)
        return result

    def options(self) -> MeterOptions:
        """The next meter's."""
        return MeterOptions(
            software="sim",
            shards=self.rng.choice((1, 3)),
            lateness_us=self.lateness_us,
            late_policy=self.late_policy,
            snapshot_every_events=self.rng.choice((3, 10, 10_000)),
            push_interval_us=self.interval_us,
            is_indexing=False,
            verify=True,
        )

    def meter(self) -> Meter:
        """A meter on what the disks hold."""
        made = Meter(
            self.options(),
            log=MemoryLog(self.disk),
            runs=self.runs,
            cells=self.cells,
            snapshots=self.snapshots,
            archives=self.archives,
            clock=self.clock,
            ids=self.ids,
            run_blocking=self.run_blocking,
        )
        made.connect(self.billing())
        return made

    # What is used.

    def new_use(self, metric: Metric, customer_ref: str, age_seconds: float = 0) -> Use:
        """An event that a client is about to send; from now on Stripe may hold it."""
        self.numbers += 1
        text = self.rng.choice(QUANTITIES[metric.aggregation])
        # No two at one instant: which is the last must not depend on the order of arrival.
        ts_us = self.clock.now_us() - int(age_seconds * 1e6) - 10_000 + self.numbers
        event = SentEvent(
            metric=metric.name,
            customer_ref=customer_ref,
            quantity=msgspec.Raw(text.encode()),
            ts=format_instant(ts_us),
            idempotency_key=f"key-{self.numbers}",
        )
        whole, _, digits = text.partition(".")
        use = Use(event, int(whole) * 10**6 + int(digits.ljust(6, "0")), ts_us)
        self.used.events.append(use)
        return use

    async def send(self, meter: Meter, use: Use) -> None:
        """Send an event; raises EngineError when it has to be sent again."""
        row = accept(use.event, TENANT, None, self.clock.now_us(), EventLimits(4096))
        assert not isinstance(row, Refusal), row
        offer = meter.taking.offer(TENANT, [row], 100)
        await offer.settled()
        use.is_heard = True

    # What must hold at any time.

    def lanes(self) -> set[tuple[str, str]]:
        """(meter, Stripe customer) of everything that may be used."""
        customers = self.customers.values()
        return {(metric.meter, customer) for metric in self.metrics for customer in customers}

    def held(self, meter: str, customer: str) -> dict[int, int]:
        """What Stripe took, by the start of the billing period."""
        found: dict[int, int] = {}
        for minute, units in self.minutes(customer, meter).items():
            start_us = self.used.period_of(minute * 60_000_000)[0]
            found[start_us] = found.get(start_us, 0) + units
        return found

    def billable(self, meter: str, customer: str, start_us: int, *, at_most: bool = False) -> int:
        """What Stripe is to hold in a period, by use and by what was carried."""
        refs = [ref for ref, known in self.customers.items() if known == customer]
        sums: dict[str, int] = {}
        for metric in self.metrics:
            if metric.meter == meter:
                scale = self.books.scale_of(metric, start_us)
                sums[scale] = sums.get(scale, 0) + sum(
                    self.used.micros(metric, ref, start_us, at_most=at_most) for ref in refs
                )
        moved: dict[str, int] = {}
        for targets, sign in ((self.books.carried_in, 1), (self.books.carried_out, -1)):
            for target, units in targets.items():
                lane = (self.meter_name(target.lane.object_id), target.lane.customer)
                is_here = lane == (meter, customer) and target.start_us == start_us
                if is_here and (sign == 1 or not at_most):
                    moved[target.scale] = moved.get(target.scale, 0) + sign * units
        return sum(
            max(0, whole_units(sums.get(scale, 0), scale) + moved.get(scale, 0))
            for scale in sums.keys() | moved.keys()
        )

    def meter_name(self, meter_id: str) -> str:
        """The event name of a meter."""
        ledger = self.stripe.world.ledgers[self.stripe.account]
        return next(name for name, known in ledger.meters.items() if known == meter_id)

    def check_upward(self) -> None:
        """On a stream that only grows Stripe is never above what was used. Raises Violation."""
        if not self.is_upward:
            return
        falling = {metric.meter for metric in self.metrics if metric.aggregation == "last"}
        self.books.refresh()
        for meter, customer in self.lanes():
            if meter in falling:
                continue
            for start_us, units in self.held(meter, customer).items():
                most = self.billable(meter, customer, start_us, at_most=True)
                if units > most:
                    raise Violation(
                        f"{meter} of {customer}: Stripe holds {units}, used were at most {most}"
                    )

    async def postman(self, meter: Meter) -> None:
        """Bring Stripe's reports of rejections, as its webhook does: once, and again while it is not answered."""
        while meter.phase == "ready":
            for identifier, at_us in list(self.truth.reports.items()):
                if at_us <= self.clock.now_us():
                    try:
                        await meter.started.pusher.report_rejected(identifier, "no", "stripe")
                    except Unproven:
                        self.unproven.add(identifier)
                        lane = self.books.refresh().intents[identifier].target.lane
                        await meter.started.reconciler.rejected_unnamed(lane.object_id, 1)
                    except Conflict:
                        pass
                    except EngineError:
                        continue
                    self.truth.reports.pop(identifier, None)
            await trio.sleep(10)

    # Time.

    async def wait(self, seconds: float) -> None:
        """Let time pass: a suspended machine's hours in steps, with some seconds of work between two of them."""
        until = trio.current_time() + seconds
        while (left := until - trio.current_time()) > 0:
            if left < 90:
                await trio.sleep(left)
                return
            now_us = self.clock.now_us()
            step = min(left, self.rng.choice((60, 600, 3_700, 4 * 3_600, DAY)))
            end_us = self.used.period_of(now_us)[1]
            for edge_us in (end_us, end_us + self.grace_us):
                to_edge = (edge_us - now_us) / 1e6 + self.rng.choice((-40, -8, -0.5, 0.2, 70))
                if 0 < to_edge < step and self.rng.random() < 0.7:
                    step = to_edge
            if self.truth.delayed:
                step = min(step, 45)
            busy = self.rng.choice((0.2, 3, 9))
            if step > busy:
                self.mock.jump(step - busy)
            await trio.sleep(min(step, busy))
            self.truth.arrive()


def run_seed(
    seed: int, history: Callable[[PushWorld], Any], make: Callable[..., PushWorld] = PushWorld
) -> PushWorld:
    """Run one world to its end. Raises Violation (perhaps in a group) when a promise did not hold."""
    state = scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    clock = trio.testing.MockClock(autojump_threshold=0)
    courses, push_conductor.COURSES_MAX = push_conductor.COURSES_MAX, COURSES_MAX  # type: ignore[misc]

    async def main() -> PushWorld:
        world = make(seed, clock)
        await history(world)
        return world

    set_machine_clock(virtual_machine_us)
    try:
        return trio.run(main, clock=clock)
    finally:
        set_machine_clock(None)
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = False
        scheduler._r.setstate(state)
        push_conductor.COURSES_MAX = courses  # type: ignore[misc]


async def life(world: PushWorld, story: Callable[[PushWorld, Meter], Any], *, points: int) -> None:
    """Start the meter, let the story happen, then stop in order, or cut the power after so many `points`."""
    stop, ready = trio.Event(), trio.Event()
    world.points = points
    world.watched.failed_keys.clear()
    with trio.CancelScope() as world.power:
        try:
            async with world.speaking(), trio.open_nursery() as nursery:
                meter = world.meter()
                nursery.start_soon(meter.run, stop.wait, ready.set)
                await ready.wait()
                assert_same_ledger(meter, world.books.refresh())
                nursery.start_soon(world.postman, meter)
                await story(world, meter)
                stop.set()
        except* (Fatal, StartRefused) as ended:
            if world.calm:
                raise Violation("a good disk must not end the meter") from ended
    world.power = None
    world.disk.crash(world.rng)
    world.trace.append((round(trio.current_time(), 6), len(world.truth.taken), world.numbers))


__all__ = [
    "BEACON",
    "BY",
    "DAY",
    "METRICS",
    "Delta",
    "EngineError",
    "Mapping",
    "PushWorld",
    "life",
    "run_seed",
]
