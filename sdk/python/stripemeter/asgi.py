"""ASGI middleware: every request is usage.

Rules it keeps: the app's answer is untouched and never waits for the meter in buffered mode; only `http` is metered.
It must not know any framework.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Optional, Union

from stripemeter.metering import AnyClient, meter_async
from stripemeter.quantities import Quantity

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

WHENS = ("response", "request")


class MeterMiddleware:
    """Tracks one event for each request.

    `customer`: from the scope, whose request it is; None: not metered. `quantity`: a number, or a function of scope and
    status. `when`: "response" (after an answer below 500) or "request" (before the app; the status is then 0).
    """

    def __init__(
        self,
        app: App,
        client: AnyClient,
        metric: str = "requests",
        customer: Optional[Callable[[Scope], Optional[str]]] = None,
        quantity: Union[Quantity, Callable[[Scope, int], Optional[Quantity]]] = 1,
        when: str = "response",
    ) -> None:
        if when not in WHENS:
            message = f"when must be one of {', '.join(WHENS)}, not {when!r}"
            raise ValueError(message)
        self._app = app
        self._client = client
        self._metric = metric
        self._customer = customer
        self._quantity = quantity
        self._when = when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._when == "request":
            await self._meter(scope, 0)
            await self._app(scope, receive, send)
            return
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        await self._app(scope, receive, watched)
        if 0 < status < 500:
            await self._meter(scope, status)

    async def _meter(self, scope: Scope, status: int) -> None:
        def customer() -> Optional[str]:
            if self._customer is None:
                return self._client.options.customer_id
            return self._customer(scope)

        def amount() -> Optional[Quantity]:
            quantity = self._quantity
            return quantity(scope, status) if callable(quantity) else quantity

        await meter_async(self._client, self._metric, customer, amount)
