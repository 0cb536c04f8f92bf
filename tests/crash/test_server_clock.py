"""A real server under a wall clock that steps: watermarks never go back, no period closes by a jump, none twice.

The steps are made behind the engine's clock port. libfaketime would reach deeper, but makes a request take 0.3 s.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from engine.core.records import PeriodClosing, RecordType, decode_control
from tests.crash.test_kill import SMALL
from tests.helpers.http_client import Client
from tests.helpers.ledger import Ledger, assert_balanced, instant_us, send
from tests.helpers.server import running
from wal.lmdb_log import LmdbLog
from wal.log import scan

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]

NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC)
NEW_YEAR_US = int(NEW_YEAR.timestamp()) * 1_000_000
HOUR = timedelta(hours=1)


class FakeClock:
    """The server's wall clock, moved by a file; its monotonic clock stays true."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self.environment = {
            **SMALL,
            "CLOCK_FILE": str(self._file),
            "SMALL_CLOSER_SECONDS": "0.1",
        }

    def set(self, now: datetime) -> None:
        """It is that time from this moment on."""
        fresh = self._file.with_name("clock-new")
        fresh.write_text(str((now - datetime.now(UTC)) // timedelta(microseconds=1)))
        fresh.replace(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> FakeClock:
    return FakeClock(tmp_path)


def watermarks(client: Client) -> dict[tuple[str, str, str], int]:
    """(tenant, customer, metric) to watermark in microseconds, of the running period."""
    found = {}
    for tenant in ("acme", "umbra"):
        for customer in ("one", "two", "three"):
            path = f"/v1/usage/current?tenantId={tenant}&customerRef={customer}"
            for metric in client.get(path).json()["metrics"]:
                if metric["watermark"] is not None:
                    key = (tenant, customer, metric["name"])
                    found[key] = instant_us(metric["watermark"])
    return found


def send_some(client: Client, ledger: Ledger, rng: Random) -> None:
    for _ in range(10):
        assert send(client, ledger, ledger.fresh(rng, 5))


def closings_of(directory: Path) -> list[int]:
    """The ends of the periods that the log closes for all, in order."""
    log = LmdbLog(directory / "log", read_only=True)
    try:
        records = [r for r in scan(log, 0) if r.envelope.record_type == RecordType.PERIOD_CLOSING]
        controls = [decode_control(RecordType.PERIOD_CLOSING, r.parts[0].data) for r in records]
    finally:
        log.close()
    assert all(isinstance(control, PeriodClosing) for control in controls)
    return [control.end_us for control in controls if isinstance(control, PeriodClosing)]


def test_a_clock_that_jumps_holds_the_closings_and_no_watermark_goes_back(
    tmp_path: Path, seed: int, clock: FakeClock
) -> None:
    directory, ledger, rng = tmp_path / "data", Ledger(), Random(seed)
    start = NEW_YEAR - 2 * HOUR
    clock.set(start)
    with running(directory, environment=clock.environment) as server, server.client() as client:
        assert client.get("/health/ready").json()["checks"]["clock"]["status"] == "ok"
        send_some(client, ledger, rng)
        before = watermarks(client)
        assert min(before.values()) >= int(start.timestamp()) * 1_000_000
        for jump in (-HOUR, timedelta(days=3)):
            clock.set(start + jump)
            time.sleep(0.3)
            ready = client.get("/health/ready")
            assert ready.status == 200, "events are still taken"
            assert ready.json()["status"] == "degraded"
            assert "clock moved" in ready.json()["checks"]["clock"]["detail"]
            send_some(client, ledger, rng)
            after = watermarks(client)
            if jump < timedelta(0):
                assert all(after[key] >= at for key, at in before.items())
        clock.set(start)
        send_some(client, ledger, rng)
        back = watermarks(client)
        assert all(back[key] >= at for key, at in before.items())
        server.kill()
    assert_balanced(directory, ledger)
    assert NEW_YEAR_US not in closings_of(directory), "a jump of three days closed December"


def test_a_period_closes_once_whatever_the_clock_does_afterwards(
    tmp_path: Path, seed: int, clock: FakeClock
) -> None:
    directory, ledger, rng = tmp_path / "data", Ledger(), Random(seed)
    for days in (-1, 3, -1, 3, 4):
        clock.set(NEW_YEAR + timedelta(days=days))
        with running(directory, environment=clock.environment) as server, server.client() as client:
            send_some(client, ledger, rng)
            time.sleep(0.2)
            server.kill()
        assert_balanced(directory, ledger)
    closings = closings_of(directory)
    assert closings.count(NEW_YEAR_US) == 1
    assert closings == sorted(set(closings))


def test_events_around_new_year_fall_into_the_year_in_which_they_were_received(
    tmp_path: Path, seed: int, clock: FakeClock
) -> None:
    directory, ledger, rng = tmp_path / "data", Ledger(), Random(seed)
    clock.set(NEW_YEAR - timedelta(seconds=60))
    with running(directory, environment=clock.environment) as server, server.client() as client:
        clock.set(NEW_YEAR - timedelta(seconds=0.7))
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert send(client, ledger, ledger.fresh(rng, 3))
        after = watermarks(client)
        assert min(after.values()) >= NEW_YEAR_US
        server.kill()
    log = assert_balanced(directory, ledger)
    starts = {key[3]: 0 for key in log.counted}
    for key, total in log.counted.items():
        starts[key[3]] += total.count
    assert not log.late
    assert len(starts) == 2
    assert sum(starts.values()) == len(ledger.acknowledged)
    assert min(starts.values()) > 10
