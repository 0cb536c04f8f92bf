"""What is true of every request: its id, its framing, CORS, security headers, its line in the log."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
import structlog
import trio

from gateway.asgi import create_asgi
from gateway.framing import HEADERS_MAX, refusal
from tests.helpers.served import Served, served

EVENT = {"tenantId": "a", "metric": "m", "customerRef": "c", "quantity": 1, "idempotencyKey": "k"}


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with served(cors_origins="https://app.example.com, http://localhost:5173") as running:
        yield running


async def raw(
    server: Served, headers: list[tuple[bytes, bytes]], *, ends: bool = True, **more: Any
) -> tuple[int, dict[str, str], bytes]:
    """One request straight to the application, with headers that no client library would send."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/health",
        "raw_path": b"/health",
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 3000),
    } | more
    sent: list[dict[str, Any]] = []

    messages = [{"type": "http.request", "body": b"", "more_body": not ends}]

    async def receive() -> dict[str, Any]:
        if not messages:
            await trio.sleep_forever()
        return messages.pop()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    app: Any = create_asgi(server.gateway)
    await app(scope, receive, send)
    fields = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], fields, b"".join(one.get("body", b"") for one in sent[1:])


@pytest.mark.parametrize("path", ["/health", "/nope", "/v1/mappings/map_0", "/docs"])
async def test_a_sane_request_id_comes_back_and_another_is_replaced(
    server: Served, path: str
) -> None:
    sane = await server.client.get(path, headers={"x-request-id": "trace-1.a_b"})
    assert sane.headers["x-request-id"] == "trace-1.a_b"
    for insane in ("", "a b", "a\tb", "x" * 129, "é", "a;b"):
        response = await server.client.get(path, headers={"x-request-id": insane.encode()})
        assert response.headers["x-request-id"].startswith("req_")
        assert len(response.headers.get_list("x-request-id")) == 1


async def test_an_ingest_answer_names_the_same_request_id_in_header_and_body(
    server: Served,
) -> None:
    response = await server.client.post(
        "/v1/events/ingest", json={"events": [EVENT]}, headers={"x-request-id": "mine"}
    )
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert response.json()["requestId"] == "mine"


