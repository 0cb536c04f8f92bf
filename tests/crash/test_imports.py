"""`stripemeter import` and backfills as real processes: killed and gone on with, again and again, the totals are exact."""

from __future__ import annotations

import gzip
import json
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.recount import recount
from tests.helpers.server import ROOT, STOCK, Server, running, server_environment
from wal.lmdb_log import LmdbLog

pytestmark = pytest.mark.slow
ROWS = 30_000
STILL_OPEN = timedelta(hours=46)
"""After a month's end it can be counted in for two days; two hours of them are left for the test itself."""


def seconds_apart(newest: datetime, count: int) -> float:
    """Half a minute, or less on days on which the oldest of so many rows would fall into a month that is closed."""
    month = newest.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    if newest - month < STILL_OPEN:
        month = (month - timedelta(days=1)).replace(day=1)
    return min(30.0, (newest - month) / timedelta(seconds=count))


def rows_of(count: int, *, newest: datetime | None = None) -> list[dict[str, Any]]:
    """Rows from the newest back in time."""
    newest = newest or datetime.now(UTC) - timedelta(minutes=5)
    seconds = seconds_apart(newest, count)
    return [
        {
            "tenantId": "acme",
            "metric": f"m{number % 3}",
            "customerRef": f"c{number % 50}",
            "quantity": number % 7 + 1,
            "ts": (newest - timedelta(seconds=number * seconds)).isoformat().replace("+00:00", "Z"),
            "idempotencyKey": f"k{number}",
        }
        for number in range(count)
    ]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


