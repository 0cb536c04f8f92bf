"""Exports of a real server: long downloads come whole, and a client that never reads costs little and not for long."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from gateway.cli.main import main
from tests.helpers.server import SMALL, Server, in_time, running

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]

EVENTS = 60_000
READ_SECONDS = 2
ASK = b"GET /v1/events?tenantId=acme&format=jsonl HTTP/1.1\r\nHost: x\r\n\r\n"


def fill(server: Server) -> None:
    """Some 15 MB of exported lines: more than the system's socket buffers hold."""
    with server.client() as client:
        for start in range(0, EVENTS, 1000):
            events = [
                {
                    "tenantId": "acme",
                    "metric": "calls",
                    "customerRef": f"customer-{number % 100}",
                    "quantity": number,
                    "idempotencyKey": f"key-{number}",
                    "meta": {"of": "a row of some length " * 2},
                }
                for number in range(start, start + 1000)
            ]
            assert client.ingest(events).status == 200


def unchunked(answer: bytes) -> bytes:
    """The body of an answer in chunks."""
    rest, body = answer.partition(b"\r\n\r\n")[2], []
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not int(size, 16):
            return b"".join(body)
        body.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]


def open_streams(server: Server) -> int:
    with server.client() as client:
        text = client.get("/metrics").body.decode()
    [line] = [line for line in text.splitlines() if line.startswith("exports_open ")]
    return int(float(line.split()[1]))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:  # type: ignore[misc]
    directory = tmp_path_factory.mktemp("export") / "data"
    environment = {"SMALL_READ_SECONDS": str(READ_SECONDS)}
    with running(directory, module=SMALL, environment=environment) as started:
        fill(started)
        yield started  # type: ignore[misc]


def test_a_download_that_takes_longer_than_a_silent_client_may_be_comes_whole(
    server: Server,
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        began = time.monotonic()
        connection.sendall(ASK)
        received = bytearray()
        while not received.endswith(b"\r\n0\r\n\r\n"):
            data = connection.recv(1 << 16)
            assert data, f"cut off after {len(received)} bytes"
            received += data
            if time.monotonic() - began < 2.5 * READ_SECONDS:
                time.sleep(0.05)
        assert time.monotonic() - began > 2 * READ_SECONDS
    assert len(unchunked(bytes(received)).splitlines()) == EVENTS


def test_clients_that_never_read_hold_little_and_are_cut_off(server: Server) -> None:
    before = server.rss_bytes()
    sockets = []
    for count in range(1, 5):
        connection = socket.create_connection(("127.0.0.1", server.port), 20)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(ASK)
        sockets.append(connection)
        until = time.monotonic() + READ_SECONDS
        while open_streams(server) < count and time.monotonic() < until:
            time.sleep(0.02)
    with server.client() as client:
        answer = client.get("/v1/events?tenantId=acme&format=csv")
        assert answer.status == 503
    assert server.rss_bytes() - before < 40 << 20
    until = time.monotonic() + 60
    while open_streams(server) and time.monotonic() < until:
        time.sleep(0.1)
    assert open_streams(server) == 0
    for connection in sockets:
        connection.close()


def test_the_command_asks_the_server_that_has_the_directory(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"http://127.0.0.1:{server.port}"
    for name in ("events.jsonl.gz", "counters.csv", "adjustments.csv", "audit.jsonl"):
        what = name.partition(".")[0]
        arguments = ["export", what, "--url", url, "--tenant", "acme", "-o", name]
        assert main(arguments) == 0
    counters = (tmp_path / "counters.csv").read_text().splitlines()
    assert len(counters) == 101
    assert counters[0].startswith("tenantId,metric,customerRef,periodStart")


def test_a_download_under_way_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    with running(tmp_path / "data", module=SMALL, environment={}) as server:
        fill(server)
        with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
            connection.sendall(ASK)
            received = b""
            while b"idempotencyKey" not in received:
                received += connection.recv(4096)
            began = time.monotonic()
            server.terminate()
            time.sleep(0.5)
            while data := connection.recv(1 << 16):
                received += data
                time.sleep(0.01)
            assert server.wait(10) == 0
            assert in_time(time.monotonic() - began, 5)
        assert not received.endswith(b"0\r\n\r\n"), "cut off, and its reader knows"
