"""Following the log: every event once and in order, whatever happens on the way; and what a server answers to `after`."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from engine.errors import EngineError
from gateway import event_tail
from gateway.admin_client import AdminClient, Answered
from gateway.server_errors import ServerSilent
from gateway.tailing import AWAY_SECONDS_MAX, END_OF_LOG, Tail
from tests.helpers.served import served as a_server

TAIL_SEEDS = int(os.environ.get("TAIL_SEEDS", "200"))


class FakeLog(AdminClient):
    """A server with a log that grows, and a network that follows a script; then all goes well."""

    def __init__(self, events: int, piece: int = 3) -> None:
        super().__init__("http://127.0.0.1:3000", None)
        self.events = list(range(1, events + 1))
        self.piece = piece
        self.name = "log.0"
        self.dropped_to = 0
        self.script: list[str] = []
        self.asked = 0

    def exchange(self, method: str, path: str, data: bytes | None, **_: Any) -> Answered:
        assert (method, data) == ("GET", None)
        self.asked += 1
        query = {name: texts[0] for name, texts in parse_qs(urlsplit(path).query).items()}
        assert query["format"] == "jsonl"
        after = 0 if query["after"].startswith("-") else int(query["after"])
        what = self.script.pop(0) if self.script else "well"
        if what == "silent":
            raise ServerSilent("no answer")
        if what.isdigit():
            problem = {
                "type": "t",
                "title": "t",
                "status": int(what),
                "detail": what,
                "requestId": "r",
            }
            return Answered(int(what), {}, json.dumps(problem).encode())
        end = self.events[-1] if self.events else 0
        found = [one for one in self.events if one > after][: self.piece]
        position = found[-1] if len(found) == self.piece else end
        headers = {"x-stripemeter-position": str(position), "x-stripemeter-end": str(end)}
        headers["x-stripemeter-log"] = self.name
        if after < self.dropped_to:
            headers["x-stripemeter-dropped-before"] = "2026-01-01T00:00:00.000Z"
        body = "".join(json.dumps({"sequence": one}) + "\n" for one in found)
        return Answered(200, headers, body.encode())


class World:
    """A log, who follows it, and a clock that moves by waiting alone."""

    def __init__(self, log: FakeLog, position: int | str | None = 0) -> None:
        self.log = log
        self.seconds = 0.0
        self.told: list[str] = []
        self.tail = Tail(
            log,
            {"tenantId": "acme"},
            position,
            monotonic=lambda: self.seconds,
            wait=self.wait,
            tell=self.told.append,
        )
        self.pieces: Iterator[list[bytes]] = self.tail.follow()

    def wait(self, seconds: float) -> None:
        self.seconds += seconds

    def given(self, pieces: int) -> list[int]:
        return [json.loads(line)["sequence"] for _ in range(pieces) for line in next(self.pieces)]


def test_all_that_there_is_comes_piece_by_piece_and_then_what_is_new() -> None:
    log = FakeLog(7)
    world = World(log)
    assert world.given(3) == [1, 2, 3, 4, 5, 6, 7]
    assert world.seconds == 0, "it waits only at the end"
    log.events += [8, 12]
    assert world.given(1) == [8, 12], "positions may have holes"
    assert world.given(2) == []
    assert world.tail.position == 12
    assert World(log, "-PT1H").given(3) == log.events


def test_what_retention_dropped_on_the_way_is_said_once() -> None:
    log = FakeLog(9)
    log.events, log.dropped_to = [7, 8, 9, 10, 11, 12, 13], 11
    world = World(log)
    assert world.given(4) == log.events
    [told] = world.told
    assert "dropped events before 2026-01-01" in told
    assert World(log, 12).given(1) == [13]


def test_it_begins_at_the_end_unless_it_is_told_where() -> None:
    log = FakeLog(7)
    world = World(log, None)
    assert world.given(1) == []
    log.events.append(8)
    assert world.given(1) == [8]
    assert World(log, 6).given(1) == [7, 8]
    with pytest.raises(EngineError, match="there is no 9"):
        World(log, 9).given(1)


def test_a_server_that_restarts_is_waited_for_and_nothing_is_skipped() -> None:
    log = FakeLog(2)
    world = World(log)
    assert world.given(1) == [1, 2]
    log.script = ["silent", "silent", "503", "429"]
    log.events += [3, 4]
    assert world.given(1) == [3, 4]
    assert [told.split(":")[0] for told in world.told] == [
        "waiting for the server",
        "the server is back",
    ]


def test_another_log_is_said_and_followed_from_its_end() -> None:
    log = FakeLog(9, piece=100)
    world = World(log)
    assert len(world.given(1)) == 9
    log.name, log.events = "log.1", list(range(1, 21))
    assert world.given(1) == [], "what is after position 9 in another log follows on nothing"
    assert "another log" in world.told[0]
    log.events.append(21)
    assert world.given(1) == [21]


def test_a_server_that_refuses_or_stays_away_ends_it_with_what_to_do() -> None:
    log = FakeLog(2)
    log.script = ["silent"]
    with pytest.raises(ServerSilent):
        World(log).given(1)
    log.script = ["403"]
    with pytest.raises(EngineError, match="403"):
        World(log).given(1)
    world = World(log)
    world.given(1)
    log.script = ["silent"] * 1000
    with pytest.raises(EngineError, match="--after 2"):
        world.given(1)
    assert AWAY_SECONDS_MAX <= world.seconds <= AWAY_SECONDS_MAX + 10
    log.script = []
    log.exchange = lambda *_, **__: Answered(200, {}, b"{}")  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="older server"):
        World(log).given(1)


def test_in_a_storm_every_event_comes_once_and_in_order() -> None:
    for seed in range(TAIL_SEEDS):
        rng = random.Random(seed)
        log = FakeLog(rng.randrange(10), piece=rng.randrange(1, 6))
        world = World(log, 0)
        found: list[int] = []
        log_end = 0
        for _ in range(30):
            found += world.given(1)
            for _ in range(rng.randrange(4)):
                log_end = max([log_end, *log.events]) + rng.randrange(1, 4)
                log.events.append(log_end)
            log.script = rng.choices(("silent", "503", "well", "408"), k=rng.randrange(4))
        log.script = []
        found += world.given(len(log.events) + 2)
        assert found == log.events, f"seed {seed}"


def event(number: int, **more: Any) -> dict[str, Any]:
    made = {"tenantId": "acme", "metric": "calls", "customerRef": "anna", "quantity": number}
    return {**made, "idempotencyKey": f"k{number}", **more}


async def test_a_server_gives_what_follows_a_position_to_whom_it_belongs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_server() as served:

        async def ask(after: object, **more: Any) -> tuple[list[str], int, int]:
            query = {"tenantId": "acme", "format": "jsonl", "after": str(after)} | more
            answer = await served.client.get("/v1/events", params=query)
            assert answer.status_code == 200, answer.text
            headers = answer.headers
            assert int(headers["content-length"]) == len(answer.content), "whole, or an error"
            assert headers["x-stripemeter-log"].endswith(".1")
            keys = [json.loads(line)["idempotencyKey"] for line in answer.content.splitlines()]
            return keys, int(headers["x-stripemeter-position"]), int(headers["x-stripemeter-end"])

        _, start, _ = await ask(END_OF_LOG)
        await served.ingest(*[event(number) for number in range(10)])
        await served.ingest(event(10, tenantId="other"), event(11, metric="seats"))
        await served.ingest(event(3), event(12, customerRef="bert"))
        every = [f"k{number}" for number in (*range(10), 11, 12)]
        keys, position, end = await ask(start)
        assert (keys, position) == (every, end), (
            "a duplicate is no event, another tenant's none of ours"
        )
        assert await ask(end) == ([], end, end)
        assert (await ask(end - 1))[0] == ["k12"]
        assert (await ask(start, metric="seats"))[0] == ["k11"]
        assert (await ask(start, customerRef="bert"))[0] == ["k12"]
        assert (await ask(0))[0] == every
        assert (await ask("-PT1H"))[0] == every, "before the first record everything follows"
        assert (await ask("-PT0S"))[0] == []

        # Piece by piece, a position within a record too.
        monkeypatch.setattr(event_tail, "ANSWER_BYTES_MAX", 1)
        monkeypatch.setattr(event_tail, "PAGES_MAX", 1)
        found: list[str] = []
        after = start + 4
        for _ in range(20):
            keys, after, _ = await ask(after)
            found += keys
        assert after == end
        assert found == every[4:]


@pytest.mark.parametrize("seed", range(3))
async def test_while_many_send_a_follower_misses_nothing_and_sees_nothing_twice(seed: int) -> None:
    rng = random.Random(seed)
    sent: list[str] = []
    found: list[tuple[int, str]] = []
    async with a_server() as served:

        async def send(sender: int) -> None:
            for batch in range(15):
                keys = [f"{sender}-{batch}-{one}" for one in range(rng.randrange(1, 20))]
                await served.ingest(*[event(1, idempotencyKey=key) for key in keys])
                sent.extend(keys)

        async def follow(after: int) -> int:
            query = {"tenantId": "acme", "format": "jsonl", "after": str(after)}
            answer = await served.client.get("/v1/events", params=query)
            for line in answer.content.splitlines():
                one = json.loads(line)
                found.append((one["sequence"], one["idempotencyKey"]))
            return int(answer.headers["x-stripemeter-position"])

        position = 0
        async with trio.open_nursery() as nursery:
            for sender in range(5):
                nursery.start_soon(send, sender)
            for _ in range(60):
                acknowledged = set(sent)
                position = await follow(position)
                assert acknowledged <= {key for _, key in found}, f"seed {seed}: not there yet"
        await follow(position)
    assert len(found) == len(sent), f"seed {seed}"
    assert {key for _, key in found} == set(sent), f"seed {seed}"
    assert found == sorted(found), f"seed {seed}: not in log order"


async def test_after_goes_with_json_lines_alone_and_not_with_other_orders() -> None:
    async with a_server() as served:
        for wrong in (
            {},
            {"format": "csv"},
            {"format": "jsonl", "limit": "3"},
            {"format": "jsonl", "sort": "metric"},
            {"format": "jsonl", "asOf": "3"},
            {"format": "jsonl", "after": "P1D"},
            {"format": "jsonl", "after": "x"},
        ):
            query = {"tenantId": "acme", "after": "0"} | wrong
            answer = await served.client.get("/v1/events", params=query)
            assert answer.status_code == 400, wrong
            assert answer.json()["errors"], wrong
