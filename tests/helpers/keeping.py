"""A meter in memory with a history old enough for retention and customers to erase: run, killed and run again.

It must not know which promise is tested: it gives states to compare and bytes to search.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import msgspec
import trio

from engine.actors.supervisor import Meter, MeterOptions
from engine.core.configured import Change, Customer, CustomerChange, Mapping, MappingChange
from engine.core.events import EventLimits, Refusal, SentEvent, accept
from engine.core.times import DAY_US, format_instant
from engine.errors import Unavailable
from engine.ports import ResultT
from gateway.log_check import Inspector
from tests.helpers.served import CountedIds, SetClock
from wal.archive import MemoryArchives
from wal.check import check_log
from wal.memory_cells import MemoryCells
from wal.memory_log import FakeDisk, MemoryLog
from wal.memory_runs import MemoryRuns
from wal.snapshot import MemorySnapshots

HOUR_US = 3_600_000_000
NAME = "anna-the-customer"
"""Of tenant acme alone."""
STRIPE_NAME = "cus_stripe_of_anna"
BY = Change(actor="test")


class Killed(BaseException):
    """The process ends here."""


class Place:
    """What outlives a meter: its disks. `ops_left` counts the meter's waits for a disk until it is killed."""

    def __init__(self) -> None:
        self.disk = FakeDisk()
        self.runs = MemoryRuns()
        self.cells = MemoryCells()
        self.snapshots = MemorySnapshots()
        self.archives = MemoryArchives()
        self.clock = SetClock()
        self.ids = CountedIds()
        self.ops_left: int | None = None
        self.ops = 0

    async def run_blocking(self, function: Callable[[], ResultT]) -> ResultT:
        await trio.lowlevel.checkpoint()
        self._count()
        result = function()
        self._count()
        return result

    def _count(self) -> None:
        self.ops += 1
        if self.ops_left is not None:
            self.ops_left -= 1
            if self.ops_left < 0:
                raise Killed

    def meter(self) -> Meter:
        options = MeterOptions(
            software="test",
            shards=3,
            lateness_us=48 * HOUR_US,
            late_policy="review",
            snapshot_every_events=1_000_000,
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
            ids=self.ids,
            run_blocking=self.run_blocking,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Meter]:
        """A meter that is ready, stopped in order at the end."""
        meter = self.meter()
        ready, done = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(meter.run, done.wait, ready.set)
            await ready.wait()
            yield meter
            done.set()

    def everything(self) -> bytes:
        """All bytes on all disks."""
        files = [
            *self.disk.durable.values(),
            *self.snapshots.files.values(),
            *self.cells.data.values(),
        ]
        unpacked = [
            part.data
            for name in self.archives.names()
            for record in self.archives.read(name)
            for part in record.parts
        ]
        return b"\0".join([*map(bytes, files), *unpacked])


def problems(place: Place) -> list[str]:
    """What a check of the log finds."""
    log, inspector = MemoryLog(place.disk), Inspector()
    report = check_log(log, anchor=log.head(), inspect=inspector.inspect)
    return [p.message for p in report.problems] + [p.message for p in inspector.end()]


async def kill_after(place: Place, operations: int, work: Callable[[Meter], Any]) -> bool:
    """Run `work` in a meter that dies after so many waits for a disk; whether it did."""
    place.ops_left = None
    try:
        async with place.running() as meter:
            place.ops_left = operations
            await work(meter)
            place.ops_left = None
    except BaseExceptionGroup as group:
        killed, others = group.split(Killed)
        # Who waited for the log was told that it ended.
        if killed is None or (others is not None and others.split(Unavailable)[1] is not None):
            raise
        return True
    except Killed:
        return True
    finally:
        place.ops_left = None
        place.disk.crash(Random(operations))
    return False


async def send(
    meter: Meter,
    tenant: str,
    customer: str,
    key: str,
    quantity: str,
    ts_us: int | None,
    **more: Any,
) -> int:
    """Offer one event and wait until it counts; its verdict."""
    sent = SentEvent(
        metric=more.pop("metric", "calls"),
        customer_ref=customer,
        quantity=msgspec.Raw(quantity.encode()),
        ts=None if ts_us is None else format_instant(ts_us),
        idempotency_key=key,
        **more,
    )
    limits = EventLimits(4096, meter.registry.horizon_us)
    row = accept(sent, tenant, None, meter.clock.now_us(), limits)
    assert not isinstance(row, Refusal), row
    offer = meter.taking.offer(tenant, [row], 100)
    await offer.settled()
    return offer.verdicts[0]


async def fill(place: Place, rng: Random, *, months: int = 4, events: int = 60) -> None:
    """A history over months: customers, an anchor, a max metric, late events, duplicates, an adjustment's worth."""
    async with place.running() as meter:
        await meter.append_control(
            MappingChange(
                mapping=Mapping(
                    id="m1",
                    tenant_id="acme",
                    metric="seats",
                    aggregation="max",
                    period="subscription",
                ),
                change=BY,
            )
        )
        await meter.append_control(
            CustomerChange(
                customer=Customer(
                    tenant_id="acme",
                    customer_ref=NAME,
                    stripe_customer_id=STRIPE_NAME,
                    billing_anchor_us=place.clock.us - 17 * DAY_US,
                ),
                change=BY,
            )
        )
        step_us = months * 30 * DAY_US // events
        for number in range(events):
            place.clock.us += step_us
            customer = rng.choice((NAME, "bob-the-customer", "cleo"))
            tenant = "acme" if customer == NAME else rng.choice(("acme", "umbra"))
            ago = rng.choice((0, 0, 1, 47, 49, 24 * 40)) * HOUR_US
            await send(
                meter,
                tenant,
                customer,
                f"key-of-{customer}-{number}",
                str(rng.randrange(10**6)),
                place.clock.us - ago,
                metric=rng.choice(("calls", "seats")),
                resource_id=f"res-of-{customer}",
                meta=msgspec.Raw(b'{"who":"%s"}' % customer.encode()),
            )
            if number % 7 == 0:
                await meter.started.closer.close_due()


def state_of(meter: Meter, names: dict[str, str] | None = None) -> dict[str, Any]:
    """Everything that counts, comparable; `names` are put in the place of customers of tenant acme."""
    names = names or {}
    counters, adjustments = {}, {}

    def renamed(tenant: str, customer: str) -> str:
        return names.get(customer, customer) if tenant == "acme" else customer

    for shard in meter.shards:
        for partition, table in shard.state.counters.items():
            for (tenant, metric, customer), newest in table.items():
                counter = newest
                while counter is not None:
                    key = (partition, tenant, metric, renamed(tenant, customer), counter.start_us)
                    if counter.count:
                        counters[key] = counter.state()
                    counter = counter.older
            for one in shard.state.adjustments[partition].by_id.values():
                row = list(one.state())
                row[1] = (
                    one.tenant,
                    one.metric,
                    renamed(one.tenant, one.customer_ref),
                    one.start_us,
                )
                row[9] = None
                adjustments[one.id] = row
    return {
        "counters": counters,
        "adjustments": adjustments,
        "closed": meter.rules.closed_until_us,
        "anchors": {
            (tenant, renamed(tenant, customer)): history
            for (tenant, customer), history in meter.rules.anchors.items()
        },
    }
