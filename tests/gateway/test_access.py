"""Keys, scopes and tenants: over every route of the table, so that a new one can't be forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import trio

from engine.core.api_keys import KEY_CHARS, RESOURCES, SCOPES, granted
from engine.core.configured import Change
from engine.core.records import ApiKeyChange
from gateway.auth import CREDENTIAL_BYTES_MAX, Identity, pepper_of
from gateway.problems import Problem
from gateway.rate_limit import RateLimiter
from gateway.routes import Route
from gateway.table import ROUTES
from tests.helpers.served import ADMIN_KEY, START_US, Served, bearer, served

GUARDED = [route for route in ROUTES if route.scope is not None]
OPEN = [route for route in ROUTES if route.scope is None]
by_route = pytest.mark.parametrize("route", GUARDED, ids=lambda r: f"{r.method} {r.path}")
SCENARIO_INPUTS: dict[str, Any] = {
    "customerId": "umbra-customer",
    "periodStart": "2026-01-01",
    "periodEnd": "2026-02-01",
    "usageItems": [
        {
            "metric": "umbras_metric",
            "quantity": 5,
            "priceConfig": {"model": "flat", "currency": "USD", "unitPrice": 1},
        }
    ],
}
UMBRAS_INPUTS = SCENARIO_INPUTS | {
    "usageItems": [SCENARIO_INPUTS["usageItems"][0] | {"quantity": 777}]
}
SECRET_WORDS = ("umbra", "umbras_metric", "umbra-customer", "cus_umbra")


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with served(auth="required", stripe={}) as running:
        yield running


async def umbras_things(server: Served) -> dict[str, str]:
    """Another tenant's mapping, customer, key and events; their ids."""
    admin = bearer(ADMIN_KEY)
    mapping = await server.client.post(
        "/v1/mappings",
        json={"tenantId": "umbra", "metric": "umbras_metric", "meterEventName": "calls"},
        headers=admin,
    )
    customer = await server.client.put(
        "/v1/customers/umbra-customer",
        json={"tenantId": "umbra", "stripeCustomerId": "cus_umbra"},
        headers=admin,
    )
    key = await server.client.post(
        "/v1/admin/api-keys",
        json={"tenantId": "umbra", "name": "umbras", "scopes": ["project:*"]},
        headers=admin,
    )
    assert (mapping.status_code, customer.status_code, key.status_code) == (201, 201, 201)
    for customer_ref in ("umbra-customer", "umbra-leaver"):
        event = {"tenantId": "umbra", "metric": "umbras_metric", "customerRef": customer_ref}
        await server.ingest(event | {"quantity": 777, "idempotencyKey": "k"}, headers=admin)
    pusher = server.gateway.meter.started.pusher
    while not (targets := await pusher.targets("umbra")):
        await trio.sleep(0.001)
    erasure = await server.client.post(
        "/v1/admin/erasures",
        json={"tenantId": "umbra", "customerRef": "umbra-leaver"},
        headers=admin,
    )
    assert erasure.status_code == 202, erasure.text
    backfill = await server.client.post(
        "/v1/events/backfill",
        json={
            "tenantId": "umbra",
            "periodStart": "2026-01-01",
            "reason": "umbras",
            "events": [{"metric": "umbras_metric", "customerRef": "umbra-customer", "quantity": 1}],
        },
        headers=admin,
    )
    opened = await server.client.post(
        "/v1/events/imports", json={"tenantId": "umbra"}, headers=admin
    )
    assert (backfill.status_code, opened.status_code) == (202, 201)
    adjustment = await server.client.post(
        "/v1/adjustments",
        json={"tenantId": "umbra", "metric": "umbras_metric", "customerRef": "umbra-customer"}
        | {"periodStart": "2026-01-01", "delta": 777, "reason": "credit"},
        headers=admin,
    )
    assert adjustment.status_code == 201, adjustment.text
    runner = server.gateway.meter.started.operations
    one = runner.find(backfill.json()["operationId"], "umbra", "backfill")
    while one.is_open:
        await trio.sleep(0.001)
    return {
        "adjustments": adjustment.json()["id"],
        "backfills": one.id,
        "imports": opened.json()["operationId"],
        "mappings": mapping.json()["id"],
        "pushes": targets[0].id,
        "admin": key.json()["id"],
        "erasures": erasure.json()["erasureId"],
        "reconciliation": server.gateway.meter.started.reconciler.start("umbra").id,
        **await umbras_simulations(server),
    }


