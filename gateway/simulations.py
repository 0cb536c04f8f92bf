"""`/v1/simulations`: price scenarios kept on the server, their runs and batches.

Rules it keeps: another tenant's scenario, run or batch does not exist for the asker; numbers leave with the digits they
came with; what is wrong in a scenario is named field by field. It must not know how an invoice is computed
(engine.pricing) or where a scenario is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET

from engine.actors.simulations import ToRun
from engine.core.exact_json import decode_exactly, exact_json
from engine.core.simulation_records import Simulation
from gateway import parameters
from gateway.money_shapes import NULL
from gateway.problems import Problem, wrong_fields
from gateway.routes import Answer, Call
from gateway.shapes import decode_cursor, encode_cursor, instant_or_none
from gateway.simulation_shapes import (
    BatchBody,
    BatchRunView,
    BatchSummary,
    BatchView,
    RunBody,
    RunList,
    RunSummary,
    RunView,
    ScenarioBody,
    ScenarioList,
    ScenarioView,
)

_FIELDS: Final = (
    "name",
    "description",
    "metadata",
    "model",
    "inputs",
    "expected",
    "tolerances",
)


def _document(body: ScenarioBody, old: str | None) -> str | Problem:
    """The JSON text of a scenario: the body's fields over those of `old`."""
    fields: dict[str, Any] = {}
    if old is not None:
        fields = msgspec.json.decode(old, type=dict[str, msgspec.Raw])
    for name in _FIELDS:
        value = getattr(body, name)
        is_given = bool(bytes(value)) if isinstance(value, msgspec.Raw) else value is not UNSET
        if is_given and (value is None or value == msgspec.Raw(b"null")):
            fields.pop(name, None)
        elif is_given:
            fields[name] = value
    return _text(fields, "body")


def _text(value: Any, field: str) -> str | Problem:
    """JSON text that can be read back; what a raw part hides (bytes that are no UTF-8) is found here."""
    try:
        text = msgspec.json.encode(value).decode()
        decode_exactly(text)
    except (UnicodeDecodeError, msgspec.MsgspecError) as error:
        return wrong_fields([(field, f"is not valid JSON: {error}")])
    return text


async def list_scenarios(call: Call) -> Answer | Problem:
    """GET /v1/simulations/scenarios."""
    assert call.tenant is not None
    found = sorted(call.gateway.simulations.of(call.tenant).scenarios.values(), key=_order)
    page = _page(call, found, is_newest_first=False)
    if isinstance(page, Problem):
        return page
    shown, cursor = page
    views = [_scenario(one) for one in shown]
    return Answer(ScenarioList(scenarios=views, total=len(found), next_cursor=cursor))


async def create_scenario(call: Call) -> Answer | Problem:
    """POST /v1/simulations/scenarios."""
    assert call.tenant is not None
    document = _document(call.body, None)
    if isinstance(document, Problem):
        return document
    made = await call.gateway.simulations.create(call.tenant, document, call.by)
    location = ("location", f"/v1/simulations/scenarios/{made.id}")
    return Answer(_scenario(made), 201, headers=(location,))


async def get_scenario(call: Call) -> Answer | Problem:
    """GET /v1/simulations/scenarios/{id}."""
    assert call.tenant is not None
    return Answer(_scenario(call.gateway.simulations.scenario(call.tenant, call.path["id"])))


async def update_scenario(call: Call) -> Answer | Problem:
    """PUT /v1/simulations/scenarios/{id}."""
    assert call.tenant is not None
    desk, scenario_id = call.gateway.simulations, call.path["id"]
    document = _document(call.body, desk.scenario(call.tenant, scenario_id).document)
    if isinstance(document, Problem):
        return document
    return Answer(_scenario(await desk.update(call.tenant, scenario_id, document, call.by)))


async def delete_scenario(call: Call) -> Answer | Problem:
    """DELETE /v1/simulations/scenarios/{id}."""
    assert call.tenant is not None
    await call.gateway.simulations.delete(call.tenant, call.path["id"], call.by)
    return Answer(b"", 204)


async def create_run(call: Call) -> Answer | Problem:
    """POST /v1/simulations/runs."""
    assert call.tenant is not None
    body: RunBody = call.body
    is_sent = bytes(body.scenario) not in (b"", b"null")
    if is_sent == (body.scenario_id is not None):
        return wrong_fields([("scenarioId", "or scenario must be given, and not both")])
    document: str | Problem = ""
    if is_sent:
        document = _text(body.scenario, "scenario")
    if isinstance(document, Problem):
        return document
    wanted = ToRun(body.scenario_id or "", document, body.name or "", "scenario" if is_sent else "")
    made = await call.gateway.simulations.run(call.tenant, wanted, call.by)
    location = ("location", f"/v1/simulations/runs/{made.id}")
    return Answer(_run(made, as_string=call.numbers_as_strings), 201, headers=(location,))


async def list_runs(call: Call) -> Answer | Problem:
    """GET /v1/simulations/runs."""
    assert call.tenant is not None
    query = call.query
    found = [
        one
        for one in call.gateway.simulations.of(call.tenant).runs.values()
        if one.document
        and query["scenarioId"] in (None, one.scenario_id)
        and query["batchId"] in (None, one.batch_id)
        and query["passed"] in (None, str(one.passed).lower())
    ]
    found.sort(key=_order, reverse=True)
    page = _page(call, found, is_newest_first=True)
    if isinstance(page, Problem):
        return page
    shown, cursor = page
    views = [_run_summary(one, as_string=call.numbers_as_strings) for one in shown]
    return Answer(RunList(runs=views, total=len(found), next_cursor=cursor))


