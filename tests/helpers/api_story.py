"""The story that the examples of the OpenAPI document tell: each operation used once or more, as its users would.

Rules it keeps: every step says what it shows; the steps of one run build on each other; ids are those of the run
before it is told where they are used. It must not know where examples are kept.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import trio

from gateway.openapi import operation_id
from gateway.openapi_examples import NO_ANSWER, Example
from gateway.simulator.state import sign
from gateway.table import ROUTES
from tests.helpers.served import ADMIN_KEY, WEBHOOK_SECRET, Served, bearer, ten_times_as_fast

JSON = "application/json"
ROUTE_OF = {operation_id(route): route for route in ROUTES}
TENANT = {"tenantId": "acme"}
PRICE = {
    "model": "tiered",
    "currency": "USD",
    "tiers": [{"upTo": 10000, "unitPrice": 0.01}, {"upTo": None, "unitPrice": 0.008}],
}
SHOWN_SECRET = "ThisPartIsShownOnceAndKeptByNone"
"""In the place of a key's secret: 32 characters, as it has."""
_SECRET = re.compile(r"(?<=sm_[A-Za-z0-9]{8})[A-Za-z0-9]{32}")
TEXT_CHARS_SHOWN = 300


class Teller:
    """Sends each step to a server and keeps what was sent and answered."""

    def __init__(self, server: Served) -> None:
        self.server = server
        self.told: list[Example] = []

    async def tell(self, operation: str, summary: str, **asked: Any) -> Any:
        """The answer's body of one step: a JSON value, or text.

        `asked`: path, query, headers, body (a JSON value), content and body_type (another body), name.
        """
        route = ROUTE_OF[operation]
        path: dict[str, str] = asked.get("path", {})
        url = route.path
        for name, text in path.items():
            url = url.replace(f"{{{name}}}", text)
        body, kind = asked.get("body"), asked.get("body_type", JSON)
        content = asked.get("content")
        headers: dict[str, str] = dict(asked.get("headers", {}))
        if body is not None:
            content = json.dumps(body).encode()
        if content is not None:
            headers["content-type"] = kind
        response = await self.server.client.request(
            route.method,
            url,
            params=asked.get("query", {}),
            headers=bearer(ADMIN_KEY) | headers,
            content=content,
        )
        answer_kind = response.headers.get("content-type", "").partition(";")[0]
        is_json = answer_kind.endswith(("/json", "+json"))
        answer = json.loads(response.text) if is_json else response.text or None
        self.told.append(
            Example(
                operation_id=operation,
                name=asked.get("name") or _name_of(summary),
                summary=summary,
                path=path,
                query=asked.get("query", {}),
                headers=asked.get("headers", {}),
                body=json.loads(content) if content is not None else None,
                body_type=kind,
                status=response.status_code,
                answer=_kept(response.text, is_json=is_json),
                answer_type=answer_kind or JSON,
            )
        )
        return answer


def _name_of(summary: str) -> str:
    """A key of the document: `the-same-again`."""
    return "-".join(re.findall(r"[a-z0-9]+", summary.lower())[:6])


def _kept(text: str, *, is_json: bool) -> msgspec.Raw:
    """The answer as an example has it: its own digits, without a key's secret."""
    if not text:
        return NO_ANSWER
    if is_json:
        return msgspec.Raw(_SECRET.sub(SHOWN_SECRET, text).encode())
    return msgspec.Raw(msgspec.json.encode(text[:TEXT_CHARS_SHOWN]))


