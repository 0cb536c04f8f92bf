"""Backfills and imports over HTTP: what is refused at once, what each row becomes, who may see them, when they end."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from engine.actors import operations
from engine.core import operations as fold
from tests.helpers.served import ADMIN_KEY, Served, bearer, served

BODY = {
    "tenantId": "acme",
    "periodStart": "2026-01-01",
    "periodEnd": "2026-02-01",
    "reason": "outage",
}


def event(key: str | None, **more: Any) -> dict[str, Any]:
    found = {"metric": "calls", "customerRef": "c", "quantity": 1, "ts": "2026-01-31T09:00:00Z"}
    return found | ({} if key is None else {"idempotencyKey": key}) | more


async def ended(server: Served, operation: str, **more: Any) -> dict[str, Any]:
    """The backfill once it has ended."""
    while True:
        response = await server.client.get(f"/v1/events/backfill/{operation}", **more)
        assert response.status_code == 200, response.text
        if response.json()["status"] not in ("pending", "processing"):
            return dict(response.json())
        await trio.sleep(0.001)


async def backfilled(server: Served, **body: Any) -> dict[str, Any]:
    response = await server.client.post("/v1/events/backfill", json=BODY | body)
    assert response.status_code == 202, response.text
    assert response.json()["status"] == "pending"
    return await ended(server, response.json()["operationId"])


def counts(view: dict[str, Any]) -> tuple[int, ...]:
    names = ("total", "processed", "accepted", "duplicate", "late", "failed")
    return tuple(view[f"{name}Events"] for name in names)


async def total(server: Served) -> Any:
    response = await server.client.get("/v1/usage/current?tenantId=acme&customerRef=c")
    return response.json()["metrics"][0]["current"]


async def test_every_row_of_a_list_has_its_fate() -> None:
    async with served() as server:
        await server.ingest(event("live", tenantId="acme", quantity=5))
        view = await backfilled(
            server,
            events=[
                event("a"),
                event("live", quantity=5),
                event("live", quantity=6),
                event(None, ts="2026-01-31T08:00:00Z"),
                event(None, ts="2026-01-31T08:00:00Z"),
                event("early", ts="2025-12-31T23:59:59.999999Z"),
                event("late", ts="2026-01-02T00:00:00Z"),
                event("edge", ts="2026-02-01T00:00:00Z"),
                {"metric": "calls"},
                event("no time", ts=None),
                event("other", tenantId="umbra"),
                event("typo", customerref="c"),
            ],
        )
        assert view["status"] == "completed"
        assert counts(view) == (12, 12, 3, 2, 1, 7)
        assert [error["line"] for error in view["errors"]] == [3, 6, 8, 9, 10, 11, 12]
        assert await total(server) == 7
        again = await backfilled(
            server, events=[event("a"), event(None, ts="2026-01-31T08:00:00Z")]
        )
        assert counts(again)[2:4] == (0, 2)
        sources = (await server.client.get("/v1/events?tenantId=acme&limit=10")).json()["events"]
        assert {one["id"][:4]: one["source"] for one in sources}["a"] == "etl"


async def test_what_was_counted_live_without_a_key_and_is_backfilled_counts_once() -> None:
    async with served() as server:
        await server.ingest(event(None, tenantId="acme"))
        view = await backfilled(server, events=[event(None)])
        assert counts(view)[2:4] == (0, 1)


@pytest.mark.parametrize(
    "names",
    ["metric,customerRef,quantity,ts,idempotencyKey", "metric,customer_ref,quantity,timestamp,id"],
)
async def test_csv_rows_have_the_lines_that_an_editor_shows(names: str) -> None:
    async with served() as server:
        rows = [
            'calls,c,1,2026-01-31T09:00:00Z,"a\nb"',
            "calls,c,-1,2026-01-31T09:00:00Z,k",
            "calls,c,1",
            "",
            "calls,c,1,yesterday,l",
            "'-metric,c,0.5,2026-01-31T09:00:00Z,m",
            'calls,c,-1,2026-01-31T09:00:00Z,"x\ny"',
            "calls,c,-1,2026-01-31T09:00:00Z,z",
        ]
        view = await backfilled(server, csvData="\r\n".join([names, *rows]))
        assert [error["line"] for error in view["errors"]] == [4, 5, 7, 9, 11]
        assert counts(view) == (7, 7, 2, 0, 0, 5)
        metrics = (await server.client.get("/v1/usage/current?tenantId=acme&customerRef=c")).json()
        assert [one["name"] for one in metrics["metrics"]] == ["-metric", "calls"]


async def test_metric_and_customer_of_the_body_are_those_of_rows_that_name_none() -> None:
    async with served() as server:
        view = await backfilled(
            server, metric="calls", customerRef="c", csvData="quantity,ts\n2,2026-01-31T09:00:00Z\n"
        )
        assert counts(view)[2] == 1
        assert await total(server) == 2


async def test_the_period_is_half_open() -> None:
    async with served() as server:
        times = [f"2026-01-31T0{hour}:00:00Z" for hour in (7, 8, 9)]
        times += ["2026-01-31T07:59:59.999999Z", "2026-01-31T08:59:59.999999Z"]
        view = await backfilled(
            server,
            periodStart="2026-01-31T08:00:00Z",
            periodEnd="2026-01-31T09:00:00Z",
            events=[event(f"k{number}", ts=ts) for number, ts in enumerate(times)],
        )
        assert [error["line"] for error in view["errors"]] == [1, 3, 4]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"events": []}, "events"),
        ({"events": {}}, "events"),
        ({}, "events"),
        ({"events": [1], "csvData": "x"}, "events"),
        ({"csvData": "metric,quantity,amount\n"}, "csvData"),
        ({"csvData": "quantity\n"}, "csvData"),
        ({"csvData": "quantity,quantity\n1,1\n"}, "csvData"),
        ({"events": [1], "periodStart": "January"}, "periodStart"),
        ({"events": [1], "periodEnd": "2026-01-01"}, "periodEnd"),
        ({"events": [1], "reason": ""}, "reason"),
    ],
)
async def test_what_can_be_refused_at_once_is(body: dict[str, Any], field: str) -> None:
    async with served() as server:
        response = await server.client.post("/v1/events/backfill", json=BODY | body)
        assert response.status_code == 400, response.text
        assert response.json()["errors"][0]["field"] == field
        assert (await server.client.get("/v1/events/backfill")).json()["total"] == 0


async def test_one_that_waits_is_cancelled_at_once_and_never_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operations, "CHUNK_ROWS", 1)
    async with served() as server:
        names = []
        for prefix in ("first", "second"):
            rows = [event(f"{prefix}{n}") for n in range(50)]
            made = await server.client.post("/v1/events/backfill", json=BODY | {"events": rows})
            names.append(made.json()["operationId"])
        view = (await server.client.post(f"/v1/events/backfill/{names[1]}/cancel")).json()
        assert (view["status"], view["processedEvents"]) == ("cancelled", 0)
        assert counts(await ended(server, names[0]))[2] == 50
        head = server.gateway.meter.log.head()
        for name, status in zip(names, ("completed", "cancelled"), strict=True):
            again = await server.client.post(f"/v1/events/backfill/{name}/cancel")
            assert again.json()["status"] == status, "an end is an end"
        assert server.gateway.meter.log.head() == head
        assert await total(server) == 50


async def test_one_in_the_middle_stops_after_its_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "CHUNK_ROWS", 10)
    async with served() as server:
        made = await server.client.post(
            "/v1/events/backfill", json=BODY | {"events": [event(f"k{n}") for n in range(900)]}
        )
        name = made.json()["operationId"]
        runner = server.gateway.meter.started.operations
        while not runner.find(name, None, "backfill").processed:
            await trio.sleep(0)
        view = (await server.client.post(f"/v1/events/backfill/{name}/cancel")).json()
        assert view["status"] == "cancelled"
        assert 0 < view["processedEvents"] < 900
        assert view["acceptedEvents"] == view["processedEvents"]
        assert await total(server) == view["acceptedEvents"]


async def test_errors_and_operations_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "ROW_ERRORS_MAX", 5)
    monkeypatch.setattr(fold, "OPERATIONS_KEPT_MAX", 3)
    monkeypatch.setattr(operations, "OPERATIONS_OPEN_MAX", 0)
    async with served() as server:
        refused = await server.client.post(
            "/v1/events/backfill", json=BODY | {"events": [event("a")]}
        )
        assert refused.status_code == 503
        monkeypatch.setattr(operations, "OPERATIONS_OPEN_MAX", 2)
        view = await backfilled(server, events=[{"metric": "calls"}] * 20)
        assert (view["failedEvents"], len(view["errors"])) == (20, 5)
        for number in range(5):
            await backfilled(server, events=[event(f"n{number}")])
        listed = (await server.client.get("/v1/events/backfill?limit=2")).json()
        assert (listed["total"], len(listed["backfills"])) == (3, 2)
        assert (await server.client.get("/v1/events/backfill?status=failed")).json()["total"] == 0


async def test_rows_of_an_import_are_marked_judged_at_its_start_and_refused_after_its_end() -> None:
    async with served() as server:
        start = await server.client.post(
            "/v1/events/imports", json={"tenantId": "acme", "identity": "f"}
        )
        name = start.json()["operationId"]
        header = {"headers": {"stripemeter-import": name}}
        newest = await server.ingest(event("new", tenantId="acme"), **header)
        old = await server.ingest(
            event("old", tenantId="acme", ts="2026-01-02T00:00:00Z"), **header
        )
        assert "late" not in newest["results"][0] | old["results"][0]
        plain = await server.ingest(event("plain", tenantId="acme", ts="2026-01-02T00:00:00Z"))
        assert plain["results"][0]["late"] is True
        same = await server.client.post(
            "/v1/events/imports", json={"tenantId": "acme", "identity": "f"}
        )
        assert same.json()["operationId"] == name
        other = await server.client.post(
            "/v1/events/ingest", json={"events": [event("x", tenantId="umbra")]}, **header
        )
        assert other.status_code == 403
        end = await server.client.post(
            f"/v1/events/imports/{name}/finish", json={"processedEvents": 2}
        )
        assert (end.json()["status"], end.json()["acceptedEvents"], end.json()["lateEvents"]) == (
            "completed",
            2,
            0,
        )
        gone = await server.client.post(
            "/v1/events/ingest", json={"events": [event("y", tenantId="acme")]}, **header
        )
        assert gone.status_code == 409
        unknown = {"headers": {"stripemeter-import": "op_none"}}
        missing = await server.client.post(
            "/v1/events/ingest", json={"events": [event("y", tenantId="acme")]}, **unknown
        )
        assert missing.status_code == 404


async def test_an_import_that_nobody_goes_on_with_is_ended_after_a_day() -> None:
    async with served() as server:
        start = await server.client.post("/v1/events/imports", json={"tenantId": "acme"})
        runner = server.gateway.meter.started.operations
        await runner._end_idle_imports()
        assert runner.find(start.json()["operationId"], None, "import").is_open
        server.clock.us += operations.IMPORT_IDLE_US_MAX + 1_000_000
        await runner._end_idle_imports()
        one = runner.find(start.json()["operationId"], None, "import")
        assert (one.status, bool(one.message)) == ("failed", True)


async def test_folding_into_closed_periods_needs_the_scope_of_corrections() -> None:
    async with served(auth="required") as server:
        writer = await server.key("acme", "events:write")
        both = await server.key("acme", "events:write", "adjustments:write")
        for key, status in ((writer, 403), (both, 201), (ADMIN_KEY, 201)):
            response = await server.client.post(
                "/v1/events/imports", json={"historic": True}, headers=bearer(key)
            )
            assert response.status_code == status, response.text


async def test_a_ninth_open_import_is_a_conflict_and_room_is_made_by_finishing_one() -> None:
    async with served() as server:
        opened = [
            await server.client.post(
                "/v1/events/imports", json={"tenantId": "acme", "identity": str(n)}
            )
            for n in range(9)
        ]
        assert [response.status_code for response in opened] == [201] * 8 + [409]
        name = opened[0].json()["operationId"]
        await server.client.post(
            f"/v1/events/imports/{name}/finish",
            json={"processedEvents": 0},
            params={"tenantId": "acme"},
        )
        again = await server.client.post(
            "/v1/events/imports", json={"tenantId": "acme", "identity": "later"}
        )
        assert again.status_code == 201
