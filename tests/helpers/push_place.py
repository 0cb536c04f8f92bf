"""A meter in memory that pushes to the Stripe simulator in process: virtual time, disks and Stripe that outlive it.

Everything between is real: log writer, shards, pusher, drivers, the simulator's rules. It must not know which promise
is tested.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from engine.actors.supervisor import Meter, MeterOptions
from engine.core.configured import Change, Customer, CustomerChange, MappingChange
from engine.core.configured import Mapping as MappingRecord
from engine.core.events import EventLimits, Refusal, SentEvent, accept
from engine.core.push_records import Role
from engine.core.times import parse_instant
from engine.drivers.billing import StripeBilling
from engine.ports import Billing
from gateway.simulator.ledger import Settings
from gateway.simulator.state import StripeState
from tests.helpers.served import CountedIds, run_inline
from tests.helpers.simulator_wire import BASE, SimulatorWire
from wal.archive import MemoryArchives
from wal.memory_cells import MemoryCells
from wal.memory_log import FakeDisk, MemoryLog
from wal.memory_runs import MemoryRuns
from wal.snapshot import MemorySnapshots

START_US = parse_instant("2026-10-24T10:00:00Z")
BY = Change(actor="test")
KEY = "sk_test_of_these_tests"
METERS = ("calls", "seats")


class VirtualClock:
    """Wall time that follows trio's, which a MockClock makes virtual."""

    def __init__(self, start_us: int = START_US) -> None:
        self.start_us = start_us

    def now_us(self) -> int:
        return self.start_us + int(trio.current_time() * 1_000_000)

    def monotonic_us(self) -> int:
        return int(trio.current_time() * 1_000_000)


class PushPlace:
    """What outlives a meter: its disks, and Stripe."""

    def __init__(
        self,
        *,
        stripe: Settings | None = None,
        start_us: int = START_US,
        interval_us: int = 1_000_000,
    ) -> None:
        self.disk = FakeDisk()
        self.runs, self.cells = MemoryRuns(), MemoryCells()
        self.snapshots, self.archives = MemorySnapshots(), MemoryArchives()
        self.clock = VirtualClock(start_us)
        self.ids = CountedIds()
        self.interval_us = interval_us
        settings = stripe or Settings(auto_create=True, meters=("*",))
        self.stripe = StripeState(settings, self.clock.now_us)
        self.stripe.ensure(meters=METERS)
        self.wire = SimulatorWire(self.stripe)
        self.sent = 0

    def billing(self) -> dict[Role, Billing]:
        """The ways to Stripe of the next meter."""
        return {"main": StripeBilling(KEY, api_base=BASE, meter_events_base=BASE, wire=self.wire)}

    def options(self) -> MeterOptions:
        """The next meter's."""
        return MeterOptions(
            software="test",
            shards=3,
            lateness_us=48 * 3_600_000_000,
            late_policy="review",
            snapshot_every_events=1_000_000,
            push_interval_us=self.interval_us,
            is_indexing=False,
        )

    def meter(self) -> Meter:
        """A meter on what the disks hold."""
        made = Meter(
            self.options(),
            log=MemoryLog(self.disk),
            runs=self.runs,
            cells=self.cells,
            snapshots=self.snapshots,
            archives=self.archives,
            clock=self.clock,
            ids=self.ids,
            run_blocking=run_inline,
        )
        made.connect(self.billing())
        return made

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Meter]:
        """A meter that is ready, until the block ends."""
        meter = self.meter()
        ready, stop = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(meter.run, stop.wait, ready.set)
            await ready.wait()
            yield meter
            stop.set()

    async def map(self, meter: Meter, metric: str = "calls", **more: Any) -> MappingRecord:
        """Have a metric of `acme` pushed to the meter of the same name."""
        fields = {"id": f"map_{metric}", "tenant_id": "acme", "metric": metric}
        mapping = MappingRecord(**({"meter_event_name": metric} | fields | more))
        await meter.append_control(MappingChange(mapping=mapping, change=BY))
        return mapping

    async def put(self, meter: Meter, customer_ref: str, **more: Any) -> None:
        """Say what a customer is at Stripe."""
        customer = Customer(tenant_id="acme", customer_ref=customer_ref, **more)
        await meter.append_control(CustomerChange(customer=customer, change=BY))

    async def use(
        self, meter: Meter, quantity: str | int, customer_ref: str = "cus_anna", **more: Any
    ) -> int:
        """One event, acknowledged when this returns: the verdict."""
        self.sent += 1
        key = more.pop("idempotency_key", f"key-{self.sent}")
        tenant = more.pop("tenant", "acme")
        sent = SentEvent(
            metric=more.pop("metric", "calls"),
            customer_ref=customer_ref,
            quantity=msgspec.Raw(str(quantity).encode()),
            idempotency_key=key,
            **more,
        )
        row = accept(sent, tenant, None, self.clock.now_us(), EventLimits(4096))
        assert not isinstance(row, Refusal), row
        offer = meter.taking.offer(tenant, [row], 100)
        await offer.settled()
        return offer.verdicts[0]

    # What Stripe holds.

    def total(self, customer: str = "cus_anna", meter: str = "calls") -> int:
        """All that Stripe accepted for a customer, over all time; exact, without any lag."""
        return sum(self.minutes(customer, meter).values())

    def minutes(self, customer: str = "cus_anna", meter: str = "calls") -> dict[int, int]:
        """The same by minute of unix time, those not aggregated yet among them."""
        ledger = self.stripe.world.ledgers.get(self.stripe.account)
        if ledger is None or meter not in ledger.meters:
            return {}
        meter_id = ledger.meters[meter]
        found = {
            minute: value.total
            for minute, value in ledger.usage.get(f"{meter_id}|{customer}", {}).items()
        }
        for _at, _number, _identifier, sent in ledger.pending:
            if (sent.meter, sent.customer, sent.state) == (meter_id, customer, "pending"):
                minute = sent.timestamp_s // 60
                found[minute] = found.get(minute, 0) + sent.value
        return found
