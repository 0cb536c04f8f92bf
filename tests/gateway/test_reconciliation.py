"""Reconciliation as a client sees it: runs, reports, sums, CSV, suggestions; over the Stripe simulator."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import pytest
import trio

from gateway.recon_metrics import KEPT_US
from gateway.simulator.wire import Request
from tests.helpers.served import ADMIN_KEY, Served, bearer, served, ten_times_as_fast

TENANT = {"tenantId": "acme"}
MONTH = "/v1/reconciliation/2026-01"


@asynccontextmanager
async def ticking(**more: str) -> AsyncIterator[Served]:
    """A server whose clock goes ten times as fast, and which looks twice within half a second."""
    lag = {"reconcile_lag_seconds": "0.5", "reconcile_interval_seconds": "3600"}
    async with served(stripe={}, **lag, **more) as running, trio.open_nursery() as nursery:
        nursery.start_soon(ten_times_as_fast, running.clock)
        yield running
        nursery.cancel_scope.cancel()


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with ticking() as running:
        yield running


async def ask(server: Served, method: str, path: str, status: int = 200, **more: Any) -> Any:
    response = await server.client.request(method, path, **more)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def used(server: Served, quantity: int, ref: str = "cus_anna", metric: str = "calls") -> None:
    """Usage that is at Stripe."""
    event = TENANT | {"metric": metric, "customerRef": ref, "quantity": quantity}
    await server.ingest(event | {"idempotencyKey": f"{ref}-{metric}-{quantity}"})
    await ask(server, "POST", "/v1/pushes/flush", json=TENANT)


async def mapped(server: Served, metric: str = "calls", **fields: Any) -> None:
    body = TENANT | {"metric": metric, "meterEventName": metric} | fields
    await ask(server, "POST", "/v1/mappings", 201, json=body)


async def run(server: Served) -> dict[str, Any]:
    """A run that has ended."""
    job = await ask(server, "POST", "/v1/reconciliation/run", 202, json=TENANT)
    with trio.fail_after(60):
        while job["status"] not in ("completed", "failed"):
            await trio.sleep(0.05)
            job = await ask(server, "GET", f"/v1/reconciliation/jobs/{job['jobId']}", params=TENANT)
    assert job["status"] == "completed", job
    return dict(job)


def foreign(server: Served, value: int, customer: str = "cus_anna") -> None:
    """Usage that another system sends to the same meter."""
    assert server.stripe is not None
    fields = {
        "event_name": "calls",
        "identifier": f"foreign{value}",
        "payload[stripe_customer_id]": customer,
        "payload[value]": str(value),
        "timestamp": str(server.clock.us // 1_000_000),
    }

    headers = {
        "authorization": "Bearer sk_test_other_system",
        "content-type": "application/x-www-form-urlencoded",
    }
    body = urlencode(fields).encode()
    answer = server.stripe.handle(Request("POST", "/v1/billing/meter_events", "", headers, body))
    assert answer.status == 200, answer.body


async def test_what_agrees_is_ok_and_green(server: Served) -> None:
    await mapped(server)
    await used(server, 30)
    await used(server, 12, "cus_bert")
    job = await run(server)
    assert (job["total"], job["done"], job["unread"]) == (2, 2, 0)
    report = await ask(server, "GET", MONTH, params=TENANT)
    rows = {row["customerRef"]: row for row in report["reports"]}
    anna = rows["cus_anna"]
    assert (anna["localTotal"], anna["pushedTotal"], anna["stripeTotal"]) == (30, 30, 30)
    assert (anna["diff"], anna["driftPct"], anna["status"], anna["verdict"]) == (
        0,
        0,
        "ok",
        "agrees",
    )
    assert anna["periodStart"] == "2026-01-01"
    assert anna["causes"] == []
    assert report["summary"]["green"] is True
    assert (report["summary"]["total"], report["summary"]["ok"]) == (2, 2)
    assert report["suggestedAdjustments"] == []
    assert report["lastRunAt"] >= job["endedAt"]
    other = await ask(server, "GET", MONTH, params={"tenantId": "other"})
    assert other["reports"] == []
    empty = await ask(server, "GET", "/v1/reconciliation/2025-12", params=TENANT)
    assert (empty["reports"], empty["summary"]["green"]) == ([], True)


async def test_the_last_run_of_a_tenant_is_its_own_or_one_over_all(server: Served) -> None:
    await mapped(server)
    await used(server, 30)
    with trio.fail_after(60):
        while (whole := (await ask(server, "GET", MONTH))["lastRunAt"]) is None:
            await trio.sleep(0.05)
    assert (await ask(server, "GET", MONTH, params=TENANT))["lastRunAt"] == whole
    job = await run(server)
    report = await ask(server, "GET", MONTH, params=TENANT)
    assert report["lastRunAt"] == job["endedAt"] > whole
    for others in ({"tenantId": "other"}, {}):
        assert (await ask(server, "GET", MONTH, params=others))["lastRunAt"] == whole


async def test_what_stripe_does_not_tell_any_more_is_unread_and_not_green(server: Served) -> None:
    await mapped(server)
    await used(server, 30)
    await run(server)
    assert server.stripe is not None
    server.stripe.add_fault("outage", "GET /v1/billing/*", for_seconds=3600)
    job = await run(server)
    assert (job["total"], job["unread"]) == (1, 1)
    report = await ask(server, "GET", MONTH, params=TENANT)
    (row,) = report["reports"]
    assert (row["stripeTotal"], row["verdict"]) == (30, "unread"), "the last that was read"
    assert (report["summary"]["unread"], report["summary"]["green"]) == (1, False)
    answer = await server.client.get(MONTH, params=TENANT | {"format": "csv"})
    (line, total) = csv.DictReader(io.StringIO(answer.text))
    assert (line["status"], line["verdict"], line["lookedAt"]) == ("ok", "unread", row["lookedAt"])
    assert (total["id"], total["verdict"]) == ("TOTAL", "")
    months = TENANT | {"periodStart": "2026-01", "periodEnd": "2026-01"}
    summary = await ask(server, "GET", "/v1/reconciliation/summary", params=months)
    assert (summary["perMetric"][0]["unread"], summary["overall"]["unread"]) == (1, 1)
    path = "/v1/reconciliation/summary"
    answer = await server.client.get(path, params=months | {"format": "csv"})
    sums = list(csv.DictReader(io.StringIO(answer.text)))
    assert [one["unread"] for one in sums] == ["1", "1"]
    await server.gateway.metrics.recon.refresh()
    assert b"\nreconciliation_unread 1" in server.gateway.metrics.exposition()
    server.stripe.clear_faults()
    await run(server)
    server.clock.us += KEPT_US
    await server.gateway.metrics.recon.refresh()
    assert b"\nreconciliation_unread 0" in server.gateway.metrics.exposition()


async def test_usage_whose_place_at_stripe_is_not_known_yet_is_unread_in_its_own_month(
    server: Served,
) -> None:
    await mapped(server)
    await used(server, 30)
    await run(server)
    assert server.stripe is not None
    server.stripe.add_fault("outage", "GET /v1/*", for_seconds=3600)
    body = TENANT | {"metric": "seats", "meterEventName": "seats"}
    await ask(server, "POST", "/v1/mappings", 201, json=body)
    event = TENANT | {"metric": "seats", "customerRef": "cus_bert", "quantity": 7}
    await server.ingest(event | {"idempotencyKey": "bert"})
    report = await ask(server, "GET", MONTH, params=TENANT)
    assert [row["customerRef"] for row in report["reports"]] == ["cus_anna"]
    assert (report["summary"]["unread"], report["summary"]["green"]) == (1, False)
    months = TENANT | {"periodStart": "2025-12", "periodEnd": "2026-01"}
    for more, unread in (({}, 1), ({"metric": "calls"}, 0), ({"customerRef": "cus_bert"}, 1)):
        sums = await ask(server, "GET", "/v1/reconciliation/summary", params=months | more)
        assert sums["overall"]["unread"] == unread, more
    before = await ask(server, "GET", "/v1/reconciliation/2025-12", params=TENANT)
    assert (before["summary"]["unread"], before["summary"]["green"]) == (0, True)
    other = await ask(server, "GET", MONTH, params={"tenantId": "other"})
    assert other["summary"]["unread"] == 0


async def suggesting(server: Served) -> Any:
    """The month's report as soon as it suggests something: at the second look that is late enough."""
    for _ in range(10):
        await run(server)
        report = await ask(server, "GET", MONTH, params=TENANT)
        if report["suggestedAdjustments"]:
            break
    return report


