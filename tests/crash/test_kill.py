"""kill -9 of a real server under load: nothing acknowledged is lost, nothing counts twice.

The clients, their ledger and the count of the log are outside the server. KILL_ROUNDS says how often it is killed.
Canaries run the same loop on a server with a planted fault, and must find it.
"""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest

from tests.helpers.ledger import Ledger, Load, assert_balanced, send_the_rest, usage_of
from tests.helpers.server import running

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]

SMALL = {"SMALL_RECENT_KEYS": "200", "SMALL_SNAPSHOT_EVENTS": "500"}
CHECKS_MAX = 20
"""A check reads the whole log: a thousand rounds do with as many checks as two hundred."""


def settle(directory: Path, ledger: Ledger, environment: dict[str, str]) -> None:
    """Start once more, ask for the usage, kill, and hold ledger, log and usage against each other."""
    with running(directory, environment=environment) as server, server.client() as client:
        usage = usage_of(client)
        server.kill()
    assert_balanced(directory, ledger, usage)


def kill_under_load(directory: Path, rounds: int, seed: int, environment: dict[str, str]) -> Ledger:
    """So many lives under load, each ended by SIGKILL at a random moment; checked on the way and at the end."""
    rng, ledger = Random(seed), Ledger()
    for number in range(1, rounds + 1):
        with (
            running(directory, environment=environment) as server,
            Load(server.port, ledger, seed + number, clients=3, batch_max=50),
        ):
            time.sleep(rng.uniform(0.01, 0.3))
            server.kill()
        if number % max(10, rounds // CHECKS_MAX) == 0 or number == rounds:
            settle(directory, ledger, environment)
    with running(directory, environment=environment) as server, server.client() as client:
        send_the_rest(server.port, ledger)
        usage = usage_of(client)
        assert server.stop() == 0
    log = assert_balanced(directory, ledger, usage)
    assert log.keys.keys() == ledger.sent.keys()
    return ledger


def test_kill_9_under_load_loses_nothing_and_counts_nothing_twice(
    tmp_path: Path, seed: int, kill_rounds: int
) -> None:
    ledger = kill_under_load(tmp_path / "data", kill_rounds, seed, SMALL)
    assert len(ledger.acknowledged) > 50 * kill_rounds, "the load was none"
    assert ledger.statuses[200] > 2 * kill_rounds


PHASES = {
    "recovery": {"SLOW_MS": "3", "SMALL_PAGE_BYTES": "3000", "SMALL_SNAPSHOT_EVENTS": "1000000"},
    "snapshot": {"SLOW_MS": "2"},
    "merge": {"SLOW_MS": "60"},
}


def test_kill_9_during_recovery_snapshot_and_merge(
    tmp_path: Path, seed: int, kill_rounds: int
) -> None:
    directory, rng, ledger = tmp_path / "data", Random(seed), Ledger()
    recoveries_hit = 0
    for number in range(max(6, kill_rounds * 2 // 5)):
        phase = ("merge", "snapshot", "recovery")[number % 3]
        environment = {**SMALL, **PHASES[phase], "SLOW_PHASE": phase}
        with running(directory, environment=environment, ready=phase != "recovery") as server:
            if phase == "recovery":
                server.wait_listening()
                time.sleep(rng.uniform(0, 0.1))
                server.kill()
                recoveries_hit += not server.events("recovered")
            else:
                with Load(server.port, ledger, seed + number):
                    server.wait_for(f"slow_{phase}")
                    time.sleep(rng.uniform(0, 0.25))
                    server.kill()
        if number % 6 == 5:
            settle(directory, ledger, SMALL)
    assert recoveries_hit, "no kill fell into a recovery"
    with running(directory, environment=SMALL) as server, server.client() as client:
        send_the_rest(server.port, ledger)
        usage = usage_of(client)
        server.kill()
    assert_balanced(directory, ledger, usage)


@pytest.mark.parametrize("plant", ["early-answer", "forgotten-keys", "lost-merge"])
def test_canary_a_planted_fault_is_found_by_the_kill_test(
    tmp_path: Path, seed: int, plant: str
) -> None:
    environment = {**SMALL, "PLANT": plant, "SLOW_PHASE": "commit", "SLOW_MS": "3"}
    with pytest.raises(AssertionError, match=r"is lost|accepted again|times"):
        kill_under_load(tmp_path / "data", 8, seed, environment)
