"""Small worlds in which use is moved while what was pushed where it was can't be taken back at once.

Rules it keeps: as requests leave, both places together never hold more than was used; when what was in the way is gone,
the new place has it all. It must not know how the meter finds out that something is in the way.
"""

from __future__ import annotations

import random
from typing import Final

import msgspec
import trio

from engine.actors.administration import Administration, By, Wanted
from engine.actors.supervisor import Meter
from engine.core.configured import Customer
from tests.helpers.recount import month_of
from tests.sim.push_small import Shop, pause
from tests.sim.push_wire import EVENTS
from tests.sim.violation import Violation

ADMIN: Final = By("person", None)
TEAM_UNITS: Final = 3
LONGEST_WAIT_S: Final = 620
"""Twice the longest backoff, and a moment."""
OBSTACLES: Final = (
    "nothing",
    "use that goes nowhere",
    "refused",
    "answers are lost",
    "an outage",
    "finalized",
    "deleted",
)


class _Move:
    """One of them: from one meter to another, or from one Stripe customer to another."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.shop = Shop(rng, start="2026-10-31T19:30:00Z")
        self.shop.watched = self.shop.watch(self.shop.truth, check=self.check)
        self.shop.wire = self.shop.watched  # type: ignore[assignment]
        self.end_us = month_of(self.shop.clock.now_us())[1]
        self.is_of_mapping = rng.random() < 0.5
        self.obstacle = rng.choice(OBSTACLES)
        if self.obstacle in {"finalized", "deleted"}:
            self.is_of_mapping = False
        self.old = ("calls", "cus_anna")
        self.new = ("seats", "cus_anna") if self.is_of_mapping else ("calls", "cus_ben")
        self.is_old_gone = False

    def held(self) -> tuple[int, int]:
        """What Stripe took of the first period at the old and the new place."""
        old, new = (
            sum(
                units
                for minute, units in self.shop.minutes(customer, meter).items()
                if minute * 60_000_000 < self.end_us
            )
            for meter, customer in (self.old, self.new)
        )
        return old, new

    def check(self) -> None:
        """Nothing is billed twice, not even for a while. Raises Violation."""
        old, new = self.held()
        if (0 if self.is_old_gone else old) + new > self.shop.units:
            raise Violation(f"{old} + {new} are at Stripe, {self.shop.units} were used")

    async def move(self, meter: Meter) -> None:
        """All of the period goes to the new place."""
        administration, wanted = Administration(meter, b""), Wanted(cutover="move")
        if self.is_of_mapping:
            mapping = meter.registry.mappings["map_calls"]
            changed = msgspec.structs.replace(mapping, meter_event_name=self.new[0])
            await administration.update_mapping(changed, ADMIN, wanted)
        else:
            anna = Customer(
                tenant_id="acme", customer_ref="cus_anna", stripe_customer_id=self.new[1]
            )
            await administration.put_customer(anna, ADMIN, wanted)

    async def obstruct(self, meter: Meter) -> None:
        """Put something in the way."""
        shop = self.shop
        match self.obstacle:
            case "use that goes nowhere":
                lost = {"calls": "si_gone"}
                await shop.put(
                    meter, "team", stripe_customer_id="cus_anna", subscription_items=lost
                )
                await shop.use(meter, TEAM_UNITS, "team")
                shop.units += TEAM_UNITS
                await pause(30)
            case "answers are lost":
                is_applied = self.rng.random() < 0.5
                shop.stripe.add_fault("reset", f"POST {EVENTS}", count=1_000, applied=is_applied)
                await shop.some(meter)
                await pause(80)
            case "an outage":
                shop.stripe.add_fault("outage", "*", for_seconds=100_000)
            case "nothing":
                pass
            case _:
                shop.watched.refusals = 1_000

    async def clear_away(self, meter: Meter) -> None:
        """Take it away again."""
        shop, desk = self.shop, meter.started.pusher
        match self.obstacle:
            case "use that goes nowhere":
                team = Customer(
                    tenant_id="acme", customer_ref="team", stripe_customer_id="cus_anna"
                )
                await Administration(meter, b"").put_customer(team, ADMIN, Wanted(cutover="move"))
            case "finalized":
                await pause((self.end_us - shop.clock.now_us()) / 1e6 + 600)
                now_us = shop.clock.now_us()
                account = shop.stripe.account
                await desk.invoice_finalized(account, "cus_anna", self.end_us, now_us, "stripe")
            case "deleted":
                await desk.stop(shop.stripe.account, "cus_anna", "it was deleted", "stripe")
                self.is_old_gone = True
            case _:
                pass
        shop.watched.refusals = 0
        shop.stripe.clear_faults()

    async def go_on(self, meter: Meter, pushed: int) -> None:
        """More is used, and what was in the way is cleared away; so much was pushed before it was moved."""
        shop, rng = self.shop, self.rng
        await shop.some(meter)
        await pause(rng.choice((1, 30, 400, 3_000)))
        await shop.some(meter)
        await self.clear_away(meter)
        for _ in range(3):
            await meter.started.pusher.flush("acme", None, 60_000_000)
            await pause(rng.choice((10, 100)))
        if self.held() != self.wanted(pushed):
            await pause(LONGEST_WAIT_S)  # What was tried for long is not tried again at once.
        self.check()
        if self.held() != self.wanted(pushed):
            wanted = self.wanted(pushed)
            raise Violation(f"{self.obstacle}: {self.held()} are at Stripe, wanted was {wanted}")

    def wanted(self, pushed: int) -> tuple[int, int]:
        """What both places hold in the end, if so much was pushed to the old one before."""
        units = self.shop.units
        match self.obstacle:
            case "use that goes nowhere" if not self.is_of_mapping:
                return TEAM_UNITS, units - TEAM_UNITS
            case "finalized" if pushed:
                return pushed, 0
            case "deleted":
                return pushed, units
            case _:
                return 0, units


async def held_move(rng: random.Random) -> None:
    """Use is moved, and for a while what was pushed where it was can't be taken back; the power may be cut meanwhile."""
    move = _Move(rng)
    shop = move.shop
    pushed = 0
    with trio.CancelScope() as power:
        async with shop.running() as meter:
            await shop.map(meter)
            await shop.some(meter)
            await pause(200)
            await shop.some(meter)
            await move.obstruct(meter)
            pushed = move.held()[0]
            await move.move(meter)
            way = rng.choice(("goes on", "goes on", "stops", "power cut"))
            if way == "goes on":
                await move.go_on(meter, pushed)
                return
            await pause(rng.choice((0, 1, 30, 90)))
            if way == "power cut":
                power.cancel()
    if power.cancelled_caught:
        shop.disk.crash(rng)
    for _ in range(rng.choice((0, 0, 1))):
        async with shop.running() as meter:
            await pause(rng.choice((0, 0.1, 2, 90)))
    async with shop.running() as meter:
        await move.go_on(meter, pushed)
