"""Metrics: what is counted while the server works, and `GET /metrics` in Prometheus' text format.

Rules it keeps: a label has a bound and never a customer, tenant or key; the hot path adds to plain numbers (below
1 µs a call) which are turned into metrics when they are asked for; each name is in docs/METRICS.md. One task works on
these numbers at a time: trio never switches between reading and writing one. It must not know HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from engine.actors.anchorer import Anchorer
from engine.actors.supervisor import Meter
from engine.core.times import INSTANT_US_MIN
from gateway.log_output import lines_dropped
from gateway.measured_log import Distribution, MeasuredLog
from gateway.push_metrics import PUSH_DESCRIPTIONS, PushMetrics
from gateway.recon_metrics import RECON_DESCRIPTIONS, ReconMetrics
from gateway.streams import Streams

METER_LABELS_MAX: Final = 200
"""Metric names that get a line of their own; the rest is `other`."""
OTHER: Final = "other"
HTTP_SERIES_MAX: Final = 2000
"""(method, route, status) combinations; routes come from the table, so this is never reached."""
METHODS: Final = frozenset(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"))
REAGGREGATION_REASONS: Final = ("approve", "revert", "replay", "late-policy")
REQUEST_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
INGEST_MS: Final = (0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10000)

DESCRIPTIONS: Final[dict[str, str]] = {
    "http_requests_total": "Requests answered, by method, route template and status.",
    "http_request_duration_seconds": "Time from a request's head to the end of its answer.",
    "events_ingested_total": f"Events accepted, by metric; beyond {METER_LABELS_MAX} metrics: other.",
    "events_duplicate_total": "Events that had been counted before.",
    "late_events_total": "Events accepted late, held in an adjustment.",
    "reaggregations_total": "Counters whose total was made anew: by an approval, a reversal, a replay, or the late policy.",
    "ingest_latency_ms": "Milliseconds from a request's body to durable and counted.",
    "wal_commit_seconds": "Time of one durable commit of the log.",
    "wal_batch_events": "Events in one commit.",
    "wal_commit_failures_total": "Commits that failed; nothing of them was acknowledged.",
    "queue_lag_seconds": "The longest that anything in a queue has waited, at most.",
    "queue_events": "Events that wait for the next commit.",
    "queue_bytes": "Bytes that wait for the next commit.",
    "log_next_sequence": "Where the log ends: the next position to be given.",
    "log_size_bytes": "Bytes that the log takes on its disk.",
    "recovery_position": "How far recovery has come, as a log position.",
    "recent_keys": "Dedupe keys in memory, not yet in a run on disk.",
    "stored_keys": "Dedupe keys in runs on disk.",
    "shard_counters": "Counters (tenant, metric, customer) in memory, their newest periods.",
    "operations_open": "Backfills and imports that have not ended.",
    "operation_rows_total": "Rows of backfills, by what became of them.",
    "late_adjustments": "Adjustments that hold late events.",
    "exports_open": "Streamed exports that are being sent now.",
    "exports_cut_off_total": "Streamed exports that could not be finished.",
    "as_of_answers_total": "Steps of questions about the past that were answered.",
    "as_of_refused_total": "Questions about the past that took too long, or found too many before them.",
    "as_of_waiting": "Questions about the past that wait for their turn.",
    "erasures_open": "Erasures that were begun and have not ended.",
    "retention_horizon_timestamp_seconds": "Unix time before which events are refused; 0: none was dropped.",
    "keeping_failed": "1 while an erasure or retention can't go on; its reason is in the log.",
    "anchors_written_total": "Anchors of the log's head that were kept elsewhere.",
    "anchor_failures_total": "Attempts to keep an anchor that failed; they are repeated.",
    "anchor_behind_seconds": "For how long something was acknowledged that no anchor covers.",
    **PUSH_DESCRIPTIONS,
    **RECON_DESCRIPTIONS,
    "log_lines_dropped_total": "Lines of the server's own log output that nobody took and that are lost.",
    "process_uptime_seconds": "Seconds since the server started.",
    "ready": "1 when the server takes events, else 0.",
}
"""Every metric's name and meaning: what docs/METRICS.md lists."""


