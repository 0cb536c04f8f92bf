"""The log writer: dedupes events, commits groups, hands them to the shards. The one task that appends.

The order that is the product: *durable, then counted, then acknowledged*. A group is committed (fsync) in a thread
while the next one fills; only then do the shards fold it, and only then is `Group.done` set. A duplicate of an
event that is still on its way waits for that event's group, and fails with it.

No timer: a lone event commits at once; under load the group is what arrived during the last commit. The queue is
the filling group itself, bounded in events and bytes: over the bound ingest is refused, it never grows.
Turns of the loop are what a lone event costs most: who offers may start the commit in the same turn (`commit_now`),
and what one commit made durable is folded, and the next one started, in the turn that hears of it.
It must not know HTTP, nor which log is behind the port.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import trio

from engine.actors.appender import BlockingAppender, as_engine_error
from engine.actors.drafts import drafts_of
from engine.actors.group import Group, Marks, part_name
from engine.actors.shard import Shard
from engine.actors.splitting import split
from engine.core.records import ControlRecord
from engine.errors import Unavailable
from engine.limits import GROUP_PARTS_MAX, QUEUE_BYTES_MAX, QUEUE_EVENTS_MAX, WRITE_US_MAX
from engine.ports import Appender, Clock, Fatal, ResultT, RunBlocking
from wal.key_index import KeyIndex
from wal.log import Envelope, Log, LogError, LogStateUnknown
from wal.runs import IndexDamaged

ACCEPTED, DUPLICATE, CONFLICT = 0, 1, 2
_KEY, _FINGERPRINT = 5, 6  # columns of engine.core.records.Row

_ONE_ACCEPTED = bytes((ACCEPTED,))
COMPANY_SECONDS_MAX: Final = 0.005
"""What may wait for company waits so long for it."""
FOLDED_AT_ONCE_MAX: Final = 128
"""Events and control records of a group that are folded in the turn in which it is found durable: a millisecond at most. More are folded by
the shards in turns of their own."""


@dataclass(slots=True)
class Offer:
    """What became of rows offered: `verdicts[i]` about row i, `positions[i]` its index in its group's part.

    Nothing of it is true before every group in `groups` is done without an error.
    """

    part: str
    """The name of the rows' part in `own_group`: what `Group.late` knows them by."""
    verdicts: Sequence[int]
    positions: Sequence[int]
    own_group: Group | None
    groups: list[Group] = field(default_factory=list)

    @property
    def tenant(self) -> str:
        """Whose rows these are."""
        return self.part.partition("\0")[0]

    async def settled(self) -> None:
        """Wait until everything is durable and counted. Raises what made a group fail."""
        for group in self.groups:
            await group.done.wait()
            if group.error is not None:
                raise group.error


