"""The examples of the OpenAPI document: each is sent, and the answer looks as shown.

RECORD_EXAMPLES=1 writes them anew (gateway/pages/examples.json), after a change of an answer or for a new endpoint.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
import trio

from gateway.openapi import operation_id
from gateway.openapi_examples import FILE, Example, all_examples, examples_of
from gateway.openapi_problems import problem_example
from gateway.simulator.state import sign
from gateway.table import ROUTES, openapi_document
from tests.helpers.api_story import ROUTE_OF, SHOWN_SECRET, Teller, differs, shape, tell_all
from tests.helpers.json_schema import described_responses
from tests.helpers.served import (
    ADMIN_KEY,
    WEBHOOK_SECRET,
    Served,
    bearer,
    served,
    ten_times_as_fast,
)

DOCUMENT: dict[str, Any] = json.loads(openapi_document())
WITHOUT_EXAMPLES = {"docs", "docsAsset", "openapiJson", "root"}
"""Pages, and what leads to them."""
RECORDING = os.environ.get("RECORD_EXAMPLES") == "1"


def validator(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """Of a schema of the document, by a library that has no part in making it."""
    whole = {**schema, "components": {"schemas": DOCUMENT["components"]["schemas"]}}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


async def test_each_example_is_answered_as_it_is_shown(tmp_path: Path) -> None:
    # A directory that is there: readiness tells of its disk.
    async with served(auth="required", stripe={}, data_dir=str(tmp_path)) as server:
        teller = Teller(server)
        await tell_all(teller)
    if RECORDING:
        path = Path(str(files("gateway.pages") / FILE))
        path.write_bytes(msgspec.json.format(msgspec.json.encode(teller.told), indent=1) + b"\n")
        pytest.skip("recorded")
    shown = all_examples()
    advice = "RECORD_EXAMPLES=1 pytest tests/gateway/test_openapi_examples.py records them anew"
    assert [(one.operation_id, one.name) for one in shown] == [
        (one.operation_id, one.name) for one in teller.told
    ], advice
    for one, told in zip(shown, teller.told, strict=True):
        where = f"{one.operation_id} {one.name}"
        assert (one.status, one.answer_type) == (told.status, told.answer_type), where
        assert differs(shape(one.value), shape(told.value), where) is None, advice
        assert differs(shape(one.body), shape(told.body), where) is None, advice


def test_every_operation_has_an_example_of_success_and_names_are_not_given_twice() -> None:
    for route in ROUTES:
        name = operation_id(route)
        if name in WITHOUT_EXAMPLES:
            continue
        examples = examples_of(name)
        # A decision on a push needs one that waits, which no short story has.
        refused = {"decideBaseline", "carryForward", "pushesSettle", "pushesResume"}
        assert name in refused or any(one.status < 400 for one in examples), (
            f"{name}: add a step to tests/helpers/api_story.py and record it"
        )
        twice = [one for one, n in Counter(one.name for one in examples).items() if n > 1]
        assert not twice, f"{name}: {twice}"


@pytest.mark.parametrize("example", all_examples(), ids=lambda e: f"{e.operation_id}-{e.name}")
def test_an_example_fits_the_schema_beside_which_it_stands(example: Example) -> None:
    route = next(route for route in ROUTES if operation_id(route) == example.operation_id)
    response = described_responses(DOCUMENT, route.path, route.method)[str(example.status)]
    if example.value is not None:
        media = response["content"][example.answer_type]
        assert media["examples"][example.name]["value"] == example.value
        if not example.answer_type.endswith("ndjson"):
            validator(media["schema"]).validate(example.value)
    if example.body is not None and example.status < 400:
        operation = DOCUMENT["paths"][route.path][route.method.lower()]
        media = operation["requestBody"]["content"][example.body_type]
        validator(media["schema"]).validate(example.body)


def test_a_secret_is_in_no_example() -> None:
    text = (files("gateway.pages") / FILE).read_text()
    assert ADMIN_KEY not in text
    assert text.count(SHOWN_SECRET) == text.count('"key": ') == 2


FAILURES: dict[str, Callable[[str], Any]] = {
    "full": lambda operation: "full" if operation == "write" else "ok",
    "failing": lambda operation: "error" if operation == "sync" else "ok",
}


@pytest.mark.parametrize("failure", [*FAILURES, "without a key", "of another"])
async def test_what_is_answered_in_trouble_is_described(failure: str) -> None:
    expected = {"full": 507, "failing": 503, "without a key": 401}
    async with served(auth="required", stripe={}) as server, trio.open_nursery() as nursery:
        teller = Teller(server)
        await tell_all(teller)
        # A flush waits for the seconds it was given: by this clock, which else stands still.
        nursery.start_soon(ten_times_as_fast, server.clock)
        answered = set()
        key = ADMIN_KEY
        if failure == "of another":
            key = await server.key("umbra", "project:read", "project:write")
        elif failure == "without a key":
            key = "sm_none"
        else:
            server.disk.fault = FAILURES[failure]
        for told in list(teller.told):
            status, problem = await again(server, told, key)
            answered.add(status)
            route = ROUTE_OF[told.operation_id]
            responses = described_responses(DOCUMENT, route.path, route.method)
            assert str(status) in responses, (told.operation_id, status, problem)
        server.disk.fault = lambda _operation: "ok"
        nursery.cancel_scope.cancel()
    assert expected.get(failure, 403) in answered


async def again(server: Served, told: Example, key: str) -> tuple[int, str]:
    """Send an example again, under another id and name where it makes something."""
    route = ROUTE_OF[told.operation_id]
    url = route.path
    for name, text in told.path.items():
        url = url.replace(f"{{{name}}}", text)
    body = told.body
    content = None if body is None else json.dumps(body).replace("request-", "other-").encode()
    headers = bearer(key) | told.headers
    if content is not None:
        headers["content-type"] = told.body_type
    if "stripe-signature" in told.headers:
        content = (
            b'{"id": "evt_2", "type": "customer.deleted", "data": {"object": {"id": "cus_anna"}}}'
        )
        headers["stripe-signature"] = sign(WEBHOOK_SECRET, content, server.clock.us // 1_000_000)
    response = await server.client.request(
        route.method, url, params=told.query, headers=headers, content=content
    )
    return response.status_code, response.text[:300]


def said(problem: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in problem.items() if name != "requestId"}


async def test_the_problems_that_are_shown_are_those_that_are_sent() -> None:
    limit = {"tenant_rate_limit": "1000"}
    async with served(auth="required", **limit) as server:
        client, admin = server.client, bearer(ADMIN_KEY)
        key = bearer(await server.key("acme", "project:read", "project:write"))
        json_type = {"content-type": "application/json"}
        large = b" " * (1 << 20) + b"x"
        other = {"tenantId": "umbra"}
        mapping = {"tenantId": "acme", "metric": "api_calls"}
        made = (await client.post("/v1/mappings", json=mapping, headers=admin)).json()["id"]
        event = {"metric": "api_calls", "customerRef": "c", "quantity": 1}
        events = [event | {"idempotencyKey": f"{n}"} for n in range(600)]
        ingest = "/v1/events/ingest"
        await client.post(ingest, json={"events": events}, headers=key)
        answers = [
            await client.get("/v1/mappings", params={"limit": "101"}, headers=admin),
            await client.get("/v1/mappings", headers=bearer("sm_wrong")),
            await client.get("/v1/mappings", params=other, headers=key),
            await client.get("/v1/mappings/map_0123456789abcdef", headers=admin),
            await client.delete("/v1/mappings", headers=admin),
            await client.post("/v1/mappings", json=mapping, headers=admin),
            await client.post("/v1/replay", content=large, headers=admin | json_type),
            await client.post("/v1/replay", content=b"", headers=admin),
            await client.post(ingest, json={"events": events}, headers=key),
        ]
    statuses = [400, 401, 403, 404, 405, 409, 413, 415, 429]
    assert [one.status_code for one in answers] == statuses
    for status, answer in zip(statuses, answers, strict=True):
        found = json.loads(answer.text.replace(made, "map_0123456789abcdef"))
        assert said(found) == said(problem_example(status))
