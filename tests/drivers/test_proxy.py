"""Where the environment names a proxy, calls go through it by httpx; to this machine itself they never do."""

from __future__ import annotations

import pytest

from engine.core.billing import Delivered, RetryLater
from engine.drivers.billing import StripeBilling
from engine.drivers.opening import open_wire
from tests.drivers.fake_stripe import KEY, Call, Reply, fake_stripe, meter_event_reply
from tests.drivers.test_stripe_billing import METER


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("environ", "base", "name"),
    [
        ({}, "https://api.stripe.com", "h11"),
        ({"HTTPS_PROXY": "http://proxy.test:3128"}, "https://api.stripe.com", "httpx"),
        ({"ALL_PROXY": "http://proxy.test:3128"}, "https://api.stripe.com", "httpx"),
        ({"HTTP_PROXY": "http://proxy.test:3128"}, "https://api.stripe.com", "h11"),
        (
            {"HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": ".stripe.com"},
            "https://api.stripe.com",
            "h11",
        ),
        ({"HTTP_PROXY": "http://proxy.test:3128"}, "http://127.0.0.1:12111", "h11"),
        ({"HTTP_PROXY": "http://proxy.test:3128"}, "http://localhost:12111", "h11"),
        ({"HTTP_PROXY": "http://proxy.test:3128"}, "http://[::1]:12111", "h11"),
    ],
)
async def test_the_wire_is_chosen_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], base: str, name: str
) -> None:
    for variable, text in environ.items():
        monkeypatch.setenv(variable, text)
    wire = open_wire((base,))
    assert wire.name == name
    await wire.aclose()


async def test_a_call_goes_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_stripe(meter_event_reply) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        async with StripeBilling(KEY, api_base="http://stripe.test") as billing:
            assert await billing.send([METER], [0]) == [Delivered("req_1")]
        assert proxy.calls[0].headers["host"] == "stripe.test"


async def test_a_proxy_that_gives_no_way_never_got_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(call: Call) -> Reply:
        assert call.method == "CONNECT"
        return Reply(403, b"not allowed")

    async with fake_stripe(refuse) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with StripeBilling(KEY, api_base="https://stripe.test") as billing:
            [outcome] = await billing.send([METER], [0])
        assert isinstance(outcome, RetryLater)
        assert "proxy" in outcome.reason
        assert len(proxy.calls) == 1