async def umbras_simulations(server: Served) -> dict[str, str]:
    """Another tenant's scenario, run and batch; their ids by the paths that take one."""
    scenario = {"name": "umbras_metric", "inputs": UMBRAS_INPUTS}
    simulated = {}
    for kind, body in (
        ("scenarios", scenario),
        ("runs", {"scenario": scenario}),
        ("batch", {"scenarios": [scenario]}),
    ):
        made = await server.client.post(
            f"/v1/simulations/{kind}", json={"tenantId": "umbra"} | body, headers=bearer(ADMIN_KEY)
        )
        assert made.status_code == 201, made.text
        simulated[f"/v1/simulations/{kind}/{{id}}"] = made.json()["id"]
    return simulated


def request_of(route: Route, ids: dict[str, str], tenant: str | None) -> dict[str, Any]:
    """A request to a route that would be right for the tenant umbra."""
    path = route.path.replace("{customerRef}", "umbra-customer")
    path = path.replace("{id}", ids.get(route.path, ids.get(route.tag, "none")))
    query = {
        "customerRef": "umbra-customer",
        "metric": "umbras_metric",
        "since": "2026-01-01T00:00:00Z",
        "periodStart": "2026-01-01",
    }
    if route.tag == "reconciliation":
        path = path.replace("{period}", "2026-01")
        query |= {"periodStart": "2026-01", "periodEnd": "2026-01"}
    names = {parameter.name for parameter in route.parameters if parameter.required}
    params: dict[str, Any] = {name: query[name] for name in names}
    takes_query_tenant = "tenantId" in {parameter.name for parameter in route.parameters}
    if tenant is not None and takes_query_tenant:
        params["tenantId"] = tenant
    body: dict[str, Any] | None = None
    if route.request is not None:
        fields = {field.encode_name for field in route.request.__struct_fields__ and _fields(route)}
        samples: dict[str, Any] = {
            "metric": "umbras_metric",
            "name": "n",
            "scopes": ["events:read"],
            "periodStart": "2026-01-01",
            "reason": "manual",
            "processedEvents": 0,
            "timeoutSeconds": 0,
            "adjustmentIds": ["0" * 16],
            "baseline": "period",
            "into": "credit",
            "delivered": True,
            "inputs": SCENARIO_INPUTS,
            "scenario": {"inputs": SCENARIO_INPUTS},
            "scenarios": [{"inputs": SCENARIO_INPUTS}],
            "since": "2026-01-01T00:00:00Z",
            "priceConfig": SCENARIO_INPUTS["usageItems"][0]["priceConfig"],
            "events": [
                {"metric": "m", "customerRef": "c", "quantity": 1, "idempotencyKey": "x"}
                | ({"tenantId": tenant} if tenant else {})
            ],
        }
        if route.tag in ("adjustments", "usage"):
            samples |= {"customerRef": "umbra-customer", "delta": 1}
        if route.tag == "usage":
            del samples["periodStart"]
        body = {name: samples[name] for name in fields if name in samples}
        if tenant is not None and "tenantId" in fields:
            body["tenantId"] = tenant
    return {"method": route.method, "url": path, "params": params, "json": body}


def _fields(route: Route) -> Any:
    return msgspec.structs.fields(route.request)


@by_route
async def test_without_a_key_every_guarded_route_is_a_401(server: Served, route: Route) -> None:
    response = await server.client.request(**request_of(route, {}, "umbra"))
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")


@by_route
async def test_a_key_of_all_scopes_but_one_is_a_403(server: Served, route: Route) -> None:
    assert route.scope is not None
    scopes = sorted(
        {f"{resource}:{kind}" for resource in RESOURCES for kind in ("read", "write")} | {"admin"}
    )
    others = [scope for scope in scopes if scope not in (route.scope, "admin")]
    key = await server.key("umbra", *others)
    request = request_of(route, {}, None)
    response = await server.client.request(**request, headers=bearer(key))
    assert response.status_code == 403, response.text
    assert route.scope in response.json()["detail"]


