"""WSGI middleware: every request is usage.

Rules it keeps: the app's answer is untouched; an answer counts when its body is done. It must not know any framework.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Optional, Union

from stripemeter.client import StripeMeterClient
from stripemeter.metering import meter_sync
from stripemeter.quantities import Quantity

Environment = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environment, StartResponse], Iterable[bytes]]

WHENS = ("response", "request")


class MeterMiddleware:
    """Tracks one event for each request; its arguments are those of `stripemeter.asgi`, with the WSGI environment."""

    def __init__(
        self,
        app: App,
        client: StripeMeterClient,
        metric: str = "requests",
        customer: Optional[Callable[[Environment], Optional[str]]] = None,
        quantity: Union[Quantity, Callable[[Environment, int], Optional[Quantity]]] = 1,
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

    def __call__(self, environ: Environment, start_response: StartResponse) -> Iterable[bytes]:
        """One request."""
        if self._when == "request":
            self._meter(environ, 0)
            return self._app(environ, start_response)
        watched = _Watched(start_response)
        return _Body(self._app(environ, watched), lambda: self._answered(environ, watched.status))

    def _answered(self, environ: Environment, status: int) -> None:
        if 0 < status < 500:
            self._meter(environ, status)

    def _meter(self, environ: Environment, status: int) -> None:
        def customer() -> Optional[str]:
            if self._customer is None:
                return self._client.options.customer_id
            return self._customer(environ)

        def amount() -> Optional[Quantity]:
            quantity = self._quantity
            return quantity(environ, status) if callable(quantity) else quantity

        meter_sync(self._client, self._metric, customer, amount)


class _Watched:
    """start_response, and the status it was given last."""

    def __init__(self, start_response: StartResponse) -> None:
        self._start_response = start_response
        self.status = 0

    def __call__(self, status: str, *arguments: Any, **named: Any) -> Any:
        self.status = int(status[:3]) if status[:3].isdigit() else 0
        return self._start_response(status, *arguments, **named)


class _Body:
    """An answer's body; `done` is called once, when a server closes it."""

    def __init__(self, body: Iterable[bytes], done: Callable[[], None]) -> None:
        self._body = body
        self._done: Optional[Callable[[], None]] = done

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """As WSGI asks: whatever the body has to close is closed."""
        close = getattr(self._body, "close", None)
        try:
            if close is not None:
                close()
        finally:
            done, self._done = self._done, None
            if done is not None:
                done()