async def test_a_difference_is_told_with_its_cause_and_repaired_when_it_is_applied(
    server: Served,
) -> None:
    await mapped(server)
    await used(server, 30)
    await run(server)
    foreign(server, 5)
    report = await suggesting(server)
    (row,) = report["reports"]
    assert (row["stripeTotal"], row["diff"], row["status"]) == (35, -5, "investigate")
    assert row["driftPct"] == pytest.approx(5 / 35, abs=1e-6)
    (cause,) = row["causes"]
    assert (cause["cause"], cause["gap"], cause["units"]) == ("foreign", "stripe", "-5")
    assert (report["summary"]["investigating"], report["summary"]["green"]) == (1, False)
    (suggested,) = report["suggestedAdjustments"]
    assert (suggested["action"], suggested["alternatives"]) == ("take_back", ["accept"])

    await run(server)
    again = await ask(server, "GET", MONTH, params=TENANT)
    assert [one["id"] for one in again["suggestedAdjustments"]] == [suggested["id"]]

    body = TENANT | {"adjustmentIds": [suggested["id"], "0" * 16], "reason": "a stray script"}
    answer = await ask(server, "POST", "/v1/reconciliation/adjustments", json=body)
    assert (answer["applied"], answer["failed"]) == (1, 1)
    assert "no suggestion" in answer["results"][1]["error"]
    answer = await ask(server, "POST", "/v1/reconciliation/adjustments", json=body)
    assert (answer["applied"], answer["failed"]) == (0, 2), "a repair is made once"

    await ask(server, "POST", "/v1/pushes/flush", json=TENANT)
    await run(server)
    report = await ask(server, "GET", MONTH, params=TENANT)
    (row,) = report["reports"]
    assert (row["localTotal"], row["pushedTotal"], row["stripeTotal"]) == (30, 30, 30)
    assert (row["status"], report["suggestedAdjustments"]) == ("resolved", [])
    trail = await ask(server, "GET", "/v1/audit", params=TENANT)
    assert "finding.apply" in [one["action"] for one in trail["entries"]]


