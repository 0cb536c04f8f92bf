"""What clients may send to a real server: the same key in every constellation, lost answers, poison, hostile bodies.

Three promises hold for all of it: a bad body or event is a 4xx or a refusal in its own place, never a 5xx; its good
neighbour counts; what counts, counts once.
"""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest

from tests.crash.test_kill import SMALL
from tests.helpers.http_client import Answer, Client, CutOff
from tests.helpers.ledger import Ledger, assert_balanced, send_the_rest, usage_of
from tests.helpers.server import Server, running

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]
INGEST = "/v1/events/ingest"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests here; each has a tenant of its own. No request may have ended in a defect."""
    with running(tmp_path_factory.mktemp("input") / "data", environment=SMALL) as server:
        yield server
        for defect in ("request_failed", "connection_failed"):
            assert not server.events(defect)
        assert server.stop() == 0
        assert not server.complaints


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> str:
    return request.node.name[:200]


def event(tenant: str, key: str | None = "k", **fields: Any) -> dict[str, Any]:
    named = {} if key is None else {"idempotencyKey": key}
    return {
        "tenantId": tenant,
        "metric": "calls",
        "customerRef": "one",
        "quantity": 1,
        **named,
        **fields,
    }


def counted(client: Client, tenant: str, customer: str = "one") -> int:
    """Events that count for a customer, of all metrics, late ones included."""
    path = f"/v1/usage/current?tenantId={quoted(tenant)}&customerRef={quoted(customer)}"
    answer = client.get(path)
    assert answer.status == 200, answer
    return sum(metric["count"] + metric["pendingLate"] for metric in answer.json()["metrics"])


def quoted(text: str) -> str:
    return quote(text, safe="")


def statuses(answer: Answer) -> list[str]:
    assert answer.status == 200, answer
    return [result["status"] for result in answer.json()["results"]]


def test_the_same_key_twice_in_a_batch_counts_once(client: Client, tenant: str) -> None:
    answer = client.ingest([event(tenant), event(tenant), event(tenant, quantity=2)])
    assert statuses(answer) == ["accepted", "duplicate", "error"]
    assert counted(client, tenant) == 1


def test_the_same_key_in_concurrent_requests_counts_once(
    server: Server, client: Client, tenant: str
) -> None:
    found: list[str] = []
    start = threading.Barrier(8)

    def go() -> None:
        with server.client() as own:
            own.get("/health/live")
            for number in range(10):
                start.wait()
                found.extend(statuses(own.ingest([event(tenant, f"k{number}")])))

    threads = [threading.Thread(target=go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.count("accepted") == 10
    assert found.count("duplicate") == 70
    assert counted(client, tenant) == 10


def test_the_same_key_of_two_tenants_and_of_two_customers_is_not_the_same_event(
    client: Client, tenant: str
) -> None:
    other = f"{tenant}-other"
    batch = [event(tenant), event(other), event(tenant, customerRef="two")]
    assert statuses(client.ingest(batch)) == ["accepted"] * 3
    assert statuses(client.ingest(batch)) == ["duplicate"] * 3
    assert [counted(client, tenant), counted(client, other), counted(client, tenant, "two")] == [
        1
    ] * 3


def test_an_answer_that_is_lost_and_a_retry_count_once(tmp_path: Path, seed: int) -> None:
    """The connection is cut before, while and after the server answers: the client can't know, and asks again."""
    directory, ledger, rng = tmp_path / "data", Ledger(), Random(seed)
    with running(directory, environment=SMALL) as server:
        for number in range(60):
            batch = ledger.fresh(rng, rng.randint(1, 20))
            ledger.sending(batch)
            body = json.dumps({"events": [sent.wire() for sent in batch]}).encode()
            with server.client() as cut:
                if number % 4 == 3:  # within the body: it must not count in part
                    head = f"POST {INGEST} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
                    cut.send_raw(head.encode() + b"Content-Type: application/json\r\n\r\n")
                    cut.send_raw(body[: rng.randrange(len(body))])
                else:
                    cut.send("POST", INGEST, body)
                time.sleep(rng.choice((0, 0.0005, 0.003)))
            ledger.without_answer(batch)
        send_the_rest(server.port, ledger)
        with server.client() as client:
            usage = usage_of(client)
        assert server.stop() == 0
    log = assert_balanced(directory, ledger, usage)
    assert log.keys.keys() == ledger.sent.keys()


