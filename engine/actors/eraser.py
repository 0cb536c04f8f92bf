"""The eraser: takes a customer's name out of the log, the archives, the snapshots and the index.

The order: a `begin` record (from now on the customer goes by a pseudonym), then slice by slice a `replace` record that
names both digests of each part and only then the parts themselves, then the checkpoint, the archives and the snapshots
that are older, then the names in the `begin` records, then what is derived (snapshots had those too), then `end`.
Killed at any moment, the next start goes on: each step may be done twice. Rules it keeps: no key, partition or total
changes; what comes in under the name after `begin` belongs to a new customer. It must not know HTTP or files.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import structlog
import trio

from engine.actors.indexer import Indexer
from engine.actors.kept import is_dropped
from engine.actors.log_writer import LogWriter
from engine.actors.recovery import checkpoint_fold
from engine.actors.retention import Retention
from engine.actors.shard import Shard
from engine.actors.snapshotter import Snapshotter
from engine.core.erasing import (
    erased_control,
    erased_texts,
    is_operation_of,
    nameless,
    random_pseudonym,
    stable_pseudonyms,
)
from engine.core.keeping import (
    NAMES_PER_RECORD_MAX,
    PARTS_PER_RECORD_MAX,
    EraseChange,
    ErasedPart,
)
from engine.core.partitions import partition_of
from engine.core.push_records import PushDecision
from engine.core.records import PartKind, RecordError, RecordType, decode_control
from engine.core.registry import Erasure, Registry
from engine.errors import Conflict, EngineError, NotFound, Unavailable
from engine.ports import Fatal, Ids, RunBlocking
from wal.archive import ArchiveError, ArchiveStore, rewrite
from wal.envelope import digest_of
from wal.log import Log, LogError, LogStateUnknown, PartState, Replacement, StoredPart, StoredRecord
from wal.snapshot import SnapshotError

SLICE_BYTES_MAX: Final = 4 << 20
"""Of the log looked at for one slice, and so of parts replaced in one commit."""
NAMES_PER_TURN: Final = 8
"""Of pseudonyms made in one turn of the event loop: some 64 hashes each, a millisecond or two in all."""
ID_BYTES: Final = 8
_RETRY_SECONDS: Final = 30.0
_ACTOR: Final = "system:eraser"
_logger = structlog.get_logger("stripemeter.eraser")


Keeping = Callable[[str, dict[str, str], str], Awaitable[Sequence[PushDecision]]]
"""(tenant, name to pseudonym, actor) to the decisions that keep what is pushed as it was."""


class Eraser:
    """One task, and what people ask of it. It shares `busy` with retention: one of them at a time."""

    def __init__(
        self,
        *,
        log: Log,
        writer: LogWriter,
        archives: ArchiveStore,
        registry: Registry,
        shards: Sequence[Shard],
        snapshotter: Snapshotter,
        indexer: Indexer,
        retention: Retention,
        ids: Ids,
        run_blocking: RunBlocking,
        keeping: Keeping,
        busy: trio.Lock,
        asking: trio.Lock,
    ) -> None:
        """`asking` is held by whoever asks for an operation, until it is recorded."""
        self._log = log
        self._writer = writer
        self._archives = archives
        self._registry = registry
        self._shards = shards
        self._snapshotter = snapshotter
        self._indexer = indexer
        self._retention = retention
        self._ids = ids
        self._run_blocking = run_blocking
        self._keeping = keeping
        self._busy = busy
        self._asking = asking
        self._wake = trio.Event()
        self._ended = trio.Event()
        self.last_error: str | None = None
        """Why an erasure can't go on now; None while it can."""

    # What people ask for. Hold the lock of all changes.

    def customers_of(self, tenant: str) -> list[str]:
        """Every customer of a tenant that anything is known of, sorted."""
        found = set(self._registry.customers.get(tenant, ()))
        found |= self._registry.simulations.of(tenant).customers()
        for shard in self._shards:
            for table in shard.state.counters.values():
                found |= {customer for owner, _, customer in table if owner == tenant}
            for adjustments in shard.state.adjustments.values():
                found |= {key[2] for key in adjustments.counters() if key[0] == tenant}
        return sorted(found)

    def _is_known(self, tenant: str, name: str) -> bool:
        if self._registry.customer(tenant, name) is not None:
            return True
        if name in self._registry.simulations.of(tenant).customers():
            return True
        partition = partition_of(tenant, name)
        for shard in self._shards:
            state = shard.state
            if partition in state.counters:
                of_tenant = state.metrics.get(tenant, ())
                if any((tenant, metric, name) in state.counters[partition] for metric in of_tenant):
                    return True
                keys = state.adjustments[partition].counters()
                return any(key[0] == tenant and key[2] == name for key in keys)
        return False

    async def begin(
        self,
        tenant: str,
        customers: Sequence[str],
        *,
        secret: bytes | None,
        actor: str,
        request_id: str | None,
    ) -> Begun:
        """Record that customers are erased; from its return on they go by pseudonyms. The rest follows in time.

        With `secret` a pseudonym can be found again by whoever has the name and the secret. Raises NotFound if
        nothing is known of one of them, Conflict while an import or backfill may still bring the name.
        """
        names = await self._named(tenant, customers, secret)
        erasure_id = "era_" + self._ids.token(ID_BYTES).hex()
        pairs = list(names.items())
        begins = [
            EraseChange(
                action="begin",
                erasure_id=erasure_id,
                tenant_id=tenant,
                actor=actor,
                request_id=request_id,
                names=dict(pairs[start : start + NAMES_PER_RECORD_MAX]),
            )
            for start in range(0, len(pairs), NAMES_PER_RECORD_MAX)
        ]
        try:
            # Not waited for: on a failing disk it may be held for long, and an operation is open then.
            self._asking.acquire_nowait()
        except trio.WouldBlock:
            raise Conflict(
                "an operation is being recorded and may hold the customer's name: retry"
            ) from None
        try:
            kept = await self._keeping(tenant, names, actor)
            for operation in self._registry.operations.open():
                if operation.tenant_id in (tenant, ""):
                    raise Conflict(
                        f"operation {operation.id} is under way and may hold the customer's name: wait for its end"
                    )
            # With them, so that a total at Stripe never loses what the customers had used.
            await self._writer.append_controls([*kept, *begins])
        finally:
            self._asking.release()
        self._wake.set()
        return Begun(erasure_id, names)

    async def _named(
        self, tenant: str, customers: Sequence[str], secret: bytes | None
    ) -> dict[str, str]:
        """Each customer's pseudonym. Raises NotFound. A departing tenant may have very many: others run in between."""
        names: dict[str, str] = {}
        for number, name in enumerate(customers, 1):
            if not self._is_known(tenant, name):
                raise NotFound(
                    f"nothing is known of customer {name!r}: it was erased, or never there"
                )
            names[name] = self._pseudonym(tenant, name, secret)
            if number % NAMES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        if not names:
            raise NotFound("nothing is known of any customer: it was erased, or never there")
        return names

    def _pseudonym(self, tenant: str, name: str, secret: bytes | None) -> str:
        if secret is None:
            return random_pseudonym(tenant, name, self._ids.token)
        return next(
            p for p in stable_pseudonyms(tenant, name, secret) if not self._is_known(tenant, p)
        )

    async def ended(self, erasure_id: str) -> None:
        """Wait until an erasure has ended. Raises Unavailable with the reason while it can't go on."""
        while erasure_id in self._registry.erasures:
            if self.last_error is not None:
                raise Unavailable(f"the erasure can't go on: {self.last_error}")
            await self._ended.wait()

    # The work.

    async def run(self) -> None:
        """Bring every erasure to its end, until cancelled."""
        while True:
            self._wake = trio.Event()
            try:
                for erasure in list(self._registry.erasures.values()):
                    await self._erase(erasure)
                self.last_error = None
            except (EngineError, LogError, RecordError, ArchiveError, SnapshotError) as error:
                if isinstance(error, Fatal):
                    raise
                self.last_error = str(error)
                _logger.warning("erasure_held_up", error=str(error))
            self._ended.set()
            self._ended = trio.Event()
            with trio.move_on_after(_RETRY_SECONDS if self.last_error else float("inf")):
                await self._wake.wait()

    async def _erase(self, erasure: Erasure) -> None:
        async with self._busy:
            if erasure.names:
                begins = await self._replace_all(erasure)
                await self._renew_checkpoint()
                await self._rewrite_archives(erasure)
                # A snapshot from before `begin` is folded on from rightly only while `begin` has the names.
                await self._snapshotter.renew()
                await self._replace(erasure, "forget", begins)
            else:  # a crash after `forget`
                await self._replace_begins(erasure)
            await self._snapshotter.renew()
            self._indexer.forget("a customer was erased")
            await self._alone(self._log.compact_at_next_open)
            await self._writer.append_control(_step(erasure, "end"))
        _logger.info("erased", erasure_id=erasure.id)

    async def _replace_all(self, erasure: Erasure) -> list[_Copy]:
        """Replace every part that names a customer, slice by slice; returns what becomes of the `begin` records."""
        active = dict(erasure.names)
        position, begins = 0, list[_Copy]()
        while active:
            found = await self._run_blocking(partial(_copies, self._log, position, erasure, active))
            await self._replace(erasure, "replace", found.copies)
            begins += found.begins
            if found.next_position == position:
                break
            position = found.next_position
        return begins

    async def _replace(self, erasure: Erasure, action: str, copies: Sequence[_Copy]) -> None:
        """Name parts with both digests, durably; then replace them."""
        for start in range(0, len(copies), PARTS_PER_RECORD_MAX):
            some = copies[start : start + PARTS_PER_RECORD_MAX]
            named = tuple(part for copy in some for part in copy.named)
            await self._writer.append_control(_step(erasure, action, named))
            replacements = [copy.replacement for copy in some]
            await self._alone(partial(self._log.replace, replacements))

    async def _replace_begins(self, erasure: Erasure) -> None:
        position = 0
        while page := await self._run_blocking(
            partial(self._log.read, position, bytes_max=SLICE_BYTES_MAX)
        ):
            begins = [copy for copy in (_begin_copy(r, erasure) for r in page) if copy is not None]
            await self._replace(erasure, "replace", begins)
            position = page[-1].next_sequence

    async def _renew_checkpoint(self) -> None:
        """The checkpoint's state holds names: write it anew, drop the old one and every unfinished one."""
        commit = self._registry.checkpoint
        if commit is not None:
            fold = await self._run_blocking(partial(checkpoint_fold, self._log, commit))
            for erasure in self._registry.erasures.values():
                tenant, names = erasure.tenant_id, erasure.names
                fold.registry.rename(tenant, names)
                fold.push.routes.rename(tenant, names)
                fold.state.rules.rename(tenant, names)
                fold.state.rename(tenant, names, sequence=0)
            await self._retention.write_checkpoint(
                fold, commit.position, commit.horizon_us, commit.archives, _ACTOR
            )
        await self._retention.drop()

    async def _rewrite_archives(self, erasure: Erasure) -> None:
        await self._run_blocking(self._archives.sweep)
        for name in await self._run_blocking(self._archives.names):
            await self._run_blocking(
                partial(rewrite, self._archives, name, partial(_nameless_record, erasure))
            )

    async def _alone(self, work: Callable[[], None]) -> None:
        try:
            await self._writer.alone_with_log(work)
        except LogStateUnknown as error:
            raise Fatal(str(error)) from error


