"""Erasing where nothing is known of Stripe: what was billed is never taken back, so such an erasure is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from engine.actors.supervisor import Meter
from engine.errors import Conflict
from gateway.simulator.ledger import Settings
from gateway.simulator.state import StripeState
from tests.helpers.push_place import METERS, PushPlace
from tests.helpers.simulator_wire import SimulatorWire


class Apart(PushPlace):
    """The same disks without a way to Stripe: a command's meter (`ways` None), or a server without a key."""

    def __init__(self, place: PushPlace, ways: Mapping[Any, Any] | None) -> None:
        super().__init__()
        self.__dict__.update(vars(place))
        self.ways = ways

    def meter(self) -> Meter:
        made = super().meter()
        made._billing = self.ways
        return made


async def erase(meter: Meter, *names: str) -> dict[str, str]:
    eraser = meter.started.eraser
    begun = await eraser.begin("acme", names, secret=None, actor="test", request_id=None)
    return begun.names


@pytest.mark.parametrize("ways", [None, {}], ids=["command", "no key"])
async def test_whose_use_was_pushed_is_not_erased_where_stripe_is_not_known(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
    ways: Mapping[Any, Any] | None,
) -> None:
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter)
        await place.put(meter, "anna", stripe_customer_id="cus_shared")
        await place.put(meter, "eve", stripe_customer_id="cus_shared")
        for name in ("anna", "eve", "cus_dora", "bob"):  # nobody said who bob is at Stripe
            await place.use(meter, 3, name)
        await trio.sleep(40)
        assert (place.total("cus_shared"), place.total("cus_dora")) == (6, 3)
    async with Apart(place, ways).running() as meter:
        for names in (["anna"], ["cus_dora"], ["bob", "eve"]):
            with pytest.raises(Conflict, match="would be taken back"):
                await erase(meter, *names)
        assert list(await erase(meter, "bob")) == ["bob"]
        await trio.sleep(10)
    async with place.running() as meter:
        await trio.sleep(40)
        assert (place.total("cus_shared"), place.total("cus_dora")) == (6, 3)
        names = await erase(meter, "anna")
        await trio.sleep(40)
    async with Apart(place, ways).running() as meter:
        with pytest.raises(Conflict, match="would be taken back"):
            await erase(meter, names["anna"])  # its part of the total goes by this name
    async with place.running() as meter:
        await trio.sleep(40)
        assert place.total("cus_shared") == 6


@pytest.mark.parametrize(("ways", "is_refused"), [(None, True), ({}, False)])
async def test_a_server_that_never_pushed_erases_and_a_command_leaves_what_may_be_due(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
    ways: Mapping[Any, Any] | None,
    is_refused: bool,
) -> None:
    place = Apart(PushPlace(), ways)
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 3, "cus_dora")
        await place.use(meter, 3, "cus_dora", metric="unmapped")
        await place.use(meter, 3, "cus_zoe", metric="unmapped")
        assert list(await erase(meter, "cus_zoe")) == ["cus_zoe"]
        if is_refused:
            with pytest.raises(Conflict, match="through the running server"):
                await erase(meter, "cus_dora")
        else:
            assert list(await erase(meter, "cus_dora")) == ["cus_dora"]


async def test_what_erased_customers_had_in_an_account_is_never_pushed_to_another(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    """Of the simulator's, say, when a key is set: Stripe may know a customer of that id, and a meter of that name."""
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter)
        for name in ("anna", "eve"):
            await place.put(meter, name, stripe_customer_id="cus_shared")
            await place.use(meter, 3, name)
        await trio.sleep(40)
        await erase(meter, "anna")
        await trio.sleep(40)
        assert place.total("cus_shared") == 6
    first = place.stripe
    settings = Settings(auto_create=True, meters=("*",), account="acct_sim_of_somebody_else")
    place.stripe = StripeState(settings, place.clock.now_us)
    place.stripe.ensure(meters=METERS)
    place.wire = SimulatorWire(place.stripe)
    async with place.running() as meter:
        await trio.sleep(40)
        assert place.total("cus_shared") == 3
        assert [one.due for one in await meter.started.pusher.targets(None)] == [0]
    place.stripe, place.wire = first, SimulatorWire(first)
    async with place.running() as meter:
        await trio.sleep(40)
        assert place.total("cus_shared") == 6
        assert [one.due for one in await meter.started.pusher.targets(None)] == [0]


async def test_what_another_account_bills_and_has_not_made_final_is_not_erased_without_its_key(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With the first account's key again what is left would be less than what was billed."""
    live = Settings(auto_create=True, meters=("*",), account="acct_1", is_live=True)
    place = PushPlace(stripe=live)
    async with place.running() as meter:
        await place.map(meter)
        for name in ("anna", "eve"):
            await place.put(meter, name, stripe_customer_id="cus_shared")
            await place.use(meter, 3, name)
        await place.use(meter, 3, "bob")
        await trio.sleep(40)
        assert place.total("cus_shared") == 6
    first = place.stripe
    place.stripe = StripeState(msgspec.structs.replace(live, account="acct_2"), place.clock.now_us)
    place.stripe.ensure(meters=METERS)
    place.wire = SimulatorWire(place.stripe)
    async with place.running() as meter:
        await trio.sleep(40)
        with pytest.raises(Conflict, match="acct_1, whose key is not set"):
            await erase(meter, "anna")
        assert list(await erase(meter, "bob")) == ["bob"]
        await trio.sleep(40)
    place.stripe, place.wire = first, SimulatorWire(first)
    async with place.running() as meter:
        await trio.sleep(40)
        assert place.total("cus_shared") == 6
        with pytest.raises(Conflict, match="acct_2, whose key is not set"):
            await erase(meter, "anna")  # which was billed there, too, by now
    autojump_clock.jump(70 * 86_400)
    async with place.running() as meter:
        await trio.sleep(40)
        assert list(await erase(meter, "eve")) == ["eve"], "what is final there stays as it is"