async def get_run(call: Call) -> Answer | Problem:
    """GET /v1/simulations/runs/{id}."""
    assert call.tenant is not None
    found = call.gateway.simulations.run_of(call.tenant, call.path["id"])
    return Answer(_run(found, as_string=call.numbers_as_strings))


async def create_batch(call: Call) -> Answer | Problem:
    """POST /v1/simulations/batch."""
    assert call.tenant is not None
    body: BatchBody = call.body
    wanted = [ToRun(scenario_id) for scenario_id in body.scenario_ids]
    for index, scenario in enumerate(body.scenarios):
        path = f"scenarios[{index}]"
        document = _text(scenario, path)
        if isinstance(document, Problem):
            return document
        wanted.append(ToRun(document=document, path=path))
    batch, _runs = await call.gateway.simulations.run_all(
        call.tenant, wanted, body.name or "", call.by
    )
    location = ("location", f"/v1/simulations/batch/{batch.id}")
    return Answer(_batch(batch, as_string=call.numbers_as_strings), 201, headers=(location,))


async def get_batch(call: Call) -> Answer | Problem:
    """GET /v1/simulations/batch/{id}."""
    assert call.tenant is not None
    found = call.gateway.simulations.batch_of(call.tenant, call.path["id"])
    return Answer(_batch(found, as_string=call.numbers_as_strings))


def _order(record: Simulation) -> tuple[int, str]:
    return record.created_at_us, record.id


def _page(
    call: Call, found: Sequence[Simulation], *, is_newest_first: bool
) -> tuple[Sequence[Simulation], str | None] | Problem:
    """A page of an ordered list, and the cursor of the next one."""
    start = call.query["offset"] or 0
    if (cursor := call.query["cursor"]) is not None:
        after = decode_cursor(cursor)
        fits = after is not None and [type(part) for part in after] == [int, str]
        if call.query["offset"] is not None or not fits:
            return wrong_fields([("cursor", parameters.CURSOR_REFUSED)])
        place = tuple(after or ())
        start = sum(
            _order(one) >= place if is_newest_first else _order(one) <= place for one in found
        )
    page = found[start : start + call.query["limit"]]
    has_more = page and start + len(page) < len(found)
    return page, encode_cursor(list(_order(page[-1]))) if has_more else None


def _scenario(record: Simulation) -> ScenarioView:
    parts = msgspec.json.decode(record.document, type=dict[str, msgspec.Raw])
    description = parts.get("description")
    return ScenarioView(
        id=record.id,
        tenant_id=record.tenant_id,
        name=record.name,
        created_at=instant_or_none(record.created_at_us) or "",
        updated_at=instant_or_none(record.at_us) or "",
        description=None if description is None else msgspec.json.decode(description, type=str),
        metadata=parts.get("metadata", NULL),
        model=parts.get("model", NULL),
        inputs=parts["inputs"],
        expected=parts.get("expected", NULL),
        tolerances=parts.get("tolerances", NULL),
    )


class _Result(msgspec.Struct):
    result: msgspec.Raw
    comparison: msgspec.Raw


class _Amount(msgspec.Struct):
    total: msgspec.Raw
    currency: str


class _OnlyAmount(msgspec.Struct):
    result: _Amount


def _written(raw: msgspec.Raw, *, as_string: bool) -> msgspec.Raw:
    if not as_string:
        return raw
    return msgspec.Raw(exact_json(decode_exactly(raw), as_string=True))


def _run(record: Simulation, *, as_string: bool) -> RunView:
    read = msgspec.json.decode(record.result, type=_Result)
    return RunView(
        id=record.id,
        run_id=record.id,
        tenant_id=record.tenant_id,
        status="completed",
        name=record.name,
        scenario_id=record.scenario_id or None,
        batch_id=record.batch_id or None,
        result=_written(read.result, as_string=as_string),
        comparison=_written(read.comparison, as_string=as_string),
        passed=record.passed,
        created_at=instant_or_none(record.created_at_us) or "",
    )


def _run_summary(record: Simulation, *, as_string: bool) -> RunSummary:
    amount = msgspec.json.decode(record.result, type=_OnlyAmount).result
    return RunSummary(
        id=record.id,
        run_id=record.id,
        status="completed",
        name=record.name,
        scenario_id=record.scenario_id or None,
        batch_id=record.batch_id or None,
        passed=record.passed,
        total=_written(amount.total, as_string=as_string),
        currency=amount.currency,
        created_at=instant_or_none(record.created_at_us) or "",
    )


def _batch(record: Simulation, *, as_string: bool) -> BatchView:
    passed = sum(row.passed for row in record.rows)
    return BatchView(
        id=record.id,
        batch_id=record.id,
        tenant_id=record.tenant_id,
        status="completed",
        name=record.name,
        runs=[
            BatchRunView(
                run_id=row.run_id,
                scenario_id=row.scenario_id or None,
                passed=row.passed,
                total=_written(msgspec.Raw(row.total.encode()), as_string=as_string),
                currency=row.currency,
            )
            for row in record.rows
        ],
        summary=BatchSummary(
            total=len(record.rows), passed=passed, failed=len(record.rows) - passed
        ),
        passed=record.passed,
        created_at=instant_or_none(record.created_at_us) or "",
    )
