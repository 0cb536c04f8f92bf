"""Usage as it was known: answers from the fold of the log's prefix, beside the running meter.

Rules it keeps: a position means everything up to and including it; a time means everything before the first record
received later than it; the answer is the fold of that prefix and nothing else, so it never changes. The work is done
in a worker thread in slices of some milliseconds, a few at a time, and ends with a clear refusal when it takes too
long: it must never hold up counting. It must not know HTTP.

To find a time's position the log is read once up to there; what was read is remembered page by page, so that the next
question starts where the last one ended.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, NamedTuple

import trio

from engine.actors.prefix_fold import PrefixFold, Wanted
from engine.core.explain import Explainer
from engine.core.partitions import partition_of
from engine.errors import Refused, Unavailable
from engine.ports import Clock, RunBlocking
from wal.log import Log, LogError
from wal.snapshot import SnapshotStore

AT_ONCE_MAX: Final = 2
"""Folds that run at the same time: each may take a core's share."""
WAITING_MAX: Final = 8
"""More than so many that wait are told to come back."""
SECONDS_MAX: Final = 20
"""Of one answer, without waiting for its turn; less than a connection's patience."""
_PAGE_BYTES: Final = 1 << 20


class Asked(NamedTuple):
    """What a client asks for: a position, or else an instant."""

    position: int | None
    at_us: int | None


class Prefix(NamedTuple):
    """The items at positions below `end`; the last of them was received at `at_us`, or the time asked for."""

    end: int
    at_us: int

    @property
    def position(self) -> int:
        """The last position within: asking for it gives the same prefix."""
        return self.end - 1


class TimeIndex:
    """From an instant to a position: the greatest `receivedAt` up to the end of each page read so far."""

    def __init__(self, log: Log, page_bytes: int = _PAGE_BYTES) -> None:
        self._log = log
        self.page_bytes = page_bytes
        self._ends: list[int] = []
        self._greatest_us: list[int] = []

    def search(self, at_us: int, end: int) -> TimeSearch:
        """A search for the first record received later than an instant, before `end`."""
        page = bisect_right(self._greatest_us, at_us)
        start = self._ends[page - 1] if page else 0
        return TimeSearch(self, self._log, at_us, start, end)

    def learn(self, start: int, end: int, greatest_us: int) -> None:
        """A whole page was read; it is kept if it goes on where the last one kept ended."""
        if start == (self._ends[-1] if self._ends else 0):
            before_us = self._greatest_us[-1] if self._greatest_us else greatest_us
            self._ends.append(end)
            self._greatest_us.append(max(before_us, greatest_us))


class TimeSearch:
    """Call `run_slice` until it is False; then `found` is the end of the prefix."""

    def __init__(self, index: TimeIndex, log: Log, at_us: int, start: int, end: int) -> None:
        self._index = index
        self._log = log
        self._at_us = at_us
        self._position = start
        self._end = end
        self.found = end

    def run_slice(self) -> bool:
        """Read a page; True: call again."""
        if self._position >= self._end:
            return False
        page = self._log.read(self._position, bytes_max=self._index.page_bytes)
        for record in page:
            if record.sequence >= self._end:
                return False
            if record.envelope.received_at_us > self._at_us:
                self.found = record.sequence
                return False
        if not page:
            return False
        size = sum(len(part.data) for record in page for part in record.parts)
        start, self._position = self._position, page[-1].next_sequence
        # The log's tail is read again each time: its short pages would be without number.
        if 2 * size >= self._index.page_bytes:
            greatest_us = max(record.envelope.received_at_us for record in page)
            self._index.learn(start, self._position, greatest_us)
        return True


