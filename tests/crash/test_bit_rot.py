"""Rot on a real disk: flipped bits in LMDB's values and anywhere in its file.

A flip in LMDB's own pages may end the process by a signal, so the walk runs in a forked child. What counts: every
record that changed is found. An error on opening or a signal is a find; wrong data read without a word is a failure.
`ROT_FLIPS` sets how many flips of the file are tried.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import lmdb
import pytest

from tests.crash.child import in_fork
from wal.anchor import ANCHOR_NAME, APPENDS_BETWEEN_ANCHORS
from wal.check import check_log
from wal.lmdb_log import LmdbLog, _page
from wal.log import Draft, DraftPart, Head, LogDamaged, LogError, scan

FLIPS = int(os.environ.get("ROT_FLIPS", "600"))


def fill(directory: Path, rng: Random, *, commits: int) -> Head:
    """A log with small and large records, some trimmed, closed again: its head."""
    log = LmdbLog(directory, map_bytes_start=1 << 24)
    for _ in range(commits):
        log.append(
            [
                Draft(2, items, 1_000_000, (DraftPart(1, rng.randbytes(items * 20)),))
                for items in (1, rng.choice((3, 10, 400)))
            ]
        )
    log.trim(20, 2, records_max=5)
    # Not the other way round: a head that falls back over a trim gives back bodies, which is no loss.
    log.append([Draft(2, 1, 1_000_000, (DraftPart(1, b"last"),))])
    head = log.head()
    log.close()
    return head


def test_a_bit_flipped_in_any_stored_value_is_found_and_the_record_named(
    tmp_path: Path, rng: Random
) -> None:
    head = fill(tmp_path / "log", rng, commits=6)
    with tree(tmp_path / "log") as transaction:
        good = {bytes(key): bytes(value) for key, value in transaction.cursor()}
    for key, value in good.items():
        blob = bytearray(value)
        bit = rng.randrange(len(blob) * 8)
        blob[bit // 8] ^= 1 << bit % 8
        write_value(tmp_path / "log", key, bytes(blob))
        sequence = int.from_bytes(key, "big")
        log = LmdbLog(tmp_path / "log", read_only=True)
        report = check_log(log, anchor=head)
        assert [problem.sequence for problem in report.problems] == [sequence], f"bit {bit}"
        with pytest.raises(LogDamaged) as caught:
            list(scan(log, 0))
        assert caught.value.sequence == sequence
        log.close()
        write_value(tmp_path / "log", key, value)
    log = LmdbLog(tmp_path / "log")
    assert check_log(log, anchor=head).ok
    log.close()


@contextmanager
def tree(directory: Path) -> Iterator[lmdb.Transaction]:
    """LMDB's tree, without our log above it."""
    with (
        lmdb.open(str(directory), map_size=1 << 24) as environment,
        environment.begin(write=True) as transaction,
    ):
        yield transaction


def write_value(directory: Path, key: bytes, value: bytes) -> None:
    with tree(directory) as transaction:
        transaction.put(key, value)


@pytest.mark.parametrize("change", ["lost", "swapped"])
def test_a_record_lost_or_swapped_in_the_tree_is_found(tmp_path: Path, change: str) -> None:
    head = fill(tmp_path / "log", Random(1), commits=3)
    with tree(tmp_path / "log") as transaction:
        keys = [bytes(key) for key in transaction.cursor().iternext(values=False)]
        first, second = keys[1], keys[2]
        one, two = transaction.get(first), transaction.get(second)
        if change == "lost":
            transaction.delete(first)
        else:
            transaction.put(first, two)
            transaction.put(second, one)
    log = LmdbLog(tmp_path / "log", read_only=True)
    named = {problem.sequence for problem in check_log(log, anchor=head).problems}
    log.close()
    sequences = {int.from_bytes(key, "big") for key in (first, second)}
    assert named >= (sequences if change == "swapped" else {int.from_bytes(second, "big")})


def walk(directory: Path, head: Head, good: list[tuple[int, bytes]]) -> str:
    """How one damaged file shows itself; SILENT is what must never be."""
    try:
        log = LmdbLog(directory, read_only=True)
    except LogError:
        return "refused to open"
    alone, anchored = check_log(log).ok, check_log(log, anchor=log.anchor()).ok
    try:
        read = [(r.sequence, r.parts[0].data) for r in scan(log, 0)]
    except LogError:
        return "read refused" if not alone else "READ REFUSED, CHECK SILENT"
    log.close()
    if read == good:
        return "nothing changed" if anchored else "nothing changed, reported all the same"
    if alone and anchored:
        return "WRONG DATA, SILENT"
    if read == good[: len(read)]:  # no read can miss what is not there: opening must
        try:
            shorter = LmdbLog(directory).head() != head
        except LogError:
            shorter = False
        if shorter:
            return "OPENED WITHOUT ITS END, SILENT"
    return "found by check" if not alone else "found by the anchor alone"


