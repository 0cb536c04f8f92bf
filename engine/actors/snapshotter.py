"""The snapshotter: saves the state now and then, so that a start need not fold the whole log.

Rules it keeps: the control state is taken first, so its position is the lowest and a recovery that folds from there
judges every event by the rules of its time; each partition is taken by its own shard in its own turn, with its own
position; a failed snapshot costs time at the next start and nothing else. It must not know files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import structlog
import trio

from engine.actors.recovery import (
    AUDIT_SECTION,
    CONTROL_SECTION,
    PARTITION_SECTION,
    PUSH_SECTION,
    RULES_SECTION,
)
from engine.actors.shard import PartitionRequest, Shard
from engine.limits import PARTITIONS
from engine.ports import RunBlocking
from wal.snapshot import SnapshotError, SnapshotStore
from wal.snapshot_format import Section

_logger = structlog.get_logger("stripemeter.snapshot")


class ControlState(NamedTuple):
    """What the control records came to at a position, as the bytes of its sections; all taken together."""

    position: int
    registry: bytes
    rules: bytes
    audit: bytes
    push: bytes


class Snapshotter:
    """One task: woken by the log's growth, writes a snapshot every so many events."""

    def __init__(
        self,
        store: SnapshotStore,
        *,
        log_id: bytes,
        epoch: int,
        shards: Sequence[Shard],
        owner: list[int],
        published_sequence: Callable[[], int],
        control_state: Callable[[], ControlState],
        run_blocking: RunBlocking,
        every_events: int,
        last_position: int,
    ) -> None:
        self._store = store
        self._log_id = log_id
        self._epoch = epoch
        self._shards = shards
        self._owner = owner
        self._published_sequence = published_sequence
        self._control_state = control_state
        self._run_blocking = run_blocking
        self._every_events = every_events
        self._last_position = last_position
        self._due = trio.Event()
        self._one_at_a_time = trio.Lock()
        self.last_error: str | None = None

    def log_grew(self, next_sequence: int) -> None:
        """The log ends here now; cheap."""
        if next_sequence - self._last_position >= self._every_events:
            self._due.set()

    async def run(self) -> None:
        """Take snapshots when due, until cancelled."""
        while True:
            await self._due.wait()
            await self.take()
            self._due = trio.Event()

    async def renew(self) -> None:
        """Replace every snapshot there is: older ones hold what was erased. Raises SnapshotError if one stays."""
        async with self._one_at_a_time:
            older = await self._run_blocking(self._store.names)
            await self._take()
            for name in set(older) & set(await self._run_blocking(self._store.names)):
                await self._run_blocking(partial(self._store.remove, name))

    async def take(self) -> None:
        """Write one snapshot now. A failure is logged and kept in `last_error`."""
        async with self._one_at_a_time:
            await self._take()

    async def _take(self) -> None:
        control = self._control_state()
        self._last_position = position = control.position
        try:
            name = await self._write(control)
        except SnapshotError as error:
            self.last_error = str(error)
            _logger.warning("snapshot_failed", error=str(error))
            return
        self.last_error = None
        _logger.info("snapshot_written", name=name, position=position)

    async def _write(self, control: ControlState) -> str:
        position = control.position
        blocking = self._run_blocking
        writer = await blocking(partial(self._store.begin, self._log_id, self._epoch, position))
        try:
            for number, data in (
                (CONTROL_SECTION, control.registry),
                (RULES_SECTION, control.rules),
                (AUDIT_SECTION, control.audit),
                (PUSH_SECTION, control.push),
            ):
                await blocking(partial(writer.add, Section(number, position, data)))
            for partition in range(PARTITIONS):
                request = PartitionRequest(partition, trio.Event())
                await self._shards[self._owner[partition]].inbox.put(request)
                # It may have waited for room. What was published by now is ahead of it, and nothing else is.
                at = self._published_sequence()
                await request.done.wait()
                section = Section(PARTITION_SECTION + partition, at, request.data)
                await blocking(partial(writer.add, section))
            return await blocking(writer.commit)
        finally:
            writer.abort()
