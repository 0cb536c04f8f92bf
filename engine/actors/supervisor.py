"""The tree of lifetimes: what runs inside what, and so in which order it stops.

    log
     └ log writer                       appends, dedupes
        └ shards                        count
           └ key merger, snapshotter,   follow the log
             retention, eraser,
             period closer, indexer,
             operations, pusher,
             reconciler
              └ HTTP                    opens first and answers 503 until recovery is done

It starts from the inside (the socket) and stops from the inside: HTTP answers what is in flight, the followers are
cancelled (what they do is derived), the writer drains, the shards drain, the log closes. A bug in shard or writer
ends the process with its reason: a restart and recovery is the repair, never a guess.
It must not know HTTP, LMDB or the operating system.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Literal

import structlog
import trio

from engine.actors.as_of import AsOf
from engine.actors.eraser import Eraser
from engine.actors.group import Group
from engine.actors.indexer import Indexer
from engine.actors.key_merger import KeyMerger
from engine.actors.log_writer import LogWriter
from engine.actors.opening import open_log
from engine.actors.operations import OperationRunner
from engine.actors.period_closer import PeriodCloser
from engine.actors.push_desk import PushDesk
from engine.actors.push_keeping import keeping
from engine.actors.pusher import Pusher
from engine.actors.reconciler import RECON_DEFAULTS, Reconciler, ReconOptions
from engine.actors.recovery import Progress, Recovered
from engine.actors.retention import Retention
from engine.actors.shard import Shard
from engine.actors.snapshotter import ControlState, Snapshotter
from engine.core.audit import AuditTrail
from engine.core.events import EventLimits
from engine.core.partitions import partition_of, shard_of
from engine.core.push_records import PushDecision, Role
from engine.core.push_state import PushState
from engine.core.records import ControlRecord, Genesis, PeriodClosing, SettingsChange
from engine.core.registry import Registry
from engine.core.rules import Rules
from engine.core.shard_state import MetricUsage, ShardState
from engine.core.usage import usage_at
from engine.errors import EngineError, StartRefused, Unavailable
from engine.limits import META_BYTES_MAX, PARTITIONS
from engine.ports import Appender, Billing, Clock, Ids, RunBlocking
from wal.archive import ArchiveStore
from wal.cells import CellStore
from wal.key_index import RECENT_KEYS_MAX, KeyIndex
from wal.log import Envelope, Log
from wal.runs import RunStore
from wal.snapshot import SnapshotStore

_logger = structlog.get_logger("stripemeter.engine")
Phase = Literal["recovering", "ready", "stopping", "stopped"]


@dataclass(frozen=True, kw_only=True)
class MeterOptions:
    """What the meter takes from the settings."""

    software: str
    shards: int
    lateness_us: int
    late_policy: str
    snapshot_every_events: int
    recent_keys_max: int = RECENT_KEYS_MAX
    meta_bytes_max: int = META_BYTES_MAX
    retention_days: int = 0
    """Bodies of older events in closed periods are dropped; 0: never, unless a person asks."""
    push_interval_us: int = 60_000_000
    """At most one push per target in this time."""
    reconcile: ReconOptions = RECON_DEFAULTS
    is_read_only: bool = False
    """Nothing is appended and nothing follows the log: for a look at what would be. The log may be read-only too."""
    is_indexing: bool = True
    """False: listing and history are brought up by the next start; an import is a fifth faster."""
    keeps_settings: bool = False
    """Those that change totals stay the log's: a command's environment may not be the server's, and closing is final."""
    verify: bool = False
    """Costly assertions: read every encoded group back before it is appended."""


