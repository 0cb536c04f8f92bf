"""What pushing looks at again: everything that was folded, once, and nothing that was not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio
import trio.testing

from engine.actors.push_changes import PushChanges
from engine.actors.pusher import SERIES_PER_SLICE
from engine.core.push_routes import PushRoutes
from tests.gateway.test_pushes import customer, mapped, pushes, use
from tests.helpers.pushing import mapped as mapping_of
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


def test_a_start_takes_metrics_in_the_same_order_in_every_process() -> None:
    """Who is seen first may own a Stripe customer: a set's order would make another owner of another process."""
    those = changes()
    routes = those._routes
    for number in (7, 3, 11, 1, 8, 2, 10, 5):
        routes.fold(mapping_of(metric=f"metric-{number}", tenant_id=f"tenant-{number % 3}"))
    those.map_everything()
    assert list(those._scans) == sorted(routes.metrics())
    assert len(those._scans) == 8


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
        with trio.fail_after(60):
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
        with trio.fail_after(60):
            while not await pushes(server):
                await trio.sleep(0.01)


def taking(server: Any) -> list[float]:
    """From now on: when each series is taken in, in the loop's time."""
    push, times = server.gateway.meter.started.push, list[float]()
    take = push._take

    def noted(series: Any) -> None:
        times.append(trio.current_time())
        take(series)

    push._take = noted
    return times


async def filled(server: Any) -> None:
    """Forty customers with usage, all pushed; then all of them have more."""
    await mapped(server)
    for number in range(40):
        await customer(server, f"c{number}", stripeCustomerId=f"cus_{number}")
        await use(server, f"k{number}", 1, f"c{number}")
    await trio.sleep(5)
    times = taking(server)
    await trio.sleep(3)
    assert not times, "nothing changed"
    await server.ingest(
        *(
            {"tenantId": "acme", "metric": "calls", "customerRef": f"c{n}", "quantity": 1}
            | {"idempotencyKey": f"more-{n}"}
            for n in range(40)
        )
    )


async def test_what_changed_together_is_taken_in_over_a_tenth_of_the_interval(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with served(stripe={}, push_interval_seconds="20") as server:
        await filled(server)
        times = taking(server)
        await trio.sleep(5)
        assert len(times) == 40, "each once"
        assert 1.5 < times[-1] - times[0] <= 2.0
        assert times[-1] <= autojump_clock.current_time()
        at_once = max(times.count(each) for each in times)
        assert at_once <= SERIES_PER_SLICE


async def test_whoever_asks_does_not_wait_for_what_is_taken_in_slowly(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with served(stripe={}, push_interval_seconds="20") as server:
        await filled(server)
        times = taking(server)
        while len(times) < 8:
            await trio.sleep(0.05)
        asked = autojump_clock.current_time()
        await server.gateway.meter.started.push.look()
        assert len(times) == 40
        assert autojump_clock.current_time() - asked < 0.1
