"""The simulator's directory: what was answered is there after a kill, and replaying gives the same state."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from gateway.simulator import app as app_module
from gateway.simulator import journal as journal_module
from gateway.simulator.app import SimulatorApp
from gateway.simulator.journal import Journal, SimulatorRefused, line_of, open_journal
from gateway.simulator.ledger import Settings
from gateway.simulator.state import StripeState, read_snapshot
from gateway.simulator.wire import Request
from tests.helpers.stripe_sim import LEGACY, START_S, Sim

KEY = {"authorization": "Bearer sk_test_secret"}


def settled(sim: Sim) -> Any:
    """The state after everything due by now has happened, without what only looking moves."""
    sim.state.due_webhooks(sim.time_us)
    sim.state.summary()
    world = msgspec.json.decode(sim.state.snapshot())
    del world["last_us"]
    return world


def wander(sim: Sim, rng: random.Random, steps: int) -> None:
    """A random walk over everything that changes the state, also by being looked at."""
    sim.send(Request("GET", "/_sim/state"))
    sim.wait(1)
    customers = [sim.customer() for _ in range(3)] + ["cus_nobody"]
    meters = [sim.meter(f"m{number}", how) for number, how in enumerate(("sum", "count", "last"))]
    legacy = sim.made(
        "/v1/prices",
        {
            "currency": "usd",
            "unit_amount": "1",
            "product_data[name]": "x",
            "recurring[interval]": "day",
            "recurring[usage_type]": "metered",
        },
        version=LEGACY,
    )
    fields = {"customer": customers[0], "items[0][price]": legacy["id"]}
    item = sim.made("/v1/subscriptions", fields)["items"]["data"][0]["id"]
    kinds = ["error", "reset", "swallow", "lag", "drop", "reject", "rate_limited", "slow"]
    for number in range(steps):
        sim.wait(rng.choice([0, 0.25, 1, 7, 600, 4000, 90_000]))
        what = rng.randrange(12)
        if what < 6:
            sim.event(
                rng.choice(customers),
                rng.randrange(-5, 99),
                f"e{rng.randrange(steps)}",
                f"m{rng.randrange(4)}",
                key=rng.choice(["", f"k{number}", f"k{rng.randrange(steps)}"]),
                account=rng.choice(["", "", "acct_b"]),
            )
        elif what == 6:
            session = sim.post("/v2/billing/meter_event_session").body
            token = msgspec.json.decode(session or b"{}").get("authentication_token", "")
            payload = {"value": "1", "stripe_customer_id": rng.choice(customers)}
            events = [
                {"event_name": "m0", "identifier": f"s{number}-{n}", "payload": payload}
                for n in range(3)
            ]
            sim.post("/v2/billing/meter_event_stream", {"events": events}, token=token)
        elif what == 7:
            more = rng.choice([{"probability": 0.5}, {"count": 2}])
            sim.fault(rng.choice(kinds), for_seconds=rng.choice([1, 5000]), seconds=30, **more)
        elif what == 8:
            cancel = {
                "event_name": "m0",
                "type": "cancel",
                "cancel[identifier]": f"e{rng.randrange(steps)}",
            }
            sim.post("/v1/billing/meter_event_adjustments", cancel)
        elif what == 9:
            sim.get(f"/v1/billing/meters/{rng.choice(meters)['id']}")
            sim.get("/v1/customers/cus_looked_for")
            sim.get("/v1/account", account=f"acct_{number}")
        elif what == 10:
            sim.post(
                f"/v1/subscription_items/{item}/usage_records", {"quantity": 3}, version=LEGACY
            )
        else:
            sim.post("/_sim/clock", {"advance_seconds": rng.choice([0, 60, 90_000])})


def test_replaying_what_changed_something_gives_the_same_state(
    rng: random.Random, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "lag_seconds_max": 500,
        "webhook_url": "http://127.0.0.1/hook",
        "auto_create": rng.random() < 0.5,
        "meters": ("there",),
    }
    kept = Kept(tmp_path, **options)
    wander(kept.sim, rng, 150)
    replayed = kept.reopened(**options)
    replayed.sim.time_us = kept.sim.time_us
    assert settled(replayed.sim) == settled(kept.sim)
    assert len(kept.state.world.ledgers) > 1
    replayed.journal.close()


def test_a_snapshot_goes_on_as_the_original_would(rng: random.Random) -> None:
    sim = Sim(lag_seconds_max=500)
    wander(sim, rng, 60)
    copy = Sim(read_snapshot(sim.state.snapshot()), lag_seconds_max=500)
    copy.time_us = sim.time_us
    for one in (sim, copy):
        one.wait(100)
        one.post(
            "/v1/billing/meters",
            {"event_name": "later", "display_name": "x", "default_aggregation[formula]": "sum"},
        )
        one.wait(86_400)
    assert settled(copy) == settled(sim)


class Kept:
    """A directory's state, journaled as the server does, in process."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.sim = Sim()
        self.directory = directory
        self.state, self.journal = open_journal(
            directory, Settings(**settings), lambda: self.sim.time_us, lambda: "made"
        )
        self.sim.state = self.state

    def write(self) -> None:
        """Put what was asked since the last time into the journal."""
        for at_us, request in self.sim.journal:
            self.journal.append(line_of(request, at_us))
        self.sim.journal.clear()

    def reopened(self, **settings: Any) -> Kept:
        """The directory after this process has let go of it."""
        self.write()
        self.journal.close()
        return Kept(self.directory, **settings)


