"""What must hold in a simulated world: the log against the ledgers, the meter's state against an independent recount."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.actors.supervisor import Meter
from engine.core.counters import Counter
from gateway.log_check import Inspector
from tests.helpers.recount import Recount, Total, recount
from tests.sim.corrector import assert_corrections, assert_kept
from tests.sim.importer import assert_brought
from tests.sim.keeper import assert_taken
from tests.sim.violation import Violation
from wal.check import check_log
from wal.memory_log import MemoryLog

if TYPE_CHECKING:
    from tests.sim.world import World


def assert_truth(world: World, *, at_the_end: bool = False) -> Recount:
    """Hold the log against what was answered. Raises Violation."""
    log, inspector = MemoryLog(world.disk), Inspector()
    report = check_log(log, inspect=inspector.inspect)
    problems = [*(p.message for p in report.problems), *(p.message for p in inspector.end())]
    if problems:
        raise Violation(f"check: {problems[0]}")
    truth = recount(log, world.archives)
    for identity, sent in world.acknowledged.items():
        if sent.key not in truth.hashes:
            raise Violation(f"{identity} was acknowledged and is lost")
    ever_sent = {sent.key for sent in world.sent.values()} | world.brought.keys.keys()
    for key, count in truth.hashes.items():
        if count != 1:
            raise Violation(f"key {key.hex()} counts {count} times")
        if key not in ever_sent:
            raise Violation(f"key {key.hex()} was never sent")
    assert_kept(world.corrected, truth)
    assert_brought(world.brought, truth, at_the_end=at_the_end)
    assert_taken(world.kept, truth, at_the_end=at_the_end)
    if (report.parts_trimmed > 0) != (truth.dropped > 0 or truth.sections_dropped > 0):
        raise Violation("check and recount differ about what was dropped")
    return truth


def assert_state(meter: Meter, truth: Recount) -> None:
    """The engine's counters and adjustments are the recount's, to the last digit. Raises Violation."""
    counted: dict[Any, Any] = {}
    for shard in meter.shards:
        for table in shard.state.counters.values():
            for series, newest in table.items():
                counter: Counter | None = newest
                while counter is not None:
                    counted[*series, counter.start_us] = counter
                    counter = counter.older
    counted = {key: counter for key, counter in counted.items() if counter.count}
    if counted.keys() != truth.counted.keys():
        raise Violation(f"counters differ: {counted.keys() ^ truth.counted.keys()}")
    for key, total in truth.counted.items():
        _assert_same(key, total, counted[key])
    assert_corrections(meter, counted, truth)
    _assert_operations(meter, truth)


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


def _assert_operations(meter: Meter, truth: Recount) -> None:
    """What the meter says of every operation under way is what its rows came to."""
    runner = meter.started.operations
    for one in meter.registry.operations.by_id.values():
        wanted = truth.operations[one.id]
        if one.is_open:
            got = (one.status, one.processed, *runner.counted(one))
            if got != (wanted.status, wanted.processed, wanted.taken, wanted.late):
                raise Violation(f"{one.id}: the engine has {got}, the log says {wanted}")
        elif one.status != wanted.status:
            raise Violation(f"{one.id} is {one.status}, the log says {wanted.status}")