async def test_what_is_accepted_is_expected_from_then_on(server: Served) -> None:
    await mapped(server)
    await used(server, 30)
    await run(server)
    foreign(server, 5)
    report = await suggesting(server)
    (suggested,) = report["suggestedAdjustments"]
    body = TENANT | {"adjustmentIds": [suggested["id"]], "reason": "ours", "action": "accept"}
    assert (await ask(server, "POST", "/v1/reconciliation/adjustments", json=body))["applied"] == 1
    await run(server)
    report = await ask(server, "GET", MONTH, params=TENANT)
    (row,) = report["reports"]
    assert (row["stripeTotal"], row["baselineOffset"], row["diff"]) == (35, 5, 0)
    assert (row["causes"], report["summary"]["green"]) == ([], True)


async def test_sums_and_csv_end_with_a_total_and_no_cell_runs(server: Served) -> None:
    await mapped(server)
    await ask(
        server, "PUT", "/v1/customers/=cmd()", 201, json=TENANT | {"stripeCustomerId": "cus_evil"}
    )
    await used(server, 30)
    await used(server, 12, "=cmd()")
    await run(server)
    params = TENANT | {"periodStart": "2026-01", "periodEnd": "2026-02"}
    summary = await ask(server, "GET", "/v1/reconciliation/summary", params=params)
    (calls,) = summary["perMetric"]
    assert (calls["metric"], calls["local"], calls["stripe"], calls["items"]) == (
        "calls",
        42,
        42,
        2,
    )
    assert (calls["drift_abs"], calls["drift_pct"]) == (0, 0)
    assert summary["overall"]["local"] == 42
    only = params | {"customerRef": "cus_anna"}
    assert (await ask(server, "GET", "/v1/reconciliation/summary", params=only))["overall"][
        "items"
    ] == 1
    for path, more in (("/v1/reconciliation/summary", params), (MONTH, TENANT)):
        response = await server.client.get(path, params=more | {"format": "csv"})
        assert response.headers["content-type"].startswith("text/csv")
        rows = list(csv.reader(io.StringIO(response.text)))
        assert rows[-1][0] == "TOTAL"
        assert "42" in rows[-1]
        assert len({len(row) for row in rows}) == 1
        assert not any(cell.startswith(("=", "@", "+")) for row in rows for cell in row)
    wrong = params | {"periodEnd": "2025-12"}
    await ask(server, "GET", "/v1/reconciliation/summary", 400, params=wrong)
    await ask(server, "GET", "/v1/reconciliation/2026-13", 400, params=TENANT)


async def test_usage_that_goes_nowhere_is_a_row_of_its_own(server: Served) -> None:
    await mapped(server)
    await used(server, 7, "nobody")
    await run(server)
    report = await ask(server, "GET", MONTH, params=TENANT)
    (row,) = report["reports"]
    assert (row["customerRef"], row["localTotal"], row["stripeTotal"]) == ("nobody", 7, 0)
    assert (row["driftPct"], row["status"]) == (1, "investigate")
    assert row["causes"][0]["cause"] == "mapping_missing"
    assert (row["periodEnd"], row["verdict"]) == (None, "differs"), "nothing is there to be read"


