"""Every field of every request, one at a time, as something that JSON can be and nobody sends; odd queries and methods.

Each is the recorded example of its operation with one part made odd, so that it gets further than a random body does.
Never a 5xx; a refusal is a problem; every answer has its id.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.openapi import operation_id
from gateway.openapi_examples import examples_of
from gateway.routes import Route
from gateway.table import ROUTES, openapi_document
from tests.helpers.served import Served, served

DOCUMENT: dict[str, Any] = json.loads(openapi_document())
BODIES_PER_ROUTE = 250
VALUES = (
    b'"\\ud800"', b'"\\u0000"', b'"\xff"', b"1" * 5000, b"-0", b"1e400", b"1e-400", b"NaN", b'["\\udfff"]',
    b'{"a":' * 40 + b"1" + b"}" * 40, b"\xff", b'"' + b"x" * 70_000 + b'"', b'{"\\ud800":1}', b"9223372036854775808",
    b'"9999-12-31T23:59:59.999999Z"', b'"0001-01-01T00:00:00+23:59"', b"[]", b"{}", b"[[]]", b"", b'""', b"0.0000001",
    b'{"model":"flat","currency":"USD","unitPrice":' + b"9" * 4000 + b"}", b"true", b"-1", b'"-P99999999999999D"',
)  # fmt: skip
QUERIES = (
    "%00=%00", "a=" + "b" * 3000, "=&&=;", "tenantId=%ED%A0%80", "tenantId=acme&limit=%D9%A1", "tenantId=%00",
    "tenantId=acme&asOf=99999999999999999999&since=-P99999999999999D&periodStart=%2B1&cursor=W10", "tenantId=a&tenantId=b",
)  # fmt: skip
METHODS = ("TRACE", "PATCH", "OPTIONS", "HEAD", "BREW", "get", "DELETE", "PUT", "POST", "GET")
IN_PATH = {"month": "2026-01", "period": "2026-01", "asset": "docs.js", "customerRef": "c"}


def address(route: Route, odd: str = "x") -> str:
    path = route.path
    for name in route.path_parameters:
        path = path.replace(f"{{{name}}}", IN_PATH.get(name, odd))
    return path


def odd_bodies(route: Route) -> Iterator[bytes]:
    """The example with each field made odd, fields that it lacks too; and bodies that are only the odd thing."""
    yield from VALUES
    schema = route.request and DOCUMENT["components"]["schemas"].get(route.request.__name__)
    shown = [one.body for one in examples_of(operation_id(route)) if isinstance(one.body, dict)]
    example: dict[str, Any] = shown[0] if shown else {}
    for field in {**example, **(schema or {}).get("properties", {})}:
        rest = {name: value for name, value in example.items() if name != field}
        start = json.dumps(rest)[:-1].encode() + (b"," if rest else b"")
        for value in VALUES:
            yield start + json.dumps(field).encode() + b":" + value + b"}"


async def sane(server: Served, method: str, url: str, **more: Any) -> int:
    """The status; what is asserted of every answer holds."""
    response = await server.client.request(method, url, **more)
    asked = (method, url, str(more)[:400], response.text[:400])
    assert response.status_code < 500, asked
    assert response.headers["x-request-id"], asked
    if response.status_code >= 400 and response.content:
        assert response.headers["content-type"] == "application/problem+json", asked
        assert response.json()["status"] == response.status_code, asked
    return response.status_code


@pytest.mark.slow
async def test_a_request_with_one_odd_part_is_answered_or_refused(rng: random.Random) -> None:
    statuses = set()
    async with served(stripe={}) as server:
        headers = {"content-type": "application/json"}
        for route in (one for one in ROUTES if one.request is not None or one.takes_raw_body):
            bodies = list(odd_bodies(route))
            for body in rng.sample(bodies, min(BODIES_PER_ROUTE, len(bodies))):
                url = f"{address(route)}?tenantId=acme"
                statuses.add(await sane(server, route.method, url, content=body, headers=headers))
    assert {200, 201, 400, 404} <= statuses, "some odd parts are taken, and get further"


async def test_any_method_with_an_odd_query_is_answered_or_refused(rng: random.Random) -> None:
    statuses = set()
    async with served() as server:
        for path in sorted({address(route, odd) for route in ROUTES for odd in ("x", "%00")}):
            for method in METHODS:
                url = f"{path}?{rng.choice(QUERIES)}"
                statuses.add(await sane(server, method, url))
    assert {200, 400, 405} <= statuses
