"""The hostile corpus, fast lane against stock Hypercorn, whole and cut in two at every place.

The rule behind it: the lane answers what has one reading, and refuses the rest with a 400 and the end of the connection. It
never lets bytes of one request become another, and where the network cuts a request changes nothing at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from random import Random

import pytest
import trio

from gateway.lane_head import HEAD_END
from tests.gateway.lane_corpus import corpus
from tests.gateway.lane_differences import DIFFERENCES, UNSTEADY, check, short
from tests.helpers.listening import Listening, Outcome, exchange, listening, normalised

CASES = corpus()
WHOLE = 0
"""The place of a cut that is none."""
AT_ONCE = 16
CUTS_AT_ONCE = 64
SHORT_BYTES = 2_000
"""A case up to this length is cut at every place; a longer one's inside is a run of one byte, or of one request."""
EDGE_BYTES = 20
RECEIVED_BYTES = (1 << 10, 1 << 12, 1 << 14, 1 << 15, 1 << 16, 1 << 17)
"""Where the lane's and Hypercorn's own pieces and bounds end."""
RANDOM_CUTS = 20
STOCK_PARTS = 1 if os.environ.get("CORPUS_CUTS") == "all" else 16
"""Of the cuts one in so many, others each time, is held against stock, which takes twice as long as the lane."""


async def run_all(
    server: Listening, cuts: Iterable[tuple[str, int]], at_once: int = AT_ONCE
) -> dict[tuple[str, int], Outcome]:
    """Some cases, each cut at one place, some at a time."""
    found: dict[tuple[str, int], Outcome] = {}
    slots = trio.CapacityLimiter(at_once)

    async def one(name: str, at: int) -> None:
        async with slots:
            pieces = [piece for piece in (CASES[name][:at], CASES[name][at:]) if piece]
            pause = 0.001 if at else 0.0
            outcome = await exchange(server, pieces, silence=3.0, pause=pause)
            found[name, at] = outcome._replace(data=normalised(outcome.data))

    async with trio.open_nursery() as nursery:
        for name, at in cuts:
            nursery.start_soon(one, name, at)
    return found


def places(data: bytes, rng: Random) -> list[int]:
    """Where a case is cut: everywhere, or in a long one at its edges, its bounds and some random places."""
    if len(data) <= SHORT_BYTES:
        return list(range(1, len(data)))
    end = data.find(HEAD_END)
    edges = {0, end, len(data), *RECEIVED_BYTES}
    near = {edge + step for edge in edges for step in range(-EDGE_BYTES, EDGE_BYTES + 1)}
    near |= {rng.randrange(1, len(data)) for _ in range(RANDOM_CUTS)}
    return sorted(at for at in near if 0 < at < len(data))


@pytest.mark.slow
async def test_the_lane_answers_the_corpus_as_stock_does_but_for_the_table() -> None:
    assert len(CASES) >= 150
    whole = [(name, WHOLE) for name in CASES]
    async with listening("off") as server:
        stock = await run_all(server, whole)
    async with listening("on") as server:
        lane = await run_all(server, whole)
    seen = {short(name) for name, at in whole if check(name, stock[name, at], lane[name, at])}
    assert seen == set(DIFFERENCES)


@pytest.mark.slow
async def test_where_a_case_is_cut_in_two_changes_nothing_wherever_it_is(rng: Random) -> None:
    cuts = [(name, at) for name, data in CASES.items() for at in (WHOLE, *places(data, rng))]
    async with listening("on") as server:
        lane = await run_all(server, cuts, CUTS_AT_ONCE)

    for name, at in cuts:
        if short(name) not in UNSTEADY:
            assert lane[name, at] == lane[name, WHOLE], (name, at, lane[name, at])
    some = cuts[rng.randrange(STOCK_PARTS) :: STOCK_PARTS]
    async with listening("off") as server:
        stock = await run_all(server, some, CUTS_AT_ONCE)
    for name, at in some:
        check(name, stock[name, at], lane[name, at], at)


BYTE_BY_BYTE = (
    "ingest: plain", "ingest: length 0", "ingest: keep-alive", "ingest: two lengths that differ",
    "ingest: length and chunked", "ingest: folded header", "ingest: bare LF after a header", "ingest: query",
    "ingest: all line ends bare", "ingest: no host", "ingest: UTF-8 in a value", "ingest: connection close", "usage",
    "usage with a wrong parameter", "a lower-case method", "SSH",
)  # fmt: skip


@pytest.mark.slow
async def test_a_request_of_packets_of_one_byte_is_answered_as_one_of_a_single_packet() -> None:
    async with listening("on") as server:
        whole = await run_all(server, [(name, WHOLE) for name in BYTE_BY_BYTE])
        slots = trio.CapacityLimiter(AT_ONCE)

        async def one(name: str) -> None:
            async with slots:
                pieces = [bytes([byte]) for byte in CASES[name]]
                found = await exchange(server, pieces, silence=3.0, pause=0.001)
            assert found._replace(data=normalised(found.data)) == whole[name, WHOLE], name

        async with trio.open_nursery() as nursery:
            for name in BYTE_BY_BYTE:
                nursery.start_soon(one, name)
