"""The fault proxy does what it is told, exactly: else no proof that goes through it proves anything."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.helpers.http_client import Answer, Client, CutOff
from tests.helpers.sdk_place import CONFORMANCE, ROOT, Place, ask, place

_numbers = count()


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def send(here: Place, key: str, tenant: str = "place") -> Answer:
    """One event through the proxy, on a connection of its own."""
    event = {
        "tenantId": tenant,
        "metric": "m",
        "customerRef": "c",
        "quantity": 1,
        "idempotencyKey": key,
    }
    with Client(port_of(here.proxy)) as client:
        return client.ingest([event])


def fresh() -> str:
    return f"tenant-{next(_numbers)}"


@pytest.mark.slow
def test_without_faults_a_request_passes_and_is_seen(here: Place) -> None:
    tenant = fresh()
    here.fail([])
    assert send(here, "k1", tenant).json()["accepted"] == 1
    (seen,) = here.seen()
    assert seen["path"] == "/v1/events/ingest"
    assert (seen["fault"], seen["keys"], seen["status"]) == ("pass", ["k1"], 200)
    assert here.total(tenant, "c", "m") == "1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "counted", "status"),
    [
        ("lose_answer", "1", 200),
        ("reset_midway", "1", 200),
        ("reset_before", "0", None),
        ("cut_body", "0", None),
    ],
)
def test_an_answer_that_is_lost_was_counted_only_if_it_was_forwarded(
    here: Place, kind: str, counted: str, status: int | None
) -> None:
    tenant = fresh()
    here.fail([{"kind": kind}])
    with pytest.raises((CutOff, OSError)):
        send(here, "k", tenant)
    assert here.total(tenant, "c", "m") == counted
    (seen,) = here.seen()
    assert (seen["fault"], seen["status"]) == (kind, status)
    assert seen["keys"] == ([] if kind == "cut_body" else ["k"])
    assert send(here, "k", tenant).json()["duplicates"] == int(counted)


@pytest.mark.slow
def test_a_status_is_answered_with_its_header_and_body_and_not_forwarded(here: Place) -> None:
    tenant = fresh()
    here.fail(
        [
            {"kind": "status", "status": 503, "retryAfter": "7", "times": 2},
            {"kind": "status", "status": 200, "body": "<html>"},
            {"kind": "status", "status": 429, "retryAfterDateSeconds": 2},
        ]
    )
    for _ in range(2):
        answer = send(here, "k", tenant)
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
    assert send(here, "k", tenant).body == b"<html>"
    assert send(here, "k", tenant).headers["retry-after"].endswith("GMT")
    assert here.total(tenant, "c", "m") == "0"
    assert send(here, "k", tenant).json()["accepted"] == 1


@pytest.mark.slow
def test_slow_takes_its_time_and_passes(here: Place) -> None:
    here.fail([{"kind": "slow", "seconds": 0.3}])
    began = time.monotonic()
    assert send(here, "k", fresh()).status == 200
    assert time.monotonic() - began >= 0.3


@pytest.mark.slow
def test_a_storm_of_a_seed_is_the_same_storm_again(here: Place) -> None:
    def kinds() -> list[str]:
        here.fail([])
        here.storm(seed=11, share=0.5)
        for number in range(30):
            try:
                send(here, f"storm-{number}")
            except (CutOff, OSError):
                continue
        here.calm()
        return [seen["fault"] for seen in here.seen()]

    first = kinds()
    assert first == kinds()
    assert 5 < sum(kind != "pass" for kind in first) < 25
    assert len(set(first)) > 3


@pytest.mark.slow
def test_only_ingest_meets_faults_and_other_requests_pass(here: Place) -> None:
    here.fail([{"kind": "reset_before"}])
    with Client(port_of(here.proxy)) as client:
        assert client.get("/health/ready").status == 200
        assert client.request("POST", "/v1/usage/projection", b"{}").status == 400
    assert here.seen() == []


def test_an_unknown_fault_is_refused_and_the_place_ends_with_its_input() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from fault_proxy import Book\n"
        "try: Book().script([{'kind': 'no such'}])\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(CONFORMANCE)], capture_output=True, text=True, check=True
    )
    assert "no such fault" in done.stdout


@pytest.mark.slow
def test_the_place_ends_with_its_input_and_takes_the_server_with_it() -> None:
    with place() as found:
        assert ask(f"{found.server}/health/live")["status"] == "alive"
    with pytest.raises((urllib.error.URLError, OSError)):
        ask(f"{found.server}/health/live")


def test_every_case_is_of_the_shape_that_the_page_says() -> None:
    cases: list[dict[str, Any]] = json.loads((CONFORMANCE / "cases.json").read_text())
    page = (CONFORMANCE / "README.md").read_text()
    assert len({case["name"] for case in cases}) == len(cases) > 40
    for case in cases:
        assert set(case) <= {"name", "mode", "options", "faults", "steps", "expect"}, case["name"]
        assert case["mode"] in ("direct", "buffered")
        named = [*case.get("options", {}), *case["expect"]]
        named += [step["do"] for step in case["steps"]]
        named += [fault["kind"] for fault in case.get("faults", [])]
        for name in named:
            assert f"`{name}`" in page, f"{case['name']}: {name} is not on the page"
    assert ROOT in CONFORMANCE.parents
