"""The hostile corpus, fast lane against stock Hypercorn: every difference is in the table here, with its reason.

The rule behind the table: the lane answers what has one reading, and refuses the rest with a 400 and the end of the
connection. It never lets bytes of one request become another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random

import pytest
import trio

from engine.limits import BODY_BYTES_MAX
from gateway.lane_head import HEAD_END, Route, read_head
from tests.gateway.lane_corpus import corpus
from tests.helpers.listening import Listening, Outcome, exchange, listening, normalised

CASES = corpus()
AT_ONCE = 16
BARE = re.compile(rb"HTTP/1\.1 4\d\d \r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
"""All that h11 says when it refuses."""

AMBIGUOUS = "two readers could take it for two different messages; stock takes one of them"
MALFORMED = "not the grammar of RFC 9112; stock repairs or passes it on"
TOO_LARGE = "the head's bound; stock has it only for a head that comes in pieces"
OTHER_STATUS = "refused in both, as 400 and with a reason; h11 says 501"
DIFFERENCES: dict[str, tuple[tuple[int, ...], str]] = {
    "two equal lengths": ((400,), AMBIGUOUS),
    "a list of lengths": ((400,), AMBIGUOUS),
    "folded header": ((400,), MALFORMED),
    "folded length": ((400,), AMBIGUOUS),
    "bare LF after a header": ((400,), AMBIGUOUS),
    "all line ends bare": ((400,), AMBIGUOUS),
    "control character in a value": ((400,), MALFORMED),
    "DEL in a value": ((400,), MALFORMED),
    "version 1.2": ((400,), MALFORMED),
    "version 2.0": ((400,), MALFORMED),
    "lower case": (
        (400,),
        "methods are case-sensitive (RFC 9110, 9.1); stock turns `post` into POST",
    ),
    "a lower-case method": ((400,), "the same"),
    "a method with a digit": ((400,), "no such method is registered; stock answers 405"),
    "a header of 20,000 bytes": ((431,), TOO_LARGE),
    "coding xchunked": ((400,), OTHER_STATUS),
    "coding identity": ((400,), OTHER_STATUS),
    "coding empty": ((400,), OTHER_STATUS),
    "coding chunked twice in a line": ((400,), OTHER_STATUS),
    "coding gzip, chunked": ((400,), OTHER_STATUS),
    "coding chunked, gzip": ((400,), OTHER_STATUS),
    "coding twice": ((400,), OTHER_STATUS),
}
"""What differs from stock: the lane's statuses, and why that is wanted. By the case's name, of both targets."""

LOST_IN_STOCK: dict[str, set[tuple[int, ...]]] = {
    "length and chunked": {(400,)},
    "chunked and length": {(400,)},
    "LF hides a coding": {(400,)},
    "CR hides a coding": {(400,)},
    "150 headers": {(431,)},
    "connection close": {(400,), (415,)},
    "close in a list": {(400,), (415,)},
    "close in another header of the name": {(400,), (415,)},
    "version 1.0": {(400,), (415,)},
    "version 1.0 that stays": {(400,), (415,)},
    "usage that closes": {(200,)},
    "a websocket": {(403,), (400,), ()},
    "version 0.9": {(400,)},
    "a body of 2 MB": {(413,), (415,), ()},
}
"""Stock closes while bytes of the next request wait, and then sends its answer, a bare 400 or nothing, as it comes.

