"""The two HTTP interfaces that the demo speaks: the meter's and Stripe's, the latter with the simulator's controls.

Rules it keeps: numbers are exact, never floats; an answer that is not the expected one ends the story with what was
said. It must not know the story.
"""

from __future__ import annotations

import json
import time
from decimal import Decimal
from typing import Any, Final, NamedTuple

import httpx

from gateway.demo.processes import DemoFailed, wait_until

SECONDS_MAX: Final = 40.0
RUN_SECONDS_MAX: Final = 30.0
API_VERSION: Final = "2026-10-28.endive"
METER_EVENTS: Final = ("POST", "/v1/billing/meter_events")
Json = dict[str, Any]


class Answered(NamedTuple):
    """An answer's body, and how long it took."""

    body: Any
    milliseconds: int


class _Wire:
    """One server."""

    def __init__(self, url: str, headers: dict[str, str], *, by_proxy: bool = False) -> None:
        self.url = url
        self._client = httpx.Client(
            base_url=url, headers=headers, timeout=SECONDS_MAX, trust_env=by_proxy
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _ask(self, method: str, path: str, **more: Any) -> Answered:
        begun = time.monotonic()
        try:
            response = self._client.request(method, path, **more)
        except httpx.HTTPError as error:
            message = f"{method} {self.url}{path}: {type(error).__name__} {error}"
            raise DemoFailed(message) from error
        milliseconds = int((time.monotonic() - begun) * 1000)
        if not response.is_success:
            message = f"{method} {path} answers {response.status_code}: {response.text[:500]}"
            raise DemoFailed(message)
        return Answered(json.loads(response.text, parse_float=Decimal), milliseconds)


class MeterWire(_Wire):
    """The meter, as an app of one tenant uses it."""

    def __init__(self, url: str, tenant: str) -> None:
        super().__init__(url, {})
        self._tenant = tenant

    def is_ready(self) -> bool:
        """Whether it takes events."""
        try:
            return self._client.get("/health/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def get(self, path: str, **query: Any) -> Any:
        """The body of an answer."""
        return self._ask("GET", path, params={"tenantId": self._tenant, **query}).body

    def send(self, path: str, body: Json, method: str = "POST") -> Any:
        """The body of the answer to a body."""
        return self._ask(method, path, json={"tenantId": self._tenant, **body}).body

    def ingest(self, events: list[Json]) -> Answered:
        """Send events in one request."""
        body = {"events": [{"tenantId": self._tenant, **event} for event in events]}
        return self._ask("POST", "/v1/events/ingest", json=body)

    def flush(self, timeout_seconds: int = 30) -> None:
        """Return when Stripe has everything. Raises DemoFailed with what is missing."""
        said = self.send("/v1/pushes/flush", {"timeoutSeconds": timeout_seconds})
        if not said["complete"]:
            message = f"Stripe does not have everything: {said['missing'] or said['unroutable']}"
            raise DemoFailed(message)

    def reconcile(self, month: str) -> Json:
        """Compare everything with Stripe; the month's report."""
        job: Json = self.send("/v1/reconciliation/run", {})

        def ended() -> Json | None:
            found: Json = self.get(f"/v1/reconciliation/jobs/{job['jobId']}")
            return found if found["status"] in ("completed", "failed") else None

        found = wait_until(ended, RUN_SECONDS_MAX, "a run of reconciliation ends")
        if found["status"] == "failed":
            message = f"reconciliation failed: {found['error']}"
            raise DemoFailed(message)
        return dict(self.get(f"/v1/reconciliation/{month}"))


class StripeWire(_Wire):
    """Stripe's API, in forms; the simulator's controls, in JSON."""

    def __init__(self, url: str, key: str, *, by_proxy: bool = False) -> None:
        """`by_proxy`: through the environment's proxy, as Stripe itself may have to be reached."""
        headers = {"Authorization": f"Bearer {key}", "Stripe-Version": API_VERSION}
        super().__init__(url, headers, by_proxy=by_proxy)

    def get(self, path: str, **query: Any) -> Json:
        """Read something."""
        return dict(self._ask("GET", path, params=query).body)

    def post(self, path: str, fields: Json | None = None) -> Json:
        """Make or change something; nested fields are named `outer[inner]`."""
        return dict(self._ask("POST", path, data=fields or {}).body)

    def delete(self, path: str) -> Json:
        """Delete something."""
        return dict(self._ask("DELETE", path).body)

    # What Stripe itself does not have.

    def control(self, what: str, **fields: Any) -> Json:
        """POST to `/_sim/...`."""
        return dict(self._ask("POST", f"/_sim/{what}", json=fields).body)

    def clear_faults(self) -> None:
        """Be well again."""
        self._ask("DELETE", "/_sim/faults")

    def totals(self) -> dict[str, int]:
        """Customer to everything that Stripe has counted."""
        (account,) = self.get("/_sim/state")["accounts"]
        return {row["customer"]: int(row["value"]) for row in account["totals"]}

    def pushes(self) -> int:
        """How many of the last requests were meter events."""
        rows = self.get("/_sim/state")["requests"]
        return sum((row["method"], row["path"]) == METER_EVENTS for row in rows)
