"""`results[i]` of an ingest answer is about `events[i]`, whatever mix of fates a batch holds."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from gateway.auth import ANONYMOUS
from gateway.ingest import Ingest
from gateway.ingest_headers import IngestHeaders
from tests.helpers.served import served

OLD = "2025-01-01T00:00:00Z"
NEW = "2026-01-31T09:59:00Z"


def event(key: str, quantity: object = 1, ts: str = NEW, tenant: str = "t") -> dict[str, Any]:
    return {
        "tenantId": tenant,
        "metric": "m",
        "customerRef": "c",
        "quantity": quantity,
        "ts": ts,
        "idempotencyKey": key,
    }


def statuses(answer: dict[str, Any]) -> list[tuple[str, str]]:
    return [(result["idempotencyKey"], result["status"]) for result in answer["results"]]


async def test_a_batch_of_new_events_then_the_same_again_then_with_another_quantity() -> None:
    keys = [f"k{number}" for number in range(20)]
    async with served() as server:
        first = await server.ingest(*map(event, keys))
        assert statuses(first) == [(key, "accepted") for key in keys]
        assert (first["accepted"], first["duplicates"], first["errors"]) == (20, 0, [])
        again = await server.ingest(*map(event, keys))
        assert statuses(again) == [(key, "duplicate") for key in keys]
        assert (again["accepted"], again["duplicates"], again["errors"]) == (0, 20, [])
        other = await server.ingest(*(event(key, 2) for key in keys))
        assert statuses(other) == [(key, "error") for key in keys]
        assert (other["accepted"], other["duplicates"]) == (0, 0)
        assert [error["index"] for error in other["errors"]] == list(range(20))


async def test_late_events_of_a_batch_are_told_apart_from_their_neighbours() -> None:
    async with served() as server:
        await server.ingest(event("now"))
        mixed = [event(f"k{n}", ts=OLD if n % 3 == 0 else NEW) for n in range(12)]
        answer = await server.ingest(*mixed)
        late = [n for n, result in enumerate(answer["results"]) if result.get("late")]
        assert late == [0, 3, 6, 9]
        assert all("adjustmentId" in answer["results"][n] for n in late)
        assert answer["accepted"] == 12


async def test_every_mix_of_fates_and_tenants_is_answered_in_the_order_sent(seed: int) -> None:
    rng = random.Random(seed)
    sent: set[tuple[str, str]] = set()
    async with served() as server:
        for _ in range(30):
            batch, expected = [], []
            for _ in range(rng.randint(1, 8)):
                tenant, key = rng.choice("ab"), f"k{rng.randint(0, 60)}"
                fate = rng.choice(("whole", "whole", "bad", "reused"))
                if fate == "bad":
                    batch.append(event(key, -1, tenant=tenant))
                    expected.append((key, "error"))
                elif fate == "reused" and (tenant, key) in sent:
                    batch.append(event(key, 2, tenant=tenant))
                    expected.append((key, "error"))
                else:
                    batch.append(event(key, tenant=tenant))
                    expected.append((key, "duplicate" if (tenant, key) in sent else "accepted"))
                    sent.add((tenant, key))
            answer = await server.ingest(*batch)
            assert statuses(answer) == expected, f"seed {seed}"
            fates = [fate for _, fate in expected]
            assert answer["accepted"] == fates.count("accepted")
            assert answer["duplicates"] == fates.count("duplicate")


@pytest.mark.parametrize("count", [1, 2, 20])
async def test_without_a_key_events_that_differ_in_an_unknown_field_alone_are_refused_not_made_one(
    count: int,
) -> None:
    bare = {name: value for name, value in event("").items() if name != "idempotencyKey"}
    wanted = [bare | {"traceId": f"trace-{number}"} for number in range(count)]
    async with served() as server:
        answer = await server.ingest(*wanted, bare, event("keyed") | {"traceId": "passed over"})
        refused = answer["results"][:count]
        assert [one["status"] for one in refused] == ["error"] * count
        assert all("`traceId`" in one["error"] for one in refused)
        assert [one["index"] for one in answer["errors"]] == list(range(count))
        assert [one["status"] for one in answer["results"][count:]] == ["accepted"] * 2
        lone = await server.ingest(wanted[0])
        assert lone["errors"][0]["error"] == refused[0]["error"]
        named = await server.ingest(wanted[0], headers={"Idempotency-Key": "of-the-request"})
        assert statuses(named) == [("of-the-request", "accepted")]


async def test_a_large_batch_of_many_tenants_is_taken_as_a_whole() -> None:
    """All of it waits for one commit; it is as large as its body, however many it is for."""
    text = "x" * 700
    many = [event("k", tenant=f"t{n}") | {"meta": {"text": text}} for n in range(1000)]
    async with served() as server:
        answer = await server.ingest(*many)
        assert (answer["accepted"], answer["errors"]) == (1000, [])
        again = await server.ingest(*many)
        assert again["duplicates"] == 1000


@pytest.mark.parametrize("name", [b"\xe9tat", b"ts\xff", b"\xed\xa0\x80"])
async def test_a_field_whose_name_is_no_text_without_a_key_costs_that_event_alone(
    name: bytes,
) -> None:
    bare = {name: value for name, value in event("").items() if name != "idempotencyKey"}
    odd = msgspec.json.encode(bare)[:-1] + b',"' + name + b'":1}'
    body = b'{"events":[%b,%b,%b]}' % (
        odd,
        msgspec.json.encode(bare),
        msgspec.json.encode(event("k"))[:-1] + b',"' + name + b'":1}',
    )
    async with served() as server:
        answer = await Ingest(server.gateway).answer(
            body, ANONYMOUS, IngestHeaders("application/json", None, None, None, "req_1")
        )
    assert isinstance(answer, bytes)
    results = msgspec.json.decode(answer)["results"]
    assert [one["status"] for one in results] == ["error", "accepted", "accepted"]
    assert results[0]["error"] == "the name of a field is not UTF-8"