class Metrics:
    """The numbers, and the calls that move them. One per server."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._started_us = meter.clock.monotonic_us()
        self._events: dict[str, int] = {}
        self._duplicates = 0
        self._late = 0
        self._reaggregations = dict.fromkeys(REAGGREGATION_REASONS, 0)
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._durations: dict[tuple[str, str], Distribution] = {}
        self._latency = Distribution(INGEST_MS)
        self.streams: Streams | None = None
        """The gateway's; it sets it."""
        self.push = PushMetrics(meter)
        self.recon = ReconMetrics(meter)
        self.anchorer: Anchorer | None = None
        """The gateway's; it sets it."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Exposition(self))

    def ingested(self, metric: str, count: int) -> None:
        """`count` events of a metric were accepted."""
        events = self._events
        if metric not in events and len(events) >= METER_LABELS_MAX:
            metric = OTHER
        events[metric] = events.get(metric, 0) + count

    def duplicates(self, count: int) -> None:
        """`count` events were duplicates."""
        self._duplicates += count

    def late(self, count: int) -> None:
        """`count` events were accepted late."""
        self._late += count
        if self._meter.rules.late_policy == "auto":
            self._reaggregations["late-policy"] += count

    def reaggregated(self, reason: str, count: int) -> None:
        """`count` counters were made anew, for one of REAGGREGATION_REASONS."""
        self._reaggregations[reason] += count

    def ingest_latency(self, microseconds: int) -> None:
        """An ingest request was answered so long after its body was there."""
        self._latency.observe(microseconds / 1000)

    def http_request(self, method: str, route: str, status: int, microseconds: int) -> None:
        """A request was answered. `route` is a template of the table, or a fixed word."""
        if method not in METHODS:
            method = OTHER
        self._requests[method, route, status] += 1
        assert len(self._requests) <= HTTP_SERIES_MAX, "a route label without a bound"
        duration = self._durations.get((method, route))
        if duration is None:
            duration = self._durations[method, route] = Distribution(REQUEST_SECONDS)
        duration.observe(microseconds / 1_000_000)

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Everything as metric families."""
        yield from self._collect_http()
        yield from self._collect_ingest()
        yield from self._collect_log()
        yield from self._collect_state()

    def _collect_http(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "http_requests",
            DESCRIPTIONS["http_requests_total"],
            labels=("method", "route", "status_code"),
        )
        for (method, route, status), count in self._requests.items():
            requests.add_metric((method, route, str(status)), count)
        yield requests
        durations = HistogramMetricFamily(
            "http_request_duration_seconds",
            DESCRIPTIONS["http_request_duration_seconds"],
            labels=("method", "route"),
        )
        for labels, duration in self._durations.items():
            durations.add_metric(labels, duration.buckets(), duration.total)
        yield durations

    def _collect_ingest(self) -> Iterator[Metric]:
        ingested = CounterMetricFamily(
            "events_ingested", DESCRIPTIONS["events_ingested_total"], labels=("meter",)
        )
        for metric, count in self._events.items():
            ingested.add_metric((metric,), count)
        yield ingested
        yield _counter("events_duplicate_total", self._duplicates)
        yield _counter("late_events_total", self._late)
        reaggregations = CounterMetricFamily(
            "reaggregations", DESCRIPTIONS["reaggregations_total"], labels=("reason",)
        )
        for reason, count in self._reaggregations.items():
            reaggregations.add_metric((reason,), count)
        yield reaggregations
        yield _histogram("ingest_latency_ms", self._latency)

    def _collect_log(self) -> Iterator[Metric]:
        log = self._meter.log
        if isinstance(log, MeasuredLog):
            yield _histogram("wal_commit_seconds", log.commit_seconds)
            yield _histogram("wal_batch_events", log.batch_events)
            yield _counter("wal_commit_failures_total", log.failures)
            lag = GaugeMetricFamily(
                "queue_lag_seconds", DESCRIPTIONS["queue_lag_seconds"], labels=("queue",)
            )
            lag.add_metric(("log",), log.commit_runs_for_seconds())
            yield lag
        yield _gauge("log_next_sequence", log.head().next_sequence)
        yield _gauge("log_size_bytes", log.size_bytes())
        yield _gauge("recovery_position", self._meter.progress.position)

    def _collect_state(self) -> Iterator[Metric]:
        meter = self._meter
        uptime_us = meter.clock.monotonic_us() - self._started_us
        yield _gauge("process_uptime_seconds", uptime_us / 1_000_000)
        yield _gauge("ready", 1 if meter.phase == "ready" else 0)
        yield _counter("log_lines_dropped_total", lines_dropped())
        if meter.phase != "ready":
            return
        if self.streams is not None:
            yield _gauge("exports_open", self.streams.open)
            yield _counter("exports_cut_off_total", self.streams.cut_off)
        past = meter.started.as_of
        yield _counter("as_of_answers_total", past.answered)
        yield _counter("as_of_refused_total", past.refused)
        yield _gauge("as_of_waiting", past.waiting)
        yield _gauge("erasures_open", len(meter.registry.erasures))
        horizon_us = meter.registry.horizon_us
        horizon_seconds = 0 if horizon_us <= INSTANT_US_MIN else horizon_us / 1e6
        yield _gauge("retention_horizon_timestamp_seconds", horizon_seconds)
        failed = meter.started.eraser.last_error or meter.started.retention.last_error
        yield _gauge("keeping_failed", 1 if failed else 0)
        events, size_bytes = meter.started.writer.queued
        yield _gauge("queue_events", events)
        yield _gauge("queue_bytes", size_bytes)
        yield _gauge("recent_keys", meter.started.keys.recent_keys)
        yield _gauge("stored_keys", meter.started.keys.stored_keys)
        states = [shard.state for shard in meter.shards]
        yield _gauge(
            "shard_counters", sum(len(table) for s in states for table in s.counters.values())
        )
        yield _gauge("operations_open", len(meter.registry.operations.open()))
        rows = CounterMetricFamily(
            "operation_rows", DESCRIPTIONS["operation_rows_total"], labels=("result",)
        )
        for result, count in meter.started.operations.rows.items():
            rows.add_metric((result,), count)
        yield rows
        yield from self.push.collect()
        yield from self.recon.collect()
        yield from self._anchors()
        yield _gauge(
            "late_adjustments",
            sum(len(of.by_id) for s in states for of in s.adjustments.values()),
        )

    def _anchors(self) -> Iterator[Metric]:
        anchorer = self.anchorer
        yield _counter("anchors_written_total", 0 if anchorer is None else anchorer.written)
        yield _counter("anchor_failures_total", 0 if anchorer is None else anchorer.failures)
        behind_us = 0 if anchorer is None else anchorer.behind_us()
        yield _gauge("anchor_behind_seconds", behind_us / 1_000_000)


class _Exposition(Collector):
    """What prometheus_client asks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics.collect()


def _counter(name: str, value: float) -> Metric:
    return CounterMetricFamily(name.removesuffix("_total"), DESCRIPTIONS[name], value=value)


def _gauge(name: str, value: float) -> Metric:
    return GaugeMetricFamily(name, DESCRIPTIONS[name], value=value)


def _histogram(name: str, distribution: Distribution) -> Metric:
    return HistogramMetricFamily(
        name, DESCRIPTIONS[name], buckets=distribution.buckets(), sum_value=distribution.total
    )
