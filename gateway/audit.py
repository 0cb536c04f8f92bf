"""`GET /v1/audit`: who changed what, when, by which request, and what was before and after.

Rules it keeps: a tenant's trail holds that tenant's changes alone; no secret is shown. It must not know where an entry
is found (engine.actors.audit_reader).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from engine.actors.audit_reader import Entry
from engine.core.audit import AuditQuery
from gateway import parameters
from gateway.problems import Problem, wrong_fields
from gateway.routes import Answer, Call
from gateway.shapes import Instant, TenantId, decode_cursor, encode_cursor, instant_or_none

TARGETS_SHOWN_MAX: Final = 100
_KINDS: Final = {"adj_": "adjustment", "map_": "mapping", "key_": "api-key", "op_": "operation"}
"""How ids begin, and what kind of target each is."""


class AuditEntry(msgspec.Struct, rename="camel", kw_only=True):
    """One change. `target` is KIND:ID; a decision on many names the first and lists some."""

    id: Annotated[str, msgspec.Meta(description="Its record's position in the log.")]
    at: Instant
    tenant_id: Annotated[TenantId | None, msgspec.Meta(description="Null: no tenant's.")]
    actor: Annotated[str | None, msgspec.Meta(description="An API key's id, or system:...")]
    action: Annotated[str, msgspec.Meta(examples=["adjustment.approve"])]
    target: Annotated[str | None, msgspec.Meta(examples=["adjustment:adj_0123456789abcdef"])]
    target_count: int
    targets: Annotated[list[str], msgspec.Meta(description=f"At most {TARGETS_SHOWN_MAX}.")]
    request_id: str | None
    before: Annotated[
        dict[str, Any] | None, msgspec.Meta(description="What was; null: nothing of it.")
    ]
    after: Annotated[
        dict[str, Any] | None, msgspec.Meta(description="What is since; null: nothing of it.")
    ]


class AuditList(msgspec.Struct, rename="camel", kw_only=True):
    """A page of the trail, newest first."""

    entries: list[AuditEntry]
    total: int
    next_cursor: str | None = None


async def list_audit(call: Call) -> Answer | Problem:
    """GET /v1/audit."""
    query = call.query
    before_sequence: int | None = None
    if query["cursor"] is not None:
        place = decode_cursor(query["cursor"])
        if not place or [type(part) for part in place] != [int]:
            return wrong_fields([("cursor", parameters.CURSOR_REFUSED)])
        before_sequence = place[0]
        if not 0 <= place[0] < 1 << 62:
            return wrong_fields([("cursor", parameters.CURSOR_REFUSED)])
    start_us, end_us = query["startTime"], query["endTime"]
    if start_us is not None and end_us is not None and start_us >= end_us:
        return wrong_fields([("startTime", "must be before endTime")])
    asked = AuditQuery(
        call.tenant, query["target"], query["actor"], start_us, end_us, before_sequence
    )
    page = await call.gateway.audit.page(asked, query["limit"])
    cursor = None if page.next_before is None else encode_cursor([page.next_before])
    return Answer(
        AuditList(
            entries=[_view(entry, query["target"]) for entry in page.entries],
            total=page.total,
            next_cursor=cursor,
        )
    )


def _view(entry: Entry, asked_target: str | None) -> AuditEntry:
    subject = entry.subject
    targets = () if subject is None else subject.targets
    first = targets[0] if targets else None
    return AuditEntry(
        id=str(entry.sequence),
        at=instant_or_none(entry.at_us) or "",
        tenant_id=None if subject is None else subject.tenant,
        actor=None if subject is None else subject.actor,
        action="erased" if subject is None else _action(entry, subject.action),
        target=asked_target or first,
        target_count=len(targets),
        targets=list(targets[:TARGETS_SHOWN_MAX]),
        request_id=None if subject is None else subject.request_id,
        before=entry.before,
        after=entry.after,
    )


def _action(entry: Entry, action: str) -> str:
    """`mapping.set` made it, or changed it."""
    if not action.endswith(".set"):
        return action
    return action.removesuffix("set") + ("created" if entry.before is None else "updated")


def _target(text: str, _now_us: int) -> str:
    """A target as the trail names it; of an id that begins like one its kind may be left out."""
    if not 1 <= len(text) <= 300:
        raise ValueError("must have 1 to 300 characters")
    kind = next((kind for start, kind in _KINDS.items() if text.startswith(start)), None)
    return text if kind is None else f"{kind}:{text}"


AUDIT_PARAMETERS: Final = (
    parameters.TENANT,
    parameters.Parameter(
        "target",
        _target,
        {
            "type": "string",
            "minLength": 1,
            "maxLength": 300,
            "examples": ["adj_0123456789abcdef", "customer:customer-42"],
        },
        "Only of this: KIND:ID, or the id alone where it says its kind.",
    ),
    parameters.text("actor", "Only of this actor: an API key's id, or system:..."),
    parameters.instant("startTime", "Recorded from here on; ISO 8601 or relative to now."),
    parameters.instant("endTime", "Recorded up to here, exclusive."),
    parameters.LIMIT,
    parameters.CURSOR,
)
