"""What becomes of events when an app is killed, ends, or forks: real processes, a real server, the fault proxy."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.sdk_place import ROOT, Place, place

pytestmark = pytest.mark.slow
APP = Path(__file__).with_name("app.py")
SECONDS_MAX = 60
KILLS = 6


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def app(here: Place, tenant: str, mode: str, spool: Path | None = None) -> subprocess.Popen[str]:
    arguments = [str(APP), here.proxy, tenant, mode, *([] if spool is None else [str(spool)])]
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "sdk" / "python")},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    output, _ = process.communicate(timeout=SECONDS_MAX)
    return process.returncode, output.splitlines()


def settle(here: Place, tenant: str, spool: Path) -> None:
    """The next start of the app: it sends what is left."""
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        code, lines = finish(app(here, tenant, "recover", spool))
        assert code == 0
        if lines == ["settled True 0"]:
            time.sleep(0.6)  # a killed one's lease, which is half a second here
            if finish(app(here, tenant, "recover", spool))[1] == ["settled True 0"]:
                return
    pytest.fail("the spool was not settled")


def test_an_app_that_is_killed_with_a_spool_loses_nothing_and_counts_nothing_twice(
    here: Place, tmp_path: Path, rng: random.Random
) -> None:
    spool, said = tmp_path / "spool.db", 0
    for number in range(KILLS):
        here.fail([])
        here.storm(seed=rng.randrange(1 << 30), share=0.4)
        process = app(here, "killed", "endless", spool)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(rng.randrange(1, 300))]
        process.kill()
        lines += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        said += sum(not line.startswith("told") for line in lines)
        assert said > number
    here.calm()
    settle(here, "killed", spool)
    counted = int(here.total("killed", "cora", "calls"))
    # Each kill may come between an event that is in the spool and its line.
    assert said <= counted <= said + KILLS


def test_an_app_that_is_killed_with_everything_in_its_spool_is_made_good_by_its_next_start(
    here: Place, tmp_path: Path
) -> None:
    here.fail([{"kind": "reset_before", "times": 10_000}])
    code, lines = finish(app(here, "spooled", "killed at once", tmp_path / "spool.db"))
    assert code == -9
    assert len(lines) == 50
    assert here.total("spooled", "cora", "calls") == "0"
    here.calm()
    settle(here, "spooled", tmp_path / "spool.db")
    assert here.total("spooled", "cora", "calls") == "50"
    sent = [key for request in here.seen() if request["status"] == 200 for key in request["keys"]]
    assert sent == lines


@pytest.mark.parametrize("with_spool", [False, True])
def test_an_app_that_ends_without_closing_is_flushed_at_its_exit(
    here: Place, tmp_path: Path, with_spool: bool
) -> None:
    tenant = f"left-{with_spool}"
    here.fail([{"kind": "status", "status": 503, "times": 2}, {"kind": "lose_answer"}])
    code, lines = finish(app(here, tenant, "leave", tmp_path / "s.db" if with_spool else None))
    assert code == 0
    assert len(lines) == 50
    assert here.total(tenant, "cora", "calls") == "50"


@pytest.mark.parametrize("with_spool", [False, True])
def test_parent_and_children_of_a_fork_each_count_their_own_events_once(
    here: Place, tmp_path: Path, with_spool: bool
) -> None:
    tenant = f"fork-{with_spool}"
    here.fail([])
    code, lines = finish(app(here, tenant, "fork", tmp_path / "s.db" if with_spool else None))
    assert code == 0
    assert lines[-1] == "children [0, 0, 0, 0]"
    keys = lines[:-1]
    assert len(set(keys)) == len(keys) == 110
    assert here.total(tenant, "cora", "calls") == str(110 + 500)
