"""Small worlds of pushing, one for each moment at which a period could be billed again, or not at all.

Each is a shop with one metric and one customer, used at random times; what must hold is checked as requests leave
(tests.sim.push_wire) and in the end. Nothing fails in them but what they are about.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio
import trio._core._run as scheduler
import trio.testing

from engine.actors import push_conductor
from engine.actors.administration import Administration, By, Wanted
from engine.actors.push_desk import Asker, TargetReport
from engine.actors.supervisor import Meter
from engine.core.configured import Cutover
from engine.core.keeping import RestoreChange
from engine.core.push_records import BaselineChoice
from engine.core.records import PartKind, encode_control
from engine.core.times import format_instant, parse_instant
from engine.drivers.billing import StripeBilling
from gateway.simulator.ledger import Settings
from gateway.simulator.state import StripeState
from gateway.simulator.wire import Request
from tests.helpers.push_place import KEY, PushPlace
from tests.helpers.recount import month_of
from tests.helpers.simulator_wire import BASE
from tests.sim.push_books import DurableLog
from tests.sim.push_wire import EVENTS, StripeTruth, WatchedWire
from tests.sim.push_world import COURSES_MAX
from tests.sim.violation import Violation
from wal.log import Draft, DraftPart
from wal.memory_log import FakeDisk, MemoryLog
from wal.snapshot import MemorySnapshots

PERSON = Asker("person", None)
GRACE_US = 3_600_000_000
BUSY_SECONDS = 40.0
MID_MONTH = "2026-10-14T10:00:00Z"
CHOICES: tuple[BaselineChoice, ...] = ("now", "period", "stripe")


class Shop(PushPlace):
    """A meter's disks and its Stripe, which others may use too."""

    def __init__(
        self,
        rng: random.Random,
        *,
        name: str = "shop",
        stripe: StripeTruth | None = None,
        start: str = MID_MONTH,
    ) -> None:
        super().__init__(
            start_us=parse_instant(start), interval_us=rng.choice((50, 70)) * 1_000_000
        )
        self.rng, self.name = rng, name
        if stripe is not None:
            self.stripe = stripe.state
        self.truth = stripe or StripeTruth(self.stripe)
        self.ids.made = 1_000 * sum(name.encode())  # another shop's log has another id
        self.shadow: WatchedWire | None = None
        self.units = 0
        self.open_disk(self.disk)

    def open_disk(self, disk: FakeDisk) -> None:
        """Go on with what another disk holds; nothing derived comes along."""
        self.disk, self.snapshots = disk, MemorySnapshots()
        self.books = DurableLog(disk)
        self.watched = self.watch(self.truth)
        self.wire = self.watched  # type: ignore[assignment]

    def watch(self, truth: StripeTruth, check: Callable[[], None] = lambda: None) -> WatchedWire:
        """A wire of this shop's to a Stripe. `check`: what holds after every request."""
        return WatchedWire(
            truth,
            self.books,
            self.rng,
            sender=self.name,
            period_of=month_of,
            grace_us=GRACE_US,
            check=check,
        )

    def billing(self) -> dict[Any, Any]:
        """The ways to Stripe of the next meter."""
        ways: dict[Any, Any] = super().billing()
        if self.shadow is not None:
            ways["shadow"] = StripeBilling(
                KEY, api_base=BASE, meter_events_base=BASE, wire=self.shadow
            )
        return ways

    async def some(self, meter: Meter) -> int:
        """Some whole units used, some time apart; how many."""
        before = self.units
        for _ in range(self.rng.choice((1, 2, 4))):
            units = self.rng.choice((1, 5, 40))
            self.units += units
            await self.use(meter, units, ts=format_instant(self.clock.now_us() - 1_000))
            await pause(self.rng.choice((0, 1, 70, 400)))
        return self.units - before

    async def target(self, meter: Meter) -> TargetReport:
        """The newest target."""
        return (await meter.started.pusher.targets("acme"))[0]

    async def must_wait(self, meter: Meter) -> TargetReport:
        """Nothing is pushed before a person has decided."""
        before = self.watched.events
        await pause(self.rng.choice((30, 400)))
        report = await self.target(meter)
        if report.standing != "awaiting_baseline" or self.watched.events != before:
            raise Violation(f"it does not wait for a decision: {report.standing}")
        return report

    async def decide(self, meter: Meter, choice: BaselineChoice) -> None:
        """Decide a baseline that waits."""
        report = await self.must_wait(meter)
        await meter.started.pusher.decide_baseline("acme", report.id, choice, PERSON)

    async def must_hold(self, wanted: int, what: str) -> None:
        """Soon Stripe holds that many units. Raises Violation."""
        for _ in range(3):
            await pause(100)
        if self.total() != wanted:
            raise Violation(f"{what}: Stripe holds {self.total()}, due were {wanted}")


