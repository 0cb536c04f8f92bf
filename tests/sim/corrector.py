"""The person in a simulated world who corrects totals: makes, approves and reverts adjustments, and runs replays.

What was answered is kept in a ledger that outlives crashes; in the end the log must know it and the engine's
adjustments, and every total that follows from them, must be the recount's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import trio

from engine.actors.administration import By
from engine.actors.corrections import Corrections, Decision, Draft, Filter
from engine.actors.replays import Replays
from engine.actors.supervisor import Meter
from engine.core.adjustments import effective_value
from engine.core.replay import ReplayRequest
from engine.errors import Conflict, EngineError
from tests.helpers.recount import Recount, month_of
from tests.sim.violation import Violation

if TYPE_CHECKING:
    from tests.sim.world import World

BY = By("sim", None)
TENANTS = ("acme", "umbra")
METRICS = ("calls", "seats")


@dataclass
class Corrected:
    """What was answered: adjustments by requestId, decisions, applied plans."""

    made: dict[tuple[str, str], str] = field(default_factory=dict)
    approved: set[str] = field(default_factory=set)
    reverted: set[str] = field(default_factory=set)
    applied: set[tuple[str, str]] = field(default_factory=set)
    decisions: int = 0


async def correct(world: World, meter: Meter) -> None:
    """Do one thing after the other until the meter stops."""
    rng, ledger = world.rng, world.corrected
    steps = (_make, _make, _make, _decide, _decide, _decide, _decide_many, _replay, _replay)
    while meter.phase not in ("stopping", "stopped"):
        await trio.sleep(rng.uniform(0.002, 0.15))
        try:
            await rng.choice(steps)(world, meter, ledger)
        except EngineError as error:
            world.trace.append((round(trio.current_time(), 6), type(error).__name__))


async def _make(world: World, meter: Meter, ledger: Corrected) -> None:
    rng = world.rng
    number = rng.randrange(40)
    content = Random(
        number
    )  # the same requestId is always the same content, as far as the rules allow
    tenant, metric = content.choice(TENANTS), content.choice(METRICS)
    start_us, _ = month_of(world.clock.now_us())
    aggregation = meter.rules.aggregation(tenant, metric, start_us)
    kind: Literal["delta", "value"] = "delta" if aggregation == "sum" else "value"
    request_id = f"r{number}-{kind}-{start_us}"
    draft = Draft(
        tenant=tenant,
        metric=metric,
        customer_ref=f"c{content.randrange(5)}",
        period_at_us=start_us,
        period_is_date=content.random() < 0.5,
        kind=kind,
        micros=content.choice((1, 3_000_000, 10**21 - 1)),
        reason="correction",
        note=None,
        request_id=request_id,
        parent_id=None,
    )
    created = await Corrections(meter).create(draft, BY)
    known = ledger.made.setdefault((tenant, request_id), created.adjustment.id)
    if known != created.adjustment.id:
        raise Violation(f"requestId {request_id} made {known} and {created.adjustment.id}")


def _all_ids(meter: Meter) -> list[str]:
    return sorted(
        one for shard in meter.shards for of in shard.state.adjustments.values() for one in of.by_id
    )


async def _decide(world: World, meter: Meter, ledger: Corrected) -> None:
    ids = _all_ids(meter)
    if not ids:
        return
    decision: Decision = world.rng.choice(("approve", "approve", "revert"))
    # Those that a person made are few among the late ones, and of more kinds.
    made = [one for one in ids if len(one) == len("adj_") + 16]
    chosen = world.rng.choice(made if made and world.rng.random() < 0.7 else ids)
    corrections = Corrections(meter)
    try:
        decided = await corrections.decide(chosen, None, decision, BY)
    except Conflict:
        if corrections.adjustment(chosen, None).status not in ("reverted", "superseded"):
            raise Violation(f"{chosen} can be decided and was refused") from None
        return
    wanted = "approved" if decision == "approve" else "reverted"
    if decided.status != wanted:
        raise Violation(f"{chosen} was answered as {wanted} and is {decided.status}")
    _note(ledger, [chosen], decision)


async def _decide_many(world: World, meter: Meter, ledger: Corrected) -> None:
    rng = world.rng
    decision: Decision = rng.choice(("approve", "approve", "approve", "revert"))
    wanted = Filter(rng.choice(TENANTS), metric=rng.choice((None, *METRICS)))
    decided = await Corrections(meter).decide_many(wanted, decision, BY, dry_run=False)
    _note(ledger, decided.ids, decision)


def _note(ledger: Corrected, ids: Any, decision: Decision) -> None:
    ledger.decisions += len(ids)
    (ledger.approved if decision == "approve" else ledger.reverted).update(ids)


async def _replay(world: World, meter: Meter, ledger: Corrected) -> None:
    rng = world.rng
    now_us = world.clock.now_us()
    request = ReplayRequest(
        tenant=rng.choice(TENANTS),
        metrics=rng.choice((None, frozenset(("calls",)))),
        since_us=rng.choice((None, now_us - rng.randrange(3 * 86_400_000_000))),
        until_us=None,
        watermark_us=rng.choice((None, now_us - rng.randrange(2 * 86_400_000_000))),
        lateness_us=rng.choice((None, 3_600_000_000)),
        open_only=rng.random() < 0.5,
    )
    replays = Replays(meter)
    preview = await replays.preview(request)
    await trio.sleep(rng.choice((0, 0, 0.05)))
    try:
        done = await replays.apply(request, preview.plan_hash, BY)
    except Conflict:
        return
    if done.plan.counters and done.plan.counters != preview.counters:
        raise Violation("another plan was applied than the one that was reviewed")
    if preview.counters:
        ledger.applied.add((request.tenant, preview.plan_hash))
        again = await replays.apply(request, preview.plan_hash, BY)
        if not again.was_applied:
            raise Violation("a plan was applied twice")


def assert_kept(ledger: Corrected, truth: Recount) -> None:
    """The log knows what was answered, once. Raises Violation."""
    by_request: dict[tuple[str, str], list[str]] = {}
    for correction in truth.corrections.values():
        if correction.request_id is not None:
            request = (correction.key[0], correction.request_id)
            by_request.setdefault(request, []).append(correction.id)
    for request, ids in by_request.items():
        if len(ids) != 1 or ledger.made.get(request, ids[0]) != ids[0]:
            raise Violation(f"{request} made {ids}, answered was {ledger.made.get(request)}")
    if lost := ledger.made.keys() - by_request.keys():
        raise Violation(f"adjustments of {lost} were answered and are lost")
    for adjustment_id in ledger.approved | ledger.reverted:
        correction = truth.corrections[adjustment_id]
        if adjustment_id in ledger.reverted and correction.status != "reverted":
            raise Violation(f"{adjustment_id} was reverted and is {correction.status}")
        if correction.status not in ("approved", "reverted"):
            raise Violation(f"{adjustment_id} was decided and is {correction.status}")
    if len(set(truth.plans)) != len(truth.plans):
        raise Violation("a plan was recorded twice")
    if not ledger.applied <= set(truth.plans):
        raise Violation("a plan was answered as applied and is lost")


def assert_corrections(meter: Meter, counted: dict[Any, Any], truth: Recount) -> None:
    """Every adjustment, and every total with the approved ones, is the recount's. Raises Violation."""
    engine: dict[str, Any] = {}
    for shard in meter.shards:
        for of in shard.state.adjustments.values():
            engine |= of.by_id
    if engine.keys() != truth.corrections.keys():
        raise Violation(f"adjustments differ: {engine.keys() ^ truth.corrections.keys()}")
    for adjustment_id, wanted in truth.corrections.items():
        found = engine[adjustment_id]
        got = (found.key, found.kind, found.sequence, found.status, list(found.sequences))
        said = (wanted.key, wanted.kind, wanted.sequence, wanted.status)
        if got != (*said, [event.sequence for event in wanted.events]):
            raise Violation(f"{adjustment_id}: the engine has {got}, the log says {wanted}")
    keys = counted.keys() | {correction.key for correction in truth.corrections.values()}
    for key in keys:
        shard, partition = meter.shard_of_customer(key[0], key[2])
        adjustments = shard.state.adjustments[partition].of_counter(key)
        for aggregation in ("sum", "max", "last"):
            value = effective_value(counted.get(key), adjustments, aggregation)
            if value != truth.value(key, aggregation) * 10**6:
                right = truth.value(key, aggregation) * 10**6
                raise Violation(f"{aggregation} of {key} is {value}, the log says {right}")