@pytest.mark.parametrize(
    "headers",
    [
        [(b"host", b"a"), (b"content-length", b"0"), (b"transfer-encoding", b"chunked")],
        [(b"host", b"a"), (b"content-length", b"0"), (b"content-length", b"0")],
        [(b"host", b"a"), (b"content-length", b"0"), (b"content-length", b"5")],
        [(b"host", b"a"), (b"content-length", b"+5")],
        [(b"host", b"a"), (b"content-length", b"5, 5")],
        [(b"host", b"a"), (b"content-length", b"")],
        [(b"host", b"a"), (b"host", b"a")],
        [(b"host", b"a"), (b"host", b"b")],
        [(b"host", b"a"), (b"transfer-encoding", b"gzip, chunked")],
        [(b"host", b"a"), (b"transfer-encoding", b"identity")],
        [(b"host", b"a"), (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")],
        [(b"host", b"a"), (b"transfer-encoding", b"xchunked")],
    ],
)
@pytest.mark.parametrize("path", ["/health", "/v1/events/ingest"])
async def test_framing_that_can_be_read_in_two_ways_is_refused_and_the_connection_closed(
    server: Served, headers: list[tuple[bytes, bytes]], path: str
) -> None:
    method = "POST" if path.endswith("ingest") else "GET"
    status, fields, body = await raw(server, headers, path=path, method=method)
    assert status == 400
    assert fields["connection"] == "close"
    assert fields["content-type"] == "application/problem+json"
    assert fields["x-request-id"].encode() in body


@pytest.mark.parametrize(
    "headers",
    [
        [(b"host", b"a")],
        [(b"host", b"a"), (b"content-length", b"0")],
        [(b"host", b"a"), (b"transfer-encoding", b"Chunked")],
        [],
    ],
)
async def test_framing_with_one_reading_is_taken(
    server: Served, headers: list[tuple[bytes, bytes]]
) -> None:
    status, _, _ = await raw(server, headers)
    assert status == 200


async def test_too_many_headers_are_refused(server: Served) -> None:
    headers = [(b"x-%d" % number, b"") for number in range(HEADERS_MAX + 1)]
    assert (await raw(server, headers))[0] == 431
    assert (await raw(server, headers[1:]))[0] == 200


def test_a_path_that_is_no_utf_8_is_refused() -> None:
    refused = refusal({"headers": [], "raw_path": b"/v1/customers/%ff"})
    assert refused is not None
    assert refused.status == 400
    assert refusal({"headers": [], "raw_path": b"/v1/customers/%C3%A9?x=%ff"}) is None


async def test_an_allowed_origin_may_read_and_another_may_not(server: Served) -> None:
    allowed = await server.client.get("/health", headers={"origin": "https://app.example.com"})
    assert allowed.headers["access-control-allow-origin"] == "https://app.example.com"
    assert allowed.headers["vary"] == "origin"
    assert "retry-after" in allowed.headers["access-control-expose-headers"]
    for origin in ("https://evil.example", "https://app.example.com.evil.example", "null"):
        other = await server.client.get("/health", headers={"origin": origin})
        assert "access-control-allow-origin" not in other.headers
        assert other.headers["vary"] == "origin", "a cache must not mix them up"


async def test_a_preflight_of_an_allowed_origin_is_answered(server: Served) -> None:
    headers = {"origin": "http://localhost:5173", "access-control-request-method": "PUT"}
    response = await server.client.options("/v1/mappings/x", headers=headers)
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "http://localhost:5173"
    assert set(response.headers["access-control-allow-methods"].split(", ")) >= {"GET", "PUT"}
    assert "idempotency-key" in response.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in response.headers
    headers["origin"] = "https://evil.example"
    refused = await server.client.options("/v1/mappings/x", headers=headers)
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers


async def test_without_cors_no_origin_is_answered() -> None:
    async with served() as server:
        headers = {"origin": "http://localhost:5173", "access-control-request-method": "GET"}
        assert (await server.client.options("/health", headers=headers)).status_code == 405
        answer = await server.client.get("/health", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/health", "/nope", "/v1/mappings"])
async def test_answers_carry_what_keeps_browsers_safe(server: Served, path: str) -> None:
    headers = (await server.client.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers


async def test_the_page_may_run_its_own_script_and_nothing_else(server: Served) -> None:
    response = await server.client.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "connect-src 'self'" in policy
    for outside in ("http://", "https://", "//cdn"):
        assert outside not in response.text, "the page is self-contained"
    root = await server.client.get("/")
    assert (root.status_code, root.headers["location"]) == (307, "/docs")


async def test_head_is_get_without_a_body(server: Served) -> None:
    get, head = await server.client.get("/docs"), await server.client.head("/docs")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == get.headers["content-length"]
    # httpx drops a body by itself; the application must not send one either.
    for headers in ([(b"host", b"a")], [(b"host", b"a"), (b"host", b"b")]):
        status, _, body = await raw(server, headers, method="HEAD")
        assert (status, body) == (200 if len(headers) == 1 else 400, b"")


async def test_ingest_that_worked_is_one_line_too(
    server: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"events": [EVENT | {"customerRef": "private"}]}
    key = "sm_abcdefgh12345678"
    for request_id in ("r-7", key):
        headers = {"x-request-id": request_id}
        await server.client.post("/v1/events/ingest", json=body, headers=headers)
    first, second = capsys.readouterr().err.splitlines()
    line = json.loads(first)
    assert line.pop("ms") >= 0
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "method": "POST",
        "route": "/v1/events/ingest",
        "status": 200,
        "event": "request",
        "request_id": "r-7",
        "level": "info",
        "logger": "stripemeter.access",
    }
    assert key not in second
    assert "private" not in first + second


async def test_each_request_is_one_line_with_its_route_and_nothing_of_its_body(
    server: Served,
) -> None:
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as logs:
        await server.client.get(
            "/v1/mappings/map_secret?tenantId=t", headers={"x-request-id": "r1"}
        )
        await server.client.get("/nope/secret")
        await server.client.post("/v1/events/ingest", content=b"secret")
    lines = [line for line in logs if line["event"] == "request"]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("GET", "/v1/mappings/{id}", 404),
        ("GET", "unmatched", 404),
        ("POST", "/v1/events/ingest", 400),
    ]
    assert lines[0]["request_id"] == "r1"
    assert [line["log_level"] for line in lines] == ["info", "info", "info"]
    assert all(line["ms"] >= 0 and line["request_id"] for line in lines)
    assert "secret" not in str(lines)


async def test_a_defect_of_ingest_is_a_500_and_the_next_request_works(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret of the inside")

    with monkeypatch.context() as patched:
        patched.setattr(server.gateway.meter.started.writer, "offer_one", broken)
        response = await server.client.post("/v1/events/ingest", json={"events": [EVENT]})
        assert response.status_code == 500
        assert "secret" not in response.text
    assert (await server.ingest(EVENT))["accepted"] == 1


async def test_a_websocket_is_closed(server: Served) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    app: Any = create_asgi(server.gateway)
    await app({"type": "websocket", "path": "/", "headers": []}, None, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize("name", ["a\nb", "\n", "/a", "a//b", "a/", "/", "·\r\x85"])
async def test_a_customer_may_have_any_name_in_its_path(server: Served, name: str) -> None:
    path = f"/v1/customers/{quote(name, safe='')}"
    made = await server.client.put(path, json={"tenantId": "acme"})
    assert made.status_code == 201, made.text
    found = await server.client.get(path, params={"tenantId": "acme"})
    assert (found.status_code, found.json()["customerRef"]) == (200, name)
