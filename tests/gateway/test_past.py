"""`asOf`, `explain` and exports through the API of a whole server in memory."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
import trio

from engine.actors import as_of
from gateway import streams
from tests.helpers.served import START_US, Served, bearer, served

JAN_31 = "2026-01-31"


def event(quantity: Any, **more: Any) -> dict[str, Any]:
    return {
        "tenantId": "acme",
        "metric": "calls",
        "customerRef": "anna",
        "quantity": quantity,
        "ts": f"{JAN_31}T09:00:00Z",
        **more,
    }


async def get(server: Served, path: str, status: int = 200, **query: Any) -> Any:
    response = await server.client.get(path, params={"tenantId": "acme", **query})
    assert response.status_code == status, response.text
    return response.json()


async def test_usage_as_of_a_position_or_a_time_is_what_was_known_then() -> None:
    async with served() as server:
        await server.ingest(event(1, idempotencyKey="a"))
        before_us = server.clock.us
        server.clock.us += 60_000_000
        await server.ingest(event(2, idempotencyKey="b"), event(4, idempotencyKey="c"))
        listed = await get(server, "/v1/events", sort="ts", sortDir="asc")
        positions = [one["sequence"] for one in listed["events"]]
        for position, total in zip(positions, (1, 3, 7), strict=True):
            found = await get(server, "/v1/usage/current", customerRef="anna", asOf=position)
            assert found["metrics"][0]["current"] == total
            assert found["asOf"]["position"] == position
            listed = await get(server, "/v1/events", asOf=position)
            assert listed["total"] == len([p for p in positions if p <= position])
            history = await get(
                server,
                "/v1/usage/history",
                metric="calls",
                since=f"{JAN_31}T00:00:00Z",
                asOf=position,
            )
            assert history["totals"]["value"] == total
        at = _iso(before_us)
        found = await get(server, "/v1/usage/current", customerRef="anna", asOf=at)
        assert found["metrics"][0]["current"] == 1
        assert found["asOf"] == {"position": positions[0], "time": at}
        found = await get(server, "/v1/usage/current", customerRef="anna", asOf="-PT30S")
        assert found["metrics"][0]["current"] == 1
        assert "asOf" not in await get(server, "/v1/usage/current", customerRef="anna")


def _iso(us: int) -> str:
    from engine.core.times import format_instant

    return format_instant(us)


async def test_the_past_of_listing_history_and_export_is_exact_wherever_the_index_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.actors.indexer.SEGMENT_EVENTS", 3)
    async with served() as server:
        for group in range(6):
            await server.ingest(*(event(1, idempotencyKey=f"{group}-{n}") for n in range(5)))
            await get(server, "/v1/events")  # readers make segments
        listed = await get(server, "/v1/events", limit=100)
        positions = sorted(one["sequence"] for one in listed["events"])
        assert len(positions) == 30
        for number, position in enumerate(positions, 1):
            listed = await get(server, "/v1/events", limit=100, asOf=position)
            assert sorted(one["sequence"] for one in listed["events"]) == positions[:number]
            history = await get(
                server,
                "/v1/usage/history",
                metric="calls",
                since=f"{JAN_31}T00:00:00Z",
                asOf=position,
            )
            assert history["totals"]["value"] == number
            lines = (await exported(server, format="jsonl", asOf=position)).splitlines()
            assert [json.loads(line)["sequence"] for line in lines] == positions[:number]


async def test_a_mapping_made_later_is_not_known_before() -> None:
    async with served() as server:
        await server.ingest(event(5, idempotencyKey="a"), event(3, idempotencyKey="b"))
        last = (await get(server, "/v1/events"))["events"][0]["sequence"]
        mapping = {"tenantId": "acme", "metric": "seats", "aggregation": "max"}
        made = await server.client.post("/v1/mappings", json=mapping)
        assert made.status_code == 201
        now = await get(server, "/v1/usage/current", customerRef="anna")
        then = await get(server, "/v1/usage/current", customerRef="anna", asOf=last)
        assert [one["name"] for one in now["metrics"]] == ["calls", "seats"]
        assert [one["name"] for one in then["metrics"]] == ["calls"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("99999", "ends at"),
        ("+PT1H", "future"),
        ("2026-01-31", "log position or a time"),
        ("yesterday", "log position or a time"),
        ("2020-01-01T00:00:00Z", "nothing was known"),
        ("", "log position or a time"),
    ],
)
async def test_an_as_of_that_can_not_be_answered_is_a_400_that_says_why(
    text: str, says: str
) -> None:
    async with served() as server:
        for path, more in (
            ("/v1/usage/current", {"customerRef": "anna"}),
            ("/v1/events", {}),
            ("/v1/usage/history", {"metric": "calls", "since": "-PT1H"}),
            (
                "/v1/usage/explain",
                {"metric": "calls", "customerRef": "anna", "periodStart": "2026-01-01"},
            ),
        ):
            problem = await get(server, path, 400, asOf=text, **more)
            assert problem["errors"][0]["field"] == "asOf"
            assert says in problem["errors"][0]["message"]


async def test_a_cursor_of_the_past_goes_on_in_the_same_past() -> None:
    async with served() as server:
        for number in range(5):
            await server.ingest(event(1, idempotencyKey=f"k{number}"))
        seen = (await get(server, "/v1/events"))["events"]
        then = sorted(one["sequence"] for one in seen)[3]
        page = await get(server, "/v1/events", asOf=then, limit=3)
        await server.ingest(event(1, idempotencyKey="later"))
        rest = await get(server, "/v1/events", asOf=then, limit=3, cursor=page["nextCursor"])
        found = [one["sequence"] for one in page["events"] + rest["events"]]
        assert sorted(found) == sorted(one["sequence"] for one in seen)[:4]
        await get(server, "/v1/events", 400, limit=3, cursor=page["nextCursor"])


async def test_a_question_that_takes_too_long_is_a_503_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with served() as server:
        await server.ingest(event(1, idempotencyKey="a"))
        monkeypatch.setattr(as_of, "SECONDS_MAX", -1)
        monkeypatch.setattr("engine.actors.prefix_fold.PAGE_BYTES", 1)
        problem = await get(server, "/v1/usage/current", 503, customerRef="anna", asOf="2")
        assert "copy of the data directory" in problem["detail"]
        assert server.gateway.meter.started.as_of.refused == 1


async def test_only_a_few_questions_about_the_past_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(as_of, "WAITING_MAX", 3)
    async with served() as server:
        await server.ingest(event(1, idempotencyKey="a"))
        statuses: list[int] = []

        async def ask() -> None:
            response = await server.client.get(
                "/v1/usage/current", params={"tenantId": "acme", "customerRef": "anna", "asOf": "2"}
            )
            statuses.append(response.status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert statuses.count(200) >= as_of.AT_ONCE_MAX
        assert 503 in statuses
        assert set(statuses) == {200, 503}


# Export.

EVENTS = (
    event(0, idempotencyKey="=cmd", meta={"b": 1.50, "a": 'x,"y"\n'}),
    event("999999999999999.999999", idempotencyKey="'=x", resourceId="@home", source="sdk"),
    event(0.3, idempotencyKey="plain", customerRef="-ben"),
    {
        "tenantId": "acme",
        "metric": "calls",
        "customerRef": "anna",
        "quantity": 1,
        "idempotencyKey": "no time",
    },
    event(7, tenantId="beta", idempotencyKey="other tenant"),
)


async def exported(server: Served, **query: Any) -> bytes:
    response = await server.client.get("/v1/events", params={"tenantId": "acme", **query})
    assert response.status_code == 200, response.text
    assert "content-length" not in response.headers
    return response.content


async def test_jsonl_names_events_as_ingest_does_and_goes_in_again() -> None:
    async with served() as server:
        await server.ingest(*EVENTS)
        lines = (await exported(server, format="jsonl")).splitlines()
    events = [json.loads(line) for line in lines]
    assert [one["idempotencyKey"] for one in events] == ["=cmd", "'=x", "plain", "no time"]
    assert b'"quantity":999999999999999.999999' in lines[1]
    assert events[0]["meta"] == {"a": 'x,"y"\n', "b": 1.5}
    assert events[3]["ts"] == events[3]["receivedAt"]
    async with served() as other:
        body = b'{"events":[' + b",".join(lines) + b"]}"
        answer = await other.client.post(
            "/v1/events/ingest", content=body, headers={"content-type": "application/json"}
        )
        assert answer.json()["accepted"] == 4
        again = (await exported(other, format="jsonl")).splitlines()
    derived = ("receivedAt", "sequence")
    for old, new in zip(events, map(json.loads, again), strict=True):
        assert {k: v for k, v in old.items() if k not in derived} == {
            k: v for k, v in new.items() if k not in derived
        }


async def test_csv_escapes_what_a_spreadsheet_would_run_and_only_that() -> None:
    async with served() as server:
        await server.ingest(*EVENTS)
        text = (await exported(server, format="csv")).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["idempotencyKey"] for row in rows] == ["'=cmd", "''=x", "plain", "no time"]
    assert rows[1]["resourceId"] == "'@home"
    assert rows[2]["customerRef"] == "'-ben"
    assert rows[1]["quantity"] == "999999999999999.999999"
    assert json.loads(rows[0]["meta"]) == {"a": 'x,"y"\n', "b": 1.5}


async def test_an_export_holds_what_its_filters_say_and_what_was_known() -> None:
    async with served() as server:
        await server.ingest(*EVENTS)
        lines = (await exported(server, format="jsonl", customerRef="-ben")).splitlines()
        assert [json.loads(line)["idempotencyKey"] for line in lines] == ["plain"]
        lines = (await exported(server, format="jsonl", source="sdk")).splitlines()
        assert [json.loads(line)["idempotencyKey"] for line in lines] == ["'=x"]
        first = json.loads((await exported(server, format="jsonl")).splitlines()[0])["sequence"]
        lines = (await exported(server, format="jsonl", asOf=first)).splitlines()
        assert len(lines) == 1
        assert await exported(server, format="jsonl", startTime="2026-02-01T00:00:00Z") == b""
        for name, value in (("limit", 5), ("cursor", "x"), ("sort", "ts"), ("offset", 0)):
            problem = await get(server, "/v1/events", 400, format="csv", **{name: value})
            assert problem["errors"][0]["field"] == name


async def test_a_key_of_one_tenant_exports_nothing_of_another() -> None:
    async with served(auth="required") as server:
        key = await server.key("acme", "events:read", "events:write")
        await server.ingest(event(1, idempotencyKey="a"), headers=bearer(key))
        found = await server.client.get("/v1/events?format=jsonl", headers=bearer(key))
        assert len(found.content.splitlines()) == 1
        found = await server.client.get(
            "/v1/events?format=jsonl&tenantId=beta", headers=bearer(key)
        )
        assert found.status_code == 403


async def test_only_a_few_exports_run_and_each_is_let_go_when_its_client_goes() -> None:
    async with served() as server:
        await server.ingest(event(1, idempotencyKey="a"))
        open_streams = server.gateway.streams
        held = [open_streams.start(_nothing()) for _ in range(streams.AT_ONCE_MAX)]
        response = await server.client.get("/v1/events?tenantId=acme&format=csv")
        assert response.status_code == 503
        assert "retry" in response.json()["detail"]
        await held.pop().aclose()
        await exported(server, format="csv")
        assert open_streams.open == streams.AT_ONCE_MAX - 1
        del held  # as when a connection ends before the answer's head is out
        assert open_streams.open == 0


async def _nothing() -> Any:
    return
    yield b""


async def test_a_stream_ends_with_an_error_when_the_server_stops_or_it_takes_too_long() -> None:
    async with served() as server:
        gateway = server.gateway
        stream = gateway.streams.start(_pieces())
        assert await anext(stream) == b"x"
        gateway.clock.us += streams.SECONDS_MAX * 1_000_000 + 1  # type: ignore[attr-defined]
        with pytest.raises(streams.StreamCut, match="shorter range"):
            await anext(stream)
        await stream.aclose()
        stream = gateway.streams.start(_pieces())
        gateway.meter.phase = "stopping"
        with pytest.raises(streams.StreamCut, match="stopping"):
            await anext(stream)
        await stream.aclose()
        gateway.meter.phase = "ready"
        assert (gateway.streams.open, gateway.streams.cut_off) == (0, 2)


async def test_the_head_of_an_export_makes_no_export() -> None:
    async with served() as server:
        await server.ingest(event(1, idempotencyKey="a"))
        response = await server.client.head("/v1/events?tenantId=acme&format=csv")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/csv")
        assert server.gateway.streams.open == 0


async def _pieces() -> Any:
    while True:
        yield b"x"


# Explain.


async def test_explain_tells_every_part_of_a_total() -> None:
    async with served() as server:
        await server.ingest(
            event(1.5, idempotencyKey="a", ts=f"{JAN_31}T09:00:00Z"),
            event(2, idempotencyKey="b", ts="2026-01-30T10:00:00Z"),
            event(4, idempotencyKey="c", ts=f"{JAN_31}T08:00:00Z"),
        )
        late = await server.ingest(event(8, idempotencyKey="d", ts="2026-01-03T00:00:00Z"))
        found = await get(
            server,
            "/v1/usage/explain",
            metric="calls",
            customerRef="anna",
            periodStart="2026-01-01",
        )
        assert found["total"] == 7.5
        assert [(d["day"], d["count"], d["sum"]) for d in found["days"]] == [
            ("2026-01-30", 1, 2),
            (JAN_31, 2, 5.5),
        ]
        [held] = found["late"]
        assert held["adjustmentId"] == late["results"][0]["adjustmentId"]
        assert (held["status"], held["sum"], held["amount"], held["count"]) == ("pending", 8, 0, 1)
        assert found["period"] == {
            "start": "2026-01-01T00:00:00.000Z",
            "end": "2026-02-01T00:00:00.000Z",
        }
        first = found["days"][1]["firstPosition"]
        then = await get(
            server,
            "/v1/usage/explain",
            metric="calls",
            customerRef="anna",
            periodStart="2026-01-01",
            asOf=first,
        )
        assert then["total"] == 1.5
        problem = await get(
            server,
            "/v1/usage/explain",
            400,
            metric="calls",
            customerRef="anna",
            periodStart="2026-01-02",
        )
        assert "begins on 2026-01-01" in problem["errors"][0]["message"]


def test_the_clock_of_these_tests_is_what_they_say() -> None:
    assert _iso(START_US) == f"{JAN_31}T10:00:00.000Z"
