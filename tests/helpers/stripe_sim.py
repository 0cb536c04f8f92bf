"""The Stripe simulator for tests: in process with a clock that only a test moves, or served on a free port.

Rules it keeps: 127.0.0.1 only; what a test asks for is what a Stripe client would send. It must not know what is tested.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import trio

from gateway.simulator.ledger import Settings, World
from gateway.simulator.serving import Simulator, serve_simulator
from gateway.simulator.state import StripeState
from gateway.simulator.wire import Request, Response
from gateway.system import SystemClock

START_S = 1_780_272_000
"""2026-06-01T00:00:00Z, a minute, an hour, a day and a month begin."""
LEGACY = "2025-02-24.acacia"


class Sim:
    """One simulated Stripe in process. `sent` has the requests that a journal would keep."""

    def __init__(self, world: World | None = None, **settings: Any) -> None:
        self.time_us = START_S * 1_000_000
        self.settings = Settings(**{"seed": "test", **settings})
        self.state = StripeState(self.settings, lambda: self.time_us, world)
        self.journal: list[tuple[int, Request]] = []

    @property
    def now_s(self) -> int:
        return self.time_us // 1_000_000

    def wait(self, seconds: float) -> None:
        """Let time go by."""
        self.time_us += int(seconds * 1_000_000)

    def send(self, request: Request) -> Response:
        """One request, noted as a journal would."""
        call = self.state.begin(request)
        if call.is_changed:
            self.journal.append((call.now_us, request))
        self.state.finish(call)
        return call.response

    def post(
        self,
        path: str,
        fields: Any = (),
        *,
        key: str = "",
        account: str = "",
        version: str = "",
        token: str = "",
    ) -> Response:
        """A POST: a form for v1, JSON for everything else."""
        headers = _headers(key, account, version, token)
        fields = dict(fields)
        body = (
            urlencode(fields).encode() if path.startswith("/v1/") else msgspec.json.encode(fields)
        )
        return self.send(Request("POST", path, headers=headers, body=body))

    def get(self, path: str, fields: Any = (), *, account: str = "", version: str = "") -> Response:
        """A GET."""
        headers = _headers("", account, version, "")
        return self.send(Request("GET", path, urlencode(dict(fields)), headers))

    def delete(self, path: str, fields: Any = ()) -> Response:
        """A DELETE."""
        return self.send(Request("DELETE", path, urlencode(dict(fields)), _headers("", "", "", "")))

    def made(self, path: str, fields: Any = (), **more: Any) -> Any:
        """What a POST made; it must succeed."""
        response = self.post(path, fields, **more)
        assert response.status == 200, response.body
        return response.json()

    def fault(self, kind: str, endpoint: str = "*", **more: Any) -> str:
        """Put a fault in force."""
        fields = {"kind": kind, "endpoint": endpoint, **more}
        made: str = self.made("/_sim/faults", fields)["id"]
        return made

    def meter(self, event_name: str = "calls", formula: str = "sum", **more: str) -> Any:
        """A meter."""
        fields = {"event_name": event_name, "display_name": event_name, **more}
        fields["default_aggregation[formula]"] = formula
        return self.made("/v1/billing/meters", fields)

    def customer(self, **fields: str) -> str:
        """A customer's id."""
        made: str = self.made("/v1/customers", fields)["id"]
        return made

    def event(
        self,
        customer: str,
        value: int | str,
        identifier: str = "",
        event_name: str = "calls",
        timestamp: int | None = None,
        **more: Any,
    ) -> Response:
        """A meter event of now, or of `timestamp`."""
        fields: dict[str, Any] = {
            "event_name": event_name,
            "payload[value]": value,
            "payload[stripe_customer_id]": customer,
        }
        if identifier:
            fields["identifier"] = identifier
        if timestamp is not None:
            fields["timestamp"] = timestamp
        return self.post("/v1/billing/meter_events", fields, **more)

    def total(
        self,
        meter: Any,
        customer: str,
        start_s: int = START_S - 86_400 * 40,
        end_s: int = START_S + 86_400 * 400,
        **more: Any,
    ) -> float:
        """What a summary says."""
        path = f"/v1/billing/meters/{meter['id']}/event_summaries"
        fields = {"customer": customer, "start_time": start_s, "end_time": end_s}
        response = self.get(path, fields, **more)
        assert response.status == 200, response.body
        value: float = response.json()["data"][0]["aggregated_value"]
        return value


def message(response: Response) -> str:
    """What a refusal says."""
    text: str = response.json()["error"]["message"]
    return text


def code(response: Response) -> str | None:
    """Stripe's error code, None without one."""
    found: str | None = response.json()["error"].get("code")
    return found


def _headers(key: str, account: str, version: str, token: str) -> dict[str, str]:
    headers = {"authorization": f"Bearer {token or 'sk_test_secret'}"}
    if key:
        headers["idempotency-key"] = key
    if account:
        headers["stripe-account"] = account
    if version:
        headers["stripe-version"] = version
    return headers


@asynccontextmanager
async def served_simulator(directory: Path, **settings: Any) -> AsyncIterator[Simulator]:
    """A simulator on a free port of 127.0.0.1, in this process, until the block ends."""
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[Simulator]) -> None:
            await serve_simulator(
                directory,
                "127.0.0.1",
                0,
                Settings(**{"seed": "test", **settings}),
                now_us=SystemClock().now_us,
                fresh_seed=lambda: secrets.token_hex(8),
                task_status=task_status,
            )

        yield await nursery.start(serve)
        nursery.cancel_scope.cancel()
