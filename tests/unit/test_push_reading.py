"""Reading back: which acknowledged pushes prove how far Stripe's summaries have got."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from engine.actors.push_reading import PushReader
from engine.core.billing import Reading
from tests.helpers.pushing import LANE, Book, baseline, ended, view


async def test_only_a_push_that_left_later_and_still_counts_shows_how_far_summaries_have_got() -> (
    None
):
    book = Book(baseline())
    one = book.push(view(5))
    reader = PushReader(book.ledger, cast("Any", SimpleNamespace(now_us=lambda: 0)))
    reader.remember(one)
    held = "5.0"

    async def read(*_: object) -> Reading:
        return Reading(held)

    connection = cast("Any", SimpleNamespace(billing=SimpleNamespace(read=read)))
    pace = cast("Any", SimpleNamespace(reads=SimpleNamespace(take=lambda _now_us: 0)))

    async def is_visible(since_us: int) -> bool:
        return await reader._is_visible(connection, pace, LANE.account, since_us)

    assert await is_visible(one.first_sent_at_us - 1)
    assert not await is_visible(one.first_sent_at_us), "it may have been taken before"
    book.fold(ended(one, "rejected"))
    held = "0.0"
    assert not await is_visible(one.first_sent_at_us - 1), "what is gone is in no summary, ever"