@pytest.mark.slow
@pytest.mark.lmdb
def test_no_bit_flipped_in_the_file_changes_a_record_in_silence(
    tmp_path: Path, rng: Random
) -> None:
    head = fill(tmp_path / "log", rng, commits=60)
    log = LmdbLog(tmp_path / "log")
    good = [(record.sequence, record.parts[0].data) for record in scan(log, 0)]
    log.close()
    data = tmp_path / "log" / "data.mdb"
    sound = data.read_bytes()
    outcomes: Counter[str] = Counter()
    for number in range(FLIPS):
        # Every fourth in the two heads: there one bit decides about the whole log.
        where = rng.randrange(8192) if number % 4 == 0 else rng.randrange(len(sound))
        where = where % 4096 % 152 + where // 4096 * 4096 if number % 8 == 0 else where
        rotten = bytearray(sound)
        rotten[where] ^= 1 << rng.randrange(8)
        data.write_bytes(rotten)
        outcome = in_fork(lambda: walk(tmp_path / "log", head, good))
        assert "SILENT" not in outcome, f"{outcome}: byte {where}"
        outcomes[outcome] += 1
    print(outcomes)
    found = FLIPS - outcomes["nothing changed"] - outcomes["nothing changed, reported all the same"]
    assert found > FLIPS / 5, "too few flips hit a record for this test to mean something"
    data.write_bytes(sound)
    shutil.rmtree(tmp_path / "log")


@pytest.mark.parametrize("commits", [1, 2, 3, 4])
def test_a_stale_head_is_refused(tmp_path: Path, commits: int) -> None:
    """The flip that an older tree would hide: the newer head's transaction number becomes smaller."""
    fill(tmp_path / "log", Random(2), commits=commits)
    data = tmp_path / "log" / "data.mdb"
    sound = data.read_bytes()
    for head in (0, 4096):
        for bit in range(64):
            rotten = bytearray(sound)
            rotten[head + 16 + 128 + bit // 8] ^= 1 << bit % 8
            data.write_bytes(rotten)
            # A number smaller by 2 looks like the head before: the anchor tells.
            with pytest.raises(LogDamaged, match=r"head|last records were lost"):
                LmdbLog(tmp_path / "log")


def test_a_tree_that_leads_in_a_circle_is_left_and_not_walked_for_ever() -> None:
    around = itertools.cycle([(key.to_bytes(8, "big"), bytes(99)) for key in (4, 5, 6)])
    with pytest.raises(LogDamaged, match="record 4 is stored after record 6"):
        _page(around, 1 << 20)
    backwards = iter([(key.to_bytes(8, "big"), b"") for key in (9, 3)])
    with pytest.raises(LogDamaged, match="record 3 is stored after record 9"):
        _page(backwards, 1 << 20)
    with pytest.raises(LogDamaged, match="record 3 is stored after record 8"):
        _page(iter([((3).to_bytes(8, "big"), b"")]), 1, after=8)


def test_an_older_file_in_the_place_of_the_log_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    fill(directory, Random(5), commits=2)
    older = (directory / "data.mdb").read_bytes()
    log = LmdbLog(directory)
    log.append([Draft(2, 1, 0, ())])
    head = log.head()
    log.close()
    (directory / "data.mdb").write_bytes(older)
    with pytest.raises(LogDamaged, match="last records were lost"):
        LmdbLog(directory)
    log = LmdbLog(directory, read_only=True)
    assert log.anchor() == head
    assert [p.sequence for p in check_log(log, anchor=log.anchor()).problems] == [None]
    log.close()
    (directory / ANCHOR_NAME).unlink()
    LmdbLog(directory).close()


def test_an_anchor_that_was_not_brought_up_to_date_still_fits(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    fill(directory, Random(6), commits=2)
    stale = (directory / ANCHOR_NAME).read_bytes()
    log = LmdbLog(directory)
    log.append([Draft(2, 7, 0, ())])
    log.close()
    for content in (stale, b"", stale[:-1], bytes(len(stale)), stale + b"x"):
        (directory / ANCHOR_NAME).write_bytes(content)
        log = LmdbLog(directory)
        assert (log.anchor() is None) == (content != stale)
        log.close()


def test_an_anchor_is_written_at_intervals_and_on_closing(tmp_path: Path) -> None:
    log = LmdbLog(tmp_path / "log")
    for n in range(APPENDS_BETWEEN_ANCHORS):
        assert log.anchor() is None, n
        log.append([Draft(2, 1, 0, ())])
    assert log.anchor() == log.head()
    log.append([Draft(2, 1, 0, ())])
    assert log.anchor() != log.head()
    log.close()
    assert log.anchor() == log.head()


@pytest.mark.parametrize("kept", [0, 1, 4096, 8191])
def test_a_file_cut_within_its_heads_is_refused(tmp_path: Path, kept: int) -> None:
    fill(tmp_path / "log", Random(3), commits=1)
    os.truncate(tmp_path / "log" / "data.mdb", kept)
    for read_only in (True, False):
        with pytest.raises(LogDamaged):
            LmdbLog(tmp_path / "log", read_only=read_only)


def test_a_file_cut_at_its_end_is_damage_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    head = fill(tmp_path / "log", Random(4), commits=20)
    data = tmp_path / "log" / "data.mdb"
    sound = data.read_bytes()
    for missing in (1, 4096, len(sound) // 2, len(sound) - 8192):
        data.write_bytes(sound[: len(sound) - missing])
        with pytest.raises(LogDamaged, match="are missing"):
            LmdbLog(tmp_path / "log", read_only=True)

        def opened() -> str:
            try:
                log = LmdbLog(tmp_path / "log")
            except LogDamaged:
                return "refused"
            return "found" if not check_log(log, anchor=head).ok else "sound"

        outcome = in_fork(opened)
        # One byte can be unused space at the end of a page.
        assert outcome in (("refused", "found", "sound") if missing == 1 else ("refused", "found"))
