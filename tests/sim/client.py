"""The clients of a simulated world: they send batches, again when they fail, sometimes what others sent.

Rules they keep: an event is retried unchanged; one without a time is not retried once retention may have dropped what it
would be held against (its time is when it was received, so nothing refuses it). Each answer is held against what must be
true at that moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from engine.actors.group import Marks
from engine.actors.log_writer import ACCEPTED, CONFLICT
from engine.actors.supervisor import Meter
from engine.core.events import EventLimits, Refusal, SentEvent, accept, key_hash
from engine.core.times import format_instant, parse_instant
from engine.errors import EngineError, Unavailable
from tests.sim.violation import Violation

if TYPE_CHECKING:
    from tests.sim.world import World

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
TENANTS = ("acme", "umbra")
METRICS = ("calls", "seats")
QUANTITIES = (b"1", b"0.1", b"0.000001", b"0", b"999999999999999.999999", b"2.5")
CUSTOMERS = tuple(f"c{number}" for number in range(5))


@dataclass
class Sent:
    """An event as a client keeps it for retries."""

    tenant: str
    event: SentEvent
    key_text: str
    made_us: int

    @property
    def identity(self) -> tuple[str, str, str]:
        return (self.tenant, self.event.customer_ref, self.key_text)

    @property
    def key(self) -> bytes:
        return key_hash(*self.identity)

    def is_before(self, instant_us: int) -> bool:
        """Whether it says a time before an instant."""
        return self.event.ts is not None and parse_instant(self.event.ts) < instant_us


async def send_all_day(world: World, meter: Meter, number: int) -> None:
    """Be one client; keeps a ledger of what was acknowledged."""
    rng = world.rng
    failed: list[list[Sent]] = []
    for turn in range(40):
        await trio.sleep(rng.choice((0, 0, rng.random() * 0.2)))
        if meter.phase in ("stopping", "stopped"):
            return
        batch = failed.pop() if failed and rng.random() < 0.6 else _new_batch(world, number, turn)
        try:
            await send(world, meter, batch)
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
        age_us = rng.choice((0, 0, 0, 1, HOUR_US, DAY_US, 2 * DAY_US, 40 * DAY_US))
        age_us += rng.randrange(-10, 11)
        batch.append(new_event(world, f"{world.lives}-{number}-{turn}-{i}", age_us))
    return batch


def new_event(world: World, key_text: str, age_us: int, tenant: str | None = None) -> Sent:
    """A new event, entered in the ledger as sent."""
    rng = world.rng
    now_us = world.clock.now_us()
    ts = None if rng.random() < 0.2 and tenant is None else format_instant(now_us - age_us)
    event = SentEvent(
        metric=rng.choice(METRICS),
        customer_ref=rng.choice(CUSTOMERS),
        quantity=msgspec.Raw(rng.choice(QUANTITIES)),
        tenant_id=tenant or rng.choice(TENANTS),
        ts=ts,
        idempotency_key=key_text,
    )
    assert event.tenant_id is not None
    sent = Sent(event.tenant_id, event, key_text, now_us)
    world.sent[sent.identity] = sent
    return sent


async def send(
    world: World, meter: Meter, batch: Sequence[Sent], marks: Marks | None = None
) -> None:
    """Send a batch once and hold its answer against the truth. Raises EngineError and Violation."""
    horizon_us = world.kept.horizon_us
    erasures = dict(world.kept.attempts)
    limits = EventLimits(4096, meter.registry.horizon_us)
    by_tenant: dict[str, list[tuple[Any, ...]]] = {}
    order: dict[str, list[Sent]] = {}
    for sent in batch:
        if sent.event.ts is None and sent.made_us < limits.horizon_us + 2 * DAY_US:
            continue  # too old to be retried without a time
        row = accept(sent.event, sent.tenant, None, world.clock.now_us(), limits)
        if isinstance(row, Refusal):
            continue  # before the horizon, or the clock stepped back below an event of its own future
        by_tenant.setdefault(sent.tenant, []).append(row)
        order.setdefault(sent.tenant, []).append(sent)
    offers = [
        meter.taking.offer_one(tenant, rows[0], 100)
        if len(rows) == 1 and marks is None
        else meter.taking.offer(tenant, rows, 100 * len(rows), marks)
        for tenant, rows in by_tenant.items()
    ]
    for offer in offers:
        await offer.settled()
    for offer in offers:
        late = offer.own_group.late if offer.own_group else {}
        for sent, verdict, position in zip(
            order[offer.tenant], offer.verdicts, offer.positions, strict=True
        ):
            if verdict == CONFLICT:
                raise Violation(f"{sent.identity} was sent unchanged and called another event")
            if verdict == ACCEPTED and sent.is_before(horizon_us):
                raise Violation(f"{sent.identity} is before the horizon and was accepted")
            if meter.phase != "stopped":  # then the index is closed: nobody may ask it
                _assert_true_now(meter, sent)
            world.acknowledged[sent.identity] = sent
            is_late = (offer.part, position) in late
            if is_late and marks is not None and marks.historic:
                raise Violation(f"{sent.identity} is historic and was judged late")
            who = (sent.tenant, sent.event.customer_ref)
            # Who is being erased goes by another name from now on.
            is_named = erasures.get(who) == world.kept.attempts.get(who)
            is_named = is_named and not world.kept.asking[who]
            if verdict == ACCEPTED and not is_late and is_named:
                _assert_readable(meter, sent)


async def send_until_heard(world: World, meter: Meter, batch: Sequence[Sent]) -> None:
    """Send again until the answer is yes; on a good disk it must come soon."""
    for _ in range(100):
        try:
            return await send(world, meter, batch)
        except Unavailable:
            await trio.sleep(0.1)
    raise Violation("the meter refuses work for 10 s on a good disk")


def _assert_true_now(meter: Meter, sent: Sent) -> None:
    """Accepted or duplicate: at this moment the event is durable, and no group that holds it waits to be counted."""
    writer = meter.started.writer
    if writer.keys.lookup(sent.key) is None:
        raise Violation(f"{sent.identity} was answered before it was durable")
    if any(sent.key in group.keys and not group.done.is_set() for group in writer._unfolded):
        raise Violation(f"{sent.identity} was answered before it was counted")


def _assert_readable(meter: Meter, sent: Sent) -> None:
    """Read your writes: an acknowledged event is in the counters at once."""
    shard, partition = meter.shard_of_customer(sent.tenant, sent.event.customer_ref)
    series = (sent.tenant, sent.event.metric, sent.event.customer_ref)
    if series not in shard.state.counters[partition]:
        raise Violation(f"{sent.identity} was acknowledged and is not counted")
