"""Who reads while the index is thrown away and built again: each answer is of the whole log, never of what is left.

The indexer's threads are held at a chosen piece of work, so that forgetting falls into it every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from engine.actors import index_reader, indexer
from engine.actors.indexer import Indexer
from engine.core.listing import Listing
from engine.core.queries import HistoryResult
from engine.errors import Unavailable
from tests.helpers.event_log import run_inline
from tests.unit.test_indexer import LOG_ID, Place, check, month_of, page_of, running


class Held:
    """Runs work at once, but for the next call of one function: that waits until it is let go."""

    def __init__(self) -> None:
        self.function: Callable[..., Any] | None = None
        self.let_go = trio.Event()

    async def __call__(self, function: Any) -> Any:
        if self.function is not None and function.func is self.function:
            self.function = None
            await self.let_go.wait()
        return await run_inline(function)


def on(place: Place, held: Held) -> Indexer:
    return Indexer(place.event_log.log, place.cells, LOG_ID, held, chunk_events=20)


async def test_who_waits_for_a_chunk_while_the_index_is_forgotten_sees_the_log_and_not_nothing() -> (
    None
):
    place, held = Place(), Held()
    one = on(place, held)
    found: list[HistoryResult] = []

    async def read() -> None:
        found.append(await month_of(one))

    async with running(one), trio.open_nursery() as readers:
        place.append(to=one)
        await trio.testing.wait_all_tasks_blocked()
        held.function = indexer._united
        place.append(13, to=one)
        await trio.testing.wait_all_tasks_blocked()
        readers.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        one.forget("a customer was erased")
        held.let_go.set()
    assert [one.total_micros for one in found] == [place.total]


async def test_who_builds_a_segment_in_the_turn_in_which_the_index_is_forgotten_sees_the_log() -> (
    None
):
    place = Place()
    one = place.make()
    found: list[HistoryResult] = []

    async def read() -> None:
        found.append(await month_of(one))

    async with running(one):
        for _ in range(20):  # trio runs the tasks of a turn in no certain order
            place.append(3, to=one)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as readers:
                readers.start_soon(read)
                await trio.lowlevel.checkpoint()
                one.forget("a customer was erased")
            assert found[-1].total_micros == place.total


@pytest.mark.parametrize("asked", ["history", "listing"])
async def test_an_answer_is_not_put_together_of_the_index_before_and_the_one_after(
    asked: str,
) -> None:
    place, held = Place(), Held()
    one = on(place, held)
    found: list[int] = []

    async def read() -> None:
        try:
            if asked == "history":
                found.append((await month_of(one)).total_micros)
            else:
                found.append((await page_of(one, limit=100)).total)
        except Unavailable:
            found.append(-1)

    async with running(one), trio.open_nursery() as readers:
        for _ in range(5):  # a chunk, and more that is in none yet
            place.append(to=one)
            await trio.testing.wait_all_tasks_blocked()
        held.function = index_reader._fold_extents if asked == "history" else Listing
        readers.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        one.forget("a customer was erased")
        await trio.testing.wait_all_tasks_blocked()
        held.let_go.set()
        await trio.testing.wait_all_tasks_blocked()
        await check(one, place)
    whole = place.total if asked == "history" else len(place.event_log.logged)
    assert found == [whole]
