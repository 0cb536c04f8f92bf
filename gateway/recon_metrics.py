"""Metrics of reconciliation: runs, what is open by cause, and how far Stripe's totals are from what was used.

Rules it keeps: drift is summed in slices and at most once in KEPT_US; labels are of fixed sets or bounded, none names a
tenant, customer or account; the months are the running one and the one before. It must not know HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Final, get_args

import trio
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from engine.actors.supervisor import Meter
from engine.core.finding_records import Cause
from engine.core.times import DAY_US, format_date
from gateway.reconciliation_report import Line, Months, lines_of, month_of
from gateway.reconciliation_shapes import share

KEPT_US: Final = 60_000_000
METRIC_LABELS_MAX: Final = 200
OTHER: Final = "other"
CAUSES: Final[tuple[str, ...]] = get_args(Cause)
_MONTH_CHARS: Final = len("YYYY-MM")

RECON_DESCRIPTIONS: Final[dict[str, str]] = {
    "recon_runs_total": "Reconciliation runs that ended, by the clock or asked for.",
    "recon_runs_failed_total": "Those of them that could not be finished.",
    "recon_duration_seconds": "How long runs took, with their second looks.",
    "recon_last_run_timestamp_seconds": "Unix time when the last run over everything ended; 0: none since the start.",
    "recon_reads_total": "Questions that reconciliation asked Stripe.",
    "recon_findings": "Differences that are open, by cause.",
    "reconciliation_unread": (
        "Totals that Stripe did not tell at the last look, so that nobody knows whether they agree; the running month and "
        "the one before."
    ),
    "reconciliation_diff_abs": (
        "Units by which Stripe's totals differ from what is to be billed, summed without their signs; the running month "
        f"and the one before, the first {METRIC_LABELS_MAX} metrics, then other."
    ),
    "reconciliation_diff_pct": "The same as a share of Stripe's totals, 0 to 1 and beyond; 1 where Stripe has nothing.",
}
"""Every name and its meaning, as gateway.metrics has them."""


class ReconMetrics:
    """One per server."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._counting = trio.Lock()
        self._counted_at_us: int | None = None
        self._drifts: dict[tuple[str, str], tuple[Fraction, Fraction]] = {}
        """(metric, month) to (drift, Stripe's total)."""
        self._unread = 0

    async def refresh(self) -> None:
        """Sum anew unless that was done a moment ago."""
        if self._meter.phase != "ready" or not self._meter.started.push.connections:
            return
        async with self._counting:
            now_us = self._meter.clock.monotonic_us()
            if self._counted_at_us is None or now_us - self._counted_at_us >= KEPT_US:
                self._drifts = await self._sum()
                self._counted_at_us = now_us

    async def _sum(self) -> dict[tuple[str, str], tuple[Fraction, Fraction]]:
        running = month_of(format_date(self._meter.clock.now_us())[:_MONTH_CHARS])
        before = month_of(format_date(running.start_us - DAY_US)[:_MONTH_CHARS])
        found: dict[tuple[str, str], tuple[Fraction, Fraction]] = {}
        names: set[str] = set()
        unread = 0
        mapped = self._meter.push.findings.mapped_at_us
        for line in await lines_of(
            self._meter, None, Months(before.start_us, running.end_us), look=False
        ):
            if line.report is None and (line.tenant, line.metric) not in mapped:
                continue  # That nothing bills it is a finding, and no drift of what is to be billed.
            unread += line.look is not None and line.look.verdict == "unread"
            if line.metric not in names and len(names) < METRIC_LABELS_MAX:
                names.add(line.metric)
            metric = line.metric if line.metric in names else OTHER
            key = (metric, format_date(line.start_us)[:_MONTH_CHARS])
            drift, stripe = found.get(key, (Fraction(0), Fraction(0)))
            found[key] = (drift + _drift(line), stripe + (line.stripe or 0))
        self._unread = unread
        return found

    def collect(self) -> Iterator[Metric]:
        """The metric families; drift as it was summed last."""
        reconciler = self._meter.started.reconciler
        yield _counter("recon_runs_total", sum(reconciler.runs.values()))
        yield _counter("recon_runs_failed_total", reconciler.runs["failed"])
        yield SummaryMetricFamily(
            "recon_duration_seconds",
            RECON_DESCRIPTIONS["recon_duration_seconds"],
            count_value=sum(reconciler.runs.values()),
            sum_value=reconciler.run_us_sum / 1e6,
        )
        last_run = _labelled("recon_last_run_timestamp_seconds", ())
        if self._meter.started.push.connections:
            # Without a way to Stripe there is nothing to compare with, and no run to wait for.
            last_run.add_metric((), (reconciler.last_ended_at_us(None) or 0) / 1e6)
        yield last_run
        yield _counter("recon_reads_total", reconciler.reader.reads)
        causes = Counter(one.record.cause for one in self._meter.push.findings.open.values())
        findings = _labelled("recon_findings", ("cause",))
        for cause in CAUSES:
            findings.add_metric((cause,), causes.get(cause, 0))  # type: ignore[call-overload]
        yield findings
        yield _gauge("reconciliation_unread", self._unread)
        drifts = _labelled("reconciliation_diff_abs", ("metric", "period"))
        shares = _labelled("reconciliation_diff_pct", ("metric", "period"))
        for labels, (drift, stripe) in sorted(self._drifts.items()):
            drifts.add_metric(labels, float(drift))
            shares.add_metric(labels, float(share(drift, stripe)))
        yield drifts
        yield shares


def _drift(line: Line) -> Fraction:
    """What was never read is no drift: that is told by the age of the last run, and by what it left unread."""
    return Fraction(0) if line.diff is None else abs(line.diff)


def _labelled(name: str, labels: tuple[str, ...]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, RECON_DESCRIPTIONS[name], labels=labels)


def _counter(name: str, value: float) -> Metric:
    return CounterMetricFamily(name.removesuffix("_total"), RECON_DESCRIPTIONS[name], value=value)


def _gauge(name: str, value: float) -> Metric:
    return GaugeMetricFamily(name, RECON_DESCRIPTIONS[name], value=value)
