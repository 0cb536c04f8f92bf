"""Adjustments as a client sees them: made once, decided once, undone once, and never another tenant's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from tests.helpers.served import Served, bearer, served

TENANT = {"tenantId": "acme"}
OF = TENANT | {"metric": "calls", "customerRef": "c"}
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with served() as running:
        yield running


def event(key: str, quantity: Any = 1, **more: Any) -> dict[str, Any]:
    return OF | {"quantity": quantity, "idempotencyKey": key} | more


async def ask(server: Served, method: str, path: str, status: int = 200, **more: Any) -> Any:
    response = await server.client.request(method, path, **more)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def create(server: Served, status: int = 201, **fields: Any) -> Any:
    body = OF | {"periodStart": "2026-01-01", "reason": "correction"} | fields
    return await ask(server, "POST", "/v1/adjustments", status, json=body)


async def decide(server: Served, adjustment_id: str, action: str, status: int = 200) -> Any:
    return await ask(server, "POST", f"/v1/adjustments/{adjustment_id}/{action}", status)


async def listed(server: Served, **params: str) -> Any:
    return await ask(server, "GET", "/v1/adjustments", params=TENANT | params)


async def usage(server: Served, **params: str) -> Any:
    path = "/v1/usage/current"
    found = await ask(server, "GET", path, params=TENANT | {"customerRef": "c"} | params)
    return found["metrics"][0]


async def counted(server: Served) -> Any:
    return (await usage(server))["current"]


async def test_seven_and_three_is_ten_and_seven_again_after_the_revert(server: Served) -> None:
    await server.ingest(event("a", 7))
    made = await create(server, delta=3)
    assert (made["status"], made["delta"], made["kind"]) == ("pending", 3, "delta")
    assert await counted(server) == 7, "pending does not count"
    for _ in range(2):
        assert (await decide(server, made["id"], "approve"))["status"] == "approved"
        assert await counted(server) == 10
    now = await usage(server)
    assert (now["adjusted"], now["sum"], now["pendingLate"]) == (3, 7, 0)
    for _ in range(3):
        assert (await decide(server, made["id"], "revert"))["status"] == "reverted"
        assert await counted(server) == 7
    problem = await decide(server, made["id"], "approve", 409)
    assert "create another one" in problem["detail"]
    assert await counted(server) == 7


async def test_a_pending_adjustment_that_is_reverted_is_rejected(server: Served) -> None:
    made = await create(server, delta="-0.000001")
    assert (await decide(server, made["id"], "revert"))["status"] == "reverted"
    await decide(server, made["id"], "approve", 409)
    assert (await listed(server, status="reverted"))["total"] == 1


async def test_a_request_id_makes_one_adjustment(server: Served) -> None:
    ids = []

    async def post() -> None:
        response = await server.client.post(
            "/v1/adjustments",
            json=OF
            | {"periodStart": "2026-01-01", "reason": "promo", "delta": 2, "requestId": "r-1"},
        )
        ids.append((response.status_code, response.json()["id"]))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(post)
    assert len({made for _, made in ids}) == 1
    assert sorted(status for status, _ in ids) == [200, 200, 200, 200, 201]
    problem = await create(server, 409, delta=3, reason="promo", requestId="r-1")
    assert ids[0][1] in problem["detail"]
    for change in ({"note": "x"}, {"reason": "credit"}, {"customerRef": "other"}, {"metric": "m"}):
        body = {"delta": 2, "reason": "promo", "requestId": "r-1"} | change
        await create(server, 409, **body)
    other = await create(server, delta=2, reason="promo", requestId="r-1", tenantId="umbra")
    assert other["id"] != ids[0][1], "another tenant's requestId is another one"
    assert (await listed(server))["total"] == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"delta": 1, "periodStart": "2026-01-02"}, "periodStart"),
        ({"delta": 1, "periodStart": "2026-01-01T00:00:01Z"}, "periodStart"),
        ({"delta": 1, "periodStart": "2028-01-01"}, "periodStart"),
        ({"delta": 1, "periodStart": "January"}, "periodStart"),
        ({"delta": 0}, "delta"),
        ({"delta": "1e400"}, "delta"),
        ({"delta": 10**15}, "delta"),
        ({"delta": "-0.0000001"}, "delta"),
        ({"value": 1}, "kind"),
        ({"delta": 1, "value": 1}, "delta"),
        ({}, "delta"),
        ({"delta": 1, "kind": "value"}, "kind"),
        ({"delta": 1, "reason": "because"}, "reason"),
        ({"delta": 1, "note": "n" * 1001}, "note"),
        ({"delta": 1, "parentAdjustmentId": "adj_none"}, "parentAdjustmentId"),
        ({"delta": 1, "unknown": 1}, "unknown"),
    ],
)
async def test_what_corrects_nothing_is_refused(
    server: Served, fields: dict[str, Any], field: str
) -> None:
    problem = await create(server, 400, **fields)
    assert problem["errors"][0]["field"] == field
    assert (await listed(server))["total"] == 0


async def test_a_wrong_period_start_is_answered_with_the_right_one(server: Served) -> None:
    problem = await create(server, 400, delta=1, periodStart="2026-01-15")
    assert "starts at 2026-01-01" in problem["detail"]
    anchor = {"billingAnchor": "2026-01-10T09:30:00Z"}
    await ask(server, "PUT", "/v1/customers/c", 201, json=TENANT | anchor)
    mapping = TENANT | {"metric": "calls", "period": "subscription"}
    await ask(server, "POST", "/v1/mappings", 201, json=mapping)
    problem = await create(server, 400, delta=1)
    assert "2025-12-10T09:30:00" in problem["detail"]
    by_day = await create(server, delta=1, periodStart="2026-01-10")
    exact = await create(server, delta=1, periodStart="2026-01-10T09:30:00Z")
    assert by_day["period"] == exact["period"]
    assert by_day["period"]["start"].startswith("2026-01-10T09:30")
    assert by_day["periodStart"] == "2026-01-10"
    assert (await listed(server, periodStart="2026-01-10"))["total"] == 2


@pytest.mark.parametrize("decision", ["approve", "revert"])
async def test_an_anchor_leaves_a_correction_its_period_also_where_nothing_was_used_yet(
    server: Served, decision: str
) -> None:
    mapping = TENANT | {"metric": "calls", "period": "subscription"}
    await ask(server, "POST", "/v1/mappings", 201, json=mapping)
    made = await create(server, delta=-5)
    await decide(server, made["id"], decision)
    anchor = TENANT | {"billingAnchor": "2026-01-20T12:00:00Z"}
    put = await ask(server, "PUT", "/v1/customers/c", 201, json=anchor)
    if decision == "revert":
        assert put["effectiveFrom"] is None, "what was undone belongs to no period"
        return
    assert put["effectiveFrom"] == "2026-02-01T00:00:00.000Z"
    found = await usage(server)
    assert found["current"] == -5
    assert found["period"] == made["period"]


async def test_wide_quantities_survive_exactly(server: Served) -> None:
    wide = "-999999999999999.999999"
    made = await create(server, delta=wide)
    await decide(server, made["id"], "approve")
    found = await ask(server, "GET", f"/v1/adjustments/{made['id']}", params={"numbers": "string"})
    assert found["delta"] == wide
    assert (await usage(server, numbers="string"))["current"] == wide


@pytest.mark.parametrize("aggregation", ["max", "last"])
async def test_a_value_replaces_what_was_and_later_events_fold_on_top(
    server: Served, aggregation: str
) -> None:
    mapping = TENANT | {"metric": "calls", "aggregation": aggregation}
    await ask(server, "POST", "/v1/mappings", 201, json=mapping)
    await server.ingest(event("a", 9))
    await create(server, 400, delta=1)
    await create(server, 400, value=-1)
    made = await create(server, value=4)
    await decide(server, made["id"], "approve")
    assert await counted(server) == 4
    assert (await usage(server))["adjusted"] == -5
    await server.ingest(event("b", 2))
    assert await counted(server) == (4 if aggregation == "max" else 2)
    await server.ingest(event("c", 6))
    assert await counted(server) == 6
    await decide(server, made["id"], "revert")
    assert await counted(server) == (9 if aggregation == "max" else 6)


async def late_flood(server: Served, count: int, customers: int = 1) -> None:
    """Two days and more late: each waits for a decision."""
    for number in range(customers):
        await server.ingest(event(f"on-time-{number}", 1, customerRef=f"c{number}"))
    old = "2026-01-20T10:00:00Z"
    await server.ingest(
        *(event(f"late-{n}", "0.5", customerRef=f"c{n % customers}", ts=old) for n in range(count))
    )


async def test_late_events_of_a_counter_are_one_adjustment_and_one_decision(
    server: Served,
) -> None:
    await server.ingest(event("now", 1))
    first = await server.ingest(event("l1", 2, ts="2026-01-20T10:00:00Z"))
    again = await server.ingest(event("l2", 3, ts="2026-01-21T10:00:00Z"))
    held = first["results"][0]["adjustmentId"]
    assert again["results"][0]["adjustmentId"] == held
    found = await ask(server, "GET", f"/v1/adjustments/{held}")
    assert (found["eventCount"], found["eventsTotal"], found["kind"]) == (2, 5, "event")
    assert [one["quantity"] for one in found["events"]] == [2, 3]
    assert found["events"][0]["timestamp"] == "2026-01-20T10:00:00.000Z"
    assert found["events"][0]["sequence"] < found["events"][1]["sequence"]
    assert (found["reason"], found["actor"]) == ("backfill", "system:late-event")
    later = await ask(server, "GET", f"/v1/adjustments/{held}", params={"eventsOffset": "1"})
    assert [one["quantity"] for one in later["events"]] == [3]
    assert (await usage(server))["pendingLate"] == 2
    await decide(server, held, "approve")
    assert await counted(server) == 6
    third = await server.ingest(event("l3", 10, ts="2026-01-20T10:00:00Z"))
    assert third["results"][0]["adjustmentId"] != held, "what was decided takes no more in"
    assert await counted(server) == 6


async def test_a_flood_is_one_decision_and_one_undo(server: Served) -> None:
    await late_flood(server, 60, customers=20)
    before = server.gateway.meter.log.head().next_sequence
    body = TENANT | {"metric": "calls"}
    preview = await ask(server, "POST", "/v1/adjustments/approve", json=body | {"dryRun": True})
    assert (preview["changed"], preview["lateEvents"], preview["dryRun"]) == (20, 60, True)
    assert server.gateway.meter.log.head().next_sequence == before, "a dry run records nothing"
    done = await ask(server, "POST", "/v1/adjustments/approve", json=body)
    assert (done["changed"], done["unchanged"], done["lateEvents"]) == (20, 0, 60)
    assert len(done["adjustmentIds"]) == 20
    assert (await usage(server, customerRef="c7"))["current"] == 2.5
    again = await ask(server, "POST", "/v1/adjustments/approve", json=body)
    assert (again["changed"], again["unchanged"]) == (0, 20)
    undone = await ask(server, "POST", "/v1/adjustments/revert", json=body | {"customerRef": "c7"})
    assert undone["changed"] == 1
    assert (await usage(server, customerRef="c7"))["current"] == 1
    assert (await usage(server, customerRef="c8"))["current"] == 2.5
    other = await ask(server, "POST", "/v1/adjustments/revert", json={"tenantId": "umbra"})
    assert other["changed"] == 0, "another tenant's are not meant"
    metrics = (await server.client.get("/metrics")).text
    assert 'reaggregations_total{reason="approve"} 20.0' in metrics
    assert 'reaggregations_total{reason="revert"} 1.0' in metrics
    assert "late_events_total 60.0" in metrics


async def test_a_decision_that_the_disk_refuses_decides_nothing(server: Served) -> None:
    await late_flood(server, 4, customers=4)
    server.disk.fault = lambda operation: "error" if operation != "head" else "ok"
    await ask(server, "POST", "/v1/adjustments/approve", 503, json=TENANT)
    await create(server, 503, delta=1)
    server.disk.fault = lambda _operation: "ok"
    assert {one["status"] for one in (await listed(server))["adjustments"]} == {"pending"}
    assert (await ask(server, "POST", "/v1/adjustments/approve", json=TENANT))["changed"] == 4


async def test_the_list_filters_and_its_cursor_is_stable(server: Served) -> None:
    made = [(await create(server, delta=n + 1, customerRef=f"c{n % 2}"))["id"] for n in range(7)]
    page = await listed(server, limit="3")
    assert [one["id"] for one in page["adjustments"]] == made[:3:-1]
    assert page["total"] == 7
    await create(server, delta=100)
    seen = []
    cursor = page["nextCursor"]
    while cursor:
        page = await listed(server, limit="3", cursor=cursor)
        seen += [one["id"] for one in page["adjustments"]]
        cursor = page["nextCursor"]
    assert seen == made[3::-1]
    assert (await listed(server, customerRef="c1"))["total"] == 3
    assert (await listed(server, metric="other"))["total"] == 0
    assert (await listed(server, kind="event"))["total"] == 0
    assert (await listed(server, periodStart="2026-01-01", status="pending"))["total"] == 8
    for wrong in ({"cursor": "x"}, {"limit": "0"}, {"status": "open"}, {"periodStart": "now"}):
        await ask(server, "GET", "/v1/adjustments", 400, params=TENANT | wrong)


async def test_under_the_auto_policy_late_events_count_at_once_and_can_be_undone() -> None:
    async with served(late_policy="auto") as server:
        await server.ingest(event("now", 1))
        answer = await server.ingest(event("l1", 2, ts="2026-01-20T10:00:00Z"))
        assert answer["results"][0]["late"] is True
        assert await counted(server) == 3
        found = await ask(server, "GET", f"/v1/adjustments/{answer['results'][0]['adjustmentId']}")
        assert (found["status"], found["decidedBy"]) == ("approved", "system:late-policy")
        metrics = (await server.client.get("/metrics")).text
        assert 'reaggregations_total{reason="late-policy"} 1.0' in metrics
        await decide(server, found["id"], "revert")
        assert await counted(server) == 1


async def test_a_mapping_has_its_own_lateness_and_only_its_metric_follows_it(
    server: Served,
) -> None:
    mapping = TENANT | {"metric": "calls", "latenessHours": 1}
    await ask(server, "POST", "/v1/mappings", 201, json=mapping)
    two_hours_ago = "2026-01-31T08:00:00Z"
    for metric, late in (("calls", True), ("other", False)):
        await server.ingest(event(f"{metric}-now", 1, metric=metric))
        answer = await server.ingest(event(f"{metric}-old", 1, metric=metric, ts=two_hours_ago))
        assert answer["results"][0].get("late", False) is late
    edge = event("edge", 1, metric="other", ts="2026-01-29T10:00:01Z")
    assert "late" not in (await server.ingest(edge))["results"][0]


@pytest.mark.parametrize("action", ["approve", "revert"])
async def test_decisions_at_once_are_one(server: Served, action: str) -> None:
    made = await create(server, delta=3)
    head = server.gateway.meter.log.head
    before = head().next_sequence
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(decide, server, made["id"], action)
    assert head().next_sequence == before + 1


async def test_scopes_and_tenants_are_kept_apart() -> None:
    async with served(auth="required") as server:
        reader = bearer(await server.key("acme", "adjustments:read"))
        writer = bearer(await server.key("acme", "adjustments:write", "adjustments:read"))
        other = bearer(await server.key("umbra", "adjustments:write", "adjustments:read"))
        body = {
            "metric": "calls",
            "customerRef": "c",
            "periodStart": "2026-01-01",
            "delta": 1,
            "reason": "credit",
        }
        await ask(server, "POST", "/v1/adjustments", 403, json=body, headers=reader)
        made = await ask(server, "POST", "/v1/adjustments", 201, json=body, headers=writer)
        assert made["actor"].startswith("key_")
        path = f"/v1/adjustments/{made['id']}"
        await ask(server, "GET", path, headers=reader)
        await ask(server, "GET", path, 404, headers=other)
        for action in ("approve", "revert"):
            await ask(server, "POST", f"{path}/{action}", 404, headers=other)
            await ask(server, "POST", f"{path}/{action}", 403, headers=reader)
            everything = await ask(
                server, "POST", f"/v1/adjustments/{action}", json={}, headers=other
            )
            assert everything["changed"] == 0
        await ask(
            server,
            "POST",
            "/v1/adjustments/approve",
            403,
            json={"tenantId": "acme"},
            headers=other,
        )
        parent = body | {"parentAdjustmentId": made["id"]}
        await ask(server, "POST", "/v1/adjustments", 400, json=parent, headers=other)
        assert (await ask(server, "GET", "/v1/adjustments", headers=other))["total"] == 0
