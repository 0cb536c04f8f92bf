"""The audit trail as a client sees it: every change, who made it, what was before, and nobody else's."""

from __future__ import annotations

from typing import Any

from engine.core import audit
from engine.core.audit import AuditQuery, AuditTrail
from engine.core.configured import Change
from engine.core.records import AdjustmentChange, SettingsChange
from tests.helpers.served import ADMIN_KEY, Served, bearer, served

TENANT = {"tenantId": "acme"}
OF = TENANT | {"metric": "calls", "customerRef": "c"}


async def ask(server: Served, method: str, path: str, status: int = 200, **more: Any) -> Any:
    response = await server.client.request(method, path, **more)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def trail(server: Served, **params: str) -> list[dict[str, Any]]:
    found = await ask(server, "GET", "/v1/audit", params=params)
    return list(found["entries"])


async def test_a_mappings_life_is_in_the_trail_with_before_and_after() -> None:
    async with served() as server:
        body = TENANT | {"metric": "calls", "latenessHours": 1.5}
        headers = {"x-request-id": "ticket-4711"}
        made = await ask(server, "POST", "/v1/mappings", 201, json=body, headers=headers)
        path = f"/v1/mappings/{made['id']}"
        await ask(server, "PUT", path, json={"unit": "calls"})
        await ask(server, "DELETE", path, 204)
        deleted, updated, created = await trail(server, target=made["id"])
        assert created["action"] == "mapping.created"
        assert (created["before"], created["requestId"]) == (None, "ticket-4711")
        assert created["after"]["latenessHours"] == 1.5
        assert updated["action"] == "mapping.updated"
        assert updated["before"] == created["after"]
        assert updated["after"]["unit"] == "calls"
        assert deleted["action"] == "mapping.deleted"
        assert (deleted["before"], deleted["after"]) == (updated["after"], None)
        assert {one["target"] for one in (created, updated, deleted)} == {f"mapping:{made['id']}"}
        assert int(created["id"]) < int(updated["id"]) < int(deleted["id"])


async def test_each_step_of_an_adjustment_is_in_the_trail() -> None:
    async with served() as server:
        body = OF | {"periodStart": "2026-01-01", "reason": "credit", "delta": "-2.5"}
        made = await ask(server, "POST", "/v1/adjustments", 201, json=body)
        for action in ("approve", "approve", "revert", "revert"):
            await ask(server, "POST", f"/v1/adjustments/{made['id']}/{action}")
        reverted, approved, created = await trail(server, target=made["id"])
        assert created["action"] == "adjustment.create"
        assert created["after"]["delta"] == -2.5
        assert created["after"]["periodStart"] == "2026-01-01T00:00:00.000Z"
        assert (approved["before"], approved["after"]) == (
            {"status": "pending"},
            {"status": "approved"},
        )
        assert (reverted["before"], reverted["after"]) == (
            {"status": "approved"},
            {"status": "reverted"},
        )


async def test_a_decision_on_many_is_found_by_each_of_them() -> None:
    async with served() as server:
        for n in range(3):
            one = OF | {"customerRef": f"c{n}", "quantity": 1}
            body = [
                one | {"idempotencyKey": "now"},
                one | {"idempotencyKey": "old", "ts": "2026-01-20T10:00:00Z"},
            ]
            await server.ingest(*body)
        done = await ask(server, "POST", "/v1/adjustments/approve", json=TENANT)
        assert done["changed"] == 3
        for adjustment_id in done["adjustmentIds"]:
            (entry,) = await trail(server, target=adjustment_id)
            assert entry["target"] == f"adjustment:{adjustment_id}"
            assert entry["target"] in entry["targets"]
        applied = await ask(server, "POST", "/v1/replay", json=TENANT | {"mode": "apply"})
        assert await trail(server, target=f"replay:{applied['planHash']}") == []


async def test_a_replay_that_was_applied_is_in_the_trail() -> None:
    async with served() as server:
        one = OF | {"quantity": 1}
        await server.ingest(one | {"idempotencyKey": "now"})
        await server.ingest(one | {"idempotencyKey": "old", "ts": "2026-01-20T10:00:00Z"})
        applied = await ask(server, "POST", "/v1/replay", json=TENANT | {"mode": "apply"})
        (entry,) = await trail(server, target=f"replay:{applied['planHash']}")
        assert entry["after"] == {"planHash": applied["planHash"], "counters": 1, "events": 1}


