"""The lane's poll on real sockets: whole requests of waiting connections, answered without a turn of the loop each."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio

from engine.actors import log_writer
from gateway import lane_poll
from tests.gateway.test_lane import BYE, collect, event, get, post, requests
from tests.helpers.listening import listening, normalised, statuses
from tests.helpers.served import ADMIN_KEY
from wal.log import Envelope

CURRENT = b"/v1/usage/current?tenantId=a&customerRef=c"


async def one_answer(stream: trio.SocketStream, request: bytes) -> bytes:
    """Ask once, alone on a connection that waits, and take the whole answer."""
    await stream.send_all(request)
    data = b""
    while True:
        with trio.move_on_after(60) as scope:
            received = await stream.receive_some(65536)
        assert not scope.cancelled_caught, f"no answer to {request[:80]!r}, only {data!r}"
        data += received
        head, found, rest = data.partition(b"\r\n\r\n")
        if not received or (found and len(rest) >= length_of(head)):
            return data


def length_of(head: bytes) -> int:
    lines = [line.partition(b": ") for line in head.lower().split(b"\r\n")]
    return next((int(value) for name, _, value in lines if name == b"content-length"), 0)


@pytest.fixture
def polled(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The starts of all answers that the poll sent itself."""
    sent: list[bytes] = []
    send = lane_poll.LanePoll._send

    def noted(self: lane_poll.LanePoll, connection: Any, data: bytes) -> None:
        sent.append(data[:12])
        send(self, connection, data)

    monkeypatch.setattr(lane_poll.LanePoll, "_send", noted)
    return sent


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], trio.Event]:
    """From its call on what was committed waits for the event."""

    def hold() -> trio.Event:
        commit, go = log_writer.LogWriter._landed, trio.Event()

        async def slow(writer: log_writer.LogWriter, envelopes: tuple[Envelope, ...]) -> None:
            await go.wait()
            await commit(writer, envelopes)

        monkeypatch.setattr(log_writer.LogWriter, "_landed", slow)
        return go

    return hold


@pytest.mark.parametrize("auth", ["off", "required"])
async def test_the_poll_answers_as_the_stock_way_to_the_byte(
    auth: str, polled: list[bytes]
) -> None:
    answers = {}
    for lane in ("on", "off"):
        async with listening(lane, auth=auth, admin_key=ADMIN_KEY) as server:
            answers[lane] = []
            for request in requests():
                async with await server.connect() as stream:
                    answers[lane].append(normalised(await one_answer(stream, request)))
    assert answers["on"] == answers["off"]
    assert len(polled) > len(requests()) // 2, "most of them are the poll's"


async def test_requests_that_follow_while_one_is_counted_are_answered_in_their_order(
    held: Callable[[], trio.Event], polled: list[bytes]
) -> None:
    async with listening("on") as server, await server.connect() as stream:
        await one_answer(stream, post([event("first")]))
        go = held()
        await stream.send_all(post([event("a")]))
        await trio.sleep(0.1)
        await stream.send_all(post([event("a")]) + get(CURRENT))
        await trio.sleep(0.1)
        go.set()
        data = b""
        while data.count(b"HTTP/1.1 ") < 3 or b'"count":2' not in data:
            with trio.fail_after(60):
                data += await stream.receive_some(65536)
        at = [data.index(part) for part in (b'"accepted":1', b'"duplicates":1', b'"count":2')]
        assert at == sorted(at)
    assert polled


@pytest.mark.parametrize(("at_once", "per_turn"), [(32, 128), (0, 1), (1000, 128)])
async def test_many_connections_share_a_commit_and_each_gets_its_own_answer(
    held: Callable[[], trio.Event], monkeypatch: pytest.MonkeyPatch, at_once: int, per_turn: int
) -> None:
    """Answered in the turn that counted them, or some in each of the turns that follow while the next ones are counted."""
    monkeypatch.setattr(lane_poll, "ANSWERS_AT_ONCE_MAX", at_once)
    monkeypatch.setattr(lane_poll, "ANSWERS_PER_TURN", per_turn)
    async with listening("on") as server:
        streams = [await server.connect() for _ in range(150)]
        await trio.sleep(0.1)
        go = held()
        for number, stream in enumerate(streams):
            if number == 100:
                await trio.sleep(0.2)
                go.set()
            await stream.send_all(post([event(f"k{number}")]))
        for number, stream in enumerate(streams):
            with trio.fail_after(60):
                data = await stream.receive_some(65536)
            assert b'{"idempotencyKey":"k%d","status":"accepted"}' % number in data
            await stream.aclose()


