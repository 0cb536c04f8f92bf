"""The data directory: one server at a time, whatever ends it; a pepper that is made once; owner only."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.config import load
from engine.errors import StartRefused
from gateway import data_directory
from gateway.data_directory import DataDirectory
from gateway.doctor import examine
from gateway.opening import open_meter
from wal.log import Draft, DraftPart

HOLD = """
import sys, time
from pathlib import Path
from gateway.data_directory import DataDirectory
DataDirectory(Path(sys.argv[1])).lock()
print("held", flush=True)
time.sleep(60)
"""
ROOT = Path(__file__).parents[2]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_everything_made_is_for_the_owner_alone(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "deep" / "data")
    assert not directory.path.exists(), "making the object touches no disk"
    previous = os.umask(0)
    try:
        directory.lock()
        directory.pepper()
    finally:
        os.umask(previous)
    for path in (directory.path, directory.log_path, directory.keys_path, directory.snapshots_path):
        assert mode(path) == 0o700
    assert mode(directory.pepper_path) == 0o600
    assert mode(directory.lock_path) == 0o600
    assert directory.open_to_others() == []
    directory.pepper_path.chmod(0o640)
    directory.path.chmod(0o777)
    assert directory.open_to_others() == [directory.path, directory.pepper_path]
    directory.release()


def test_a_second_server_is_refused_with_the_directory_and_the_pid(tmp_path: Path) -> None:
    first, second = DataDirectory(tmp_path), DataDirectory(tmp_path)
    assert first.holder_pid() is None
    first.lock()
    assert second.holder_pid() == os.getpid()
    with pytest.raises(StartRefused) as caught:
        second.lock()
    line = str(caught.value)
    assert str(tmp_path) in line
    assert f"process {os.getpid()}:" in line
    assert "\n" not in line
    assert second.holder_pid() == os.getpid(), "asking or trying takes nothing away"
    first.release()
    first.release()
    assert second.holder_pid() is None
    second.lock()
    second.release()


def test_asking_who_holds_it_never_keeps_a_server_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = DataDirectory(tmp_path)
    server.create()
    server.lock_path.touch()
    asking = os.open(server.lock_path, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)  # what `holder_pid` does for an instant
    monkeypatch.setattr(data_directory.time, "sleep", lambda _: fcntl.flock(asking, fcntl.LOCK_UN))
    server.lock()
    assert server.holder_pid() == os.getpid()
    server.release()
    os.close(asking)


def test_a_killed_server_leaves_no_lock(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "held\n"
        directory = DataDirectory(tmp_path)
        assert directory.holder_pid() == child.pid
        with pytest.raises(StartRefused, match=f"process {child.pid}:"):
            directory.lock()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        child.stdout.close()
    directory.lock()
    assert directory.lock_path.read_text() == f"{os.getpid()}\n"
    directory.release()


def test_an_unreadable_pid_still_refuses(tmp_path: Path) -> None:
    first, second = DataDirectory(tmp_path), DataDirectory(tmp_path)
    first.lock()
    first.lock_path.write_text("no pid at all")
    with pytest.raises(StartRefused, match="another process"):
        second.lock()
    assert second.holder_pid() == 0
    first.release()


def test_a_disk_too_full_for_the_pid_does_not_stop_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    first = DataDirectory(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(data_directory.os, "pwrite", full)
        first.lock()
    with pytest.raises(StartRefused, match="in use by another process"):
        DataDirectory(tmp_path / "data").lock()
    first.release()


def opened(directory: DataDirectory) -> int:
    """How many records the log has after a start that appends one."""
    meter = open_meter(load({}, None, {}), directory)
    meter.log.append((Draft(1, 1, 0, (DraftPart(1, b"x"),)),))
    position = meter.log.head().next_sequence
    for part in (meter.log, meter._cells, meter._runs):
        part.close()
    return position


@pytest.mark.lmdb
def test_a_log_that_is_gone_from_beside_its_indexes_is_not_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = DataDirectory(tmp_path / "data")
    directory.lock()
    assert directory.without_its_log() is None
    assert opened(directory) == 1
    away = tmp_path / "not mounted"
    directory.log_path.rename(away)
    directory.create()
    for _ in range(2):
        with pytest.raises(StartRefused, match="would count again") as refused:
            open_meter(load({}, None, {}), directory)
        assert str(directory.log_path) in str(refused.value)
        assert not list(directory.log_path.iterdir()), "nothing is made in its place"
    report = examine({"STRIPEMETER_DATA_DIR": str(directory.path)})
    assert str(refused.value) in report.problems
    directory.log_path.rmdir()
    away.rename(directory.log_path)
    assert opened(directory) == 2, "the old one goes on"
    directory.release()


def test_a_directory_that_cannot_be_made_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartRefused, match="STRIPEMETER_DATA_DIR"):
        DataDirectory(tmp_path / "file").lock()
    with pytest.raises(StartRefused, match="--data-dir"):
        DataDirectory(tmp_path / "file" / "data").create()


def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(data_directory.fcntl, "flock", flock)
    with pytest.raises(StartRefused, match="local disk"):
        DataDirectory(tmp_path).lock()


def test_the_pepper_is_made_once(tmp_path: Path) -> None:
    pepper = DataDirectory(tmp_path / "a").pepper()
    assert len(pepper) == 32
    assert DataDirectory(tmp_path / "a").pepper() == pepper
    assert DataDirectory(tmp_path / "b").pepper() != pepper
    assert not list(tmp_path.rglob(".pepper-*"))


def test_processes_that_make_the_pepper_at_once_agree(tmp_path: Path) -> None:
    peppers: list[bytes] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        directory = DataDirectory(tmp_path)
        # The race itself: all of them saw that there is none.
        directory._make_secret(directory.pepper_path, 32, "")
        peppers.append(directory.pepper())

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(peppers) == 8
    assert len(set(peppers)) == 1
    assert not list(tmp_path.glob(".pepper-*"))


def test_the_signing_key_is_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "a")
    seed = directory.signing_seed()
    assert len(seed) == 32
    assert directory.signing_seed() == seed != directory.pepper()
    assert mode(directory.signing_key_path) == 0o600
    directory.signing_key_path.chmod(0o644)
    assert directory.open_to_others() == [directory.signing_key_path]
    directory.signing_key_path.write_bytes(b"cut")
    with pytest.raises(StartRefused, match="stripemeter parity key"):
        directory.signing_seed()


def test_a_pepper_of_another_length_is_refused_and_kept(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.pepper_path.write_bytes(b"cut")
    with pytest.raises(StartRefused, match="restore it from a backup"):
        directory.pepper()
    assert directory.pepper_path.read_bytes() == b"cut"


def test_a_crash_before_the_pepper_is_whole_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    directory = DataDirectory(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(data_directory.os, "fsync", full)
        with pytest.raises(StartRefused, match="No space left on device"):
            directory.pepper()
    assert [path.name for path in tmp_path.glob("*pepper*")] == []
    assert len(directory.pepper()) == 32
