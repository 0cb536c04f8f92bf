"""The pusher end to end in memory: what is used reaches the simulator once, whatever happens in between."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.helpers.push_place import PushPlace


@pytest.fixture
def clock(autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    return autojump_clock


async def test_what_is_used_reaches_stripe_by_differences(clock: trio.testing.MockClock) -> None:
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 3)
        await trio.sleep(120)
        assert place.total() == 3
        await place.use(meter, "4.5")
        await trio.sleep(120)
        assert place.total() == 7
        await place.use(meter, "0.5")
        await trio.sleep(120)
        assert place.total() == 8
        (report,) = await meter.started.pusher.targets("acme")
        assert (report.billable, report.pushed, report.due, report.standing) == (8, 8, 0, "current")
