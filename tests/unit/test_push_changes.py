"""What pushing looks at again: everything that was folded, once, and nothing that was not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio

from engine.actors.push_changes import PushChanges
from engine.core.push_routes import PushRoutes
from tests.gateway.test_pushes import customer, mapped, pushes, use
from tests.helpers.served import served


def group(*customers: str) -> Any:
    """A durable group of one event a customer, not folded yet."""
    part = SimpleNamespace(tenant="acme", metrics=["calls"] * len(customers), customers=customers)
    return SimpleNamespace(controls=(), parts=[part], done=trio.Event())


def changes() -> PushChanges:
    found = PushChanges(PushRoutes(), lambda *_: None, ())  # type: ignore[arg-type, return-value]
    found.mapped["acme"] = {"calls"}
    return found


async def test_what_is_fed_after_taking_is_for_the_next_time() -> None:
    those = changes()
    those.feed(group("anna"))
    taken = those.take()
    those.feed(group("bert"))
    assert [series[2] for series in taken] == ["anna"], "bert's group is not folded yet"
    assert [series[2] for series in those.take()] == ["bert"]
    assert not those


async def test_what_changed_is_folded_when_every_group_before_is_not_the_newest_alone() -> None:
    those = changes()
    first, second = group("anna"), group("bert")
    those.feed(first)
    those.feed(second)
    second.done.set()  # its shard was quicker
    assert those.unfolded() == [first]
    first.done.set()
    those.feed(group("carl"))
    assert len(those.unfolded()) == 1


async def test_one_tenants_changes_leave_the_others() -> None:
    those = changes()
    those.feed(group("anna"))
    those.add(("umbra", "calls", "carl"))
    assert [series[2] for series in those.take("umbra")] == ["carl"]
    assert [series[2] for series in those.take()] == ["anna"]


async def test_usage_that_arrives_while_others_look_is_pushed_too() -> None:
    """Each look overlaps with a group that is on its way."""
    async with served(stripe={}) as server:
        await mapped(server)
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                for _ in range(50):
                    await server.gateway.meter.started.push.look()
                    await trio.sleep(0)

            nursery.start_soon(look)
            for number in range(20):
                await customer(server, f"c{number}", stripeCustomerId=f"cus_{number}")
                await use(server, f"k{number}", 1, f"c{number}")
        with trio.fail_after(5):
            while len(await pushes(server, limit=100)) < 20:
                await trio.sleep(0.01)


async def test_whoever_stops_asking_half_way_loses_nothing() -> None:
    async with served(stripe={}) as server:
        await mapped(server)
        await customer(server)
        await use(server, "1", 1)
        with trio.CancelScope() as scope:
            scope.cancel()
            await server.gateway.meter.started.push.look()
        with trio.fail_after(5):
            while not await pushes(server):
                await trio.sleep(0.01)
