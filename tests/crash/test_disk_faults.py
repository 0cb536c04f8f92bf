"""The log on a disk that fails: what was acknowledged stays, what was refused is not there, and the error says which.

Each fault is made below the real log in a child process: by strace, by a library of our own loaded before libc
(`shim.c`), by a small file system or by a limit. A test whose tool is missing is skipped and says why.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from tests.crash.child import GROUPS, balance, in_fork, strace, write_in_child
from tests.crash.log_writer import EXIT_UNKNOWN
from wal.check import check_log
from wal.lmdb_file import write_failed
from wal.lmdb_log import LmdbLog
from wal.log import (
    Draft,
    DraftPart,
    LogDamaged,
    LogError,
    LogFull,
    LogLocked,
    LogStateUnknown,
    LogWriteFailed,
    scan,
)

pytestmark = pytest.mark.lmdb


def draft(size: int) -> Draft:
    return Draft(2, 1, 1_000_000, (DraftPart(1, bytes(size)),))


def append_for_ever(log: LmdbLog, one: Draft) -> None:
    for _ in range(100_000):
        log.append([one])


# Errors of single calls.


@pytest.mark.slow
@pytest.mark.parametrize("call", range(1, 21))
def test_a_failed_fdatasync_undoes_its_group_alone(tmp_path: Path, call: int) -> None:
    prefix = strace("-e", "trace=fdatasync", "-e", f"inject=fdatasync:error=EIO:when={call}")
    run = write_in_child(tmp_path / "log", prefix=prefix)
    # The first sync is that of the new file; the n-th after it is that of group n.
    assert run.lines == [f"LogWriteFailed {'open' if call == 1 else call - 2}"]
    assert run.exit_code == 0
    assert list(run.acknowledged) == list(range(GROUPS))
    assert balance(tmp_path / "log", run.acknowledged) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system_call", "expected"),
    [("writev", {"LogWriteFailed"}), ("pwrite64", {"LogWriteFailed", "LogStateUnknown"})],
)
def test_a_failed_write_is_undone_or_ends_the_process(
    tmp_path: Path, system_call: str, expected: set[str]
) -> None:
    """In LMDB 0.9 pages go by writev, a lone one by pwrite64, and so does the head. `+`: it fails from then on."""
    seen = set()
    for when in ("1", "2", "3", "4", "5", "6", "7", "3+", "4+", "5+"):
        place = tmp_path / when
        LmdbLog(place / "log").close()
        inject = f"inject={system_call}:error=EIO:when={when}"
        data = str(place / "log" / "data.mdb")
        prefix = strace("-P", data, "-e", f"trace={system_call}", "-e", inject)
        run = write_in_child(place / "log", prefix=prefix)
        kinds = {line.split()[0] for line in run.lines}
        seen |= kinds
        assert (run.exit_code == EXIT_UNKNOWN) == ("LogStateUnknown" in kinds), run.lines
        assert run.exit_code != 0 or list(run.acknowledged) == list(range(GROUPS))
        beyond = balance(place / "log", run.acknowledged)
        assert beyond <= (run.exit_code == EXIT_UNKNOWN)
        again = write_in_child(place / "log", first=100)
        assert again.exit_code == 0
        assert balance(place / "log", again.acknowledged) == beyond
    assert seen == expected


@pytest.mark.slow
@pytest.mark.parametrize("head", [1, 2, 3, 4, 9])
def test_a_head_written_and_reported_as_failed_ends_the_process(
    tmp_path: Path, shim: Path, head: int
) -> None:
    LmdbLog(tmp_path / "log").close()
    run = write_in_child(
        tmp_path / "log", environment={"LD_PRELOAD": str(shim), "SHIM_LIE": str(head)}
    )
    assert run.exit_code == EXIT_UNKNOWN
    assert run.lines == ["LogStateUnknown"]
    assert list(run.acknowledged) == list(range(head - 1))
    beyond = balance(tmp_path / "log", run.acknowledged)
    assert beyond in (0, 1)
    again = write_in_child(tmp_path / "log", first=100)
    assert again.exit_code == 0
    assert balance(tmp_path / "log", again.acknowledged) == beyond


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, LogFull),
        (errno.EDQUOT, LogFull),
        (errno.EFBIG, LogFull),
        (errno.EIO, LogWriteFailed),
        (errno.EROFS, LogWriteFailed),
        (errno.ENOMEM, LogWriteFailed),
        (None, LogWriteFailed),
    ],
)
def test_each_error_number_becomes_the_error_that_says_what_to_do(
    tmp_path: Path, code: int | None, kind: type[LogError]
) -> None:
    error = lmdb.Error("mdb_txn_commit: it failed")
    error.code = code
    found = write_failed(error, tmp_path, 1 << 20, 100)
    assert type(found) is kind
    assert "it failed" in str(found)


def test_the_map_and_a_broken_environment_have_errors_of_their_own(tmp_path: Path) -> None:
    assert type(write_failed(lmdb.MapFullError("m"), tmp_path, 0, 1)) is LogFull
    assert type(write_failed(lmdb.PanicError("p"), tmp_path, 0, 1)) is LogStateUnknown


def test_lmdb_errors_carry_their_error_number(tmp_path: Path) -> None:
    with pytest.raises(lmdb.Error) as caught:
        lmdb.open(str(tmp_path / "no" / "such"), create=False)
    assert caught.value.code == errno.ENOENT


# No room.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a file system can only be mounted by root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("size", [1, 3_000, 200_000])
def test_a_full_disk_refuses_reads_on_and_resumes_in_the_same_process(
    small_disk: Path, size: int
) -> None:
    filler = small_disk / "filler"
    log = LmdbLog(small_disk / "log")
    log.append([draft(size)])
    filler.write_bytes(bytes(3 << 20))
    with pytest.raises(LogFull, match="no space left"):
        append_for_ever(log, draft(size))
    head = log.head()
    count = len(list(scan(log, 0)))
    for _ in range(3):
        with pytest.raises(LogFull):
            log.append([draft(max(size, 1 << 20))])
    assert log.head() == head
    assert len(list(scan(log, 0))) == count
    filler.unlink()
    [envelope] = log.append([draft(size)])
    assert (envelope.sequence, envelope.previous_hash) == (head.next_sequence, head.hash)
    assert check_log(log, anchor=log.head()).ok
    log.close()
    log = LmdbLog(small_disk / "log")
    assert log.head().next_sequence == head.next_sequence + 1
    log.close()


def test_a_log_can_not_be_created_on_a_full_disk_and_can_when_there_is_room(
    small_disk: Path,
) -> None:
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(8 << 20))
    with pytest.raises(LogFull):
        LmdbLog(small_disk / "log")
    filler.unlink()
    log = LmdbLog(small_disk / "log")
    log.append([draft(1)])
    log.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_log_on_a_full_disk_opens_or_says_that_there_is_no_room(
    small_disk: Path, read_only: bool
) -> None:
    LmdbLog(small_disk / "log").close()
    (small_disk / "log" / "lock.mdb").unlink()
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(8 << 20))
    assert in_fork(lambda: open_and_close(small_disk / "log", read_only=read_only)) == "LogFull"
    filler.unlink()
    assert in_fork(lambda: open_and_close(small_disk / "log", read_only=read_only)) == "opened"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(8 << 20))
    assert in_fork(lambda: open_and_close(small_disk / "log", read_only=read_only)) == "opened"


def open_and_close(directory: Path, *, read_only: bool) -> str:
    try:
        LmdbLog(directory, read_only=read_only).close()
    except LogError as error:
        return type(error).__name__
    return "opened"


def fill_to_the_file_size_limit(directory: Path) -> None:
    log = LmdbLog(directory)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    with pytest.raises(LogFull, match="no space left"):
        append_for_ever(log, draft(100_000))
    head = log.head()
    for size in (100_000, 2 << 20):
        with pytest.raises(LogFull):
            log.append([draft(size)])
    assert log.head() == head
    assert len(list(scan(log, 0))) == head.next_sequence
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.append([draft(100_000)])
    assert check_log(log, anchor=log.head()).ok
    log.close()


def test_a_file_size_limit_refuses_and_resumes(tmp_path: Path) -> None:
    """Python ignores SIGXFSZ, so a write beyond the limit is an error and not the process's end."""
    assert in_fork(lambda: fill_to_the_file_size_limit(tmp_path / "log")) == "done"


