"""Shadow mode from end to end: real processes, real HTTP, a live key beside the test key. Live is asked whose it is, no more.

One address stands for Stripe, as it does in the world: the key decides whose account a request is of. The test key's is a
Stripe simulator; the live key's answers who it is, and writes down whatever else reaches it.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.server import running
from tests.helpers.sim_process import SimProcess, sim_process

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]
LIVE_KEY = "sk_live_of_nobody_0123456789"
TEST_KEY = "sk_test_of_a_simulator"
MAPPING = {"tenantId": "acme", "metric": "calls", "shadow": True, "shadowMeterEventName": "calls"}
IDENTITY = {"/v1/account": {"id": "acct_live"}, "/v1/balance": {"livemode": True}}


class Front:
    """Stripe's address. `asked` is (key, method, path) of every request."""

    def __init__(self, simulator: SimProcess, *, is_test_key_live: bool) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self._port = int(simulator.url.rpartition(":")[2])
        self._live_keys = {LIVE_KEY, TEST_KEY} if is_test_key_live else {LIVE_KEY}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Pass a request on to whom its key names."""
        key = (handler.headers["Authorization"] or "").removeprefix("Bearer ")
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        path = handler.path.partition("?")[0]
        self.asked.append((key, handler.command, path))
        if key in self._live_keys:
            status = 200 if path in IDENTITY else 500
            said = json.dumps(IDENTITY.get(path, {})).encode()
        else:
            there = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
            there.request(handler.command, handler.path, body, dict(handler.headers))
            answer = there.getresponse()
            status, said = answer.status, answer.read()
            there.close()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(said)))
        handler.end_headers()
        handler.wfile.write(said)

    def of(self, key: str) -> set[tuple[str, str]]:
        """What a key was used for."""
        return {(method, path) for used, method, path in list(self.asked) if used == key}


@contextmanager
def front(simulator: SimProcess, *, is_test_key_live: bool = False) -> Iterator[tuple[Front, str]]:
    """A front on a free port of 127.0.0.1, and its URL."""
    made = Front(simulator, is_test_key_live=is_test_key_live)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            made.answer(self)

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield made, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def environment(url: str) -> dict[str, str]:
    return {
        "STRIPE_SECRET_KEY": LIVE_KEY,
        "STRIPE_TEST_SECRET_KEY": TEST_KEY,
        "STRIPE_API_BASE": url,
        "STRIPE_METER_EVENTS_BASE": url,
        "STRIPEMETER_PUSH_INTERVAL_SECONDS": "0.05",
        "STRIPEMETER_RECONCILE_INTERVAL_SECONDS": "0.2",
    }


def events(count: int) -> list[dict[str, Any]]:
    event = {"tenantId": "acme", "metric": "calls", "customerRef": "cus_anna", "quantity": 3}
    return [{**event, "idempotencyKey": f"key-{number}"} for number in range(count)]


@pytest.mark.parametrize("process", ["on", "off"])
def test_shadow_usage_reaches_the_test_account_and_nothing_of_it_the_live_one(
    tmp_path: Path, process: str
) -> None:
    with (
        sim_process(tmp_path / "stripe") as simulator,
        front(simulator) as (stripe, url),
        running(
            tmp_path / "data",
            environment=environment(url) | {"STRIPEMETER_STRIPE_PROCESS": process},
        ) as server,
        server.client(60) as client,
    ):
        made = client.request("POST", "/v1/mappings", json.dumps(MAPPING).encode())
        assert made.status == 201, made.body
        for batch in (events(5), events(8)):
            assert client.ingest(batch).status == 200
            body = json.dumps({"tenantId": "acme", "timeoutSeconds": 30}).encode()
            assert client.request("POST", "/v1/pushes/flush", body).json()["complete"]
        time.sleep(0.5)  # reconciliation looks at it too
        shown = client.get("/v1/pushes?tenantId=acme").json()["pushes"]
        assert [(one["role"], one["pushed"], one["standing"]) for one in shown] == [
            ("shadow", 24, "current")
        ]
        assert simulator.totals() == {"cus_anna": 24}
        assert server.stop() == 0
        assert ("POST", "/v1/billing/meter_events") in stripe.of(TEST_KEY)
        assert stripe.of(LIVE_KEY) <= {("GET", path) for path in IDENTITY}


def test_a_test_key_that_turns_out_to_be_live_pushes_nothing(tmp_path: Path) -> None:
    with (
        sim_process(tmp_path / "stripe") as simulator,
        front(simulator, is_test_key_live=True) as (stripe, url),
        running(tmp_path / "data", environment=environment(url)) as server,
        server.client(60) as client,
    ):
        server.wait_for("stripe_shadow_key_is_live")
        made = client.request("POST", "/v1/mappings", json.dumps(MAPPING).encode())
        assert made.status == 201, made.body
        assert client.ingest(events(5)).status == 200
        time.sleep(1)
        assert server.stop() == 0
        for key in (LIVE_KEY, TEST_KEY):
            assert stripe.of(key) <= {("GET", path) for path in IDENTITY}
        assert simulator.totals() == {}