class Meter:
    """The engine: everything between HTTP and the disk. Make one, then `run` it."""

    def __init__(
        self,
        options: MeterOptions,
        *,
        log: Log,
        runs: RunStore,
        cells: CellStore,
        snapshots: SnapshotStore,
        archives: ArchiveStore,
        clock: Clock,
        ids: Ids,
        run_blocking: RunBlocking,
        appender: Appender | None = None,
    ) -> None:
        self.options = options
        self._appender = appender
        self._billing: Mapping[Role, Billing] | None = None
        self.clock = clock
        self.ids = ids
        self.run_blocking = run_blocking
        self.log = log
        self._runs = runs
        self._cells = cells
        self._snapshots = snapshots
        self._archives = archives
        self.phase: Phase = "recovering"
        self.progress = Progress(0, log.head().next_sequence)
        self.registry, self.audit, self.push = Registry(), AuditTrail(), PushState()
        self.rules = Rules()
        self.shards: Sequence[Shard] = ()
        self.owner = [shard_of(p, options.shards) for p in range(PARTITIONS)]
        self.change_lock = trio.Lock()
        """Held from the check of a control change to its record's commit."""
        self.log_id = b""
        self._started: _Started | None = None

    def connect(self, billing: Mapping[Role, Billing]) -> None:
        """Before `run`: the ways to Stripe, live or simulated, and the shadow account. Else nothing is pushed."""
        self._billing = billing

    # The tree.

    async def run(
        self, serve: Callable[[], Awaitable[None]], on_ready: Callable[[], None] = lambda: None
    ) -> None:
        """Run until `serve` (HTTP) ends, then drain and return. `on_ready` is called once after recovery.

        Raises StartRefused when recovery can't use the directory, Fatal when the process must end.
        """
        async with trio.open_nursery() as writer_nursery, trio.open_nursery() as shard_nursery:
            async with trio.open_nursery() as followers:
                async with trio.open_nursery() as front:
                    starting = trio.CancelScope()
                    front.start_soon(self._serve, serve, starting)
                    with starting:
                        await self._start(writer_nursery, shard_nursery, followers)
                        on_ready()
                self.phase = "stopping"
                if self._started is not None:
                    await self._started.push.drain()
                followers.cancel_scope.cancel()
            if starting.cancelled_caught:  # told to stop while recovering: nothing was acknowledged
                writer_nursery.cancel_scope.cancel()
            else:
                self.started.writer.close()
                await self.started.writer.drained.wait()
                for shard in self.shards:
                    shard.inbox.close()
        if self._started is not None:
            self._started.keys.close()
        self._cells.close()
        self.log.close()
        self.phase = "stopped"

    async def _serve(
        self, serve: Callable[[], Awaitable[None]], starting: trio.CancelScope
    ) -> None:
        await serve()
        starting.cancel()

    async def _start(
        self, writer_nursery: trio.Nursery, shard_nursery: trio.Nursery, followers: trio.Nursery
    ) -> None:
        recovered, keys, self.log_id = await open_log(
            self.log,
            self._runs,
            self._snapshots,
            software=self.options.software,
            settings=self._settings(),
            recent_keys_max=self.options.recent_keys_max,
            clock=self.clock,
            ids=self.ids,
            run_blocking=self.run_blocking,
            progress=self._progressed,
        )
        self.registry, self.rules = recovered.registry, recovered.rules
        self.audit, self.push = recovered.audit, recovered.push
        self.shards = self._deal(recovered)
        started = self._started = self._make_actors(keys, recovered.snapshot_position)
        writer, closer = started.writer, started.closer
        writer_nursery.start_soon(writer.run)
        for shard in self.shards:
            shard_nursery.start_soon(shard.run)
        await self._record_settings(writer)
        await closer.close_due()
        if not self.options.is_read_only:
            for actor in (started.snapshotter, started.merger, closer, started.operations):
                followers.start_soon(actor.run)
            if self.options.is_indexing:
                followers.start_soon(started.indexer.run)
            else:
                await started.indexer.wipe_if_unfit()
            if self._billing is not None:
                followers.start_soon(started.push.run)
                followers.start_soon(started.reconciler.run)
            followers.start_soon(started.retention.run)
            followers.start_soon(started.eraser.run)
        started.snapshotter.log_grew(writer.published_sequence)
        self.phase = "ready"
        _logger.info("ready", next_sequence=writer.published_sequence)

    def _make_actors(self, keys: KeyIndex, snapshot_position: int) -> _Started:
        """All of them, on the recovered state; none runs yet."""
        writer = LogWriter(
            self.log,
            keys,
            self.clock,
            self.run_blocking,
            on_published=self._published,
            on_control=self._fold_control,
            appender=self._appender,
            verify=self.options.verify,
        )
        writer.serve_shards(self.shards, self.owner)
        snapshotter = Snapshotter(
            self._snapshots,
            log_id=self.log_id,
            epoch=self.log.head().epoch,
            shards=self.shards,
            owner=self.owner,
            published_sequence=lambda: writer.published_sequence,
            control_state=self._control_state,
            run_blocking=self.run_blocking,
            every_events=self.options.snapshot_every_events,
            last_position=snapshot_position,
        )
        merger = KeyMerger(keys, self.run_blocking)
        closer = PeriodCloser(self.rules, self.clock, self._append_closing)
        indexer = Indexer(self.log, self._cells, self.log_id, self.run_blocking)
        operations = OperationRunner(
            lambda: self.registry.operations,
            writer,
            self.shards,
            clock=self.clock,
            ids=self.ids,
            limits=lambda: EventLimits(self.options.meta_bytes_max, self.registry.horizon_us),
        )
        as_of = self._past(writer)
        pusher = self._make_pusher(writer, closer)
        desk = PushDesk(pusher, self.clock)
        retention, eraser = self._keepers(writer, snapshotter, indexer, operations.asking)
        return _Started(
            writer,
            keys,
            snapshotter,
            merger,
            closer,
            indexer,
            operations,
            as_of,
            retention,
            eraser,
            pusher,
            desk,
            self._make_reconciler(pusher, desk),
        )

    def _past(self, writer: LogWriter) -> AsOf:
        return AsOf(
            self.log,
            self._snapshots,
            self.log_id,
            clock=self.clock,
            run_blocking=self.run_blocking,
            published_sequence=lambda: writer.published_sequence,
        )

    def _make_reconciler(self, pusher: Pusher, desk: PushDesk) -> Reconciler:
        return Reconciler(
            pusher,
            desk,
            registry=lambda: self.registry,
            shards=self.shards,
            clock=self.clock,
            ids=self.ids,
            options=self.options.reconcile,
        )

    def _make_pusher(self, writer: LogWriter, closer: PeriodCloser) -> Pusher:
        return Pusher(
            self.push,
            billing=self._billing or {},
            registry=lambda: self.registry,
            rules=self.rules,
            shards=self.shards,
            shard_of_customer=self.shard_of_customer,
            append=partial(writer.append_controls, in_company=True),
            clock=self.clock,
            rng=Random(self.ids.token(8)),
            log_id=self.log_id,
            epoch=self.log.head().epoch,
            interval_us=self.options.push_interval_us,
            held=lambda: closer.held_because,
            change_lock=self.change_lock,
        )

    async def _keep_pushed(
        self, tenant: str, names: dict[str, str], actor: str
    ) -> Sequence[PushDecision]:
        is_command = self._billing is None
        return await keeping(self.started.push, tenant, names, actor, is_command=is_command)

    def _keepers(
        self, writer: LogWriter, snapshotter: Snapshotter, indexer: Indexer, asking: trio.Lock
    ) -> tuple[Retention, Eraser]:
        """Those who take things out of the log: one of them at a time."""
        busy = trio.Lock()
        retention = Retention(
            log=self.log,
            writer=writer,
            archives=self._archives,
            registry=self.registry,
            rules=self.rules,
            clock=self.clock,
            ids=self.ids,
            run_blocking=self.run_blocking,
            busy=busy,
            held=lambda: self.started.closer.why_held(),  # noqa: PLW0108 - nothing is started yet
            days=self.options.retention_days,
        )
        eraser = Eraser(
            log=self.log,
            writer=writer,
            archives=self._archives,
            registry=self.registry,
            shards=self.shards,
            snapshotter=snapshotter,
            indexer=indexer,
            retention=retention,
            keeping=self._keep_pushed,
            ids=self.ids,
            run_blocking=self.run_blocking,
            busy=busy,
            asking=asking,
        )
        return retention, eraser

    def _settings(self) -> SettingsChange:
        return SettingsChange(
            lateness_us=self.options.lateness_us,
            late_policy=self.options.late_policy,
            actor="system:start",
        )

    async def _record_settings(self, writer: LogWriter) -> None:
        """Settings that change totals are records: append them if they differ from the log's last."""
        last = self.registry.settings
        if last != self._settings() and not (self.options.keeps_settings and last is not None):
            try:
                await self._append_or_suppose(writer, self._settings())
            except EngineError as error:
                raise StartRefused(f"the changed settings can't be recorded: {error}") from error

    def _deal(self, recovered: Recovered) -> list[Shard]:
        """Deal the partitions out to the shards; each gets its own copy of the rules."""
        whole = recovered.state
        saved_rules = recovered.rules.state()
        shards = []
        for number in range(self.options.shards):
            own = [p for p in range(PARTITIONS) if self.owner[p] == number]
            state = ShardState((), Rules.restore(saved_rules))
            state.adopt(whole, own)
            shards.append(Shard(number, state))
        return shards

    def _progressed(self, progress: Progress) -> None:
        self.progress = progress

    def _fold_control(self, record: ControlRecord, envelope: Envelope) -> None:
        assert not isinstance(record, Genesis), "a log has one first record"
        self.registry.fold(record)
        self.audit.fold(record, envelope.sequence, envelope.received_at_us)
        self.push.fold(record, envelope.received_at_us)
        self.rules.apply(record)

    def _published(self, group: Group, next_sequence: int) -> None:
        started = self.started
        started.merger.keys_added()
        started.snapshotter.log_grew(next_sequence)
        started.indexer.feed(group, next_sequence)
        if self._billing is not None:
            started.push.feed(group)
            started.reconciler.feed(group)

    def _control_state(self) -> ControlState:
        return ControlState(
            self.started.writer.published_sequence,
            self.registry.state(),
            self.rules.state(),
            self.audit.state(),
            self.push.state(),
        )

    async def _append_closing(self, closing: PeriodClosing) -> None:
        """Under the lock of all changes: what is planned for an open period finds it open when it is recorded."""
        async with self.change_lock:
            await self._append_or_suppose(self.started.writer, closing)

    async def _append_or_suppose(self, writer: LogWriter, record: ControlRecord) -> None:
        """Append a record of the start; read-only: fold it as if it had been."""
        if not self.options.is_read_only:
            await writer.append_control(record)
            return
        self.registry.fold(record)
        self.rules.apply(record)
        at = writer.published_sequence
        for shard in self.shards:
            shard.state.fold_control(record, sequence=at, received_at_us=self.clock.now_us())

    # What the gateway asks for.

    @property
    def started(self) -> _Started:
        """The running actors. Raises Unavailable until recovery is done and when stopping."""
        if self._started is None:
            raise Unavailable("the server is recovering; retry", retry_after_seconds=2)
        return self._started

    @property
    def taking(self) -> LogWriter:
        """Who takes accepted rows; await `Offer.settled()`, or its groups, before answering.

        Raises Unavailable when recovering or stopping.
        """
        if self.phase != "ready":
            raise Unavailable(f"the server is {self.phase}; retry", retry_after_seconds=2)
        return self.started.writer

    def gather(self) -> LogWriter | None:
        """Several events are offered in this turn of the loop; call its `commit_now` at the end. None: not started."""
        return None if self._started is None else self._started.writer.gather()

    async def append_control(self, record: ControlRecord) -> None:
        """Make a control record durable and fold it. Hold `change_lock` from the check that allows it."""
        await self.append_controls((record,))

    async def append_controls(self, records: Sequence[ControlRecord]) -> None:
        """Several at once, all or none: one decision that takes more than one record."""
        if self.phase != "ready":
            raise Unavailable(f"the server is {self.phase}; retry", retry_after_seconds=2)
        await self.started.writer.append_controls(records)

    def shard_of_customer(self, tenant: str, customer_ref: str) -> tuple[Shard, int]:
        """The shard that counts a customer, and the customer's partition."""
        partition = partition_of(tenant, customer_ref)
        return self.shards[self.owner[partition]], partition

    def usage_current(self, tenant: str, customer_ref: str, at_us: int) -> list[MetricUsage]:
        """A customer's use of every metric it used or that is mapped, in the periods that hold `at_us`.

        Everything acknowledged before the call is in it.
        """
        if self.phase == "recovering":
            raise Unavailable("the server is recovering; retry", retry_after_seconds=2)
        shard, _partition = self.shard_of_customer(tenant, customer_ref)
        return usage_at(self.registry, shard.state, tenant, customer_ref, at_us)

    def has_usage(self, tenant: str, metric: str) -> bool:
        """Whether any event of this metric was ever accepted, or is ahead of a record appended now."""
        counted = any(metric in shard.state.metrics.get(tenant, ()) for shard in self.shards)
        return counted or any(group.holds(tenant, metric) for group in self.started.writer.ahead)


@dataclass(frozen=True)
class _Started:
    """The actors of a running meter."""

    writer: LogWriter
    keys: KeyIndex
    snapshotter: Snapshotter
    merger: KeyMerger
    closer: PeriodCloser
    indexer: Indexer
    operations: OperationRunner
    as_of: AsOf
    retention: Retention
    eraser: Eraser
    push: Pusher
    pusher: PushDesk
    """What people ask of pushing."""
    reconciler: Reconciler
