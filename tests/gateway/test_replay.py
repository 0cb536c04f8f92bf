"""Replay as a client sees it: what is previewed is what is applied, once, and nothing else moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

from engine.core import replay
from tests.helpers.served import Served, bearer, served

TENANT = {"tenantId": "acme"}
HOUR_US = 3_600_000_000


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with served() as running:
        yield running


def event(key: str, quantity: Any = 1, **more: Any) -> dict[str, Any]:
    fields = {"metric": "calls", "customerRef": "c", "quantity": quantity, "idempotencyKey": key}
    return TENANT | fields | more


async def ask(server: Served, method: str, path: str, status: int = 200, **more: Any) -> Any:
    response = await server.client.request(method, path, **more)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def replayed(server: Served, status: int = 200, **body: Any) -> Any:
    return await ask(server, "POST", "/v1/replay", status, json=TENANT | body)


async def usage(server: Served, customer: str = "c", metric: str = "calls") -> Any:
    params = TENANT | {"customerRef": customer}
    found = await ask(server, "GET", "/v1/usage/current", params=params)
    return next(one for one in found["metrics"] if one["name"] == metric)


def next_sequence(server: Served) -> int:
    return server.gateway.meter.log.head().next_sequence


async def fill(server: Served) -> None:
    """One event in time; late ones on the 20th, 21st and 27th of January, one in closed December."""
    await server.ingest(event("now", 1))
    await server.ingest(event("l20", 2, ts="2026-01-20T10:00:00Z"))
    await server.ingest(event("l21", 3, ts="2026-01-21T10:00:30Z"))
    await server.ingest(event("l27", 4, ts="2026-01-27T10:00:00Z"))
    await server.ingest(event("dec", 50, ts="2025-12-20T10:00:00Z"))


async def test_a_dry_run_changes_nothing_and_apply_does_what_it_said(server: Served) -> None:
    await fill(server)
    before = next_sequence(server)
    preview = await replayed(server)
    assert next_sequence(server) == before
    assert (preview["mode"], preview["applied"], preview["cursor"]) == ("dry-run", False, None)
    change = preview["changes"]["calls"]
    assert change == {
        "eventsFound": 4,
        "lateEvents": 3,
        "foldedEvents": 3,
        "counterDelta": 9,
        "affectedCustomers": 1,
    }
    assert preview["timeRange"]["start"] == "2026-01-01T00:00:00.000Z"
    assert (await usage(server))["current"] == 1
    applied = await replayed(server, mode="apply", expect=preview["planHash"])
    assert applied["applied"] is True
    assert applied["changes"] == preview["changes"]
    assert applied["planHash"] == preview["planHash"]
    now = await usage(server)
    assert (now["current"], now["count"], now["pendingLate"]) == (10, 4, 0)
    (gone,) = applied["summary"]["supersededAdjustmentIds"]
    found = await ask(server, "GET", f"/v1/adjustments/{gone}")
    assert (found["status"], found["eventCount"]) == ("superseded", 0)
    for action in ("approve", "revert"):
        problem = await ask(server, "POST", f"/v1/adjustments/{gone}/{action}", 409)
        assert "replay" in problem["detail"]
    assert 'reaggregations_total{reason="replay"} 1.0' in (await server.client.get("/metrics")).text


async def test_applying_twice_changes_nothing_the_second_time(server: Served) -> None:
    await fill(server)
    preview = await replayed(server, dryRun=True)
    await replayed(server, dryRun=False, expect=preview["planHash"])
    after = next_sequence(server), (await usage(server))["current"]
    again = await replayed(server, mode="apply", expect=preview["planHash"])
    assert (again["applied"], again["planHash"]) == (True, preview["planHash"])
    assert again["changes"]["calls"]["foldedEvents"] == 0
    anew = await replayed(server, mode="apply")
    assert anew["changes"]["calls"]["counterDelta"] == 0
    assert (next_sequence(server), (await usage(server))["current"]) == after


async def test_a_plan_that_moved_is_refused(server: Served) -> None:
    await fill(server)
    preview = await replayed(server)
    await server.ingest(event("later", 5, ts="2026-01-20T11:00:00Z"))
    before = next_sequence(server)
    problem = await replayed(server, 409, mode="apply", expect=preview["planHash"])
    assert "no longer what was reviewed" in problem["detail"]
    assert next_sequence(server) == before
    assert (await usage(server))["current"] == 1
    preview = await replayed(server)
    await ask(server, "POST", "/v1/adjustments/approve", json=TENANT)
    await replayed(server, 409, mode="apply", expect=preview["planHash"])
    assert (await usage(server))["current"] == 15, "approved late events are not folded again"
    assert (await replayed(server, mode="apply"))["changes"]["calls"]["foldedEvents"] == 0
    assert (await usage(server))["current"] == 15


async def test_times_are_absolute_or_relative_and_half_open(server: Served) -> None:
    await fill(server)
    since, until = "2026-01-20T10:00:00Z", "2026-01-21T10:00:30Z"
    found = (await replayed(server, since=since, until=until))["changes"]["calls"]
    assert (found["eventsFound"], found["foldedEvents"], found["counterDelta"]) == (1, 1, 2)
    until = "2026-01-21T10:00:30.000001Z"
    found = (await replayed(server, since=since, until=until))["changes"]["calls"]
    assert (found["eventsFound"], found["counterDelta"]) == (2, 5)
    found = (await replayed(server, since="-P5D"))["changes"]["calls"]
    assert (found["eventsFound"], found["counterDelta"]) == (2, 4)
    wrongs: tuple[dict[str, Any], ...] = (
        {"since": "yesterday"},
        {"since": until, "until": since},
        {"mode": "apply", "dryRun": True},
        {"mode": "force"},
        {"cursor": "x"},
        {"metrics": []},
        {"latenessHours": -1},
        {"unknown": 1},
    )
    for wrong in wrongs:
        await replayed(server, 400, **wrong)


async def test_a_closed_period_is_seen_and_never_folded(server: Served) -> None:
    await fill(server)
    found = (await replayed(server, since="2025-12-01T00:00:00Z"))["changes"]["calls"]
    assert (found["eventsFound"], found["lateEvents"], found["foldedEvents"]) == (5, 4, 3)
    applied = await replayed(server, mode="apply", since="2025-12-01T00:00:00Z")
    assert applied["changes"]["calls"]["counterDelta"] == 9
    december = await ask(
        server, "GET", "/v1/adjustments", params=TENANT | {"periodStart": "2025-12-01"}
    )
    assert [one["status"] for one in december["adjustments"]] == ["pending"]


async def test_a_closing_that_comes_between_is_waited_for(server: Served) -> None:
    """A closing is appended under the lock of all changes, so no plan is applied to a period that it closes."""
    await fill(server)
    started = server.gateway.meter.started
    gate = trio.Event()

    async def slow_disk(function: Any) -> Any:
        await gate.wait()
        return function()

    started.writer._appender._run_blocking = slow_disk
    server.clock.us += 4 * 24 * HOUR_US
    async with trio.open_nursery() as nursery:
        nursery.start_soon(started.closer.close_due)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(_apply_nothing, server)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert server.gateway.meter.rules.closed_until_us == 1_769_904_000_000_000
    found = await ask(server, "GET", "/v1/adjustments", params=TENANT | {"status": "pending"})
    assert found["total"] == 2, "January's waits too, for a decision"


async def _apply_nothing(server: Served) -> None:
    applied = await replayed(server, mode="apply", since="2026-01-01T00:00:00Z")
    assert applied["changes"]["calls"]["foldedEvents"] == 0


async def test_a_watermark_and_a_lateness_judge_anew(server: Served) -> None:
    await fill(server)
    wide = (await replayed(server, latenessHours=7 * 24))["changes"]["calls"]
    assert (wide["lateEvents"], wide["foldedEvents"], wide["counterDelta"]) == (3, 1, 4)
    moved = await replayed(server, watermark="2026-01-22T10:00:30Z", latenessHours=24)
    assert moved["watermark"] == "2026-01-22T10:00:30.000Z"
    assert moved["changes"]["calls"]["counterDelta"] == 7, "the edge itself is not late"
    own = await replayed(server, watermark="2026-01-23T10:00:31Z")
    assert own["changes"]["calls"]["counterDelta"] == 4, "the metric's own lateness, 48 hours"
    applied = await replayed(
        server, watermark="2026-01-22T10:00:30Z", latenessHours=24, mode="apply"
    )
    assert applied["summary"]["supersededAdjustments"] == 0
    now = await usage(server)
    assert (now["current"], now["pendingLate"]) == (8, 1)
    await ask(
        server, "POST", "/v1/adjustments/approve", json=TENANT | {"periodStart": "2026-01-01"}
    )
    assert (await usage(server))["current"] == 10


@pytest.mark.parametrize(("aggregation", "before", "after"), [("max", 1, 4), ("last", 1, 1)])
async def test_other_aggregations_say_by_how_much_what_counts_moves(
    server: Served, aggregation: str, before: int, after: int
) -> None:
    mapping = TENANT | {"metric": "calls", "aggregation": aggregation}
    await ask(server, "POST", "/v1/mappings", 201, json=mapping)
    await fill(server)
    assert (await usage(server))["current"] == before
    applied = await replayed(server, mode="apply")
    assert applied["changes"]["calls"]["counterDelta"] == after - before
    assert (await usage(server))["current"] == after


async def test_several_metrics_and_customers_in_one_plan(server: Served) -> None:
    for metric in ("calls", "bytes", "seats"):
        for customer in ("a", "b"):
            more = {"metric": metric, "customerRef": customer}
            await server.ingest(event(f"{metric}-now", 1, **more))
            await server.ingest(event(f"{metric}-late", 2, ts="2026-01-20T10:00:00Z", **more))
    both = await replayed(server, metrics=["calls", "bytes"], mode="apply")
    assert list(both["changes"]) == ["bytes", "calls"]
    assert all(change["affectedCustomers"] == 2 for change in both["changes"].values())
    assert (await usage(server, "a", "bytes"))["current"] == 3
    assert (await usage(server, "a", "seats"))["current"] == 1
    assert (await replayed(server, metrics=["none"]))["changes"]["none"]["eventsFound"] == 0


async def test_a_long_range_goes_on_with_its_cursor(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "EVENTS_MAX", 4)
    await server.ingest(event("now", 1))
    await server.ingest(
        *(event(f"l{n}", 1, ts=f"2026-01-{10 + n // 2:02d}T10:00:00Z") for n in range(11))
    )
    folded, pages, cursor = 0, 0, None
    while pages == 0 or cursor:
        body: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
        preview = await replayed(server, **body)
        applied = await replayed(server, mode="apply", expect=preview["planHash"], **body)
        assert applied["changes"] == preview["changes"]
        cursor = applied["cursor"]
        folded += applied["changes"]["calls"]["foldedEvents"]
        pages += 1
        assert pages < 10
    assert (folded, pages) == (11, 3)
    assert (await usage(server))["current"] == 12


async def test_events_of_one_instant_stay_on_one_page(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "EVENTS_MAX", 2)
    await server.ingest(event("now", 1))
    await server.ingest(*(event(f"l{n}", 1, ts="2026-01-10T10:00:00Z") for n in range(5)))
    await server.ingest(event("later", 1, ts="2026-01-10T10:00:00.000001Z"))
    first = await replayed(server, mode="apply")
    assert first["changes"]["calls"]["foldedEvents"] == 5
    second = await replayed(server, mode="apply", cursor=first["cursor"])
    assert second["changes"]["calls"]["foldedEvents"] == 1


async def test_a_replay_is_its_tenants_own() -> None:
    async with served(auth="required") as server:
        acme = bearer(await server.key("acme", "adjustments:write", "events:write"))
        umbra = bearer(await server.key("umbra", "adjustments:write", "events:write"))
        reader = bearer(await server.key("acme", "adjustments:read"))
        for key in (acme, umbra):
            for number, ts in enumerate(("2026-01-31T10:00:00Z", "2026-01-20T10:00:00Z")):
                one = {"metric": "calls", "customerRef": "c", "quantity": 1}
                body: dict[str, Any] = {
                    "events": [one | {"idempotencyKey": f"k{number}", "ts": ts}]
                }
                await ask(server, "POST", "/v1/events/ingest", json=body, headers=key)
        await ask(server, "POST", "/v1/replay", 403, json={}, headers=reader)
        await ask(server, "POST", "/v1/replay", 403, json={"tenantId": "acme"}, headers=umbra)
        body = {"mode": "apply"}
        found = await ask(server, "POST", "/v1/replay", json=body, headers=umbra)
        assert found["changes"]["calls"]["foldedEvents"] == 1
        found = await ask(server, "POST", "/v1/replay", json=body, headers=acme)
        assert found["changes"]["calls"]["foldedEvents"] == 1


async def test_a_replay_that_the_disk_refuses_changes_nothing(server: Served) -> None:
    await fill(server)
    preview = await replayed(server)
    server.disk.fault = lambda operation: "error" if operation != "head" else "ok"
    await replayed(server, 503, mode="apply")
    server.disk.fault = lambda _operation: "ok"
    assert (await usage(server))["current"] == 1
    await replayed(server, mode="apply", expect=preview["planHash"])
    assert (await usage(server))["current"] == 10