async def pause(seconds: float) -> None:
    """Let time pass; of a long time only the end is lived through."""
    if seconds > BUSY_SECONDS:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(seconds - BUSY_SECONDS)
    await trio.sleep(min(seconds, BUSY_SECONDS))


def foreign(state: StripeState, units: int, number: int) -> None:
    """What another system reports for the same customer and meter."""
    now_s = state.now_us() // 1_000_000
    body = (
        f"event_name=calls&identifier=other-{number}&timestamp={now_s}"
        f"&payload[stripe_customer_id]=cus_anna&payload[value]={units}"
    )
    assert state.handle(Request("POST", EVENTS, body=body.encode())).status == 200


def expected(choice: BaselineChoice, *, there: int, before: int, after: int) -> int:
    """What Stripe holds in the end: `there` was, `before` was used until the decision, `after` since."""
    match choice:
        case "now":
            return there + after
        case "period":
            return there + before + after
        case _:
            return max(before + after, 0)


async def late_mapping(rng: random.Random) -> None:
    """A metric is mapped in the middle of a period that another system has billed so far."""
    shop = Shop(rng)
    there = rng.choice((1, 7, 30))
    async with shop.running() as meter:
        before = await shop.some(meter)
        foreign(shop.stripe, there, 1)
        await shop.map(meter)
        await pause(20)
        before += await shop.some(meter)
        choice = rng.choice(CHOICES)
        await shop.decide(meter, choice)
        after = await shop.some(meter)
        wanted = expected(choice, there=there, before=before, after=after)
        await shop.must_hold(wanted, f"after {choice}")


async def shadow_to_live(rng: random.Random) -> None:
    """A mapping is tried out on the test account, then goes live in the middle of the period."""
    shop = Shop(rng)
    test = StripeState(
        Settings(auto_create=True, meters=("*",), seed="test", account="acct_sim_test"),
        shop.clock.now_us,
    )
    test.ensure(meters=("calls",))
    shop.shadow = shop.watch(StripeTruth(test))
    there = rng.choice((0, 0, 12))
    async with shop.running() as meter:
        shadowed = {"shadow": True, "shadow_meter_event_name": "calls", "meter_event_name": "calls"}
        await shop.map(meter, **shadowed)
        before = await shop.some(meter)
        await pause(200)
        if shop.total() or shop.watched.events:
            raise Violation("shadow mode sent something to the live account")
        if rng.random() < 0.5:
            foreign(shop.stripe, there, 1)
        else:
            there = 0
        await shop.map(meter, meter_event_name="calls")
        await pause(20)
        choice = rng.choice(CHOICES)
        sent = shop.shadow.events
        await shop.decide(meter, choice)
        after = await shop.some(meter)
        wanted = expected(choice, there=there, before=before, after=after)
        await shop.must_hold(wanted, f"after {choice}")
        if shop.shadow.events != sent:
            raise Violation("shadow mode goes on after it ended")


async def restored(rng: random.Random) -> None:
    """A backup is restored after more was used and pushed; clients send again what it lacks."""
    shop = Shop(rng)
    async with shop.running() as meter:
        await shop.map(meter)
        kept = await shop.some(meter)
        await pause(200)
        backup = dict(shop.disk.durable), shop.disk.head
        lost = await shop.some(meter)
        await pause(200)
    disk = FakeDisk()
    disk.durable, disk.head = backup
    begin_epoch(disk, shop.clock.now_us())
    shop.name = "restored"
    shop.open_disk(disk)
    held = shop.total()
    async with shop.running() as meter:
        await shop.use(meter, lost, idempotency_key="again")
        await shop.decide(meter, "stripe")
        after = await shop.some(meter)
        if held != kept + lost:
            raise Violation(f"Stripe held {held} of {kept + lost}")
        await shop.must_hold(kept + lost + after, "after a restore")


