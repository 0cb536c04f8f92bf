"""`@metered`: a function whose calls are usage.

Rules it keeps: what the function returns or raises is untouched; a call that raises is not metered; metering that fails
does not fail the call (in direct mode too: it is told to `on_error`). It must not know HTTP.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Optional, TypeVar, Union

from stripemeter.async_client import AsyncStripeMeterClient
from stripemeter.client import StripeMeterClient
from stripemeter.metering import meter_async, meter_sync
from stripemeter.quantities import Quantity

Function = TypeVar("Function", bound=Callable[..., Any])


def metered(
    client: Union[StripeMeterClient, AsyncStripeMeterClient],
    metric: str,
    *,
    customer: Union[str, Callable[..., Optional[str]], None] = None,
    quantity: Union[Quantity, Callable[[Any], Optional[Quantity]]] = 1,
) -> Callable[[Function], Function]:
    """Meter each call that returns.

    `customer`: a customerRef, or a function of the call's arguments that gives it (None: not metered); without it the
    client's `customer_id`. `quantity`: a number, or a function of the result that gives it (None: not metered).
    Raises TypeError for a plain function with an async client, which it could not wait for.
    """

    def decorate(function: Function) -> Function:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def metered_async(*args: Any, **kwargs: Any) -> Any:
                result = await function(*args, **kwargs)
                await meter_async(
                    client, metric, lambda: _customer(args, kwargs), lambda: _quantity(result)
                )
                return result

            return metered_async  # type: ignore[return-value]
        if isinstance(client, AsyncStripeMeterClient):
            message = "a plain function needs a StripeMeterClient: it can't wait for an async one"
            raise TypeError(message)

        @functools.wraps(function)
        def metered_sync(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            meter_sync(client, metric, lambda: _customer(args, kwargs), lambda: _quantity(result))
            return result

        return metered_sync  # type: ignore[return-value]

    def _customer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Optional[str]:
        if callable(customer):
            return customer(*args, **kwargs)
        return client.options.customer_id if customer is None else customer

    def _quantity(result: Any) -> Optional[Quantity]:
        return quantity(result) if callable(quantity) else quantity

    return decorate
