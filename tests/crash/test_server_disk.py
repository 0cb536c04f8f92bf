"""A real server on a disk that fails, is full or is slow: what it refuses is not counted, what it took is.

The faults are made below the server: by strace, which is skipped where it is missing, and by a small file system.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from gateway.data_directory import DataDirectory
from tests.crash.test_kill import SMALL
from tests.helpers.http_client import Client, CutOff
from tests.helpers.ledger import (
    CUSTOMERS,
    TENANTS,
    Ledger,
    Load,
    assert_balanced,
    send,
    send_the_rest,
    usage_of,
)
from tests.helpers.server import in_time, running, strace
from wal.lmdb_log import LmdbLog

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]

EXIT_REFUSED, EXIT_FATAL = 1, 3
SYNC = ("-e", "trace=fdatasync,fsync", "-e")


def send_light_load(client: Client, ledger: Ledger, rng: Random, batches: int = 10) -> int:
    """Send some batches, each until it has a 200; returns how many refusals came before that."""
    refusals = 0
    for _ in range(batches):
        batch = ledger.fresh(rng, rng.randint(1, 5))
        while not send(client, ledger, batch):
            refusals += 1
            assert client.get("/health/ready").status == 503, "a failing log is not ready"
            assert refusals < 10, "the server does not come back"
    assert client.get("/health/ready").status == 200
    return refusals


@pytest.mark.parametrize("call", range(1, 5))
def test_a_sync_that_fails_while_the_directory_is_made_refuses_the_start_and_the_next_one_works(
    tmp_path: Path, seed: int, call: int
) -> None:
    directory, ledger = tmp_path / "data", Ledger()
    fault = strace(*SYNC, f"inject=fdatasync,fsync:error=EIO:when={call}")
    with running(directory, prefix=fault, ready=False) as server:
        assert server.wait() == EXIT_REFUSED
        assert len(server.complaints) == 1, server.stderr
        assert server.complaints[0].startswith("stripemeter: ")
    with running(directory) as server, server.client() as client:
        assert send_light_load(client, ledger, Random(seed), batches=1) == 0
        server.kill()
    assert_balanced(directory, ledger)


@pytest.mark.parametrize("call", range(1, 16))
def test_a_failed_sync_fails_its_group_alone_and_a_retry_counts_once(
    tmp_path: Path, seed: int, call: int
) -> None:
    """Calls are counted in the thread that commits: the first is the log's first record."""
    directory, ledger = tmp_path / "data", Ledger()
    LmdbLog(directory / "log").close()
    DataDirectory(directory).signing_seed()  # made before: it has syncs of its own
    environment = {**SMALL, "STRIPEMETER_KEY_PEPPER": "p" * 32}
    fault = strace(*SYNC, f"inject=fdatasync,fsync:error=EIO:when={call}")
    with running(directory, environment=environment, prefix=fault, ready=False) as server:
        if call == 1:
            assert server.wait() == EXIT_REFUSED
            assert len(server.complaints) == 1, server.stderr
            return
        with server.wait_ready().client() as client:
            refusals = send_light_load(client, ledger, Random(seed))
            usage = usage_of(client)
        server.kill()
    assert refusals <= 1
    # None: the call was a period's closing or an index's. The next test counts refusals for certain.
    assert_balanced(directory, ledger, usage)


def test_every_other_sync_fails_and_nothing_is_lost_or_doubled(tmp_path: Path, seed: int) -> None:
    directory, ledger = tmp_path / "data", Ledger()
    fault = strace(*SYNC, "inject=fdatasync,fsync:error=EIO:when=20+2")
    with running(directory, environment=SMALL, prefix=fault) as server:
        with Load(server.port, ledger, seed):
            time.sleep(1.5)
        with server.client() as client:
            usage = usage_of(client)
        server.kill()
    assert ledger.statuses[503] > 5
    assert ledger.statuses[200] > 5
    assert_balanced(directory, ledger, usage)


def test_canary_acknowledging_what_the_disk_refused_is_found(tmp_path: Path, seed: int) -> None:
    directory, ledger = tmp_path / "data", Ledger()
    fault = strace(*SYNC, "inject=fdatasync,fsync:error=EIO:when=8+2")
    environment = {**SMALL, "PLANT": "deaf-to-errors"}
    with running(directory, environment=environment, prefix=fault) as server:
        with server.client() as client:
            for _ in range(10):
                send(client, ledger, ledger.fresh(Random(seed), 2))
        server.kill()
    with pytest.raises(AssertionError, match=r"is lost"):
        assert_balanced(directory, ledger)


