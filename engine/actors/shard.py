"""A shard: the task that owns some partitions' counters and folds what is committed into them.

Rules it keeps: sole owner of its state; it folds a group's work without an await in between, so that whoever reads
between two turns sees whole groups; what it is given is folded in that order, at once or in its own turn; a bug in the
fold ends the process. It must not know the log or HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

import msgspec
import trio

from engine.actors.group import Group
from engine.actors.mailbox import Mailbox
from engine.core.records import ControlRecord, TenantEvents
from engine.core.shard_state import ShardState
from engine.limits import SHARD_INBOX_MAX


@dataclass(slots=True)
class FoldWork:
    """A group's share for one shard: control records with their sequences, then (part, indexes, first sequence)."""

    group: Group
    controls: Sequence[tuple[ControlRecord, int]]
    shares: list[tuple[TenantEvents, Sequence[int], int]]


@dataclass(slots=True)
class PartitionRequest:
    """Ask for a partition's state as bytes; everything that was published before is ahead in the inbox."""

    partition: int
    done: trio.Event
    data: bytes = b""


ShardMessage = FoldWork | PartitionRequest
_encode = msgspec.msgpack.Encoder().encode
_ROWS_OF_FOUR = Struct(">BBI")
"""msgpack: an array of four, the first of which is an array with a 32-bit length."""
SLICE_ROWS: Final = 2000
"""Series of a snapshot encoded in one turn: some 3 ms. Fewer would stall the others less and keep this shard's events
waiting for more turns of theirs."""
assert SLICE_ROWS < 1 << 16, "a slice's own header has three bytes"


class Shard:
    """One shard actor. Others may read `state` between its turns, never change it."""

    def __init__(self, number: int, state: ShardState) -> None:
        self.number = number
        self.state = state
        self.inbox: Mailbox[ShardMessage] = Mailbox(SHARD_INBOX_MAX)
        self._is_waiting = False
        """For messages, with nothing of the last ones left to do."""

    def give(self, work: FoldWork, *, at_once: bool) -> None:
        """Work to fold, after all that it was given before. There is room in the inbox.

        `at_once`: now, in the caller's turn, if nothing is ahead of it. A turn of this task costs as much as the fold of
        some tens of events.
        """
        if at_once and self._is_waiting and not len(self.inbox):
            self._fold(work)
        else:
            assert self.inbox.put_nowait(work), "the writer waits for room first"

    async def run(self) -> None:
        """Serve the inbox until it is closed and drained."""
        while messages := await self._messages():
            for message in messages:
                if isinstance(message, FoldWork):
                    self._fold(message)
                else:
                    await self._encode(message)
                await trio.lowlevel.checkpoint()

    async def _messages(self) -> list[ShardMessage]:
        self._is_waiting = True
        try:
            return await self.inbox.take_all()
        finally:
            self._is_waiting = False

    async def _encode(self, request: PartitionRequest) -> None:
        """In slices, so that the others go on meanwhile; what this shard is to fold waits, so nothing moves."""
        chunks = []
        for chunk in partition_chunks(self.state, request.partition):
            chunks.append(chunk)
            await trio.lowlevel.checkpoint()
        request.data = b"".join(chunks)
        request.done.set()

    def _fold(self, work: FoldWork) -> None:
        group = work.group
        for record, sequence in work.controls:
            self.state.fold_control(record, sequence=sequence, received_at_us=group.received_at_us)
        for events, indexes, first_sequence in work.shares:
            late = self.state.fold_events(
                events,
                indexes,
                first_sequence=first_sequence,
                received_at_us=group.received_at_us,
            )
            if late:
                group.fold_returned(events, late)
        group.shard_finished()


def encode_partition(state: ShardState, partition: int) -> bytes:
    """A partition's section of a snapshot: msgpack of (rows, adjustments, marks, historic)."""
    return b"".join(partition_chunks(state, partition))


def partition_chunks(state: ShardState, partition: int) -> Iterator[bytes]:
    """The section piece by piece; a piece is some milliseconds of work, all of them together are the section."""
    yield _ROWS_OF_FOUR.pack(0x94, 0xDD, len(state.counters[partition]))
    for rows in state.partition_rows(partition, SLICE_ROWS):
        header_bytes = 1 if len(rows) < 16 else 3
        yield _encode(rows)[header_bytes:]
    for rows in state.partition_corrections(partition):
        yield _encode(rows)


def restore_partition(state: ShardState, partition: int, data: bytes, ext_hook: Any) -> None:
    """Put a section of a snapshot back. Raises msgspec.MsgspecError or ValueError on other bytes."""
    # One of an older version has no historic sums.
    rows, adjustments, marks, *rest = msgspec.msgpack.decode(data, ext_hook=ext_hook)
    state.restore_partition(partition, rows, adjustments, marks, *rest)