def begin_epoch(disk: FakeDisk, now_us: int) -> None:
    """As `gateway.backup` does for a restored log."""
    log = MemoryLog(disk)
    record = RestoreChange(
        previous_epoch=log.head().epoch,
        backup_position=log.head().next_sequence,
        backup_taken_at_us=now_us,
        software="sim",
        actor="cli",
    )
    number, data = encode_control(record)
    draft = Draft(number, 1, now_us, (DraftPart(PartKind.CONTROL, data),))
    log.raise_epoch(draft, max(log.head().epoch + 1, now_us // 1_000_000))


async def two_directories(rng: random.Random) -> None:
    """Two meters push for the same customer to the same meter; each knows half of the use."""
    one = Shop(rng, name="one")
    other = Shop(rng, name="other", stripe=one.truth)
    async with one.running() as first, other.running() as second:
        await one.map(first)
        total = await one.some(first)
        await pause(200)
        await other.map(second)
        total += await other.some(second)
        await other.decide(second, "period")
        for _ in range(3):
            total += await one.some(first)
            total += await other.some(second)
        await one.must_hold(total, "of two meters")


async def period_end(rng: random.Random) -> None:
    """What is used in a period's last seconds is in that period's total when its invoice is made."""
    shop = Shop(rng, start="2026-10-31T22:30:00Z")
    end_us = month_of(shop.clock.now_us())[1]
    async with shop.running() as meter:
        await shop.map(meter)
        old = await shop.some(meter)
        left = (end_us - shop.clock.now_us()) / 1e6
        await pause(max(0, left - rng.choice((0.5, 3, 40))))
        for _ in range(3):
            shop.units += 1
            old += 1
            await shop.use(meter, 1, ts=format_instant(shop.clock.now_us() - 1))
        await pause(max(0.0, (end_us - shop.clock.now_us()) / 1e6) + 100)
        new = await shop.some(meter)
        await pause(600)
        held = {True: 0, False: 0}
        for minute, units in shop.minutes().items():
            held[minute * 60_000_000 < end_us] += units
        if held != {True: old, False: new}:
            raise Violation(f"used were {old} and {new}, Stripe holds {held}")


async def cutover(rng: random.Random) -> None:
    """A metric goes to another meter: from the next period on, or now, with all of the period or what is left."""
    shop = Shop(rng, start="2026-10-31T20:00:00Z")
    end_us = month_of(shop.clock.now_us())[1]
    kind: Cutover | None = rng.choice(("move", "carry", None))
    async with shop.running() as meter:
        await shop.map(meter)
        before = await shop.some(meter)
        await pause(200)  # what was never pushed goes to the new one whole
        before += await shop.some(meter)
        mapping = msgspec.structs.replace(
            meter.registry.mappings["map_calls"], meter_event_name="seats"
        )
        by = By("person", None)
        await Administration(meter, b"").update_mapping(mapping, by, Wanted(cutover=kind))
        after = await shop.some(meter)
        await pause((end_us - shop.clock.now_us()) / 1e6 + 60)
        following = await shop.some(meter)
        await pause(300)
        wanted = {
            None: ((before + after, 0), (0, following)),
            "move": ((0, before + after), (0, following)),
            "carry": ((before, after), (0, following)),
        }[kind]
        held = [[0, 0], [0, 0]]
        for number, name in enumerate(("calls", "seats")):
            for minute, units in shop.minutes(meter=name).items():
                held[minute * 60_000_000 >= end_us][number] += units
        if tuple(map(tuple, held)) != wanted:
            raise Violation(f"{kind}: Stripe holds {held}, wanted was {wanted}")


SMALL: dict[str, Callable[[random.Random], Awaitable[None]]] = {
    "late mapping": late_mapping,
    "shadow to live": shadow_to_live,
    "restored": restored,
    "two directories": two_directories,
    "period end": period_end,
    "cutover": cutover,
}


Story = Callable[[random.Random], Awaitable[None]]


def run_small(story: Story, name: str, seed: int) -> None:
    """Run one of them. Raises Violation (perhaps in a group) when a promise did not hold."""
    state = scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    clock = trio.testing.MockClock(autojump_threshold=0)
    courses, push_conductor.COURSES_MAX = push_conductor.COURSES_MAX, COURSES_MAX  # type: ignore[misc]
    try:
        trio.run(story, random.Random(f"{name} {seed}"), clock=clock)
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = False
        scheduler._r.setstate(state)
        push_conductor.COURSES_MAX = courses  # type: ignore[misc]