async def test_keys_are_in_the_trail_without_their_hashes() -> None:
    async with served(auth="required") as server:
        text = await server.key("acme", "adjustments:write")
        found = await ask(server, "GET", "/v1/audit", headers=bearer(ADMIN_KEY))
        entry = found["entries"][0]
        assert entry["action"].startswith("api-key.")
        assert entry["after"]["scopes"] == ["adjustments:write"]
        assert "hash" not in entry["after"]
        assert text.rpartition("_")[2] not in str(found)
        await ask(server, "GET", "/v1/audit", 403, headers=bearer(text))


async def test_a_tenant_sees_its_own_trail_alone() -> None:
    async with served(auth="required") as server:
        acme = bearer(await server.key("acme", "admin", "mappings:write"))
        umbra = bearer(await server.key("umbra", "admin", "mappings:write"))
        made = {}
        for name, key in (("acme", acme), ("umbra", umbra)):
            made[name] = await ask(
                server, "POST", "/v1/mappings", 201, json={"metric": "calls"}, headers=key
            )
        found = await ask(server, "GET", "/v1/audit", headers=umbra)
        assert {one["tenantId"] for one in found["entries"]} == {"umbra"}
        assert found["total"] == 2
        target = {"target": made["acme"]["id"]}
        found = await ask(server, "GET", "/v1/audit", headers=umbra, params=target)
        assert found["entries"] == []
        await ask(server, "GET", "/v1/audit", 403, headers=umbra, params=TENANT)
        everything = await ask(server, "GET", "/v1/audit", headers=bearer(ADMIN_KEY))
        assert {"acme", "umbra", None} == {one["tenantId"] for one in everything["entries"]}


async def test_the_trail_filters_by_time_and_actor_and_its_cursor_is_stable() -> None:
    async with served() as server:
        for n in range(7):
            await ask(server, "PUT", f"/v1/customers/c{n}", 201, json=TENANT)
        page = await ask(server, "GET", "/v1/audit", params=TENANT | {"limit": "3"})
        assert page["total"] == 7
        await ask(server, "PUT", "/v1/customers/later", 201, json=TENANT)
        seen = [one["target"] for one in page["entries"]]
        while page["nextCursor"]:
            params = TENANT | {"limit": "3", "cursor": page["nextCursor"]}
            page = await ask(server, "GET", "/v1/audit", params=params)
            seen += [one["target"] for one in page["entries"]]
        assert seen == [f"customer:c{n}" for n in range(6, -1, -1)]
        starts = await trail(server, actor="system:start")
        assert {one["action"] for one in starts} == {"log.created", "settings.changed"}
        assert await trail(server, endTime="2026-01-31T09:59:59Z") == []
        assert len(await trail(server, startTime="-PT1H", tenantId="acme")) == 8
        for wrong in ({"cursor": "x"}, {"startTime": "now"}, {"offset": "1"}, {"limit": "101"}):
            await ask(server, "GET", "/v1/audit", 400, params=wrong)


def test_a_full_trail_gives_up_its_oldest_and_keeps_finding_the_others(
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr(audit, "ENTRIES_MAX", 10)
    monkeypatch.setattr(audit, "TARGETS_MAX", 1000)
    kept = AuditTrail()
    for number in range(40):
        ids = tuple(f"adj_{number}_{n}" for n in range(number % 4))
        record = AdjustmentChange(
            action="approve", partition=0, change=Change(actor="a"), tenant_id="t", ids=ids
        )
        kept.fold(record, 100 + number, number)
        assert len(kept) <= 10
        kept = AuditTrail.restore(kept.state())
    kept.fold(SettingsChange(lateness_us=0, late_policy="auto", actor="b"), 200, 0)
    for number in (37, 38, 39):
        for n in range(number % 4):
            asked = AuditQuery("t", f"adjustment:adj_{number}_{n}", None, None, None, None)
            assert kept.positions(asked, 5) == ([100 + number], 1)
    lost = AuditQuery("t", "adjustment:adj_3_1", None, None, None, None)
    assert kept.positions(lost, 5) == ([], 0)
    settings = AuditQuery(None, "settings", "b", 0, 1, None)
    assert kept.positions(settings, 5) == ([200], 1)
