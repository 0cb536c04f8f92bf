"""Metrics of pushing, and how targets stand: counted in slices beside the server's work, and kept for a while.

Rules it keeps: to count ten thousand targets takes a tenth of a second, so it is done with pauses and at most once in
KEPT_US; labels are of fixed sets, none names a tenant, customer or account. It must not know HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple, get_args

import trio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from engine.actors.supervisor import Meter
from engine.core.push_plan import Standing
from gateway.push_nowhere import usage_that_goes_nowhere

KEPT_US: Final = 10_000_000
_SLICE: Final = 50
STANDINGS: Final[tuple[str, ...]] = get_args(Standing)
RESULTS: Final = ("delivered", "exists", "later", "unknown", "refused", "quarantined", "withdrawn")
"""What became of an attempt, and of an intent."""
_NOT_FAILED: Final = ("delivered", "exists")

PUSH_DESCRIPTIONS: Final[dict[str, str]] = {
    "stripe_push_total": "Attempts to push to Stripe by their answers, and intents that were quarantined or withdrawn.",
    "stripe_push_lag_seconds": "How long the push that waits longest has been due, or under way without an outcome.",
    "shadow_usage_posts_total": "Attempts to push for shadow mappings.",
    "shadow_usage_post_failures_total": "Those of them that were not taken.",
    "push_targets": "Targets at Stripe, by how they stand.",
    "push_targets_need_person": "Targets that stay as they are until somebody decides.",
    "push_unroutable": "Customers' mapped usage that goes nowhere.",
    "stripe_rejected_events_total": "Meter events that Stripe reported as rejected after it had taken them.",
    "stripe_reports_without_key_total": "Such reports that were passed over: there is no key of their mode to read them with.",
}
"""Every name and its meaning, as gateway.metrics has them."""


class Standings(NamedTuple):
    """How targets stood when they were counted last."""

    counts: dict[str, int]
    need_person: int
    nowhere: int
    lag_us: int
    at_us: int
    """On the monotonic clock."""


class PushMetrics:
    """One per server."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._counting = trio.Lock()
        self.standings: Standings | None = None
        self.rejected = 0
        """Meter events that webhooks reported."""
        self.without_key = 0
        """Reports of webhooks that no key can read."""

    async def refresh(self) -> Standings | None:
        """Count anew unless that was done a moment ago; None: there is nothing to count yet."""
        if self._meter.phase != "ready":
            return None
        async with self._counting:
            now_us = self._meter.clock.monotonic_us()
            if self.standings is None or now_us - self.standings.at_us >= KEPT_US:
                self.standings = await self._count(now_us)
        return self.standings

    async def _count(self, at_us: int) -> Standings:
        started = self._meter.started
        counts: Counter[str] = Counter()
        need_person = lag_us = 0
        now_us = self._meter.clock.now_us()
        for number, target in enumerate(list(started.push.totals.targets)):
            if number % _SLICE == _SLICE - 1:
                await trio.lowlevel.checkpoint()
            report = started.pusher.report(target)
            if report is None:
                continue
            counts[report.standing] += 1
            need_person += report.needs_person
            since_us = now_us
            if report.open is not None:
                since_us = report.open.first_sent_at_us
            elif report.standing == "due" and report.next_at_us is not None:
                since_us = report.next_at_us
            lag_us = max(lag_us, now_us - since_us)
        nowhere = len(usage_that_goes_nowhere(self._meter, None))
        return Standings(dict(counts), need_person, nowhere, lag_us, at_us)

    def collect(self) -> Iterator[Metric]:
        """The metric families; those of targets as they were counted last."""
        results = self._meter.started.push.server.results
        pushes = CounterMetricFamily(
            "stripe_push", PUSH_DESCRIPTIONS["stripe_push_total"], labels=("result",)
        )
        for result in RESULTS:
            pushes.add_metric((result,), results["main", result])
        yield pushes
        attempts = {result: results["shadow", result] for result in RESULTS[:5]}
        failures = sum(n for result, n in attempts.items() if result not in _NOT_FAILED)
        yield _counter("shadow_usage_posts_total", sum(attempts.values()))
        yield _counter("shadow_usage_post_failures_total", failures)
        yield _counter("stripe_rejected_events_total", self.rejected)
        yield _counter("stripe_reports_without_key_total", self.without_key)
        found = self.standings or Standings({}, 0, 0, 0, 0)
        yield _gauge("push_unroutable", found.nowhere)
        standings = GaugeMetricFamily(
            "push_targets", PUSH_DESCRIPTIONS["push_targets"], labels=("standing",)
        )
        for standing in STANDINGS:
            standings.add_metric((standing,), found.counts.get(standing, 0))
        yield standings
        yield _gauge("push_targets_need_person", found.need_person)
        yield _gauge("stripe_push_lag_seconds", found.lag_us / 1_000_000)


def _counter(name: str, value: float) -> Metric:
    return CounterMetricFamily(name.removesuffix("_total"), PUSH_DESCRIPTIONS[name], value=value)


def _gauge(name: str, value: float) -> Metric:
    return GaugeMetricFamily(name, PUSH_DESCRIPTIONS[name], value=value)
