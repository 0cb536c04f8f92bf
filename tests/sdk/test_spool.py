"""The spool: what it keeps, in whose hands, and what a damaged one does."""

from __future__ import annotations

import sqlite3
import stat
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from stripemeter import Failure, StripeMeterClient
from stripemeter.spool import Spool, beside
from tests.sdk.fake_meter import FakeMeter

HELD: dict[str, Any] = {
    "flush_interval_seconds": 3600.0,
    "retry_seconds_first": 0.001,
    "retry_seconds_max": 0.002,
}


def client(meter: FakeMeter, spool: Path, **options: Any) -> StripeMeterClient:
    return StripeMeterClient(
        "http://meter.invalid", "acme", transport=meter, spool=spool, **{**HELD, **options}
    )


def rows(path: Path, table: str = "events") -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
    finally:
        connection.close()


def opened(path: Path, now_ms: int, destination: str = "here", lease: float = 1.0) -> Spool:
    return Spool(str(path), destination, lease, now_ms, sync=False)


def test_an_event_is_in_the_file_before_track_returns_and_goes_after_the_answer(
    tmp_path: Path,
) -> None:
    path = tmp_path / "spool.db"
    gate = threading.Event()
    meter = FakeMeter(gate=gate)
    with client(meter, path, batch_events_max=1) as sdk:
        for number in range(1, 4):
            sdk.track("calls", "cora", 1)
            assert rows(path) == number
        time.sleep(0.05)
        assert rows(path) == 3, "taken is not settled"
        assert sdk.statistics().queued == 3
        gate.set()
        assert sdk.flush(5)
        assert rows(path) == 0
    assert meter.total == 3
    assert rows(path, "owners") == 0


def test_a_row_stays_while_the_outcome_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    meter = FakeMeter(*["lost"] * 10_000)
    sdk = client(meter, path)
    sdk.track("calls", "cora", 1)
    assert sdk.flush(0.1) is False
    assert len(meter.requests) > 1
    assert rows(path) == 1
    assert sdk.close(0.05) is False
    assert rows(path) == 1


