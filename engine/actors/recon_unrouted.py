"""Use that reaches no target: customers' use of mapped metrics that goes nowhere, and metrics that nothing bills.

Rules it keeps: what waits for an answer of Stripe's is not told before it had a lag to come; a tenant that bills nothing
through this meter is told nothing; a metric whose mapping names nothing at Stripe is not billed on purpose. It must not know targets, or what is done about it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

import trio

from engine.actors.pusher import Pusher
from engine.actors.shard import Shard
from engine.core.finding_plan import Unrouted, is_unrouted_accepted
from engine.core.findings import OpenFinding
from engine.core.push_records import series_digest
from engine.core.push_routes import mapping_route
from engine.core.push_uses import PeriodUse, uses_of
from engine.core.quantities import format_micros
from engine.core.registry import Registry
from engine.core.shard_state import Series
from engine.core.times import INSTANT_US_END, INSTANT_US_MIN
from engine.ports import Clock

_SLICE = 50
_SERIES_PER_SLICE = 5_000
"""Where they are only compared."""


class Nowhere(NamedTuple):
    """What a finding comes to now, in some periods."""

    found: OpenFinding
    customer_refs: tuple[str, ...]
    start_us: int
    """Of the first of these periods."""
    micros: int


class ReconUnrouted:
    """Finds it anew each time, and remembers since when it is so."""

    def __init__(
        self,
        pusher: Pusher,
        registry: Callable[[], Registry],
        shards: Sequence[Shard],
        clock: Clock,
        lag_us: int,
    ) -> None:
        self._pusher = pusher
        self._registry = registry
        self._shards = shards
        self._clock = clock
        self._lag_us = lag_us
        self._since_us: dict[object, int] = {}
        self.again_us: int | None = None
        """When something found now will have been so for a lag."""

    async def find(self) -> list[Unrouted]:
        """All of it that has been so for a lag."""
        now_us = self._clock.now_us()
        found: list[tuple[object, Unrouted]] = []
        meant = self._meant()
        for number, (series, reason) in enumerate(list(self._pusher.totals.unroutable.items())):
            if number % _SLICE == _SLICE - 1:
                await trio.lowlevel.checkpoint()
            if series[:2] in meant:
                found += self._of_series(series, reason)
        found += self._of_metrics()
        told = self._told()
        since_us = {
            key: self._since_us.get(key, 0 if key in told or one[:2] in told else now_us)
            for key, one in found
        }
        self._since_us = since_us
        later = [at + self._lag_us for at in since_us.values() if at + self._lag_us > now_us]
        self.again_us = min(later, default=None)
        return [one for key, one in found if now_us >= since_us[key] + self._lag_us]

    def _told(self) -> set[object]:
        """What findings are open about, also of before a restart: it has been so for long enough."""
        told: set[object] = set()
        for one in self._pusher.state.findings.open.values():
            record = one.record
            if record.target is None and not record.account:
                pair = (record.tenant_id, record.metric)
                told.add((record.series, record.start_us) if record.series else pair)
        return told

    async def waiting(
        self,
        tenant: str | None,
        start_us: int,
        end_us: int,
        metric: str | None,
        customer_ref: str | None,
    ) -> int:
        """Totals of periods that begin in [start_us, end_us) of which it is not known where they are billed.

        Stripe has not said it yet, or they are billed nowhere and no run has found that out.
        """
        totals, findings = self._pusher.totals, self._pusher.state.findings
        meant, told = self._meant(), self._told()
        found = 0
        async for series, use in self._uses(tenant, start_us, end_us):
            if metric not in (None, series[1]) or customer_ref not in (None, series[2]):
                continue
            if totals.is_waiting(series):
                found += 1
            elif series[:2] in meant and self._is_since_mapped(series, use):
                one = self._unrouted(series, use, "")
                is_told = series[:2] in told or (one.series, one.start_us) in told
                found += not (is_told or is_unrouted_accepted(findings, one))
        return found

    async def told(self, tenant: str | None, start_us: int, end_us: int) -> list[Nowhere]:
        """What the open findings come to now, in periods that begin in [start_us, end_us); what is 0 is left out."""
        by_key: dict[object, OpenFinding] = {}
        for one in self._pusher.state.findings.open.values():
            record = one.record
            if record.target is None and not record.account and tenant in (None, record.tenant_id):
                pair = (record.tenant_id, record.metric)
                by_key[(record.series, record.start_us) if record.series else pair] = one
        parts: dict[str, list[tuple[Series, PeriodUse]]] = {one.id: [] for one in by_key.values()}
        async for series, use in self._uses(tenant, start_us, end_us):
            own = by_key.get((series_digest(*series), use.start_us)) or by_key.get(series[:2])
            if own is not None and use.micros and self._is_since_mapped(series, use):
                parts[own.id].append((series, use))
        unmapped = self._unmapped() & by_key.keys()
        if unmapped:
            async for series in self._series_of(unmapped):
                uses = self._uses_of(series, start_us, end_us)
                parts[by_key[series[:2]].id] += [(series, use) for use in uses]
        return [
            Nowhere(
                one,
                tuple(sorted({series[2] for series, _ in parts[one.id]})),
                min(use.start_us for _, use in parts[one.id]),
                sum(use.micros for _, use in parts[one.id]),
            )
            for one in by_key.values()
            if parts[one.id]
        ]

    async def units_now(self, found: OpenFinding) -> str:
        """What an open finding's use that goes nowhere comes to by now, as its record has it; of a metric never mapped 0."""
        record = found.record
        if not record.series and (record.tenant_id, record.metric) in self._unmapped():
            return record.units
        whole = await self.told(record.tenant_id, INSTANT_US_MIN, INSTANT_US_END)
        own = next((one for one in whole if one.found.id == found.id), None)
        return record.units if own is None else format_micros(own.micros)

    async def _uses(
        self, tenant: str | None, start_us: int, end_us: int
    ) -> AsyncIterator[tuple[Series, PeriodUse]]:
        """Of use of mapped metrics what reaches no target; nothing, where it is only not known whether all of it does."""
        for number, series in enumerate(list(self._pusher.totals.unroutable)):
            if number % _SLICE == _SLICE - 1:
                await trio.lowlevel.checkpoint()
            if tenant in (None, series[0]):
                is_waiting = self._pusher.totals.is_waiting(series)
                for use in self._uses_of(series, start_us, end_us):
                    micros = self._pusher.totals.nowhere.micros(series, use)
                    if micros or is_waiting:
                        yield series, use._replace(micros=micros)

    async def _series_of(self, metrics: set[tuple[str, str]]) -> AsyncIterator[Series]:
        number = 0
        for shard in self._shards:
            for counters in list(shard.state.counters.values()):
                for series in list(counters):
                    number += 1
                    if number % _SERIES_PER_SLICE == 0:
                        await trio.lowlevel.checkpoint()
                    if series[:2] in metrics:
                        yield series

    def _uses_of(self, series: Series, start_us: int, end_us: int) -> list[PeriodUse]:
        shard, partition = self._pusher.changes.place_of(series)
        uses = uses_of(shard.state, self._pusher.rules, partition, series)
        return [use for use in uses if use.micros and start_us <= use.start_us < end_us]

    def _is_since_mapped(self, series: Series, use: PeriodUse) -> bool:
        return use.end_us > self._pusher.state.findings.mapped_at_us.get(series[:2], 0)

    def _meant(self) -> set[tuple[str, str]]:
        """(tenant, metric) that are to be pushed for every customer."""
        registry = self._registry()
        with_items = {
            (tenant, metric)
            for tenant, customers in registry.customers.items()
            for customer in customers.values()
            for metric in customer.subscription_items
        }
        return {
            (one.tenant_id, one.metric)
            for one in registry.mappings.values()
            if one.active
            and (
                mapping_route(one).names_something
                or one.driver == "usage_record"
                or (one.tenant_id, one.metric) in with_items
            )
        }

    def _of_series(self, series: Series, reason: str) -> list[tuple[object, Unrouted]]:
        shard, partition = self._pusher.changes.place_of(series)
        found: list[tuple[object, Unrouted]] = []
        for use in uses_of(shard.state, self._pusher.rules, partition, series):
            micros = self._pusher.totals.nowhere.micros(series, use)
            if micros and self._is_since_mapped(series, use):
                one = self._unrouted(series, use._replace(micros=micros), reason)
                found.append(((one.series, one.start_us), one))
        return found

    def _unrouted(self, series: Series, use: PeriodUse, reason: str) -> Unrouted:
        text = format_micros(use.micros)
        return Unrouted(*series[:2], series_digest(*series), use.start_us, text, reason)

    def _of_metrics(self) -> list[tuple[object, Unrouted]]:
        reason = "no mapping says where it is billed"
        return [(pair, Unrouted(*pair, b"", 0, "0", reason)) for pair in sorted(self._unmapped())]

    def _unmapped(self) -> set[tuple[str, str]]:
        """Metrics that were never mapped, of tenants that bill others."""
        mapped = {(one.tenant_id, one.metric) for one in self._registry().mappings.values()}
        mapped |= self._pusher.state.routes.metrics()
        billing = {one.tenant_id for one in self._registry().mappings.values() if one.active}
        used = {
            (tenant, metric)
            for shard in self._shards
            for tenant, metrics in shard.state.metrics.items()
            if tenant in billing
            for metric in metrics
        }
        return used - mapped
