"""Pushing as a client sees it: targets, decisions, flush, dry runs, cutovers; over the Stripe simulator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from tests.helpers.served import START_US, Served, served, ten_times_as_fast

TENANT = {"tenantId": "acme"}
HOUR_US = 3_600_000_000


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with served(stripe={}) as running:
        yield running


async def ask(server: Served, method: str, path: str, status: int = 200, **more: Any) -> Any:
    response = await server.client.request(method, path, **more)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def mapped(server: Served, **fields: Any) -> dict[str, Any]:
    body = TENANT | {"metric": "calls", "meterEventName": "calls"} | fields
    return dict(await ask(server, "POST", "/v1/mappings", 201, json=body))


async def customer(server: Served, ref: str = "anna", **fields: Any) -> dict[str, Any]:
    body = TENANT | {"stripeCustomerId": "cus_anna"} | fields
    response = await server.client.put(f"/v1/customers/{ref}", json=body)
    assert response.status_code in (200, 201), response.text
    return dict(response.json())


async def use(server: Served, key: str, quantity: Any, ref: str = "anna", **more: Any) -> None:
    event = TENANT | {"metric": "calls", "customerRef": ref, "quantity": quantity}
    await server.ingest(event | {"idempotencyKey": key} | more)


async def pushes(server: Served, **params: Any) -> list[dict[str, Any]]:
    found = await ask(server, "GET", "/v1/pushes", params=TENANT | params)
    return list(found["pushes"])


async def flushed(server: Served, **body: Any) -> dict[str, Any]:
    """A flush, with the server's clock going on meanwhile, as a real one would."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ten_times_as_fast, server.clock)
        answer = await ask(server, "POST", "/v1/pushes/flush", json=TENANT | body)
        nursery.cancel_scope.cancel()
    return dict(answer)


async def test_what_was_used_is_pushed_and_shown(server: Served) -> None:
    await mapped(server, stripeScale="0.5")
    await customer(server)
    await use(server, "1", "7.5")
    answer = await flushed(server, customerRef="anna")
    assert (answer["complete"], answer["total"], answer["missing"]) == (True, 1, []), answer
    (one,) = await pushes(server)
    assert (one["local"], one["billable"], one["pushed"], one["due"]) == (7.5, 3, 3, 0)
    assert (one["remainder"], one["standing"], one["stripeScale"]) == ("0.75", "current", 0.5)
    assert (one["stripeCustomerId"], one["mode"], one["role"]) == ("cus_anna", "sim", "main")
    assert one["customerRefs"] == ["anna"]
    assert one["openIntent"] is None
    assert not one["needsPerson"]
    (text,) = await pushes(server, numbers="string")
    assert (text["local"], text["pushed"]) == ("7.5", "3")
    metrics = (await server.client.get("/metrics")).text
    assert 'stripe_push_total{result="delivered"} 1.0' in metrics
    assert 'push_targets{standing="current"} 1.0' in metrics
    assert "cus_anna" not in metrics


async def test_a_list_has_filters_and_pages(server: Served) -> None:
    await mapped(server)
    for number in range(5):
        await customer(server, f"c{number}", stripeCustomerId=f"cus_{number}")
        await use(server, f"k{number}", number + 1, f"c{number}")
    await use(server, "nobody", 1, "nobody")
    assert (await flushed(server))["complete"] is False, "nobody's usage goes nowhere"
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await ask(server, "GET", "/v1/pushes", params=TENANT | {"limit": 2} | cursor)
        seen += [one["stripeCustomerId"] for one in page["pushes"]]
        assert page["total"] == 5
        if page["nextCursor"] is None:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert seen == [f"cus_{number}" for number in range(5)]
    (nowhere,) = page["unroutable"]
    assert (nowhere["customerRef"], nowhere["metric"]) == ("nobody", "calls")
    assert "PUT /v1/customers" in nowhere["reason"]
    (connection,) = page["connections"]
    assert (connection["role"], connection["isSimulator"], connection["error"]) == (
        "main",
        True,
        None,
    )
    assert len(await pushes(server, customerRef="c3")) == 1
    assert len(await pushes(server, standing="current")) == 5
    assert await pushes(server, standing="quarantined") == []
    assert await pushes(server, metric="other") == []
    await ask(server, "GET", "/v1/pushes?cursor=x", 400)
    await ask(server, "GET", "/v1/pushes?standing=fine", 400)