def test_what_one_client_left_is_sent_by_the_next_with_the_same_keys(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    told: list[Failure] = []
    dead = FakeMeter(*[httpx.ConnectError("down")] * 10_000)
    sdk = client(dead, path, on_error=told.append)
    keys = [sdk.track("calls", "cora", 1).idempotency_key for _ in range(5)]
    assert sdk.close(0.05) is False
    assert told == [], "they are in the spool, not lost"
    meter = FakeMeter()
    with client(meter, path) as next_one:
        assert next_one.flush(5)
        assert next_one.statistics().accepted == 5
        assert next_one.statistics().tracked == 0
    assert meter.sent_keys() == [keys]
    assert meter.bodies()[0] == dead.bodies()[0]


def test_a_lease_that_ran_out_is_taken_over_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    first = opened(path, now_ms=1_000_000)
    first.insert("{}")
    second = opened(path, now_ms=1_000_500)
    assert (first.rows, second.rows) == (1, 0)
    second.renew(1_000_900)
    assert second.rows == 0
    second.renew(1_001_000)
    assert second.rows == 1
    (taken,) = second.oldest(10)
    first.delete([taken.row or 0])
    assert rows(path) == 1, "it is no longer the first one's"
    first.renew(1_001_500)
    assert first.rows == 0
    second.delete([taken.row or 0])
    assert rows(path) == 0
    first.close()
    second.close()


def test_rows_for_another_server_or_tenant_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    first = opened(path, 1_000_000, "http://a acme")
    first.insert("{}")
    first.close()
    other = opened(path, 9_000_000, "http://a other")
    assert other.rows == 0
    same = opened(path, 9_000_000, "http://a acme")
    assert same.rows == 1
    other.close()
    same.close()


def test_two_clients_on_one_file_count_everything_once(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    meter = FakeMeter()
    with client(meter, path) as one, client(meter, path) as two:

        def work(sdk: StripeMeterClient) -> None:
            for _ in range(200):
                sdk.track("calls", "cora", 1)

        threads = [threading.Thread(target=work, args=(sdk,)) for sdk in (one, two) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.flush(10)
        assert two.flush(10)
    assert meter.total == 800
    assert rows(path) == 0


@pytest.mark.parametrize(
    "bytes_", [b"this is no database at all" * 100, b"SQLite format 3\0" * 300]
)
def test_a_damaged_file_is_set_aside_and_told_and_metering_goes_on(
    tmp_path: Path, bytes_: bytes
) -> None:
    path = tmp_path / "spool.db"
    path.write_bytes(bytes_)
    told: list[Failure] = []
    meter = FakeMeter()
    with client(meter, path, on_error=told.append) as sdk:
        sdk.track("calls", "cora", 1)
        assert rows(path) == 1
        assert sdk.flush(5)
    assert [failure.kind for failure in told] == ["spool"]
    (aside,) = tmp_path.glob("spool.db.damaged-*")
    assert aside.read_bytes() == bytes_
    assert aside.name in told[0].detail
    assert meter.total == 1


def test_a_file_that_is_damaged_while_in_use_is_set_aside_and_metering_goes_on(
    tmp_path: Path,
) -> None:
    path = tmp_path / "spool.db"
    told: list[Failure] = []
    meter = FakeMeter()
    with client(meter, path, on_error=told.append) as sdk:
        other = sqlite3.connect(path)
        other.execute("DROP TABLE events")
        other.close()
        sdk.track("calls", "cora", 1)
        sdk.track("calls", "cora", 2)
        assert sdk.flush(5)
    assert {failure.kind for failure in told} == {"spool"}
    assert meter.total == 3


def test_a_row_with_a_flipped_bit_is_kept_aside_and_its_neighbours_are_sent(
    tmp_path: Path,
) -> None:
    path = tmp_path / "spool.db"
    told: list[Failure] = []
    meter = FakeMeter()
    with client(meter, path, on_error=told.append) as sdk:
        for number in range(1, 4):
            sdk.track("calls", "cora", number)
        other = sqlite3.connect(path)
        with other:
            other.execute("UPDATE events SET body = replace(body, '\"2\"', '\"7\"')")
        other.close()
        assert sdk.flush(5)
    assert meter.total == 4
    assert [failure.kind for failure in told] == ["spool"]
    assert rows(path, "damaged") == 1


def test_a_spool_that_can_not_be_opened_is_told_and_memory_does(tmp_path: Path) -> None:
    told: list[Failure] = []
    meter = FakeMeter()
    with client(meter, tmp_path / "no such folder" / "spool.db", on_error=told.append) as sdk:
        assert sdk.track("calls", "cora", 1).status == "queued"
        assert sdk.flush(5)
    assert [failure.kind for failure in told] == ["spool"]
    assert meter.total == 1


@pytest.mark.slow
def test_a_file_that_another_holds_locked_holds_up_track_for_a_second_at_most(
    tmp_path: Path,
) -> None:
    path = tmp_path / "spool.db"
    told: list[Failure] = []
    meter = FakeMeter()
    with client(meter, path, on_error=told.append) as sdk:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        for _ in range(100):
            assert sdk.track("calls", "cora", 1).status == "queued"
        assert time.monotonic() - began < 4
        other.execute("ROLLBACK")
        other.close()
        assert sdk.flush(5)
    assert "locked" in told[0].detail
    assert len(told) == 1
    assert meter.total == 100


def test_a_full_spool_drops_its_oldest_that_is_not_on_its_way(tmp_path: Path) -> None:
    gate = threading.Event()
    told: list[Failure] = []
    meter = FakeMeter(gate=gate)
    with client(
        meter, tmp_path / "s.db", spool_events_max=5, batch_events_max=2, on_error=told.append
    ) as sdk:
        keys = [sdk.track("calls", "cora", 1).idempotency_key for _ in range(2)]
        time.sleep(0.1)
        keys += [sdk.track("calls", "cora", 1).idempotency_key for _ in range(10)]
        assert sdk.statistics().queued <= 6
        gate.set()
        assert sdk.flush(5)
        assert sdk.statistics().dropped == 7
    assert set(meter.counted) == {*keys[:2], *keys[-3:]}
    assert len(told) == 7


def test_the_file_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with client(FakeMeter(), path) as sdk:
        sdk.track("calls", "cora", 1)
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file.name
    assert path.exists()


def test_what_the_child_of_a_fork_left_is_gathered_once_its_lease_is_over(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    child = Spool(beside(str(path)), "here", 1.0, 1_000_000, sync=False)
    child.insert("{}")
    parent = opened(path, 1_000_500)
    assert parent.rows == 0, "the child may live"
    del child  # as a kill would leave it
    parent.renew(1_002_000)
    parent.gather(1_002_000)
    assert parent.rows == 1
    assert [outgoing.text for outgoing in parent.oldest(5)] == ["{}"]
    assert list(tmp_path.glob("*.fork-*")) == []
    parent.close()
    ended = Spool(beside(str(path)), "here", 1.0, 1_003_000, sync=False)
    ended.close()
    assert list(tmp_path.glob("*.fork-*")) == []


@pytest.mark.parametrize(
    ("fails", "backpressure"),
    [("insert", "block")]
    + [(one, "drop_oldest") for one in ("insert", "oldest", "delete", "renew", "close")],
)
def test_the_hook_is_told_of_the_spools_trouble_while_others_may_track(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, backpressure: str
) -> None:
    """An app's hook may want a lock that another thread of it holds while it tracks: nobody may wait for the hook."""
    others: list[bool] = []

    def hook(failure: Failure) -> None:
        if failure.kind == "spool":
            other = threading.Thread(target=sdk.statistics)
            other.start()
            other.join(1)
            others.append(not other.is_alive())

    def broken(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    meter = FakeMeter()
    bounds: dict[str, Any] = {"queue_events_max": 1, "block_seconds_max": 5.0}
    sdk = client(
        meter,
        tmp_path / "spool.db",
        on_error=hook,
        backpressure=backpressure,
        spool_lease_seconds=0.1,
        **(bounds if backpressure == "block" else {}),
    )
    with monkeypatch.context() as patch:
        patch.setattr(Spool, fails, broken)
        for _ in range(3):
            sdk.track("calls", "cora", 1)
        sdk.flush(0.1)
        # A lease is renewed when a third of it is over, by the sender's own clock.
        until = time.monotonic() + (20 if fails == "renew" else 0)
        while not others and time.monotonic() < until:
            time.sleep(0.01)
        sdk.close(0.1)
    assert others
    assert all(others)


def test_a_flush_after_a_spool_that_could_not_forget_still_waits_for_every_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be forgotten is settled all the same, once: it must not stand for an event that waits."""
    meter = FakeMeter()
    sdk = client(meter, tmp_path / "spool.db", batch_events_max=1)
    real, failed = Spool.delete, threading.Event()

    def fails_once(self: Spool, rows: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise sqlite3.OperationalError("database is locked")
        real(self, rows)

    monkeypatch.setattr(Spool, "delete", fails_once)
    sdk.track("calls", "cora", 1)
    assert sdk.flush(5)
    assert failed.is_set()
    assert sdk.flush(5)
    assert sdk.statistics().duplicates == 0, "it is not sent again"
    assert rows(tmp_path / "spool.db") == 1
    meter.gate = threading.Event()
    sdk.track("calls", "cora", 2)
    assert not sdk.flush(0.05)
    meter.gate.set()
    assert sdk.flush(5)
    assert sdk.close()
    assert meter.total == 3
    assert rows(tmp_path / "spool.db") == 0, "it is forgotten later"


def test_a_spool_on_a_full_disk_is_sent_once_and_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its oldest rows can't be deleted: they were sent again and again without a pause, and those behind them never."""
    path, meter = tmp_path / "spool.db", FakeMeter()
    told: list[Failure] = []
    sdk = client(meter, path, batch_events_max=2, on_error=told.append)
    meter.gate = threading.Event()
    for _ in range(7):
        sdk.track("calls", "cora", 1)

    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "delete", full)
        meter.gate.set()
        assert sdk.flush(5)
        assert sdk.statistics().queued == 0
        assert sdk.close(5)
    found = sdk.statistics()
    assert (found.accepted, found.duplicates) == (7, 0)
    assert meter.total == 7
    assert {failure.kind for failure in told} == {"spool"}
    assert len(told) <= 3, "once in a while, and at the end"
    assert rows(path) == 7, "the next start sends them again, and they are duplicates"


def test_a_gathering_that_fails_leaves_no_transaction_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = opened(tmp_path / "spool.db", now_ms=1_000)
    monkeypatch.setattr("stripemeter.spool.secrets.randbits", lambda _: 7)
    child = opened(Path(beside(str(tmp_path / "spool.db"))), now_ms=1_000)
    child.insert("{}")
    child.close()
    connection = sqlite3.connect(tmp_path / "spool.db")
    # As a disk does that becomes full.
    connection.execute(
        "CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(FAIL, 'disk is full'); END"
    )
    connection.close()
    main.gather(5_000)
    connection = sqlite3.connect(tmp_path / "spool.db", timeout=0)
    connection.execute("DROP TRIGGER full")
    connection.close()
    main.gather(5_000)
    assert main.rows == 1
    main.close()
