"""The anchorer: one anchor an interval while the log grows, retried when it fails, and nobody waits for it."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
import trio
import trio.testing

from engine.actors.anchorer import PUT_SECONDS_MAX, Anchorer
from engine.ports import AnchorFailed
from engine.witness.canonical import Document, Signer, is_signed, parse
from engine.witness.purposes import ANCHOR
from gateway.anchoring import anchors_in
from tests.helpers.push_place import VirtualClock
from wal.log import Head

SIGNER = Signer(bytes(range(32)))
LOG_ID = bytes(range(16))


class Kept:
    """A store that keeps, fails or hangs as it is told."""

    where = "the test"

    def __init__(self) -> None:
        self.lines: list[tuple[float, str, Document]] = []
        self.failing = False
        self.hanging = False
        self.attempts = 0

    async def put(self, line: bytes, name: str) -> None:
        self.attempts += 1
        if self.hanging:
            await trio.sleep_forever()
        if self.failing:
            raise AnchorFailed("it is full")
        self.lines.append((trio.current_time(), name, parse(line)))


class Place:
    def __init__(self, interval_seconds: float = 10) -> None:
        self.head: Head | None = None
        self.store = Kept()
        self.anchorer = Anchorer(
            self.store,
            signer=SIGNER,
            head=lambda: self.head,
            log_id=lambda: LOG_ID,
            clock=VirtualClock(),
            rng=Random(1),
            interval_us=int(interval_seconds * 1e6),
        )

    def grow(self, position: int) -> None:
        self.head = Head(position + 1, position.to_bytes(32, "big"), 0, 1)

    def positions(self) -> list[int]:
        return [document["position"] for _at, _name, document in self.store.lines]


@pytest.fixture
def place() -> Place:
    return Place()


async def test_an_anchor_says_where_the_log_ended_and_is_signed(
    place: Place, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    assert autojump_clock.current_time() < 1
    nursery.start_soon(place.anchorer.run)
    await trio.sleep(5)
    assert place.store.lines == [], "nothing is known before the meter is ready"
    place.grow(7)
    await trio.sleep(2)
    ((_at, name, document),) = place.store.lines
    assert is_signed(ANCHOR, document)
    assert (document["position"], document["epoch"]) == (7, 1)
    assert document["headHash"] == (7).to_bytes(32, "big").hex()
    assert name == f"{LOG_ID.hex()}/0000000001-00000000000000000007"
    assert document["at"].startswith("2026-10-24T10:00:0")
    nursery.cancel_scope.cancel()


async def test_there_is_one_an_interval_and_none_while_nothing_happens(
    place: Place, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(place.anchorer.run)
    for position in range(60):
        place.grow(position)
        await trio.sleep(1)
    assert len(place.store.lines) in (6, 7)
    times = [at for at, _name, _document in place.store.lines]
    assert all(later - earlier >= 10 for earlier, later in pairwise(times))
    await trio.sleep(11)
    before = len(place.store.lines)
    assert place.positions()[-1] == 59
    await trio.sleep(3_600)
    assert len(place.store.lines) == before
    assert place.anchorer.behind_us() == 0
    place.grow(60)
    await trio.sleep(2)
    assert place.positions()[-1] == 60, "what comes after a silence is anchored at once"
    assert autojump_clock.current_time() > 3_600
    nursery.cancel_scope.cancel()


async def test_what_no_anchor_covers_yet_is_told_between_two_of_them_too(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    place = Place(interval_seconds=86_400)
    nursery.start_soon(place.anchorer.run)
    place.grow(1)
    await trio.sleep(10)
    assert (place.positions(), place.anchorer.behind_us()) == ([1], 0)
    place.grow(2)
    await trio.sleep(100)
    assert 98 < place.anchorer.behind_us() / 1e6 <= 100
    assert place.positions() == [1]
    autojump_clock.jump(86_400)
    await trio.sleep(3)
    assert (place.positions(), place.anchorer.behind_us()) == ([1, 2], 0)
    nursery.cancel_scope.cancel()


async def test_what_fails_is_tried_again_with_backoff_and_shown(
    place: Place, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    assert autojump_clock.current_time() < 1
    nursery.start_soon(place.anchorer.run)
    place.store.failing = True
    place.grow(1)
    await trio.sleep(3_600)
    assert place.anchorer.last_error == "it is full"
    assert place.anchorer.failures == place.store.attempts
    assert 10 < place.store.attempts < 40, "doubled to five minutes at most"
    assert place.anchorer.behind_us() > 3_500 * 1_000_000
    place.store.failing = False
    place.grow(9)
    await trio.sleep(300)
    assert place.positions() == [9], "the newest head, not those that were missed"
    assert place.anchorer.last_error is None
    assert place.anchorer.behind_us() == 0
    nursery.cancel_scope.cancel()


async def test_a_place_that_hangs_is_given_up_and_does_not_hold_up_a_stop(
    place: Place, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.anchorer.run)
        place.store.hanging = True
        place.grow(1)
        await trio.sleep(PUT_SECONDS_MAX + 5)
        assert "gave no answer" in str(place.anchorer.last_error)
        before = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == before
    assert autojump_clock.current_time() >= PUT_SECONDS_MAX


async def test_anchors_that_were_changed_torn_or_signed_by_another_are_named(
    place: Place, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    assert autojump_clock.current_time() < 1
    from engine.witness.canonical import canonical

    nursery.start_soon(place.anchorer.run)
    for position in (3, 5, 8):
        place.grow(position)
        await trio.sleep(12)
    lines = [canonical(document) for _at, _name, document in place.store.lines]
    found = anchors_in(lines, SIGNER.public_key)
    assert [mark.position for mark in found.marks] == [3, 5, 8]
    assert found.problems == ()
    lines[1] = lines[1].replace(b'"position":5', b'"position":4')
    lines[2] = lines[2][:40]
    found = anchors_in([*lines, b""])
    assert [mark.position for mark in found.marks] == [3]
    assert [problem[:9] for problem in found.problems] == ["anchor 2 ", "anchor 3 "]
    assert "changed" in found.problems[0]
    other = anchors_in(lines[:1], "00" * 32)
    assert other.marks == ()
    assert "another key" in other.problems[0]
    nursery.cancel_scope.cancel()
