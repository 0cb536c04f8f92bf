"""The client's own books: what was sent, what was acknowledged, and whether the meter agrees.

Rules it keeps: it is outside the server and outlives every kill; it believes only whole answers; the meter's log is
counted by `tests.helpers.recount`, which shares nothing with the engine's fold. It must not know how a server ended.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tests.helpers.http_client import Answer, Client, CutOff
from tests.helpers.recount import EPOCH, Recount, recount
from wal.check import check_log
from wal.lmdb_log import LmdbLog

TENANTS = ("acme", "umbra")
CUSTOMERS = ("one", "two", "three")
METRICS = ("calls", "bytes")
BATCH_MAX = 50
Identity = tuple[str, str, str]


class Event(NamedTuple):
    """An event as a client keeps it for retries."""

    tenant: str
    customer: str
    key: str
    metric: str
    micros: int

    @property
    def identity(self) -> Identity:
        return (self.tenant, self.customer, self.key)

    def wire(self) -> dict[str, Any]:
        return {
            "tenantId": self.tenant,
            "customerRef": self.customer,
            "idempotencyKey": self.key,
            "metric": self.metric,
            "quantity": str(Decimal(self.micros).scaleb(-6)),
        }


class Ledger:
    """What clients sent and what was acknowledged. Safe for many threads."""

    def __init__(self) -> None:
        self.sent: dict[Identity, Event] = {}
        self.acknowledged: dict[Identity, Event] = {}
        self.accepted: set[Identity] = set()
        """Answered `accepted`: that may happen once, ever."""
        self.unanswered: list[list[Event]] = []
        """Batches without a 200, to be sent again, in this life of the server or a later one."""
        self.wrong: list[str] = []
        """What no answer may ever say, seen in an answer."""
        self.statuses: dict[int, int] = {}
        self._lock = threading.Lock()
        self._numbers = 0

    def fresh(self, rng: Random, count: int) -> list[Event]:
        """New events, with keys never used before."""
        with self._lock:
            first, self._numbers = self._numbers, self._numbers + count
        return [
            Event(
                rng.choice(TENANTS),
                rng.choice(CUSTOMERS),
                f"key-{number}",
                rng.choice(METRICS),
                rng.choice((1, 999_999, 1_000_000, rng.randrange(10**9))),
            )
            for number in range(first, first + count)
        ]

    def some_acknowledged(self, rng: Random, count: int) -> list[Event]:
        """Up to so many events that were acknowledged before."""
        with self._lock:
            if not self.acknowledged:
                return []
            newest = list(self.acknowledged.values())
        return [rng.choice(newest) for _ in range(count)]

    def some_unanswered(self, rng: Random) -> list[Event] | None:
        """A batch to send again, taken out of `unanswered`."""
        with self._lock:
            if not self.unanswered:
                return None
            return self.unanswered.pop(rng.randrange(len(self.unanswered)))

    def without_answer(self, batch: list[Event]) -> None:
        """Nothing may be assumed of the batch: send it again."""
        with self._lock:
            self.unanswered.append(batch)

    def sending(self, batch: Sequence[Event]) -> None:
        """Before a batch leaves: from now on the meter may hold it."""
        with self._lock:
            self.sent.update({event.identity: event for event in batch})

    def answered(self, batch: Sequence[Event], known: set[Identity], answer: Answer) -> bool:
        """Enter an answer; `known` were acknowledged before the batch left. True when it was a 200."""
        with self._lock:
            self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
            if answer.status in (503, 507):
                if not 1 <= int(answer.headers.get("retry-after", "0")) <= 60:
                    self.wrong.append(f"a {answer.status} without a sane Retry-After")
                return False
            if answer.status != 200:
                self.wrong.append(f"{answer.status}: {answer.body[:300]!r}")
                return False
            for event, result in zip(batch, answer.json()["results"], strict=True):
                status = result["status"]
                if status not in ("accepted", "duplicate"):
                    self.wrong.append(f"{event}: {result}")
                elif status == "accepted":
                    if event.identity in known or event.identity in self.accepted:
                        self.wrong.append(f"{event} was acknowledged before and is accepted again")
                    self.accepted.add(event.identity)
                self.acknowledged[event.identity] = event
        return True

    def disagreements(self, log: Recount) -> list[str]:
        """Where the log is not what clients were told: lost, doubled, changed, or never sent."""
        found = list(self.wrong)
        for identity, stored in log.keys.items():
            event = self.sent.get(identity)
            if event is None:
                found.append(f"{identity} is in the log and was never sent")
            elif len(stored) != 1:
                found.append(f"{identity} is in the log {len(stored)} times")
            elif stored[0][:2] != (event.metric, event.micros):
                found.append(f"{identity} is in the log as {stored[0]}, sent as {event}")
        found += [
            f"{i} was acknowledged and is lost" for i in self.acknowledged if i not in log.keys
        ]
        return found


def send(client: Client, ledger: Ledger, batch: Sequence[Event]) -> bool:
    """Send one batch and enter the answer. False: it must be sent again. Raises CutOff or OSError."""
    known = {event.identity for event in batch if event.identity in ledger.acknowledged}
    ledger.sending(batch)
    return ledger.answered(batch, known, client.ingest([event.wire() for event in batch]))


def load(
    port: int, ledger: Ledger, rng: Random, stop: threading.Event, batch_max: int = BATCH_MAX
) -> None:
    """Be a client until told to stop: new events, retries of what has no answer, duplicates on purpose."""
    with Client(port) as client:
        while not stop.is_set():
            again = ledger.some_unanswered(rng) if rng.random() < 0.5 else None
            batch = again or new_batch(ledger, rng, batch_max)
            try:
                if not send(client, ledger, batch):
                    ledger.without_answer(batch)
                    stop.wait(0.01)
            except (CutOff, OSError):
                ledger.without_answer(batch)
                stop.wait(0.02)


def new_batch(ledger: Ledger, rng: Random, batch_max: int) -> list[Event]:
    """New events, now and then with duplicates of old ones and of one of its own."""
    batch = ledger.fresh(rng, rng.randint(1, batch_max))
    if rng.random() < 0.3:
        batch += ledger.some_acknowledged(rng, rng.randint(1, 5))
    if rng.random() < 0.1:
        batch.append(batch[0])
    rng.shuffle(batch)
    return batch


def send_the_rest(port: int, ledger: Ledger) -> None:
    """Send what has no answer until it has one: then all that was ever sent is acknowledged."""
    with Client(port) as client:
        while (batch := ledger.some_unanswered(Random(0))) is not None:
            assert send(client, ledger, batch), ledger.statuses
    assert ledger.acknowledged.keys() == ledger.sent.keys()


class Load:
    """Some clients in threads, from `__enter__` to `__exit__`."""

    def __init__(
        self, port: int, ledger: Ledger, seed: int, clients: int = 3, batch_max: int = BATCH_MAX
    ) -> None:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=load, args=(port, ledger, Random(f"{seed} {n}"), self._stop, batch_max)
            )
            for n in range(clients)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client waits for an answer that never comes"


def counted_log(directory: Path) -> tuple[Recount, list[str]]:
    """What the log of a stopped server says, and everything its fsck finds wrong."""
    log = LmdbLog(directory / "log", read_only=True)
    try:
        report = check_log(log, anchor=log.anchor())
        return recount(log), [problem.message for problem in report.problems]
    finally:
        log.close()


Usage = dict[tuple[str, str, str, int], tuple[Fraction, int]]


def usage_of(client: Client) -> Usage:
    """(tenant, metric, customer, period start) to (sum, count), for all that the load may have touched."""
    found: Usage = {}
    for tenant in TENANTS:
        for customer in CUSTOMERS:
            path = f"/v1/usage/current?tenantId={tenant}&customerRef={customer}&numbers=string"
            answer = client.get(path)
            assert answer.status == 200, answer
            for metric in answer.json()["metrics"]:
                start_us = instant_us(metric["period"]["start"])
                key = (tenant, metric["name"], customer, start_us)
                found[key] = (Fraction(metric["sum"]), metric["count"])
    return found


def instant_us(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


def assert_balanced(directory: Path, ledger: Ledger, usage: Usage | None = None) -> Recount:
    """Hold the stopped server's log against the ledger, and what it answered for usage against the log."""
    log, damage = counted_log(directory)
    assert not damage, damage
    disagreements = ledger.disagreements(log)
    assert not disagreements, (len(disagreements), disagreements[:5])
    if usage is not None:
        periods = {key[3] for key in usage}
        expected = {
            key: (total.sum, total.count) for key, total in log.counted.items() if key[3] in periods
        }
        assert usage == expected
    return log