async def test_use_that_goes_nowhere_is_no_green_month_however_many_it_concerns(
    server: Served,
) -> None:
    customers = 5
    await mapped(server)
    await used(server, 3)
    await run(server)
    assert (await ask(server, "GET", MONTH, params=TENANT))["summary"]["green"]
    for number in range(customers):
        await used(server, 7, f"nobody-{number}")
    await used(server, 4, metric="never_mapped")
    summary = (await ask(server, "GET", MONTH, params=TENANT))["summary"]
    assert (summary["green"], summary["unread"]) == (False, customers), "nobody has looked yet"
    await run(server)
    await used(server, 2, "nobody-0")
    report = await ask(server, "GET", MONTH, params=TENANT)
    summary = report["summary"]
    assert (summary["green"], summary["unread"], summary["investigating"]) == (False, 0, 2)
    calls, never, fine = report["reports"]
    assert calls["localTotal"] == 7 * customers + 2, "as it is now, not as it was found"
    assert len(calls["customerRefs"]) == customers
    assert (never["metric"], never["localTotal"], never["status"]) == (
        "never_mapped",
        4,
        "investigate",
    )
    assert fine["status"] == "ok"
    await server.gateway.metrics.recon.refresh()
    text = server.gateway.metrics.exposition().decode()
    assert f'reconciliation_diff_abs{{metric="calls",period="2026-01"}} {7 * customers + 2}' in text
    assert 'metric="never_mapped"' not in text, "nobody said that it is billed"
    before = await ask(server, "GET", "/v1/reconciliation/2025-12", params=TENANT)
    assert before["reports"] == [], "it is of its own month"
    ids = [one["id"] for one in report["suggestedAdjustments"]]
    body = TENANT | {"adjustmentIds": ids, "reason": "not billed on purpose", "action": "accept"}
    assert (await ask(server, "POST", "/v1/reconciliation/adjustments", json=body))["applied"] == 2


async def test_a_tenant_is_told_of_its_own_totals_that_lag_and_of_nobody_elses() -> None:
    async with ticking(auth="required") as server:
        keys = {
            tenant: await server.key(tenant, "project:write", "reconciliation:*")
            for tenant in ("acme", "other", "third")
        }
        assert server.stripe is not None
        for tenant, customers in (("acme", 4), ("other", 2), ("third", 1)):
            headers = bearer(keys[tenant])
            body = {"metric": "calls", "meterEventName": "calls"}
            await ask(server, "POST", "/v1/mappings", 201, json=body, headers=headers)
            if tenant == "acme":
                server.stripe.add_fault("lag", "POST /v1/billing/meter_events", seconds=90_000.0)
            elif tenant == "third":
                server.stripe.clear_faults()
            for number in range(customers):
                event = {"metric": "calls", "customerRef": f"cus_{tenant}{number}", "quantity": 5}
                event |= {"idempotencyKey": "1"}
                await server.ingest(event, headers=headers)
            await ask(server, "POST", "/v1/pushes/flush", json={}, headers=headers)
        for _ in range(2):
            await trio.sleep(0.2)
            await server.gateway.meter.started.reconciler.start(None).ended.wait()
        found = {}
        for tenant, key in (keys | {"": ADMIN_KEY}).items():
            report = await ask(server, "GET", MONTH, headers=bearer(key))
            found[tenant] = [(one["cause"], one["targets"]) for one in report["notices"]]
        assert found == {
            "acme": [("behind", 4)],
            "other": [("behind", 2)],
            "third": [],
            "": [("behind", 6)],
        }


async def test_a_run_of_another_tenant_does_not_exist() -> None:
    async with served(stripe={}, auth="required") as server:
        key = await server.key("acme", "reconciliation:*")
        other = await server.key("other", "reconciliation:read")
        headers = bearer(key)
        job = await ask(server, "POST", "/v1/reconciliation/run", 202, json={}, headers=headers)
        path = f"/v1/reconciliation/jobs/{job['jobId']}"
        await ask(server, "GET", path, 200, headers=headers)
        await ask(server, "GET", path, 200, headers=bearer(ADMIN_KEY))
        hidden = await ask(server, "GET", path, 404, headers=bearer(other))
        assert "acme" not in hidden["detail"]
        await ask(server, "POST", "/v1/reconciliation/run", 403, json={}, headers=bearer(other))


async def test_without_a_way_to_stripe_there_is_nothing_to_compare_with() -> None:
    async with served() as server:
        await ask(server, "POST", "/v1/reconciliation/run", 409, json=TENANT)
        report = await ask(server, "GET", MONTH, params=TENANT)
        assert report["reports"] == []
        said = server.gateway.metrics.exposition()
        assert b"\nrecon_last_run_timestamp_seconds " not in said, "no alert waits for a run"
