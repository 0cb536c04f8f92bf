"""Use that reaches no target: customers' use of mapped metrics that goes nowhere, and metrics that nothing bills.

Rules it keeps: what waits for an answer of Stripe's is not told before it had a lag to come; a tenant that bills nothing
through this meter is told nothing; a metric whose mapping names nothing at Stripe is not billed on purpose. It must not know targets, or what is done about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from engine.actors.pusher import Pusher
from engine.actors.shard import Shard
from engine.core.finding_plan import Unrouted
from engine.core.push_records import series_digest
from engine.core.push_routes import mapping_route
from engine.core.push_uses import uses_of
from engine.core.quantities import format_micros
from engine.core.registry import Registry
from engine.ports import Clock

_SLICE = 50


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
        """Totals of periods that begin in [start_us, end_us) whose place at Stripe is not known yet, nor what is there."""
        totals = self._pusher.totals
        found = 0
        for number, series in enumerate(list(totals.unroutable)):
            if number % _SLICE == _SLICE - 1:
                await trio.lowlevel.checkpoint()
            wanted = (tenant, metric, customer_ref)
            is_wanted = all(one in (None, own) for one, own in zip(wanted, series, strict=True))
            if is_wanted and totals.is_waiting(series):
                shard, partition = self._pusher.changes.place_of(series)
                uses = uses_of(shard.state, self._pusher.rules, partition, series)
                found += sum(1 for use in uses if use.micros and start_us <= use.start_us < end_us)
        return found

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

    def _of_series(
        self, series: tuple[str, str, str], reason: str
    ) -> list[tuple[object, Unrouted]]:
        tenant, metric, _ref = series
        mapped_us = self._pusher.state.findings.mapped_at_us.get((tenant, metric), 0)
        shard, partition = self._pusher.changes.place_of(series)
        found: list[tuple[object, Unrouted]] = []
        for use in uses_of(shard.state, self._pusher.rules, partition, series):
            if use.end_us <= mapped_us or not use.micros:
                continue
            digest = series_digest(*series)
            text = format_micros(use.micros)
            one = Unrouted(tenant, metric, digest, use.start_us, text, reason)
            found.append(((digest, use.start_us), one))
        return found

    def _of_metrics(self) -> list[tuple[object, Unrouted]]:
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
        reason = "no mapping says where it is billed"
        return [(pair, Unrouted(*pair, b"", 0, "0", reason)) for pair in sorted(used - mapped)]
