"""A whole meter in a seeded world: virtual time, a disk that fails, clients that retry, a power cut now and then.

One seed is one history: the scheduler, the clock, the disk's faults and latencies, the clients' choices and the
moment of every crash come from it. After each crash the meter starts again on what the disk still has; at the
end everything acknowledged is held against the raw log and the engine's state against an independent recount.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio
import trio._core._run as scheduler
import trio.testing

from engine.actors.log_writer import ACCEPTED, CONFLICT
from engine.actors.supervisor import Meter, MeterOptions
from engine.core.configured import Change, Mapping, MappingChange
from engine.core.events import EventLimits, Refusal, SentEvent, accept, key_hash
from engine.core.times import format_instant
from engine.errors import EngineError, StartRefused, Unavailable
from engine.ports import Fatal, ResultT
from tests.helpers.recount import Recount, Total, recount
from tests.sim.corrector import Corrected, assert_corrections, assert_kept, correct
from tests.sim.violation import Violation
from wal.archive import MemoryArchives
from wal.check import check_log
from wal.memory_cells import MemoryCells
from wal.memory_log import FakeDisk, MemoryLog, Operation, Verdict
from wal.memory_runs import MemoryRuns
from wal.snapshot import MemorySnapshots

DAY_US = 86_400_000_000
START_US = 1_792_800_000_000_000  # 2026-10-24: a month's end is near
TENANTS = ("acme", "umbra")
METRICS = ("calls", "seats")


@dataclass
class Fault:
    """How bad the disk is in this world."""

    error_rate: float
    full_rate: float
    head_rate: float
    latency_seconds_max: float


class SimClock:
    """Wall time that follows virtual time and may step."""

    def __init__(self) -> None:
        self.step_us = 0

    def now_us(self) -> int:
        return START_US + int(trio.current_time() * 1_000_000) + self.step_us

    def monotonic_us(self) -> int:
        return int(trio.current_time() * 1_000_000)


class SimIds:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def token(self, size_bytes: int) -> bytes:
        return self._rng.randbytes(size_bytes)


@dataclass
class Sent:
    """An event as a client keeps it for retries."""

    tenant: str
    event: SentEvent
    key_text: str

    @property
    def identity(self) -> tuple[str, str, str]:
        return (self.tenant, self.event.customer_ref, self.key_text)


@dataclass
class World:
    """Everything that outlives a crash."""

    seed: int
    disk: FakeDisk = field(default_factory=FakeDisk)
    runs: MemoryRuns = field(default_factory=MemoryRuns)
    cells: MemoryCells = field(default_factory=MemoryCells)
    snapshots: MemorySnapshots = field(default_factory=MemorySnapshots)
    archives: MemoryArchives = field(default_factory=MemoryArchives)
    acknowledged: dict[tuple[str, str, str], Sent] = field(default_factory=dict)
    sent: dict[tuple[str, str, str], Sent] = field(default_factory=dict)
    trace: list[Any] = field(default_factory=list)
    lives: int = 0
    corrected: Corrected = field(default_factory=Corrected)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.clock = SimClock()
        bad = self.rng.random() < 0.7
        self.faults = Fault(
            error_rate=self.rng.choice((0.0, 0.02, 0.15)) if bad else 0.0,
            full_rate=self.rng.choice((0.0, 0.05)) if bad else 0.0,
            head_rate=self.rng.choice((0.0, 0.01)) if bad else 0.0,
            latency_seconds_max=self.rng.choice((0.0005, 0.004, 0.5)),
        )
        self.disk.fault = self._fault
        self.calm = False

    def _fault(self, operation: Operation) -> Verdict:
        if self.calm:
            return "ok"
        roll = self.rng.random()
        if operation == "head":
            half = self.faults.head_rate / 2
            return (
                "error" if roll < half else "done-but-reported-failed" if roll < 2 * half else "ok"
            )
        if roll < self.faults.error_rate:
            return "error"
        return "full" if roll < self.faults.error_rate + self.faults.full_rate else "ok"

    async def run_blocking(self, function: Callable[[], ResultT]) -> ResultT:
        """A thread that takes virtual time before and after; a crash may fall on either side."""
        limit = self.faults.latency_seconds_max
        await trio.sleep(self.rng.random() * limit)
        result = function()
        await trio.sleep(self.rng.random() * limit / 4)
        return result

    def meter(self) -> Meter:
        options = MeterOptions(
            software="sim",
            shards=self.rng.choice((1, 3, 8)),
            lateness_us=self.rng.choice((0, DAY_US // 24, 2 * DAY_US)),
            late_policy=self.rng.choice(("review", "auto")),
            snapshot_every_events=self.rng.choice((25, 100, 10_000)),
            recent_keys_max=self.rng.choice((20, 60, 1000)),
            verify=True,
        )
        return Meter(
            options,
            log=MemoryLog(self.disk),
            runs=self.runs,
            cells=self.cells,
            snapshots=self.snapshots,
            archives=self.archives,
            clock=self.clock,
            ids=SimIds(self.rng),
            run_blocking=self.run_blocking,
        )


async def life(world: World, *, seconds: float, crash: bool) -> None:
    """Start the meter, let clients work, then cut the power or stop in order."""
    world.lives += 1
    meter = world.meter()
    stop = trio.Event()
    with trio.CancelScope() as power:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_run_meter, meter, stop)
                for number in range(world.rng.randrange(2, 6)):
                    nursery.start_soon(_client, world, meter, number)
                nursery.start_soon(_operator, world, meter)
                nursery.start_soon(correct, world, meter)
                await trio.sleep(seconds)
                if crash:
                    power.cancel()
                    await trio.sleep_forever()
                nursery.cancel_scope.deadline = trio.current_time() + 3600
                stop.set()
        except* (Fatal, StartRefused) as ended:
            if world.calm:
                raise Violation("a good disk must not end the meter") from ended
    world.disk.crash(world.rng)
    world.trace.append((world.lives, round(trio.current_time(), 6), len(world.acknowledged)))


async def _run_meter(meter: Meter, stop: trio.Event) -> None:
    await meter.run(stop.wait)


async def _operator(world: World, meter: Meter) -> None:
    """Changes mappings now and then, and lets the wall clock jump."""
    rng = world.rng
    while meter.phase not in ("stopping", "stopped"):
        await trio.sleep(rng.uniform(0.05, 2))
        try:
            if rng.random() < 0.3:
                world.clock.step_us += rng.choice((-3_600_000_000, 7_200_000_000, 3 * DAY_US))
            if rng.random() < 0.5:
                tenant, metric = rng.choice(TENANTS), rng.choice(METRICS)
                mapping = Mapping(
                    id=f"map_{tenant}_{metric}",
                    tenant_id=tenant,
                    metric=metric,
                    aggregation=rng.choice(("sum", "max", "last")),
                    lateness_us=rng.choice((None, 0, 3_600_000_000)),
                )
                change = MappingChange(
                    mapping=mapping, change=Change(actor="sim"), deleted=rng.random() < 0.2
                )
                await meter.append_control(change)
        except EngineError:
            continue


async def _client(world: World, meter: Meter, number: int) -> None:
    """Sends batches, again when they fail, sometimes what others sent; keeps a ledger of what was acknowledged."""
    rng = world.rng
    failed: list[list[Sent]] = []
    for turn in range(40):
        await trio.sleep(rng.choice((0, 0, rng.random() * 0.2)))
        if meter.phase in ("stopping", "stopped"):
            return
        batch = failed.pop() if failed and rng.random() < 0.6 else _new_batch(world, number, turn)
        try:
            await _send(world, meter, batch)
        except EngineError as error:
            failed.append(batch)
            world.trace.append((round(trio.current_time(), 6), type(error).__name__))
            await trio.sleep(rng.random() * 0.05)


def _new_batch(world: World, number: int, turn: int) -> list[Sent]:
    rng = world.rng
    batch: list[Sent] = []
    for i in range(rng.choice((1, 1, 2, 7))):
        if world.sent and rng.random() < 0.25:
            known = list(world.sent.values())
            batch.append(
                rng.choice(known[-6:] if rng.random() < 0.6 else known)
            )  # perhaps in flight
            continue
        tenant = rng.choice(TENANTS)
        now_us = world.clock.now_us()
        age_us = rng.choice((0, 0, 0, 1, 3_600_000_000, DAY_US, 2 * DAY_US, 40 * DAY_US))
        age_us += rng.randrange(-10, 11)
        ts = None if rng.random() < 0.2 else format_instant(now_us - age_us)
        quantity = rng.choice((b"1", b"0.1", b"0.000001", b"0", b"999999999999999.999999", b"2.5"))
        key_text = f"{world.lives}-{number}-{turn}-{i}"
        event = SentEvent(
            metric=rng.choice(METRICS),
            customer_ref=f"c{rng.randrange(5)}",
            quantity=_raw(quantity),
            tenant_id=tenant,
            ts=ts,
            idempotency_key=key_text,
        )
        sent = Sent(tenant, event, key_text)
        world.sent[sent.identity] = sent
        batch.append(sent)
    return batch


def _raw(text: bytes) -> Any:
    import msgspec

    return msgspec.Raw(text)


async def _send(world: World, meter: Meter, batch: list[Sent]) -> None:
    by_tenant: dict[str, list[tuple[Any, ...]]] = {}
    order: dict[str, list[Sent]] = {}
    for sent in batch:
        row = accept(sent.event, sent.tenant, None, world.clock.now_us(), EventLimits(4096))
        if isinstance(row, Refusal):
            continue  # the clock stepped back below an event of its own future
        by_tenant.setdefault(sent.tenant, []).append(row)
        order.setdefault(sent.tenant, []).append(sent)
    offers = [meter.offer(tenant, rows, 100 * len(rows)) for tenant, rows in by_tenant.items()]
    for offer in offers:
        await offer.settled()
    for offer in offers:
        for sent, verdict, position in zip(
            order[offer.tenant], offer.verdicts, offer.positions, strict=True
        ):
            if verdict == CONFLICT:
                raise Violation(f"{sent.identity} was sent unchanged and called another event")
            _assert_true_now(meter, sent)
            world.acknowledged[sent.identity] = sent
            late = offer.own_group.late if offer.own_group else {}
            if verdict == ACCEPTED and (offer.tenant, position) not in late:
                _assert_readable(meter, sent)


async def _send_until_heard(world: World, meter: Meter, batch: list[Sent]) -> None:
    """Send again until the answer is yes; on a good disk it must come soon."""
    for _ in range(100):
        try:
            return await _send(world, meter, batch)
        except Unavailable:
            await trio.sleep(0.1)
    raise Violation("the meter refuses work for 10 s on a good disk")


def _assert_true_now(meter: Meter, sent: Sent) -> None:
    """Accepted or duplicate: at this moment the event is durable, and no group that holds it waits to be counted."""
    key = key_hash(*sent.identity)
    writer = meter.started.writer
    if writer.keys.lookup(key) is None:
        raise Violation(f"{sent.identity} was answered before it was durable")
    if any(key in group.keys and not group.done.is_set() for group in writer._unfolded):
        raise Violation(f"{sent.identity} was answered before it was counted")


def _assert_readable(meter: Meter, sent: Sent) -> None:
    """Read your writes: an acknowledged event is in the counters at once."""
    shard, partition = meter.shard_of_customer(sent.tenant, sent.event.customer_ref)
    series = (sent.tenant, sent.event.metric, sent.event.customer_ref)
    if series not in shard.state.counters[partition]:
        raise Violation(f"{sent.identity} was acknowledged and is not counted")


def assert_truth(world: World) -> Recount:
    """Hold the log against the ledger, and a recovered meter against the recount. Raises Violation."""
    log = MemoryLog(world.disk)
    report = check_log(log)
    if not report.ok:
        raise Violation(f"check: {report.problems[0].message}")
    truth = recount(log)
    for identity in world.acknowledged:
        if identity not in truth.keys:
            raise Violation(f"{identity} was acknowledged and is lost")
    for identity, stored in truth.keys.items():
        if len(stored) != 1:
            raise Violation(f"{identity} counts {len(stored)} times")
        if identity not in world.sent:
            raise Violation(f"{identity} was never sent")
    assert_kept(world.corrected, truth)
    return truth


def assert_state(meter: Meter, truth: Recount) -> None:
    """The engine's counters and adjustments are the recount's, to the last digit. Raises Violation."""
    counted: dict[Any, Any] = {}
    for shard in meter.shards:
        for table in shard.state.counters.values():
            for series, newest in table.items():
                counter = newest
                while counter is not None:
                    counted[*series, counter.start_us] = counter
                    counter = counter.older
    counted = {key: counter for key, counter in counted.items() if counter.count}
    if counted.keys() != truth.counted.keys():
        raise Violation(f"counters differ: {counted.keys() ^ truth.counted.keys()}")
    for key, total in truth.counted.items():
        _assert_same(key, total, counted[key])
    assert_corrections(meter, counted, truth)


def _assert_same(key: Any, total: Total, counter: Any) -> None:
    got = (counter.sum, counter.count, counter.max, counter.last, counter.watermark_us)
    assert total.max is not None
    assert total.last is not None
    wanted = (
        total.sum * 10**6,
        total.count,
        total.max * 10**6,
        total.last * 10**6,
        max(total.watermark_us or 0, counter.start_us),
    )
    if got != wanted:
        raise Violation(f"{key}: the engine has {got}, the log says {tuple(map(int, wanted))}")


async def history(world: World) -> None:
    """Some lives that end in a crash, one that ends in order, then the reckoning."""
    for _ in range(world.rng.randrange(1, 4)):
        await life(world, seconds=world.rng.uniform(0.02, 4), crash=world.rng.random() < 0.8)
        assert_truth(world)
    world.calm = True
    meter = world.meter()
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        nursery.start_soon(_run_meter, meter, stop)
        while meter.phase != "ready":
            await trio.sleep(0.01)
        everything = list(world.sent.values())
        for start in range(0, len(everything), 10):
            await _send_until_heard(world, meter, everything[start : start + 10])
        # Read before the tree is taken down; nothing more is sent.
        truth = assert_truth(world)
        if len(truth.keys) > len(world.sent):
            raise Violation("more events are stored than were sent")
        assert_state(meter, truth)
        stop.set()


def run_seed(seed: int) -> World:
    """Run one world to its end. Raises Violation (perhaps in a group) when a promise did not hold."""
    world = World(seed)
    state = scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    try:
        trio.run(history, world, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = False
        scheduler._r.setstate(state)
    return world
