"""A meter without sockets for the SDK's unit tests: an httpx transport that counts like the server and fails by script.

Rules it keeps: a key counts once; what it is told to fail is failed in the order told, then all goes well. Sync and async
alike. It must not know a client's inside.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import httpx

Script = Callable[[httpx.Request], httpx.Response | None]


class FakeMeter(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """`failures`: exceptions to raise, or statuses to answer, one a request; "lost" counts and then raises."""

    def __init__(self, *failures: Any, gate: threading.Event | None = None) -> None:
        self.failures = list(failures)
        self.gate = gate
        self.reached = threading.Event()
        """Set when a request has come as far as the gate."""
        self.counted: dict[str, Decimal] = {}
        self.events: list[dict[str, Any]] = []
        self.requests: list[httpx.Request] = []
        self.closed = 0
        self._lock = threading.Lock()

    @property
    def total(self) -> Decimal:
        return sum(self.counted.values(), Decimal(0))

    def bodies(self) -> list[bytes]:
        return [request.content for request in self.requests]

    def sent_keys(self) -> list[list[str]]:
        return [
            [event["idempotencyKey"] for event in json.loads(body)["events"]]
            for body in self.bodies()
        ]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.gate is not None:
            self.reached.set()
            assert self.gate.wait(10)
        with self._lock:
            self.requests.append(request)
            failure = self.failures.pop(0) if self.failures else None
            if isinstance(failure, int):
                return httpx.Response(failure, json={"detail": "scripted"})
            if isinstance(failure, httpx.Response):
                return failure
            if isinstance(failure, Exception):
                raise failure
            response = self._count(request)
            if failure == "lost":
                message = "the answer was lost"
                raise httpx.ReadError(message)
            return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)

    def _count(self, request: httpx.Request) -> httpx.Response:
        results = []
        for event in json.loads(request.content)["events"]:
            key = event["idempotencyKey"]
            status = "duplicate" if key in self.counted else "accepted"
            if status == "accepted":
                self.counted[key] = Decimal(event["quantity"])
                self.events.append(event)
            results.append({"idempotencyKey": key, "status": status})
        return httpx.Response(200, json={"results": results})

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1
