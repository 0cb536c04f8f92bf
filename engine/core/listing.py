"""Finds which events a page of the listing holds, in order of time, by reading as few blocks as prove it.

Rules it keeps: an event is given out only when no block that was not read can hold one before it; of two events of one
instant the log's order decides; a search that has read its share stops at what is proven and says where it stands; a
later search from there always gets further. It must not know where blocks are kept, nor read the log.

How. Each extent's blocks are disjoint in (ts, sequence), so of each extent only the next block in the walk's direction
is of interest; a heap has the nearest first. What was found and lies before the nearest unread block is proven.
Walking backwards in time is walking forwards over negated keys, here called *steps*.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.core.extents import EventFilter, Extent
from engine.core.segments import Scope
from engine.core.summaries import EVENT_BLOCK_ROWS, Key

LISTING_ROWS_MAX: Final = 4_000_000
"""Index rows that one request reads before it stops early; 20 bytes and a few nanoseconds each."""
LISTING_TOTAL_MAX: Final = 10_000
"""Up to here a total is exact."""


class Found(NamedTuple):
    """A matching event."""

    step: Key
    sequence: int
    ts_us: int
    metric: str
    source: int


class _Matches(NamedTuple):
    scopes: tuple[Scope, ...]
    scope_of_series: npt.NDArray[np.int64]
    series: npt.NDArray[np.bool_]


class Listing:
    """One search. Call `run_slice` until it is False, then read the results."""

    def __init__(
        self,
        wanted: EventFilter,
        extents: Sequence[Extent],
        *,
        descending: bool,
        after: Key | None,
        count: int,
        rows_max: int,
        kept_from: int = 0,
    ) -> None:
        """The first `count` matches after the key `after` (None: from the beginning) in the direction.

        What lies before the log position `kept_from` is in the index and no longer in the log: it matches nothing.
        """
        self._wanted = wanted
        self._kept_from = kept_from
        self._extents = [
            extent
            for extent in extents
            if wanted.may_match(extent.summary) and extent.summary.to_position > kept_from
        ]
        self._sign = -1 if descending else 1
        self._after = None if after is None else (self._sign * after[0], self._sign * after[1])
        self._count = count
        self._rows_left = rows_max
        self._next_blocks: list[tuple[Key, int, int]] = []
        """Heap of (first step in it, extent, block): the next block of each extent."""
        self._candidates: list[Found] = []
        self._matches: dict[int, _Matches | None] = {}
        self._unread: list[tuple[int, int]] | None = None
        """When the page is found: the blocks that only the total still needs."""
        self._read: set[tuple[int, int]] = set()
        self.found: list[Found] = []
        self.is_complete = True
        """False: it stopped early; what lies from `stands_at` on was not looked at."""
        self.total = 0
        self.total_is_lower_bound = False
        for index, extent in enumerate(self._extents):
            first = extent.summary.blocks - 1 if descending else 0
            self._offer(index, first)

    @property
    def stands_at(self) -> Key:
        """The key after which a later search goes on, when this one is not complete."""
        ts, sequence = self._next_blocks[0][0]
        return self._sign * ts, self._sign * (sequence - 1)

    def run_slice(self, blocks_max: int) -> bool:
        """Read some blocks; True: call again."""
        for _ in range(blocks_max):
            more = self._find_more() if self._unread is None else self._count_more()
            if not more:
                return False
        return True

    def _offer(self, index: int, block: int) -> None:
        """Put an extent's next block that may matter into the heap, from `block` on in the direction."""
        summary, wanted = self._extents[index].summary, self._wanted
        while 0 <= block < summary.blocks:
            first, last = summary.first_key(block), summary.last_key(block)
            if self._sign < 0:
                first, last = (-last[0], -last[1]), (-first[0], -first[1])
            block_start_us = int(summary.first_ts_us[block])
            block_end_us = int(summary.last_ts_us[block])
            in_time = block_end_us >= wanted.start_us and block_start_us < wanted.end_us
            if in_time and (self._after is None or last > self._after):
                if self._after is not None and first <= self._after:
                    first = (self._after[0], self._after[1] + 1)
                heapq.heappush(self._next_blocks, (first, index, block))
                return
            block += self._sign

    def _find_more(self) -> bool:
        """Give out what is proven, and read the nearest block if that was not enough."""
        nearest = self._next_blocks[0][0] if self._next_blocks else None
        while self._candidates and (nearest is None or self._candidates[0].step < nearest):
            self.found.append(heapq.heappop(self._candidates))
            if len(self.found) == self._count:
                return self._begin_counting()
        if nearest is None:
            return self._begin_counting()
        # A walk must get further each time: at most one block of each extent straddles where it stands.
        got_further = self._after is None or nearest > (self._after[0], self._after[1] + 1)
        if self._rows_left <= 0 and got_further:
            self.is_complete = False
            self.total_is_lower_bound = True
            return False
        _, index, block = heapq.heappop(self._next_blocks)
        self._take(index, block)
        if self._matches[index] is not None:
            self._offer(index, block + self._sign)
        return True

    def _begin_counting(self) -> bool:
        self._unread = []
        for index, extent in enumerate(self._extents):
            if index in self._matches and self._matches[index] is None:
                continue
            summary = extent.summary
            for block in range(summary.blocks):
                in_time = (
                    summary.last_ts_us[block] >= self._wanted.start_us
                    and summary.first_ts_us[block] < self._wanted.end_us
                )
                if in_time and (index, block) not in self._read:
                    self._unread.append((index, block))
        return self._count_more()

    def _count_more(self) -> bool:
        assert self._unread is not None
        if self.total > LISTING_TOTAL_MAX or (self._rows_left <= 0 and self._unread):
            self.total_is_lower_bound = True
            return False
        if not self._unread:
            return False
        index, block = self._unread.pop()
        if self._matches.get(index, ()) is not None:
            self.total += len(self._rows(index, block)[1])
        return bool(self._unread)

    def _rows(self, index: int, block: int) -> tuple[Any, npt.NDArray[np.intp]]:
        """(the block's events, which of them match)."""
        if index not in self._matches:
            self._matches[index] = self._matches_of(self._extents[index])
        matches = self._matches[index]
        self._read.add((index, block))
        if matches is None:
            return None, np.empty(0, np.intp)
        self._rows_left -= EVENT_BLOCK_ROWS
        events = self._extents[index].events(block)
        rows = self._wanted.rows(events, matches.series)
        if self._extents[index].summary.from_position < self._kept_from:
            rows = rows[events.sequence[rows] >= self._kept_from]
        return events, rows

    def _matches_of(self, extent: Extent) -> _Matches | None:
        scopes, series = extent.series()
        self._rows_left -= len(series.scope)
        matching = self._wanted.series(scopes, series)
        return None if matching is None else _Matches(scopes, series.scope, matching)

    def _take(self, index: int, block: int) -> None:
        """Read a block: count its matches, and keep those after where the walk began."""
        events, rows = self._rows(index, block)
        self.total += len(rows)
        matches = self._matches[index]
        if matches is None or not len(rows):
            return
        ts, sequence = self._sign * events.ts_us[rows], self._sign * events.sequence[rows]
        if self._after is not None:
            after_ts, after_sequence = self._after
            behind = (ts < after_ts) | ((ts == after_ts) & (sequence <= after_sequence))
            rows, ts, sequence = rows[~behind], ts[~behind], sequence[~behind]
        order = slice(None, None, self._sign)
        needed = slice(None, self._count - len(self.found))
        rows, ts, sequence = rows[order][needed], ts[order][needed], sequence[order][needed]
        scope_of_row = matches.scope_of_series[events.series[rows]].tolist()
        sources = events.source[rows].tolist()
        for t, s, scope, source in zip(
            ts.tolist(), sequence.tolist(), scope_of_row, sources, strict=True
        ):
            found = Found((t, s), self._sign * s, self._sign * t, matches.scopes[scope][1], source)
            heapq.heappush(self._candidates, found)
