"""Which endpoint a method and path belong to.

Rules it keeps: one row per endpoint. It must not know what an endpoint does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from gateway.simulator import accounts, meters
from gateway.simulator.desk import Desk
from gateway.simulator.wire import Fields, Json, Refusal

Endpoint = Callable[..., Json | Refusal]
"""(desk, fields, ids from the path) to the answer."""


class Found(NamedTuple):
    """An endpoint, its pattern, and the ids in the path."""

    endpoint: Endpoint
    pattern: str
    ids: tuple[str, ...]

    def serve(self, desk: Desk, fields: Fields) -> Json | Refusal:
        """Let the endpoint answer."""
        return self.endpoint(desk, fields, *self.ids)


ROUTES: Final[dict[tuple[str, str], Endpoint]] = {
    ("GET", "/v1/account"): accounts.retrieve_account,
    ("GET", "/v1/balance"): accounts.retrieve_balance,
    ("POST", "/v1/billing/meters"): meters.create_meter,
    ("GET", "/v1/billing/meters"): meters.list_meters,
    ("GET", "/v1/billing/meters/{}"): meters.retrieve_meter,
    ("POST", "/v1/billing/meters/{}"): meters.update_meter,
    ("POST", "/v1/billing/meters/{}/deactivate"): meters.deactivate_meter,
    ("POST", "/v1/billing/meters/{}/reactivate"): meters.reactivate_meter,
    ("GET", "/v1/billing/meters/{}/event_summaries"): meters.list_summaries,
    ("POST", "/v1/billing/meter_events"): meters.create_meter_event,
    ("POST", "/v1/billing/meter_event_adjustments"): meters.create_adjustment,
}


def _tree() -> dict[tuple[str, int], list[tuple[list[str], str, Endpoint]]]:
    tree: dict[tuple[str, int], list[tuple[list[str], str, Endpoint]]] = {}
    for (method, pattern), endpoint in ROUTES.items():
        if "{}" in pattern:
            parts = pattern.split("/")
            tree.setdefault((method, len(parts)), []).append((parts, pattern, endpoint))
    return tree


_PATTERNS: Final = _tree()


def find(method: str, path: str) -> Found | None:
    """The endpoint of a method and path; a path without ids goes before one with them."""
    endpoint = ROUTES.get((method, path))
    if endpoint is not None:
        return Found(endpoint, path, ())
    parts = path.split("/")
    for pattern, name, endpoint in _PATTERNS.get((method, len(parts)), ()):
        if all(
            have == want or (want == "{}" and have)
            for have, want in zip(parts, pattern, strict=True)
        ):
            ids = tuple(have for have, want in zip(parts, pattern, strict=True) if want == "{}")
            return Found(endpoint, name, ids)
    return None
