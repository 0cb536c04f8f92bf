"""`stripemeter export` and `explain` on a stopped directory: exact, complete, and importable again."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.core.adjustments import effective_value
from engine.core.csv_cells import read_cell
from engine.core.partitions import partition_of
from engine.core.quantities import format_micros
from engine.core.times import DAY_US, format_instant, parse_instant
from gateway.cli.main import main
from gateway.data_directory import DataDirectory
from gateway.export_server import micros_of
from tests.helpers.past import Past, fresh_fold, state_hash
from wal.lmdb_log import LmdbLog

pytestmark = pytest.mark.lmdb


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def directory(path: Path, seed: int, *, steps: int = 40, only_events: bool = False) -> Past:
    """A stopped server's directory with a past."""
    data = DataDirectory(path)
    data.create()
    log = LmdbLog(data.log_path)
    past = Past(seed, log, lateness_us=400 * DAY_US if only_events else 2 * DAY_US)
    if only_events:
        for _ in range(steps):
            past.now_us += DAY_US // 3
            past.append_events()
    else:
        past.grow(steps)
    log.close()
    return past


def run(*arguments: str) -> None:
    assert main(list(arguments)) == 0, arguments


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().splitlines():
        yield json.loads(line, parse_float=str, parse_int=str)


@pytest.mark.parametrize("name", ["events.jsonl", "events.jsonl.gz", "events.csv", "events.csv.gz"])
@pytest.mark.slow
def test_an_export_imports_back_to_the_same_totals_in_an_empty_directory(
    tmp_path: Path, name: str
) -> None:
    for seed in range(2):
        print("seed", seed)
        base = tmp_path / str(seed)
        past = directory(base / "old", seed, only_events=True)
        file = base / name
        run("export", "events", "--data-dir", str(base / "old"), "--output", str(file))
        run("import", str(file), "--data-dir", str(base / "new"), "--historic")
        log = LmdbLog(DataDirectory(base / "new").log_path, read_only=True)
        again = fresh_fold(log, log.head().next_sequence)
        log.close()
        assert len(past.events.logged) > 50
        assert state_hash(again) == state_hash(past.state)


