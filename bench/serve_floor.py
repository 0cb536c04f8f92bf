"""The server with an ingest that reads the body and answers, and does nothing: what HTTP alone costs. Not for use.

Run like the command: `python bench/serve_floor.py serve ...`; `bench/floor.py` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gateway.main
from gateway.cli.main import main
from gateway.context import Gateway
from gateway.table import INGEST_PATH

ANSWER = (
    b'{"accepted":1,"duplicates":0,"requestId":"req_000000000000000000000000",'
    b'"results":[{"idempotencyKey":"0123456789ab-0-123456","status":"accepted"}],"errors":[]}'
)
HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(ANSWER)),
    (b"x-request-id", b"req_000000000000000000000000"),
]


def floor_of(create_asgi: Callable[[Gateway], Any]) -> Callable[[Gateway], Any]:
    """The application with its ingest replaced; everything else (readiness, metrics) is the real one's."""

    def create(gateway: Gateway) -> Any:
        real = create_asgi(gateway)

        async def application(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http" or scope["path"] != INGEST_PATH:
                await real(scope, receive, send)
                return
            while (await receive()).get("more_body"):
                pass
            gateway.metrics.ingested("floor", 1)
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": ANSWER})

        return application

    return create


if __name__ == "__main__":
    gateway.main.create_asgi = floor_of(gateway.main.create_asgi)  # type: ignore[attr-defined,assignment]
    main()
