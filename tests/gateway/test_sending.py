"""Sending until there is an answer: the same keys and bytes on every try, whatever the server and the network do."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest

from engine.errors import EngineError
from gateway.admin_client import AdminClient, Answered, ServerSilent
from gateway.sending import Event, Line, Result, Sender, Unsent, event_of, lines_of

STORM_SEEDS = int(os.environ.get("SEND_SEEDS", "200"))


class FakeServer(AdminClient):
    """A server that counts each key once, behind a network that follows a script; then all goes well."""

    def __init__(self, script: list[str] | None = None, events_max: int = 1000) -> None:
        super().__init__("http://127.0.0.1:3000", None)
        self.script = script or []
        self.events_max = events_max
        self.counted: dict[str, Any] = {}
        self.bodies: list[bytes] = []
        self.sent_as: dict[str, set[bytes]] = {}
        """By line: every text that an event was sent as."""

    def exchange(self, method: str, path: str, data: bytes | None, **_: Any) -> Answered:
        assert (method, path) == ("POST", "/v1/events/ingest")
        assert data is not None
        self.bodies.append(data)
        events = json.loads(data)["events"]
        for event in events:
            text = json.dumps(event, sort_keys=True).encode()
            self.sent_as.setdefault(event["resourceId"], set()).add(text)
        what = self.script.pop(0) if self.script else "well"
        if what == "reset_before":
            raise ServerSilent("reset before it arrived")
        if what.isdigit():
            headers = {"retry-after": "3"} if what in ("429", "503") else {}
            return self._problem(int(what), headers)
        if len(events) > self.events_max:
            return self._problem(413, {})
        results = [self._take(event) for event in events]
        if what == "lose_answer":
            raise ServerSilent("reset after it arrived")
        return Answered(200, {}, json.dumps({"results": results}).encode())

    def _take(self, event: dict[str, Any]) -> dict[str, Any]:
        key = event["idempotencyKey"]
        if event["quantity"] < 0:
            return {"idempotencyKey": key, "status": "error", "error": "quantity must be 0 or more"}
        is_new = key not in self.counted
        self.counted.setdefault(key, event["quantity"])
        return {"idempotencyKey": key, "status": "accepted" if is_new else "duplicate"}

    def _problem(self, status: int, headers: dict[str, str]) -> Answered:
        body = {"type": "urn:stripemeter:problem:x", "title": "t", "status": status}
        body |= {"detail": f"status {status}", "requestId": "r"}
        return Answered(status, headers, json.dumps(body).encode())


class Waits:
    """A clock that moves by waiting alone."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waits: list[float] = []
        self.told: list[str] = []

    def wait(self, seconds: float) -> None:
        assert seconds >= 0
        self.seconds += seconds
        self.waits.append(seconds)


def sender_of(server: FakeServer, retry_seconds: float = 60, seed: int = 1) -> tuple[Sender, Waits]:
    waits = Waits()
    made = Sender(
        server,
        retry_seconds,
        monotonic=lambda: waits.seconds,
        wait=waits.wait,
        chance=random.Random(seed).random,
        on_wait=waits.told.append,
    )
    return made, waits


def events_of(count: int, prefix: str = "k") -> list[Event]:
    found = []
    for number in range(1, count + 1):
        fields = {"metric": "m", "customerRef": "c", "quantity": 1, "resourceId": str(number)}
        event = event_of(Line(number, json.dumps(fields).encode()), prefix, "acme")
        assert isinstance(event, Event)
        found.append(event)
    return found


def sent(sender: Sender, events: list[Event]) -> list[Result]:
    return [one for results in sender.send(events) for one in results]


def test_an_answer_that_was_lost_is_a_duplicate_of_itself() -> None:
    server = FakeServer(["lose_answer", "503", "reset_before"])
    sender, waits = sender_of(server)
    (result,) = sent(sender, events_of(1))
    assert (result.status, result.idempotency_key) == ("duplicate", "k:1")
    assert list(server.counted) == ["k:1"]
    assert len(set(server.bodies)) == 1, "every try sends the same bytes"
    assert len(waits.told) == 1, "it is said once that the server is away"
    assert waits.waits[1] == 3, "what Retry-After asks for"