def shape(value: Any) -> Any:
    """What an answer looks like, without its values: null fits everything, a list is what its first item is."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if value is None:
        return None
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else "text"


def differs(one: Any, other: Any, where: str = "$") -> str | None:
    """Where two shapes are not alike; None: nowhere."""
    if one is None or other is None:
        return None
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return f"{where}: {sorted(one.keys() ^ other.keys())} are in one only"
        found = [differs(one[name], other[name], f"{where}.{name}") for name in one]
        return next((text for text in found if text), None)
    if isinstance(one, list) and isinstance(other, list):
        return differs(one[0], other[0], f"{where}[]") if one and other else None
    return None if one == other else f"{where}: {one} is not {other}"


async def tell_all(teller: Teller) -> None:
    """The whole story, against a server with API keys, a Stripe simulator and no data."""
    await _mappings(teller)
    await _events(teller)
    await _usage(teller)
    await _customers(teller)
    await _pushes(teller)
    await _corrections(teller)
    await _past(teller)
    await _reconciliation(teller)
    await _prices(teller)
    await _administration(teller)
    await _system(teller)


async def _mappings(teller: Teller) -> None:
    made = await teller.tell(
        "createMapping",
        "Push a metric to a billing meter",
        body=TENANT | {"metric": "api_calls", "meterEventName": "calls", "priceConfig": PRICE},
    )
    await teller.tell(
        "createMapping",
        "The highest value of a month counts",
        body=TENANT | {"metric": "seats", "aggregation": "max", "unit": "seats"},
    )
    await teller.tell(
        "createMapping", "The metric has one already", body=TENANT | {"metric": "seats"}
    )
    await teller.tell(
        "createMapping",
        "A wrong field is named",
        body=TENANT | {"metric": "jobs", "latenessHours": 9000},
    )
    await teller.tell("listMappings", "All of a tenant", query=TENANT)
    one = {"id": made["id"]}
    await teller.tell("getMapping", "By its id", path=one)
    await teller.tell("getMapping", "There is none", path={"id": "map_0123456789abcdef"})
    await teller.tell(
        "updateMapping", "Another lateness window", path=one, body={"latenessHours": 72}
    )
    gone = await teller.tell(
        "createMapping", "Counted only, and pushed nowhere", body=TENANT | {"metric": "logins"}
    )
    await teller.tell("deleteMapping", "Count by the defaults again", path={"id": gone["id"]})


def event(key: str, **more: Any) -> dict[str, Any]:
    """An event of the story."""
    common = {"tenantId": "acme", "metric": "api_calls", "customerRef": "cus_anna", "quantity": 3}
    return common | {"idempotencyKey": key} | more


async def _events(teller: Teller) -> None:
    await teller.tell("ingestEvents", "An event", body={"events": [event("request-1")]})
    await teller.tell(
        "ingestEvents", "The same again: counted once", body={"events": [event("request-1")]}
    )
    batch = [
        event("request-2", quantity="0.1", ts="2026-01-31T09:30:00Z", meta={"region": "eu"}),
        event("request-3", ts="2025-12-01T09:30:00Z"),
        event("request-4", quantity=-1),
        event("request-1", quantity=4),
    ]
    await teller.tell(
        "ingestEvents", "A decimal, a late event, and two that can't count", body={"events": batch}
    )
    cloud = {
        "specversion": "1.0",
        "id": "a1",
        "source": "/gateway/eu",
        "type": "api_calls",
        "subject": "cus_anna",
        "time": "2026-01-31T09:31:00Z",
        "data": {"quantity": 2, "region": "eu"},
    }
    await teller.tell(
        "ingestEvents",
        "A CloudEvent",
        body=cloud,
        body_type="application/cloudevents+json",
        query=TENANT,
    )
    await teller.tell(
        "ingestEvents",
        "CloudEvents",
        body=[cloud | {"id": "a2"}],
        body_type="application/cloudevents-batch+json",
        query=TENANT,
    )
    await teller.tell("ingestEvents", "No events in it", body={"events": []})
    await teller.tell(
        "listEvents", "The newest first", query=TENANT | {"metric": "api_calls", "limit": "2"}
    )
    await teller.tell("listEvents", "As a file", query=TENANT | {"format": "csv"})
    await teller.tell("listEvents", "As lines of JSON", query=TENANT | {"format": "jsonl"})
    await teller.tell("listEvents", "A limit out of range", query=TENANT | {"limit": "101"})


async def _usage(teller: Teller) -> None:
    of = TENANT | {"customerRef": "cus_anna"}
    await teller.tell("usageCurrent", "Now", query=of)
    await teller.tell("usageCurrent", "As it was known at a log position", query=of | {"asOf": "5"})
    await teller.tell(
        "usageHistory",
        "By day",
        query=of | {"metric": "api_calls", "since": "-P2D", "interval": "day"},
    )
    month = {"metric": "api_calls", "periodStart": "2026-01-01"}
    await teller.tell("explainExplain", "A month's total, part by part", query=of | month)
    await teller.tell("listCounters", "As lines of JSON", query=TENANT)
    await teller.tell("listCounters", "As a file", query=TENANT | {"format": "csv"})
    await teller.tell("projectionProjection", "This month's invoice as of now", body=of)


async def _customers(teller: Teller) -> None:
    one = {"customerRef": "bert"}
    known = {"stripeCustomerId": "cus_bert", "billingAnchor": "2026-01-15T09:30:00Z"}
    await teller.tell("putCustomer", "Who it is at Stripe", path=one, body=TENANT | known)
    await teller.tell(
        "putCustomer", "The same again changes nothing", path=one, body=TENANT | known
    )
    await teller.tell("getCustomer", "By its name", path=one, query=TENANT)
    await teller.tell(
        "getCustomer", "Nothing was put for it", path={"customerRef": "nobody"}, query=TENANT
    )
    await teller.tell("listCustomers", "All of a tenant", query=TENANT)


async def _pushes(teller: Teller) -> None:
    of = TENANT | {"customerRef": "cus_anna"}
    async with trio.open_nursery() as nursery:
        # It waits for a lane's turn, which comes by this clock; that else stands still.
        nursery.start_soon(ten_times_as_fast, teller.server.clock)
        await teller.tell("flushPushes", "Before a plan changes", body=of | {"timeoutSeconds": 10})
        nursery.cancel_scope.cancel()
    listed = await teller.tell("listPushes", "What Stripe has", query=of)
    one = {"id": listed["pushes"][0]["id"]}
    await teller.tell(
        "decideBaseline", "No decision is needed", path=one, body=TENANT | {"baseline": "now"}
    )
    await teller.tell("carryForward", "Nothing is left over", path=one, body={"into": "current"})
    await teller.tell(
        "pushesSettle", "Nothing is in quarantine", path=one, body={"delivered": True}
    )
    await teller.tell("pushesResume", "It was not stopped", path=one)
    content = b'{"id": "evt_1", "type": "invoice.created"}'
    signature = sign(WEBHOOK_SECRET, content, teller.server.clock.us // 1_000_000)
    await teller.tell(
        "stripeWebhookReceive",
        "A type that means nothing here",
        content=content,
        headers=_signed(signature),
    )
    await teller.tell("stripeWebhookReceive", "No signature", content=content)


def _signed(signature: str) -> dict[str, str]:
    return {"stripe-signature": signature}


async def _corrections(teller: Teller) -> None:
    of = TENANT | {"metric": "api_calls", "customerRef": "cus_anna", "periodStart": "2026-01-01"}
    made = await teller.tell(
        "createAdjustment",
        "Take one off",
        body=of | {"delta": -1, "reason": "credit", "note": "outage", "requestId": "credit-1"},
    )
    await teller.tell(
        "createAdjustment",
        "A value of what is summed",
        body=of | {"value": 5, "reason": "correction"},
    )
    await teller.tell("listAdjustments", "What waits", query=TENANT | {"status": "pending"})
    one = {"id": made["id"]}
    await teller.tell("getAdjustment", "By its id", path=one)
    await teller.tell("getAdjustment", "There is none", path={"id": "adj_0123456789abcdef"})
    await teller.tell("approveAdjustment", "It counts from now on", path=one)
    await teller.tell("revertAdjustment", "It counts no longer", path=one)
    await teller.tell("approveAdjustment", "What was reverted stays so", path=one)
    await teller.tell(
        "replayReplay", "What would change", body=TENANT | {"since": "-P90D", "latenessHours": 8760}
    )
    await teller.tell(
        "replayReplay",
        "The plan is another by now",
        body=TENANT | {"mode": "apply", "expect": "0123456789abcdef"},
    )
    await teller.tell(
        "approveMany", "All late events of a customer", body=TENANT | {"customerRef": "cus_anna"}
    )
    await teller.tell(
        "revertMany",
        "Say what it would change",
        body=TENANT | {"customerRef": "cus_anna", "dryRun": True},
    )


async def _past(teller: Teller) -> None:
    old = {"metric": "api_calls", "customerRef": "cus_anna", "ts": "2026-01-03T09:30:00Z"}
    rows = [old | {"quantity": 7, "idempotencyKey": "old-1"}]
    body = TENANT | {"periodStart": "2026-01-01", "reason": "the collector was down"}
    made = await teller.tell("createBackfill", "A list of events", body=body | {"events": rows})
    csv = "metric,customerRef,quantity,ts,idempotencyKey\napi_calls,cus_anna,2,2026-01-04T00:00:00Z,old-2\n"
    await teller.tell("createBackfill", "CSV", body=body | {"csvData": csv})
    one = {"id": made["operationId"]}
    while (await teller.tell("getBackfill", "By its id", path=one))["status"] != "completed":
        teller.told.pop()
        await trio.sleep(0.01)
    await teller.tell("listBackfills", "The newest first", query=TENANT)
    await teller.tell("cancelBackfill", "It has ended, nothing changes", path=one)
    begun = await teller.tell("startImport", "Begin one", body=TENANT | {"identity": "usage.jsonl"})
    one = {"id": begun["operationId"]}
    await teller.tell("noteProgress", "So far", path=one, body={"processedEvents": 500})
    await teller.tell("getImport", "By its id", path=one)
    await teller.tell("listImports", "The newest first", query=TENANT)
    await teller.tell("finishImport", "All rows were sent", path=one, body={"processedEvents": 900})
    checked = [rows[0], old | {"quantity": 1, "idempotencyKey": "old-3"}, {"metric": "api_calls"}]
    await teller.tell(
        "checkImport", "A duplicate, a new one, a bad one", body=TENANT | {"events": checked}
    )


async def _reconciliation(teller: Teller) -> None:
    job = await teller.tell("reconciliationRun", "Look now", body=TENANT)
    await teller.tell("getJob", "By its id", path={"id": job["jobId"]})
    await teller.tell("getJob", "There is none", path={"id": "0123456789abcdef"})
    month = {"period": "2026-01"}
    await teller.tell("reconciliationReport", "A month", path=month, query=TENANT)
    await teller.tell(
        "reconciliationReport", "As a file", path=month, query=TENANT | {"format": "csv"}
    )
    months = TENANT | {"periodStart": "2026-01", "periodEnd": "2026-01"}
    await teller.tell("reconciliationSummary", "Per metric", query=months)
    await teller.tell("reconciliationSummary", "As a file", query=months | {"format": "csv"})
    await teller.tell(
        "reconciliationApply",
        "One that was dealt with",
        body=TENANT | {"adjustmentIds": ["0123456789abcdef"], "reason": "agreed with finance"},
    )
    await teller.tell("parityCertify", "A month, signed", path={"month": "2026-01"}, query=TENANT)


async def _prices(teller: Teller) -> None:
    inputs = {
        "customerId": "cus_anna",
        "periodStart": "2026-01-01",
        "periodEnd": "2026-02-01",
        "usageItems": [{"metric": "api_calls", "quantity": 25000, "priceConfig": PRICE}],
    }
    scenario = {"name": "25,000 calls", "inputs": inputs, "expected": {"total": 220}}
    made = await teller.tell("createScenario", "A price and its test", body=TENANT | scenario)
    await teller.tell("createScenario", "Without usage", body=TENANT | {"inputs": {}})
    one = {"id": made["id"]}
    await teller.tell("listScenarios", "All of a tenant", query=TENANT)
    await teller.tell("getScenario", "By its id", path=one, query=TENANT)
    await teller.tell(
        "updateScenario",
        "A cent may be off",
        path=one,
        body=TENANT | {"tolerances": {"total": 0.01}},
    )
    run = await teller.tell(
        "createRun", "A kept scenario", body=TENANT | {"scenarioId": made["id"]}
    )
    await teller.tell("createRun", "One that is sent", body=TENANT | {"scenario": scenario})
    await teller.tell("listRuns", "The newest first", query=TENANT)
    await teller.tell("getRun", "By its id", path={"id": run["id"]}, query=TENANT)
    batch = await teller.tell("createBatch", "Several", body=TENANT | {"scenarioIds": [made["id"]]})
    await teller.tell("getBatch", "By its id", path={"id": batch["id"]}, query=TENANT)
    flat = {"model": "flat", "currency": "USD", "unitPrice": 0.009}
    await teller.tell(
        "backtestsBacktest",
        "A flat price instead of tiers",
        body=TENANT | {"since": "2026-01-01", "metric": "api_calls", "priceConfig": flat},
    )
    await teller.tell("deleteScenario", "Its runs stay", path=one, query=TENANT)


async def _administration(teller: Teller) -> None:
    body = TENANT | {"name": "backend", "scopes": ["events:write", "usage:read"]}
    key = await teller.tell("createKey", "For sending events", body=body)
    await teller.tell(
        "createKey", "No such scope", body=TENANT | {"name": "backend", "scopes": ["everything"]}
    )
    await teller.tell("listKeys", "All of a tenant", query=TENANT)
    one = {"id": key["id"]}
    await teller.tell("rotateKey", "Another text", path=one)
    await teller.tell("revokeKey", "For good", path=one)
    await teller.tell("rotateKey", "It was revoked", path=one)
    await teller.tell("listAudit", "The last two changes", query=TENANT | {"limit": "2"})
    await teller.tell("deleteCustomer", "Totals stay", path={"customerRef": "bert"}, query=TENANT)
    made = await teller.tell(
        "createErasure", "One customer", body=TENANT | {"customerRef": "cus_anna"}
    )
    await teller.tell("getErasure", "By its id", path={"id": made["erasureId"]})
    await teller.tell("runRetention", "Say what would go", body={"days": 400})


async def _system(teller: Teller) -> None:
    await teller.tell("healthHealth", "It answers")
    await teller.tell("healthLive", "It is alive")
    await teller.tell("healthReady", "It takes events")
    await teller.tell("healthMetrics", "Its beginning")
