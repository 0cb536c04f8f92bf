"""Metering beside an app's own work, for middleware and decorators: it never breaks what it meters.

Rules it keeps: an error in the app's own functions (whose customer, what quantity), of a direct call, or in how the client
is used (a buffered async one outside of its `async with`) is told, not raised; a client whose call may wait is called off the loop. It must not know what is metered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional, Union

import anyio.to_thread

from stripemeter.async_client import AsyncStripeMeterClient
from stripemeter.client import StripeMeterClient
from stripemeter.errors import ClientClosed, InvalidEvent, QueueFull, StripeMeterError
from stripemeter.quantities import Quantity

AnyClient = Union[StripeMeterClient, AsyncStripeMeterClient]
Customer = Callable[[], Optional[str]]
Amount = Callable[[], Optional[Quantity]]


def meter_sync(client: StripeMeterClient, metric: str, customer: Customer, amount: Amount) -> None:
    """Track one event, if there is a customer and a quantity. Never raises."""
    found = _asked(client, customer, amount)
    if found is not None:
        _track(client, metric, *found)


async def meter_async(client: AnyClient, metric: str, customer: Customer, amount: Amount) -> None:
    """The same from a task; cancellation passes."""
    found = _asked(client, customer, amount)
    if found is None:
        return
    if isinstance(client, StripeMeterClient):
        options = client.options
        if options.mode == "direct" or options.backpressure == "block":
            await anyio.to_thread.run_sync(_track, client, metric, *found)
        else:
            _track(client, metric, *found)
        return
    try:
        await client.track(metric, *found)
    except Exception as error:  # noqa: BLE001 - whatever it is: the app's request must go on
        _tell(client, error)


def _asked(client: AnyClient, customer: Customer, amount: Amount) -> Optional[tuple[str, Quantity]]:
    """(customerRef, quantity), or None for what is not to be metered."""
    try:
        customer_ref, quantity = customer(), amount()
    except Exception as error:  # noqa: BLE001 - the app's function; its request must go on
        client.tell_trouble(
            "invalid", f"the app's function for customer or quantity raised {error!r}"
        )
        return None
    return None if customer_ref is None or quantity is None else (customer_ref, quantity)


def _tell(client: AnyClient, error: Exception) -> None:
    """What the client has not told itself: it tells what became of events, and raises what was wrong with a call."""
    if not isinstance(error, StripeMeterError):
        client.tell_trouble("internal", f"{type(error).__name__}: {error}")
    for kind, silent in (
        ("invalid", InvalidEvent),
        ("closed", ClientClosed),
        ("dropped", QueueFull),
    ):
        if isinstance(error, silent):
            client.tell_trouble(kind, str(error))


def _track(client: StripeMeterClient, metric: str, customer_ref: str, quantity: Quantity) -> None:
    try:
        client.track(metric, customer_ref, quantity)
    except Exception as error:  # noqa: BLE001 - as above
        _tell(client, error)