def test_events_are_exact_in_csv_and_in_json_lines(tmp_path: Path) -> None:
    past = directory(tmp_path / "data", 3)
    for file_format in ("csv", "jsonl"):
        run("export", "events", "--data-dir", "data", "-o", f"out.{file_format}")
    lines = list(lines_of(tmp_path / "out.jsonl"))
    with (tmp_path / "out.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    for line, row, logged in zip(lines, cells, past.events.logged, strict=True):
        sent = logged.sent
        meta = None if sent.meta is None else json.loads(sent.meta)
        assert line["quantity"] == row["quantity"] == format_micros(sent.micros)
        assert line["idempotencyKey"] == row["idempotencyKey"] == logged.key_text
        assert line["ts"] == row["ts"] == format_instant(logged.ts_us)
        assert line.get("resourceId") == sent.resource
        assert read_cell(row["resourceId"]) == (sent.resource or "")
        assert row["resourceId"][:1] not in "=+-@" or not row["resourceId"]
        assert line.get("meta") == meta == (json.loads(row["meta"]) if row["meta"] else None)
        assert int(line["sequence"]) == int(row["sequence"]) == logged.sequence


def test_filters_leave_out_other_tenants_and_times(tmp_path: Path) -> None:
    past = directory(tmp_path / "data", 4)
    middle_us = sorted(one.ts_us for one in past.events.logged)[len(past.events.logged) // 2]
    since = ("--since", format_instant(middle_us))
    run("export", "events", "--data-dir", "data", "--tenant", "acme", *since, "-o", "out.jsonl")
    wanted = [
        one.key_text
        for one in past.events.logged
        if one.sent.tenant == "acme" and one.ts_us >= middle_us
    ]
    assert [line["idempotencyKey"] for line in lines_of(tmp_path / "out.jsonl")] == wanted


def test_counters_and_adjustments_are_those_of_the_fold(tmp_path: Path) -> None:
    past = directory(tmp_path / "data", 5, steps=80)
    run("export", "counters", "--data-dir", "data", "-o", "counters.jsonl")
    run("export", "adjustments", "--data-dir", "data", "-o", "adjustments.jsonl")
    seen = set()
    for line in lines_of(tmp_path / "counters.jsonl"):
        series = (line["tenantId"], line["metric"], line["customerRef"])
        start_us = parse_instant(line["periodStart"])
        partition = partition_of(series[0], series[2])
        counter = past.state.counters[partition].get(series)
        while counter is not None and counter.start_us > start_us:
            counter = counter.older
        if counter is not None and counter.start_us != start_us:
            counter = None
        adjustments = past.state.adjustments[partition].of_counter((*series, start_us))
        current = effective_value(counter, adjustments, line["aggregation"])
        assert micros_of(line["current"]) == current
        assert line["current"] == format_micros(current)
        assert micros_of(line["sum"]) == (counter.sum if counter else 0)
        assert int(line["count"]) == (counter.count if counter else 0)
        seen.add((*series, start_us))
    held = {one.key for of in past.state.adjustments.values() for one in of.by_id.values()}
    assert held <= seen
    lines = list(lines_of(tmp_path / "adjustments.jsonl"))
    everything = {
        one.id: one.status for of in past.state.adjustments.values() for one in of.by_id.values()
    }
    assert {line["id"]: line["status"] for line in lines} == everything


def test_the_audit_trail_names_every_change_and_no_event(tmp_path: Path) -> None:
    directory(tmp_path / "data", 6)
    run("export", "audit", "--data-dir", "data", "-o", "audit.csv")
    with (tmp_path / "audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["action"] == "log.created"
    assert {"settings.changed", "mapping.set", "adjustment.create"} <= {r["action"] for r in rows}
    positions = [int(row["sequence"]) for row in rows]
    assert positions == sorted(set(positions))


def test_parquet_holds_the_same_rows(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    past = directory(tmp_path / "data", 7)
    run("export", "events", "--data-dir", "data", "-o", "events.parquet")
    table = parquet.read_table(tmp_path / "events.parquet").to_pydict()
    assert [int(quantity.scaleb(6)) for quantity in table["quantity"][:3]] == [
        one.sent.micros for one in past.events.logged[:3]
    ]
    assert table["idempotencyKey"] == [one.key_text for one in past.events.logged]
    assert table["ts"][0].utcoffset().total_seconds() == 0


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    directory(tmp_path / "data", 8, steps=3)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["export", "events", "--data-dir", "data", "-o", "events.parquet"]) == 1
    assert "stripemeter[parquet]" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("export", "events", "--data-dir", "nowhere"), "there is no log"),
        (("export", "events", "--data-dir", "data", "-o", "out.xlsx"), "does not say its format"),
        (("export", "events", "--data-dir", "data", "--format", "parquet"), "name a file"),
        (("export", "events", "--data-dir", "data", "--since", "2026-01-01"), "the time"),
        (("export", "events", "--url", "http://127.0.0.1:9", "-o", "out.csv"), "does not answer"),
        (("export", "events", "--data-dir", "data", "-o", "no/where.csv"), "can't be written"),
        (("explain", "acme", "anna", "calls", "2026", "--data-dir", "data"), "the date"),
        (("explain", "acme", "anna", "calls", "2026-01-02", "--data-dir", "data"), "2026-01-01"),
        (
            ("explain", "acme", "anna", "calls", "2026-01", "--as-of", "now", "--data-dir", "data"),
            "log position or a time",
        ),
    ],
)
def test_what_can_not_be_done_is_one_line_and_leaves_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    directory(tmp_path / "data", 9, steps=3)
    assert main(list(arguments)) in (1, 2)
    assert says in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_explain_shows_parts_that_add_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory(tmp_path / "data", 11, steps=120)
    capsys.readouterr()
    run("explain", "acme", "anna", "calls", "2026-01", "--data-dir", "data", "--json")
    found = json.loads(capsys.readouterr().out, parse_float=str, parse_int=str)
    amounts = [day["sum"] for day in found["days"]] + [one["sum"] for one in found["replays"]]
    amounts += [one["amount"] for one in found["late"] + found["adjustments"]]
    assert sum(map(micros_of, amounts)) == micros_of(found["total"])
    assert len(amounts) > 3
    run("explain", "acme", "anna", "calls", "2026-01", "--data-dir", "data")
    table = capsys.readouterr().out
    assert f"sum = {found['total']}" in table
    assert all(f"day {day['day']}" in table for day in found["days"])
    run("explain", "acme", "anna", "seats", "2026-01", "--data-dir", "data", "--as-of", "60")
    assert "comes from" in capsys.readouterr().out