def test_a_head_that_can_not_be_written_ends_the_process_within_a_second_and_it_recovers(
    tmp_path: Path, seed: int
) -> None:
    directory, ledger, rng = tmp_path / "data", Ledger(), Random(seed)
    with running(directory):
        pass
    ends = 0
    for call in range(1, 4):
        fault = strace(
            *("-P", str(directory / "log" / "data.mdb"), "-e", "trace=pwrite64", "-e"),
            f"inject=pwrite64:error=EIO:when={call}",
        )
        with running(directory, prefix=fault) as server, server.client() as client:
            try:
                refusals = send_light_load(client, ledger, rng)
            except CutOff:
                began = time.monotonic()
                assert server.wait(30) == EXIT_FATAL
                assert in_time(time.monotonic() - began, 1)
                (line,) = server.complaints
                assert "whether the last group is on disk is unknown" in line
                ends += 1
            else:
                assert refusals == 1, "a page's write failed, not the head's"
                server.kill()
        assert_balanced(directory, ledger)
    assert ends >= 1
    with running(directory) as server, server.client() as client:
        send_light_load(client, ledger, rng, batches=2)
        usage = usage_of(client)
        server.kill()
    assert_balanced(directory, ledger, usage)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB. Needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", str(path)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small file system: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(filler: Path) -> None:
    """Take all that is left of the disk."""
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def send_until_full(client: Client, ledger: Ledger, rng: Random) -> None:
    """Ingest until a refusal. A few free pages may still take a little."""
    for _ in range(5000):
        batch = ledger.fresh(rng, 50)
        if not send(client, ledger, batch):
            ledger.without_answer(batch)
            return
    raise AssertionError("the disk is never full")


def test_a_full_disk_refuses_with_507_reads_on_and_resumes_without_a_restart(
    small_disk: Path, seed: int
) -> None:
    directory, ledger, rng = small_disk / "data", Ledger(), Random(seed)
    filler = small_disk / "filler"
    # Merges fail on a full disk too, and are tried again with backoff: room for the keys in memory meanwhile.
    environment = {**SMALL, "SMALL_RECENT_KEYS": "5000"}
    with running(directory, environment=environment) as server, server.client() as client:
        for _ in range(2):
            send_light_load(client, ledger, rng)
            fill(filler)
            send_until_full(client, ledger, rng)
            assert set(ledger.statuses) == {200, 507}, ledger.statuses
            assert_reads_work(client, ledger)
            ready = client.get("/health/ready")
            assert ready.status == 503
            assert ready.json()["checks"]["log"]["status"] == "failed"
            assert "no space" in ready.json()["checks"]["log"]["detail"]
            filler.unlink()
            send_the_rest(server.port, ledger)
            assert client.get("/health/ready").status == 200
        usage = usage_of(client)
        assert server.stop() == 0
    assert_balanced(directory, ledger, usage)


def assert_reads_work(client: Client, ledger: Ledger) -> None:
    usage = usage_of(client)
    assert sum(count for _, count in usage.values()) == len(ledger.acknowledged)
    tenant, customer = TENANTS[0], CUSTOMERS[0]
    assert client.get(f"/v1/events?tenantId={tenant}&limit=5").status == 200
    history = f"/v1/usage/history?tenantId={tenant}&metric=calls&customerRef={customer}&interval=day&since=-P1D"
    found = client.get(history)
    assert found.status == 200, found.body


def test_a_slow_disk_bounds_the_queue_the_memory_and_answers_503_beyond(
    tmp_path: Path, seed: int
) -> None:
    directory, ledger = tmp_path / "data", Ledger()
    queue_events_max = 200
    environment = {**SMALL, "SMALL_QUEUE_EVENTS": str(queue_events_max)}
    fault = strace("-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=500000")
    with running(directory, environment=environment, prefix=fault) as server:
        with server.client() as client:
            send_light_load(client, ledger, Random(seed), batches=1)
            before = server.rss_bytes()
            with Load(server.port, ledger, seed, clients=12, batch_max=50):
                until, queued, largest = time.monotonic() + 4, [], 0
                while time.monotonic() < until:
                    facts = client.get("/health/ready").json()["checks"]["log"]["facts"]
                    queued.append(facts["queuedEvents"])
                    largest = max(largest, server.rss_bytes())
                    time.sleep(0.05)
        server.kill()
    assert ledger.statuses.get(503, 0) > 0, "the bound was never reached"
    assert ledger.statuses[200] > 1
    assert queue_events_max // 2 < max(queued) <= queue_events_max
    assert largest < 2 * before
    assert_balanced(directory, ledger)
    shutil.rmtree(directory)
