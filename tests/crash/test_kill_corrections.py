"""kill -9 of a real server in the middle of a replay and of a decision on a flood: all of it happened, or nothing did.

Whoever was not answered sends the same again and gets the same in the end: a plan by its hash, an adjustment by its
requestId, a decision because it changes nothing the second time. Then the log is recounted from outside.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.helpers.http_client import Answer, Client, CutOff
from tests.helpers.ledger import counted_log
from tests.helpers.server import Server, running

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]

TENANT = {"tenantId": "acme"}
CUSTOMERS = 20
LATE = 2_000
SMALL = {"SMALL_SNAPSHOT_EVENTS": "1500"}
ROUNDS = 6
FLOOD: dict[str, Any] = {"kind": "event"}
JSON = {"content-type": "application/json"}


def post(client: Client, path: str, body: dict[str, Any], status: int = 200) -> Any:
    answer = client.request("POST", path, json.dumps(TENANT | body).encode(), JSON)
    assert answer.status == status, answer
    return answer.json()


def flood(client: Client, round_number: int) -> None:
    """An event in time for each customer, then late ones of a metric whose lateness is 0."""
    if round_number == 0:
        post(client, "/v1/mappings", {"metric": "calls", "latenessHours": 0}, 201)
    old = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()
    for name, ts, count in (("now", None, CUSTOMERS), ("late", old, LATE)):
        events = [
            TENANT
            | {"metric": "calls", "customerRef": f"c{n % CUSTOMERS}", "quantity": 1}
            | {"idempotencyKey": f"{round_number}-{name}-{n}"}
            | ({} if ts is None else {"ts": ts})
            for n in range(count)
        ]
        for start in range(0, count, 1000):
            answer = client.ingest(events[start : start + 1000])
            assert answer.status == 200, answer
            late = sum(1 for result in answer.json()["results"] if result.get("late"))
            assert late == (0 if ts is None else len(events[start : start + 1000]))


def total(client: Client) -> Fraction:
    """What counts, over all customers."""
    found = Fraction(0)
    for n in range(CUSTOMERS):
        path = f"/v1/usage/current?tenantId=acme&customerRef=c{n}&numbers=string"
        (metric,) = client.get(path).json()["metrics"]
        found += Fraction(metric["current"])
    return found


def cut_short(
    server: Server, path: str, body: dict[str, Any], delay_seconds: float
) -> Answer | None:
    """Send a request and kill the server so long after; the answer, if it came first."""
    answers: list[Answer] = []

    def send() -> None:
        try:
            with server.client() as client:
                answers.append(
                    client.request("POST", path, json.dumps(TENANT | body).encode(), JSON)
                )
        except (CutOff, OSError):
            pass

    sender = threading.Thread(target=send)
    sender.start()
    time.sleep(delay_seconds)
    server.kill()
    sender.join(30)
    assert not sender.is_alive()
    return answers[0] if answers else None


@pytest.mark.parametrize("what", ["replay", "approve"])
def test_a_killed_correction_happened_whole_or_not_at_all(
    tmp_path: Path, seed: int, what: str
) -> None:
    rng = Random(seed)
    directory = tmp_path / "data"
    counted = Fraction(0)
    seen = {"before": 0, "after": 0, "answered": 0}
    made: str | None = None
    for number in range(ROUNDS):
        with running(directory, environment=SMALL) as server, server.client() as client:
            flood(client, number)
            counted += CUSTOMERS
            assert total(client) == counted
            path, body = "/v1/adjustments/approve", FLOOD
            if what == "replay":
                preview = post(client, "/v1/replay", {})
                assert preview["summary"]["foldedEvents"] == LATE
                path, body = "/v1/replay", {"mode": "apply", "expect": preview["planHash"]}
            answer = cut_short(server, path, body, rng.uniform(0, 0.025))
        with running(directory, environment=SMALL) as server, server.client() as client:
            now = total(client)
            assert now in (counted, counted + LATE), "half of it counts"
            seen["after" if now > counted else "before"] += 1
            if answer is not None:
                assert answer.status == 200, answer
                assert now == counted + LATE, "answered and lost"
                seen["answered"] += 1
            again = post(client, path, body)
            if what == "approve":
                assert again["changed"] == (0 if now > counted else CUSTOMERS)
            else:
                assert again["applied"] is True
            counted += LATE
            assert total(client) == counted
            # The same requestId in every life: the snapshot or the log knows it.
            period = datetime.now(UTC).strftime("%Y-%m-01")
            credit = {"metric": "calls", "customerRef": "c0", "periodStart": period, "delta": -1}
            credit |= {"reason": "credit", "requestId": "credit-1"}
            made_now = post(client, "/v1/adjustments", credit, 201 if made is None else 200)["id"]
            made = made or made_now
            assert made_now == made
            server.kill()
    log, damage = counted_log(directory)
    assert not damage, damage
    keys = {correction.key for correction in log.corrections.values()}
    assert sum(log.value(key, "sum") for key in keys) == counted
    assert len(log.plans) == (ROUNDS if what == "replay" else 0)
    assert [c.request_id for c in log.corrections.values() if c.request_id] == ["credit-1"]
    print(seen)