def test_a_directory_keeps_its_account_and_what_was_changed(tmp_path: Path) -> None:
    first = Kept(tmp_path)
    account = first.state.account
    customer = first.sim.customer()
    second = first.reopened()
    assert second.state.account == account
    assert second.sim.get(f"/v1/customers/{customer}").status == 200
    third = second.reopened(lag_seconds_min=5, lag_seconds_max=5)
    assert third.sim.get(f"/v1/customers/{customer}").status == 200
    third.journal.close()


def test_a_fault_that_a_reading_used_up_does_not_come_back(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.sim.fault("unavailable", count=1)
    assert kept.sim.get("/v1/account").status == 503
    again = kept.reopened()
    assert again.sim.get("/v1/account").status == 200
    again.journal.close()


@pytest.mark.parametrize("path", ["/_sim/state", "/_sim/faults"])
def test_what_only_looking_brought_into_being_keeps_its_time(path: str, tmp_path: Path) -> None:
    kept = Kept(tmp_path, meters=("there",))
    kept.sim.send(Request("GET", path))
    kept.sim.wait(1000)
    kept.sim.customer()
    again = kept.reopened(meters=("there",))
    again.sim.time_us = kept.sim.time_us
    assert settled(again.sim) == settled(kept.sim)
    again.journal.close()


def test_other_settings_at_a_start_change_nothing_that_was(tmp_path: Path) -> None:
    kept = Kept(tmp_path, auto_create=True, meters=("*",))
    kept.sim.event("cus_seen", 5)
    later = kept.reopened()
    (meter,) = later.sim.get("/v1/billing/meters").json()["data"]
    assert later.sim.total(meter, "cus_seen") == 5
    later.sim.event("cus_unseen", 5)
    assert later.sim.get("/v1/customers/cus_unseen").status == 404
    later.journal.close()


def test_a_torn_last_line_is_cut_off_and_a_damaged_one_refuses_the_start(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    customer = kept.sim.customer()
    kept.write()
    (path,) = tmp_path.glob("journal-*.jsonl")
    with path.open("ab") as file:
        file.write(b'[1,"POST","/v1/cust')
    again = kept.reopened()
    assert again.sim.get(f"/v1/customers/{customer}").status == 200
    again.sim.customer()
    again.write()
    (path,) = tmp_path.glob("journal-*.jsonl")
    path.write_bytes(b"x" + path.read_bytes())
    with pytest.raises(SimulatorRefused, match="line 1"):
        again.reopened()


def test_a_torn_line_alone_in_its_journal_harms_no_later_one(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    (path,) = tmp_path.glob("journal-*.jsonl")
    path.write_bytes(b'[1,"POST","/v1/cust')
    again = kept.reopened()
    customer = again.sim.customer()
    last = again.reopened()
    assert last.sim.get(f"/v1/customers/{customer}").status == 200
    last.journal.close()


def test_a_directory_belongs_to_one_process(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    with pytest.raises(SimulatorRefused, match="another process"):
        Kept(tmp_path)
    kept.reopened().journal.close()


@pytest.mark.parametrize("step", ["snapshot", "unlink"])
def test_a_kill_within_a_compaction_loses_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(tmp_path)
    customer = kept.sim.customer()
    kept.write()

    class Killed(Exception):
        pass

    def die(*_arguments: object, **_named: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "snapshot":
            patch.setattr(Journal, "_begin", die)
        else:
            patch.setattr(Path, "unlink", die)
        with pytest.raises(Killed):
            kept.journal.compact(kept.state)
    again = kept.reopened()
    assert again.sim.get(f"/v1/customers/{customer}").status == 200
    again.journal.close()


def test_no_key_is_ever_written(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.sim.customer()
    kept.write()
    again = kept.reopened()
    again.sim.customer()
    again.write()
    assert list(tmp_path.glob("snapshot-*.json"))
    assert next(tmp_path.glob("journal-*.jsonl")).stat().st_size > 0
    again.journal.close()
    for path in tmp_path.iterdir():
        assert b"sk_test_secret" not in path.read_bytes(), path.name
        assert path.stat().st_mode & 0o077 == 0, path.name


def start(directory: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "gateway.cli.main", "stripe-sim", "--port", "0"]
    command += ["--data-dir", str(directory), "--auto-create", "--no-limits"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "ready on http://" in line, line
    return process, line.split(" ready on ")[1].split(" ")[0]


@pytest.mark.slow
def test_whatever_was_answered_is_there_after_kill_9(tmp_path: Path, rng: random.Random) -> None:
    sent = acknowledged = 0
    for number in range(4):
        process, url = start(tmp_path)
        killer = threading.Timer(rng.uniform(0.05, 0.4), os.kill, (process.pid, signal.SIGKILL))
        # From the first answer on: a loaded machine may take long until then.
        with httpx.Client(base_url=url, headers=KEY, trust_env=False) as client:
            try:
                while True:
                    sent += 1
                    payload = {"payload[value]": "1", "payload[stripe_customer_id]": "cus_a"}
                    fields = {"event_name": "calls", "identifier": f"{number}-{sent}", **payload}
                    response = client.post("/v1/billing/meter_events", data=fields)
                    assert response.status_code == 200, response.text
                    acknowledged += 1
                    if killer.ident is None:
                        killer.start()
            except httpx.TransportError:
                pass
        process.wait()
        killer.join()
        assert process.stdout is not None
        process.stdout.close()
    process, url = start(tmp_path)
    try:
        with httpx.Client(base_url=url, headers=KEY, trust_env=False) as client:
            (row,) = client.get("/_sim/state").json()["accounts"][0]["totals"]
        assert acknowledged <= int(row["value"]) <= sent
        assert acknowledged >= 4
    finally:
        began = time.monotonic()
        process.terminate()
        assert process.wait(10) == 0
        assert time.monotonic() - began < 5
        assert process.stdout is not None
        process.stdout.close()


def test_a_long_journal_is_compacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "COMPACT_BYTES_MIN", 100)
    kept = Kept(tmp_path)
    customer = kept.sim.customer()
    for _ in range(40):
        kept.sim.post(f"/v1/customers/{customer}", {"name": "Ada"})
    kept.write()
    assert kept.journal.is_long
    kept.journal.compact(kept.state)
    assert not kept.journal.is_long
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["identity.json", "journal-2.jsonl", "lock", "snapshot-2.json"]
    again = kept.reopened()
    assert isinstance(again.state, StripeState)
    assert again.sim.get(f"/v1/customers/{customer}").json()["name"] == "Ada"
    assert again.state.world.last_us >= START_S * 1_000_000
    again.journal.close()


class FullDisk:
    """In place of `os.write`: the disk takes some bytes more, then no more until there is space."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        self.write = os.write
        monkeypatch.setattr(journal_module.os, "write", self)

    def __call__(self, file: int, data: Any) -> int:
        if self.left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.write(file, data[: self.left])
        self.left -= taken
        return taken


def test_a_disk_that_is_full_for_a_while_leaves_no_half_line_and_loses_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(tmp_path)
    kept.sim.customer()
    kept.write()
    disk = FullDisk(monkeypatch, 20)
    for _ in range(2):
        kept.sim.customer()
        kept.write()
        with pytest.raises(OSError, match="No space left"):
            kept.journal.write()
    (file,) = tmp_path.glob("journal-*.jsonl")
    assert file.read_bytes().endswith(b"\n"), "what a start could not read"
    disk.left = 1 << 20
    kept.sim.customer()
    kept.write()
    kept.journal.write()
    kept.journal.sync()
    assert settled(kept.reopened().sim) == settled(kept.sim)


async def test_answers_wait_for_a_full_disk_and_nothing_ends_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "RETRY_SECONDS", 0.01)
    kept = Kept(tmp_path)
    app = SimulatorApp(kept.state, kept.journal)
    ask = Request("POST", "/v1/customers", "", KEY)
    disk, answers = FullDisk(monkeypatch, 20), []

    async def answered() -> None:
        answers.append((await app.answer(ask)).status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.committing)
        async with trio.open_nursery() as asking:
            for _ in range(3):
                asking.start_soon(answered)
                await trio.sleep(0.03)
            assert not answers
            monkeypatch.setattr(journal_module, "UNWRITTEN_MAX", 3)
            assert (await app.answer(ask)).status == 503, "lines that wait have a bound"
            disk.left = 1 << 20
        assert answers == [200, 200, 200]
        nursery.cancel_scope.cancel()
    again = kept.reopened()
    assert settled(again.sim) == settled(kept.sim)
    again.journal.close()


async def test_a_disk_too_full_to_compact_ends_nothing_and_it_is_done_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "COMPACT_BYTES_MIN", 1000)
    kept = Kept(tmp_path)
    app = SimulatorApp(kept.state, kept.journal)
    ask = Request("POST", "/v1/customers", "", KEY)
    disk = FullDisk(monkeypatch, 1 << 20)
    write_whole, tries = journal_module._write_whole, []

    def with_little_room(path: Path, data: bytes) -> None:
        tries.append(path)
        disk.left = 100 if len(tries) <= 2 else 1 << 20
        try:
            write_whole(path, data)
        finally:
            disk.left = 1 << 20

    monkeypatch.setattr(journal_module, "_write_whole", with_little_room)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.committing)
        for _ in range(100):
            assert (await app.answer(ask)).status == 200
            assert not list(tmp_path.glob("*.new")), "it takes no room that it can't use"
        nursery.cancel_scope.cancel()
    assert 3 <= len(tries) < 10, "not again with every request"
    assert list(tmp_path.glob("snapshot-2.json"))
    again = kept.reopened()
    assert settled(again.sim) == settled(kept.sim)
    again.journal.close()


def failing_at(number: int, call: Callable[..., Any], calls: list[None]) -> Callable[..., Any]:
    """The call, of which one finds the disk full; `calls` grows by each."""

    def fails(*arguments: Any, **named: Any) -> Any:
        calls.append(None)
        if len(calls) - 1 == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*arguments, **named)

    return fails


def test_a_compaction_that_fails_at_any_call_loses_nothing_that_comes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = 0
    for place in ((os, "open"), (os, "write"), (os, "fsync"), (Path, "replace"), (Path, "unlink")):
        for number in range(10):
            kept = Kept(tmp_path / f"{place[1]}-{number}")
            kept.sim.customer()
            kept.write()
            kept.journal.sync()
            calls: list[None] = []
            with monkeypatch.context() as patch:
                patch.setattr(*place, failing_at(number, getattr(*place), calls))
                with suppress(OSError):
                    kept.journal.compact(kept.state)
            kept.sim.customer()
            kept.write()
            kept.journal.write()
            kept.journal.sync()
            again = kept.reopened()
            assert settled(again.sim) == settled(kept.sim), f"{place[1]}, call {number}"
            again.journal.close()
            if len(calls) <= number:
                break
            failed += 1
    assert failed >= 8
