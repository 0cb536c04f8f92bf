"""What passes the fast lane by: HTTP/2, TLS, WebSockets, streams; and what is lent while the server stops."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import h2.connection
import h2.events
import httpx
import pytest
import trio
import trio.testing

from tests.gateway.lane_corpus import HOST
from tests.helpers.listening import Listening, exchange, listening, statuses

EVENT = {
    "tenantId": "a", "metric": "m", "customerRef": "c", "quantity": 1, "idempotencyKey": "k",
}  # fmt: skip


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for 127.0.0.1 and its key, as files."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    directory: Path = tmp_path_factory.mktemp("tls")
    names = ["-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=127.0.0.1"]
    extra = ["-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-newkey", "ec"]
    curve = ["-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", *extra, *curve, *names],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    return str(directory / "cert.pem"), str(directory / "key.pem")


async def check_use(client: httpx.AsyncClient, version: str) -> None:
    """One client's life: count an event twice, read it back."""
    for expected in ("accepted", "duplicate"):
        answer = await client.post("/v1/events/ingest", json={"events": [EVENT]})
        assert answer.http_version == version
        assert answer.json()["results"][0]["status"] == expected
    usage = await client.get("/v1/usage/current?tenantId=a&customerRef=c")
    assert usage.json()["metrics"][0]["count"] == 1
    assert (await client.get("/v1/mappings?tenantId=a")).status_code == 200


@pytest.mark.parametrize("http2", [True, False])
async def test_tls_with_and_without_h2_goes_to_hypercorn(
    certificate: tuple[str, str], http2: bool
) -> None:
    def secure(config: Any) -> None:
        config.certfile, config.keyfile = certificate

    import ssl

    context = ssl.create_default_context(cafile=certificate[0])
    async with listening("on", secure) as server:
        base = f"https://127.0.0.1:{server.port}"
        async with httpx.AsyncClient(base_url=base, http2=http2, verify=context) as client:
            await check_use(client, "HTTP/2" if http2 else "HTTP/1.1")


async def test_a_stop_in_the_midst_of_a_tls_handshake_is_orderly(
    certificate: tuple[str, str],
) -> None:
    def secure(config: Any) -> None:
        config.certfile, config.keyfile = certificate

    async with listening("on", secure) as server:
        stream = await server.connect()
        await stream.send_all(b"\x16\x03\x01")
        await trio.sleep(0.1)
        server.stop.set()
        with trio.fail_after(10), contextlib.suppress(trio.BrokenResourceError):
            assert await stream.receive_some(100) == b""
        await stream.aclose()


async def test_http2_with_prior_knowledge_goes_to_hypercorn() -> None:
    async with listening("on") as server:
        base = f"http://127.0.0.1:{server.port}"
        async with httpx.AsyncClient(base_url=base, http1=False, http2=True) as client:
            await check_use(client, "HTTP/2")


async def http2_client(server: Listening) -> trio.SocketStream:
    """A connection of HTTP/2 whose one request was answered by Quart."""
    stream = await server.connect()
    client = h2.connection.H2Connection()
    client.initiate_connection()
    names = {":method": "GET", ":path": "/health/live", ":scheme": "http", ":authority": "x"}
    client.send_headers(1, list(names.items()), end_stream=True)
    await stream.send_all(client.data_to_send())
    ended = False
    while not ended:
        events = client.receive_data(await stream.receive_some(65536))
        ended = any(isinstance(event, h2.events.StreamEnded) for event in events)
    return stream