class AsOf:
    """Answers questions about the past. One for each running meter."""

    def __init__(
        self,
        log: Log,
        snapshots: SnapshotStore,
        log_id: bytes,
        *,
        clock: Clock,
        run_blocking: RunBlocking,
        published_sequence: Callable[[], int],
    ) -> None:
        self._log = log
        self._snapshots = snapshots
        self._log_id = log_id
        self._epoch = log.head().epoch
        self._clock = clock
        self._run_blocking = run_blocking
        self._published_sequence = published_sequence
        self._times = TimeIndex(log)
        self._turns = trio.CapacityLimiter(AT_ONCE_MAX)
        self.answered = 0
        self.refused = 0
        """Those that took too long, or found too many before them."""

    @property
    def waiting(self) -> int:
        """Questions that wait for their turn."""
        return self._turns.statistics().tasks_waiting

    async def prefix(self, asked: Asked | None) -> Prefix:
        """The prefix that is meant; None: all that is acknowledged now. Raises Refused or Unavailable."""
        end = self._published_sequence()
        if asked is None:
            return Prefix(end, self._clock.now_us())
        if asked.position is not None:
            if asked.position >= end:
                message = f"must be a position of the log, which ends at {end - 1}, or a time"
                raise Refused(f"asOf {message}", (("asOf", message),))
            at_us = await self._run_blocking(partial(self._received_at, asked.position))
            return Prefix(asked.position + 1, at_us)
        assert asked.at_us is not None, "a position or an instant"
        if asked.at_us > self._clock.now_us():
            message = "must not be in the future: what will be known is not known"
            raise Refused(f"asOf {message}", (("asOf", message),))
        search = self._times.search(asked.at_us, end)
        await self._run(search.run_slice)
        if search.found == 0:
            message = "is before the log's first record: nothing was known then"
            raise Refused(f"asOf {message}", (("asOf", message),))
        return Prefix(search.found, asked.at_us)

    def _received_at(self, position: int) -> int:
        return self._log.read(position, bytes_max=1)[0].envelope.received_at_us

    async def customer(self, prefix: Prefix, tenant: str, customer_ref: str) -> PrefixFold:
        """The fold of a customer's events: its `state` and `registry` are as of the prefix. Raises as `fold`."""
        fold = PrefixFold(
            self._log,
            prefix.end,
            partitions=[partition_of(tenant, customer_ref)],
            wanted=Wanted(tenant, customer_ref),
        )
        return await self.fold(fold, from_snapshot=True)

    async def rules(self, prefix: Prefix) -> PrefixFold:
        """The fold of the control records alone. Raises as `fold`."""
        return await self.fold(PrefixFold(self._log, prefix.end, partitions=()), from_snapshot=True)

    async def series(
        self,
        prefix: Prefix,
        series: tuple[str, str, str],
        explainer: Explainer,
        ts_us_min: int,
    ) -> PrefixFold:
        """The fold of one (tenant, metric, customer) from the log's start, watched. Raises as `fold`."""
        tenant, metric, customer_ref = series
        fold = PrefixFold(
            self._log,
            prefix.end,
            partitions=[partition_of(tenant, customer_ref)],
            wanted=Wanted(tenant, customer_ref, metric, ts_us_min),
            observer=explainer,
        )
        return await self.fold(fold, from_snapshot=False)

    async def fold(self, fold: PrefixFold, *, from_snapshot: bool) -> PrefixFold:
        """The same fold, done. Raises Gone (retention), Unavailable (too long, too many, the disk)."""
        if from_snapshot:
            begin = partial(fold.start_from, self._snapshots, self._log_id, self._epoch)
            await self._run(fold.run_slice, begin)
        else:
            await self._run(fold.run_slice)
        return fold

    async def _run(
        self, run_slice: Callable[[], bool], begin: Callable[[], None] | None = None
    ) -> None:
        async with self._turn():
            deadline_us = self._clock.monotonic_us() + SECONDS_MAX * 1_000_000
            try:
                if begin is not None:
                    await self._run_blocking(begin)
                while await self._run_blocking(run_slice):
                    await trio.lowlevel.checkpoint()
                    if self._clock.monotonic_us() > deadline_us:
                        self.refused += 1
                        raise Unavailable(
                            f"this answer needs more of the log than can be folded in {SECONDS_MAX} s. Ask for a time "
                            "after the newest snapshot, or run `stripemeter export` or `stripemeter explain` on a "
                            "copy of the data directory, which have no limit",
                            retry_after_seconds=60,
                        )
            except LogError as error:
                raise Unavailable(f"the log can't be read: {error}") from error
        self.answered += 1

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self.waiting >= WAITING_MAX:
            self.refused += 1
            raise Unavailable(
                "too many questions about the past wait already; retry", retry_after_seconds=5
            )
        async with self._turns:
            yield
