"""The OpenAPI document: whole, true of what is served, and of what is answered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import trio

from engine.core.events import SentEvent
from gateway.app import create_app
from gateway.ingest_document import IngestEvent
from gateway.openapi import TAGS, operation_id
from gateway.routes import Route
from gateway.simulator.state import sign
from gateway.table import ROUTES, openapi_document
from tests.helpers.json_schema import described_responses, mismatch
from tests.helpers.served import WEBHOOK_SECRET, Served, memory_gateway, served, settings_of

DOCUMENT: dict[str, Any] = json.loads(openapi_document())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
by_route = pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.method} {r.path}")


def operation(route: Route) -> dict[str, Any]:
    return dict(DOCUMENT["paths"][route.path][route.method.lower()])


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_the_document_is_whole() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    used = set(references(DOCUMENT))
    there = {
        f"#/components/{kind}/{name}"
        for kind in ("schemas", "responses", "headers")
        for name in DOCUMENT["components"][kind]
    }
    assert used <= there
    # No operation answers 405, but every path does.
    assert there - used <= {"#/components/responses/MethodNotAllowed"}, "nothing is left over"
    assert all(re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) for name in SCHEMAS), "no module is named"
    ids = [operation_id(route) for route in ROUTES]
    assert len(set(ids)) == len(ids)
    assert {route.tag for route in ROUTES} == set(TAGS)


def test_every_rule_of_quart_is_described_and_the_other_way_round() -> None:
    app = create_app(memory_gateway(settings_of())[0])
    rules = {
        (method, re.sub(r"<(?:name:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        if rule.endpoint in {f"{route.method} {route.path}" for route in ROUTES}
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    described = {
        (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    assert rules == described == {(route.method, route.path) for route in ROUTES}


@by_route
def test_every_route_says_what_it_does_takes_and_answers(route: Route) -> None:
    found = operation(route)
    assert found["summary"]
    names = [(parameter["in"], parameter["name"]) for parameter in found["parameters"]]
    assert len(set(names)) == len(names)
    assert {name for kind, name in names if kind == "path"} == set(
        re.findall(r"\{(\w+)\}", route.path)
    )
    assert all(
        parameter["description"] and parameter["schema"] for parameter in found["parameters"]
    )
    assert {"500", str(route.status)} <= set(found["responses"])
    assert ("requestBody" in found) == (route.request is not None or route.takes_raw_body)
    if route.scope is None:
        assert "security" not in found
    else:
        assert {"401", "403"} <= set(found["responses"])
        assert route.scope in found["description"]
        assert ("query", "tenantId") in names, "an identity of all tenants can name one"
    responses = described_responses(DOCUMENT, route.path, route.method)
    for status, response in responses.items():
        assert response["description"]
        own = int(status) in (route.status, *route.other_statuses)
        if not own:
            assert list(response["content"]) == ["application/problem+json"]
        elif route.response is not None:
            schema = response["content"][route.content_type]["schema"]
            assert schema["$ref"].endswith("/" + route.response.__name__)


def test_the_documented_event_is_the_one_that_is_decoded() -> None:
    documented = {field.encode_name for field in msgspec.structs.fields(IngestEvent)}
    assert documented == {field.encode_name for field in msgspec.structs.fields(SentEvent)}
    needed = {f.encode_name for f in msgspec.structs.fields(IngestEvent) if f.required}
    assert needed == {f.encode_name for f in msgspec.structs.fields(SentEvent) if f.required}


async def test_what_is_answered_is_what_is_described() -> None:
    async with served(stripe={}) as server:
        seen: set[str] = set()

        async def ask(method: str, template: str, path: str = "", **more: Any) -> Any:
            response = await server.client.request(method, path or template, **more)
            described = described_responses(DOCUMENT, template, method)
            assert str(response.status_code) in described, (template, response.text)
            content = described[str(response.status_code)].get("content", {})
            kind = response.headers.get("content-type", "").partition(";")[0]
            assert kind in content or not response.content, (template, kind)
            if response.content and kind.endswith("json"):
                problem = mismatch(response.json(), content[kind]["schema"], SCHEMAS, template)
                assert problem is None, problem
            seen.add(f"{method} {template}")
            return response.json() if response.content and kind.endswith("json") else None

        tenant = {"tenantId": "acme"}
        event = {"metric": "calls", "customerRef": "c/1", "quantity": "1.5", "idempotencyKey": "k"}
        old = event | {"idempotencyKey": "old", "ts": "2025-12-01T00:00:00Z"}
        bad = event | {"quantity": -1}
        body = {"events": [tenant | event, tenant | event, tenant | old, tenant | bad]}
        answer = await ask("POST", "/v1/events/ingest", json=body)
        assert [result["status"] for result in answer["results"]] == [
            "accepted",
            "duplicate",
            "accepted",
            "error",
        ]
        made = await ask(
            "POST", "/v1/mappings", json=tenant | {"metric": "calls", "aggregation": "max"}
        )
        one = f"/v1/mappings/{made['id']}"
        await ask("GET", "/v1/mappings")
        await ask("GET", "/v1/mappings/{id}", one)
        await ask("PUT", "/v1/mappings/{id}", one, json={"latenessHours": 1.5, "unit": "calls"})
        await ask("POST", "/v1/mappings", json=tenant | {"metric": "calls"})
        await ask("POST", "/v1/mappings", json=tenant | {"metric": "m", "dryRun": True})
        await ask("PUT", "/v1/mappings/{id}", one, json={"unit": "u"}, params={"dryRun": "true"})
        await ask_pushes(server, ask, tenant)
        await ask("GET", "/v1/parity/{month}", "/v1/parity/2026-01?tenantId=acme")
        await ask("GET", "/v1/parity/{month}", "/v1/parity/January?tenantId=acme")
        await ask("DELETE", "/v1/mappings/{id}", one)
        customer = {"billingAnchor": "2026-01-31T09:30:00Z", "subscriptionItems": {"calls": "si"}}
        template = "/v1/customers/{customerRef}"
        for _ in range(2):
            await ask("PUT", template, "/v1/customers/c%2F1", json=tenant | customer)
        await ask("GET", template, "/v1/customers/c%2F1?tenantId=acme")
        await ask("GET", "/v1/customers", params=tenant)
        params = tenant | {"customerRef": "c/1"}
        await ask("GET", "/v1/usage/current", params=params)
        await ask("GET", "/v1/usage/current", params=params | {"numbers": "string"})
        await ask("GET", "/v1/usage/history", params=params | {"metric": "calls", "since": "-P1D"})
        await ask("GET", "/v1/events", params=tenant)
        await ask("GET", "/v1/events", params=tenant | {"format": "csv", "asOf": "3"})
        await ask("GET", "/v1/usage/current", params=params | {"asOf": "3"})
        period = {"metric": "calls", "periodStart": "2026-01-01"}
        await ask("GET", "/v1/usage/explain", params=params | period)
        await ask("GET", "/v1/usage/counters", params=tenant | {"format": "csv"})
        await ask_reconciliation(ask, tenant)
        await ask_for_corrections(ask)
        await ask_for_prices(server, ask, tenant)
        await ask_for_keys(ask, tenant)
        await ask_backfills(ask, tenant)
        await ask_for_keeping(ask, tenant)
        await ask_system(ask)
        assert seen == {f"{route.method} {route.path}" for route in ROUTES}


async def ask_system(ask: Any) -> None:
    """Every route of health and documentation."""
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/"):
        await ask("GET", path)
    for path in ("/docs", "/openapi.json"):
        for tag in ("*", '"another"'):
            await ask("GET", path, headers={"if-none-match": tag})
    for asset in ("docs.js", "docs.css", "docs.png"):
        await ask("GET", "/docs/{asset}", f"/docs/{asset}")


async def ask_for_keys(ask: Any, tenant: dict[str, str]) -> None:
    """Every route of API keys."""
    body = tenant | {"name": "n", "scopes": ["admin"]}
    key = await ask("POST", "/v1/admin/api-keys", json=body)
    await ask("GET", "/v1/admin/api-keys")
    for action in ("rotate", "revoke", "rotate"):
        template = f"/v1/admin/api-keys/{{id}}/{action}"
        await ask("POST", template, template.replace("{id}", key["id"]))


async def ask_pushes(server: Served, ask: Any, tenant: dict[str, str]) -> None:
    """Every route of pushing."""
    price = {"model": "flat", "currency": "USD", "unitPrice": 1}
    pushed = {"metric": "pushed", "meterEventName": "calls", "priceConfig": price}
    await ask("POST", "/v1/mappings", json=tenant | pushed)
    event = tenant | {"metric": "pushed", "customerRef": "cus_1", "quantity": 7}
    await server.ingest(event | {"idempotencyKey": "pushed"})
    while not (found := await ask("GET", "/v1/pushes", params=tenant))["pushes"]:
        await trio.sleep(0.01)
    await ask("GET", "/v1/pushes", params=tenant | {"numbers": "string"})
    await ask("POST", "/v1/pushes/flush", json=tenant | {"timeoutSeconds": 0})
    for action, body in (
        ("baseline", {"baseline": "now"}),
        ("carry-forward", {"into": "current"}),
        ("settle", {"delivered": True}),
        ("resume", None),
    ):
        template = f"/v1/pushes/{{id}}/{action}"
        for one in (found["pushes"][0]["id"], "none"):
            await ask("POST", template, template.replace("{id}", one), json=body)
    changed = {"stripeCustomerId": "cus_2", "cutover": "move", "dryRun": True}
    template = "/v1/customers/{customerRef}"
    await ask("PUT", template, "/v1/customers/cus_1", json=tenant | changed)
    await ask("POST", "/v1/webhooks/stripe", content=b"{}")
    event_body = b'{"id": "evt_1", "type": "ping"}'
    signature = sign(WEBHOOK_SECRET, event_body, server.clock.us // 1_000_000)
    headers = {"stripe-signature": signature}
    await ask("POST", "/v1/webhooks/stripe", content=event_body, headers=headers)


async def ask_reconciliation(ask: Any, tenant: dict[str, str]) -> None:
    """Every route of reconciliation."""
    job = await ask("POST", "/v1/reconciliation/run", json=tenant)
    for one in (job["jobId"], "none"):
        await ask("GET", "/v1/reconciliation/jobs/{id}", f"/v1/reconciliation/jobs/{one}")
    months = tenant | {"periodStart": "2026-01", "periodEnd": "2026-01"}
    report = "/v1/reconciliation/{period}"
    for more in ({}, {"format": "csv"}, {"numbers": "string"}):
        await ask("GET", report, "/v1/reconciliation/2026-01", params=tenant | more)
        await ask("GET", "/v1/reconciliation/summary", params=months | more)
    await ask("GET", report, "/v1/reconciliation/January", params=tenant)
    body = {"adjustmentIds": ["0" * 16], "reason": "known"}
    await ask("POST", "/v1/reconciliation/adjustments", json=tenant | body)


async def ask_for_corrections(ask: Any) -> None:
    """Every endpoint about adjustments, replay and the audit trail."""
    tenant = {"tenantId": "acme"}
    (held,) = (await ask("GET", "/v1/adjustments", params=tenant))["adjustments"]
    assert held["kind"] == "event"
    of = tenant | {"metric": "calls", "customerRef": "c/1", "periodStart": "2026-01-01"}
    body = of | {"delta": "-2.5", "reason": "credit", "note": "agreed", "requestId": "r"}
    made = await ask("POST", "/v1/adjustments", json=body)
    await ask("POST", "/v1/adjustments", json=body | {"delta": 3})
    await ask("POST", "/v1/adjustments", json=of | {"value": 3, "reason": "credit"})
    for action in ("approve", "revert", "approve"):
        template = f"/v1/adjustments/{{id}}/{action}"
        await ask("POST", template, template.replace("{id}", made["id"]))
    await ask("GET", "/v1/adjustments/{id}", f"/v1/adjustments/{held['id']}")
    await ask("GET", "/v1/adjustments/{id}", "/v1/adjustments/adj_none")
    await ask("POST", "/v1/replay", json=tenant)
    await ask("POST", "/v1/replay", json=tenant | {"mode": "apply", "expect": "other"})
    for action in ("approve", "revert"):
        await ask("POST", f"/v1/adjustments/{action}", json=tenant | {"dryRun": True})
    await ask("GET", "/v1/audit")


async def ask_for_prices(server: Served, ask: Any, tenant: dict[str, str]) -> None:
    """Every endpoint of what usage costs."""
    tiers = [{"upTo": 5, "unitPrice": 1}, {"upTo": None, "unitPrice": "0.5"}]
    price = {"model": "tiered", "currency": "USD", "tiers": tiers}
    await ask("POST", "/v1/mappings", json=tenant | {"metric": "priced", "priceConfig": price})
    event = tenant | {"metric": "priced", "customerRef": "c/1", "quantity": 7}
    await server.ingest(event | {"idempotencyKey": "priced"})
    body = tenant | {"customerRef": "c/1"}
    await ask("POST", "/v1/usage/projection", json=body)
    await ask("POST", "/v1/usage/projection", json=body, params={"numbers": "string", "asOf": "9"})
    await ask("POST", "/v1/usage/projection", json=body | {"periodStart": "2025-12-01"})
    await ask("POST", "/v1/usage/projection", json=body | {"periodEnd": "2025-12-01"})
    item = {"metric": "m", "quantity": "1.5", "priceConfig": price}
    inputs = {"customerId": "c/1", "periodStart": "2026-01-01", "periodEnd": "2026-02-01"}
    scenario = {"name": "n", "description": "d", "inputs": inputs | {"usageItems": [item]}}
    scenario |= {"expected": {"total": 2}, "tolerances": {"total": 1}, "metadata": {"tags": ["t"]}}
    at = "/v1/simulations"
    made = await ask("POST", f"{at}/scenarios", json=tenant | scenario)
    await ask("POST", f"{at}/scenarios", json=tenant | {"inputs": {}})
    one = f"{at}/scenarios/{made['id']}"
    await ask("GET", f"{at}/scenarios", params=tenant)
    await ask("GET", f"{at}/scenarios/{{id}}", one, params=tenant)
    await ask("PUT", f"{at}/scenarios/{{id}}", one, json=tenant | {"tolerances": None})
    run = await ask("POST", f"{at}/runs", json=tenant | {"scenarioId": made["id"], "name": "r"})
    assert [one["field"] for one in run["comparison"]["differences"]] == ["total"]
    await ask("POST", f"{at}/runs", json=tenant | {"scenario": scenario, "name": "r"})
    await ask("POST", f"{at}/runs", json=tenant)
    await ask("GET", f"{at}/runs", params=tenant | {"numbers": "string"})
    await ask("GET", f"{at}/runs/{{id}}", f"{at}/runs/{run['id']}", params=tenant)
    many = {"scenarioIds": [made["id"]], "scenarios": [scenario], "name": "b"}
    batch = await ask("POST", f"{at}/batch", json=tenant | many)
    await ask("GET", f"{at}/batch/{{id}}", f"{at}/batch/{batch['id']}", params=tenant)
    asked = tenant | {"since": "2026-01-01", "priceConfig": {"priced": price, "other": price}}
    await ask("POST", f"{at}/backtest", json=asked)
    await ask("POST", f"{at}/backtest", json=asked | {"metric": "priced", "priceConfig": price})
    await ask("POST", f"{at}/backtest", json=asked | {"priceConfig": {}})
    await ask("DELETE", f"{at}/scenarios/{{id}}", one, params=tenant)
    await ask("GET", f"{at}/scenarios/{{id}}", one, params=tenant)


async def ask_for_keeping(ask: Any, tenant: dict[str, str]) -> None:
    """Every route of erasure and retention."""
    template = "/v1/customers/{customerRef}"
    for _ in range(2):
        await ask("DELETE", template, "/v1/customers/c%2F1", params=tenant)
    made = await ask("POST", "/v1/admin/erasures", json=tenant | {"all": True})
    await ask("POST", "/v1/admin/erasures", json=tenant)
    for one in (made["erasureId"], "none"):
        await ask("GET", "/v1/admin/erasures/{id}", f"/v1/admin/erasures/{one}")
    await ask("POST", "/v1/admin/retention", json={"days": 30})
    await ask("POST", "/v1/admin/retention", json={})


async def ask_backfills(ask: Any, tenant: dict[str, str]) -> None:
    """Every route of backfills and imports."""
    rows = [{"metric": "calls", "customerRef": "c/1", "quantity": 1, "ts": "2026-01-02T00:00:00Z"}]
    body = tenant | {"periodStart": "2026-01-01", "reason": "test", "events": rows}
    made = await ask("POST", "/v1/events/backfill", json=body)
    await ask("POST", "/v1/events/backfill", json=body | {"events": []})
    one = f"/v1/events/backfill/{made['operationId']}"
    await ask("GET", "/v1/events/backfill")
    await ask("GET", "/v1/events/backfill/{id}", one)
    await ask("GET", "/v1/events/backfill/{id}", "/v1/events/backfill/none")
    await ask("POST", "/v1/events/backfill/{id}/cancel", f"{one}/cancel")
    made = await ask("POST", "/v1/events/imports", json=tenant)
    one = f"/v1/events/imports/{made['operationId']}"
    await ask("GET", "/v1/events/imports")
    await ask("GET", "/v1/events/imports/{id}", one)
    progress = {"processedEvents": 1, "errors": [{"line": 1, "error": "e"}]}
    for action in ("progress", "finish", "progress"):
        template = f"/v1/events/imports/{{id}}/{action}"
        await ask("POST", template, f"{one}/{action}", json=progress)
    await ask("POST", "/v1/events/imports/check", json=tenant | {"events": rows})