async def chunked_client(server: Listening) -> trio.SocketStream:
    """A connection that the lane has given away, and whose one request was answered by Quart."""
    stream = await server.connect()
    head = b"POST /v1/usage/projection HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
    await stream.send_all(head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    assert statuses(await stream.receive_some(65536)) == (400,)
    return stream


@pytest.mark.parametrize("way", ["on", "off"])
@pytest.mark.parametrize("client", [http2_client, chunked_client])
async def test_a_connection_of_hypercorns_that_is_idle_does_not_hold_up_a_stop(
    client: Callable[[Listening], Awaitable[trio.SocketStream]], way: str
) -> None:
    def patient(config: Any) -> None:
        config.graceful_timeout = config.keep_alive_timeout = 120.0

    async with listening(way, patient) as server, await client(server) as stream:
        await trio.sleep(0.05)
        server.stop.set()
        with trio.fail_after(20):
            while await stream.receive_some(65536):
                pass


_CHUNKED = b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("lane", "sent"),
    [
        ("off", b""),
        ("off", b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"),
        ("on", b"POST /v1/mappings HTTP/1.1\r\nhost: x\r\n" + _CHUNKED),
    ],
)
async def test_a_connection_that_its_client_has_closed_is_closed(lane: str, sent: bytes) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async with listening(lane) as server:
        before = descriptors()
        for _ in range(5):
            stream = await server.connect()
            if sent:
                await stream.send_all(sent)
                answer = b""
                while not answer.endswith(b"}"):
                    answer += await stream.receive_some()
            await trio.testing.wait_all_tasks_blocked(0.01)
            await stream.aclose()
        with trio.fail_after(5):
            while descriptors() > before:
                await trio.sleep(0.005)


async def test_an_http_client_keeps_one_connection_over_all_ways() -> None:
    async with listening("on") as server:
        base = f"http://127.0.0.1:{server.port}"
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=base, limits=limits) as client:
            await check_use(client, "HTTP/1.1")

            async def pieces() -> Any:
                yield b'{"events": [{"tenantId": "a", "metric": "m", "customerRef": "c", '
                yield b'"quantity": 1, "idempotencyKey": "chunked"}]}'

            headers = {"content-type": "application/json"}
            chunked = await client.post("/v1/events/ingest", content=pieces(), headers=headers)
            assert chunked.json()["accepted"] == 1
            answer = await client.post("/v1/events/ingest", json={"events": [EVENT]})
            assert answer.json()["duplicates"] == 1


async def test_a_websocket_is_refused_as_by_stock() -> None:
    asked = b"GET /v1/x HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    asked += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    answers = []
    for way in ("off", "on"):
        async with listening(way) as server:
            answers.append((await exchange(server, [asked], silence=3)).statuses)
    assert answers == [(403,), (403,)]


async def test_a_stream_is_whole_and_the_connection_comes_back() -> None:
    async with listening("on") as server:
        base = f"http://127.0.0.1:{server.port}"
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=base, limits=limits, timeout=20) as client:
            events = [EVENT | {"customerRef": f"c{n}"} for n in range(500)]
            await client.post("/v1/events/ingest", json={"events": events})
            stream = await client.get("/v1/usage/counters?tenantId=a")
            assert stream.headers["transfer-encoding"] == "chunked"
            assert len(stream.text.splitlines()) == 500
            usage = await client.get("/v1/usage/current?tenantId=a&customerRef=c7")
            assert usage.json()["metrics"][0]["count"] == 1


async def test_what_hypercorn_answers_while_the_server_stops_is_whole_and_says_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with listening("on") as server:
        past, reached = server.served.gateway.meter.started.as_of, trio.Event()
        prefix = past.prefix

        async def slow(*arguments: Any) -> Any:
            reached.set()
            await trio.sleep(0.4)
            return await prefix(*arguments)

        monkeypatch.setattr(past, "prefix", slow)
        path = b"/v1/usage/current?tenantId=a&customerRef=c&asOf=2026-01-31T09:00:00Z"
        stream = await server.connect()
        await stream.send_all(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        await reached.wait()
        server.stop.set()
        data = b""
        while piece := await stream.receive_some(65536):
            data += piece
        assert len(statuses(data)) == 1
        assert b"\r\nconnection: close\r\n" in data.lower()
        assert data.endswith(b"}")
        await stream.aclose()