def test_a_map_at_its_bound_refuses_for_good_reads_on_and_a_larger_one_resumes(
    tmp_path: Path,
) -> None:
    log = LmdbLog(tmp_path / "log", map_bytes_start=1 << 20, map_bytes_max=1 << 20)
    with pytest.raises(LogFull, match="largest size"):
        append_for_ever(log, draft(100_000))
    head = log.head()
    for _ in range(3):
        with pytest.raises(LogFull):
            log.append([draft(100_000)])
    assert log.head() == head
    assert len(list(scan(log, 0))) == head.next_sequence
    log.close()
    log = LmdbLog(tmp_path / "log", map_bytes_start=1 << 20)
    assert log.append([draft(100_000)])[0].sequence == head.next_sequence
    assert check_log(log, anchor=log.head()).ok
    log.close()


@pytest.mark.slow
def test_the_map_grows_from_a_tiny_start_beside_readers(tmp_path: Path) -> None:
    log = LmdbLog(tmp_path / "log", map_bytes_start=1 << 16)
    stop = threading.Event()
    failures: list[BaseException] = []

    def follow() -> None:
        try:
            while not stop.is_set():
                sequences = [record.sequence for record in scan(log, 0, bytes_max=1 << 20)]
                assert sequences == list(range(len(sequences)))
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=follow) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(10):
        log.append([draft(4 << 20)])
    stop.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert log.size_bytes() > 40 << 20
    assert check_log(log, anchor=log.head()).ok
    log.close()


