"""Metrics: every name is documented, labels are bounded, and the numbers are those of what happened."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from gateway.context import free_bytes_of
from gateway.measured_log import Distribution
from gateway.metrics import DESCRIPTIONS, METER_LABELS_MAX, OTHER
from tests.helpers.served import Served, memory_gateway, served, settings_of

ROOT = Path(__file__).parents[2]
EVENT = {"tenantId": "secret-tenant", "metric": "calls", "customerRef": "secret-c", "quantity": 1}


async def samples(server: Served) -> dict[tuple[str, ...], float]:
    """Every sample by (name, label values...)."""
    response = await server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_metrics_count_what_happened_and_name_no_customer() -> None:
    async with served() as server:
        events = [EVENT | {"idempotencyKey": str(n)} for n in range(3)]
        late = EVENT | {"idempotencyKey": "old", "ts": "2025-12-01T00:00:00Z"}
        await server.ingest(*events, late)
        await server.ingest(*events)
        await server.client.get("/nope")
        found = await samples(server)
        assert found["events_ingested_total", "calls"] == 4
        assert found["events_duplicate_total",] == 3
        assert found["late_events_total",] == 1
        assert found["http_requests_total", "POST", "/v1/events/ingest", "200"] == 2
        assert found["http_requests_total", "GET", "unmatched", "404"] == 1
        assert found["http_request_duration_seconds_count", "GET", "unmatched"] == 1
        assert found["ingest_latency_ms_count",] == 2
        assert found["wal_commit_seconds_count",] >= 2
        assert found["wal_batch_events_sum",] == 4
        assert found["queue_lag_seconds", "log"] == 0
        assert found["recent_keys",] == 4
        assert found["shard_counters",] == 1
        assert found["log_next_sequence",] > 4
        assert found["ready",] == 1
        assert "secret" not in (await server.client.get("/metrics")).text


async def test_the_metrics_page_and_what_is_measured_are_one_list() -> None:
    async with served() as server:
        await server.client.get("/health")
        text = (await server.client.get("/metrics")).text
        names = {
            family.name + ("_total" if family.type == "counter" else "")
            for family in text_string_to_metric_families(text)
        }
        assert names == set(DESCRIPTIONS)
    page = (ROOT / "docs" / "METRICS.md").read_text()
    documented = re.findall(r"^\| `(\w+?)(?:\{[^}]*\})?` \|", page, re.MULTILINE)
    assert sorted(documented) == sorted(DESCRIPTIONS), "docs/METRICS.md lists exactly these"
    for label in ("method", "route", "status_code", "meter", "queue"):
        assert f"{label}" in page


async def test_while_recovering_metrics_are_there() -> None:
    gateway, _ = memory_gateway(settings_of())
    text = gateway.metrics.exposition().decode()
    assert "\nready 0.0\n" in text
    assert "queue_events" not in text


def test_metric_names_beyond_the_bound_share_a_line() -> None:
    metrics = memory_gateway(settings_of())[0].metrics
    for number in range(METER_LABELS_MAX + 50):
        metrics.ingested(f"m{number}", 2)
    metrics.ingested("m0", 1)
    text = metrics.exposition().decode()
    assert f'events_ingested_total{{meter="{OTHER}"}} 100.0' in text
    assert 'events_ingested_total{meter="m0"} 3.0' in text
    assert text.count("events_ingested_total{") == METER_LABELS_MAX + 1


def test_an_unknown_method_is_no_label_of_its_own() -> None:
    metrics = memory_gateway(settings_of())[0].metrics
    for number in range(100):
        metrics.http_request(f"BREW{number}", "unmatched", 405, 10)
    assert len(metrics._requests) == 1


def test_a_distribution_counts_each_value_at_its_bound() -> None:
    distribution = Distribution((1, 2.5))
    for value in (0, 1, 1.1, 2.5, 99):
        distribution.observe(value)
    assert distribution.buckets() == [("1.0", 2), ("2.5", 4), ("+Inf", 5)]
    assert distribution.total == 103.6


def test_free_space_is_told_of_the_data_directory_if_there_is_one(tmp_path: Path) -> None:
    free_bytes = free_bytes_of(tmp_path)
    assert free_bytes is not None
    assert free_bytes > 0
    assert free_bytes_of(tmp_path / "not-there") is None
