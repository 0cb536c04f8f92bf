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

from engine.actors.supervisor import Meter, MeterOptions
from engine.core.configured import Change, Mapping, MappingChange
from engine.errors import EngineError, StartRefused
from engine.ports import Fatal, ResultT
from tests.sim.bounds import small_bounds
from tests.sim.client import DAY_US, METRICS, TENANTS, Sent, send_all_day, send_until_heard
from tests.sim.corrector import Corrected, correct
from tests.sim.importer import Brought, backfills_ended, bring_in
from tests.sim.keeper import Kept, erasures_ended, keep, keep_once
from tests.sim.reckoning import assert_state, assert_truth
from tests.sim.violation import Violation
from wal.archive import MemoryArchives
from wal.memory_cells import MemoryCells
from wal.memory_log import FakeDisk, MemoryLog, Operation, Verdict
from wal.memory_runs import MemoryRuns
from wal.snapshot import MemorySnapshots

START_US = 1_792_800_000_000_000  # 2026-10-24: a month's end is near


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
    brought: Brought = field(default_factory=Brought)
    kept: Kept = field(default_factory=Kept)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.clock = SimClock()
        bad = self.rng.random() < 0.7
        self.faults = Fault(
            error_rate=self.rng.choice((0.0, 0.003, 0.02, 0.15)) if bad else 0.0,
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
        """A thread that takes virtual time before and after, or next to none; a crash may fall on either side.

        What was begun is not cancelled half-way, as the port promises: who is told to stop still hears the outcome.
        """
        await self._wait(self.faults.latency_seconds_max)
        result = function()
        with trio.CancelScope(shield=True):
            await self._wait(self.faults.latency_seconds_max / 4)
        return result

    async def _wait(self, seconds_max: float) -> None:
        if self.rng.random() < 0.4:
            await trio.sleep(self.rng.random() * seconds_max)
        else:
            await trio.lowlevel.checkpoint()

    def meter(self) -> Meter:
        options = MeterOptions(
            software="sim",
            shards=self.rng.choice((1, 3, 8)),
            lateness_us=self.rng.choice((0, DAY_US // 24, 2 * DAY_US)),
            late_policy=self.rng.choice(("review", "auto")),
            snapshot_every_events=self.rng.choice((25, 100, 400)),
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
                    nursery.start_soon(send_all_day, world, meter, number)
                nursery.start_soon(_operator, world, meter)
                nursery.start_soon(correct, world, meter)
                for _ in range(world.rng.randrange(1, 3)):
                    nursery.start_soon(bring_in, world, meter)
                nursery.start_soon(keep, world, meter)
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


def _between_lives(world: World) -> None:
    """Weeks pass, so that periods end; what is derived gets lost."""
    rng = world.rng
    world.clock.step_us += rng.choice((0, 8, 40, 40)) * DAY_US
    if rng.random() < 0.2:
        world.snapshots.files.clear()
    if rng.random() < 0.1:
        world.runs = MemoryRuns()


async def history(world: World) -> None:
    """Some lives that end in a crash or in order, two on a good disk, then the reckoning."""
    for _ in range(world.rng.randrange(1, 5)):
        await life(world, seconds=world.rng.uniform(0.02, 4), crash=world.rng.random() < 0.8)
        assert_truth(world)
        _between_lives(world)
    world.calm = True
    await _calm_life(world)
    # The log alone says the same: with what stands in for what was dropped.
    world.snapshots.files.clear()
    await _calm_life(world)


async def _settled(meter: Meter) -> None:
    """Wait until the meter does nothing by itself: no record is durable and not folded yet."""
    position = -1
    while position != meter.started.writer.published_sequence:
        position = meter.started.writer.published_sequence
        await trio.sleep(3)


async def _calm_life(world: World) -> None:
    meter = world.meter()
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        nursery.start_soon(_run_meter, meter, stop)
        while meter.phase != "ready":
            await trio.sleep(0.01)
        if world.rng.random() < 0.3:
            await keep_once(world, meter)
        everything = list(world.sent.values())
        for start in range(0, len(everything), 10):
            await send_until_heard(world, meter, everything[start : start + 10])
        await backfills_ended(meter)
        await erasures_ended(meter)
        await _settled(meter)
        # Read before the tree is taken down; nothing more is sent.
        truth = assert_truth(world, at_the_end=True)
        assert_state(meter, truth)
        stop.set()


def run_seed(seed: int) -> World:
    """Run one world to its end. Raises Violation (perhaps in a group) when a promise did not hold."""
    world = World(seed)
    state = scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    try:
        with small_bounds():
            trio.run(history, world, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = False
        scheduler._r.setstate(state)
    return world