What the lane may answer is fixed here instead. Only where it gives Hypercorn the connection for good (a websocket), or
where the client still sends 2 MB, can its answer be lost too.
"""


async def run_all(server: Listening, cases: Mapping[str, bytes]) -> dict[str, Outcome]:
    """Every case whole, some at once."""
    found: dict[str, Outcome] = {}
    slots = trio.CapacityLimiter(AT_ONCE)

    async def one(name: str, data: bytes) -> None:
        async with slots:
            found[name] = await exchange(server, [data], silence=3.0)

    async with trio.open_nursery() as nursery:
        for name, data in cases.items():
            nursery.start_soon(one, name, data)
    return found


def answers(outcome: Outcome) -> list[bytes]:
    """Each answer by itself, normalised."""
    parts = re.split(rb"(?=HTTP/1\.1 \d{3} \r\n)", normalised(outcome.data))
    return [part for part in parts if part]


def same(stock: bytes, lane: bytes) -> bool:
    """Equal to the byte, or both refuse with one status and the lane says why."""
    if stock == lane:
        return True
    return (
        BARE.fullmatch(stock) is not None
        and stock[:14] == lane[:14]
        and b"\r\nconnection: close\r\n" in lane
        and b"application/problem+json" in lane
    )


@pytest.mark.slow
async def test_the_lane_answers_the_corpus_as_stock_does_but_for_the_table() -> None:
    assert len(CASES) >= 150
    async with listening("off") as server:
        stock = await run_all(server, CASES)
    async with listening("on") as server:
        lane = await run_all(server, CASES)
    seen: set[str] = set()
    for name in CASES:
        short = name.rpartition(": ")[2]
        ours, theirs = lane[name], stock[name]
        assert ours.end in ("closed", theirs.end), (name, ours)
        if short in LOST_IN_STOCK:
            assert ours.statuses in LOST_IN_STOCK[short], (name, ours)
        elif short in DIFFERENCES:
            assert ours.statuses == DIFFERENCES[short][0], (name, ours)
            assert ours.statuses != theirs.statuses, f"{name}: no difference any more"
            seen.add(short)
        else:
            assert ours.statuses == theirs.statuses, (name, theirs, ours)
            pairs = zip(answers(theirs), answers(ours), strict=True)
            assert all(same(*pair) for pair in pairs), (name, theirs.data, ours.data)
    assert seen == set(DIFFERENCES)


SPLIT = (
    "ingest: plain", "ingest: length 0", "ingest: keep-alive", "ingest: two lengths that differ",
    "ingest: length and chunked", "ingest: folded header", "ingest: bare LF after a header", "ingest: query",
    "ingest: all line ends bare", "ingest: no host", "ingest: UTF-8 in a value", "ingest: connection close", "usage",
    "usage with a wrong parameter", "a lower-case method", "SSH", "all ways in one",
)  # fmt: skip
"""Cases whose every cut is tried. Not those that Hypercorn answers before it has their body: it closes on them."""


@pytest.mark.slow
async def test_where_a_request_is_cut_into_packets_changes_nothing(rng: Random) -> None:
    async with listening("on") as server:
        slots = trio.CapacityLimiter(AT_ONCE)
        whole = await run_all(server, {name: CASES[name] for name in SPLIT})

        async def one(name: str, pieces: list[bytes]) -> None:
            async with slots:
                found = await exchange(server, pieces, silence=3.0, pause=0.001)
            expected = whole[name]
            assert found[:2] == expected[:2], (name, pieces[0], found)
            assert normalised(found.data) == normalised(expected.data), (name, pieces[0])

        async with trio.open_nursery() as nursery:
            for name in SPLIT:
                data = CASES[name]
                step = 1 if len(data) < 300 else rng.randint(2, 4)
                for at in range(1, len(data), step):
                    nursery.start_soon(one, name, [data[:at], data[at:]])
                if name != "all ways in one":
                    nursery.start_soon(one, name, [bytes([byte]) for byte in data])


CUTS_EACH = 2
HYPERCORNS = frozenset((Route.LOAN, Route.REST))


def is_the_lanes(data: bytes) -> bool:
    """Whether the lane itself answers or refuses the first request, or Hypercorn does and has all of it by its head."""
    end = data.find(HEAD_END) + len(HEAD_END)
    if end < len(HEAD_END):
        return True
    head = read_head(data[:end], BODY_BYTES_MAX)
    return head.route not in HYPERCORNS or (head.route is Route.LOAN and not head.length)


@pytest.mark.slow
async def test_any_cut_of_any_case_that_the_lane_reads_to_its_end_changes_nothing(
    rng: Random,
) -> None:
    """A few cuts of each, chosen anew each time, and those around the end of its head."""
    cases = {name: data for name, data in CASES.items() if name not in SPLIT and is_the_lanes(data)}
    assert len(cases) >= 80
    async with listening("on") as server:
        slots = trio.CapacityLimiter(AT_ONCE)
        whole = await run_all(server, cases)

        async def one(name: str, at: int) -> None:
            async with slots:
                pieces = [cases[name][:at], cases[name][at:]]
                found = await exchange(server, pieces, silence=3.0, pause=0.001)
            expected = whole[name]
            assert found[:2] == expected[:2], (name, at, found, expected)
            assert normalised(found.data) == normalised(expected.data), (name, at)

        async with trio.open_nursery() as nursery:
            for name, data in cases.items():
                end = data.find(HEAD_END)
                cuts = {rng.randrange(1, len(data)) for _ in range(CUTS_EACH)} | {end + 1, end + 3}
                for at in cuts:
                    nursery.start_soon(one, name, at)
