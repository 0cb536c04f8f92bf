"""What happens in a simulated world of pushing: use, corrections, changes, faults; and how a person settles it all.

Rules it keeps: a person decides by what Stripe really took and by nothing the meter says of it; the end is a reckoning
of what was used against what Stripe holds. It must not know how the meter pushes.
"""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from engine.actors.administration import Administration, By
from engine.actors.corrections import Corrections, Draft, Filter
from engine.actors.push_desk import Asker, TargetReport
from engine.actors.supervisor import Meter
from engine.core.configured import Customer, CustomerChange, Mapping, MappingChange, PushEffect
from engine.core.push_records import Target
from engine.errors import Conflict, EngineError, Refused
from tests.helpers.push_place import BY
from tests.sim.push_books import TENANT, Delta, Metric
from tests.sim.push_wire import EVENTS
from tests.sim.push_world import BEACON, DAY, PushWorld, life
from tests.sim.violation import Violation

PERSON = Asker("person", None)
ADMIN = By("person", None)
ROUNDS_MAX = 60
FAULTS = (
    *("swallow", "reset", "reset", "error", "error", "rate_limited", "rate_limited", "busy"),
    *("unavailable", "slow", "reject", "lag", "outage", "outage", "refuse", "late"),
)


async def history(world: PushWorld) -> None:
    """Some lives, most of which end in a power cut; then the reckoning."""
    for _ in range(world.rng.randrange(1, 5)):
        points = world.rng.choice((0, world.rng.randrange(1, 40), world.rng.randrange(1, 400)))
        await life(world, story, points=points)
        if world.rng.random() < 0.3:
            await world.wait(world.rng.choice((5, 3_600, 30 * 3_600, 20 * DAY)))
    world.calm = True
    world.watched.refusals = 0
    await life(world, reckoning, points=0)


# What goes on.


async def configure(world: PushWorld, meter: Meter) -> None:
    """Mappings and customers as they are at first, where they are missing."""
    for ref, customer in world.customers.items():
        if meter.registry.customer(TENANT, ref) is None:
            anchor = world.used.anchor
            anchor_us = None if anchor is None else int(anchor.timestamp() * 1_000_000)
            put = Customer(
                tenant_id=TENANT,
                customer_ref=ref,
                stripe_customer_id=customer,
                billing_anchor_us=anchor_us,
            )
            await _surely(meter.append_control, CustomerChange(customer=put, change=BY))
    for metric in world.metrics:
        if f"map_{metric.name}" not in meter.registry.mappings and not world.is_mapped_late:
            change = MappingChange(mapping=first_mapping(world, metric), change=BY)
            await _surely(meter.append_control, change)


def first_mapping(world: PushWorld, metric: Metric) -> Mapping:
    """What a metric's mapping says when it is made."""
    return Mapping(
        id=f"map_{metric.name}",
        tenant_id=TENANT,
        metric=metric.name,
        meter_event_name=metric.meter,
        aggregation=metric.aggregation,
        stripe_scale=metric.scale,
        period="calendar" if world.used.anchor is None else "subscription",
        finalization_grace_us=world.grace_us,
    )


async def _surely(function: Any, *args: Any) -> None:
    """Do it until it was done."""
    for _ in range(200):
        try:
            await function(*args)
        except EngineError as error:
            if isinstance(error, Conflict | Refused):
                raise
            await trio.sleep(1)
        else:
            return
    raise Violation("the meter refuses work for minutes")


async def story(world: PushWorld, meter: Meter) -> None:
    """One thing after the other, with time between."""
    rng = world.rng
    await configure(world, meter)
    steps = (use, use, use, use, again, fault, fault, correct, person, change, late)
    for _ in range(rng.randrange(3, 25)):
        try:
            await rng.choice(steps)(world, meter)
        except EngineError as error:
            world.trace.append((round(trio.current_time(), 6), type(error).__name__))
        await world.wait(
            rng.choice((0.5, 2, 30, 90, 600, 5_000, DAY, rng.choice((1, 3, 12)) * DAY))
        )


async def use(world: PushWorld, meter: Meter, age_seconds: float = 0) -> None:
    """Some events."""
    for _ in range(world.rng.choice((1, 1, 3))):
        metric = world.rng.choice(world.metrics)
        made = world.new_use(metric, world.rng.choice(list(world.refs)), age_seconds)
        await world.send(meter, made)


async def late(world: PushWorld, meter: Meter) -> None:
    """Events of some time ago."""
    await use(world, meter, world.rng.choice((600, 7_300, DAY, 3 * DAY, 11 * DAY, 33 * DAY)))


async def again(world: PushWorld, meter: Meter) -> None:
    """What was not answered, and something that was."""
    rest = [one for one in world.used.events if not one.is_heard]
    for one in rest or world.used.events[-2:]:
        await world.send(meter, one)


