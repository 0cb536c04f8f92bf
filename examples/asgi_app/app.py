"""An ASGI application whose requests are metered by the SDK's middleware.

Any framework works the same: FastAPI, Starlette, Quart and Django are ASGI applications too.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from stripemeter import StripeMeterClient
from stripemeter.asgi import MeterMiddleware

Message = MutableMapping[str, Any]

meter = StripeMeterClient(
    os.environ.get("STRIPEMETER_URL", "http://127.0.0.1:3000"),
    "acme",
    api_key=os.environ.get("STRIPEMETER_API_KEY"),
    on_error=lambda failure: print("metering:", failure),
)


async def hello(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Say hello to everybody; end with the meter's queue empty."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        meter.close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    assert scope["type"] == "http"
    body = b"hello\n"
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def customer_of(scope: Message) -> str | None:
    """Whose request it is: here a header; in your product the session. None: it is not metered."""
    for name, value in scope["headers"]:
        if name == b"x-customer":
            return str(value.decode())
    return None


app = MeterMiddleware(hello, meter, metric="requests", customer=customer_of)