def test_a_refusal_of_all_is_final_and_is_not_tried_again() -> None:
    for status in ("401", "403", "404", "409", "415"):
        server = FakeServer([status])
        with pytest.raises(EngineError, match=f"status {status}"):
            sent(sender_of(server)[0], events_of(2))
        assert len(server.bodies) == 1
    for status in ("408", "425", "429", "500", "502", "503", "504", "507"):
        server = FakeServer([status])
        assert [one.status for one in sent(sender_of(server)[0], events_of(1))] == ["accepted"]


def test_when_the_time_is_up_the_first_line_without_an_answer_is_named() -> None:
    server = FakeServer(["well", *["reset_before"] * 1000])
    sender, waits = sender_of(server, retry_seconds=30)
    sending = sender.send(events_of(1200))
    assert len(next(sending)) == 500
    with pytest.raises(Unsent) as caught:
        next(sending)
    assert caught.value.first_line == 501
    assert waits.seconds == pytest.approx(30), "no longer than it was told to"
    assert max(waits.waits) <= 10


def test_a_request_that_is_too_large_is_cut_until_it_fits() -> None:
    server = FakeServer(events_max=3)
    results = sent(sender_of(server)[0], events_of(100))
    assert [one.line for one in results] == list(range(1, 101)), "in order"
    assert len(server.counted) == 100
    server = FakeServer(events_max=0)
    (alone,) = sent(sender_of(server)[0], events_of(1))
    assert (alone.status, alone.error) == ("error", "status 413")


def test_a_wrong_event_never_fails_its_neighbours() -> None:
    lines = [b'{"metric":"m","quantity":1,"resourceId":"1"}', b"[1]", b"{", b"\xff"]
    lines.append(b'{"quantity":1,"resourceId":"5","idempotencyKey":5}')
    lines.append(b'{"quantity":-1,"resourceId":"6"}')
    made = [event_of(Line(number, text), "k", None) for number, text in enumerate(lines, 1)]
    assert [one.line for one in made if isinstance(one, Result)] == [2, 3, 4, 5]
    results = sent(sender_of(FakeServer())[0], [one for one in made if isinstance(one, Event)])
    assert [(one.line, one.status) for one in results] == [(1, "accepted"), (6, "error")]


def test_a_line_keeps_its_own_key_tenant_and_every_digit() -> None:
    text = b'{"tenantId":"own","idempotencyKey":"mine","quantity":999999999999999.999999}'
    event = event_of(Line(7, text), "k", "acme")
    assert isinstance(event, Event)
    assert event.key == "mine"
    assert b"999999999999999.999999" in event.data
    assert json.loads(event.data)["tenantId"] == "own"
    null = event_of(Line(7, b'{"idempotencyKey":null}'), "k", "acme")
    assert isinstance(null, Event)
    assert json.loads(null.data) == {"idempotencyKey": "k:7", "tenantId": "acme"}


def test_lines_come_as_they_are_read_and_none_is_longer_than_an_event() -> None:
    pieces = iter([b'{"a":1}\n{"b"', b":2}\n\n", b'{"c":3}\r\n{"d":4}', b""])
    found = [
        [(line.number, line.text) for line in lines] for lines in lines_of(lambda _: next(pieces))
    ]
    assert found == [
        [(1, b'{"a":1}')],
        [(2, b'{"b":2}')],
        [(4, b'{"c":3}\r')],
        [(5, b'{"d":4}')],
    ]
    with pytest.raises(EngineError, match="line 1 is longer"):
        list(lines_of(lambda size: b"x" * size))


def test_in_a_storm_every_event_counts_once_and_is_sent_as_the_same_bytes() -> None:
    kinds = ("well", "lose_answer", "reset_before", "503", "429", "500", "408")
    for seed in range(STORM_SEEDS):
        rng = random.Random(seed)
        server = FakeServer(rng.choices(kinds, k=rng.randrange(12)), rng.choice((1, 7, 1000)))
        count = rng.randrange(1, 40)
        # Tried for as long as the storm can last.
        sender, _ = sender_of(server, retry_seconds=1000, seed=seed)
        results = sent(sender, events_of(count))
        assert len(results) == count, f"seed {seed}"
        assert len(server.counted) == count, f"seed {seed}: {len(server.counted)} of {count}"
        assert {len(texts) for texts in server.sent_as.values()} == {1}, f"seed {seed}: other bytes"
        again = sent(sender, events_of(count))
        assert {one.status for one in again} == {"duplicate"}, f"seed {seed}: not repeatable"
