"""StripeBilling: what leaves for each driver, and what is made of a good answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.core.billing import (
    Delivered,
    Proven,
    PushRequest,
    Reading,
    Refused,
    Resolved,
    Unknown,
    Unread,
)
from engine.drivers.billing import StripeBilling, api_version
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

METER = PushRequest(
    driver="meter",
    identifier="i-1",
    value="12",
    timestamp_s=1_790_000_040,
    api_version=api_version("meter"),
    event_name="api_calls",
    customer="cus_1",
)
RECORD = PushRequest(
    driver="usage_record",
    identifier="i-2",
    value="700",
    timestamp_s=1_790_000_040,
    api_version=api_version("usage_record"),
    item="si_1",
)
ITEM = Resolved("si_1", "cus_1", item="si_1")
MTR = Resolved("mtr_1", "cus_1", event_name="api_calls")


def usage_record_reply(call: Call) -> Reply:
    """The receipt of a usage record."""
    return json_reply(
        {
            "object": "usage_record",
            "quantity": int(call.form["quantity"]),
            "subscription_item": call.path.split("/")[3],
        }
    )


async def test_a_meter_event_leaves_as_it_was_kept() -> None:
    async with (
        fake_stripe(meter_event_reply) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        request = PushRequest(
            driver="meter",
            identifier="i-9",
            value="-12",
            timestamp_s=1_790_000_040,
            api_version="2026-01-01.test",
            event_name="api & calls",
            customer="cus_1",
            customer_key="who",
            value_key="how much",
            connect_account="acct_9",
        )
        assert await billing.send([request], [2]) == [Delivered("req_1")]
        call = fake.calls[0]
        assert (call.method, call.path) == ("POST", "/v1/billing/meter_events")
        assert call.form == {
            "event_name": "api & calls",
            "identifier": "i-9",
            "timestamp": "1790000040",
            "payload[who]": "cus_1",
            "payload[how much]": "-12",
        }
        assert call.headers["authorization"] == f"Bearer {KEY}"
        assert call.headers["idempotency-key"] == "i-9:2"
        assert call.headers["stripe-account"] == "acct_9"
        assert call.headers["stripe-version"] == "2026-01-01.test"
        assert call.headers["content-type"] == "application/x-www-form-urlencoded"
        assert "x-stripe-client-telemetry" not in call.headers


async def test_a_resend_is_the_same_bytes() -> None:
    async with (
        fake_stripe(meter_event_reply) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        for _ in range(2):
            await billing.send([METER], [0])
        assert fake.calls[0] == fake.calls[1]
        assert fake.connections == 1


async def test_a_usage_record_sets_the_total_under_the_last_version_that_has_it() -> None:
    async with (
        fake_stripe(usage_record_reply) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        assert await billing.send([RECORD], [0]) == [Delivered(None)]
        call = fake.calls[0]
        assert call.path == "/v1/subscription_items/si_1/usage_records"
        assert call.form == {"quantity": "700", "timestamp": "1790000040", "action": "set"}
        assert call.headers["stripe-version"] == "2025-02-24.acacia"
        assert call.headers["idempotency-key"] == "i-2:0"


async def test_an_event_is_cancelled_by_its_identifier() -> None:
    def answer(_: Call) -> Reply:
        return json_reply({"object": "billing.meter_event_adjustment", "status": "pending"})

    async with fake_stripe(answer) as fake, StripeBilling(KEY, api_base=fake.url) as billing:
        assert await billing.cancel(METER) == Delivered(None)
        assert fake.calls[0].path == "/v1/billing/meter_event_adjustments"
        assert fake.calls[0].form == {
            "event_name": "api_calls",
            "type": "cancel",
            "cancel[identifier]": "i-1",
        }
        assert isinstance(await billing.cancel(RECORD), Refused)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"identifier": "another"},
        {"identifier": None},
        ["i-1"],
        "i-1",
        None,
    ],
)
async def test_a_success_that_names_another_request_or_none_is_no_receipt(body: object) -> None:
    async with (
        fake_stripe(lambda _: json_reply(body)) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        [outcome] = await billing.send([METER], [0])
        assert outcome == Unknown("a successful answer that is no receipt for this request")


@pytest.mark.parametrize(
    "changed",
    [
        {"value": "1.5"},
        {"value": "1234567890123456"},
        {"value": "01"},
        {"value": "1e3"},
        {"value": ""},
        {"identifier": ""},
        {"identifier": "a" * 101},
        {"identifier": "line\nbreak"},
        {"identifier": "ünicode"},
        {"connect_account": "acct_1\r\nX: y"},
        {"event_name": None},
        {"event_name": "a" * 101},
        {"customer": None},
        {"driver": "usage_record", "item": "si_1/../si_2"},
        {"driver": "usage_record", "item": None},
        {"driver": "usage_record", "item": "si_1", "value": "-1"},
        {"driver": "stream", "value": "1.5"},
    ],
    ids=str,
)
async def test_what_stripe_could_never_take_is_refused_before_it_leaves(
    changed: dict[str, object],
) -> None:
    fields = {name: getattr(METER, name) for name in METER.__struct_fields__}
    async with (
        fake_stripe(meter_event_reply) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        [outcome] = await billing.send([PushRequest(**{**fields, **changed})], [0])
        assert isinstance(outcome, Refused)
        assert fake.calls == []


@pytest.mark.parametrize(
    ("account", "metadata", "livemode", "proven"),
    [
        ("acct_1", {}, True, Proven("acct_1", "live")),
        ("acct_1", None, False, Proven("acct_1", "test")),
        ("acct_1", {"rate_limits": "off"}, True, Proven("acct_1", "live")),
        ("acct_sim_1", {}, False, Proven("acct_sim_1", "sim")),
        ("acct_sim_1", 5, True, Proven("acct_sim_1", "sim")),
        ("acct_sim_1", {"rate_limits": "off"}, True, Proven("acct_sim_1", "sim", True)),
    ],
)
async def test_a_key_is_what_stripe_says_it_is(
    account: str, metadata: object, livemode: bool, proven: Proven
) -> None:
    def answer(call: Call) -> Reply:
        if call.path == "/v1/account":
            return json_reply({"object": "account", "id": account, "metadata": metadata})
        assert call.path == "/v1/balance"
        return json_reply({"object": "balance", "livemode": livemode})

    async with fake_stripe(answer) as fake, StripeBilling(KEY, api_base=fake.url) as billing:
        assert await billing.prove() == proven


async def test_a_key_that_is_refused_is_not_proven() -> None:
    async with (
        fake_stripe(
            lambda _: error_reply(401, "Invalid API Key provided: sk_test_****0042")
        ) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        found = await billing.prove()
        assert isinstance(found, Unread)
        assert "0042" not in found.reason
        assert "Invalid API Key" in found.reason


def summaries_of(*values: str, size: int = 1) -> Callable[[Call], Reply]:
    """Pages of summaries whose values are these JSON texts."""

    def answer(call: Call) -> Reply:
        after = call.query.get("starting_after")
        first = int(after.removeprefix("mtrusg_")) + 1 if after else 0
        page = list(enumerate(values))[first : first + size]
        objects = ",".join(
            f'{{"id":"mtrusg_{index}","aggregated_value":{value}}}' for index, value in page
        )
        more = "true" if first + size < len(values) else "false"
        return Reply(200, f'{{"object":"list","data":[{objects}],"has_more":{more}}}'.encode())

    return answer


@pytest.mark.parametrize(
    ("values", "units"),
    [
        ([], "0"),
        (["7"], "7"),
        (["7.0"], "7.0"),
        (["12345678901234567890.25"], "12345678901234567890.25"),
        (["1.2345678901234567e+16"], "1.2345678901234567e+16"),
        (["-3"], "-3"),
        (["9007199254740993", "0.1", "0.2"], "9007199254740993.3"),
        (["1", "2", "3", "4", "5"], "15"),
    ],
)
async def test_a_total_is_read_digit_by_digit_over_all_pages(values: list[str], units: str) -> None:
    async with (
        fake_stripe(summaries_of(*values)) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        assert await billing.read(MTR, "cus_1", 60, 120, "acct_9") == Reading(units)
        call = fake.calls[0]
        assert call.path == "/v1/billing/meters/mtr_1/event_summaries"
        assert call.query == {
            "customer": "cus_1",
            "start_time": "60",
            "end_time": "120",
            "limit": "100",
        }
        assert call.headers["stripe-account"] == "acct_9"
        assert "idempotency-key" not in call.headers


@pytest.mark.parametrize("value", ['"7"', "null", "[]", "1e999999999", "NaN", "true"])
async def test_a_total_that_is_no_number_is_not_read(value: str) -> None:
    async with (
        fake_stripe(summaries_of(value)) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        assert isinstance(await billing.read(MTR, "cus_1", 60, 120, None), Unread)


@pytest.mark.parametrize(
    ("reply", "is_refused"),
    [
        (error_reply(400, "No such customer: 'cus_1'", code="resource_missing"), True),
        (error_reply(400, "The customer was deleted."), True),
        (error_reply(404, "No such meter", code="resource_missing"), True),
        (error_reply(404, "Unrecognized request URL (GET: /x)."), False),
        (error_reply(401, "Invalid API Key provided"), False),
        (error_reply(403, "may not do this"), False),
        (error_reply(429, "slow"), False),
        (error_reply(500, "boom"), False),
    ],
    ids=range(8),
)
async def test_a_reading_is_refused_where_stripe_refuses_what_was_asked_for_and_not_the_key(
    reply: Reply, is_refused: bool
) -> None:
    async with (
        fake_stripe(lambda _: reply) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        found = await billing.read(MTR, "cus_1", 60, 120, None)
        assert isinstance(found, Unread)
        assert found.is_refused is is_refused
        invoiced = await billing.invoiced(MTR, "cus_1", 120, None)
        assert isinstance(invoiced, Unread)
        assert invoiced.is_refused is is_refused


async def test_a_list_that_never_ends_is_not_read() -> None:
    def answer(_: Call) -> Reply:
        return json_reply({"data": [{"id": "mtrusg_1", "aggregated_value": 1}], "has_more": True})

    async with fake_stripe(answer) as fake, StripeBilling(KEY, api_base=fake.url) as billing:
        assert isinstance(await billing.read(MTR, "cus_1", 60, 120, None), Unread)
        assert len(fake.calls) == 100


@pytest.mark.parametrize(
    ("periods", "found"),
    [
        ([(100, 200, 5), (0, 100, 7)], Reading("5")),
        ([(200, None, 1), (100, 200, 5), (0, 100, 7)], Reading("5")),
        ([(100, None, 9), (0, 100, 7)], Reading("9")),
        ([(None, None, 3), (0, 100, 7)], Reading("3")),
        ([(None, None, 3), (100, 200, 4)], Reading("4")),
        ([(0, 100, 7)], Unread("Stripe shows no period of si_1 that holds 150")),
        ([(151, 200, 7)], Unread("Stripe shows no period of si_1 that holds 150")),
        ([(0, 150, 7)], Unread("Stripe shows no period of si_1 that holds 150")),
        ([(150, 200, 0)], Reading("0")),
    ],
)
async def test_usage_records_are_read_for_the_period_that_holds_the_time_never_summed(
    periods: list[tuple[int | None, int | None, int]], found: Reading | Unread
) -> None:
    def answer(call: Call) -> Reply:
        after = call.query.get("starting_after")
        first = int(after.removeprefix("sis_")) + 1 if after else 0
        start, end, total = periods[first]
        summary = {
            "id": f"sis_{first}",
            "total_usage": total,
            "period": {"start": start, "end": end},
        }
        return json_reply({"data": [summary], "has_more": first + 1 < len(periods)})

    async with fake_stripe(answer) as fake, StripeBilling(KEY, api_base=fake.url) as billing:
        assert await billing.read(ITEM, "cus_1", 150, 210, None) == found
        assert fake.calls[0].headers["stripe-version"] == "2025-02-24.acacia"
        assert len(fake.calls) == len(periods)


async def test_a_stripe_that_can_not_be_asked_is_not_read() -> None:
    async with (
        fake_stripe(lambda _: Silence(ends=True)) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        assert isinstance(await billing.read(MTR, "cus_1", 60, 120, None), Unread)
        assert isinstance(await billing.prove(), Unread)


async def test_a_limit_on_reading_says_how_long_to_wait() -> None:
    async with (
        fake_stripe(lambda _: error_reply(429, "slow", Retry_After="7")) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        found = await billing.read(MTR, "cus_1", 60, 120, None)
        assert isinstance(found, Unread)
        assert found.after_us == 7_000_000


async def test_stripes_clock_is_known_from_its_answers() -> None:
    def answer(_: Call) -> Reply:
        return json_reply({"id": "acct_sim1"}, Date="Thu, 26 Nov 2026 10:00:00 GMT")

    async with fake_stripe(answer) as fake, StripeBilling(KEY, api_base=fake.url) as billing:
        assert billing.stripe_now_s() is None
        await billing.prove()
        now_s = billing.stripe_now_s()
        assert now_s is not None
        assert 0 <= now_s - 1_795_687_200 < 5
