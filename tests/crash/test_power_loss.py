"""Power fails at every write of a run, and nothing that was acknowledged is lost.

The shim writes down what the log did to its file; each cut of that record is turned into what a disk may hold then:
writes since the last sync are there, are not, or are torn at 512 bytes, in any order. `POWER_CUTS` sets at how many
points (`all` of them: a nightly run); a disk that lies about syncing must fail the test.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from tests.crash.child import balance, in_fork, parse_ledger, write_in_child
from wal.check import check_log
from wal.lmdb_log import LmdbLog
from wal.log import Draft, DraftPart

CUTS = os.environ.get("POWER_CUTS", "120")
CUTS_MAX = 1_000_000 if CUTS == "all" else int(CUTS)
SECTOR_BYTES = 512

pytestmark = [pytest.mark.lmdb, pytest.mark.slow]


class Step(NamedTuple):
    """One entry of the shim's record."""

    kind: str
    offset: int
    data: bytes


def record_writes(directory: Path, shim: Path) -> tuple[bytes, list[Step]]:
    """A run with trims: the file before it, and everything that was done to it."""
    LmdbLog(directory / "log").close()
    before = (directory / "log" / "data.mdb").read_bytes()
    record = directory / "record"
    environment = {"LD_PRELOAD": str(shim), "SHIM_RECORD": str(record), "SHIM_LEDGER": "/ledger"}
    run = write_in_child(directory / "log", count=60, trim_every=7, environment=environment)
    assert len(run.acknowledged) == 60
    data, steps, position = record.read_bytes(), [], 0
    while position < len(data):
        end = data.index(b"\n", position)
        kind, offset, length = data[position:end].split()
        position = end + 1 + int(length)
        steps.append(Step(kind.decode(), int(offset), data[end + 1 : position]))
    assert {step.kind for step in steps} == {"W", "H", "S", "A"}
    return before, steps


class Disk:
    """What lies on the platter, and what the cache still holds."""

    def __init__(self, image: bytes, *, lies: bool) -> None:
        self.image = bytearray(image)
        self.cached: list[Step] = []
        self.acknowledged = b""
        self._lies = lies
        """It says that a sync is done and does nothing."""

    def do(self, step: Step) -> None:
        if step.kind == "A":
            self.acknowledged += step.data
        elif step.kind == "W":
            self.cached.append(step)
        elif step.kind == "H":
            _write(self.image, step.offset, step.data)
        elif step.kind == "S" and not self._lies:
            for cached in self.cached:
                _write(self.image, cached.offset, cached.data)
            self.cached = []

    def after_power_loss(self, in_flight: Step | None, rng: Random) -> bytes:
        """Each write that was not durable is there, is not, or is torn between sectors; in any order."""
        image = bytearray(self.image)
        unsure = list(self.cached)
        if in_flight is not None and in_flight.kind in "WH":
            unsure.append(in_flight)
        rng.shuffle(unsure)
        for step in unsure:
            fate = rng.randrange(3)
            for start in range(0, len(step.data), SECTOR_BYTES):
                if fate == 1 or (fate == 2 and rng.random() < 0.5):
                    _write(image, step.offset + start, step.data[start : start + SECTOR_BYTES])
        return bytes(image)


def _write(image: bytearray, offset: int, data: bytes) -> None:
    image.extend(bytes(max(0, offset + len(data) - len(image))))
    image[offset : offset + len(data)] = data


def power_losses(
    directory: Path, shim: Path, rng: Random, *, lies: bool, cuts: int
) -> tuple[int, list[tuple[int, str]]]:
    """Cut the power at points of a recorded run: how many, and what was wrong after which."""
    before, steps = record_writes(directory, shim)
    points = set(rng.sample(range(len(steps) + 1), min(cuts, len(steps) + 1)))
    disk, wrong = Disk(before, lies=lies), []
    place = directory / "after"
    for point in range(len(steps) + 1):
        if point in points:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            in_flight = steps[point] if point < len(steps) else None
            (place / "data.mdb").write_bytes(disk.after_power_loss(in_flight, rng))
            (directory / "acknowledged").write_bytes(disk.acknowledged)
            found = in_fork(lambda: balance_after_power_loss(directory))
            if found != "done":
                wrong.append((point, found))
        if point < len(steps):
            disk.do(steps[point])
    return len(points), wrong


def balance_after_power_loss(directory: Path) -> None:
    acks = parse_ledger((directory / "acknowledged").read_bytes())
    assert balance(directory / "after", acks) <= 1
    log = LmdbLog(directory / "after", map_bytes_start=1 << 24)
    log.append([Draft(2, 1, 1_000_000, (DraftPart(1, bytes(5_000)),))])
    assert check_log(log, anchor=log.head()).ok
    log.close()


def test_no_acknowledged_record_is_lost_whenever_the_power_fails(
    tmp_path: Path, shim: Path, rng: Random
) -> None:
    cuts, wrong = power_losses(tmp_path, shim, rng, lies=False, cuts=CUTS_MAX)
    assert not wrong, wrong[:3]
    assert cuts >= min(CUTS_MAX, 200)


def test_a_disk_that_lies_about_syncing_loses_something_or_this_test_proves_nothing(
    tmp_path: Path, shim: Path, rng: Random
) -> None:
    cuts, wrong = power_losses(tmp_path, shim, rng, lies=True, cuts=60)
    assert len(wrong) > cuts / 4, "replaying the cuts can't fail: it does not test what it says"
