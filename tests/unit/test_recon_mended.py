"""Use that went nowhere and was mended since: only what still goes nowhere is told to go there."""

from __future__ import annotations

import trio
import trio.testing

from engine.actors.administration import Administration, By, Wanted
from engine.actors.supervisor import Meter
from engine.core.configured import Customer, Cutover
from engine.core.times import INSTANT_US_END, INSTANT_US_MIN, parse_instant
from tests.helpers.recon_place import ReconPlace, causes

ADMIN = By("person", None)
EVENING = parse_instant("2026-10-31T23:45:00Z")
UNTIL_NOVEMBER_S = 900


async def mend(meter: Meter, cutover: Cutover | None) -> None:
    """The team's item is gone at Stripe: its use goes to the mapping's meter."""
    team = Customer(tenant_id="acme", customer_ref="team", stripe_customer_id="cus_team")
    await Administration(meter, b"").put_customer(team, ADMIN, Wanted(cutover=cutover))


async def begin(place: ReconPlace, meter: Meter) -> None:
    """Somebody's use is pushed, and the team's goes nowhere."""
    await place.map(meter)
    await place.use(meter, 5)
    gone = {"calls": "si_gone"}
    await place.put(meter, "team", stripe_customer_id="cus_team", subscription_items=gone)
    await place.use(meter, 10, "team")
    await place.until_looked(meter)
    assert causes(meter) == {("mapping_missing", "10")}


async def untold(meter: Meter) -> tuple[int, list[int]]:
    """(totals that a report says are waited for, micros of what it says goes nowhere)."""
    reconciler = meter.started.reconciler
    nowhere = await reconciler.nowhere("acme", INSTANT_US_MIN, INSTANT_US_END)
    waiting = await reconciler.waiting("acme", INSTANT_US_MIN, INSTANT_US_END)
    return waiting, [one.micros for one in nowhere]


async def test_what_was_moved_away_from_an_item_that_is_gone_goes_nowhere_no_longer(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = ReconPlace()
    async with place.running() as meter:
        await begin(place, meter)
        await mend(meter, "move")
        await place.until_looked(meter)
        assert place.total("cus_team") == 10
        assert causes(meter) == set(), "all of it is at Stripe"
        assert meter.started.pusher.unroutable("acme") == []
        assert await untold(meter) == (0, [])


async def test_of_use_that_is_mended_from_the_next_period_on_only_the_one_before_goes_nowhere(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = ReconPlace(start_us=EVENING, interval_us=20_000_000)
    async with place.running() as meter:
        await begin(place, meter)
        await mend(meter, None)
        await trio.sleep(UNTIL_NOVEMBER_S)
        await place.use(meter, 7, "team")
        await place.until_looked(meter)
        assert place.total("cus_team") == 7
        assert causes(meter) == {("mapping_missing", "10")}, "what november has is at Stripe"
        assert await untold(meter) == (0, [10_000_000])
