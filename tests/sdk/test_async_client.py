"""The client for tasks: what differs from the one for threads: its loop, its task group, cancellation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from stripemeter import AsyncStripeMeterClient, ClientClosed, Failure, QueueFull, RequestRefused
from tests.sdk.fake_meter import FakeMeter

URL = "http://meter.invalid"
HELD: dict[str, Any] = {
    "flush_interval_seconds": 3600.0,
    "retry_seconds_first": 0.001,
    "retry_seconds_max": 0.002,
}
both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def client(meter: FakeMeter, **options: Any) -> AsyncStripeMeterClient:
    return AsyncStripeMeterClient(URL, "acme", transport=meter, **{**HELD, **options})


@both
def test_an_app_that_is_cancelled_still_flushes(backend: str) -> None:
    meter = FakeMeter(503, "lost")

    async def main() -> None:
        with anyio.move_on_after(0.05) as scope:
            async with client(meter) as sdk:
                for _ in range(5):
                    await sdk.track("calls", "cora", 1)
                await anyio.sleep_forever()
        assert scope.cancelled_caught

    anyio.run(main, backend=backend)
    assert meter.total == 5
    assert meter.closed == 1


@both
def test_the_apps_own_error_goes_on_as_it_came(backend: str) -> None:
    meter = FakeMeter()

    async def main() -> None:
        async with client(meter) as sdk:
            await sdk.track("calls", "cora", 1)
            message = "the app's own"
            raise LookupError(message)

    with pytest.raises(LookupError, match="the app's own"):
        anyio.run(main, backend=backend)
    assert meter.total == 1


@both
def test_a_meter_that_is_away_holds_up_the_end_by_its_bound_alone(backend: str) -> None:
    told: list[Failure] = []
    meter = FakeMeter(*[httpx.ConnectError("down")] * 10_000)

    async def main() -> None:
        with anyio.fail_after(5):
            async with client(meter, on_error=told.append, close_seconds_max=0.1) as sdk:
                await sdk.track("calls", "cora", 1)
                assert await sdk.flush(0.05) is False
                assert await sdk.close() is False
                assert await sdk.close() is False

    anyio.run(main, backend=backend)
    assert [(failure.kind, len(failure.events)) for failure in told] == [("closed", 1)]


async def test_buffered_mode_without_its_block_says_what_it_needs() -> None:
    sdk = client(FakeMeter())
    with pytest.raises(RuntimeError, match="async with"):
        await sdk.track("calls", "cora", 1)
    assert await sdk.close() is True


async def test_direct_mode_needs_no_block_and_answers_questions() -> None:
    meter = FakeMeter("lost", httpx.ConnectError("down"))
    sdk = client(meter, mode="direct")
    assert (await sdk.track("calls", "cora", 2)).status == "duplicate"
    assert sdk.statistics().retries == 2
    meter.failures = [503, httpx.Response(200, json={"metrics": []})]
    assert await sdk.get_usage("cora") == {"metrics": []}
    meter.failures = [403]
    with pytest.raises(RequestRefused):
        await sdk.get_events()
    await sdk.close()
    with pytest.raises(ClientClosed):
        await sdk.track("calls", "cora", 1)
    with pytest.raises(ClientClosed):
        await sdk.get_usage("cora")


@both
def test_a_spool_works_for_tasks_too(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    down = FakeMeter(*[httpx.ConnectError("down")] * 10_000)
    meter = FakeMeter()

    async def main() -> None:
        async with client(down, spool=path, close_seconds_max=0.05) as sdk:
            for _ in range(5):
                await sdk.track("calls", "cora", 1)
        async with client(meter, spool=path, spool_lease_seconds=0.1) as sdk:
            assert await sdk.flush(5)
            await sdk.track("calls", "cora", 1)
            await anyio.sleep(0.1)  # renewed, and a checkpoint in a thread

    anyio.run(main, backend=backend)
    assert meter.total == 6


async def test_what_is_no_batch_is_told_and_breaks_nothing() -> None:
    told: list[Failure] = []
    wrong: Any = 7
    async with client(FakeMeter(), on_error=told.append) as sdk:
        assert [one.status for one in (await sdk.track_batch(wrong)).results] == ["refused"]
        assert [one.status for one in (await sdk.track_batch([{"metric": "m"}])).results] == [
            "refused"
        ]
    assert [failure.kind for failure in told] == ["invalid", "invalid"]


async def test_a_client_in_the_child_of_a_fork_has_nothing_of_its_parents() -> None:
    meter = FakeMeter()
    sdk = client(meter)
    async with sdk:
        mine = (await sdk.track("calls", "cora", 1)).idempotency_key
    child = client(meter)
    child.begin_after_fork()
    async with child:
        theirs = (await child.track("calls", "cora", 1)).idempotency_key
        assert child.statistics().tracked == 1
    assert theirs.rpartition("-")[0] != mine.rpartition("-")[0]
    assert meter.total == 2


async def test_block_waits_for_room_and_raise_says_that_there_is_none() -> None:
    meter = FakeMeter(*[httpx.ConnectError("down")] * 3)
    async with client(
        meter, backpressure="block", queue_events_max=2, batch_events_max=1
    ) as patient:
        for _ in range(10):
            assert (await patient.track("calls", "cora", 1)).status == "queued"
        assert await patient.flush(5)
    meter.failures = [httpx.ConnectError("down")] * 10_000
    told: list[Failure] = []
    async with client(
        meter,
        backpressure="block",
        block_seconds_max=0.02,
        queue_events_max=1,
        close_seconds_max=0,
        on_error=told.append,
    ) as hurried:
        statuses = [(await hurried.track("calls", "cora", 1)).status for _ in range(4)]
    assert "refused" in statuses
    assert {failure.kind for failure in told} == {"dropped", "closed"}
    async with client(
        meter, backpressure="raise", queue_events_max=1, close_seconds_max=0, on_error=told.append
    ) as strict:
        with pytest.raises(QueueFull):
            await strict.track_batch([{"metric": "m", "customer_ref": "c", "quantity": 1}] * 4)
    assert meter.total == 10