async def test_a_flush_says_what_is_missing_when_its_time_is_over() -> None:
    async with served(stripe={}) as server:
        await mapped(server)
        await customer(server)
        await use(server, "1", 5)
        fault = {"kind": "error", "endpoint": "POST /v1/billing/meter_events"}
        assert server.stripe is not None
        put_fault(server, fault)
        answer = await flushed(server, timeoutSeconds=1)
        assert not answer["complete"]
        (missing,) = answer["missing"]
        assert (missing["due"], missing["pushed"], missing["standing"]) == (5, 0, "in_flight")
        assert missing["openIntent"]["value"] == "5"
        assert missing["lastError"]


def put_fault(server: Served, fault: dict[str, Any]) -> None:
    import msgspec

    from gateway.simulator.wire import Request

    assert server.stripe is not None
    response = server.stripe.handle(
        Request("POST", "/_sim/faults", body=msgspec.json.encode(fault))
    )
    assert response.status == 200, response.body


async def test_without_anything_to_push_through_a_flush_is_a_409() -> None:
    async with served() as server:
        answer = await ask(server, "POST", "/v1/pushes/flush", 409, json=TENANT)
        assert "no Stripe key is set" in answer["detail"]
        ready = await ask(server, "GET", "/health/ready")
        assert ready["checks"]["stripe"] == {
            "status": "ok",
            "facts": {"simulator": False, "pushing": False},
        }


async def test_readiness_says_that_the_simulator_is_used(server: Served) -> None:
    await mapped(server)
    await customer(server)
    await use(server, "1", 5)
    await flushed(server)
    await server.client.get("/metrics")
    check = (await ask(server, "GET", "/health/ready"))["checks"]["stripe"]
    assert check["status"] == "ok"
    assert check["facts"] == {
        "simulator": True,
        "pushing": True,
        "modes": {"main": "sim"},
        "targetsThatNeedAPerson": 0,
    }


async def test_where_stripe_held_something_a_person_decides(server: Served) -> None:
    stripe_had(server, "calls", "cus_anna", 40)
    server.clock.us += HOUR_US
    await mapped(server)
    await customer(server)
    await use(server, "1", 100)
    await flushed(server, timeoutSeconds=1)
    (one,) = await pushes(server)
    assert (one["standing"], one["needsBaseline"], one["needsPerson"]) == (
        "awaiting_baseline",
        True,
        True,
    )
    assert "40" in one["reason"]
    path = f"/v1/pushes/{one['id']}/baseline"
    await ask(server, "POST", path, 400, json={"baseline": "guess"})
    decided = await ask(server, "POST", path, json={"baseline": "stripe"})
    assert (decided["pushed"], decided["due"]) == (40, 60)
    await ask(server, "POST", path, 409, json={"baseline": "stripe"})
    assert (await flushed(server))["complete"]
    assert (await pushes(server))[0]["pushed"] == 100
    trail = await ask(server, "GET", "/v1/audit", params=TENANT)
    assert "push.baseline" in [entry["action"] for entry in trail["entries"]]
    for action, body in (("carry-forward", {"into": "credit"}), ("settle", {"delivered": True})):
        await ask(server, "POST", f"/v1/pushes/{one['id']}/{action}", 409, json=body)
        await ask(server, "POST", f"/v1/pushes/none/{action}", 404, json=body)
    await ask(server, "POST", f"/v1/pushes/{one['id']}/resume", 409, json=None)


def stripe_had(server: Served, event_name: str, stripe_customer: str, value: int) -> None:
    """Usage that somebody else sent to Stripe."""
    from urllib.parse import urlencode

    from gateway.simulator.wire import Request

    assert server.stripe is not None
    fields = {
        "event_name": event_name,
        "payload[stripe_customer_id]": stripe_customer,
        "payload[value]": str(value),
        "identifier": "foreign",
    }
    headers = {
        "authorization": "Bearer sk_test_of_these_tests",
        "content-type": "application/x-www-form-urlencoded",
    }
    response = server.stripe.handle(
        Request(
            "POST", "/v1/billing/meter_events", headers=headers, body=urlencode(fields).encode()
        )
    )
    assert response.status == 200, response.body


async def test_another_meter_holds_from_the_next_period(server: Served) -> None:
    made = await mapped(server)
    await customer(server)
    await use(server, "1", 5)
    await flushed(server)
    path = f"/v1/mappings/{made['id']}"
    changed = await ask(server, "PUT", path, json={"meterEventName": "other"})
    assert changed["pushEffectiveFrom"] == "2026-02-01T00:00:00.000Z"
    again = await ask(server, "PUT", path, json={"unit": "u"})
    assert again["pushEffectiveFrom"] == "2026-02-01T00:00:00.000Z", "it is still to come"
    await use(server, "2", 3)
    await flushed(server)
    (one,) = await pushes(server)
    assert one["pushed"] == 8, "the running period keeps its meter"
    server.clock.us = START_US + 14 * HOUR_US  # 2026-02-01
    await use(server, "3", 2)
    await flushed(server)
    new, old = await pushes(server)
    assert (new["pushed"], old["pushed"]) == (2, 8)
    assert new["stripeObject"] != old["stripeObject"]