@by_route
async def test_the_one_scope_of_a_route_opens_it(server: Served, route: Route) -> None:
    assert route.scope is not None
    ids = await umbras_things(server)
    key = await server.key("umbra", route.scope)
    if route.path == "/v1/admin/retention":
        key = ADMIN_KEY  # of the whole log: never at the word of one tenant's key
    response = await server.client.request(**request_of(route, ids, None), headers=bearer(key))
    assert response.status_code not in (401, 403, 404), response.text


@by_route
@pytest.mark.parametrize("names_it", [True, False])
async def test_another_tenants_things_are_never_shown_or_changed(
    server: Served, route: Route, *, names_it: bool
) -> None:
    ids = await umbras_things(server)
    before = server.gateway.meter.registry.state()
    key = await server.key("acme", "project:*", "admin")
    mine = server.gateway.meter.registry.state()
    assert mine != before
    request = request_of(route, ids, "umbra" if names_it else None)
    response = await server.client.request(**request, headers=bearer(key))
    if names_it:
        assert "tenantId" in request["params"], "every guarded route can be told the tenant"
        assert response.status_code == 403, response.text
    elif "{id}" in route.path or (route.method, route.path) == (
        "GET",
        "/v1/customers/{customerRef}",
    ):
        assert response.status_code == 404, response.text
    if response.status_code >= 400:
        assert not any(word in response.text for word in ("777", "umbras_metric", "cus_umbra"))
    else:
        body = response.text.replace("umbra-customer", "").replace('"umbras_metric"', "")
        assert not any(word in body for word in ("777", "cus_umbra", '"umbra"'))
    corrections = server.gateway.corrections
    assert corrections.adjustment(ids["adjustments"], "umbra").status == "pending"
    ledger = server.gateway.meter.push.ledger
    assert not any(of.stopped or of.awaits for of in ledger.lanes.values())
    registry = server.gateway.meter.registry
    assert [m.id for m in registry.mappings_of("umbra")] == [ids["mappings"]]
    assert registry.api_keys[ids["admin"]].revoked_at_us is None
    assert [k.name for k in registry.api_keys.values() if k.tenant_id == "umbra"] == ["umbras"]
    assert registry.customers["umbra"]["umbra-customer"].stripe_customer_id == "cus_umbra"
    assert list(registry.simulations.of("umbra").scenarios) == [
        ids["/v1/simulations/scenarios/{id}"]
    ]
    assert registry.simulations.of("umbra").runs.keys() >= {ids["/v1/simulations/runs/{id}"]}


@pytest.mark.parametrize("route", OPEN, ids=lambda r: r.path)
async def test_open_routes_say_nothing_of_a_tenant(server: Served, route: Route) -> None:
    await umbras_things(server)
    path = route.path.replace("{asset}", "docs.js")
    response = await server.client.request(route.method, path)
    assert response.status_code in (200, 307) or route.takes_raw_body
    words = ("umbra-customer", "cus_umbra", '"umbra"')
    assert not any(word in response.text for word in words)


async def test_a_keys_life_from_creation_to_revocation(server: Served) -> None:
    admin = bearer(ADMIN_KEY)
    made = await server.client.post(
        "/v1/admin/api-keys",
        json={"name": "n", "tenantId": "acme", "scopes": ["mappings:read", "mappings:read"]},
        headers=admin,
    )
    key = made.json()
    assert len(key["key"]) == KEY_CHARS
    assert key["key"].startswith("sm_" + key["prefix"])
    assert key["scopes"] == ["mappings:read"]
    assert made.headers["cache-control"] == "no-store"

    async def status(text: str) -> int:
        return (await server.client.get("/v1/mappings", headers=bearer(text))).status_code

    assert await status(key["key"]) == 200
    listed = await server.client.get("/v1/admin/api-keys", headers=admin)
    assert listed.json()["apiKeys"][0]["id"] == key["id"]
    assert key["key"][11:] not in listed.text
    rotated = await server.client.post(f"/v1/admin/api-keys/{key['id']}/rotate", headers=admin)
    assert rotated.json()["id"] == key["id"]
    assert await status(key["key"]) == 401
    assert await status(rotated.json()["key"]) == 200
    for _ in range(2):
        revoked = await server.client.post(f"/v1/admin/api-keys/{key['id']}/revoke", headers=admin)
        assert revoked.status_code == 200
    assert await status(rotated.json()["key"]) == 401
    again = await server.client.post(f"/v1/admin/api-keys/{key['id']}/rotate", headers=admin)
    assert again.status_code == 409