class Begun(NamedTuple):
    """An erasure that was recorded, and what its customers go by."""

    erasure_id: str
    names: dict[str, str]


class _Copy(NamedTuple):
    """A record with other parts, and the digests to name before it is stored."""

    replacement: Replacement
    named: tuple[ErasedPart, ...]


class _Found(NamedTuple):
    copies: list[_Copy]
    begins: list[_Copy]
    next_position: int


def _step(erasure: Erasure, action: str, parts: tuple[ErasedPart, ...] = ()) -> EraseChange:
    return EraseChange(
        action=action,  # type: ignore[arg-type]
        erasure_id=erasure.id,
        tenant_id=erasure.tenant_id,
        actor=_ACTOR,
        parts=parts,
    )


def _copies(log: Log, position: int, erasure: Erasure, active: dict[str, str]) -> _Found:
    """In a thread: the copies for the next stretch of the log. Names whose `begin` is met leave `active`."""
    found = _Found([], [], position)
    for record in log.read(position, bytes_max=SLICE_BYTES_MAX):
        position = record.next_sequence
        begin = _begin_copy(record, erasure)
        if begin is not None:
            control = decode_control(record.envelope.record_type, record.parts[0].data)
            assert isinstance(control, EraseChange)
            for name in control.names:
                active.pop(name, None)
            found.begins.append(begin)
        elif (copy := _copy(record, erasure.tenant_id, active)) is not None:
            found.copies.append(copy)
    return found._replace(next_position=position)


