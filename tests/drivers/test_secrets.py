"""A key, or a part of it, is in no outcome, message, repr, log, traceback or file, whatever goes wrong."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import stripe

from engine.core.billing import Destination
from engine.drivers.billing import StripeBilling
from engine.drivers.calls import StripeCalls
from engine.drivers.h11_wire import H11Wire
from engine.drivers.httpx_wire import HttpxWire
from engine.drivers.standalone import StripeBillingDriver
from tests.drivers.fake_stripe import KEY, Call, Reply, Silence, fake_stripe
from tests.drivers.test_outcomes import ANSWERS, both_wires
from tests.drivers.test_stream import request as stream_request
from tests.drivers.test_stripe_billing import METER, MTR, RECORD

ROOT = Path(__file__).parents[2]
PARTS = (KEY, KEY[-4:], KEY[8:20], "sk_test")


def assert_clean(text: str) -> None:
    """No key and no part of one."""
    for part in PARTS:
        assert part not in text, f"{part} is in {text[:2000]}"


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """All that any logger says meanwhile, from DEBUG on."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    listener = Listener(logging.NOTSET)
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("", "stripe")}
    root.addHandler(listener)
    for name in levels:
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(listener)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def parrot(status: int, *, partly: bool, is_json: bool = True) -> Reply:
    """An answer that repeats the key."""
    shown = f"sk_test_{'*' * 20}{KEY[-4:]}" if partly else KEY
    message = f"Invalid API Key provided: {shown}. Authorization: Bearer {shown}"
    body = json.dumps({"error": {"type": "invalid_request_error", "message": message}})
    return Reply(status, (body if is_json else f"<html>{message}</html>").encode())


EVIL: list[Reply | Silence] = [
    *[parrot(status, partly=partly) for status in (400, 401, 403, 404, 409, 429, 500, 302) for partly in (True, False)],
    *[parrot(status, partly=False, is_json=False) for status in (200, 400, 500)],
    Reply(200, json.dumps({"identifier": KEY}).encode()),
    Reply(200, json.dumps({"id": KEY, "livemode": KEY}).encode()),
    Reply(200, f'{{"id": "{KEY}'.encode()),
    Reply(raw=f"{KEY} nonsense\r\n\r\n".encode(), ends=True),
    Reply(raw=f"HTTP/1.1 200 OK\r\n{KEY}\x00: {KEY}\r\n\r\n".encode(), ends=True),
    Reply(200, b'{"identifier": "i-1"}', {"Request-Id": f"req_{KEY}"}),
    Reply(400, b'{"error": {"message": "no"}}', {"Request-Id": KEY}),
    Silence(ends=True),
]  # fmt: skip


@both_wires
@pytest.mark.parametrize("reply", EVIL, ids=range(len(EVIL)))
async def test_no_answer_brings_the_key_to_light(
    make_wire: type[H11Wire] | type[HttpxWire],
    reply: Reply | Silence,
    logged: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stripe, "log", "debug")
    async with fake_stripe(lambda _: reply) as fake:
        wire = make_wire()
        billing = StripeBilling(KEY, api_base=fake.url, meter_events_base=fake.url, wire=wire)
        seen: list[object] = [
            await billing.send([METER], [0]),
            await billing.send([RECORD], [0]),
            await billing.send([stream_request("a"), stream_request("b")], [0, 0]),
            await billing.cancel(METER),
            await billing.prove(),
            await billing.resolve(Destination("meter", item="si_1")),
            await billing.resolve(Destination("meter", event_name="x", customer="cus_1")),
            await billing.read(MTR, "cus_1", 60, 120, None),
            billing,
            vars(billing),
        ]
        driver = StripeBillingDriver(test_key=KEY, api_base=fake.url, wire=wire)
        for asked in (
            lambda: driver.create_test_clock(1),
            lambda: driver.get_usage_summary("si_1", 60),
            lambda: driver.record_usage(
                "test",
                None,
                subscription_item_id="si_1",
                quantity=1,
                period_start=60,
                idempotency_key="k",
            ),
        ):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, its words are looked at
                await asked()
            seen.append("".join(traceback.format_exception(caught.value)))
            seen.append(repr(caught.value))
        seen += [driver, vars(driver)]
        await wire.aclose()
    for one in seen:
        assert_clean(repr(one))
    captured = capfd.readouterr()
    assert_clean("\n".join(logged))
    assert_clean(captured.out + captured.err)
    assert any("Request to Stripe api" in line for line in logged), "the listener hears the library"


async def test_the_library_never_holds_the_key() -> None:
    calls = StripeCalls(KEY, H11Wire())
    assert calls._client._requestor.api_key == "[key]"
    assert_clean(repr(calls))
    assert_clean(repr(calls._http))


@pytest.mark.parametrize("key", ["", "short", f"{KEY}\n", f" {KEY}", f"{KEY}ü", "x" * 600])
def test_a_key_that_can_not_be_sent_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ValueError, match="a Stripe key is") as caught:
        StripeBilling(key)
    assert_clean(str(caught.value))


@pytest.mark.parametrize(
    "keys",
    [
        {"live_key": KEY},
        {"test_key": "sk_live_51FakeFakeFakeFakeSecretKey"},
        {"live_key": "rk_test_51FakeFakeFakeFakeSecretKey"},
        {},
    ],
    ids=range(4),
)
def test_a_key_of_the_other_mode_is_refused_without_showing_it(keys: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="_key") as caught:
        StripeBillingDriver(**keys)
    assert "Fake" not in str(caught.value)


def test_no_example_of_an_outcome_shows_a_key() -> None:
    assert len(ANSWERS) > 30
    for row in ANSWERS:
        assert_clean(repr(row[3]))


ALONE = """
import sys, trio
from engine.drivers import StripeBillingDriver
async def main():
    driver = StripeBillingDriver(test_key=sys.argv[1], api_base=sys.argv[2])
    for number in range(3):
        try:
            await driver.create_test_clock(1_790_000_000)
        except Exception as error:
            print(type(error).__name__)
    await driver.aclose()
trio.run(main)
"""


@pytest.mark.slow
async def test_nothing_is_written_to_the_home_directory_and_nothing_tells_about_calls_before(
    tmp_path: Path,
) -> None:
    import trio

    def answer(_: Call) -> Reply:
        return Reply(
            200, b'{"id": "clock_1", "frozen_time": 1, "status": "ready"}', {"Request-Id": "req_1"}
        )

    environ = {
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PATH": os.environ["PATH"],
    }
    async with fake_stripe(answer) as fake:
        done = await trio.run_process(
            [sys.executable, "-W", "error", "-c", ALONE, KEY, fake.url],
            env=environ,
            cwd=ROOT,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
        )
    assert done.stdout == b""
    assert len(fake.calls) == 3
    assert list(tmp_path.rglob("*")) == []
    for call in fake.calls:
        assert "x-stripe-client-telemetry" not in call.headers
        assert "telemetry_id" not in call.headers["x-stripe-client-user-agent"]
