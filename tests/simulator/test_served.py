"""The simulator on a socket: what a person and a hostile client meet, webhooks that go out, answers that get lost."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import trio

from gateway.simulator.journal import SimulatorRefused
from tests.helpers.stripe_sim import served_simulator

KEY = {"authorization": "Bearer sk_test_secret"}
EVENT = {
    "event_name": "calls",
    "payload[value]": "3",
    "payload[stripe_customer_id]": "cus_<b>",
}


async def raw(url: str, data: bytes) -> bytes:
    """What a connection answers to these bytes until it ends or is silent."""
    stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
    received = b""
    async with stream:
        await stream.send_all(data)
        with suppress(trio.BrokenResourceError), trio.move_on_after(0.5):
            while part := await stream.receive_some(65536):
                received += part
    return received


async def test_the_page_shows_totals_and_requests_and_escapes_what_was_sent(tmp_path: Path) -> None:
    options = {"auto_create": True, "meters": ("*",)}
    async with (
        served_simulator(tmp_path, **options) as simulator,
        httpx.AsyncClient(base_url=simulator.base_url, trust_env=False) as client,
    ):
        empty = await client.get("/")
        assert "No usage has been aggregated yet." in empty.text
        assert (await client.post("/v1/billing/meter_events", data=EVENT, headers=KEY)).is_success
        await client.post("/_sim/faults", json={"kind": "drop", "endpoint": "<i>"})
        page = await client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for part in ("calls", "cus_&lt;b&gt;", "/v1/billing/meter_events", "&lt;i&gt;"):
            assert part in page.text
        assert "<b>cus" not in page.text
        assert "cus_<b>" not in page.text
        assert "http://" not in page.text, "nothing comes from elsewhere"
        shown = (await client.get("/_sim/state")).json()
        assert shown["accounts"][0]["totals"][0]["value"] == "3"


async def test_without_a_key_or_from_another_pages_script_nothing_is_served(tmp_path: Path) -> None:
    async with (
        served_simulator(tmp_path) as simulator,
        httpx.AsyncClient(base_url=simulator.base_url, trust_env=False) as client,
    ):
        assert (await client.get("/v1/account")).status_code == 401
        foreign = {"origin": "https://example.com"}
        assert (await client.post("/_sim/reset", headers=foreign)).status_code == 403
        own = {"origin": simulator.base_url}
        assert (await client.post("/_sim/reset", headers=own)).status_code == 200


async def test_a_hostile_client_ends_nothing_but_its_own_connection(tmp_path: Path) -> None:
    async with (
        served_simulator(tmp_path) as simulator,
        httpx.AsyncClient(base_url=simulator.base_url, headers=KEY, trust_env=False) as client,
    ):
        url = simulator.base_url
        await raw(url, b"nonsense\r\n\r\n")
        await raw(url, b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: " + b"b" * 100_000)
        await raw(url, b"POST /v1/customers HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
        large = await client.post("/v1/customers", content=b"a=" + b"b" * (1 << 20))
        assert large.status_code == 413
        for body in (
            b"\xff\xfe",
            b"a[b=c",
            b"[]=1&[x]=2",
            b"metadata=1&metadata[a]=2",
            b"a=1&" * 3000,
        ):
            response = await client.post("/v1/customers", content=body)
            assert response.status_code in (200, 400), body[:20]
        for body in (b"", b"[]", b"{", b"\xff", b'{"events": 3}', b'{"events": [1]}'):
            response = await client.post("/v2/billing/meter_event_stream", content=body)
            assert response.status_code in (400, 401), body
        both = b"GET /_sim/faults HTTP/1.1\r\nhost: x\r\n\r\n" * 2
        assert (await raw(url, both)).count(b"200") == 2, (
            "requests sent at once are answered in order"
        )
        assert (await client.get("/v1/account")).status_code == 200


async def test_a_reset_is_a_reset_and_no_polite_end(tmp_path: Path) -> None:
    async with served_simulator(tmp_path) as simulator:
        simulator.app.state.add_fault("reset", count=1)
        stream = await trio.open_tcp_stream("127.0.0.1", int(simulator.base_url.rpartition(":")[2]))
        async with stream:
            await stream.send_all(
                b"GET /v1/account HTTP/1.1\r\nhost: x\r\nauthorization: Bearer x\r\n\r\n"
            )
            with pytest.raises(trio.BrokenResourceError), trio.fail_after(60):
                await stream.receive_some(65536)


async def test_webhooks_go_out_signed_and_again_until_they_are_taken(tmp_path: Path) -> None:
    taken: list[bytes] = []
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]

    async def hook(stream: trio.SocketStream) -> None:
        data = b""
        while b"\r\n\r\n" not in data or b'"type"' not in data:
            data += await stream.receive_some(65536)
        status = b"200 OK" if taken else b"500 No"
        taken.append(data)
        await stream.send_all(
            b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, hook, listeners)
        async with (
            served_simulator(tmp_path, webhook_url=f"http://127.0.0.1:{port}/hook") as simulator,
            httpx.AsyncClient(base_url=simulator.base_url, headers=KEY, trust_env=False) as client,
        ):
            made = (await client.post("/v1/customers")).json()
            with trio.fail_after(60):
                while simulator.app.state.world.deliveries:
                    await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert len(taken) == 2
    assert all(b"stripe-signature: t=" in one.lower() for one in taken)
    sent = json.loads(taken[1].partition(b"\r\n\r\n")[2])
    assert sent["data"]["object"]["id"] == made["id"]


async def test_a_port_that_is_taken_is_refused_in_words(tmp_path: Path) -> None:
    from gateway.simulator.ledger import Settings
    from gateway.simulator.serving import serve_simulator

    async with served_simulator(tmp_path / "one") as simulator:
        port = int(simulator.base_url.rpartition(":")[2])
        with pytest.raises(SimulatorRefused, match="choose another port"):
            await serve_simulator(
                tmp_path / "two",
                "127.0.0.1",
                port,
                Settings(),
                now_us=lambda: 0,
                fresh_seed=lambda: "x",
            )


async def test_what_is_ensured_from_inside_is_kept_as_from_outside(tmp_path: Path) -> None:
    async with served_simulator(tmp_path) as simulator:
        simulator.ensure(meters=("calls",), customers=("cus_a",))
        account = simulator.account
    async with served_simulator(tmp_path) as simulator:
        assert simulator.account == account
        shown = simulator.app.state.summary()["accounts"][0]
        assert [one["event_name"] for one in shown["meters"]] == ["calls"]
        assert [one["id"] for one in shown["customers"]] == ["cus_a"]
