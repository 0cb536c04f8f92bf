"""Scenarios, runs and batches as a client sees them, across restarts and erasures; and the fold behind them."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from engine.core import simulations as bounds
from engine.core.configured import Change
from engine.core.records import RecordType, decode_control, encode_control
from engine.core.registry import Registry
from engine.core.simulation_records import BatchRow, Simulation
from engine.core.simulations import Simulations
from tests.helpers.priced import TIERED, ask
from tests.helpers.served import Served, served
from wal.log import scan
from wal.memory_log import MemoryLog

AT = "/v1/simulations"
INPUTS: dict[str, Any] = {
    "customerId": "anna",
    "periodStart": "2026-01-01",
    "periodEnd": "2026-02-01",
    "usageItems": [{"metric": "calls", "quantity": 25_000, "priceConfig": TIERED}],
}
SCENARIO: dict[str, Any] = {"tenantId": "acme", "name": "plan", "inputs": INPUTS}
OF = {"tenantId": "acme"}


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with served() as running:
        yield running


async def kept(server: Served, **fields: Any) -> dict[str, Any]:
    return dict(await ask(server, "POST", f"{AT}/scenarios", 201, json=SCENARIO | fields))


async def test_a_scenario_lives_from_creation_to_deletion(server: Served) -> None:
    made = await kept(server, expected={"total": 220}, description="the worked case")
    one = f"{AT}/scenarios/{made['id']}"
    assert made["inputs"]["usageItems"][0]["quantity"] == 25_000
    assert (made["name"], made["model"], made["createdAt"]) == ("plan", None, made["updatedAt"])
    assert await ask(server, "GET", one, params=OF) == made
    changed = await ask(server, "PUT", one, json=OF | {"name": "other", "description": None})
    assert (changed["name"], changed["description"], changed["expected"]) == (
        "other",
        None,
        {"total": 220},
    )
    assert (changed["createdAt"], changed["id"]) == (made["createdAt"], made["id"])
    assert changed["updatedAt"] > made["updatedAt"] or changed["updatedAt"] == made["updatedAt"]
    listed = await ask(server, "GET", f"{AT}/scenarios", params=OF)
    assert (listed["scenarios"], listed["total"]) == ([changed], 1)
    await ask(server, "DELETE", one, 204, params=OF)
    for method in ("GET", "PUT", "DELETE"):
        body = {"json": {}} if method == "PUT" else {}
        await ask(server, method, one, 404, params=OF, **body)
    trail = await ask(server, "GET", "/v1/audit", params=OF)
    actions = [entry["action"] for entry in trail["entries"] if "scenario" in entry["action"]]
    assert actions == ["scenario.deleted", "scenario.updated", "scenario.created"]


async def test_a_run_has_its_invoice_and_what_differs(server: Served) -> None:
    made = await kept(server, expected={"total": 219, "currency": "usd"})
    run = await ask(server, "POST", f"{AT}/runs", 201, json=OF | {"scenarioId": made["id"]})
    assert run["id"] == run["runId"]
    assert (run["status"], run["passed"], run["scenarioId"]) == ("completed", False, made["id"])
    assert (run["result"]["total"], run["result"]["lineItems"][0]["subtotal"]) == (220, 220)
    assert run["comparison"] == {
        "passed": False,
        "compared": 2,
        "differences": [{"field": "total", "expected": 219, "actual": 220, "difference": 1}],
    }
    await ask(server, "DELETE", f"{AT}/scenarios/{made['id']}", 204, params=OF)
    again = await ask(server, "GET", f"{AT}/runs/{run['id']}", params=OF)
    assert again == run, "a run says the same whatever becomes of its scenario"


async def test_a_sent_scenario_is_run_without_being_kept(server: Served) -> None:
    scenario = {"inputs": INPUTS, "expected": {"total": "220.00"}}
    run = await ask(
        server, "POST", f"{AT}/runs", 201, json=OF | {"scenario": scenario, "name": "n"}
    )
    assert (run["passed"], run["name"], run["scenarioId"]) == (True, "n", None)
    assert (await ask(server, "GET", f"{AT}/scenarios", params=OF))["total"] == 0
    listed = await ask(server, "GET", f"{AT}/runs", params=OF)
    assert [(one["id"], one["total"], one["currency"]) for one in listed["runs"]] == [
        (run["id"], 220, "USD")
    ]


async def test_numbers_keep_the_digits_they_came_with(server: Served) -> None:
    text = (
        '{"tenantId": "acme", "scenario": {"inputs": {"customerId": "c", "periodStart": "2026-01-01",'
        '"periodEnd": "2026-02-01", "usageItems": [{"metric": "m", "quantity": 999999999999999.999999,'
        '"priceConfig": {"model": "flat", "currency": "KWD", "unitPrice": 0.001}}]}}}'
    )
    headers = {"content-type": "application/json"}
    response = await server.client.post(f"{AT}/runs", content=text, headers=headers)
    assert response.status_code == 201
    assert '"quantity":999999999999999.999999' in response.text
    assert '"total":1000000000000.000' in response.text
    params = {"numbers": "string"}
    texts = await server.client.post(f"{AT}/runs", content=text, headers=headers, params=params)
    assert texts.json()["result"]["total"] == "1000000000000.000"
    listed = await ask(server, "GET", f"{AT}/runs", params=OF | params)
    assert listed["runs"][0]["total"] == "1000000000000.000"


async def test_a_batch_runs_all_or_nothing(server: Served) -> None:
    good = await kept(server, expected={"total": 220})
    sent = {"inputs": INPUTS, "expected": {"total": 1}}
    body = OF | {"scenarioIds": [good["id"]], "scenarios": [sent], "name": "nightly"}
    batch = await ask(server, "POST", f"{AT}/batch", 201, json=body)
    assert (batch["summary"], batch["passed"]) == ({"total": 2, "passed": 1, "failed": 1}, False)
    assert [(one["scenarioId"], one["passed"], one["total"]) for one in batch["runs"]] == [
        (good["id"], True, 220),
        (None, False, 220),
    ]
    assert await ask(server, "GET", f"{AT}/batch/{batch['id']}", params=OF) == batch
    of_batch = await ask(server, "GET", f"{AT}/runs", params=OF | {"batchId": batch["id"]})
    assert {one["id"] for one in of_batch["runs"]} == {one["runId"] for one in batch["runs"]}
    failed = await ask(server, "GET", f"{AT}/runs", params=OF | {"passed": "false"})
    assert failed["total"] == 1
    bad = OF | {"scenarios": [sent, {"inputs": INPUTS | {"taxRate": -1}}]}
    problem = await ask(server, "POST", f"{AT}/batch", 400, json=bad)
    assert problem["errors"][0]["field"] == "scenarios[1].inputs.taxRate"
    await ask(server, "POST", f"{AT}/batch", 404, json=OF | {"scenarioIds": [good["id"], "none"]})
    await ask(server, "POST", f"{AT}/batch", 400, json=OF)
    assert (await ask(server, "GET", f"{AT}/runs", params=OF))["total"] == 2, "nothing was kept"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (
            "scenarios",
            {"inputs": INPUTS | {"usageItems": [{"metric": "m"}]}},
            "inputs.usageItems[0].quantity",
        ),
        ("scenarios", {"name": "n"}, "inputs"),
        ("scenarios", {"inputs": INPUTS, "expected": {"totl": 1}}, "expected.totl"),
        ("scenarios", {"inputs": INPUTS, "surprise": 1}, "surprise"),
        ("scenarios", {"inputs": []}, "inputs"),
        ("scenarios", {"inputs": INPUTS, "model": {"model": "flat"}}, "model.currency"),
        ("runs", {}, "scenarioId"),
        ("runs", {"scenarioId": "x", "scenario": {"inputs": INPUTS}}, "scenarioId"),
        (
            "runs",
            {"scenario": {"inputs": INPUTS | {"periodEnd": "2025-01-01"}}},
            "scenario.inputs.periodEnd",
        ),
        ("runs", {"scenario": {"name": "x" * 70_000, "inputs": INPUTS}}, "scenario"),
        ("runs", {"scenario": [1]}, "scenario"),
    ],
)
async def test_what_is_wrong_in_a_scenario_is_named(
    server: Served, path: str, body: dict[str, Any], field: str
) -> None:
    problem = await ask(server, "POST", f"{AT}/{path}", 400, json=OF | body)
    assert field in [error["field"] for error in problem["errors"]]


@pytest.mark.parametrize("raw", [b'"\xff"', b'"\\ud800"', b"1e99999", b'{"a":1,}'])
async def test_bytes_that_are_no_document_are_a_400(server: Served, raw: bytes) -> None:
    body = b'{"tenantId": "acme", "inputs": ' + raw + b"}"
    headers = {"content-type": "application/json"}
    response = await server.client.post(f"{AT}/scenarios", content=body, headers=headers)
    assert response.status_code == 400, response.text


async def test_lists_are_read_page_by_page_each_once(server: Served) -> None:
    made = [(await kept(server, name=f"n{number}"))["id"] for number in range(5)]
    runs = [
        (await ask(server, "POST", f"{AT}/runs", 201, json=OF | {"scenarioId": one}))["id"]
        for one in made
    ]
    for path, name, wanted in (("scenarios", "scenarios", made), ("runs", "runs", runs[::-1])):
        found: list[str] = []
        params: dict[str, Any] = OF | {"limit": 2}
        while True:
            page = await ask(server, "GET", f"{AT}/{path}", params=params)
            assert page["total"] == 5
            found += [one["id"] for one in page[name]]
            if page["nextCursor"] is None:
                break
            params["cursor"] = page["nextCursor"]
        assert found == wanted
        await ask(server, "GET", f"{AT}/{path}", 400, params=OF | {"cursor": "x"})


async def test_a_tenant_keeps_no_more_than_its_bounds(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.actors.simulations.SCENARIOS_MAX", 2)
    for _ in range(2):
        made = await kept(server)
    await ask(server, "POST", f"{AT}/scenarios", 409, json=SCENARIO)
    await ask(server, "POST", f"{AT}/scenarios", 201, json=SCENARIO | {"tenantId": "beta"})
    one = f"{AT}/scenarios/{made['id']}"
    changed = await ask(server, "PUT", one, json=OF | {"name": "still possible"})
    assert changed["name"] == "still possible"
    monkeypatch.setattr("engine.actors.simulations.SCENARIOS_CHARS_MAX", 900)
    await ask(server, "PUT", one, 409, json=OF | {"description": "x" * 900})


async def test_another_tenants_scenario_cannot_be_run(server: Served) -> None:
    made = await kept(server)
    other = {"tenantId": "umbra", "scenarioId": made["id"]}
    await ask(server, "POST", f"{AT}/runs", 404, json=other)
    batch = {"tenantId": "umbra", "scenarioIds": [made["id"]]}
    await ask(server, "POST", f"{AT}/batch", 404, json=batch)
    for tenant in ("umbra", "acme"):
        listed = await ask(server, "GET", f"{AT}/runs", params={"tenantId": tenant})
        assert listed["total"] == 0


async def test_everything_comes_back_from_the_log_alone(server: Served) -> None:
    made = await kept(server)
    await ask(server, "POST", f"{AT}/runs", 201, json=OF | {"scenarioId": made["id"]})
    await ask(server, "POST", f"{AT}/batch", 201, json=OF | {"scenarioIds": [made["id"]]})
    folded = Registry()
    for record in scan(MemoryLog(server.disk), 0):
        if record.envelope.record_type != RecordType.EVENTS:
            folded.fold(decode_control(record.envelope.record_type, record.parts[0].data))
    live = server.gateway.meter.registry
    assert folded.simulations.state() == live.simulations.state() != []
    assert Registry.restore(live.state()).simulations.state() == live.simulations.state()


async def test_an_erased_customers_scenarios_and_runs_are_gone_for_good(server: Served) -> None:
    about_bert = INPUTS | {"customerId": "bert"}
    anna, bert = await kept(server), await kept(server, inputs=about_bert)
    for one in (anna, bert):
        await ask(server, "POST", f"{AT}/runs", 201, json=OF | {"scenarioId": one["id"]})
    begun = await ask(server, "DELETE", "/v1/customers/anna", 202, params=OF)
    with trio.fail_after(60):
        path = f"/v1/admin/erasures/{begun['erasureId']}"
        while (await ask(server, "GET", path))["status"] != "completed":
            await trio.sleep(0.001)
    for path, name in (("scenarios", "scenarios"), ("runs", "runs")):
        listed = await ask(server, "GET", f"{AT}/{path}", params=OF)
        assert [one["name"] for one in listed[name]] == ["plan"]
        assert "anna" not in json.dumps(listed)
    await ask(server, "GET", f"{AT}/scenarios/{anna['id']}", 404, params=OF)
    held = b"".join(server.disk.durable.values())
    assert b'"customerId":"anna"' not in held
    assert b'"customerId": "anna"' not in held
    assert b"bert" in held
    folded = Simulations()
    for record in scan(MemoryLog(server.disk), 0):
        if record.envelope.record_type == RecordType.SIMULATION:
            one = decode_control(RecordType.SIMULATION, record.parts[0].data)
            assert isinstance(one, Simulation)
            folded.fold(one)
    assert folded.state() == server.gateway.meter.registry.simulations.state()


def made_up(rng: random.Random, tenant: str, number: int) -> Simulation:
    """A record of any kind."""
    action = rng.choice(["set", "set", "delete", "run", "run", "run", "batch"])
    document = "x" * rng.randint(1, 40)
    return Simulation(
        action=action,  # type: ignore[arg-type]
        id=f"{action[:3].replace('del', 'set')}_{rng.randint(0, 8) if action in ('set', 'delete') else number}",
        tenant_id=tenant,
        change=Change(actor="test"),
        customer_ref=rng.choice(["anna", "bert"]) if action in ("set", "run") else "",
        document=document if action in ("set", "run") else "",
        chars=len(document) if action == "run" else 0,
        rows=(BatchRow("r", "", passed=True, total="1", currency="USD"),) * (action == "batch"),
        created_at_us=number,
        at_us=number,
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_fold_is_bounded_and_the_same_from_records_snapshots_and_erased_copies(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    monkeypatch.setattr(bounds, "RUNS_MAX", 10)
    monkeypatch.setattr(bounds, "RUNS_CHARS_MAX", 150)
    monkeypatch.setattr(bounds, "BATCHES_MAX", 4)
    records = [made_up(rng, rng.choice(["acme", "beta"]), number) for number in range(120)]
    live = Registry()
    for number, record in enumerate(records):
        live.fold(record)
        if number == 60:
            live = Registry.restore(live.state())
    for tenant in ("acme", "beta"):
        own = live.simulations.of(tenant)
        assert len(own.runs) <= 10
        assert own.runs_chars == sum(one.chars for one in own.runs.values()) <= 150
        assert len(own.batches) <= 4
        assert own.scenarios_chars == sum(len(one.document) for one in own.scenarios.values())
        assert all(one.tenant_id == tenant for one in own.scenarios.values())
    live.rename("acme", {"anna": "erased_1"})
    anew = Registry()
    for record in records:
        erased = record
        if (record.tenant_id, record.customer_ref) == ("acme", "anna"):
            erased = decode_control(*_erased(record))
        anew.fold(erased)
    assert anew.simulations.state() == live.simulations.state()


def _erased(record: Simulation) -> tuple[int, bytes]:
    from engine.core.erasing import erased_control

    record_type, data = encode_control(record)
    copy = erased_control(record_type, data, "acme", {"anna": "erased_1"})
    assert copy is not None
    return record_type, copy
