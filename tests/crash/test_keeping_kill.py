"""kill -9 of the real commands: backup, restore, erase, retention, compact. Then they are run again, and all is exact."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from engine.core.records import RecordType
from engine.core.times import DAY_US
from engine.errors import StartRefused
from gateway.backup import BackupError, back_up, restore
from gateway.data_directory import DataDirectory
from gateway.log_check import check
from gateway.opening import open_meter
from tests.helpers.event_log import EventLog, Sent
from tests.helpers.keeping import state_of
from tests.helpers.served import settings_of
from tests.helpers.server import STOCK, command, server_environment
from wal.archive import FileArchives
from wal.lmdb_log import LmdbLog
from wal.log import LogDamaged, scan

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]
NAME = "anna-the-customer"
NOW_US = 1_800_000_000_000_000
KILLS = 8


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with half a year of events, some megabytes."""
    path = tmp_path_factory.mktemp("origin") / "data"
    DataDirectory(path).create()
    assert command(["check", "--data-dir", str(path)], path).returncode == 1
    state(path, create=True)
    log = LmdbLog(path / "log")
    events, rng = EventLog(log), Random(1)
    start_us = time.time_ns() // 1000 - 200 * DAY_US
    for number in range(120):
        at_us = start_us + number * DAY_US * 3 // 2
        names = [rng.choice((NAME, "bob", "cleo")) for _ in range(60)]
        events.append(
            [
                Sent(
                    "acme",
                    "calls",
                    name,
                    rng.randrange(10**9),
                    None,
                    meta=f'{{"who":"{name * 20}"}}',
                    resource=name,
                )
                for name in names
            ],
            at_us,
        )
    log.close()
    return path


def state(path: Path, *, create: bool = False) -> dict[str, Any]:
    """What the directory's meter counts. With `create` an empty log is made."""
    settings = settings_of(data_dir=str(path))
    directory = DataDirectory(path)
    directory.lock()
    try:
        meter = open_meter(settings, directory)
        found: list[dict[str, Any]] = []
        ready = trio.Event()

        async def look() -> None:
            await ready.wait()
            for erasure_id in list(meter.registry.erasures):
                await meter.started.eraser.ended(erasure_id)
            found.append(state_of(meter))

        async def run() -> None:
            await meter.run(look, ready.set)

        trio.run(run)
        assert create or found[0]["counters"]
        return found[0]
    finally:
        directory.release()