async def correct(world: PushWorld, meter: Meter) -> None:
    """Ask for a correction, or decide about some that there are."""
    rng, corrections = world.rng, Corrections(meter)
    sums = [metric for metric in world.metrics if metric.aggregation == "sum"]
    if not sums or rng.random() < 0.5:
        decision = "approve" if world.is_upward or rng.random() < 0.8 else "revert"
        if decision == "approve":
            await corrections.decide_many(Filter(TENANT), "approve", ADMIN, dry_run=False)
        return
    world.numbers += 1
    size = rng.choice((1, 500_000, 3_000_000, 10**9))
    now_us = world.clock.now_us()
    start_us = world.used.period_of(now_us - rng.choice((0, 0, 12 * DAY * 1_000_000)))[0]
    delta = Delta(
        rng.choice(sums).name,
        rng.choice(list(world.refs)),
        start_us,
        size if world.is_upward or rng.random() < 0.6 else -size,
        f"request-{world.numbers}",
        keep=world.is_upward or rng.random() < 0.7,
    )
    world.used.deltas.append(delta)
    await ask_for(meter, delta)


async def ask_for(meter: Meter, delta: Delta) -> None:
    """Ask for a correction; again is once."""
    draft = Draft(
        tenant=TENANT,
        metric=delta.metric,
        customer_ref=delta.customer_ref,
        period_at_us=delta.period_at_us,
        period_is_date=False,
        kind="delta",
        micros=delta.micros,
        reason="correction",
        note=None,
        request_id=delta.request_id,
        parent_id=None,
    )
    await Corrections(meter).create(draft, ADMIN)


async def change(world: PushWorld, meter: Meter) -> None:
    """A mapping says something else now."""
    rng = world.rng
    metric = rng.choice(world.metrics)
    mapping = meter.registry.mappings.get(f"map_{metric.name}")
    administration = Administration(meter, b"")
    if mapping is None:
        if rng.random() < 0.5:
            world.is_mapped_late = False
            await configure(world, meter)
        return
    # Without its mapping a metric is summed by the month again: only where it was can it be taken away for a time.
    is_plain = world.used.anchor is None and metric.aggregation == "sum"
    if not mapping.active or (is_plain and rng.random() < 0.3):
        changed = msgspec.structs.replace(mapping, active=not mapping.active)
    else:
        scale = rng.choice(("1", "2", "0.001", metric.scale))
        changed = msgspec.structs.replace(mapping, stripe_scale=scale)
    await administration.update_mapping(changed, ADMIN)


async def fault(world: PushWorld, meter: Meter) -> None:
    """Something goes wrong at Stripe for a while."""
    rng, stripe = world.rng, world.stripe
    kind = rng.choice(FAULTS)
    events = {"endpoint": f"POST {EVENTS}", "count": rng.choice((1, 1, 2, 6))}
    match kind:
        case "swallow" | "busy" | "unavailable" | "reject":
            stripe.add_fault(kind, **events)
        case "reset" | "error":
            stripe.add_fault(kind, **events, applied=rng.random() < 0.6)
        case "rate_limited":
            after = rng.choice((None, 1, 30, 4_000))
            seconds = rng.choice((20, 600))
            stripe.add_fault(kind, "*", for_seconds=seconds, probability=0.9, retry_after=after)
        case "slow":
            stripe.add_fault(kind, "*", seconds=rng.choice((0.5, 20)), count=5)
        case "lag":
            stripe.add_fault(kind, **events, seconds=rng.choice((60, 1_500)))
        case "outage":
            if rng.random() < 0.5:
                stripe.add_fault("swallow", f"POST {EVENTS}", count=2)
                await use(world, meter)
                await world.wait(60)
            stripe.add_fault(kind, "*", for_seconds=rng.choice((300, 300, 30 * 3_600, 40 * DAY)))
        case "refuse":
            world.watched.refusals += rng.choice((1, 3))
            world.watched.is_refusing_again = rng.random() < 0.6
            if world.watched.is_refusing_again:
                stripe.add_fault("reset", f"POST {EVENTS}", count=2)
        case _:
            world.watched.is_late = not world.watched.is_late


# What a person does.


async def person(world: PushWorld, meter: Meter) -> None:
    """Decide whatever waits for a decision now."""
    desk = meter.started.pusher
    for report in await desk.targets(TENANT):
        await decide(world, meter, report)


async def decide(world: PushWorld, meter: Meter, report: TargetReport) -> None:
    """One target: by what Stripe really took."""
    desk, rng = meter.started.pusher, world.rng
    if report.standing == "quarantined":
        assert report.open is not None
        is_there = world.truth.is_there(report.open.request.identifier)
        await desk.settle(TENANT, report.id, delivered=is_there, by=PERSON)
    elif report.standing == "awaiting_baseline":
        await desk.decide_baseline(TENANT, report.id, "period", PERSON)
    elif report.standing == "finalized" and report.due and not world.truth.reports:
        into = rng.choice((None, "current", "current", "credit", "invoice_item", "write_off"))
        if into is not None:
            await desk.carry_forward(TENANT, report.id, into, PERSON)


# The end.