@pytest.mark.parametrize(("cutover", "moved", "left"), [("move", 8, 0), ("carry", 3, 5)])
async def test_a_cutover_holds_now_and_its_dry_run_says_so(
    server: Served, cutover: str, moved: int, left: int
) -> None:
    made = await mapped(server)
    await customer(server)
    await use(server, "1", 5)
    await flushed(server)
    path = f"/v1/mappings/{made['id']}"
    body = {"meterEventName": "other", "cutover": cutover}
    head = server.gateway.meter.log.head().next_sequence
    dry = await ask(server, "PUT", path, json=body | {"dryRun": True})
    assert server.gateway.meter.log.head().next_sequence == head, "nothing was recorded"
    sent = sorted(row["wouldSend"] for row in dry["preview"])
    assert sent == ([-5, 5] if cutover == "move" else [])
    assert (await ask(server, "GET", path))["meterEventName"] == "calls"
    queried = await ask(
        server,
        "PUT",
        path,
        json={"meterEventName": "other"},
        params={"cutover": cutover, "dryRun": "true"},
    )
    assert queried["preview"] == dry["preview"]
    changed = await ask(server, "PUT", path, json=body)
    assert changed["pushEffectiveFrom"] <= changed["updatedAt"]
    await use(server, "2", 3)
    await use(server, "3", 4, "bert")
    await customer(server, "bert", stripeCustomerId="cus_bert")
    await flushed(server)
    by_customer = {
        (one["stripeCustomerId"], one["stripeObject"]): one["pushed"]
        for one in await pushes(server)
    }
    assert len({target for _, target in by_customer}) == 2
    assert sorted(n for (who, _), n in by_customer.items() if who == "cus_anna") == sorted(
        [moved, left]
    )
    assert max(n for (who, _), n in by_customer.items() if who == "cus_bert") == 4


async def test_another_stripe_customer_holds_from_the_next_period(server: Served) -> None:
    await mapped(server)
    await customer(server)
    await use(server, "1", 5)
    await flushed(server)
    changed = await customer(server, stripeCustomerId="cus_other")
    assert changed["pushEffectiveFrom"] == "2026-02-01T00:00:00.000Z"
    await use(server, "2", 3)
    await flushed(server)
    (one,) = await pushes(server)
    assert (one["stripeCustomerId"], one["pushed"]) == ("cus_anna", 8)
    dry = await customer(server, stripeCustomerId="cus_third", cutover="move", dryRun=True)
    assert sorted((row["stripeCustomerId"], row["wouldSend"]) for row in dry["preview"]) == [
        ("cus_anna", -8),
        ("cus_third", 8),
    ]
    moved = await customer(server, stripeCustomerId="cus_third", cutover="move")
    assert moved["pushEffectiveFrom"] is not None
    await flushed(server)
    assert {one["stripeCustomerId"]: one["pushed"] for one in await pushes(server)} == {
        "cus_anna": 0,
        "cus_third": 8,
    }


async def test_a_customer_that_was_its_own_reference_is_not_billed_twice(server: Served) -> None:
    await mapped(server)
    await use(server, "1", 5, "cus_direct")
    await flushed(server)
    changed = await customer(server, "cus_direct", stripeCustomerId="cus_other")
    assert changed["pushEffectiveFrom"] == "2026-02-01T00:00:00.000Z"
    await use(server, "2", 1, "cus_direct")
    await flushed(server)
    (one,) = await pushes(server)
    assert (one["stripeCustomerId"], one["pushed"]) == ("cus_direct", 6)


async def test_before_anything_was_pushed_a_change_holds_at_once(server: Served) -> None:
    made = await mapped(server, meterEventName=None)
    await use(server, "1", 5)
    changed = await ask(
        server, "PUT", f"/v1/mappings/{made['id']}", json={"meterEventName": "calls"}
    )
    assert changed["pushEffectiveFrom"] is None
    assert (await customer(server))["pushEffectiveFrom"] is None
    await flushed(server)
    (one,) = await pushes(server)
    assert one["pushed"] == 5