POISON: list[Any] = [
    None, 1, "x", [], {}, {"metric": "calls"},
    {"quantity": -1}, {"quantity": "1e400"}, {"quantity": "NaN"}, {"quantity": None}, {"quantity": {}},
    {"quantity": "0.0000001"}, {"quantity": 10**15}, {"quantity": True}, {"quantity": ""}, {"quantity": "\u0661"},
    {"metric": ""}, {"metric": "m" * 101}, {"metric": 5}, {"customerRef": ""}, {"customerRef": "c" * 256},
    {"customerRef": "a\0b"}, {"tenantId": "a\0b"}, {"idempotencyKey": "a\0b"}, {"resourceId": "\0"},
    {"idempotencyKey": ""}, {"idempotencyKey": "k" * 256}, {"resourceId": "r" * 256}, {"source": "moon"},
    {"ts": "yesterday"}, {"ts": "2026-01-01"}, {"ts": "2026-01-01T00:00:00"}, {"ts": 5}, {"ts": ""},
    {"ts": "2026-02-30T00:00:00Z"}, {"ts": "2026-01-01T25:00:00Z"}, {"ts": "9999-12-31T23:59:59Z"},
    {"ts": "0000-01-01T00:00:00Z"}, {"ts": "2016-12-31T23:59:61Z"}, {"ts": "2026-01-01T00:00:00+99:99"},
    {"meta": []}, {"meta": "x"}, {"meta": {"a": "b" * 5000}},
]  # fmt: skip


def test_a_poison_event_is_refused_alone_and_its_neighbours_count(
    client: Client, tenant: str
) -> None:
    for number, poison in enumerate(POISON):
        bad = event(tenant, f"bad-{number}") | poison if isinstance(poison, dict) else poison
        if poison in ({}, {"metric": "calls"}):
            bad = poison
        batch = [event(tenant, f"before-{number}"), bad, event(tenant, f"after-{number}")]
        answer = client.ingest(batch)
        assert answer.status == 200, (poison, answer)
        assert statuses(answer) == ["accepted", "error", "accepted"], (poison, answer.body)
        (error,) = answer.json()["errors"]
        assert error["index"] == 1
        assert error["error"], poison
    assert counted(client, tenant) == 2 * len(POISON)


DEEP = 100_000
RAW_VALUES = {
    "a number beyond doubles": b"1e400",
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "5000 digits": b"9" * 5000,
    "5000 decimals": b"0." + b"1" * 5000,
    "an exponent of 5000 digits": b"1e" + b"9" * 5000,
    "a lone surrogate": b'"\\ud800"',
    "invalid UTF-8": b'"\xff\xfe"',
    "an overlong NUL": b'"\xc0\x80"',
    "a raw control character": b'"\x00"',
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "cut short": b'"abc',
    "leading zero": b"01",
    "a comment": b"1/*x*/",
}
FIELDS = ("quantity", "meta", "ts", "metric", "idempotencyKey", "unknown")


def test_no_value_in_any_field_is_a_5xx_or_costs_more_than_its_request(
    client: Client, tenant: str
) -> None:
    expected = 0
    for name, value in RAW_VALUES.items():
        for field in FIELDS:
            fields = {k: json.dumps(v).encode() for k, v in event(tenant, "bad").items()}
            fields[field] = value
            bad = b"{" + b",".join(b'"%s":%s' % (k.encode(), v) for k, v in fields.items()) + b"}"
            good = json.dumps(event(tenant, f"good {name} {field}")).encode()
            answer = client.request("POST", INGEST, b'{"events":[' + good + b"," + bad + b"]}")
            assert answer.status in (200, 400), (name, field, answer)
            if answer.status == 200:
                results = statuses(answer)
                assert results[0] == "accepted", (name, field, answer.body)
                expected += results.count("accepted")
    assert counted(client, tenant) == expected
    assert expected >= len(RAW_VALUES), "hardly any good neighbour was taken"


def good_body(tenant: str, key: str = "k") -> bytes:
    return json.dumps({"events": [event(tenant, key)]}).encode()