def _copy(record: StoredRecord, tenant: str, names: dict[str, str]) -> _Copy | None:
    """The record without these names; None if it has none of them, or no body."""
    if is_dropped(record) or not names:
        return None
    parts = list(record.parts)
    if record.envelope.record_type == RecordType.EVENTS:
        for index in range(0, len(parts), 2):
            counting, texts = parts[index : index + 2]
            data = erased_texts(counting.data, texts.data, tenant, names)
            if data is not None:
                parts[index + 1] = StoredPart(texts.kind, PartState.PSEUDONYM, data)
    else:
        data = erased_control(record.envelope.record_type, parts[0].data, tenant, names)
        if data is not None:
            parts[0] = StoredPart(parts[0].kind, PartState.PSEUDONYM, data)
        if len(parts) > 1 and is_operation_of(parts[0].data, tenant):
            # What a backfill was sent, and has done: none of the tenant's is open at a `begin`. It goes whole, as
            # rows may name the customer in many ways (an escape, a doubled quote) or not at all (the body did).
            parts[1] = StoredPart(PartKind.ERASABLE, PartState.TOMBSTONE, b"")
    return _copy_of(record, tuple(parts))


def _copy_of(record: StoredRecord, parts: tuple[StoredPart, ...]) -> _Copy | None:
    named = tuple(
        ErasedPart(record.sequence, index, header.digest, digest_of(part.data))
        for index, (header, old, part) in enumerate(
            zip(record.envelope.parts, record.parts, parts, strict=True)
        )
        if part != old
    )
    return _Copy(Replacement(record.sequence, parts), named) if named else None


def _begin_copy(record: StoredRecord, erasure: Erasure) -> _Copy | None:
    """A `begin` record of this erasure without its names; None if it is another, or has none."""
    if record.envelope.record_type != RecordType.ERASE:
        return None
    control = decode_control(record.envelope.record_type, record.parts[0].data)
    assert isinstance(control, EraseChange)
    if control.erasure_id != erasure.id or control.action != "begin" or not control.names:
        return None
    data = nameless(record.parts[0].data)
    return _copy_of(record, (StoredPart(PartKind.CONTROL, PartState.PSEUDONYM, data),))


def _nameless_record(erasure: Erasure, record: StoredRecord) -> StoredRecord:
    """A record of an archive without the erasure's names."""
    copy = _copy(record, erasure.tenant_id, erasure.names)
    return record if copy is None else record._replace(parts=copy.replacement.parts)
