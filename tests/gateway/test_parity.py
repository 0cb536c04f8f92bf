"""Parity certificates over HTTP: every link of the chain, its verdicts, who may have one; each held against the log."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine.core.parity import StripeSide
from engine.witness.canonical import canonical, parse
from tests.gateway.test_pushes import (
    HOUR_US,
    ask,
    customer,
    flushed,
    mapped,
    pushes,
    stripe_had,
    use,
)
from tests.helpers.parity import verified
from tests.helpers.served import ADMIN_KEY, Served, bearer, served

TENANT = {"tenantId": "acme"}
PRICE = {"model": "flat", "currency": "USD", "unitPrice": 0.01}
JANUARY = "/v1/parity/2026-01"


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with served(stripe={}) as running:
        yield running


async def certificate(server: Served, **params: Any) -> dict[str, Any]:
    """A certificate, whose bytes are canonical, and that the log bears out."""
    wanted = TENANT | {"maxAgeSeconds": 0} | params
    response = await server.client.get(JANUARY, params=wanted)
    assert response.status_code == 200, response.text
    document = parse(response.content)
    assert canonical(document) == response.content, "what is sent is what is signed"
    assert verified(document, server.gateway.meter.log) == []
    return document


async def test_the_chain_goes_from_events_to_the_projected_line(server: Served) -> None:
    await mapped(server, priceConfig=PRICE)
    await customer(server)
    await use(server, "1", "7.5")
    await use(server, "2", "100")
    await flushed(server)
    document = await certificate(server)
    (chain,), (target,) = document["chains"], document["targets"]
    assert chain["events"] == {
        "count": 2,
        "sum": "107.5",
        "late": 0,
        "firstPosition": 5,
        "lastPosition": 6,
    }
    assert (chain["counter"]["sum"], chain["total"], chain["routing"]) == (
        "107.5",
        "107.5",
        "pushed",
    )
    assert chain["shares"][0]["target"] == target["id"]
    assert (target["local"], target["billable"], target["pushed"]) == ("107.5", "107", "107")
    assert float(target["stripe"]["units"]) == 107
    assert (target["projected"]["amount"], target["projected"]["currency"]) == ("1.07", "USD")
    assert (chain["verdict"], target["verdict"], document["verdict"]) == ("green",) * 3
    assert document["log"]["id"] == server.gateway.meter.log_id.hex()


async def test_corrections_and_late_events_are_links_of_their_own(server: Served) -> None:
    await mapped(server)
    await customer(server)
    await use(server, "1", 10)
    await use(server, "late", 5, ts="2026-01-20T00:00:00Z")
    body = TENANT | {"metric": "calls", "customerRef": "anna", "delta": -1, "reason": "credit"}
    made = await ask(
        server, "POST", "/v1/adjustments", 201, json=body | {"periodStart": "2026-01-01"}
    )
    await ask(server, "POST", f"/v1/adjustments/{made['id']}/approve")
    await flushed(server)
    (chain,) = (await certificate(server))["chains"]
    held = chain["adjustments"]
    assert (held["approved"], held["pending"], held["heldCount"]) == (1, 1, 1)
    assert (held["amount"], held["heldSum"], chain["total"]) == ("-1", "5", "9")
    assert (chain["events"]["count"], chain["events"]["late"]) == (2, 1)
    assert (chain["verdict"], chain["reason"]) == ("waiting", "adjustments wait for a decision")


async def test_usage_that_somebody_else_sent_to_stripe_is_red(server: Served) -> None:
    await mapped(server)
    await customer(server)
    await use(server, "1", 10)
    await flushed(server)
    assert (await certificate(server))["verdict"] == "green"
    stripe_had(server, "calls", "cus_anna", 5)
    server.clock.us += HOUR_US
    document = await certificate(server)
    assert document["verdict"] == document["chains"][0]["verdict"] == "red"
    (target,) = document["targets"]
    assert float(target["stripe"]["units"]) == 15
    assert target["reason"] == "Stripe holds more than was pushed"


async def test_a_summary_that_lags_waits_and_is_never_red(server: Served) -> None:
    await mapped(server)
    await customer(server)
    await use(server, "1", 10)
    await flushed(server)
    certifier = server.gateway.certifier
    assert certifier is not None
    certifier._side = lambda *_: StripeSide("4", server.clock.us, None)  # type: ignore[method-assign]
    document = await certificate(server)
    assert (document["verdict"], document["targets"][0]["verdict"]) == ("waiting", "waiting")
    assert "proves nothing" in document["targets"][0]["reason"]


async def test_what_is_pushed_after_the_certificates_position_is_said(server: Served) -> None:
    await mapped(server)
    await customer(server)
    await use(server, "1", 10)
    await flushed(server)
    certifier = server.gateway.certifier
    assert certifier is not None
    read_all = certifier._read_all

    async def and_push(*given: Any) -> Any:
        await use(server, "2", 1)
        await flushed(server)
        return await read_all(*given)

    certifier._read_all = and_push  # type: ignore[method-assign]
    document = await certificate(server)
    assert (document["targets"][0]["pushed"], document["verdict"]) == ("10", "waiting")
    assert document["targets"][0]["standing"] == "moved"


async def test_what_is_not_mapped_or_goes_nowhere_says_so(server: Served) -> None:
    await mapped(server)
    await use(server, "1", 10, ref="nobody")
    await use(server, "2", 10, metric="other")
    await flushed(server, timeoutSeconds=0)
    document = await certificate(server)
    found = {one["metric"]: (one["routing"], one["verdict"]) for one in document["chains"]}
    assert found == {"calls": ("nowhere", "red"), "other": ("unbilled", "unbilled")}
    assert document["verdict"] == "red"
    assert all(one["reason"] for one in document["chains"])


async def test_of_what_was_cut_over_a_part_that_goes_nowhere_is_never_green(server: Served) -> None:
    """The part from before the cutover is at Stripe; what was used since is billed by nobody."""
    await mapped(server)
    await customer(server)
    await use(server, "1", 4)
    await flushed(server)
    gone = {"subscriptionItems": {"calls": "si_gone"}, "cutover": "carry"}
    await customer(server, **gone)
    await use(server, "2", 5)
    await flushed(server, timeoutSeconds=0)
    document = await certificate(server)
    (chain,) = document["chains"]
    assert (chain["total"], [one["share"] for one in chain["shares"]]) == ("9", ["4"])
    assert (chain["routing"], chain["verdict"], document["verdict"]) == ("nowhere", "red", "red")
    assert "si_gone" in chain["reason"]


async def test_customers_who_share_a_stripe_customer_come_together(server: Served) -> None:
    await mapped(server)
    for ref in ("anna", "team"):
        await customer(server, ref)
    await customer(server, "ben", stripeCustomerId="cus_ben")
    await use(server, "1", "1.5", ref="anna")
    await use(server, "2", "2.5", ref="team")
    await use(server, "3", "9", ref="ben")
    await flushed(server)
    document = await certificate(server, customerRef="anna")
    assert [one["customerRef"] for one in document["chains"]] == ["anna", "team"]
    assert [one["local"] for one in document["targets"]] == ["4"]
    assert len((await certificate(server))["chains"]) == 3


@pytest.mark.parametrize(
    ("choice", "beyond", "pushed"),
    [("stripe", "0", "100"), ("period", "40", "100"), ("now", "-60", "100")],
)
async def test_what_stripe_held_at_the_baseline_is_expected_of_it_beside_what_was_pushed(
    server: Served, choice: str, beyond: str, pushed: str
) -> None:
    stripe_had(server, "calls", "cus_anna", 40)
    server.clock.us += HOUR_US
    await mapped(server)
    await customer(server)
    await use(server, "1", 100)
    for _ in range(50):
        await flushed(server, timeoutSeconds=1)
        if (await pushes(server))[0]["standing"] == "awaiting_baseline":
            break
    document = await certificate(server)
    (target,) = document["targets"]
    assert (target["standing"], document["verdict"]) == ("awaiting_baseline", "red")
    path = f"/v1/pushes/{target['id']}/baseline"
    await ask(server, "POST", path, json={"baseline": choice})
    assert (await flushed(server))["complete"]
    server.clock.us += HOUR_US
    document = await certificate(server)
    (target,) = document["targets"]
    assert (target["stripe"]["beyond"], target["pushed"]) == (beyond, pushed)
    assert (target["verdict"], document["verdict"]) == ("green", "green")


async def looked(server: Served) -> None:
    """Reconciliation has looked at everything just now."""
    reconciler = server.gateway.meter.started.reconciler
    for book in await reconciler.books.books(None):
        assert all(one.is_read for one in (await reconciler.looker.look(book)).looked)


async def test_totals_of_one_summary_are_held_against_the_whole_of_it_whoever_read_it(
    server: Served,
) -> None:
    made = await mapped(server)
    await customer(server)
    await use(server, "1", 10)
    await flushed(server)
    body = {"stripeScale": "2", "cutover": "carry"}
    await ask(server, "PUT", f"/v1/mappings/{made['id']}", json=body)
    await use(server, "2", 3)
    await flushed(server)
    server.clock.us += HOUR_US
    await looked(server)
    document = await certificate(server, maxAgeSeconds=300)
    for target in document["targets"]:
        assert float(target["stripe"]["units"]) == float(target["stripe"]["expected"]) == 16
    assert document["verdict"] == "green"
    stripe_had(server, "calls", "cus_anna", 5)
    server.clock.us += HOUR_US
    await looked(server)
    document = await certificate(server, maxAgeSeconds=300)
    found = {(float(one["stripe"]["units"]), one["verdict"]) for one in document["targets"]}
    assert (len(document["targets"]), found) == (2, {(21, "red")})


async def test_what_stripe_held_longer_ago_than_was_asked_for_makes_nothing_green(
    server: Served,
) -> None:
    await mapped(server)
    await customer(server)
    await use(server, "1", 10)
    await flushed(server)
    assert (await certificate(server, maxAgeSeconds=300))["verdict"] == "green"
    assert server.stripe is not None
    server.stripe.add_fault("unavailable", "GET /v1/billing/meters/*")
    server.clock.us += HOUR_US
    document = await certificate(server, maxAgeSeconds=300)
    (target,) = document["targets"]
    assert (target["stripe"]["units"], target["stripe"]["readAt"]) == (None, None)
    assert (target["verdict"], document["verdict"]) == ("waiting", "waiting")
    assert (await certificate(server, maxAgeSeconds=7200))["verdict"] == "green", (
        "as it was asked for"
    )


async def test_a_push_to_one_total_of_a_summary_makes_the_others_reading_too_old(
    server: Served,
) -> None:
    made = await mapped(server)
    await customer(server)
    await use(server, "1", 10)
    await flushed(server)
    body = {"stripeScale": "2", "cutover": "carry"}
    await ask(server, "PUT", f"/v1/mappings/{made['id']}", json=body)
    await looked(server)
    await use(server, "2", 3)
    await flushed(server)
    server.clock.us += 60_000_000
    document = await certificate(server, maxAgeSeconds=300)
    assert {float(one["stripe"]["units"]) for one in document["targets"]} == {16}
    assert document["verdict"] == "green"


async def test_a_period_without_use_is_an_empty_certificate(server: Served) -> None:
    document = await certificate(server)
    assert (document["chains"], document["targets"], document["verdict"]) == ([], [], "empty")


@pytest.mark.parametrize("month", ["2026-13", "2026-1", "january", "2026-01-01"])
async def test_a_month_that_is_none_is_refused(server: Served, month: str) -> None:
    problem = await ask(server, "GET", f"/v1/parity/{month}", 400, params=TENANT)
    assert problem["errors"][0]["field"] == "month"


async def test_a_tenants_key_gets_its_own_certificate_and_no_other() -> None:
    async with served(auth="required") as server:
        for tenant in ("acme", "beta"):
            await server.ingest(
                {
                    "tenantId": tenant,
                    "metric": "calls",
                    "customerRef": f"of-{tenant}",
                    "quantity": 1,
                    "idempotencyKey": "1",
                },
                headers=bearer(ADMIN_KEY),
            )
        key = bearer(await server.key("acme", "reconciliation:read"))
        other = await server.client.get(JANUARY, params={"tenantId": "beta"}, headers=key)
        assert other.status_code == 403
        theirs = await server.client.get(JANUARY, params={"customerRef": "of-beta"}, headers=key)
        assert theirs.json()["chains"] == []
        own = await server.client.get(JANUARY, headers=key)
        assert own.status_code == 200
        assert own.json()["scope"] == {"tenantId": "acme", "customerRef": None}
        assert "beta" not in json.dumps(own.json())
        wrong = bearer(await server.key("acme", "usage:read"))
        assert (await server.client.get(JANUARY, headers=wrong)).status_code == 403
        assert (await server.client.get(JANUARY)).status_code == 401


async def test_nothing_is_certified_while_it_is_not_known_whose_use_a_total_holds(
    server: Served,
) -> None:
    await mapped(server, priceConfig=PRICE)
    await customer(server)
    await use(server, "1", "100")
    await flushed(server)
    connection = server.gateway.meter.started.push.connections["main"]
    proven, connection.proven = connection.proven, None  # as after a start without Stripe
    response = await server.client.get(JANUARY, params=TENANT)
    assert response.status_code == 503, response.text
    assert "not been asked" in response.json()["detail"]
    assert response.headers["retry-after"] == "10"
    connection.proven = proven
    assert (await certificate(server))["verdict"] == "green"
