"""StripeBillingDriver: usage recorded and read without a meter of ours, by real rules (the simulator) where it has them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import trio
import trio.testing

from engine.drivers.standalone import (
    StripeBillingDriver,
    TryLater,
    UsageRefused,
    UsageUnknown,
    unix_seconds,
    whole_units,
)
from tests.drivers.fake_stripe import (
    KEY,
    Call,
    Reply,
    Silence,
    error_reply,
    fake_stripe,
    json_reply,
    meter_event_reply,
)
from tests.drivers.test_resolving import LEGACY_PRICE, WORLD, item, meter, serving
from tests.drivers.test_stripe_billing import summaries_of, usage_record_reply

LIVE = "sk_live_51FakeFakeFakeFakeLiveKey0001"
METERS = [meter()]


def answering(on_post: Any = meter_event_reply, world: Any = None) -> Any:
    """Questions from a world, POSTs by a function, summaries of 7."""
    ask = serving(world or WORLD, METERS)

    def answer(call: Call) -> Reply | Silence:
        if call.path.endswith("event_summaries"):
            return summaries_of("7.0")(call)
        if call.path.endswith("usage_record_summaries"):
            return json_reply(
                {
                    "data": [{"id": "s", "total_usage": 9, "period": {"start": 100, "end": 200}}],
                    "has_more": False,
                }
            )
        return on_post(call) if call.method == "POST" else ask(call)

    return answer


async def record(driver: StripeBillingDriver, **changed: Any) -> Any:
    """One record of an item, changed as told."""
    arguments: dict[str, Any] = {
        "mode": "test",
        "stripe_account": None,
        "subscription_item_id": "si_1",
        "quantity": 5,
        "period_start": 100,
        "idempotency_key": "k-1",
        **changed,
    }
    return await driver.record_usage(**arguments)


async def test_usage_of_an_item_goes_to_its_meter_at_the_first_whole_minute() -> None:
    async with (
        fake_stripe(answering()) as fake,
        StripeBillingDriver(test_key=KEY, api_base=fake.url) as driver,
    ):
        recorded = await record(driver, stripe_account="acct_7", quantity=Decimal("5.0"))
        assert recorded == ("meter", "k-1", 5, False, "req_1")
        post = fake.calls[-1]
        assert post.form == {
            "event_name": "api_calls",
            "identifier": "k-1",
            "timestamp": "120",
            "payload[who]": "cus_1",
            "payload[how_much]": "5",
        }
        assert post.headers["stripe-account"] == "acct_7"
        await record(driver, stripe_account="acct_7")
        assert (
            len([call for call in fake.calls if call.path.startswith("/v1/subscription_items")])
            == 1
        )


async def test_usage_by_event_name_needs_no_item() -> None:
    async with (
        fake_stripe(answering()) as fake,
        StripeBillingDriver(test_key=KEY, api_base=fake.url) as driver,
    ):
        await record(
            driver,
            subscription_item_id=None,
            meter_event_name="api_calls",
            stripe_customer_id="cus_1",
            quantity="-3",
        )
        assert fake.calls[-1].form["payload[how_much]"] == "-3"


async def test_usage_of_a_legacy_item_replaces_the_periods_total() -> None:
    world = {**WORLD, "/v1/subscription_items/si_1": item(price=LEGACY_PRICE)}
    async with (
        fake_stripe(answering(usage_record_reply, world)) as fake,
        StripeBillingDriver(test_key=KEY, api_base=fake.url) as driver,
    ):
        recorded = await record(driver, quantity=70)
        assert recorded.driver == "usage_record"
        assert fake.calls[-1].form == {"quantity": "70", "timestamp": "100", "action": "set"}
        summary = await driver.get_usage_summary("si_1", 100)
        assert summary == (Decimal(9), 100, 200)


async def test_each_mode_has_its_own_key() -> None:
    async with (
        fake_stripe(answering()) as fake,
        StripeBillingDriver(LIVE, KEY, api_base=fake.url) as driver,
    ):
        await record(driver, mode="live")
        assert {call.headers["authorization"] for call in fake.calls} == {f"Bearer {LIVE}"}
        fake.calls.clear()
        await record(driver, mode="test")
        assert {call.headers["authorization"] for call in fake.calls} == {f"Bearer {KEY}"}
        with pytest.raises(ValueError, match="which mode"):
            await driver.get_usage_summary("si_1", 100)


async def test_an_event_that_was_there_before_is_said_to_have_been() -> None:
    def answer(_: Call) -> Reply:
        return error_reply(400, "An event already exists with identifier k-1.")

    async with (
        fake_stripe(answering(answer)) as fake,
        StripeBillingDriver(test_key=KEY, api_base=fake.url) as driver,
    ):
        assert (await record(driver)).was_there_before


async def test_the_same_call_after_a_5xx_gets_through_though_stripe_keeps_that_answer() -> None:
    kept: dict[str, Reply] = {}

    def answer(call: Call) -> Reply:
        """The first attempt meets a 500, which is replayed under its key; the others are taken."""
        reply = error_reply(500, "boom") if not kept else meter_event_reply(call)
        return kept.setdefault(call.headers["idempotency-key"], reply)

    async with (
        fake_stripe(answering(answer)) as fake,
        StripeBillingDriver(test_key=KEY, api_base=fake.url) as driver,
    ):
        with pytest.raises(UsageUnknown, match="call again with the same idempotency key"):
            await record(driver)
        assert (await record(driver)).identifier == "k-1"
        assert [call.form["identifier"] for call in fake.calls[-2:]] == ["k-1", "k-1"]
        await record(driver)
        assert list(kept) == ["k-1:0", "k-1:1"]


async def test_a_repeated_call_whose_answer_stripe_kept_is_said_to_have_been_there() -> None:
    def answer(call: Call) -> Reply:
        reply = meter_event_reply(call)
        posts = [one for one in fake.calls if "idempotency-key" in one.headers]
        return (
            reply
            if len(posts) == 1
            else reply._replace(headers={**reply.headers, "Idempotent-Replayed": "true"})
        )

    async with (
        fake_stripe(answering(answer)) as fake,
        StripeBillingDriver(test_key=KEY, api_base=fake.url) as driver,
    ):
        assert not (await record(driver)).was_there_before
        assert (await record(driver)).was_there_before


@pytest.mark.parametrize(
    ("reply", "raised"),
    [
        (error_reply(400, "bad"), UsageRefused),
        (error_reply(500, "boom"), UsageUnknown),
        (Silence(ends=True), UsageUnknown),
        (error_reply(429, "slow", Retry_After="4"), TryLater),
    ],
    ids=range(4),
)
async def test_what_does_not_work_is_raised_for_what_it_is(
    reply: Reply | Silence, raised: type[Exception]
) -> None:
    async with (
        fake_stripe(answering(lambda _: reply)) as fake,
        StripeBillingDriver(test_key=KEY, api_base=fake.url) as driver,
    ):
        with pytest.raises(raised) as caught:
            await record(driver)
        if isinstance(caught.value, TryLater):
            assert caught.value.after_seconds == 4


async def test_a_target_that_is_gone_is_looked_up_anew() -> None:
    replies = [error_reply(400, "No such customer: 'cus_1'", code="resource_missing"), None]

    def answer(call: Call) -> Reply:
        return replies.pop(0) or meter_event_reply(call)

    async with (
        fake_stripe(answering(answer)) as fake,
        StripeBillingDriver(test_key=KEY, api_base=fake.url) as driver,
    ):
        with pytest.raises(UsageRefused, match="cus_1"):
            await record(driver)
        await record(driver)
        assert (
            len([call for call in fake.calls if call.path.startswith("/v1/subscription_items")])
            == 2
        )


@pytest.mark.parametrize(
    ("changed", "raised"),
    [
        ({"mode": "live"}, ValueError),
        ({"quantity": 1.0}, TypeError),
        ({"quantity": True}, TypeError),
        ({"period_start": 1.5}, TypeError),
        ({"period_start": datetime(2026, 1, 1)}, ValueError),  # noqa: DTZ001 - what it must refuse
        ({"subscription_item_id": None}, ValueError),
        ({"meter_event_name": "x"}, ValueError),
        ({"meter_event_name": "x", "stripe_customer_id": "cus_1"}, ValueError),
        ({"idempotency_key": ""}, UsageRefused),
        ({"idempotency_key": "ü"}, UsageRefused),
        ({"subscription_item_id": "si_none"}, UsageRefused),
    ],
    ids=range(11),
)
async def test_arguments_that_can_not_be_right_do_not_leave(
    changed: dict[str, Any], raised: type[Exception]
) -> None:
    async with (
        fake_stripe(answering()) as fake,
        StripeBillingDriver(test_key=KEY, api_base=fake.url) as driver,
    ):
        with pytest.raises(raised):
            await record(driver, **changed)
        assert [call for call in fake.calls if call.method == "POST"] == []


@pytest.mark.parametrize(
    ("quantity", "units"),
    [
        (7, 7),
        ("7", 7),
        ("-7.00", -7),
        (Decimal("1E+3"), 1000),
        ("999999999999999", 999_999_999_999_999),
        (0, 0),
        ("0.0", 0),
    ],
)
def test_a_quantity_is_taken_exactly(quantity: int | str | Decimal, units: int) -> None:
    assert whole_units(quantity) == units


@pytest.mark.parametrize(
    "quantity",
    ["7.5", "1e15", 10**15, "NaN", "Infinity", "x", "", "1e-999999999", "1e999999999", "9" * 65],
)
def test_a_quantity_that_stripe_could_not_take_is_refused(quantity: int | str) -> None:
    with pytest.raises(ValueError, match=r"quantity|Stripe takes whole"):
        whole_units(quantity)


def test_an_instant_is_unix_seconds() -> None:
    assert unix_seconds(datetime(2026, 1, 1, tzinfo=UTC)) == 1_767_225_600


async def test_a_summary_is_read_over_the_whole_minutes_of_the_period() -> None:
    async with (
        fake_stripe(answering()) as fake,
        StripeBillingDriver(test_key=KEY, api_base=fake.url) as driver,
    ):
        assert await driver.get_usage_summary("si_1", 100, "acct_7") == (Decimal("7.0"), 100, 200)
        assert fake.calls[-1].query == {
            "customer": "cus_1", "start_time": "120", "end_time": "180", "limit": "100",
        }  # fmt: skip
        assert fake.calls[-1].headers["stripe-account"] == "acct_7"
        with pytest.raises(ValueError, match="give period_end"):
            await driver.get_usage_summary("si_1", 40)
        await driver.get_usage_summary("si_1", 0, period_end=100)
        assert fake.calls[-1].query["end_time"] == "60"
        with pytest.raises(ValueError, match="ends after"):
            await driver.get_usage_summary("si_1", 100, period_end=100)


async def test_a_test_clock_is_made_and_advanced_until_it_stands(
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    states = ["ready", "advancing", "advancing", "advancing", "ready"]
    seen: list[tuple[str, str, str]] = []

    class ClockWire:
        name = "clock"

        async def exchange(self, method: str, url: str, headers: Any, body: bytes) -> Any:
            from engine.drivers.wire import Answer

            assert headers["Authorization"] == f"Bearer {KEY}"
            seen.append((method, url.partition("/v1/test_helpers")[2], body.decode()))
            reply = json_reply({"id": "clock_1", "frozen_time": 5, "status": states.pop(0)})
            return Answer(reply.status, reply.headers, reply.body)

        async def aclose(self) -> None:
            """Nothing is open."""

    driver = StripeBillingDriver(LIVE, KEY, wire=ClockWire())
    clock = await driver.create_test_clock(4, "renewals")
    assert (clock.id, clock.status) == ("clock_1", "ready")
    clock = await driver.advance_test_clock("clock_1", 5)
    assert clock.status == "ready"
    assert seen == [
        ("POST", "/test_clocks", "frozen_time=4&name=renewals"),
        ("POST", "/test_clocks/clock_1/advance", "frozen_time=5"),
        *[("GET", "/test_clocks/clock_1", "")] * 3,
    ]
    states[:] = ["internal_failure", *["advancing"] * 400]
    with pytest.raises(UsageRefused, match="internal_failure"):
        await driver.advance_test_clock("clock_1", 6)
    with pytest.raises(TryLater, match="still advances"):
        await driver.advance_test_clock("clock_1", 6)
    with pytest.raises(ValueError, match="no test clock"):
        await driver.advance_test_clock("clock_1/x", 6)
    with pytest.raises(ValueError, match="need test_key"):
        await StripeBillingDriver(LIVE, wire=ClockWire()).create_test_clock(4)