def test_the_map_does_not_grow_under_a_reader_nor_starve_behind_readers(tmp_path: Path) -> None:
    log = LmdbLog(tmp_path / "log", map_bytes_start=1 << 16)
    log.close()
    log = LmdbLog(tmp_path / "log", map_bytes_start=1 << 16)
    appended, second_read = threading.Event(), threading.Event()

    def append() -> None:
        log.append([draft(1)])  # any append grows a map this small
        appended.set()

    def read() -> None:
        log.raw(0, bytes_max=1)
        second_read.set()

    with log._reading(0):
        writer = threading.Thread(target=append)
        writer.start()
        assert not appended.wait(0.05), "it grew under a reader"
        reader = threading.Thread(target=read)
        reader.start()
        assert not second_read.wait(0.02), "a new reader went ahead of who waits to grow the map"
    writer.join()
    reader.join()
    assert log.head().next_sequence == 1
    log.close()


def grow_beyond_the_address_space(directory: Path) -> str:
    log = LmdbLog(directory, map_bytes_start=1 << 20)
    log.append([draft(1)])
    log.close()
    log = LmdbLog(directory, map_bytes_start=9 << 20)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (4 << 20)
    big = draft(2 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    found = []
    for attempt in (
        lambda: log.append([big]),
        lambda: log.append([draft(1)]),
        lambda: log.read(0, bytes_max=1),
        lambda: log.read(1, bytes_max=1),
        lambda: log.trim(1, 2, records_max=1),
        log.record_count,
    ):
        try:
            attempt()
            found.append("nothing")
        except LogStateUnknown as error:
            found.append("grow" if "can't grow" in str(error) else str(error))
    log.close()
    return " ".join(found)


def test_a_map_that_can_not_grow_ends_the_process_by_an_error_not_by_a_signal(
    tmp_path: Path,
) -> None:
    found = in_fork(lambda: grow_beyond_the_address_space(tmp_path / "log"))
    assert found == "grow grow grow grow grow grow"
    log = LmdbLog(tmp_path / "log")
    assert log.head().next_sequence == 1
    log.close()


# Whole processes.


def test_a_log_that_crossed_a_fork_is_refused(tmp_path: Path) -> None:
    log = LmdbLog(tmp_path / "log")
    log.append([draft(1)])
    for work in (
        lambda: log.append([draft(1)]),
        lambda: log.read(0, bytes_max=1),
        lambda: log.read(1, bytes_max=1),
        lambda: log.trim(1, 2, records_max=1),
    ):
        found = in_fork(lambda work=work: str(work()))
        assert found == "AssertionError: an LMDB environment must not cross a fork"
    log.append([draft(1)])
    assert check_log(log, anchor=log.head()).ok
    log.close()


def test_a_position_is_never_written_twice(tmp_path: Path) -> None:
    log = LmdbLog(tmp_path / "log")
    start = log.head()
    log.append([draft(1), draft(1)])
    head = log.head()
    log._head = start  # as a bug would
    with pytest.raises(AssertionError, match="a position is written once"):
        log.append([draft(2)])
    log._head = head
    assert check_log(log, anchor=head).ok
    log.close()


def test_the_same_process_can_not_open_a_log_twice(tmp_path: Path) -> None:
    log = LmdbLog(tmp_path / "log")
    with pytest.raises(LogLocked, match="in use"):
        LmdbLog(tmp_path / "log")
    log.append([draft(1)])
    log.close()


def test_what_a_crash_left_of_creating_a_log_is_swept_away(tmp_path: Path) -> None:
    half = tmp_path / "log" / "new"
    half.mkdir(parents=True)
    (half / "data.mdb").write_bytes(b"half a file")
    log = LmdbLog(tmp_path / "log")
    log.append([draft(1)])
    log.close()
    assert not half.exists()


def test_every_file_of_a_log_is_its_owners_alone(tmp_path: Path) -> None:
    log = LmdbLog(tmp_path / "log")
    log.append([draft(1)])
    log.close()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "log").iterdir()}
    assert modes == {"data.mdb": 0o600, "lock.mdb": 0o600, "anchor": 0o600}


def test_opening_to_read_creates_nothing_and_refuses_to_write(tmp_path: Path) -> None:
    with pytest.raises(LogDamaged):
        LmdbLog(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()
    log = LmdbLog(tmp_path / "log")
    log.append([draft(1)])
    head = log.head()
    log.close()
    log = LmdbLog(tmp_path / "log", read_only=True)
    assert log.head() == head
    with pytest.raises(AssertionError):
        log.append([draft(1)])
    with pytest.raises(AssertionError):
        log.trim(1, 2, records_max=1)
    log.close()
