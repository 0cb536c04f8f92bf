"""Random hostile requests to every route: never a 5xx, always an answer that the document describes."""

from __future__ import annotations

import json
import random
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import trio.testing

from gateway.app import BODY_SECONDS_MAX
from gateway.routes import Route
from gateway.table import ROUTES, openapi_document
from tests.gateway.test_asgi import raw
from tests.helpers.json_schema import described_responses, mismatch
from tests.helpers.served import served

DOCUMENT: dict[str, Any] = json.loads(openapi_document())
REQUESTS_PER_ROUTE = 60
TEXTS = (
    "", "a", "acme", "null", "true", "0", "-1", "1e400", "NaN", "2026-01-31T00:00:00Z", "-PT24H", "+P9999D",
    "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "2026-02-30T00:00:00Z", "\0", "\ud7ff", "é" * 300,
    "x" * 5000, "../../etc", "%s%n", "'; DROP", "\u202e", "\U0001f600", "max", "day", "customerRef", "meta.a",
    "W10", "25", "100", "101", "99999999999999999999", "minute", "month", "asc", "metric",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *TEXTS, None, True, False, 0, -1, 1.5, 10**30, 1e308, [], {}, [[]], {"a": {"b": []}}, [None], ["admin"],
    ["events:read"], {"calls": "si_1"}, {"calls": 1},
)  # fmt: skip


def hostile(rng: random.Random, route: Route) -> dict[str, Any]:
    """One random request: mostly well formed, with some values that are not what is asked for."""
    path = route.path
    for name in route.path_parameters:
        text = rng.choice([text for text in TEXTS if text]) if rng.random() < 0.5 else "c"
        path = path.replace(f"{{{name}}}", quote(text, safe=""))
    params = [
        (p.name, rng.choice(TEXTS))
        for p in route.parameters
        if rng.random() < (0.9 if p.required else 0.3)
    ]
    if route.parameters and rng.random() < 0.7:
        names = {p.name for p in route.parameters}
        sane = {"tenantId": "acme", "customerRef": "c", "metric": "calls", "since": "-P1D"}
        params = [(name, text) for name, text in params if name not in sane]
        params += [(name, text) for name, text in sane.items() if name in names]
    if rng.random() < 0.1:
        params.append((rng.choice(TEXTS), rng.choice(TEXTS)))
    content: bytes | None = None
    headers = {"x-request-id": "fuzz"}
    if route.request is not None:
        headers["content-type"] = rng.choice(["application/json"] * 9 + ["text/plain"])
        fields = msgspec.structs.fields(route.request)
        body = {
            f.encode_name: rng.choice(VALUES) for f in fields if f.required or rng.random() < 0.2
        }
        content = json.dumps(body).encode()
        if rng.random() < 0.15:
            cut = rng.randrange(len(content) + 1)
            content = content[:cut] + rng.randbytes(rng.randrange(4)) + content[cut:]
    return {"url": path, "params": params, "content": content, "headers": headers}


@pytest.mark.slow
async def test_hostile_requests_get_a_described_answer_and_never_a_5xx(rng: random.Random) -> None:
    async with served() as server:
        event = {"tenantId": "acme", "metric": "calls", "customerRef": "c", "quantity": 1}
        await server.ingest(event | {"idempotencyKey": "k"})
        statuses: set[int] = set()
        for route in ROUTES:
            described = described_responses(DOCUMENT, route.path, route.method)
            for _ in range(REQUESTS_PER_ROUTE):
                request = hostile(rng, route)
                response = await server.client.request(route.method, **request)
                status = response.status_code
                statuses.add(status)
                assert status < 500, (route.path, request, response.text)
                if status == 404 and "404" not in described:
                    continue  # a path parameter that holds a slash leads nowhere
                assert str(status) in described, (route.path, request, response.text)
                kind = response.headers.get("content-type", "").partition(";")[0]
                if kind in ("application/json", "application/problem+json"):
                    schema = described[str(status)]["content"][kind]["schema"]
                    schemas = DOCUMENT["components"]["schemas"]
                    problem = mismatch(response.json(), schema, schemas, route.path)
                    assert problem is None, (request, problem)
        assert {200, 201, 400, 404, 415} <= statuses, "the generator reaches more than refusals"


@pytest.mark.parametrize("path", ["/v1/mappings", "/v1/events/ingest"])
async def test_a_body_that_never_ends_is_a_408_and_the_connection_is_closed(
    autojump_clock: trio.testing.MockClock, path: str
) -> None:
    async with served() as server:
        began = autojump_clock.current_time()
        headers = [(b"host", b"a"), (b"content-type", b"application/json")]
        status, fields, _ = await raw(
            server, headers, path=path, raw_path=path.encode(), method="POST", ends=False
        )
        assert (status, fields["connection"]) == (408, "close")
        assert autojump_clock.current_time() - began == pytest.approx(BODY_SECONDS_MAX, abs=1)
