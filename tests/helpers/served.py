"""A whole server in memory: a real meter on memory stores, the real ASGI application, an httpx client in front."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import httpx
import trio

from engine.actors.reconciler import ReconOptions
from engine.actors.supervisor import Meter, MeterOptions
from engine.config import Settings, load
from engine.drivers.billing import StripeBilling
from engine.ports import ResultT
from engine.witness.canonical import Signer
from gateway.asgi import create_asgi
from gateway.auth import Access
from gateway.context import Gateway
from gateway.measured_log import MeasuredLog
from gateway.metrics import Metrics
from gateway.simulator.ledger import Settings as SimulatorSettings
from gateway.simulator.state import StripeState
from gateway.stripe_ways import StripeWays
from tests.helpers.simulator_wire import BASE, SimulatorWire
from wal.archive import MemoryArchives
from wal.memory_cells import MemoryCells
from wal.memory_log import FakeDisk, MemoryLog
from wal.memory_runs import MemoryRuns
from wal.snapshot import MemorySnapshots

START_US = 1_769_853_600_000_000
"""2026-01-31T10:00:00Z."""
WEBHOOK_SECRET = "whsec_of_these_tests"
ADMIN_KEY = "an-administrators-key-0123456789"
PEPPER = bytes(range(32))
SIGNING_SEED = bytes(range(100, 132))


class SetClock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.us = START_US

    def now_us(self) -> int:
        self.us += 1
        return self.us

    def monotonic_us(self) -> int:
        return self.us


async def ten_times_as_fast(clock: SetClock) -> None:
    """The clock goes on, ten times as fast as the loop's, also while the machine gives its processor to others."""
    began, start_us = trio.current_time(), clock.us
    while True:
        await trio.sleep(0.01)
        clock.us = max(clock.us, start_us + int((trio.current_time() - began) * 1e7))


class CountedIds:
    """Ids that differ and can be repeated."""

    def __init__(self) -> None:
        self.made = 0

    def token(self, size_bytes: int) -> bytes:
        self.made += 1
        return blake2b(self.made.to_bytes(8, "big"), digest_size=size_bytes).digest()


async def run_inline(function: Callable[[], ResultT]) -> ResultT:
    await trio.lowlevel.checkpoint()
    return function()


@dataclass
class Served:
    """A running server and its client."""

    gateway: Gateway
    client: httpx.AsyncClient
    clock: SetClock
    disk: FakeDisk
    stripe: StripeState | None = None
    """The Stripe simulator that it pushes to."""

    async def key(self, tenant: str, *scopes: str, **more: Any) -> str:
        """The text of a new API key."""
        response = await self.client.post(
            "/v1/admin/api-keys",
            json={"name": "test", "tenantId": tenant, "scopes": scopes, **more},
            headers=bearer(ADMIN_KEY),
        )
        assert response.status_code == 201, response.text
        return str(response.json()["key"])

    async def ingest(self, *events: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """Send events and return the answer's body."""
        response = await self.client.post(
            "/v1/events/ingest", json={"events": list(events)}, **more
        )
        assert response.status_code == 200, response.text
        return dict(response.json())


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def settings_of(**environ: str) -> Settings:
    """Settings of a test: auth off unless it says otherwise."""
    return load({f"STRIPEMETER_{name.upper()}": value for name, value in environ.items()}, None, {})


def memory_gateway(settings: Settings, disk: FakeDisk | None = None) -> tuple[Gateway, SetClock]:
    """A gateway whose meter is not running yet."""
    clock = SetClock()
    meter = Meter(
        MeterOptions(
            software="test",
            shards=3,
            lateness_us=settings.lateness_us,
            late_policy=settings.late_policy,
            snapshot_every_events=1_000_000,
            push_interval_us=settings.push_interval_us,
            reconcile=ReconOptions(
                interval_us=settings.reconcile_interval_us,
                lag_us=settings.reconcile_lag_us,
                epsilon=settings.epsilon,
            ),
            verify=True,
        ),
        log=MeasuredLog(MemoryLog(disk)),
        runs=MemoryRuns(),
        cells=MemoryCells(),
        snapshots=MemorySnapshots(),
        archives=MemoryArchives(),
        clock=clock,
        ids=CountedIds(),
        run_blocking=run_inline,
    )
    access = Access(meter, PEPPER, required=settings.auth_required, admin_key=settings.admin_key)
    signer = Signer(SIGNING_SEED)
    return Gateway(meter, settings, access, Metrics(meter), clock, signer=signer), clock


@asynccontextmanager
async def client_of(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """A client that talks to the application directly."""
    transport = httpx.ASGITransport(app=create_asgi(gateway), raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:3000") as client:
        yield client


def simulated(gateway: Gateway, clock: SetClock, **settings: Any) -> StripeState:
    """Connect a gateway that does not run yet to a Stripe simulator in process, by the real driver."""
    made = SimulatorSettings(**{"auto_create": True, "meters": ("calls", "other"), **settings})
    stripe = StripeState(made, clock.now_us)
    driver = StripeBilling(
        "sk_test_of_these_tests", api_base=BASE, meter_events_base=BASE, wire=SimulatorWire(stripe)
    )
    gateway.meter.connect({"main": driver})
    gateway.ways = StripeWays({"main": driver}, BASE, (WEBHOOK_SECRET,))
    return stripe


@asynccontextmanager
async def served(*, stripe: dict[str, Any] | None = None, **environ: str) -> AsyncIterator[Served]:
    """A server that is ready; `auth="required"` also sets the administrator's key.

    `stripe`: settings of a Stripe simulator in process that it pushes to; None: it pushes nowhere.
    """
    if environ.get("auth") == "required":
        environ.setdefault("admin_key", ADMIN_KEY)
    disk = FakeDisk()
    if stripe is not None:
        environ.setdefault("push_interval_seconds", "0.01")
    gateway, clock = memory_gateway(settings_of(**environ), disk)
    state = None if stripe is None else simulated(gateway, clock, **stripe)
    ready, done = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.meter.run, done.wait, ready.set)
        await ready.wait()
        async with client_of(gateway) as client:
            yield Served(gateway, client, clock, disk, state)
        done.set()
