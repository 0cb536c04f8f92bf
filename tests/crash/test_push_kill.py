"""kill -9 of a server around every push: Stripe bills what was used, once, and no identifier carries two amounts.

The simulator is a process of its own that nobody kills; KILL_ROUNDS says how often the server is. Canaries run the same
loop on a server with a planted fault, and must find it. Requests leave by a process of the server's own, which is killed
and stopped too.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from random import Random

import pytest

from tests.helpers.http_client import CutOff
from tests.helpers.server import running
from tests.helpers.sim_process import SimProcess, sim_process

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]

CUSTOMERS = 6
SETTLE_SECONDS_MAX = 60.0
MAPPING = {"tenantId": "acme", "metric": "calls", "meterEventName": "calls"}


class Used:
    """What was sent, and what of it was acknowledged; a key fixes its event."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, object]] = {}
        self.acknowledged: set[str] = set()

    def new(self, rng: Random) -> dict[str, object]:
        number = len(self.events)
        event: dict[str, object] = {
            "tenantId": "acme",
            "metric": "calls",
            "customerRef": f"cus_{rng.randrange(CUSTOMERS)}",
            "quantity": rng.randrange(1, 50),
            "idempotencyKey": f"key-{number}",
        }
        self.events[f"key-{number}"] = event
        return event

    def totals(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for event in self.events.values():
            customer = str(event["customerRef"])
            found[customer] = found.get(customer, 0) + int(str(event["quantity"]))
        return found


def live(
    directory: Path, simulator: SimProcess, used: Used, rng: Random, environment: dict[str, str]
) -> None:
    """One life: some events, then death at a moment around a push."""
    with running(directory, environment=environment) as server:
        server.wait_for("stripe_process")
        before = len(simulator.sent())
        with server.client() as client:
            for _ in range(rng.randrange(1, 4)):
                batch = [used.new(rng) for _ in range(rng.randrange(1, 4))]
                try:
                    answer = client.ingest(batch)
                except (CutOff, OSError):
                    break
                if answer.status == 200:
                    used.acknowledged |= {str(event["idempotencyKey"]) for event in batch}
        until = time.monotonic() + rng.uniform(0.0, 0.4)
        waits_for_a_push = rng.random() < 0.7
        while time.monotonic() < until:
            if waits_for_a_push and len(simulator.sent()) > before:
                time.sleep(rng.uniform(0, 0.02))
                break
            time.sleep(0.002)
        server.kill()


def settle(directory: Path, simulator: SimProcess, used: Used, environment: dict[str, str]) -> None:
    """Send what was not acknowledged again, flush, and hold Stripe's totals against what was used."""
    with running(directory, environment=environment) as server, server.client(90) as client:
        rest = [event for key, event in used.events.items() if key not in used.acknowledged]
        for start in range(0, len(rest), 500):
            assert client.ingest(rest[start : start + 500]).status == 200
        used.acknowledged |= set(used.events)
        until = time.monotonic() + SETTLE_SECONDS_MAX
        while True:
            body = json.dumps({"tenantId": "acme", "timeoutSeconds": 10}).encode()
            said = client.request("POST", "/v1/pushes/flush", body).json()
            # What needs a person, or was refused, no waiting brings; nothing here is ever refused.
            is_hopeless = any(word in json.dumps(said) for word in ("quarantine", '"refused"'))
            if said["complete"] or time.monotonic() > until or is_hopeless:
                break
        assert said["complete"], said
        assert server.stop() == 0
    assert simulator.totals() == used.totals()
    amounts: dict[str, tuple[str, str]] = {}
    for sent in simulator.sent():
        same = (sent["payload[value]"], sent["timestamp"])
        assert amounts.setdefault(sent["identifier"], same) == same, (
            "an identifier with two amounts"
        )


def trouble(simulator: SimProcess) -> None:
    """Stripe is slow at times, and now and then an answer is lost."""
    slow = {"kind": "slow", "endpoint": "POST /v1/billing/meter_events", "seconds": 0.02}
    simulator.call("/_sim/faults", slow | {"probability": 0.5})
    lost = {"kind": "reset", "endpoint": "POST /v1/billing/meter_events", "probability": 0.1}
    simulator.call("/_sim/faults", lost)


def kill_around_pushes(tmp_path: Path, rounds: int, seed: int, **more: str) -> int:
    """So many lives; the number of pushes that reached Stripe more than once."""
    rng, used = Random(seed), Used()
    directory = tmp_path / "data"
    with sim_process(tmp_path / "stripe") as simulator:
        environment = {
            **simulator.settings(),
            "STRIPEMETER_PUSH_INTERVAL_SECONDS": "0.05",
            **more,
        }
        with running(directory, environment=environment) as server, server.client() as client:
            made = client.request("POST", "/v1/mappings", json.dumps(MAPPING).encode())
            assert made.status == 201, made.body
            server.kill()
        trouble(simulator)
        for number in range(1, rounds + 1):
            live(directory, simulator, used, rng, environment)
            if number % 25 == 0:
                settle(directory, simulator, used, environment)
        settle(directory, simulator, used, environment)
        sent = [one["identifier"] for one in simulator.sent()]
    assert len(set(sent)) > rounds // 2, "hardly anything was pushed"
    return len(sent) - len(set(sent))


def test_kill_9_around_every_push_bills_what_was_used_once(
    tmp_path: Path, seed: int, kill_rounds: int
) -> None:
    again = kill_around_pushes(tmp_path, max(12, kill_rounds // 4), seed)
    assert again > 0, "no kill fell between a request and its outcome"


def test_killing_and_stopping_the_process_that_sends_bills_what_was_used_once(
    tmp_path: Path, seed: int, kill_rounds: int
) -> None:
    rng, used = Random(seed), Used()
    directory = tmp_path / "data"
    with sim_process(tmp_path / "stripe") as simulator:
        environment = {**simulator.settings(), "STRIPEMETER_PUSH_INTERVAL_SECONDS": "0.05"}
        with running(directory, environment=environment) as server, server.client() as client:
            made = client.request("POST", "/v1/mappings", json.dumps(MAPPING).encode())
            assert made.status == 201, made.body
            trouble(simulator)
            kills = 0
            for _ in range(max(6, kill_rounds // 8)):
                before = len(simulator.sent())
                assert client.ingest([used.new(rng) for _ in range(CUSTOMERS)]).status == 200
                until = time.monotonic() + 5
                while len(simulator.sent()) == before and time.monotonic() < until:
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.05))
                sender = server.events("stripe_process")[-1]["pid"]
                try:
                    if rng.random() < 0.3:
                        os.kill(sender, signal.SIGSTOP)
                        time.sleep(rng.uniform(0, 1))
                        os.kill(sender, signal.SIGCONT)
                    else:
                        os.kill(sender, signal.SIGKILL)
                        kills += 1
                except ProcessLookupError:
                    continue
            used.acknowledged |= set(used.events)
            assert server.stop() == 0
            assert kills
            assert len(server.events("stripe_process_ended")) >= kills // 2
        settle(directory, simulator, used, environment)


def test_a_killed_server_leaves_no_process_behind(tmp_path: Path) -> None:
    with sim_process(tmp_path / "stripe") as simulator:
        environment = simulator.settings()
        with running(tmp_path / "data", environment=environment) as server:
            sender = server.wait_for("stripe_process")["pid"]
            os.kill(sender, signal.SIGSTOP)  # it can't see its socket end: the kernel ends it
            server.kill()
        until = time.monotonic() + 5
        while Path(f"/proc/{sender}/cmdline").is_file() and time.monotonic() < until:
            if not Path(f"/proc/{sender}/cmdline").read_bytes():
                break  # gone, and not waited for by init yet
            time.sleep(0.01)
        assert time.monotonic() < until, "it outlived its server"


@pytest.mark.parametrize(
    "plant",
    [
        {"SENDER_PLANT": "new-identifier"},
        {"PLANT": "early-outcome"},
        {"PLANT": "early-hand-over"},
    ],
    ids=lambda plant: next(iter(plant.values())),
)
def test_canary_a_planted_fault_is_found_by_killing_around_pushes(
    tmp_path: Path, seed: int, plant: dict[str, str]
) -> None:
    with pytest.raises(AssertionError, match=r"==|two amounts|complete"):
        kill_around_pushes(tmp_path, 12, seed, **plant)
