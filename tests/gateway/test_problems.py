"""What goes wrong is always a problem of one shape, with the request's id, and says what to do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import structlog

from engine.errors import (
    Conflict,
    EngineError,
    NotFound,
    Refused,
    StorageFull,
    Unavailable,
)
from gateway.problems import ERRORS_MAX, INTERNAL_DETAIL, TITLES, Problem, problem_for
from tests.helpers.served import Served, bearer, client_of, memory_gateway, served, settings_of


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with served() as running:
        yield running


def assert_problem(response, status: int) -> dict:
    body = response.json()
    assert response.status_code == status, body
    assert response.headers["content-type"] == "application/problem+json"
    assert body["status"] == status
    assert body["title"] == TITLES[status][1]
    assert body["type"] == "urn:stripemeter:problem:" + TITLES[status][0]
    assert body["requestId"] == response.headers["x-request-id"]
    assert body["detail"]
    assert set(body) <= {"type", "title", "status", "detail", "requestId", "errors"}
    return body


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/v1/mappings/", 404),
        ("GET", "//v1/mappings", 404),
        ("GET", "/v1/mappings/map_0", 404),
        ("POST", "/v1/mappings/map_0/x", 404),
        ("PATCH", "/v1/mappings", 405),
        ("GET", "/v1/events/ingest", 405),
        ("OPTIONS", "/v1/mappings", 405),
        ("GET", "/v1/events?nope=1", 400),
        ("GET", "/v1/usage/current?tenantId=a", 400),
        ("GET", "/v1/customers/%ff", 400),
    ],
)
async def test_each_wrong_request_gets_its_problem(
    server: Served, method: str, path: str, status: int
) -> None:
    assert_problem(await server.client.request(method, path), status)


async def test_a_405_names_the_methods_that_the_path_takes(server: Served) -> None:
    response = await server.client.patch("/v1/mappings")
    assert response.headers["allow"] == "GET, HEAD, POST"
    assert (await server.client.get("/v1/events/ingest")).headers["allow"] == "POST"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT"])
async def test_a_path_that_also_looks_like_an_id_takes_only_its_own_methods(
    server: Served, method: str
) -> None:
    response = await server.client.request(method, "/v1/adjustments/approve")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    response = await server.client.request(method, "/v1/reconciliation/summary")
    assert method in ("GET", "HEAD") or response.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (Unavailable("later", retry_after_seconds=7), 503, "7"),
        (StorageFull("full"), 507, "10"),
        (Conflict("no"), 409, None),
        (NotFound("no"), 404, None),
        (Refused("no", (("field", "is wrong"),)), 400, None),
        (EngineError("secret inside"), 500, None),
    ],
)
def test_each_engine_error_has_its_status(
    error: EngineError, status: int, retry: str | None
) -> None:
    problem = problem_for(error)
    assert problem.status == status
    assert dict(problem.headers()).get("retry-after") == retry
    assert ("secret" in problem.detail) is False


def test_errors_of_a_problem_are_bounded() -> None:
    problem = Problem(400, "many", errors=tuple((str(i), "x") for i in range(1000)))
    assert len(json.loads(problem.body("id"))["errors"]) == ERRORS_MAX


async def test_a_defect_is_a_500_that_tells_nothing_and_is_logged(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret of the inside")

    monkeypatch.setattr(server.gateway.meter, "usage_current", broken)
    with structlog.testing.capture_logs() as logs:
        response = await server.client.get(
            "/v1/usage/current", params={"tenantId": "a", "customerRef": "c"}
        )
    body = assert_problem(response, 500)
    assert body["detail"] == INTERNAL_DETAIL
    assert "secret" not in response.text
    failed = next(line for line in logs if line["event"] == "request_failed")
    assert isinstance(failed["exc_info"], ZeroDivisionError)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "field"),
    [
        (b"{", "application/json", 400, None),
        (b"", "application/json", 400, None),
        (b"\xff\xfe", "application/json", 400, None),
        (b'{"metric": "\\ud800"}', "application/json", 400, None),
        (b"[]", "application/json", 400, "body"),
        (b"{}", "application/json", 400, "metric"),
        (b'{"metric": 3}', "application/json", 400, "metric"),
        (b'{"metric": ""}', "application/json", 400, "metric"),
        (b'{"metric": "m", "agregation": "max"}', "application/json", 400, "agregation"),
        (b'{"metric": "m", "aggregation": "avg"}', "application/json", 400, "aggregation"),
        (b'{"metric": "m", "latenessHours": 8761}', "application/json", 400, "latenessHours"),
        (b'{"metric": "m", "latenessHours": -1}', "application/json", 400, "latenessHours"),
        (b'{"metric": "m", "latenessHours": 1e400}', "application/json", 400, "latenessHours"),
        (b'{"metric": "m", "unit": "%s"}' % (b"u" * 51), "application/json", 400, "unit"),
        (b'{"metric": "a\\u0000b"}', "application/json", 400, "metric"),
        (b"{}", "text/plain", 415, None),
        (b"{}", "", 415, None),
        (b"[" * 33 + b"]" * 33, "application/json", 400, None),
        (b"[" * 100_000, "application/json", 400, None),
        (b" " * (1 << 20) + b"{}", "application/json", 413, None),
    ],
)
async def test_each_wrong_body_is_refused_and_its_field_named(
    server: Served, body: bytes, content_type: str, status: int, field: str | None
) -> None:
    response = await server.client.post(
        "/v1/mappings",
        content=body.replace(b'{"metric"', b'{"tenantId": "a", "metric"'),
        headers={"content-type": content_type},
    )
    problem = assert_problem(response, status)
    fields = [error["field"] for error in problem.get("errors", [])]
    assert fields == ([] if field is None else [field])


async def test_a_compressed_body_is_refused_where_none_is_taken(server: Served) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert_problem(await server.client.post("/v1/mappings", content=b"x", headers=headers), 415)


async def test_while_recovering_everything_that_needs_the_log_is_a_503() -> None:
    gateway, _ = memory_gateway(settings_of())
    async with client_of(gateway) as client:
        for path in ("/v1/mappings", "/v1/events?tenantId=a", "/v1/customers?tenantId=a"):
            response = await client.get(path)
            assert_problem(response, 503)
            assert response.headers["retry-after"] == "2"
        assert (await client.get("/health/live")).status_code == 200
        ready = await client.get("/health/ready")
        assert ready.status_code == 503
        assert ready.json()["status"] == "recovering"
        assert ready.json()["recovery"] == {"position": 0, "head": 0}


async def test_while_recovering_a_key_is_neither_right_nor_wrong() -> None:
    gateway, _ = memory_gateway(settings_of(auth="required"))
    async with client_of(gateway) as client:
        response = await client.get("/v1/mappings", headers=bearer("sm_" + "a" * 40))
        assert_problem(response, 503)
        assert_problem(await client.get("/v1/mappings"), 401)
