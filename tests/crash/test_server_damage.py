"""Damage in a stopped server's log: `serve` refuses what it would have to fold, `check` names exactly what is damaged.

Bits are flipped and records cut inside LMDB's values, as a disk that lies or a torn write would leave them.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import NamedTuple

import lmdb
import pytest

from engine.core.records import PartKind, RecordType
from gateway.log_check import inspect
from tests.crash.test_kill import SMALL
from tests.helpers.ledger import Ledger, assert_balanced, send
from tests.helpers.server import STOCK, command, running, server_environment
from wal.lmdb_log import LmdbLog
from wal.log import Draft, DraftPart, StoredRecord, scan

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]


class Stopped(NamedTuple):
    """A directory that a server has filled and left, with what it acknowledged."""

    directory: Path
    ledger: Ledger
    snapshot_position: int


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """Made once; every test damages a copy."""
    directory, ledger, rng = tmp_path_factory.mktemp("filled") / "data", Ledger(), Random(7)
    with running(directory, environment=SMALL) as server:
        with server.client() as client:
            for size in (*[20] * 60, *[3] * 30):
                assert send(client, ledger, ledger.fresh(rng, size))
        assert server.stop() == 0
        position = server.events("snapshot_written")[-1]["position"]
    return Stopped(directory, ledger, position)


@pytest.fixture
def stopped(filled: Stopped, tmp_path: Path) -> Stopped:
    shutil.copytree(filled.directory, tmp_path / "data")
    return filled._replace(directory=tmp_path / "data")


def records_of(directory: Path) -> list[StoredRecord]:
    log = LmdbLog(directory / "log", read_only=True)
    try:
        return list(scan(log, 0))
    finally:
        log.close()


def change(directory: Path, sequence: int, how: str, rng: Random) -> None:
    """Damage one stored blob: `flip` one bit of it, or `cut` its end off."""
    key = struct.pack(">Q", sequence)
    with (
        lmdb.open(str(directory / "log"), max_dbs=0) as environment,
        environment.begin(write=True) as transaction,
    ):
        blob = bytearray(transaction.get(key))
        if how == "flip":
            blob[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
        else:
            del blob[rng.randrange(1, len(blob)) :]
        transaction.put(key, bytes(blob))


def problems_of(directory: Path) -> list[int | None]:
    """What `stripemeter check --json` names. Its exit code says the same."""
    done = command(["check", "--json", "--data-dir", str(directory)], directory)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1), done.stderr
    assert report["ok"] == (not report["problems"])
    return [problem["sequence"] for problem in report["problems"]]


@pytest.mark.parametrize("how", ["flip", "cut"])
@pytest.mark.parametrize("which", ["after the snapshot", "the last"])
def test_serve_refuses_a_damaged_record_that_it_must_fold_and_names_it(
    stopped: Stopped, seed: int, which: str, how: str
) -> None:
    directory = stopped.directory
    sequences = [record.sequence for record in records_of(directory)]
    after = [s for s in sequences if s > stopped.snapshot_position]
    victim = after[len(after) // 2] if which == "after the snapshot" else after[-1]
    change(directory, victim, how, Random(seed))
    with running(directory, module=STOCK, ready=False) as server:
        assert server.wait() == 1
        (line,) = server.complaints
        assert re.search(rf"\b{victim}\b", line), line
    assert problems_of(directory) == [victim]


def test_damage_behind_the_snapshot_does_not_stop_the_server_and_check_names_exactly_it(
    stopped: Stopped, seed: int
) -> None:
    directory, rng = stopped.directory, Random(seed)
    assert problems_of(directory) == []
    sequences = [record.sequence for record in records_of(directory)][2:20]
    victims = sorted(rng.sample(sequences, 3))
    for victim in victims:
        change(directory, victim, rng.choice(("flip", "cut")), rng)
    with running(directory, environment=SMALL) as server:
        assert server.stop() == 0
    assert problems_of(directory) == victims
    for_people = command(["check", "--data-dir", str(directory)], directory)
    assert for_people.returncode == 1
    for victim in victims:
        assert f"damaged: record {victim}: " in for_people.stdout


def test_a_lost_record_is_found_by_the_one_after_it(stopped: Stopped) -> None:
    directory = stopped.directory
    records = records_of(directory)
    with (
        lmdb.open(str(directory / "log"), max_dbs=0) as environment,
        environment.begin(write=True) as transaction,
    ):
        assert transaction.delete(struct.pack(">Q", records[10].sequence))
    assert problems_of(directory) == [records[11].sequence]


def test_a_damaged_head_and_a_short_file_refuse_the_start_and_fail_the_check(
    stopped: Stopped,
) -> None:
    data = stopped.directory / "log" / "data.mdb"
    whole = data.read_bytes()
    for damaged in (whole[:16] + bytes(40) + whole[56:], whole[: len(whole) // 2]):
        data.write_bytes(damaged)
        with running(stopped.directory, module=STOCK, ready=False) as server:
            assert server.wait() == 1
            assert len(server.complaints) == 1, server.stderr
        assert problems_of(stopped.directory) == [None]
    data.write_bytes(whole)
    assert problems_of(stopped.directory) == []
    assert_balanced(stopped.directory, stopped.ledger)


def test_garbage_in_any_page_of_the_file_is_damage_and_never_a_crash_of_the_check(
    stopped: Stopped, seed: int
) -> None:
    """LMDB itself may die by a signal on such a file: then that is what the report says."""
    data, rng = stopped.directory / "log" / "data.mdb", Random(seed)
    whole = data.read_bytes()
    pages = range(2, len(whole) // 4096)
    found = 0
    for page in rng.sample(pages, min(6, len(pages))):
        start = page * 4096
        data.write_bytes(whole[:start] + rng.randbytes(4096) + whole[start + 4096 :])
        done = command(["check", "--data-dir", str(stopped.directory)], stopped.directory)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 1)  # 0: a free page
        found += done.returncode
    assert found, "no page of them was in use"


def test_check_refuses_a_directory_that_a_server_has_and_one_that_is_none(tmp_path: Path) -> None:
    with running(tmp_path / "data") as server:
        done = command(["check", "--data-dir", str(tmp_path / "data")], tmp_path / "data")
        assert done.returncode == 1
        assert f"in use by process {server.process.pid}" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = command(["check", "--data-dir", str(tmp_path / "none")], tmp_path / "data")
    assert done.returncode == 1
    assert "there is no log" in done.stderr
    assert not (tmp_path / "none").exists()


def test_check_shows_progress_on_a_terminal_only(stopped: Stopped) -> None:
    quiet = command(["check", "--data-dir", str(stopped.directory)], stopped.directory)
    assert quiet.stderr == ""
    terminal, end = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", STOCK, "check", "--data-dir", str(stopped.directory)],
        env=server_environment({"TERM": "xterm"}),
        cwd=stopped.directory.parent,
        stdout=subprocess.DEVNULL,
        stderr=end,
        check=True,
    )
    os.close(end)
    shown = os.read(terminal, 1 << 16)
    os.close(terminal)
    assert b"checking" in shown


def drafts_with_a_wrong_meaning(records: list[StoredRecord]) -> dict[str, Draft]:
    """Records whose bytes, checksums and chain are right and whose content can't be."""
    group = next(r for r in records if r.envelope.record_type == RecordType.EVENTS)
    parts = tuple(DraftPart(part.kind, part.data) for part in group.parts)
    count = group.envelope.item_count
    genesis = DraftPart(PartKind.CONTROL, records[0].parts[0].data)
    return {
        "too many positions": Draft(RecordType.EVENTS, count + 1, 1, parts),
        "one part": Draft(RecordType.EVENTS, count, 1, parts[:1]),
        "swapped parts": Draft(RecordType.EVENTS, count, 1, parts[1::-1]),
        "no message": Draft(
            RecordType.EVENTS,
            count,
            1,
            (DraftPart(PartKind.COUNTING, b"\xc1"), DraftPart(PartKind.ERASABLE, b"\xc1")),
        ),
        "a second genesis": Draft(RecordType.GENESIS, 1, 1, (genesis,)),
        "control without meaning": Draft(
            RecordType.SETTINGS, 1, 1, (DraftPart(PartKind.CONTROL, b"x"),)
        ),
        "control of two positions": Draft(RecordType.SETTINGS, 2, 1, (genesis,)),
        "unknown type": Draft(200, 1, 1, (DraftPart(PartKind.CONTROL, b""),)),
    }


def test_a_record_that_is_whole_and_means_nothing_is_named_too(stopped: Stopped) -> None:
    records = records_of(stopped.directory)
    assert [inspect(record) for record in records] == [None] * len(records)
    drafts = drafts_with_a_wrong_meaning(records)
    log = LmdbLog(stopped.directory / "log")
    appended = [log.append([draft])[0].sequence for draft in drafts.values()]
    log.close()
    assert problems_of(stopped.directory) == appended