class LogWriter:
    """Owns the filling and the committing group, the key index, and the right to append."""

    def __init__(
        self,
        log: Log,
        keys: KeyIndex,
        clock: Clock,
        run_blocking: RunBlocking,
        *,
        on_published: Callable[[Group, int], None],
        on_control: Callable[[ControlRecord, Envelope], None],
        appender: Appender | None = None,
        verify: bool = False,
    ) -> None:
        """Two callbacks, each synchronous. Without an `appender` it appends by way of `run_blocking`.

        `on_control(record, envelope)` is called for each durable control record, in order, before any shard folds it;
        `on_published(group, next_sequence)` just before the group goes to the shards.
        """
        self._log = log
        self.keys = keys
        self._clock = clock
        self._run_blocking = run_blocking
        self._appender = appender or BlockingAppender(run_blocking)
        self._on_published = on_published
        self._on_control = on_control
        self._verify = verify
        self._shards: Sequence[Shard] = ()
        self._owner: list[int] = []
        self._filling = Group()
        self._committing: Group | None = None
        self._unfolded: list[Group] = []
        """Durable, but not yet counted by every shard."""
        self._due = trio.Event()
        """There is something for `_start_due` to do."""
        self._writing = trio.Semaphore(1)
        """Taken while the log is written to: it takes one writer at a time. Given from one to the next in order."""
        self._writing_since_us: int | None = None
        """When the write to the log began that is under way."""
        self._is_gathering = False
        self._closing = False
        self.drained = trio.Event()
        """Set when `run` has ended after `close`: everything taken is with the shards or failed."""
        self._index_damage: IndexDamaged | None = None
        self.published_sequence = log.head().next_sequence
        """Everything before it is with the shards."""
        self.last_error: str | None = None
        """Why the last commit failed; None after one that worked. Shown in readiness."""

    def serve_shards(self, shards: Sequence[Shard], owner: list[int]) -> None:
        """From now on commit for these shards; `owner[partition]` is a shard's number."""
        self._shards, self._owner = shards, owner

    @property
    def queued(self) -> tuple[int, int]:
        """Events and bytes that wait for the next commit."""
        return self._filling.events, self._filling.bytes

    @property
    def stuck_us(self) -> int:
        """For how long a write has been under way that takes too long; 0: there is none. Shown in readiness."""
        if self._writing_since_us is None:
            return 0
        took_us = self._clock.monotonic_us() - self._writing_since_us
        return took_us if took_us > WRITE_US_MAX else 0

    def _admit(self, events: int, size_bytes: int, part: str | None = None) -> Group:
        if self._closing:
            raise Unavailable("the server is stopping; retry on the next one")
        group = self._filling
        if group.events + events > QUEUE_EVENTS_MAX or group.bytes + size_bytes > QUEUE_BYTES_MAX:
            raise Unavailable("too many events wait for the disk; retry")
        if events and self.stuck_us:
            # Who waits for a disk that may never answer holds up its own users. What waits already may still be taken.
            raise Unavailable("the disk has not taken a write for too long; retry")
        if part is not None and len(group.names) >= GROUP_PARTS_MAX and part not in group.names:
            raise Unavailable("events of too many tenants wait for the disk; retry")
        if not self.keys.has_room(group.events + events):
            # Not written for too long (disk full, say): keys in memory must not grow without end.
            raise Unavailable("the key index can't keep up with its disk; see /health/ready")
        return group

    def _known(self, keys: Collection[bytes]) -> dict[bytes, bytes]:
        try:
            return self.keys.known(keys)
        except IndexDamaged as error:
            raise self._damaged(error) from error

    def _lookup(self, key: bytes) -> bytes | None:
        try:
            return self.keys.lookup(key)
        except IndexDamaged as error:
            raise self._damaged(error) from error

    def _damaged(self, error: IndexDamaged) -> Unavailable:
        """Never guess whether an event is new. The next start finds the damage and rebuilds from the log."""
        self._index_damage = error
        self._due.set()
        return Unavailable(f"the key index is damaged and must be rebuilt: {error}")

    def offer(
        self,
        tenant: str,
        rows: Sequence[tuple[Any, ...]],
        size_bytes: int,
        marks: Marks | None = None,
    ) -> Offer:
        """Dedupe rows (`Row` order) of one tenant and put the new ones into the filling group.

        Rows of an operation carry its `marks`, in a part of their own.
        No await between looking a key up and taking it. Raises Unavailable when the queue is full.
        """
        name = tenant if marks is None else part_name(tenant, marks.operation)
        group = self._admit(len(rows), size_bytes, name)
        if marks is not None:
            group.marks[name] = marks
        fresh = {row[_KEY]: row[_FINGERPRINT] for row in rows}
        if len(fresh) == len(rows) and self.are_all_new(fresh):
            first = group.add_rows(name, rows)
            return self._offered(name, first, fresh, size_bytes, group)
        return self._offer_one_by_one(name, rows, size_bytes, group)

    def offer_one(self, tenant: str, row: tuple[Any, ...], size_bytes: int) -> Offer:
        """`offer` for a lone row, at a third of the cost."""
        group = self._admit(1, size_bytes, tenant)
        key, committing = row[_KEY], self._committing
        if (
            key in group.keys
            or (committing is not None and key in committing.keys)
            or self._lookup(key) is not None
        ):
            return self._offer_one_by_one(tenant, (row,), size_bytes, group)
        first = group.add_rows(tenant, (row,))
        group.keys[key] = row[_FINGERPRINT]
        self._filled(group, 1, size_bytes)
        return Offer(tenant, _ONE_ACCEPTED, (first,), group, [group])

    def offer_columns(
        self,
        tenant: str,
        columns: Sequence[Sequence[Any]],
        size_bytes: int,
        marks: Marks | None = None,
    ) -> Offer:
        """`offer` for rows by column (`Row`'s order). If all keys are new, no object is made for any of the rows."""
        count = len(columns[_KEY])
        name = tenant if marks is None else part_name(tenant, marks.operation)
        group = self._admit(count, size_bytes, name)
        if marks is not None:
            group.marks[name] = marks
        fresh = dict(zip(columns[_KEY], columns[_FINGERPRINT], strict=True))
        if len(fresh) == count and self.are_all_new(fresh):
            first = group.add_columns(name, columns)
            return self._offered(name, first, fresh, size_bytes, group)
        rows = list(zip(*columns, strict=True))
        return self._offer_one_by_one(name, rows, size_bytes, group)

    def _offered(
        self, name: str, first: int, fresh: dict[bytes, bytes], size_bytes: int, group: Group
    ) -> Offer:
        """Rows that are all new lie in the group's part from index `first` on."""
        count = len(fresh)
        if group.keys:
            group.keys.update(fresh)
        else:
            group.keys = fresh
        self._filled(group, count, size_bytes)
        return Offer(name, bytes(count), range(first, first + count), group, [group])

    def are_all_new(self, fresh: dict[bytes, bytes]) -> bool:
        """Whether no event has any of these keys. Raises Unavailable when the key index is damaged."""
        committing = self._committing
        return (
            self._filling.keys.keys().isdisjoint(fresh)
            and (committing is None or committing.keys.keys().isdisjoint(fresh))
            and not self._known(fresh)
        )

    def _offer_one_by_one(
        self, name: str, rows: Sequence[tuple[Any, ...]], size_bytes: int, group: Group
    ) -> Offer:
        offer = Offer(name, verdicts := [], positions := [], None)
        waits_for: list[Group] = []
        fresh: dict[bytes, bytes] = {}
        accepted: list[tuple[Any, ...]] = []
        first = group.rows_of(name)
        for row in rows:
            key, fingerprint = row[_KEY], row[_FINGERPRINT]
            known, holder = self._find(key) if key not in fresh else (fresh[key], group)
            if known is None:
                verdicts.append(ACCEPTED)
                positions.append(first + len(accepted))
                accepted.append(row)
                fresh[key] = fingerprint
                holder = group
            else:
                same = fingerprint[: len(known)] == known
                verdicts.append(DUPLICATE if same else CONFLICT)
                positions.append(-1)
            if holder is not None and holder not in waits_for:
                waits_for.append(holder)
        if accepted:
            group.add_rows(name, accepted)
            group.keys.update(fresh)
            offer.own_group = group
            self._filled(group, len(accepted), size_bytes)
        offer.groups = waits_for
        return offer

    def _find(self, key: bytes) -> tuple[bytes | None, Group | None]:
        """(fingerprint or None, the group that still has to make it true or None)."""
        found = self._filling.keys.get(key)
        if found is not None:
            return found, self._filling
        if self._committing is not None:
            found = self._committing.keys.get(key)
            if found is not None:
                return found, self._committing
        found = self._lookup(key)
        if found is not None:
            # Durable, but perhaps not counted yet: whoever is told "duplicate" must find it in the usage.
            for group in self._unfolded:
                if key in group.keys:
                    return found, group
        return found, None

    def known_fingerprint(self, key: bytes) -> bytes | None:
        """The fingerprint, or the first half of it, of an event that has this key; None: the key is new."""
        return self._find(key)[0]

    def _filled(self, group: Group, events: int, size_bytes: int) -> None:
        if group.empty:
            group.opened_us = self._clock.monotonic_us()
        group.events += events
        group.bytes += size_bytes
        group.is_urgent = True
        self._wake()

    def _wake(self) -> None:
        """There is something to commit. While a commit is under way its end sees to that."""
        if self._committing is None and not self._is_gathering:
            self._due.set()

    async def append_control(self, record: ControlRecord) -> Group:
        """Make a control record durable and have it folded; returns its group when done. Raises like ingest."""
        return await self.append_controls((record,))

    async def append_controls(
        self, records: Sequence[ControlRecord], *, in_company: bool = False
    ) -> Group:
        """Several at once, all or none of them, in this order; nothing of another's lies between them.

        `in_company`: they may wait some milliseconds for others' commit, so that they cost none of their own.
        Who waits can't be cancelled: the records can't be called back, and what allowed them must hold until they are folded.
        """
        assert records, "there is nothing to wait for"
        group = self._admit(0, 0)
        group.controls.extend(records)
        with trio.CancelScope(shield=True):
            if in_company:
                with trio.move_on_after(COMPANY_SECONDS_MAX):
                    await group.done.wait()
            if group is self._filling and not group.is_urgent:
                group.is_urgent = True
                self._wake()
            await group.done.wait()
        if group.error is not None:
            raise group.error
        return group

    async def alone_with_log(self, work: Callable[[], ResultT]) -> ResultT:
        """Run what writes to the log in a thread, between commits; raises what it raises.

        Acknowledgements wait meanwhile: keep it short.
        """
        await self._writing.acquire()
        self._writing_since_us = self._clock.monotonic_us()
        try:
            return await self._run_blocking(work)
        finally:
            self._writing_since_us = None
            self._writing.release()

    @property
    def ahead(self) -> list[Group]:
        """Groups that are being committed or counted: what they hold comes before a control record appended now.

        The filling group is not: its control records come before its events.
        """
        return [*self._unfolded, *([self._committing] if self._committing is not None else ())]

    def close(self) -> None:
        """Take nothing more; `run` ends when what was taken is done."""
        self._closing = True
        self._due.set()

    async def run(self) -> None:
        """Commit groups until closed. Raises Fatal when the log's state is unknown."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_appends)
                await self._start_due()
                nursery.cancel_scope.cancel()
        except BaseException:
            self._give_up()
            raise
        finally:
            self._appender.close()

    def _give_up(self) -> None:
        """Nobody commits any more: who waits hears it, also those that can't be cancelled."""
        self._closing = True
        committing = () if self._committing is None else (self._committing,)
        for group in (*self._unfolded, *committing, self._filling):
            if not group.done.is_set():
                group.fail(Unavailable("the server ended before it was done; retry"))

    async def _start_due(self) -> None:
        """Start the commits that nobody started at once; until closed and drained."""
        while True:
            if self._index_damage is not None:
                raise Fatal(
                    f"the key index is damaged ({self._index_damage}); the next start rebuilds it"
                )
            if self._committing is None and self._filling.is_urgent:
                await self._writing.acquire()
                if not self._start():
                    self._writing.release()
                continue
            # What is not being committed is with the shards: that is one turn.
            if self._closing and self._committing is None and self._filling.empty:
                self.drained.set()
                return
            self._due = trio.Event()
            await self._due.wait()

    def gather(self) -> LogWriter:
        """Several things are offered in this turn of the loop, and `commit_now` is called at its end. Itself."""
        self._is_gathering = True
        return self

    def commit_now(self) -> None:
        """Start the commit of what is gathered, unless one is under way or somebody else writes to the log."""
        self._is_gathering = False
        if self._committing is not None or not self._filling.is_urgent:
            return
        try:
            self._writing.acquire_nowait()
        except trio.WouldBlock:
            self._due.set()
            return
        if not self._start():
            self._writing.release()

    def _start(self) -> bool:
        """Start a commit, with the log taken; whether there was anything to commit."""
        if self._committing is not None or self._filling.empty or self._index_damage is not None:
            return False
        group, self._filling = self._filling, Group()
        self._committing = group
        self._writing_since_us = self._clock.monotonic_us()
        self._unfolded = [g for g in self._unfolded if not g.done.is_set()]
        self._appender.start(partial(self._append, group))
        return True

    async def _follow_appends(self) -> None:
        """What follows each append, in order. Raises Fatal."""
        while True:
            try:
                envelopes = await self._appender.finished()
            except LogError as error:
                self._failed(error)
            else:
                await self._landed(envelopes)
            if self._closing:
                self._due.set()

    def _failed(self, error: LogError) -> None:
        group, self._committing = self._committing, None
        assert group is not None, "it was under way"
        self.last_error = str(error)
        group.fail(as_engine_error(error))
        if isinstance(error, LogStateUnknown):
            raise Fatal(str(error)) from error
        self._give_log_back()

    async def _landed(self, envelopes: tuple[Envelope, ...]) -> None:
        """A group is durable: have it counted, and start the next."""
        group = self._committing
        assert group is not None, "it was under way"
        # What is published is with the shards: whoever looks in between must not find half of it there.
        # One that had room may be asked for its state while another is waited for: all of them are looked at again.
        while (full := next((s for s in self._shards if s.inbox.is_full), None)) is not None:
            await full.inbox.room()
        # From here on nothing may wait or fail half-way: the events are durable.
        self.last_error = None
        next_sequence = envelopes[-1].sequence + envelopes[-1].item_count
        self.keys.add(group.keys, next_sequence)
        self._committing = None
        self._unfolded.append(group)
        for record, envelope in zip(group.controls, envelopes, strict=False):
            self._on_control(record, envelope)
        work = split(group, envelopes, self._shards, self._owner)
        self.published_sequence = next_sequence
        self._on_published(group, next_sequence)
        self._give_log_back()
        at_once = group.events + len(group.controls) <= FOLDED_AT_ONCE_MAX
        for shard, share in work:
            shard.give(share, at_once=at_once)
        if not work:
            group.finish()

    def _give_log_back(self) -> None:
        """To whoever waits for it, else to the next group."""
        self._writing_since_us = None
        self._writing.release()
        self.commit_now()

    def _append(self, group: Group) -> tuple[Envelope, ...]:
        """In a thread: encode the group and append it. The group's rows are nobody else's by now."""
        return self._log.append(drafts_of(group, self._clock.now_us(), verify=self._verify))
