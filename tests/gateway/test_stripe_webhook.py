"""Stripe's webhooks: what is believed, what is done, and that nothing is done twice or leaks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import trio

from engine.config import load
from engine.core.billing import RejectedEvent, RejectionReport, Unread
from gateway.simulator.state import sign
from gateway.stripe_signature import (
    SEEN_MAX,
    SIGNATURES_MAX,
    TOLERANCE_SECONDS,
    SeenEvents,
    objection,
)
from tests.gateway.test_pushes import customer, flushed, mapped, pushes, put_fault, use
from tests.helpers.served import START_US, WEBHOOK_SECRET, Served, served

PATH = "/v1/webhooks/stripe"
BODY = b'{"id": "evt_1", "type": "ping"}'
NOW_S = START_US // 1_000_000
OTHER = "whsec_another_secret"


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with served(stripe={"webhook_url": "http://127.0.0.1:1/"}) as running:
        yield running


async def send(
    server: Served, event: dict[str, Any] | bytes, *, status: int = 200, header: str | None = None
) -> dict[str, Any]:
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    if header is None:
        header = sign(WEBHOOK_SECRET, body, server.clock.us // 1_000_000)
    response = await server.client.post(PATH, content=body, headers={"stripe-signature": header})
    assert response.status_code == status, response.text
    return dict(response.json())


def signature(secret: str, body: bytes = BODY, at_s: int = NOW_S) -> str:
    return sign(secret, body, at_s).partition("v1=")[2]


@pytest.mark.parametrize(
    ("header", "fits"),
    [
        (sign(WEBHOOK_SECRET, BODY, NOW_S), True),
        (f"t={NOW_S},v1={signature(OTHER)},v1={signature(WEBHOOK_SECRET)},v0=x", True),
        (f"v1={signature(WEBHOOK_SECRET)}, t={NOW_S}", True),
        (sign(WEBHOOK_SECRET, BODY, NOW_S - TOLERANCE_SECONDS), True),
        (sign(WEBHOOK_SECRET, BODY, NOW_S + TOLERANCE_SECONDS), True),
        (sign(WEBHOOK_SECRET, BODY, NOW_S - TOLERANCE_SECONDS - 1), False),
        (sign(WEBHOOK_SECRET, BODY, NOW_S + TOLERANCE_SECONDS + 1), False),
        (sign(OTHER, BODY, NOW_S), False),
        (sign(WEBHOOK_SECRET, BODY + b" ", NOW_S), False),
        (sign(WEBHOOK_SECRET, BODY, NOW_S).replace(f"t={NOW_S}", f"t={NOW_S + 1}"), False),
        (f"t={NOW_S},v0={signature(WEBHOOK_SECRET)}", False),
        (f"t={NOW_S},t={NOW_S},v1={signature(WEBHOOK_SECRET)}", False),
        (f"v1={signature(WEBHOOK_SECRET)}", False),
        (f"t=-1,v1={signature(WEBHOOK_SECRET, at_s=-1)}", False),
        (f"t={NOW_S},v1={signature(WEBHOOK_SECRET).upper()}", False),
        (f"t={NOW_S}," + ",".join(["v1=" + "0" * 64] * (SIGNATURES_MAX + 1)), False),
        ("t=" + "9" * 5000, False),
        ("", False),
        (None, False),
    ],
)
def test_only_what_is_signed_now_with_a_known_secret_is_believed(
    header: str | None, fits: bool
) -> None:
    why = objection(header, BODY, ("whsec_first", WEBHOOK_SECRET), NOW_S)
    assert (why is None) == fits
    assert WEBHOOK_SECRET not in (why or "")
    assert objection(header, BODY, (), NOW_S) is not None, "without a secret nothing is"


def test_events_seen_have_a_bound_and_are_forgotten_after_the_tolerance() -> None:
    seen = SeenEvents()
    assert seen.is_new("a", 0)
    assert not seen.is_new("a", TOLERANCE_SECONDS)
    assert seen.is_new("a", 3 * TOLERANCE_SECONDS), "its signature is too old by now anyway"
    for number in range(SEEN_MAX + 10):
        assert seen.is_new(str(number), 4 * TOLERANCE_SECONDS)
    assert len(seen._seen) == SEEN_MAX
    seen.forget(str(SEEN_MAX))
    assert seen.is_new(str(SEEN_MAX), 4 * TOLERANCE_SECONDS)


async def test_what_is_not_signed_does_nothing_and_is_not_logged(
    server: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    event = {"id": "evt_1", "type": "customer.deleted", "secretText": "do-not-log-me"}
    problem = await send(server, event, status=400, header="t=1,v1=" + "0" * 64)
    assert "STRIPE_WEBHOOK_SECRET" in problem["detail"]
    await send(server, event)
    await send(server, b"not json", status=400)
    await send(server, b"[" * 100_000, status=400)
    await send(server, b"{}", status=400)
    captured = capsys.readouterr()
    logged = captured.out + captured.err
    assert "webhook_refused" in logged
    assert "do-not-log-me" not in logged
    assert WEBHOOK_SECRET not in logged
    large = await server.client.post(PATH, content=b" " * (2 << 20))
    assert large.status_code == 413


async def test_without_a_secret_every_webhook_is_refused() -> None:
    async with served() as server:
        problem = await send(server, BODY, status=400)
        assert "STRIPE_WEBHOOK_SECRET" in problem["detail"]


async def test_a_type_that_means_nothing_here_is_a_200(server: Served) -> None:
    assert await send(server, BODY) == {"received": True, "handled": False}


async def pushed(server: Served, quantity: int = 5) -> dict[str, Any]:
    await mapped(server)
    await customer(server)
    await use(server, "1", quantity)
    assert (await flushed(server))["complete"]
    (one,) = await pushes(server)
    return one


async def test_a_rejected_event_is_due_again_and_only_once(server: Served) -> None:
    await mapped(server)
    await customer(server)
    put_fault(
        server,
        {"kind": "reject", "endpoint": "POST /v1/billing/meter_events", "count": 1}
        | {"code": "meter_event_invalid_value"},
    )
    await use(server, "1", 5)
    await flushed(server)
    assert (await pushes(server))[0]["pushed"] == 5
    server.clock.us += 60_000_000
    assert server.stripe is not None
    due = server.stripe.due_webhooks(server.clock.us)
    found = {msgspec.json.decode(one.body)["type"]: one for one in due}
    webhook = found["v1.billing.meter.error_report_triggered"]
    event = msgspec.json.decode(webhook.body)
    assert "data" not in event, "a thin event names the report, which is fetched"
    headers = {"stripe-signature": sign(WEBHOOK_SECRET, webhook.body, server.clock.us // 1_000_000)}
    for handled in (True, False):
        response = await server.client.post(PATH, content=webhook.body, headers=headers)
        assert response.json() == {"received": True, "handled": handled}
    assert (await pushes(server))[0]["pushed"] == 0
    assert (await flushed(server))["complete"]
    # The same event again after the tolerance: it names what is settled by now.
    server.clock.us += 2_000_000_000
    again = await send(server, event)
    assert again["handled"]
    assert (await pushes(server))[0]["pushed"] == 5
    assert "stripe_rejected_events_total 2.0" in (await server.client.get("/metrics")).text


async def test_a_report_that_cannot_be_read_now_is_asked_for_again(server: Served) -> None:
    await pushed(server)
    billing = server.gateway.meter.started.push.connections["main"].billing
    answers: list[RejectionReport | Unread] = [
        Unread("Stripe is down"),
        Unread("no such event", is_missing=True),
    ]

    async def rejections(_event: str, _account: str | None) -> RejectionReport | Unread:
        return answers.pop(0)

    billing.rejections = rejections  # type: ignore[method-assign]
    event = {"id": "evt_9", "object": "v2.core.event", "type": "v1.billing.meter.no_meter_found"}
    await send(server, event, status=503)
    assert await send(server, event) == {"received": True, "handled": False}, "none of ours"
    assert not answers


@pytest.mark.parametrize("keys", ["of the other mode", "none", "one that must not be used"])
async def test_a_report_that_no_key_can_read_is_answered_and_counted(
    server: Served, keys: str, capsys: pytest.CaptureFixture[str]
) -> None:
    connections = server.gateway.meter.started.push.connections
    with trio.fail_after(5):
        while connections["main"].proven is None:
            await trio.sleep(0.01)
    if keys == "none":
        connections.clear()
    elif keys == "one that must not be used":
        connections["main"].proven, connections["main"].is_useless = None, True
    event = {"id": "evt_live", "object": "v2.core.event", "livemode": True}
    event["type"] = "v1.billing.meter.no_meter_found"
    for _ in range(2):
        assert await send(server, event) == {"received": True, "handled": False}
    assert "stripe_reports_without_key_total 1.0" in (await server.client.get("/metrics")).text
    assert "webhook_without_key" in "".join(capsys.readouterr())


async def test_what_comes_before_stripe_said_whose_the_keys_are_comes_again(server: Served) -> None:
    one = await pushed(server)
    connection = server.gateway.meter.started.push.connections["main"]
    proven, connection.proven = connection.proven, None
    deleted = {"id": "evt_5", "type": "customer.deleted", "data": {"object": {"id": "cus_anna"}}}
    report = {"id": "evt_6", "type": "v1.billing.meter.no_meter_found"}
    final = {"id": "evt_7", "type": "invoice.finalized"}
    final["data"] = {"object": {"customer": "cus_anna", "period_end": 1_769_904_000}}  # type: ignore[assignment]
    for event in (deleted, report, final):
        await send(server, event, status=503)
    connection.proven = proven
    assert (await send(server, deleted))["handled"]
    await use(server, "2", 1)
    (now,) = await pushes(server)
    assert (now["id"], now["standing"]) == (one["id"], "stopped")


async def test_what_a_report_does_not_name_is_read_back_at_stripe(server: Served) -> None:
    await pushed(server)
    started = server.gateway.meter.started
    (lane,) = server.gateway.meter.push.ledger.lanes
    billing = started.push.connections["main"].billing

    async def rejections(_event: str, _account: str | None) -> RejectionReport | Unread:
        named = (RejectedEvent("somebody-elses", "no"),)
        return RejectionReport(lane.object_id, 3, named)

    billing.rejections = rejections  # type: ignore[method-assign]
    event = {"id": "evt_9", "object": "v2.core.event"}
    event["type"] = "v1.billing.meter.error_report_triggered"
    assert (await send(server, event))["handled"]
    assert started.reconciler._due[lane] <= server.clock.us + started.reconciler.options.lag_us
    assert (await pushes(server))[0]["pushed"] == 5, "a sample that is not named proves nothing"


async def test_a_final_invoice_takes_nothing_more_in(server: Served) -> None:
    one = await pushed(server)
    end_s = 1_769_904_000  # 2026-02-01
    server.clock.us = (end_s + 600) * 1_000_000
    invoice = {
        "customer": "cus_anna",
        "period_end": end_s,
        "status_transitions": {"finalized_at": end_s + 300},
    }
    event = {"id": "evt_2", "type": "invoice.finalized", "created": end_s + 301}
    assert not (await send(server, event | {"data": {"object": invoice | {"customer": "cus_x"}}}))[
        "handled"
    ]
    event["id"] = "evt_3"
    live = event | {"livemode": True, "data": {"object": invoice}}
    assert not (await send(server, live))["handled"], "a live account is not this one"
    event["id"] = "evt_4"
    assert (await send(server, event | {"data": {"object": invoice}}))["handled"]
    await use(server, "late", 2, ts="2026-01-31T23:00:00Z")
    (now,) = await pushes(server)
    assert (now["id"], now["standing"], now["due"]) == (one["id"], "finalized", 2)
    assert now["finalizesAt"] == "2026-02-01T00:05:00.000Z"
    response = await server.client.post(
        f"/v1/pushes/{one['id']}/carry-forward", json={"into": "current"}
    )
    assert response.status_code == 200, response.text
    assert response.json()["carried"] == {"current": 2}
    assert (await flushed(server))["complete"]
    new, _old = await pushes(server)
    assert (new["pushed"], new["carriedIn"]) == (2, 2)


async def test_a_final_invoice_of_a_period_without_pushes_takes_nothing_in_either(
    server: Served,
) -> None:
    """Usage of that period comes later, when the setting alone would still take its invoice for open."""
    await mapped(server, finalizationGraceHours=72)
    await customer(server)
    end_s = 1_769_904_000  # 2026-02-01
    server.clock.us = (end_s + 600) * 1_000_000
    invoice = {
        "customer": "cus_anna",
        "period_end": end_s,
        "status_transitions": {"finalized_at": end_s + 300},
    }
    event = {"type": "invoice.finalized", "data": {"object": invoice}}
    for number, handled in enumerate((True, False)):
        answer = await send(server, event | {"id": f"evt_{number}"})
        assert answer["handled"] == handled, "told again it changes nothing"
    await use(server, "late", 2, ts="2026-01-31T23:00:00Z")
    await use(server, "new", 3, ts="2026-02-01T00:01:00Z")
    await flushed(server)
    new, old = await pushes(server)
    assert (old["standing"], old["due"], old["pushed"]) == ("finalized", 2, 0)
    assert old["finalizesAt"] == "2026-02-01T00:05:00.000Z"
    assert (new["standing"], new["pushed"]) == ("current", 3)
    response = await server.client.post(
        f"/v1/pushes/{old['id']}/carry-forward", json={"into": "current"}
    )
    assert response.status_code == 200, response.text
    assert (await flushed(server))["complete"]
    new, old = await pushes(server)
    assert (new["pushed"], old["pushed"], old["finalizesAt"]) == (5, 0, "2026-02-01T00:05:00.000Z")


async def test_a_deleted_customer_is_stopped_until_somebody_resumes(server: Served) -> None:
    one = await pushed(server)
    event = {"id": "evt_5", "type": "customer.deleted", "data": {"object": {"id": "cus_anna"}}}
    assert (await send(server, event))["handled"]
    await use(server, "2", 1)
    (now,) = await pushes(server)
    assert (now["standing"], now["reason"], now["needsPerson"]) == (
        "stopped",
        "the customer was deleted at Stripe",
        True,
    )
    response = await server.client.post(f"/v1/pushes/{one['id']}/resume")
    assert response.status_code == 200, response.text
    assert (await flushed(server))["complete"]


async def test_a_subscription_that_changed_is_asked_about_again(server: Served) -> None:
    await pushed(server)
    connection = server.gateway.meter.started.push.connections["main"]
    assert not connection.stale(10)
    event = {
        "id": "evt_6",
        "type": "customer.subscription.updated",
        "data": {"object": {"customer": "cus_anna", "items": {"data": [{"id": "si_1"}]}}},
    }
    assert (await send(server, event))["handled"]
    with trio.fail_after(60):
        while connection.stale(10):
            await trio.sleep(0.01)


async def test_a_shape_of_a_newer_version_is_passed_over(server: Served) -> None:
    await pushed(server)
    event = {"id": "evt_7", "type": "invoice.finalized", "data": {"object": {"period_end": "x"}}}
    assert await send(server, event) == {"received": True, "handled": False}


def test_secrets_of_webhooks_come_from_the_settings() -> None:
    settings = load({"STRIPE_WEBHOOK_SECRET": f"{WEBHOOK_SECRET},{OTHER}"}, None, {})
    assert settings.stripe_webhook_secrets == (WEBHOOK_SECRET, OTHER)