async def test_an_expired_key_is_worth_nothing(server: Served) -> None:
    key = await server.key("acme", "mappings:read", expiresAt="2026-01-31T11:00:00Z")
    client = server.client
    assert (await client.get("/v1/mappings", headers=bearer(key))).status_code == 200
    server.clock.us = START_US + 3_600_000_000
    assert (await client.get("/v1/mappings", headers=bearer(key))).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {"scopes": []},
        {"scopes": ["events:delete"]},
        {"scopes": ["*"]},
        {"scopes": ["project:admin"]},
        {"scopes": ["usage:read"], "expiresAt": "2020-01-01T00:00:00Z"},
        {"scopes": ["usage:read"], "expiresAt": "2030-01-01"},
        {"scopes": ["usage:read"], "name": ""},
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(server: Served, body: dict[str, Any]) -> None:
    response = await server.client.post(
        "/v1/admin/api-keys",
        json={"name": "n", "tenantId": "acme"} | body,
        headers=bearer(ADMIN_KEY),
    )
    assert response.status_code == 400
    assert response.json()["errors"]
    assert server.gateway.meter.registry.api_keys == {}


async def test_a_tenants_admin_manages_keys_of_its_own_tenant_only(server: Served) -> None:
    ids = await umbras_things(server)
    admin = bearer(await server.key("acme", "admin"))
    listed = await server.client.get("/v1/admin/api-keys", headers=admin)
    assert {key["tenantId"] for key in listed.json()["apiKeys"]} == {"acme"}
    body = {"name": "n", "scopes": ["admin"]}
    mine = await server.client.post("/v1/admin/api-keys", json=body, headers=admin)
    assert mine.json()["tenantId"] == "acme"
    for action in ("rotate", "revoke"):
        url = f"/v1/admin/api-keys/{ids['admin']}/{action}"
        assert (await server.client.post(url, headers=admin)).status_code == 404


async def test_the_administrators_key_must_name_a_tenant(server: Served) -> None:
    admin = bearer(ADMIN_KEY)
    response = await server.client.post("/v1/mappings", json={"metric": "m"}, headers=admin)
    assert response.status_code == 400
    assert response.json()["errors"][0]["field"] == "tenantId"


def test_project_scopes_are_all_but_admin_and_wildcards_are_both() -> None:
    everything = {f"{resource}:{kind}" for resource in RESOURCES for kind in ("read", "write")}
    assert granted(["project:*"]) == everything
    assert granted(["project:read"]) == {one for one in everything if one.endswith(":read")}
    assert granted(["mappings:*"]) == {"mappings:read", "mappings:write"}
    assert granted(["admin"]) == everything | {"admin"}
    assert granted(["events:write"]) == {"events:write"}
    for scope in SCOPES - {"admin"}:
        assert "admin" not in granted([scope])


async def test_every_way_to_send_a_wrong_key_is_a_401(server: Served) -> None:
    key = await server.key("acme", "project:*")
    wrong = key[:-1] + ("a" if key[-1] != "a" else "b")
    identify = server.gateway.access.identify
    now_us = START_US
    good = identify(b"Bearer " + key.encode(), None, now_us)
    assert isinstance(good, Identity)
    assert good.tenant == "acme"
    assert isinstance(identify(None, key.encode(), now_us), Identity)
    assert isinstance(identify(b"bearer  " + key.encode(), key.encode(), now_us), Identity)
    for authorization, x_api_key in [
        (None, None),
        (b"", None),
        (b"Bearer ", None),
        (b"Basic " + key.encode(), None),
        (key.encode(), None),
        (b"Bearer " + wrong.encode(), None),
        (b"Bearer " + key.upper().encode(), None),
        (b"Bearer " + key.encode() + b"a", None),
        (b"Bearer sm_" + b"a" * 40, None),
        (b"Bearer " + b"a" * (CREDENTIAL_BYTES_MAX + 1), None),
        (b"Bearer \xff\xfe", None),
        (b"Bearer " + key.encode(), wrong.encode()),
        (None, wrong.encode()),
        (None, b""),
    ]:
        refused = identify(authorization, x_api_key, now_us)
        assert isinstance(refused, Problem), (authorization, x_api_key)
        assert refused.status == 401
        assert key not in refused.detail


