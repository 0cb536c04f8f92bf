"""`/v1/admin/api-keys`: keys are made, listed, rotated and revoked; a key's text is shown once and never again.

Rules it keeps: a key with scope `admin` manages the keys of its own tenant only; only the administrator's key (or
auth off) those of all tenants. It must not know how a key is made or hashed (engine.core.api_keys).
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from engine.core import api_keys
from engine.core.api_keys import NewKey
from engine.core.records import ApiKey
from engine.core.times import TimeError, parse_instant
from gateway.problems import Problem, wrong_fields
from gateway.routes import Answer, Call
from gateway.shapes import Instant, TenantId, instant_or_none

Scope = Annotated[
    str,
    msgspec.Meta(
        description="What the key may do.",
        extra_json_schema={"enum": sorted(api_keys.SCOPES)},
    ),
]
KeyId = Annotated[str, msgspec.Meta(examples=["key_0123456789abcdef"])]
Prefix = Annotated[str, msgspec.Meta(description="The key's public part.", examples=["4fKq81Zx"])]


class ApiKeyBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """A new API key."""

    name: Annotated[
        str,
        msgspec.Meta(description="For people.", min_length=1, max_length=100, examples=["backend"]),
    ]
    tenant_id: TenantId | None = None
    scopes: Annotated[
        list[Scope],
        msgspec.Meta(
            description="What it may do; `project:write` is writing everything but administration.",
            min_length=1,
            max_length=100,
            examples=[["events:write", "usage:read"]],
        ),
    ]
    expires_at: (
        Annotated[
            str,
            msgspec.Meta(
                description="Until when it works; absent: until it is revoked.",
                max_length=64,
                extra_json_schema={"format": "date-time"},
            ),
        ]
        | None
    ) = None


class ApiKeyView(msgspec.Struct, rename="camel", kw_only=True):
    """An API key without its secret."""

    id: KeyId
    prefix: Prefix
    name: str
    tenant_id: TenantId
    scopes: list[Scope]
    created_at: Instant
    expires_at: Instant | None
    revoked_at: Instant | None


class NewApiKey(ApiKeyView, kw_only=True):
    """An API key with its text, which is shown this once."""

    key: Annotated[
        str,
        msgspec.Meta(
            description="The key itself. Keep it now: only a hash of it is stored.",
            extra_json_schema={"pattern": "^sm_[0-9A-Za-z]{40}$"},
        ),
    ]


class ApiKeyList(msgspec.Struct, rename="camel", kw_only=True):
    """A page of keys, oldest first."""

    api_keys: list[ApiKeyView]
    total: int


def view(key: ApiKey) -> ApiKeyView:
    """A key as the API shows it."""
    return ApiKeyView(**_fields(key))


def view_new(made: NewKey) -> NewApiKey:
    """A key that was just made or rotated, with its text."""
    return NewApiKey(**_fields(made.change.key), key=made.text)


def _fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "prefix": key.prefix,
        "name": key.name,
        "tenant_id": key.tenant_id,
        "scopes": list(key.scopes),
        "created_at": instant_or_none(key.created_at_us),
        "expires_at": instant_or_none(key.expires_at_us),
        "revoked_at": instant_or_none(key.revoked_at_us),
    }


async def create_key(call: Call) -> Answer | Problem:
    """POST /v1/admin/api-keys."""
    body: ApiKeyBody = call.body
    assert call.tenant is not None
    expires_at_us: int | None = None
    if body.expires_at is not None:
        try:
            expires_at_us = parse_instant(body.expires_at)
        except TimeError as error:
            return wrong_fields([("expiresAt", str(error))])
    made = await call.gateway.administration.create_key(
        name=body.name,
        tenant=call.tenant,
        scopes=tuple(body.scopes),
        expires_at_us=expires_at_us,
        by=call.by,
    )
    return _shown_once(made, 201)


async def list_keys(call: Call) -> Answer | Problem:
    """GET /v1/admin/api-keys."""
    assert call.gateway.meter.started is not None
    found = api_keys.keys_of(call.gateway.meter.registry, call.tenant)
    start = call.query["offset"] or 0
    page = found[start : start + call.query["limit"]]
    return Answer(ApiKeyList(api_keys=[view(key) for key in page], total=len(found)))


async def rotate_key(call: Call) -> Answer | Problem:
    """POST /v1/admin/api-keys/{id}/rotate."""
    made = await call.gateway.administration.rotate_key(call.path["id"], call.tenant, call.by)
    return _shown_once(made, 200)


async def revoke_key(call: Call) -> Answer | Problem:
    """POST /v1/admin/api-keys/{id}/revoke."""
    tenant = call.tenant
    await call.gateway.administration.revoke_key(call.path["id"], tenant, call.by)
    return Answer(view(api_keys.find(call.gateway.meter.registry, call.path["id"], tenant)))


def _shown_once(made: NewKey, status: int) -> Answer:
    return Answer(view_new(made), status, headers=(("cache-control", "no-store"),))