def begin(directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", STOCK, "import", "--data-dir", str(directory), *arguments],
        cwd=directory.parent,
        env=server_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def report_of(
    directory: Path, *arguments: str, exit_code: int = 0, lateness_hours: str = "48"
) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", STOCK, "import", "--json", "--data-dir", str(directory), *arguments],
        cwd=directory.parent,
        env=server_environment({"STRIPEMETER_LATENESS_HOURS": lateness_hours}),
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == exit_code, done.stderr
    return dict(json.loads(done.stdout))


def head_of(directory: Path) -> tuple[int, str]:
    """Where the log ends, and its last hash: nothing was appended while it stays the same."""
    log = LmdbLog(directory / "log", read_only=True)
    try:
        head = log.head()
        return head.next_sequence, head.hash.hex()
    finally:
        log.close()


def totals_of(directory: Path) -> tuple[int, Fraction, int]:
    """(events, sum of all, events under a key that another has too) that the raw log holds."""
    log = LmdbLog(directory / "log", read_only=True)
    try:
        stored = recount(log).keys
    finally:
        log.close()
    events = [event for of in stored.values() for event in of]
    total = sum((Fraction(micros, 10**6) for _, micros, _ in events), Fraction(0))
    return len(events), total, sum(len(of) - 1 for of in stored.values())


def test_an_import_that_is_killed_and_run_again_counts_every_row_once(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    directory = tmp_path / "data"
    rows = rows_of(ROWS)
    path = write_lines(tmp_path / "usage.jsonl.gz", rows)
    killed = 0
    for _ in range(12):
        process = begin(directory, str(path))
        time.sleep(rng.uniform(0.5, 2.0))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        if killed >= 3:
            break
    report = report_of(directory, str(path))
    assert report["failed"] == 0
    assert totals_of(directory) == (ROWS, sum(row["quantity"] for row in rows), 0)
    with running(directory) as server, server.client() as client:
        imports = client.get("/v1/events/imports").json()["imports"]
        done = [one for one in imports if one["status"] == "completed"]
        assert all(one["status"] == "completed" for one in imports), (
            "the killed one was gone on with"
        )
        assert done[0]["processedEvents"] >= ROWS
        # Newest first, over ten days (fewer early in a month), with a window of two: nothing is late for the rows before it.
        assert sum(one["lateEvents"] for one in imports) == 0


def test_importing_again_counts_nothing_and_a_dry_run_says_so(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    rows = rows_of(500)
    path = write_lines(tmp_path / "usage.jsonl", rows)
    bad = rows[3] | {"quantity": 99}
    other = write_lines(
        tmp_path / "more.jsonl",
        [
            *rows[:10],
            bad,
            rows_of(501)[500],
            {"metric": "m"},
            rows[0] | {"idempotencyKey": "old", "ts": "2020-01-01T00:00:00Z"},
        ],
    )
    assert report_of(directory, str(path), "--dry-run")["new"] == 500
    assert not (directory / "log" / "data.mdb").exists(), "a dry run makes no log"
    assert report_of(directory, str(path))["new"] == 500
    head = head_of(directory)
    # A start of the server would record another window; a command leaves it as it is.
    dry = report_of(directory, str(other), "--dry-run", exit_code=1, lateness_hours="47")
    assert head_of(directory) == head
    counts = {name: dry[name] for name in ("rows", "new", "late", "duplicates", "failed")}
    assert counts == {"rows": 14, "new": 2, "late": 1, "duplicates": 10, "failed": 2}
    assert [line for _, line, _ in dry["errors"]] == [11, 13]
    with running(directory) as server:
        through = report_of(
            directory,
            str(other),
            "--dry-run",
            "--url",
            f"http://127.0.0.1:{server.port}",
            exit_code=1,
        )
        assert {name: through[name] for name in counts} == counts
        assert through["errors"] == dry["errors"]
        with server.client() as client:
            assert client.get("/v1/events/imports").json()["total"] == 1
    again = report_of(directory, str(path))
    assert (again["new"], again["duplicates"]) == (0, 500)
    real = report_of(directory, str(other), exit_code=1)
    assert {name: real[name] for name in counts} == counts
    assert totals_of(directory)[0] == 502


def test_an_import_through_a_server_outlives_the_servers_kill(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    rows = rows_of(ROWS)
    path = write_lines(tmp_path / "usage.jsonl", rows)
    with running(directory) as server:
        importer = begin(directory, str(path), "--url", f"http://127.0.0.1:{server.port}")
        time.sleep(1.5)
        server.kill()
    again = Server(directory, port=server.port)
    try:
        again.wait_ready()
        assert importer.wait(120) == 0, (
            "it waits for the server, and sends again what was not acknowledged"
        )
        with again.client() as client:
            (one,) = client.get("/v1/events/imports").json()["imports"]
        assert (
            one["status"],
            one["processedEvents"],
            one["acceptedEvents"],
            one["lateEvents"],
        ) == ("completed", ROWS, ROWS, 0)
        assert again.stop() == 0
    finally:
        again.kill()
        importer.kill()
        importer.wait()
    assert totals_of(directory) == (ROWS, sum(row["quantity"] for row in rows), 0)


def test_a_backfill_survives_kills_and_never_runs_twice(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    rows = rows_of(5_000)
    start = min(row["ts"] for row in rows)
    lines = ["metric,customer_ref,quantity,ts,idempotency_key"]
    lines += [
        f"{row['metric']},{row['customerRef']},{row['quantity']},{row['ts']},{row['idempotencyKey']}"
        for row in rows
    ]
    lines.insert(101, "m,c,-1,2026-01-01T00:00:00Z,bad")
    body = {
        "tenantId": "acme",
        "periodStart": start,
        "reason": "outage",
        "csvData": "\n".join(lines),
    }
    with running(directory) as server, server.client() as client:
        made = client.request(
            "POST",
            "/v1/events/backfill",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        assert made.status == 202, made.body
        operation = made.json()["operationId"]
        server.kill()
    for pause in (0.0, 0.02, 0.05):
        with running(directory) as server:
            time.sleep(pause)
            server.kill()
    with running(directory) as server, server.client() as client:
        until = time.monotonic() + 60
        while (view := client.get(f"/v1/events/backfill/{operation}").json())[
            "status"
        ] != "completed":
            assert time.monotonic() < until, view
            time.sleep(0.05)
        counts = [
            view[f"{name}Events"]
            for name in ("total", "processed", "accepted", "duplicate", "late", "failed")
        ]
        assert counts == [5_001, 5_001, 5_000, 0, 0, 1]
        assert [error["line"] for error in view["errors"]] == [102]
        end = head_of_server(client)
        time.sleep(0.2)
        assert head_of_server(client) == end
        assert server.stop() == 0
    with running(directory) as server, server.client() as client:
        assert head_of_server(client) == end, "a start after the end runs nothing again"
    assert totals_of(directory) == (5_000, sum(row["quantity"] for row in rows), 0)


def head_of_server(client: Any) -> str:
    text = client.get("/metrics").body.decode()
    return next(line for line in text.splitlines() if line.startswith("log_next_sequence "))


def test_standard_input_and_historic_rows(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    long_ago = rows_of(20, newest=datetime(2025, 3, 20, tzinfo=UTC))
    data = "".join(json.dumps(row) + "\n" for row in long_ago).encode()
    for arguments, late in (((), 20), (("--historic",), 0)):
        unique = data.replace(b'"k', b'"%dk' % late)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                STOCK,
                "import",
                "-",
                "--json",
                "--data-dir",
                str(directory),
                *arguments,
            ],
            cwd=ROOT,
            env=server_environment(),
            input=gzip.compress(unique),
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["rows"], report["new"], report["late"]) == (20, 20, late)