async def test_a_failed_commit_is_answered_503_to_everyone_who_waited(
    held: Callable[[], trio.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wal.log import LogWriteFailed

    def fail(_self: log_writer.LogWriter, _group: Any) -> Any:
        raise LogWriteFailed("the disk is gone")

    async with listening("on") as server:
        streams = [await server.connect() for _ in range(3)]
        await trio.sleep(0.1)
        go = held()
        monkeypatch.setattr(log_writer.LogWriter, "_append", fail)
        for number, stream in enumerate(streams):
            await stream.send_all(post([event(f"k{number}-{n}") for n in range(1 + number % 2)]))
        await trio.sleep(0.1)
        go.set()
        for stream in streams:
            with trio.fail_after(60):
                assert statuses(await stream.receive_some(65536)) == (503,)
            await stream.aclose()


async def test_a_defect_in_one_connection_ends_it_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = lane_poll.read_head

    def broken(head: bytes, limit: int) -> Any:
        if b"X-Broken" in head:
            raise RuntimeError("a defect")
        return read(head, limit)

    monkeypatch.setattr(lane_poll, "read_head", broken)
    async with (
        listening("on") as server,
        await server.connect() as one,
        await server.connect() as other,
    ):
        await trio.sleep(0.05)
        assert await one_answer(one, get(CURRENT, b"X-Broken: 1\r\n")) == b""
        assert statuses(await one_answer(other, post([event("k")]))) == (200,)


async def test_who_goes_while_counted_and_who_comes_after_are_not_mixed_up(
    held: Callable[[], trio.Event],
) -> None:
    async with listening("on") as server:
        gone = await server.connect()
        await trio.sleep(0.05)
        go = held()
        await gone.send_all(post([event("gone")]))
        await trio.sleep(0.05)
        await gone.aclose()
        async with await server.connect() as after:
            await after.send_all(post([event("after")]))
            await trio.sleep(0.05)
            go.set()
            with trio.fail_after(60):
                data = await after.receive_some(65536)
            assert statuses(data) == (200,)
            assert b'"after"' in data
            assert b'"gone"' not in data


async def test_a_stop_while_an_event_is_counted_answers_it_with_close(
    held: Callable[[], trio.Event],
) -> None:
    async with listening("on") as server, await server.connect() as stream:
        await one_answer(stream, post([event("first")]))
        go = held()
        await stream.send_all(post([event("last")]))
        await trio.sleep(0.1)
        server.stop.set()
        await trio.sleep(0.1)
        go.set()
        data = await collect(stream)
        assert statuses(data) == (200,)
        assert b"Connection: close\r\n" in data


async def test_a_past_whose_name_is_spelt_otherwise_is_read_like_one_that_is_not(
    polled: list[bytes],
) -> None:
    async with listening("on") as server:
        found = []
        for name in (b"asOf", b"%61sOf", b"as%4ff"):
            async with await server.connect() as stream:
                request = get(CURRENT + b"&" + name + b"=2026-01-31T00:00:00Z")
                found.append(normalised(await one_answer(stream, request)))
        assert found[0] == found[1] == found[2]
        assert not polled, "what waits for the log is Hypercorn's"


@pytest.mark.parametrize("missing", [False, True])
async def test_without_epoll_every_connection_reads_for_itself(
    missing: bool, monkeypatch: pytest.MonkeyPatch, polled: list[bytes]
) -> None:
    if missing:
        monkeypatch.delattr(select, "epoll")
    async with listening("on") as server, await server.connect() as stream:
        for number in range(3):
            answer = await one_answer(stream, post([event(f"k{number}")]))
            assert statuses(answer) == (200,)
        assert b'"count":3' in await one_answer(stream, get(CURRENT))
        await stream.send_all(BYE)
        assert statuses(await collect(stream)) == (200,)
    assert bool(polled) is not missing


async def test_a_reset_of_a_connection_that_its_own_task_serves_does_not_keep_the_poll_awake(
    held: Callable[[], trio.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = 0
    wait_readable = trio.lowlevel.wait_readable

    async def counted(what: Any) -> None:
        nonlocal waits
        waits += 1
        await wait_readable(what)

    async with listening("on") as server:
        stream = await server.connect()
        await trio.sleep(0.05)
        go = held()
        request = post([event("halves")])
        await stream.send_all(request[:-5])
        await trio.sleep(0.05)
        await stream.send_all(request[-5:])
        await trio.sleep(0.05)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()
        monkeypatch.setattr(trio.lowlevel, "wait_readable", counted)
        await trio.sleep(0.2)
        assert waits < 20, "the kernel tells of a reset again and again to whoever listens by level"
        go.set()