def renamed(counted: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {
        (p, t, m, names.get(c, c), s): value
        for (p, t, m, c, s), value in counted["counters"].items()
    }


class Life:
    """How long a command runs, found by running it once on a copy that is thrown away, and kills within that time."""

    def __init__(self, arguments: list[str], directory: Path) -> None:
        self.arguments, self.directory = arguments, directory
        self.seconds = 60.0
        self.kill(1)

    def kill(self, share: float) -> bool:
        """Run it and kill it after a share of its life; whether it was still running.

        A run that ended by itself was quicker than was known (the first finds nothing in the system's caches): its
        time is the life from then on.
        """
        started = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-m", STOCK, *self.arguments],
            cwd=self.directory.parent,
            env=server_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                process.wait(self.seconds * share)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
            if process.wait() == -signal.SIGKILL:
                return True
        self.seconds = time.monotonic() - started
        return False


def shares(rng: Random) -> Iterator[float]:
    """Moments within a life, a share of it each."""
    for number in range(KILLS):
        yield 0.3 + 0.7 * (number + rng.random()) / KILLS


def fresh(origin: Path, tmp_path: Path) -> Path:
    path = tmp_path / "data"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(origin, path)
    return path


def bytes_of(path: Path) -> bytes:
    files = b"".join(p.read_bytes() for p in path.rglob("*") if p.is_file())
    archives = FileArchives(path / "archive")
    parts = [p.data for n in archives.names() for r in archives.read(n) for p in r.parts]
    return files + b"".join(parts)


def test_erase_killed_anywhere_ends_with_the_same_totals_and_no_name(
    origin: Path, tmp_path: Path, rng: Random
) -> None:
    before = state(fresh(origin, tmp_path))
    killed = 0
    arguments = ["erase", "--tenant", "acme", "--customer", NAME, "--yes", "--data-dir"]
    path = fresh(origin, tmp_path)
    life = Life([*arguments, str(path)], path)
    for share in shares(rng):
        path = fresh(origin, tmp_path)
        killed += life.kill(share)
        report = check(path / "log")
        assert report.ok, report.problems
        done = command([*arguments, str(path)], path)
        if done.returncode != 0:  # it was done as far as anyone can see: only the end was cut off
            assert "nothing is known" in done.stderr
        after = state(path)
        [pseudonym] = {c for _, _, _, c, _ in after["counters"] if c.startswith("erased_")}
        assert after["counters"] == renamed(before, {NAME: pseudonym})
        assert command(["compact", "--data-dir", str(path)], path).returncode == 0
        assert NAME.encode() not in bytes_of(path)
        assert check(path / "log").ok
    assert killed > 2, "too few kills say little"


def test_retention_killed_anywhere_ends_with_the_same_state(
    origin: Path, tmp_path: Path, rng: Random
) -> None:
    path = fresh(origin, tmp_path)
    before = state(path)
    arguments = ["retention", "--days", "30", "--data-dir"]
    killed = 0
    path = fresh(origin, tmp_path)
    life = Life([*arguments, str(path)], path)
    for share in shares(rng):
        path = fresh(origin, tmp_path)
        killed += life.kill(share)
        report = check(path / "log")
        assert report.ok, report.problems
        assert state(path)["counters"] == before["counters"]
        assert command([*arguments, str(path)], path).returncode == 0
        shutil.rmtree(path / "snapshots")
        shutil.rmtree(path / "keys")
        assert state(path)["counters"] == before["counters"]
        assert check(path / "log").ok
    assert killed > 2, "too few kills say little"
    assert check(path / "log").parts_trimmed > 100
    archived = [
        r
        for n in FileArchives(path / "archive").names()
        for r in FileArchives(path / "archive").read(n)
    ]
    assert len(archived) > 50


def test_backup_and_restore_killed_anywhere_leave_a_whole_one_or_none(
    origin: Path, tmp_path: Path, rng: Random
) -> None:
    path = fresh(origin, tmp_path)
    before = state(path)
    target, restored = tmp_path / "backup", tmp_path / "restored"
    backing = ["backup", str(target), "--data-dir", str(path)]
    restoring = ["restore", str(target), "--data-dir", str(restored)]
    killed = 0
    lives = Life(backing, path), Life(restoring, path)
    for share in shares(rng):
        shutil.rmtree(target, ignore_errors=True)
        killed += lives[0].kill(share)
        if not target.exists():
            assert command(backing, path).returncode == 0
        shutil.rmtree(restored, ignore_errors=True)
        killed += lives[1].kill(share)
        if not restored.exists():
            assert command(restoring, path).returncode == 0
        assert check(restored / "log").ok
        assert state(restored)["counters"] == before["counters"]
        assert not list(tmp_path.glob("*.unfinished"))
    assert killed > KILLS // 2, "too few kills say little"


def test_a_backup_beside_a_busy_writer_is_a_prefix_and_every_restore_begins_another_epoch(
    origin: Path, tmp_path: Path
) -> None:
    path = fresh(origin, tmp_path)
    code = (
        "import sys; from pathlib import Path; from wal.lmdb_log import LmdbLog\n"
        "from tests.helpers.event_log import EventLog, Sent\n"
        "log = LmdbLog(Path(sys.argv[1])); events = EventLog(log); print('ready', flush=True)\n"
        "while True: events.append([Sent('acme', 'calls', 'dora', 1, None)], 1_800_000_000_000_000)"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path / "log")], cwd=root, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        manifest = back_up(DataDirectory(path), tmp_path / "backup", NOW_US, include_pepper=True)
        writer.kill()
    epochs = [
        restore(tmp_path / "backup", tmp_path / f"restored{n}", NOW_US + n * 1_000_000)[1]
        for n in range(2)
    ]
    assert len({manifest.epoch, *epochs}) == 3
    log, copy = LmdbLog(path / "log"), LmdbLog(tmp_path / "restored1" / "log")
    records, whole = list(scan(copy, 0)), list(scan(log, 0))
    assert records[:-1] == whole[: len(records) - 1]
    assert records[-1].envelope.record_type == RecordType.RESTORE
    assert records[-1].envelope.epoch == epochs[1]
    log.close()
    copy.close()
    assert (tmp_path / "restored1" / "pepper").read_bytes() == DataDirectory(path).pepper()
    state(tmp_path / "restored0")


def test_what_is_no_backup_or_no_place_for_one_is_refused(origin: Path, tmp_path: Path) -> None:
    path = fresh(origin, tmp_path)
    backup = tmp_path / "backup"
    back_up(DataDirectory(path), backup, NOW_US, include_pepper=False)
    with pytest.raises(BackupError, match="there already"):
        back_up(DataDirectory(path), backup, NOW_US, include_pepper=False)
    with pytest.raises(BackupError, match="not empty"):
        restore(backup, path, NOW_US)
    with pytest.raises(BackupError, match="not a backup"):
        restore(path, tmp_path / "new", NOW_US)
    with pytest.raises(BackupError, match="no log"):
        back_up(DataDirectory(tmp_path / "none"), tmp_path / "b2", NOW_US, include_pepper=False)
    data = bytearray((backup / "log" / "data.mdb").read_bytes())
    at = data.rindex(b"acme")
    data[at] ^= 1
    (backup / "log" / "data.mdb").write_bytes(data)
    with pytest.raises((BackupError, LogDamaged), match="damaged"):
        restore(backup, tmp_path / "new", NOW_US)
    assert not (tmp_path / "new").exists()


def test_another_copy_in_a_backups_place_is_refused(origin: Path, tmp_path: Path) -> None:
    path = fresh(origin, tmp_path)
    backup = tmp_path / "backup"
    back_up(DataDirectory(path), backup, NOW_US, include_pepper=False)
    log = LmdbLog(path / "log")
    EventLog(log).append([Sent("acme", "calls", "dora", 1, None)], NOW_US)
    log.close()
    shutil.copy(path / "log" / "data.mdb", backup / "log" / "data.mdb")
    with pytest.raises(BackupError, match="not the one that was backed up"):
        restore(backup, tmp_path / "new", NOW_US)


def test_a_dropped_body_without_its_checkpoint_stops_the_start(
    origin: Path, tmp_path: Path
) -> None:
    path = fresh(origin, tmp_path)
    log = LmdbLog(path / "log")
    log.trim(500, RecordType.EVENTS, records_max=5)
    log.close()
    report = check(path / "log")
    assert any("no whole checkpoint stands in" in p.message for p in report.problems)
    with pytest.raises(ExceptionGroup) as caught:
        state(path)
    assert caught.group_contains(StartRefused)
