"""`/v1/mappings`: how a metric is counted, and where its use is pushed.

Rules it keeps: a mapping of another tenant does not exist for the asker; a field that is not known is an error; a dry
run says what would be sent and changes nothing. It must not know when a change takes effect
(engine.actors.administration).
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET

from engine.actors.administration import Changed, Wanted
from engine.core.configured import Mapping
from engine.errors import Conflict
from gateway import parameters
from gateway.mapping_shapes import (
    PASSED_OVER,
    MappingBody,
    MappingList,
    MappingUpdate,
    MappingView,
    read_numbers,
    view,
)
from gateway.problems import Problem, wrong_fields
from gateway.push_previews import preview_of
from gateway.routes import Answer, Call
from gateway.shapes import decode_cursor, encode_cursor


async def list_mappings(call: Call) -> Answer | Problem:
    """GET /v1/mappings."""
    found = call.gateway.meter.registry.mappings_of(call.tenant)
    metric, active = call.query["metric"], call.query["active"]
    if metric is not None:
        found = [mapping for mapping in found if mapping.metric == metric]
    if active is not None:
        found = [mapping for mapping in found if mapping.active == (active == "true")]
    found.sort(key=_order)
    start = call.query["offset"] or 0
    if (cursor := call.query["cursor"]) is not None:
        after = decode_cursor(cursor)
        if call.query["offset"] is not None or not _is_order(after):
            return wrong_fields([("cursor", parameters.CURSOR_REFUSED)])
        start = sum(1 for mapping in found if _order(mapping) <= tuple(after or ()))
    page = found[start : start + call.query["limit"]]
    more = start + len(page) < len(found) and page
    return Answer(
        MappingList(
            mappings=[view(mapping) for mapping in page],
            total=len(found),
            next_cursor=encode_cursor(list(_order(page[-1]))) if more else None,
        )
    )


def _order(mapping: Mapping) -> tuple[int, str]:
    return mapping.created_at_us, mapping.id


def _is_order(value: list[Any] | None) -> bool:
    return value is not None and [type(part) for part in value] == [int, str]


async def create_mapping(call: Call) -> Answer | Problem:
    """POST /v1/mappings."""
    body: MappingBody = call.body
    assert call.tenant is not None
    given = msgspec.structs.asdict(body)
    wanted = Wanted(given.pop("cutover"), is_dry_run=given.pop("dry_run"))
    fields = read_numbers(given, body.currency)
    if isinstance(fields, Problem):
        return fields
    fields |= {"id": "", "tenant_id": call.tenant}
    changed = await call.gateway.administration.create_mapping(Mapping(**fields), call.by, wanted)
    shown = await _view_changed(call, changed, wanted)
    if wanted.is_dry_run:
        return Answer(shown)
    location = ("location", f"/v1/mappings/{changed.value.id}")
    return Answer(shown, 201, headers=(location,))


async def _view_changed(call: Call, changed: Changed, wanted: Wanted) -> MappingView:
    shown = view(changed.value, changed.effective_from_us, changed.push_from_us)
    if wanted.is_dry_run:
        shown.preview = await preview_of(call.gateway, changed.records)
    return shown


async def get_mapping(call: Call) -> Answer | Problem:
    """GET /v1/mappings/{id}."""
    return Answer(view(call.gateway.administration.mapping(call.path["id"], call.tenant)))


async def update_mapping(call: Call) -> Answer | Problem:
    """PUT /v1/mappings/{id}."""
    body: MappingUpdate = call.body
    old = call.gateway.administration.mapping(
        call.path["id"], call.identity.tenant or call.query["tenantId"]
    )
    given = {
        name: value for name, value in msgspec.structs.asdict(body).items() if value is not UNSET
    }
    wanted = Wanted(
        given.pop("cutover") or call.query["cutover"],
        is_dry_run=given.pop("dry_run") or call.query["dryRun"] == "true",
    )
    for name in PASSED_OVER:
        given.pop(name, None)
    for name in ("id", "tenant_id", "metric"):
        if given.pop(name, getattr(old, name)) != getattr(old, name):
            shown = "tenantId" if name == "tenant_id" else name
            raise Conflict(f"a mapping's {shown} can't change: delete it and create another one")
    fields = read_numbers(given, given.get("currency", old.currency))
    if isinstance(fields, Problem):
        return fields
    changed = await call.gateway.administration.update_mapping(
        msgspec.structs.replace(old, **fields), call.by, wanted
    )
    return Answer(await _view_changed(call, changed, wanted))


async def delete_mapping(call: Call) -> Answer | Problem:
    """DELETE /v1/mappings/{id}."""
    await call.gateway.administration.delete_mapping(call.path["id"], call.tenant, call.by)
    return Answer(b"", 204)
