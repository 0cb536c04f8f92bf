"""Use that is moved: no customer of it is erased while both places would be billed, and it goes when nothing is in the way."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from engine.actors.administration import Administration, By, Wanted
from engine.core.configured import Customer
from engine.errors import Conflict
from tests.helpers.recon_place import ReconPlace

ADMIN = By("person", None)
EVENTS = "POST /v1/billing/meter_events"


@pytest.mark.parametrize("way", ["held", "in_flight"])
async def test_an_erasure_waits_for_a_move_also_while_a_push_to_the_new_place_is_under_way(
    way: str, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    place = ReconPlace(interval_us=5_000_000)
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 5)
        await place.use(meter, 3, "cus_ben")
        await trio.sleep(40)
        if way == "in_flight":
            place.stripe.add_fault("reset", EVENTS, contains="cus_ben", count=1_000, applied=False)
            await place.use(meter, 2, "cus_ben")
            await trio.sleep(10)
        place.wire.refused["cus_anna"] = "not now"
        anna = Customer(tenant_id="acme", customer_ref="cus_anna", stripe_customer_id="cus_ben")
        await Administration(meter, b"").put_customer(anna, ADMIN, Wanted(cutover="move"))
        await trio.sleep(10)
        reports = await meter.started.pusher.targets("acme")
        assert {one.target.lane.customer: one.standing for one in reports} == {
            "cus_anna": "refused",
            "cus_ben": way,
        }
        erase = meter.started.eraser.begin
        with pytest.raises(Conflict, match="is not taken back yet"):
            await erase("acme", ["cus_anna"], secret=None, actor="test", request_id=None)
        place.stripe.clear_faults()
        await trio.sleep(900)
        assert place.total("cus_anna") + place.total("cus_ben") <= 10, (
            "nothing is billed at both places"
        )
        place.wire.refused.clear()
        await meter.started.pusher.flush("acme", None, 60_000_000)
        await erase("acme", ["cus_anna"], secret=None, actor="test", request_id=None)
        await trio.sleep(40)
        wanted = 10 if way == "in_flight" else 8
        assert (place.total("cus_anna"), place.total("cus_ben")) == (0, wanted)


@pytest.mark.parametrize("way", ["gone", "used by another"])
async def test_what_was_moved_goes_as_soon_as_nothing_is_left_to_take_back_where_it_was(
    way: str,
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = ReconPlace()
    async with place.running() as meter:
        await place.map(meter)
        await place.put(meter, "eve", stripe_customer_id="cus_anna")
        await place.use(meter, 5)
        await trio.sleep(40)
        place.wire.refused["cus_anna"] = "not now"
        anna = Customer(tenant_id="acme", customer_ref="cus_anna", stripe_customer_id="cus_ben")
        await Administration(meter, b"").put_customer(anna, ADMIN, Wanted(cutover="move"))
        await trio.sleep(10)
        assert place.total("cus_ben") == 0
        if way == "gone":
            desk = meter.started.pusher
            await desk.stop(place.stripe.account, "cus_anna", "it was deleted", "stripe")
        else:
            await place.use(meter, 5, "eve")
        await trio.sleep(30)  # nobody does anything
        assert place.total("cus_ben") == 5
