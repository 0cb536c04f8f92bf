"""Copies of an LMDB log: whole, of one moment, beside a writer; compacting leaves nothing of what was replaced."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wal import lmdb_copy
from wal.check import check_log
from wal.lmdb_copy import compact, compact_if_asked, copy_log
from wal.lmdb_log import LmdbLog
from wal.log import Draft, DraftPart, LogDamaged, PartState, Replacement, StoredPart, scan

pytestmark = pytest.mark.lmdb
NAME = b"a-customers-name"


def filled(directory: Path, records: int = 60) -> LmdbLog:
    log = LmdbLog(directory, map_bytes_start=1 << 22)
    for _ in range(records):
        log.append([Draft(2, 1, 5, (DraftPart(2, NAME * 300),))])
    return log


def erase(log: LmdbLog) -> None:
    part = StoredPart(2, PartState.PSEUDONYM, b"nobody")
    log.replace([Replacement(r.sequence, (part,)) for r in scan(log, 0)])


def test_a_copy_holds_every_record_and_goes_on_as_a_log(tmp_path: Path) -> None:
    filled(tmp_path / "log").close()
    seen: list[tuple[int, int]] = []
    copy_log(tmp_path / "log", tmp_path / "copy", lambda *at: seen.append(at))
    log = LmdbLog(tmp_path / "log")
    log.append([Draft(2, 1, 6, ())])
    copy = LmdbLog(tmp_path / "copy")
    assert list(scan(copy, 0)) == list(scan(log, 0))[:-1]
    copy.append([Draft(2, 1, 7, ())])
    assert check_log(copy).ok
    assert seen
    copy.close()
    log.close()
    LmdbLog(tmp_path / "copy").close()
    assert (tmp_path / "copy" / "data.mdb").stat().st_mode & 0o777 == 0o600


def test_another_process_copies_while_this_one_appends_and_grows_the_map(tmp_path: Path) -> None:
    log = filled(tmp_path / "log")
    code = (
        "import sys; from pathlib import Path; from wal.lmdb_copy import copy_log\n"
        "print('began', flush=True); sys.stdin.readline()\n"
        "for n in range(5): copy_log(Path(sys.argv[1]), Path(sys.argv[2] + str(n)))"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log"), str(tmp_path / "copy")],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"began\n"
        child.stdin.write(b"go\n")
        child.stdin.close()
        while child.poll() is None:
            log.append([Draft(2, 1, 5, (DraftPart(2, NAME * 3000),))])
    assert child.returncode == 0
    whole = list(scan(log, 0))
    log.close()
    for number in range(5):
        copy = LmdbLog(tmp_path / f"copy{number}")
        records = list(scan(copy, 0))
        assert records == whole[: len(records)]
        copy.close()


def test_replaced_bytes_stay_in_free_pages_until_the_log_is_compacted(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    log = filled(directory)
    erase(log)
    head, records = log.head(), list(scan(log, 0))
    log.close()
    assert NAME in (directory / "data.mdb").read_bytes(), "else compacting has nothing to prove"
    assert compact(directory) > 0
    assert not any(NAME in path.read_bytes() for path in directory.rglob("*") if path.is_file())
    log = LmdbLog(directory)
    assert log.head() == head
    assert list(scan(log, 0)) == records
    log.close()


def test_a_log_that_asks_for_it_is_compacted_before_its_next_opening_and_only_then(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "log"
    log = filled(directory)
    erase(log)
    log.close()
    assert compact_if_asked(directory) is None
    log = LmdbLog(directory)
    log.compact_at_next_open()
    log.close()
    assert "bytes saved" in (compact_if_asked(directory) or "")
    assert NAME not in (directory / "data.mdb").read_bytes()
    assert compact_if_asked(directory) is None


def test_a_copy_that_lacks_something_never_takes_the_logs_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "log"
    filled(directory).close()
    original = (directory / "data.mdb").read_bytes()

    def forgetful(_source: Path, target: Path, _progress: object) -> None:
        other = LmdbLog(target)
        other.append([Draft(2, 1, 5, ())])
        other.close()

    monkeypatch.setattr(lmdb_copy, "copy_log", forgetful)
    with pytest.raises(LogDamaged, match="the copy"):
        compact(directory)
    assert (directory / "data.mdb").read_bytes() == original
    (directory / "compact-at-next-open").touch()
    assert "still in it" in (compact_if_asked(directory) or "")
    LmdbLog(directory).close()
