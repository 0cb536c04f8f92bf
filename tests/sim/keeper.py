"""The person in a simulated world who takes things out of the log: drops old bodies, erases customers, whole tenants too.

What was answered is kept in a ledger that outlives crashes: in the end no erased name may be left before its erasure, and
everything that was dropped must be in an archive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from engine.actors.supervisor import Meter
from engine.errors import Conflict, EngineError, NotFound
from tests.helpers.recount import Recount
from tests.sim.client import CUSTOMERS, TENANTS
from tests.sim.violation import Violation

if TYPE_CHECKING:
    from tests.sim.world import World


@dataclass
class Kept:
    """What was asked for and answered."""

    attempts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(tenant, customer) to how often it was asked to be erased, or that was answered, with or without success."""
    asking: Counter[tuple[str, str]] = field(default_factory=Counter)
    """What is being asked and not answered yet."""
    erased: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    """Erasures that were answered: tenant, and name to pseudonym."""
    horizon_us: int = -(1 << 62)
    """Of the newest checkpoint that was answered."""


async def keep(world: World, meter: Meter) -> None:
    """Do one thing after the other until the meter stops."""
    rng = world.rng
    while meter.phase not in ("stopping", "stopped"):
        await trio.sleep(rng.uniform(0.02, 0.8))
        await keep_once(world, meter)


async def keep_once(world: World, meter: Meter) -> None:
    """Do one thing."""
    steps = (_retain, _retain, _retain, _retain, _erase, _erase, _finish, _erase_tenant)
    try:
        await world.rng.choice(steps)(world, meter)
    except EngineError as error:
        world.trace.append((round(trio.current_time(), 6), type(error).__name__))


async def _retain(world: World, meter: Meter) -> None:
    retention = meter.started.retention
    plan = await retention.plan(world.rng.choice((1, 20)))
    done = await retention.apply(world.rng.choice((1, 20)), "sim")
    if done:
        world.kept.horizon_us = max(world.kept.horizon_us, *(one.horizon_us for one in done))
        world.trace.append(("dropped", sum(one.events for one in done)))
    if (
        meter.registry.checkpoint is not None
        and plan.first_sequence > meter.registry.checkpoint.position
    ):
        raise Violation("a checkpoint went back")


async def _finish(_world: World, meter: Meter) -> None:
    """What the meter does by itself a minute after its start."""
    await meter.started.retention.finish()


async def _erase(world: World, meter: Meter) -> None:
    await _begin(world, meter, world.rng.choice(TENANTS), [world.rng.choice(CUSTOMERS)])


async def _erase_tenant(world: World, meter: Meter) -> None:
    """One customer perhaps, and at once all who are known: the first one's pseudonym too."""
    tenant = world.rng.choice(TENANTS)
    if world.rng.random() < 0.5:
        await _begin(world, meter, tenant, [world.rng.choice(CUSTOMERS)], waits=False)
    await _begin(world, meter, tenant, meter.started.eraser.customers_of(tenant))


async def _begin(
    world: World, meter: Meter, tenant: str, names: Sequence[str], *, waits: bool = True
) -> None:
    eraser, kept = meter.started.eraser, world.kept
    async with meter.change_lock:
        asked = [(tenant, name) for name in names]
        kept.attempts.update(asked)
        kept.asking.update(asked)
        try:
            begun = await eraser.begin(
                tenant,
                names,
                secret=world.rng.choice((None, b"secret")),
                actor="sim",
                request_id=None,
            )
        except (NotFound, Conflict):
            return
        finally:
            kept.attempts.update(asked)
            kept.asking.subtract(asked)
    kept.erased[begun.erasure_id] = (tenant, begun.names)
    if begun.names.keys() != set(names):
        raise Violation(f"{names} were to be erased, {sorted(begun.names)} are")
    if waits and world.rng.random() < 0.7:
        await eraser.ended(begun.erasure_id)


async def erasures_ended(meter: Meter) -> None:
    """Wait until nothing is left to erase; on a good disk it must come soon. Raises Violation."""
    with trio.move_on_after(600):
        while meter.registry.erasures:
            await trio.sleep(0.5)
        await meter.started.retention.finish()
        return
    raise Violation(f"an erasure does not end on a good disk: {meter.started.eraser.last_error}")


def assert_taken(ledger: Kept, truth: Recount, *, at_the_end: bool) -> None:
    """The log knows every erasure that was answered; one that ended left no name before it. Raises Violation."""
    for erasure_id, (tenant, names) in ledger.erased.items():
        seen = truth.erasures.get(erasure_id)
        if seen is None:
            raise Violation(f"erasure {erasure_id} was answered and is lost")
        if at_the_end and not seen.has_ended:
            raise Violation(f"erasure {erasure_id} has not ended")
        if not seen.has_ended:
            continue
        if seen.names:
            raise Violation(f"erasure {erasure_id} has ended and its record has the names")
        for name in names:
            first = truth.first_stored.get((tenant, name))
            if first is not None and first < seen.sequence:
                raise Violation(f"{name} of {tenant} was erased and is still in record {first}")
    if ledger.horizon_us > (truth.horizon_us or -(1 << 62)):
        raise Violation("a checkpoint was answered and is lost")
