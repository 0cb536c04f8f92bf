"""Mappings, customers, usage and events as a client sees them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
import trio
import trio.testing

from engine.core.configured import CustomerChange, MappingChange
from engine.core.records import PartKind, decode_control
from tests.helpers.served import START_US, Served, served
from wal.log import scan
from wal.memory_log import MemoryLog

TENANT = {"tenantId": "acme"}
HOUR_US = 3_600_000_000


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with served() as running:
        yield running


def event(key: str, quantity: Any = 1, **more: Any) -> dict[str, Any]:
    fields = {"metric": "calls", "customerRef": "c", "quantity": quantity, "idempotencyKey": key}
    return TENANT | fields | more


async def expect_answer(
    server: Served, method: str, path: str, status: int = 200, **more: Any
) -> Any:
    response = await server.client.request(method, path, **more)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def mapped(server: Served, **fields: Any) -> dict[str, Any]:
    body = TENANT | {"metric": "calls"} | fields
    return dict(await expect_answer(server, "POST", "/v1/mappings", 201, json=body))


async def usage(server: Served, **params: str) -> dict[str, Any]:
    found = await expect_answer(
        server, "GET", "/v1/usage/current", params=TENANT | {"customerRef": "c"} | params
    )
    return dict(found)


async def test_a_mapping_is_made_read_changed_and_deleted(server: Served) -> None:
    made = await mapped(server, aggregation="max", latenessHours=0.000001, unit="calls")
    assert made["id"].startswith("map_")
    assert len(made["id"]) == 20
    assert (made["latenessHours"], made["effectiveFrom"]) == (0.000001, None)
    assert server.gateway.meter.rules.scope("acme", "calls").lateness_us == 3600
    path = f"/v1/mappings/{made['id']}"
    got = await expect_answer(server, "GET", path)
    only_after_a_change = ("effectiveFrom", "pushEffectiveFrom")
    assert got == {name: value for name, value in made.items() if name not in only_after_a_change}
    changed = await expect_answer(server, "PUT", path, json={"unit": None, "priceId": "price_1"})
    assert (changed["unit"], changed["priceId"], changed["aggregation"]) == (None, "price_1", "max")
    assert changed["createdAt"] == made["createdAt"] < changed["updatedAt"]
    again = await expect_answer(server, "PUT", path, json=changed)
    assert again | {"updatedAt": 0} == changed | {"updatedAt": 0}, "what was read can be put"
    await expect_answer(server, "DELETE", path, 204)
    for method in ("GET", "DELETE", "PUT"):
        await expect_answer(server, method, path, 404, json={})


@pytest.mark.parametrize(
    "change", [{"metric": "other"}, {"tenantId": "umbra"}, {"id": "map_0123456789abcdef"}]
)
async def test_what_a_mapping_is_about_never_changes(
    server: Served, change: dict[str, str]
) -> None:
    made = await mapped(server)
    await expect_answer(server, "PUT", f"/v1/mappings/{made['id']}", 409, json=change)
    assert server.gateway.meter.registry.mappings[made["id"]].metric == "calls"


async def test_a_metric_has_one_active_mapping(server: Served) -> None:
    first = await mapped(server)
    body = TENANT | {"metric": "calls"}
    problem = await expect_answer(server, "POST", "/v1/mappings", 409, json=body)
    assert first["id"] in problem["detail"]
    await expect_answer(server, "PUT", f"/v1/mappings/{first['id']}", json={"active": False})
    second = await mapped(server)
    await expect_answer(server, "PUT", f"/v1/mappings/{first['id']}", 409, json={"active": True})
    assert server.gateway.meter.registry.active_mapping("acme", "calls").id == second["id"]
    await mapped(server, tenantId="umbra")


async def test_two_mappings_of_a_metric_at_once_are_one_and_a_conflict(server: Served) -> None:
    import trio

    statuses: list[int] = []

    async def post() -> None:
        body = TENANT | {"metric": "calls"}
        statuses.append((await server.client.post("/v1/mappings", json=body)).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(post)
    assert sorted(statuses) == [201, 409, 409, 409, 409]


async def test_with_usage_another_period_waits_for_the_running_ones_end(server: Served) -> None:
    await server.ingest(event("k", 5))
    made = await mapped(server, aggregation="max", period="day")
    assert made["effectiveFrom"] == "2026-02-01T00:00:00.000Z"
    await server.ingest(event("k2", 7))
    now = (await usage(server))["metrics"][0]
    assert (now["aggregation"], now["current"]) == ("sum", 12)
    server.clock.us = START_US + 14 * HOUR_US  # 2026-02-01
    await server.ingest(event("k3", 2), event("k4", 3))
    now = (await usage(server))["metrics"][0]
    assert (now["aggregation"], now["current"]) == ("max", 3)
    assert now["period"] == {"start": "2026-02-01T00:00:00.000Z", "end": "2026-02-02T00:00:00.000Z"}
    path = f"/v1/mappings/{made['id']}"
    unit = await expect_answer(server, "PUT", path, json={"unit": "u"})
    assert unit["effectiveFrom"] is None, "nothing that counts has changed"
    back = await expect_answer(server, "PUT", path, json={"period": "calendar"})
    assert back["effectiveFrom"] == "2026-02-02T00:00:00.000Z"


async def test_without_usage_another_period_holds_at_once(server: Served) -> None:
    made = await mapped(server, aggregation="max")
    changed = await expect_answer(
        server, "PUT", f"/v1/mappings/{made['id']}", json={"aggregation": "last", "period": "day"}
    )
    assert changed["effectiveFrom"] is None
    await server.ingest(event("k", 5), event("k2", 3))
    now = (await usage(server))["metrics"][0]
    assert (now["aggregation"], now["current"]) == ("last", 3)
    assert now["period"]["end"] == "2026-02-01T00:00:00.000Z"


async def test_a_deleted_mappings_metric_keeps_its_period_until_it_ends(server: Served) -> None:
    made = await mapped(server, aggregation="max")
    await server.ingest(event("k", 5), event("k2", 3))
    await expect_answer(server, "DELETE", f"/v1/mappings/{made['id']}", 204)
    now = (await usage(server))["metrics"][0]
    assert (now["aggregation"], now["current"]) == ("max", 5)
    server.clock.us = START_US + 14 * HOUR_US
    assert server.gateway.meter.rules.aggregation("acme", "calls", server.clock.us) == "sum"


async def test_mappings_are_listed_in_pages_that_stay_in_place(server: Served) -> None:
    ids = [(await mapped(server, metric=f"m{n}"))["id"] for n in range(5)]
    await mapped(server, tenantId="umbra")
    page = await expect_answer(server, "GET", "/v1/mappings", params=TENANT | {"limit": 2})
    assert [one["id"] for one in page["mappings"]] == ids[:2]
    assert page["total"] == 5
    await expect_answer(server, "PUT", f"/v1/mappings/{ids[0]}", json={"unit": "u"})
    seen = ids[:2]
    while page["nextCursor"]:
        params = TENANT | {"limit": 2, "cursor": page["nextCursor"]}
        page = await expect_answer(server, "GET", "/v1/mappings", params=params)
        seen += [one["id"] for one in page["mappings"]]
    assert seen == ids, "an update moves nothing"
    for cursor in ("x", "W10", "WzFd", "!!!!", "WyJhIiwgMV0"):
        await expect_answer(server, "GET", "/v1/mappings", 400, params={"cursor": cursor})
    one = await expect_answer(server, "GET", "/v1/mappings", params=TENANT | {"metric": "m3"})
    assert [found["id"] for found in one["mappings"]] == [ids[3]]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=1.5",
        "limit=",
        "limit=%D9%A1",
        "limit=-1",
        "limit=5&limit=5",
        "offset=-1",
        "offset=9999999999",
        "nope=1",
        "tenantId=",
        "tenantId=" + "x" * 256,
        "tenantId=%00",
        "tenantId=%ff",
        "&".join(f"a{n}=1" for n in range(60)),
    ],
)
async def test_a_parameter_out_of_its_range_is_refused_never_clamped(
    server: Served, query: str
) -> None:
    await expect_answer(server, "GET", f"/v1/mappings?{query}", 400)


@pytest.mark.parametrize(
    "query",
    [
        "sort=quantity",
        "sortDir=up",
        "startTime=yesterday",
        "startTime=2026-01-01",
        "startTime=PT1H",
        "startTime=-PT1H&endTime=-PT2H",
        "source=carrier-pigeon",
        "numbers=float",
        "cursor=a&offset=1",
    ],
)
async def test_an_events_query_that_makes_no_sense_is_refused(server: Served, query: str) -> None:
    await expect_answer(server, "GET", f"/v1/events?tenantId=acme&{query}", 400)


@pytest.mark.parametrize(
    "query",
    [
        "metric=calls",
        "since=-P1D",
        "metric=calls&since=-P1D&until=-P2D",
        "metric=calls&since=-P1D&interval=week",
        "metric=calls&since=-P1D&groupBy=quantity",
        "metric=calls&since=-P1D&groupBy=meta.",
        "metric=calls&since=-P4000D&interval=minute",
    ],
)
async def test_a_history_query_that_makes_no_sense_is_refused(server: Served, query: str) -> None:
    await expect_answer(server, "GET", f"/v1/usage/history?tenantId=acme&{query}", 400)


async def test_a_customer_is_put_whole(server: Served) -> None:
    path = "/v1/customers/a%2Fb%20%C3%A9"
    body = TENANT | {"stripeCustomerId": "cus_1", "subscriptionItems": {"calls": "si_1"}}
    made = await expect_answer(server, "PUT", path, 201, json=body)
    assert made["customerRef"] == "a/b é"
    got = await expect_answer(server, "GET", path, params=TENANT)
    assert got["stripeCustomerId"] == "cus_1"
    changed = await expect_answer(server, "PUT", path, json=TENANT | {"testClock": "clock_1"})
    assert (changed["stripeCustomerId"], changed["subscriptionItems"]) == (None, {})
    assert changed["createdAt"] == made["createdAt"]
    again = await expect_answer(server, "PUT", path, json=changed)
    assert again["testClock"] == "clock_1"
    await expect_answer(server, "GET", path, 404, params={"tenantId": "umbra"})
    await expect_answer(server, "PUT", path, 400, json=TENANT | {"customerRef": "other"})
    await expect_answer(server, "PUT", path, 400, json=TENANT | {"billingAnchor": "2026-01-01"})
    listed = await expect_answer(server, "GET", "/v1/customers", params=TENANT)
    assert [one["customerRef"] for one in listed["customers"]] == ["a/b é"]


async def test_customers_are_listed_in_pages(server: Served) -> None:
    for number in range(5):
        await expect_answer(server, "PUT", f"/v1/customers/c{number}", 201, json=TENANT)
    seen: list[str] = []
    params: dict[str, Any] = TENANT | {"limit": 2}
    while True:
        page = await expect_answer(server, "GET", "/v1/customers", params=params)
        assert page["total"] == 5
        seen += [one["customerRef"] for one in page["customers"]]
        if page["nextCursor"] is None:
            break
        params["cursor"] = page["nextCursor"]
    assert seen == [f"c{number}" for number in range(5)]


async def test_a_stripe_customer_or_item_belongs_to_one_tenant(server: Served) -> None:
    mine = TENANT | {"stripeCustomerId": "cus_1", "subscriptionItems": {"calls": "si_1"}}
    await expect_answer(server, "PUT", "/v1/customers/a", 201, json=mine)
    for theirs in ({"stripeCustomerId": "cus_1"}, {"subscriptionItems": {"x": "si_1"}}):
        body = {"tenantId": "umbra"} | theirs
        problem = await expect_answer(server, "PUT", "/v1/customers/b", 409, json=body)
        assert "acme" not in problem["detail"]
    same = TENANT | {"stripeCustomerId": "cus_1"}
    await expect_answer(server, "PUT", "/v1/customers/b", 201, json=same)
    anchored = same | {"billingAnchor": "2026-01-15T00:00:00Z"}
    await expect_answer(server, "PUT", "/v1/customers/b", 409, json=anchored)
    await expect_answer(server, "PUT", "/v1/customers/a", json=TENANT)
    await expect_answer(server, "PUT", "/v1/customers/b", json=anchored)
    await expect_answer(server, "PUT", "/v1/customers/b", json=TENANT)
    other = {"tenantId": "umbra", "stripeCustomerId": "cus_1"}
    await expect_answer(server, "PUT", "/v1/customers/z", 201, json=other)


async def test_another_anchor_waits_for_the_running_periods_end_once_there_is_usage(
    server: Served,
) -> None:
    await mapped(server, period="subscription")
    first = TENANT | {"billingAnchor": "2026-01-20T12:00:00Z"}
    made = await expect_answer(server, "PUT", "/v1/customers/c", 201, json=first)
    assert made["effectiveFrom"] is None
    await server.ingest(event("k", 5))
    found = await usage(server)
    assert found["period"] == found["metrics"][0]["period"]
    assert found["period"]["start"] == "2026-01-20T12:00:00.000Z"
    second = TENANT | {"billingAnchor": "2026-01-25T00:00:00Z"}
    changed = await expect_answer(server, "PUT", "/v1/customers/c", json=second)
    assert changed["effectiveFrom"] == "2026-02-20T12:00:00.000Z"
    assert (await usage(server))["period"] == found["period"]
    other = await expect_answer(server, "PUT", "/v1/customers/d", 201, json=second)
    assert other["effectiveFrom"] is None, "this one has no usage"


async def test_another_anchor_waits_also_if_the_first_event_is_just_being_written(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await mapped(server, period="subscription")
    await server.ingest(event("of another customer", 1) | {"customerRef": "d"})
    appender: Any = server.gateway.meter.started.writer._appender
    write, may_write = appender._run_blocking, trio.Event()

    async def waiting(work: Any) -> Any:
        await may_write.wait()
        return await write(work)

    answers: list[Any] = []

    async def put() -> None:
        anchor = TENANT | {"billingAnchor": "2026-01-20T12:00:00Z"}
        answers.append(await expect_answer(server, "PUT", "/v1/customers/c", 201, json=anchor))

    monkeypatch.setattr(appender, "_run_blocking", waiting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.ingest, event("k", 5))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(put)
        await trio.testing.wait_all_tasks_blocked()
        may_write.set()
    assert answers[0]["effectiveFrom"] == "2026-02-01T00:00:00.000Z"
    await server.ingest(event("k2", 1))
    [metric] = (await usage(server))["metrics"]
    assert (metric["current"], metric["period"]["start"]) == (6, "2026-01-01T00:00:00.000Z")


async def test_usage_is_exact_and_a_string_where_that_is_wanted(server: Served) -> None:
    events = [event(str(number), 0.1) for number in range(10)]
    await server.ingest(*events, event("big", "999999999999999.999999", metric="big"))
    await server.ingest(event("big2", "999999999999999.999999", metric="big"))
    params = TENANT | {"customerRef": "c"}
    response = await server.client.get("/v1/usage/current", params=params)
    metrics = json.loads(response.content, parse_float=Decimal)["metrics"]
    assert {one["name"]: one["current"] for one in metrics} == {
        "big": Decimal("1999999999999999.999998"),
        "calls": 1,
    }
    assert metrics[0]["max"] == Decimal("999999999999999.999999")
    found = await usage(server, numbers="string")
    for one in found["metrics"]:
        assert all(isinstance(one[name], str) for name in ("current", "sum", "max", "last"))
    assert found["metrics"][0]["current"] == "1999999999999999.999998"
    assert found["alerts"] == []


async def test_usage_says_how_fresh_it_is_and_what_waits(server: Served) -> None:
    empty = await usage(server)
    assert empty["metrics"] == []
    assert empty["freshness"] == {"lastUpdate": None, "staleness": None}
    assert empty["period"] == {
        "start": "2026-01-01T00:00:00.000Z",
        "end": "2026-02-01T00:00:00.000Z",
    }
    await mapped(server, unit="calls")
    found = (await usage(server))["metrics"]
    assert [(one["name"], one["current"], one["unit"]) for one in found] == [("calls", 0, "calls")]
    late = event("late", 100, ts="2026-01-20T00:00:00Z")
    await server.ingest(event("k", 5, ts="2026-01-31T09:00:00Z"), event("k2", 1))
    result = await server.ingest(late)
    assert result["results"][0]["late"] is True
    server.clock.us += 2_500_000
    found = await usage(server)
    one = found["metrics"][0]
    assert (one["current"], one["count"], one["pendingLate"]) == (6, 2, 1)
    assert one["watermark"].startswith("2026-01-31T10:")
    assert 2.5 <= found["freshness"]["staleness"] < 2.6


async def test_events_are_listed_as_they_were_sent(server: Served) -> None:
    await server.ingest(
        event("a", "1.50", ts="2026-01-31T09:00:00+01:00", meta={"b": 1, "a": "x"}, source="sdk"),
        event("b", 0.1, resourceId="r"),
    )
    found = await expect_answer(server, "GET", "/v1/events", params=TENANT | {"numbers": "string"})
    assert found["total"] == 2
    assert "nextCursor" not in found
    second, first = found["events"]
    assert (first["id"], first["quantity"], first["source"]) == ("a", "1.5", "sdk")
    assert first["timestamp"] == "2026-01-31T08:00:00.000Z"
    assert first["meta"] == '{"a":"x","b":1}'
    assert (second["quantity"], second["resourceId"], second["meta"]) == ("0.1", "r", None)
    assert second["sequence"] == first["sequence"] + 1
    none = await expect_answer(server, "GET", "/v1/events", params={"tenantId": "umbra"})
    assert (none["total"], none["events"]) == (0, [])
    params = TENANT | {"startTime": "-PT1H", "sort": "metric", "sortDir": "asc"}
    found = await expect_answer(server, "GET", "/v1/events", params=params)
    assert [one["id"] for one in found["events"]] == ["b"]


async def test_history_has_every_bucket_and_sums_up(server: Served) -> None:
    for number, region in enumerate(("eu", "us", "eu")):
        ts = f"2026-01-31T0{7 + number}:30:00Z"
        await server.ingest(event(str(number), 2, ts=ts, meta={"region": region}))
    params = TENANT | {"metric": "calls", "since": "2026-01-31T06:00:00Z", "interval": "hour"}
    found = await expect_answer(server, "GET", "/v1/usage/history", params=params)
    assert [point["value"] for point in found["series"]] == [0, 2, 2, 2, 0]
    assert found["series"][0]["ts"] == "2026-01-31T06:00:00.000Z"
    assert found["totals"] == {"value": 6}
    assert "groups" not in found
    assert "group" not in found["series"][0]
    params |= {"groupBy": "meta.region", "numbers": "string"}
    found = await expect_answer(server, "GET", "/v1/usage/history", params=params)
    assert found["groups"] == [{"group": "eu", "value": "4"}, {"group": "us", "value": "2"}]
    assert [p["value"] for p in found["series"] if p["group"] == "us"] == ["0", "0", "2", "0", "0"]


async def test_every_change_says_who_made_it_and_under_which_request(server: Served) -> None:
    headers = {"x-request-id": "trace-7"}
    body = TENANT | {"metric": "calls"}
    await expect_answer(server, "POST", "/v1/mappings", 201, json=body, headers=headers)
    await expect_answer(server, "PUT", "/v1/customers/c", 201, json=TENANT, headers=headers)
    changes = []
    for record in scan(MemoryLog(server.disk), 0):
        if record.parts[0].kind == PartKind.CONTROL:
            control = decode_control(record.envelope.record_type, record.parts[0].data)
            if isinstance(control, MappingChange | CustomerChange):
                changes.append((control.change.actor, control.change.request_id))
    assert changes == [("anonymous", "trace-7")] * 2


async def test_when_the_log_can_not_be_written_changes_and_events_are_503_and_readiness_too(
    server: Served,
) -> None:
    server.disk.fault = lambda operation: "error" if operation == "sync" else "ok"
    body = TENANT | {"metric": "calls"}
    problem = await expect_answer(server, "POST", "/v1/mappings", 503, json=body)
    assert problem["requestId"]
    await expect_answer(server, "POST", "/v1/events/ingest", 503, json={"events": [event("k")]})
    ready = await expect_answer(server, "GET", "/health/ready", 503)
    assert (ready["status"], ready["checks"]["log"]["status"]) == ("unavailable", "failed")
    assert server.gateway.meter.registry.mappings == {}
    server.disk.fault = lambda operation: "full" if operation == "write" else "ok"
    await expect_answer(server, "POST", "/v1/mappings", 507, json=body)
    server.disk.fault = lambda _operation: "ok"
    await mapped(server)
    ready = await expect_answer(server, "GET", "/health/ready")
    assert ready["status"] == "healthy", ready


async def test_a_write_that_does_not_end_makes_the_server_unready_and_ingest_a_quick_503(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, go = server.gateway.meter.started.writer, trio.Event()

    async def stuck(_work: Any) -> None:
        await go.wait()

    monkeypatch.setattr(writer, "_run_blocking", stuck)
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + 5
        nursery.start_soon(writer.alone_with_log, lambda: None)
        await trio.testing.wait_all_tasks_blocked()
        await expect_answer(server, "GET", "/health/ready")
        server.clock.us += 12_000_000
        ready = await expect_answer(server, "GET", "/health/ready", 503)
        assert (ready["status"], ready["checks"]["log"]["status"]) == ("unavailable", "failed")
        assert "for 12 s" in ready["checks"]["log"]["detail"]
        await expect_answer(server, "POST", "/v1/events/ingest", 503, json={"events": [event("k")]})
        await expect_answer(server, "GET", "/health/live")
        go.set()
    assert not nursery.cancel_scope.cancelled_caught, "it waited for the write"
    ready = await expect_answer(server, "GET", "/health/ready")
    assert ready["checks"]["log"]["status"] == "ok"
    await server.ingest(event("k"))


async def test_a_part_that_ails_degrades_readiness_and_is_named(server: Served) -> None:
    server.gateway.free_bytes = lambda: 1 << 20
    server.gateway.meter.started.closer.held_because = "the wall clock moved"
    ready = await expect_answer(server, "GET", "/health/ready")
    assert ready["status"] == "degraded"
    ailing = {name for name, check in ready["checks"].items() if check["status"] != "ok"}
    assert ailing == {"disk", "clock"}
