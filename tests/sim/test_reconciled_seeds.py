"""Reconciliation in clean worlds whose summaries lag for minutes to hours: nothing is said but that, and nothing is pushed twice.

One seed is one history of some hours: customers use, corrections take away, the server restarts. Half of the worlds
allow repairs without a person. RECON_SEEDS says how many are tried (a thousand in two minutes' time of one core each
hundred); a failure prints its seed.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from fractions import Fraction

import pytest
import trio
import trio._core._run as scheduler
import trio.testing

from engine.actors.reconciler import ReconOptions
from engine.actors.supervisor import Meter, MeterOptions
from engine.core.partitions import partition_of
from engine.core.periods import period_in
from engine.core.records import AdjustmentChange, AdjustmentMade
from gateway.simulator.ledger import Settings
from tests.helpers.push_place import BY
from tests.helpers.recon_place import ReconPlace

SEEDS = int(os.environ.get("RECON_SEEDS", "20"))
HOUR = 3600


class LaggingPlace(ReconPlace):
    """One seed's world."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        lowest = self.rng.choice((0, 60, 600))
        highest = lowest + self.rng.choice((60, 900, 2 * HOUR))
        stripe = Settings(
            seed=str(seed),
            auto_create=True,
            meters=("*",),
            lag_seconds_min=float(lowest),
            lag_seconds_max=float(highest),
        )
        super().__init__(stripe=stripe, interval_us=self.rng.choice((60, 300)) * 1_000_000)
        self.lag_seconds_max = highest
        self.customers = [f"cus_{n}" for n in range(self.rng.choice((1, 2, 6)))]
        self.used: dict[str, int] = dict.fromkeys(self.customers, 0)
        self.said: set[str] = set()
        self.corrections = 0

    def options(self) -> MeterOptions:
        """Short lags: whatever is told too early is told here."""
        reconcile = ReconOptions(
            interval_us=900_000_000, lag_us=120_000_000, epsilon=Fraction(1, 1000)
        )
        return replace(super().options(), reconcile=reconcile)

    async def correct(self, meter: Meter, customer: str) -> None:
        """Take something back."""
        units = self.rng.randint(1, max(1, self.used[customer] // 2))
        self.corrections += 1
        now_us = self.clock.now_us()
        start_us, end_us = period_in(meter.rules.schedule("acme", "calls", customer), now_us)
        made = AdjustmentMade(
            id=f"adj_{self.corrections}",
            tenant_id="acme",
            metric="calls",
            customer_ref=customer,
            period_start_us=start_us,
            period_end_us=end_us,
            kind="delta",
            micros=-units * 1_000_000,
            reason="correction",
        )
        partition = partition_of("acme", customer)
        for action, adjustment, ids in (("create", made, ()), ("approve", None, (made.id,))):
            await meter.append_control(
                AdjustmentChange(
                    action=action,  # type: ignore[arg-type]
                    partition=partition,
                    change=BY,
                    tenant_id="acme",
                    adjustment=adjustment,
                    ids=ids,
                )
            )
        self.used[customer] -= units

    async def live(self, meter: Meter, seconds: float) -> None:
        """Use, correct and look, for so long."""
        until = trio.current_time() + seconds
        while trio.current_time() < until:
            customer = self.rng.choice(self.customers)
            if self.used[customer] and self.rng.random() < 0.2:
                await self.correct(meter, customer)
            else:
                units = self.rng.choice((1, 7, 500))
                self.used[customer] += units
                await self.use(meter, units, customer)
            await trio.sleep(self.rng.choice((5, 120, 900)))
            self.look(meter)

    def look(self, meter: Meter) -> None:
        """Note what was said."""
        findings = meter.push.findings
        self.said |= {one.record.cause for one in findings.open.values()}
        self.said |= {one.record.cause for one in findings.ended.values()}


async def history(seed: int) -> None:
    place = LaggingPlace(seed)
    is_repairing = seed % 2 == 1
    for life in range(place.rng.choice((1, 2, 3))):
        async with place.running() as meter:
            if life == 0:
                await place.map(meter, auto_repair=is_repairing)
            await place.live(meter, place.rng.choice((0.5, 1.5)) * HOUR)
    async with place.running() as meter:
        await trio.sleep(place.lag_seconds_max * 1.1 + 2 * HOUR)
        place.look(meter)
        assert place.said <= {"behind"}, f"seed {seed}: {place.said}"
        for customer, used in place.used.items():
            assert place.total(customer) == used, f"seed {seed}: {customer}"
        left = [one.record for one in meter.push.findings.open.values()]
        assert not left, f"seed {seed}: {left}"


@pytest.mark.slow
@pytest.mark.parametrize("block", range((SEEDS + 19) // 20))
def test_a_clean_world_that_lags_has_no_finding_but_that_and_no_second_push(block: int) -> None:
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    for seed in range(block * 20, min(SEEDS, block * 20 + 20)):
        print(f"seed {seed}")
        scheduler._r.seed(seed)
        trio.run(history, seed, clock=trio.testing.MockClock(autojump_threshold=0))