BODIES: dict[str, tuple[bytes, dict[str, str]]] = {
    "empty": (b"", {}),
    "a list": (b"[]", {}),
    "null": (b"null", {}),
    "no events": (b"{}", {}),
    "events empty": (b'{"events":[]}', {}),
    "events null": (b'{"events":null}', {}),
    "too many events": (b'{"events":[' + b",".join([b"{}"] * 1001) + b"]}", {}),
    "cut": (good_body("t")[:-3], {}),
    "two documents": (good_body("t") * 2, {}),
    "UTF-16": (good_body("t").decode().encode("utf-16"), {}),
    "UTF-32": (good_body("t").decode().encode("utf-32"), {}),
    "deep": (b"[" * DEEP, {}),
    "deep and closed": (b'{"events":' * 5000 + b"1" + b"}" * 5000, {}),
    "not gzip": (good_body("t"), {"content-encoding": "gzip"}),
    "gzip cut": (gzip.compress(good_body("t"))[:-9], {"content-encoding": "gzip"}),
    "gzip head only": (gzip.compress(good_body("t"))[:10], {"content-encoding": "gzip"}),
    "gzip with a wrong checksum": (
        gzip.compress(good_body("t"))[:-8] + bytes(8),
        {"content-encoding": "gzip"},
    ),
    "gzip bomb": (gzip.compress(bytes(64 << 20)), {"content-encoding": "gzip"}),
    "gzip bomb of members": (gzip.compress(b" " * 4096) * 4000, {"content-encoding": "gzip"}),
    "brotli": (good_body("t"), {"content-encoding": "br"}),
    "form": (b"a=b", {"content-type": "application/x-www-form-urlencoded"}),
    "text": (good_body("t"), {"content-type": "text/plain"}),
    "XML": (b"<a/>", {"content-type": "application/xml"}),
    "too large": (b'{"events":[' + b" " * (1 << 20) + b"]}", {}),
    "a header key that is not UTF-8": (good_body("t"), {"idempotency-key": "\xff"}),
    "a header key too long": (good_body("t"), {"idempotency-key": "k" * 256}),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_can_not_be_read_is_a_4xx_that_says_what_to_do(
    server: Server, client: Client, tenant: str, name: str
) -> None:
    body, headers = BODIES[name]
    before = server.rss_bytes()
    answer = client.request("POST", INGEST, body, headers)
    assert answer.status in (400, 413, 415), answer
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status
    assert problem["detail"]
    assert server.rss_bytes() - before < 48 << 20, "the bomb went off"
    assert statuses(client.ingest([event(tenant)])) == ["accepted"]


HEAD = b"POST /v1/events/ingest HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
RAW_MESSAGES = {
    "garbage": b"\x00\xff\x16\x03\x01" * 50,
    "no end of the head": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000,
    "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: 1\r\n" * 500 + b"\r\n",
    "two lengths": HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "length and chunks": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a signed length": HEAD + b"Content-Length: +4\r\n\r\nabcd",
    "a negative chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
    "an endless chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 5000,
    "too large at once": HEAD + b"Content-Length: 9000000\r\n\r\n" + b"a" * 300_000,
    "too large in chunks": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 20,
    "garbage behind a refusal": HEAD
    + b"Content-Length: 9000000\r\n\r\n"
    + b"\x00GET\r\n\r\n" * 9000,
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "a control byte": b"GET /health HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
    "HTTP/2 without asking": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an upgrade to websocket": b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
}


@pytest.mark.parametrize("name", RAW_MESSAGES)
def test_a_message_that_is_no_http_harms_nobody_but_its_connection(
    server: Server, client: Client, tenant: str, name: str
) -> None:
    with server.client(seconds_max=1) as hostile:
        try:
            hostile.send_raw(RAW_MESSAGES[name])
            assert 400 <= hostile.answer().status < 500 or name == "an upgrade to websocket"
        except (CutOff, OSError):
            pass  # closed, or still waiting for the rest
    assert statuses(client.ingest([event(tenant)])) == ["accepted"]
    assert server.process.poll() is None


def test_what_arrives_behind_a_refusal_is_never_read(server: Server, client: Client) -> None:
    """Whether it is read depends on the moment: hence the repetition. The fixture finds a failed connection."""
    for _ in range(25):
        for body, headers in (BODIES["too large"], (b"\x00GET\r\n\r\n" * 200_000, {})):
            with server.client(seconds_max=2) as hostile, suppress(CutOff, OSError):
                assert hostile.request("POST", INGEST, body, headers).status == 413
    assert client.get("/health/ready").status == 200
    assert not server.events("connection_failed")


def test_a_defect_in_one_connection_does_not_end_the_server(tmp_path: Path) -> None:
    environment = {**SMALL, "PLANT": "failing-connection"}
    with running(tmp_path / "data", environment=environment) as server, server.client() as client:
        assert statuses(client.ingest([event("acme", "before")])) == ["accepted"]
        with server.client() as hit, pytest.raises(CutOff):
            hit.request("POST", "/v1/mappings", b"{}", {"X-Planted": "1"})
        assert server.wait_for("connection_failed")
        assert statuses(client.ingest([event("acme", "after")])) == ["accepted"]
        assert server.stop() == 0


def test_a_byte_order_mark_and_duplicate_members_have_one_meaning(
    client: Client, tenant: str
) -> None:
    """RFC 8259 lets a parser refuse the mark; of duplicate members one must win, and a retry must find the same."""
    with_mark = client.request("POST", INGEST, b"\xef\xbb\xbf" + good_body(tenant, "mark"))
    assert with_mark.status in (200, 400)
    twice = b'{"events":[{"tenantId":"%s","metric":"calls","customerRef":"one","quantity":1,"quantity":2,'
    twice = twice % tenant.encode() + b'"idempotencyKey":"twice"}]}'
    first, again = (client.request("POST", INGEST, twice) for _ in range(2))
    if first.status == 200 and statuses(first) == ["accepted"]:
        assert statuses(again) == ["duplicate"]


def test_instants_on_every_edge_fall_where_the_calendar_says(client: Client, tenant: str) -> None:
    now = datetime.now(UTC)
    month_start = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    east, west = "+14:00", "-12:00"
    local_east = (month_start + timedelta(hours=14)).strftime("%Y-%m-%dT%H:%M:%S")
    local_west = (month_start - timedelta(hours=12)).strftime("%Y-%m-%dT%H:%M:%S")
    before = (month_start - timedelta(microseconds=1)).strftime("%Y-%m-%dT%H:%M:%S.%f") + "Z"
    inside = [local_east + east, local_west + west, month_start.isoformat()]
    batch = [event(tenant, f"in-{n}", ts=ts) for n, ts in enumerate(inside)]
    batch += [
        event(tenant, "before", ts=before),
        event(tenant, "year-1", ts="0001-01-01T00:00:00Z"),
    ]
    batch += [event(tenant, "leap", ts="2016-12-31T23:59:60Z")]
    batch += [event(tenant, "soon", ts=(now + timedelta(minutes=59)).isoformat())]
    batch += [event(tenant, "too-soon", ts=(now + timedelta(minutes=62)).isoformat())]
    answer = client.ingest(batch)
    assert answer.status == 200, answer
    results = {r["idempotencyKey"]: r for r in answer.json()["results"]}
    for key in ("in-0", "in-1", "in-2", "before", "year-1", "soon"):
        assert results[key]["status"] == "accepted", results[key]
    assert results["too-soon"]["status"] == "error"
    # A leap second is a time that was; it is taken as the instant after it or refused with a reason.
    assert results["leap"]["status"] == "accepted" or results["leap"]["error"]
    again = {r["idempotencyKey"]: r["status"] for r in client.ingest(batch).json()["results"]}
    assert again == {
        key: "duplicate" if r["status"] == "accepted" else "error" for key, r in results.items()
    }
    path = f"/v1/usage/current?tenantId={quoted(tenant)}&customerRef=one"
    (metric,) = client.get(path).json()["metrics"]
    counts_now = 3 + ((now + timedelta(minutes=59)).month == now.month)
    late = sum(bool(r.get("late")) for r in results.values())
    assert metric["count"] + metric["pendingLate"] >= counts_now
    assert metric["count"] <= counts_now
    assert late >= 1, "the year 1 is long closed"


def test_names_of_255_four_byte_characters_survive_a_kill(tmp_path: Path) -> None:
    name = "\U0001f600" * 255
    wide = {"tenantId": name, "customerRef": name, "resourceId": name, "metric": "\U0001f600" * 100}
    sent = event("", name, **wide)
    for _ in range(2):
        with running(tmp_path / "data", environment=SMALL) as server, server.client() as client:
            client.ingest([sent])
            assert statuses(client.ingest([sent])) == ["duplicate"]
            assert counted(client, name, name) == 1
            server.kill()


def cloud_event(tenant: str, number: int, **fields: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": str(number),
        "source": "/tests",
        "type": "calls",
        "subject": "one",
        "tenantid": tenant,
        "data": {"quantity": 2, "region": "eu"},
        **fields,
    }


def test_cloud_events_count_once_alone_and_in_a_batch(client: Client, tenant: str) -> None:
    def post(body: Any, content_type: str) -> Answer:
        return client.request(
            "POST", INGEST, json.dumps(body).encode(), {"content-type": content_type}
        )

    one, batch = "application/cloudevents+json", "application/cloudevents-batch+json; charset=utf-8"
    assert statuses(post(cloud_event(tenant, 1), one)) == ["accepted"]
    several = [
        cloud_event(tenant, 1),
        cloud_event(tenant, 2),
        cloud_event(tenant, 3, specversion="0.3"),
        cloud_event(tenant, 4, subject=None),
        5,
        cloud_event(tenant, 6, data=[1]),
        cloud_event(tenant, 7, data=None),
    ]
    found = statuses(post(several, batch))
    assert found == ["duplicate", "accepted", "error", "error", "error", "error", "accepted"]
    assert counted(client, tenant) == 3
    for wrong in (b"", b"{", b"[" * DEEP, b"null", b"[]"):
        for content_type in (one, batch):
            answer = client.request("POST", INGEST, wrong, {"content-type": content_type})
            assert answer.status in (200, 400), answer
            assert answer.status == 400 or set(statuses(answer)) == {"error"}
