"""The contract check finds what it is for: calls that Stripe's own types refuse. And the drivers make none."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.billing import Destination
from engine.drivers.billing import StripeBilling
from engine.drivers.h11_wire import H11Wire
from tests.drivers.contract import ENDPOINTS, ContractBroken, check_call, strict_struct
from tests.drivers.fake_stripe import KEY, Call, Reply, fake_stripe
from tests.drivers.test_stream import request as stream_request
from tests.drivers.test_stripe_billing import METER, MTR

EVENTS = "/v1/billing/meter_events"
STREAM = "/v2/billing/meter_event_stream"
EVENT = {"event_name": "api", "payload": {"value": "5", "stripe_customer_id": "cus_1"}}
METER_PARAMS = {"display_name": "x", "event_name": "api", "default_aggregation": {"formula": "sum"}}


@pytest.mark.parametrize(
    ("method", "path", "params"),
    [
        ("post", EVENTS, {**EVENT, "identifer": "a typo"}),
        ("post", EVENTS, {"event_name": "api", "payload": {"value": 5}}),
        ("post", EVENTS, {"event_name": "api"}),
        ("post", EVENTS, {**EVENT, "timestamp": "2026-01-01T00:00:00Z"}),
        ("post", EVENTS, {**EVENT, "timestamp": 1.5}),
        ("post", EVENTS, {**EVENT, "timestamp": "1790000000"}),
        ("post", STREAM, {"events": [{**EVENT, "timestamp": 1_790_000_000}]}),
        ("post", STREAM, {"events": [{**EVENT, "identifer": "a typo"}]}),
        ("post", "/v1/billing/meters", {**METER_PARAMS, "default_aggregation": {"formula": "max"}}),
        ("post", "/v1/billing/meter_event_adjustments", {"event_name": "api", "type": "void"}),
        ("get", "/v1/billing/meters/mtr_1/event_summaries", {"customer": "c", "start_time": 60}),
        (
            "get",
            "/v1/billing/meters/mtr_1/event_summaries",
            {"customer": "c", "start_time": 60, "end_time": 120, "value_grouping_window": "minute"},
        ),
        ("get", "/v1/billing/meters", {"status": "archived"}),
        ("post", "/v1/subscription_items/si_1/usage_records", {"quantity": 1, "action": "replace"}),
        ("post", "/v1/subscription_items/si_1/usage_records", {"quantity": "1"}),
        ("post", "/v1/billing/meter_event", EVENT),
        ("get", EVENTS, EVENT),
    ],
    ids=range(17),
)
def test_a_call_that_stripes_types_refuse_is_found(
    method: str, path: str, params: dict[str, Any]
) -> None:
    with pytest.raises(ContractBroken):
        check_call(method, path, params)


def test_a_call_that_is_right_is_let_through() -> None:
    check_call("post", EVENTS, {**EVENT, "identifier": "a", "timestamp": 1_790_000_000})
    check_call("post", STREAM, {"events": [{**EVENT, "timestamp": "2026-01-01T00:00:00Z"}]})
    check_call("post", "/v1/billing/meters", METER_PARAMS)
    for _, _, params_type in ENDPOINTS:
        strict_struct(params_type)


async def test_every_call_of_the_port_is_checked(
    checked_calls: list[tuple[str, str]],
) -> None:
    async with fake_stripe(lambda _: Reply()) as fake:
        wire = H11Wire()
        billing = StripeBilling(KEY, api_base=fake.url, meter_events_base=fake.url, wire=wire)
        await billing.prove()
        await billing.send([METER], [0])
        await billing.send([stream_request("a")], [0])
        await billing.cancel(METER)
        await billing.read(MTR, "cus_1", 60, 120, None)
        await billing.resolve(Destination("meter", item="si_1"))
        await wire.aclose()
        assert len(checked_calls) == len(fake.calls) > 5


async def test_a_wrong_call_of_a_driver_does_not_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Call] = []

    def answer(call: Call) -> Reply:
        seen.append(call)
        return Reply()

    async with fake_stripe(answer) as fake, StripeBilling(KEY, api_base=fake.url) as billing:
        # As if the driver gave a number for a text: the form that leaves would look the same.
        monkeypatch.setattr("engine.drivers.billing._flaw", lambda _: None)
        changed = {name: getattr(METER, name) for name in METER.__struct_fields__} | {"value": 5}
        with pytest.raises(ContractBroken, match=r"Expected `str`, got `int`"):
            await billing.send([type(METER)(**changed)], [0])
        assert seen == []
