"""The ways to Stripe of a running server: the keys' drivers, or the built-in simulator in their place.

Rules it keeps: with the simulator in use no key leaves this machine, whichever is set; the simulator's state lies in
the data directory and its listener on the loopback interface. Stripe itself, or whatever stands at its address, is
spoken with by a process of its own. It must not know what is pushed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import trio

from engine.config import Settings
from engine.core.billing import Destination, Resolved, Unresolved
from engine.core.push_records import Role
from engine.drivers.billing import StripeBilling
from engine.drivers.calls import API_BASE, METER_EVENTS_BASE
from engine.drivers.frames import Way
from engine.drivers.remote import StripeProcess
from engine.errors import StartRefused
from engine.ports import Billing, Clock, Ids
from gateway.simulator.journal import SimulatorRefused
from gateway.simulator.ledger import Settings as SimulatorSettings
from gateway.simulator.serving import Simulator, serve_simulator

SIMULATOR_HOST: Final = "127.0.0.1"
SIMULATOR_PORT: Final = 12111
SIMULATOR_KEY: Final = "sk_test_simulator"
_SERVER_PORT: Final = 3000


class SimulatedBilling(StripeBilling):
    """The way to the built-in simulator: meters that mappings name are made there, so that nothing needs setting up."""

    def __init__(self, simulator: Simulator) -> None:
        url = simulator.base_url
        super().__init__(SIMULATOR_KEY, api_base=url, meter_events_base=url)
        self._simulator = simulator

    async def resolve(self, destination: Destination) -> Resolved | Unresolved:
        """See the port."""
        if destination.event_name is not None and destination.connect_account is None:
            self._simulator.ensure(meters=(destination.event_name,))
        return await super().resolve(destination)


class StripeWays(NamedTuple):
    """What a server pushes through."""

    billing: dict[Role, Billing]
    simulator_url: str | None
    """Where the built-in simulator and its page are; None: it is not in use."""
    webhook_secrets: tuple[str, ...]
    process: StripeProcess | None = None
    """The one that speaks with Stripe; None: this one does."""


@asynccontextmanager
async def open_ways(
    settings: Settings, directory: Path, clock: Clock, ids: Ids
) -> AsyncIterator[StripeWays]:
    """The ways that the settings ask for, until the block ends. Raises StartRefused."""
    async with AsyncExitStack() as stack:
        if settings.uses_simulator:
            nursery = await stack.enter_async_context(trio.open_nursery())
            secret = f"whsec_{ids.token(16).hex()}"
            simulator = await _start_simulator(nursery, settings, directory, clock, ids, secret)
            simulated = await stack.enter_async_context(SimulatedBilling(simulator))
            secrets = (secret, *settings.stripe_webhook_secrets)
            yield StripeWays({"main": simulated}, simulator.base_url, secrets)
            nursery.cancel_scope.cancel()
            return
        ways = _ways_of(settings)
        billing: dict[Role, Billing] = {}
        process: StripeProcess | None = None
        if ways and settings.stripe_process != "off":
            process = StripeProcess({str(role): way for role, way in ways.items()})
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(process.run)
            stack.callback(nursery.cancel_scope.cancel)
            billing |= {role: process.billing(role) for role in ways}
        else:
            for role, way in ways.items():
                driver = StripeBilling(
                    way.secret, api_base=way.api_base, meter_events_base=way.meter_events_base
                )
                billing[role] = await stack.enter_async_context(driver)
        yield StripeWays(billing, None, settings.stripe_webhook_secrets, process)


def _ways_of(settings: Settings) -> dict[Role, Way]:
    """The keys that are set."""
    keys: tuple[tuple[Role, str | None], ...] = (
        ("main", settings.stripe_secret_key),
        ("shadow", settings.stripe_test_secret_key),
    )
    api_base = settings.stripe_api_base or API_BASE
    meter_events_base = settings.stripe_meter_events_base or METER_EVENTS_BASE
    return {role: Way(key, api_base, meter_events_base) for role, key in keys if key is not None}


async def _start_simulator(  # noqa: PLR0917 - what a listener is made of
    nursery: trio.Nursery,
    settings: Settings,
    directory: Path,
    clock: Clock,
    ids: Ids,
    secret: str,
) -> Simulator:
    """On its usual port for the usual server, else on a free one: several may run on a machine."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    made = SimulatorSettings(
        auto_create=True,
        meters=("*",),
        webhook_url=f"http://{host}:{settings.port}/v1/webhooks/stripe" if settings.port else None,
        webhook_secret=secret,
    )
    ports = (SIMULATOR_PORT, 0) if settings.port == _SERVER_PORT else (0,)
    for port in ports:
        serve = partial(
            serve_simulator,
            directory,
            SIMULATOR_HOST,
            port,
            made,
            now_us=clock.now_us,
            fresh_seed=lambda: ids.token(8).hex(),
        )
        try:
            return await _started(nursery, serve)
        except SimulatorRefused as error:
            if port == ports[-1]:
                raise StartRefused(str(error)) from error
    raise AssertionError("the last port was either had or refused")


async def _started(nursery: trio.Nursery, serve: Callable[..., Awaitable[object]]) -> Simulator:
    """Start it; what it raises before it has started comes out as it is, not in a group."""
    try:
        started: Simulator = await nursery.start(serve)
    except BaseExceptionGroup as group:
        refused, others = group.split(SimulatorRefused)
        if refused is None or others is not None:
            raise
        first: BaseException = refused
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    return started