WRONG = [
    ({"stripeScale": 0}, "stripeScale"),
    ({"stripeScale": -1}, "stripeScale"),
    ({"stripeScale": "1234567.123456"}, "stripeScale"),
    ({"stripeScale": "NaN"}, "stripeScale"),
    ({"finalizationGraceHours": 721}, "finalizationGraceHours"),
    ({"finalizationGraceHours": "0.0000001"}, "finalizationGraceHours"),
    ({"baseline": "later"}, "baseline"),
    ({"meterEventName": "x" * 101}, "meterEventName"),
    ({"driver": "usage_record"}, "meterEventName"),
    ({"driver": "usage_record", "meterEventName": None, "shadowMeterEventName": "x"}, "shadow"),
    ({"priceConfig": {"model": "flat"}}, "priceConfig.currency"),
    ({"priceConfig": []}, "priceConfig"),
    ({"priceConfig": {"model": "flat", "currency": "USD", "unitPrice": "x" * 20_000}}, "price"),
    ({"cutover": "jump"}, "cutover"),
    ({"autoRepair": "yes"}, "autoRepair"),
]


@pytest.mark.parametrize(("fields", "named"), WRONG)
async def test_a_wrong_stripe_field_is_named(fields: dict[str, Any], named: str) -> None:
    async with served() as server:
        body = TENANT | {"metric": "calls", "meterEventName": "calls"} | fields
        problem = await ask(server, "POST", "/v1/mappings", 400, json=body)
        assert problem["errors"][0]["field"].startswith(named)
        assert not server.gateway.meter.registry.mappings


async def test_stripe_fields_are_kept_and_shown_in_one_form() -> None:
    async with served() as server:
        made = await mapped(
            server,
            stripeScale="1.50",
            finalizationGraceHours=72,
            baseline="stripe",
            autoRepair=True,
            currency="USD",
            priceConfig={"model": "flat", "unitPrice": 0.0000001},
            shadowMeterEventName="calls_shadow",
            shadowStripeAccount="acct_1",
        )
        assert (made["stripeScale"], made["finalizationGraceHours"]) == (1.5, 72)
        assert made["priceConfig"] == {"model": "flat", "currency": "USD", "unitPrice": 0.0000001}
        mapping = server.gateway.meter.registry.mappings[made["id"]]
        assert (mapping.stripe_scale, mapping.finalization_grace_us) == ("1.5", 72 * HOUR_US)
        assert '"unitPrice":0.0000001' in (mapping.price_config or "")
        path = f"/v1/mappings/{made['id']}"
        again = await ask(server, "PUT", path, json=made)
        assert again | {"updatedAt": 0} == made | {"updatedAt": 0}, "what was answered can be put"
        reset = {"stripeScale": None, "finalizationGraceHours": None, "priceConfig": None}
        cleared = await ask(server, "PUT", path, json=reset | {"baseline": None})
        assert (cleared["stripeScale"], cleared["finalizationGraceHours"]) == (1, 1)
        assert (cleared["priceConfig"], cleared["baseline"]) == (None, None)


async def test_a_subscription_item_belongs_to_one_tenant() -> None:
    async with served() as server:
        await mapped(server, driver="usage_record", meterEventName=None, subscriptionItemId="si_1")
        body = {"tenantId": "umbra", "metric": "m", "subscriptionItemId": "si_1"}
        problem = await ask(server, "POST", "/v1/mappings", 409, json=body)
        assert "acme" not in problem["detail"]
        theirs = {"tenantId": "umbra", "subscriptionItems": {"m": "si_1"}}
        await ask(server, "PUT", "/v1/customers/u", 409, json=theirs)
        await customer(server, subscriptionItems={"calls": "si_2"})
        theirs = {"tenantId": "umbra", "metric": "m", "subscriptionItemId": "si_2"}
        await ask(server, "POST", "/v1/mappings", 409, json=theirs)


async def test_a_metric_that_is_mapped_to_nothing_at_stripe_is_no_finding(server: Served) -> None:
    await mapped(server, metric="seats", meterEventName=None)
    await use(server, "1", 5, metric="seats")
    assert (await flushed(server))["complete"]
    found = await ask(server, "GET", "/v1/pushes", params=TENANT)
    assert (found["unroutableTotal"], found["unroutable"]) == (0, [])
    await customer(server, "bert", subscriptionItems={"seats": "si_1"}, stripeCustomerId=None)
    found = await ask(server, "GET", "/v1/pushes", params=TENANT)
    assert [one["customerRef"] for one in found["unroutable"]] == ["anna"], (
        "bert's item shows intent"
    )