async def test_what_a_key_may_do_is_what_its_newest_record_says(server: Served) -> None:
    text = (await server.key("acme", "usage:read", "events:write")).encode()
    access, registry = server.gateway.access, server.gateway.meter.registry
    before = access.identify(None, text, START_US)
    assert isinstance(before, Identity)
    assert access.identify(None, text, START_US) is before
    (key,) = registry.api_keys.values()
    narrowed = msgspec.structs.replace(key, scopes=("usage:read",))
    registry.fold(ApiKeyChange(action="narrow", key=narrowed, change=Change(actor="test")))
    after = access.identify(None, text, START_US)
    assert isinstance(after, Identity)
    assert after.scopes == {"usage:read"}


async def test_a_keys_text_is_in_no_record_of_the_log(server: Served) -> None:
    key = await server.key("acme", "project:*")
    stored = b"".join(server.disk.durable.values())
    assert key[3:11].encode() in stored
    assert key[11:].encode() not in stored
    assert ADMIN_KEY.encode() not in stored
    assert b"admin-key" in stored, "who did it is in the record"


def test_a_pepper_of_the_settings_has_the_length_that_the_hash_takes() -> None:
    assert len(pepper_of("x" * 255, bytes)) == 32
    assert pepper_of(None, lambda: b"own") == b"own"


def test_a_bucket_gives_its_burst_then_its_rate_and_says_how_long_to_wait() -> None:
    limiter = RateLimiter(100, 10)
    assert limiter.take({"a": 100}, 0) is None
    assert limiter.take({"a": 1}, 0) == 1
    assert limiter.take({"b": 100}, 0) is None, "tenants do not share"
    assert limiter.take({"a": 1}, 9_999) == 1
    assert limiter.take({"a": 1}, 10_000) is None
    assert limiter.take({"a": 100}, 10_000) == 1
    assert limiter.take({"a": 100}, -5_000_000) == 1, "a clock that steps back gives nothing"
    assert limiter.take({"a": 100}, 60_000_000) is None
    assert limiter.take({"a": 1}, 60_000_000) == 1, "no more than the burst is saved"


def test_a_full_batch_always_fits_and_buckets_are_bounded() -> None:
    limiter = RateLimiter(1, 1000, buckets_max=2)
    assert limiter.take({"a": 1000}, 0) is None
    assert limiter.take({"a": 1000}, 0) == 1000
    for tenant in ("b", "c"):
        limiter.take({tenant: 1}, 0)
    assert limiter.take({"a": 1000}, 0) is None, "the one not seen for the longest was forgotten"
    assert len(limiter._buckets) == 2


def test_of_a_batch_that_one_tenant_holds_up_nobody_pays() -> None:
    limiter = RateLimiter(100, 10)
    assert limiter.take({"a": 90}, 0) is None
    for first, last in (("a", "b"), ("b", "a")):
        assert limiter.take({first: 50, last: 50}, 0) == 1
    assert limiter.take({"c": 500, "a": 250}, 0) == 4, "the longest wait is told"
    assert limiter.take({"b": 100, "a": 10}, 0) is None
    assert limiter.take({"b": 1}, 0) == 1


def test_more_tenants_at_once_than_are_remembered_are_served() -> None:
    limiter = RateLimiter(10, 10, buckets_max=2)
    assert limiter.take({str(number): 10 for number in range(5)}, 0) is None
    assert len(limiter._buckets) == 2


async def test_over_the_rate_limit_ingest_is_a_429_with_retry_after() -> None:
    async with served(tenant_rate_limit="1", max_batch="2") as server:
        event = {"tenantId": "a", "metric": "m", "customerRef": "c", "quantity": 1}
        events = [event | {"idempotencyKey": str(i)} for i in range(2)]
        await server.ingest(*events)
        response = await server.client.post("/v1/events/ingest", json={"events": events})
        assert response.status_code == 429
        assert response.headers["retry-after"] == "2"
