"""The indexer: follows the log and keeps what makes the listing of events and the history of usage fast.

It must not know LMDB or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from engine.actors.group import Group
from engine.core.queries import EventsPage, EventsQuery, HistoryQuery, HistoryResult
from engine.errors import Unavailable
from engine.ports import RunBlocking
from wal.cells import CellStore
from wal.log import Log


class Indexer:
    """One task: fed by the writer, asked by the gateway."""

    def __init__(self, log: Log, cells: CellStore, log_id: bytes, run_blocking: RunBlocking) -> None:
        self._log = log
        self._cells = cells
        self._log_id = log_id
        self._run_blocking = run_blocking
        self.last_error: str | None = None

    def feed(self, group: Group, next_sequence: int) -> None:
        """A group is published. Cheap."""
        assert next_sequence >= group.first_sequence

    async def run(self) -> None:
        """Follow the log until cancelled."""
        await trio.sleep_forever()

    async def events(self, query: EventsQuery) -> EventsPage:
        """One page of the listing."""
        raise Unavailable(f"the index of {query.tenant} is not built yet; retry")

    async def history(
        self, query: HistoryQuery, aggregation_at: Callable[[int], str]
    ) -> HistoryResult:
        """Usage over time."""
        raise Unavailable(f"the index has no {aggregation_at(query.since_us)} yet; retry")