async def reckoning(world: PushWorld, meter: Meter) -> None:
    """Everything is heard, decided and pushed; then Stripe is held against what was used."""
    world.stripe.clear_faults()
    world.watched.is_late = False
    world.is_mapped_late = False
    await configure(world, meter)
    for one in world.used.events:
        if not one.is_heard:
            await world.send(meter, one)
    for delta in world.used.deltas:
        await ask_for(meter, delta)
    await Corrections(meter).decide_many(Filter(TENANT), "approve", ADMIN, dry_run=False)
    ids = {delta.request_id for delta in world.used.deltas if not delta.keep}
    for adjustment in await Corrections(meter).matching(Filter(TENANT)):
        if adjustment.request_id in ids:
            await Corrections(meter).decide(adjustment.id, TENANT, "revert", ADMIN)
    for mapping in list(meter.registry.mappings.values()):
        if not mapping.active:
            await Administration(meter, b"").update_mapping(
                msgspec.structs.replace(mapping, active=True), ADMIN
            )
    await settle_down(world, meter)
    assert_billed(world, await meter.started.pusher.targets(TENANT), missing_of(world, meter))


async def settle_down(world: PushWorld, meter: Meter) -> None:
    """Let time pass and decide what waits, until nothing is left to do. Raises Violation when that never comes."""
    beacon = next((one for one in world.metrics if one.aggregation == "sum"), world.metrics[0])
    reports: list[TargetReport] = []
    for _ in range(ROUNDS_MAX):
        await world.send(meter, world.new_use(beacon, BEACON))
        await world.wait(world.rng.choice((3_700, 7 * 3_600)))
        for report in await meter.started.pusher.targets(TENANT):
            await decide(world, meter, report)
        await world.wait(700)
        reports = await meter.started.pusher.targets(TENANT)
        is_quiet = not world.truth.reports and not world.truth.delayed
        # What has no target yet is in no report.
        is_quiet = is_quiet and not meter.started.pusher.unroutable(TENANT)
        is_quiet = is_quiet and all(map(is_settled, reports))
        if is_quiet and (not world.unproven or is_billed(world, meter, reports)):
            return
        if is_quiet:
            # A lack within the tolerance of an open period is told once the period is over.
            now_us = world.clock.now_us()
            await world.wait((world.used.period_of(now_us)[1] - now_us) / 1e6)
    left = [
        (one.target, one.standing, one.reason, one.due) for one in reports if not is_settled(one)
    ]
    raise Violation(f"it does not settle: {left}, reports {world.truth.reports}")


def is_settled(report: TargetReport) -> bool:
    """Whether nothing more happens of itself, and what is left is listed for a person."""
    return report.standing == "finalized" or (report.standing == "current" and report.due == 0)


def missing_of(world: PushWorld, meter: Meter) -> dict[Target, int]:
    """What reconciliation says that Stripe lacks, where there is an event of which nobody can tell what became of it.

    By lane and period: a summary has no scales, so what it lacks is told of the newest of its targets.
    """
    unproven = (world.books.intents[identifier].target for identifier in world.unproven)
    books = {(target.lane, target.start_us) for target in unproven}
    found: dict[Target, int] = {}
    for one in meter.push.findings.open.values():
        target = one.record.target
        if target is None or one.record.gap != "stripe":
            continue
        if (target.lane, target.start_us) in books:
            found[target] = int(one.record.units)
    return found


def is_billed(world: PushWorld, meter: Meter, reports: list[TargetReport]) -> bool:
    """Whether `assert_billed` has nothing to say: reading back takes hours."""
    try:
        assert_billed(world, reports, missing_of(world, meter))
    except Violation:
        return False
    return True


def assert_billed(
    world: PushWorld, reports: list[TargetReport], missing: dict[Target, int]
) -> None:
    """Stripe's total is the billable one, or the difference is what carry-forward lists, or what reading back found.

    Raises Violation.
    """
    world.books.refresh()
    listed: dict[tuple[str, str, int], int] = {}
    for target, units in missing.items():
        key = (world.meter_name(target.lane.object_id), target.lane.customer, target.start_us)
        listed[key] = listed.get(key, 0) + units
    for report in reports:
        target = report.target
        key = (world.meter_name(target.lane.object_id), target.lane.customer, target.start_us)
        listed[key] = listed.get(key, 0) + report.due
        if report.pushed != world.books.pushed[target]:
            raise Violation(f"{target}: {report.pushed} pushed is reported, the log says otherwise")
    for meter, customer in world.lanes():
        held = world.held(meter, customer)
        for start_us in held.keys() | world.used.period_starts():
            wanted = world.billable(meter, customer, start_us)
            due = listed.get((meter, customer, start_us), 0)
            if held.get(start_us, 0) + due != wanted:
                raise Violation(
                    f"{meter} of {customer} from {start_us}: Stripe holds {held.get(start_us, 0)}, "
                    f"{due} is listed, {wanted} is billable"
                )


__all__ = ["PushEffect", "history"]
