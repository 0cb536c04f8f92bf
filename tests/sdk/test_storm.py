"""Whatever goes wrong on the way, the server's total is what was tracked: seeded storms, many threads, many tasks."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest

from stripemeter import AsyncStripeMeterClient, Failure, StripeMeterClient
from tests.helpers.sdk_place import Place, place

pytestmark = pytest.mark.slow
OPTIONS: dict[str, Any] = {
    "flush_interval_seconds": 0.05,
    "retry_seconds_first": 0.005,
    "retry_seconds_max": 0.1,
    "timeout_seconds": 5.0,
    "backpressure": "block",
    "block_seconds_max": 60.0,
}
THREADS = 8
FLUSH_SECONDS = 120


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def track_from_threads(client: StripeMeterClient, seed: int, events: int) -> Decimal:
    """Track so many events from THREADS threads; the sum of what was tracked."""
    sums: list[Decimal] = []

    def work(number: int) -> None:
        rng = random.Random(seed + number)
        micros = 0
        for _ in range(events // THREADS):
            drawn = rng.randrange(1, 5_000_000)
            micros += drawn
            client.track("calls", "cora", Decimal(drawn).scaleb(-6))
        sums.append(Decimal(micros).scaleb(-6))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sums) == THREADS
    return sum(sums, Decimal(0))


def check_storm(here: Place, tenant: str, seed: int, events: int, **options: Any) -> None:
    told: list[Failure] = []
    here.fail([])
    here.storm(seed, share=0.3)
    with StripeMeterClient(
        here.proxy, tenant, on_error=told.append, **{**OPTIONS, **options}
    ) as client:
        tracked = track_from_threads(client, seed, events)
        assert client.flush(FLUSH_SECONDS)
        statistics = client.statistics()
    here.calm()
    assert told == []
    assert statistics.tracked == statistics.accepted + statistics.duplicates == events
    assert statistics.retries > 0
    assert Decimal(here.total(tenant, "cora", "calls")) == tracked


def test_eight_threads_in_a_storm_with_a_spool_are_counted_exactly(
    here: Place, seed: int, tmp_path: Path
) -> None:
    check_storm(
        here, f"spool-{seed}", seed, 4_000, batch_events_max=100, spool=tmp_path / "spool.db"
    )


def test_a_hundred_thousand_events_from_eight_threads_in_a_storm_are_counted_exactly(
    here: Place, seed: int
) -> None:
    check_storm(here, f"large-{seed}", seed, 100_000)


@pytest.mark.soak
def test_a_hundred_thousand_events_without_faults_are_counted_exactly(
    here: Place, seed: int
) -> None:
    tenant = f"calm-{seed}"
    here.fail([])
    with StripeMeterClient(here.server, tenant, queue_events_max=200_000) as client:
        tracked = track_from_threads(client, seed, 100_000)
        assert client.flush(FLUSH_SECONDS)
        assert client.statistics().accepted == 100_000
    assert Decimal(here.total(tenant, "cora", "calls")) == tracked


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_many_tasks_in_a_storm_are_counted_exactly(here: Place, seed: int, backend: str) -> None:
    tenant, told = f"{backend}-{seed}", list[Failure]()
    here.fail([])
    here.storm(seed, share=0.3)

    async def work(client: AsyncStripeMeterClient) -> None:
        for _ in range(250):
            await client.track("calls", "cora", "0.1")
            await anyio.sleep(0)

    async def main() -> None:
        async with AsyncStripeMeterClient(
            here.proxy, tenant, on_error=told.append, batch_events_max=50, **OPTIONS
        ) as client:
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(work, client)
            assert await client.flush(FLUSH_SECONDS)
            assert client.statistics().retries > 0

    anyio.run(main, backend=backend)
    here.calm()
    assert told == []
    assert here.total(tenant, "cora", "calls") == "200"


@pytest.mark.parametrize("mode", ["direct", "buffered"])
def test_a_server_that_is_away_costs_bounded_memory_and_few_requests(
    here: Place, mode: str
) -> None:
    told: list[Failure] = []
    here.fail([{"kind": "reset_before", "times": 100_000}])
    client = StripeMeterClient(
        here.proxy,
        f"away-{mode}",
        mode=mode,
        on_error=told.append,
        queue_events_max=1000,
        flush_interval_seconds=0.01,
        attempts_max=3,
        retry_seconds_first=0.05,
        retry_seconds_max=0.2,
    )
    began, calls = time.monotonic(), 0
    while time.monotonic() - began < 1:
        calls += 1
        try:
            client.track("calls", "cora", 1)
        except Exception as error:
            assert mode == "direct", error
    assert client.statistics().queued <= 1500
    assert len(here.seen()) < 40, "backoff, not a hot loop"
    here.calm()
    assert client.flush(10)
    accepted, dropped = client.statistics().accepted, client.statistics().dropped
    assert accepted + dropped + client.statistics().rejected == calls
    assert sum(len(failure.events) for failure in told) == calls - accepted
    assert here.total(f"away-{mode}", "cora", "calls") == str(accepted)
    client.close()
