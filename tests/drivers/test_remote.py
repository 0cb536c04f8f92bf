"""The process that speaks with Stripe: what is said of a request when it, or the server, is killed, stopped or late.

Each promise is a scenario; canaries run the same scenario on a process with a planted fault, and must find it.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import pytest
import trio

from engine import limits
from engine.core.billing import (
    AlreadyDelivered,
    Delivered,
    Destination,
    Invoiced,
    Outcome,
    PricedItem,
    Proven,
    Reading,
    Refused,
    RejectedEvent,
    RejectionReport,
    Resolved,
    RetryLater,
    Unknown,
    Unread,
    Unresolved,
)
from engine.drivers import remote
from engine.drivers.frames import (
    Call as Asked,
)
from engine.drivers.frames import (
    Way,
    frame,
    packed_arguments,
    packed_result,
    result_of,
)
from engine.drivers.remote import RemoteBilling, StripeProcess
from engine.drivers.wire import machine_us
from tests.drivers.fake_stripe import (
    KEY,
    FakeStripe,
    Reply,
    Silence,
    error_reply,
    fake_stripe,
    json_reply,
    meter_event_reply,
)
from tests.drivers.test_outcomes import outcome_of
from tests.drivers.test_stripe_billing import METER, MTR

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 30.0
PLANTED = (sys.executable, "-P", "-m", "tests.helpers.sender_planted")
pytestmark = pytest.mark.slow


@asynccontextmanager
async def process_for(fake: FakeStripe, plant: str | None = None) -> AsyncIterator[StripeProcess]:
    """A process for a fake Stripe, gone at the end."""
    if plant is not None:
        os.environ["SENDER_PLANT"] = plant
    ways = {"main": Way(KEY, fake.url, fake.url)}
    made = StripeProcess(ways, None if plant is None else PLANTED)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            with trio.fail_after(SECONDS_MAX):
                yield made
            nursery.cancel_scope.cancel()
    finally:
        os.environ.pop("SENDER_PLANT", None)


def pid_of(made: StripeProcess) -> int:
    assert made.process is not None
    return made.process.pid


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await trio.sleep(0.005)


async def answered(billing: RemoteBilling) -> Outcome:
    return (await billing.send([METER], [0]))[0]


async def assert_found(scenario: Awaitable[None], words: str) -> None:
    """A scenario fails by its own assertion, and not otherwise."""
    try:
        await scenario
    except BaseException as error:
        found = error
        while isinstance(found, BaseExceptionGroup):
            [found] = found.exceptions
        assert isinstance(found, AssertionError), repr(found)
        assert words in str(found)
        return
    raise RuntimeError("the planted fault was not found")


# What is said goes through whole.

RESULTS: list[object] = [
    Proven("acct_1", "live"),
    Unread("no", 5, True),
    Delivered("req_1"),
    Delivered(),
    AlreadyDelivered("there", "req_1"),
    RetryLater("later", 7, True),
    Refused("no", "code", "target", "req_1"),
    Unknown("perhaps", True),
    Resolved("mtr_1", None, event_name="e", period_end_s=8, api_version="v"),
    Unresolved("gone", is_stopped=True, after_us=3, is_unfit=True),
    Reading("12.5"),
    Invoiced("3", None, "in_1"),
    RejectionReport(None, 2, (RejectedEvent("i", "why"),)),
    PricedItem("price_1", "eur", "cus_1"),
    None,
    {
        "unit_amount_decimal": Decimal("0.123456789012345678901"),
        "whole": Decimal(5),
        "large": 10**30,
        "tiers": [{"up_to": None, "flat_amount": 3}, {"up_to": 10, "live": False}],
    },
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda one: type(one).__name__)
def test_every_answer_of_the_port_comes_out_of_a_frame_as_it_went_in(result: object) -> None:
    again = result_of(packed_result(result))
    assert again == result
    assert type(again) is type(result)
    if isinstance(result, dict):
        assert isinstance(again, dict)
        for name in ("unit_amount_decimal", "whole"):
            assert isinstance(again[name], Decimal)


async def test_a_request_leaves_the_process_as_it_would_leave_this_one() -> None:
    async with fake_stripe(meter_event_reply) as fake, process_for(fake) as made:
        assert await answered(made.billing("main")) == Delivered("req_1")
        refused = error_reply(400, "no such thing", code="resource_missing")
        fake.answering = lambda _: refused
        assert await answered(made.billing("main")) == await outcome_of(refused)
        [first, second] = fake.calls
        assert first.form == second.form
        assert first.form["identifier"] == METER.identifier
        assert first.headers["authorization"] == f"Bearer {KEY}"
        assert first.headers["idempotency-key"] == f"{METER.identifier}:0"
        fake.answering = lambda _: Reply(500)
        assert isinstance(await made.billing("main").cancel(METER), Unknown)
        assert isinstance(await made.billing("main").prove(), Unread)
        assert isinstance(await made.billing("main").read(MTR, "cus_1", 0, 60, None), Unread)
        found = await made.billing("main").resolve(Destination("meter", event_name="x"))
        assert isinstance(found, Unresolved)
        assert found.is_temporary
        fake.answering = lambda _: json_reply({"object": "price", "id": "price_1"}, 404)
        assert isinstance(await made.billing("main").price("price_1", None, None), Unread)
        assert isinstance(await made.billing("main").priced_item("si_1", None), Unread)
        assert isinstance(await made.billing("main").rejections("evt_1", None), Unread)
        assert isinstance(await made.billing("main").invoiced(MTR, "cus_1", 60, None), Unread)


# It is killed.


async def run_killed_under_way(plant: str | None = None) -> None:
    async with fake_stripe(lambda _: Silence()) as fake, process_for(fake, plant) as made:
        billing = made.billing("main")
        found: list[Outcome] = []
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                found.extend(await billing.send([METER], [0]))

            for _ in range(3):
                nursery.start_soon(send)
            await until(lambda: len(fake.calls) == 3)
            first = pid_of(made)
            os.kill(first, signal.SIGKILL)
        assert [type(one) for one in found] == [Unknown] * 3, "nobody knows what became of it"
        assert made.lost == 3
        fake.answering = meter_event_reply
        assert await answered(billing) == Delivered("req_1"), "another one takes its place"
        assert pid_of(made) != first
        assert len(fake.calls) == 4, "what was lost is not sent again by itself"


async def test_what_a_killed_process_was_given_is_unknown_and_another_takes_its_place() -> None:
    await run_killed_under_way()


async def test_a_process_for_which_there_is_no_descriptor_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair, tries = socket.socketpair, []

    def none_left() -> tuple[socket.socket, socket.socket]:
        tries.append(None)
        if len(tries) == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return pair()

    async with fake_stripe(lambda _: Silence()) as fake, process_for(fake) as made:
        await until(lambda: made.starts == 1)
        monkeypatch.setattr(remote.socket, "socketpair", none_left)
        os.kill(pid_of(made), signal.SIGKILL)
        await until(lambda: made.starts == 2)
        assert len(tries) == 2


async def run_killed_with_nobody_waiting() -> None:
    """As above, for who has no task to wait with."""
    async with fake_stripe(lambda _: Silence()) as fake, process_for(fake) as made:
        billing = made.billing("main")
        found: list[Outcome] = []
        assert not billing.begin_send(METER, 0, found.append), "there is no process yet"
        await until(lambda: made.starts == 1)
        for _ in range(3):
            assert billing.begin_send(METER, 0, found.append)
        await until(lambda: len(fake.calls) == 3)
        os.kill(pid_of(made), signal.SIGKILL)
        await until(lambda: len(found) == 3)
        assert [type(one) for one in found] == [Unknown] * 3, "nobody knows what became of it"
        assert made.lost == 3
        assert not billing.begin_send(METER, 0, found.append), "nothing is handed to a dead one"
        fake.answering = meter_event_reply
        await until(lambda: made.starts == 2)
        assert billing.begin_send(METER, 0, found.append)
        await until(lambda: len(found) == 4)
        assert found[-1] == Delivered("req_1")
        assert len(fake.calls) == 4, "what was lost is not sent again by itself"


async def test_who_has_no_task_to_wait_with_is_told_the_same() -> None:
    await run_killed_with_nobody_waiting()


@pytest.mark.parametrize("run", [run_killed_under_way, run_killed_with_nobody_waiting])
async def test_canary_a_dead_process_reported_as_never_left_is_found(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], Awaitable[None]]
) -> None:
    monkeypatch.setattr(remote, "_unsent", lambda reason, _may: RetryLater(reason))
    await assert_found(run(), "nobody knows")


async def run_asked_once(plant: str | None = None) -> None:
    async with fake_stripe(lambda _: Silence(ends=True)) as fake, process_for(fake, plant) as made:
        assert isinstance(await answered(made.billing("main")), Unknown)
        assert len(fake.calls) == 1, "a request is sent once"


async def test_the_process_never_asks_twice() -> None:
    await run_asked_once()


async def test_canary_a_process_that_retries_is_found() -> None:
    await assert_found(run_asked_once("retries"), "sent once")


# The server goes.


async def run_server_goes(plant: str | None = None, ends_within: float = 10) -> None:
    """Its end of the socket closes; here nobody is killed by anybody's parent dying."""
    async with fake_stripe(lambda _: Silence()) as fake:
        ours, its = socket.socketpair()
        command = PLANTED if plant else (sys.executable, "-P", "-m", remote.MODULE)
        environment = {"PYTHONPATH": str(ROOT), "SENDER_PLANT": plant or ""}
        process = subprocess.Popen(
            [*command, str(its.fileno())], pass_fds=[its.fileno()], env=environment
        )
        its.close()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        try:
            await stream.send_all(frame({"main": Way(KEY, fake.url, fake.url)}))
            packed = packed_arguments(([METER], [0]))
            by_us = machine_us() + 60_000_000
            calls = [Asked(number, "main", "send", by_us, packed) for number in range(1, 101)]
            await stream.send_all(b"".join(map(frame, calls)))
            with trio.fail_after(SECONDS_MAX):
                await until(lambda: len(fake.calls) == limits.STRIPE_CONNECTIONS_MAX)
            await stream.aclose()
            ends = time.monotonic() + ends_within
            while process.poll() is None and time.monotonic() < ends:
                await trio.sleep(0.01)
            assert process.poll() == 0, "it ends when nobody would learn an answer"
            assert len(fake.calls) == limits.STRIPE_CONNECTIONS_MAX
        finally:
            process.kill()
            process.wait()


async def test_the_process_ends_at_once_when_the_server_is_gone() -> None:
    await run_server_goes()


async def test_canary_a_process_that_outlives_the_server_is_found() -> None:
    await assert_found(run_server_goes("survivor", ends_within=3), "nobody would learn")


async def test_signals_of_a_stop_leave_it_to_finish_what_is_under_way() -> None:
    async with fake_stripe(meter_event_reply) as fake, process_for(fake) as made:
        await answered(made.billing("main"))
        os.kill(pid_of(made), signal.SIGTERM)
        os.kill(pid_of(made), signal.SIGINT)
        await trio.sleep(0.1)
        assert await answered(made.billing("main")) == Delivered("req_1")
        assert made.starts == 1


# It is stopped, and goes on.


async def run_stopped_too_long(monkeypatch: pytest.MonkeyPatch, plant: str | None = None) -> None:
    async with fake_stripe(meter_event_reply) as fake, process_for(fake, plant) as made:
        billing = made.billing("main")
        await answered(billing)
        monkeypatch.setattr(limits, "STRIPE_BEGIN_SECONDS", 1)
        pid = pid_of(made)
        os.kill(pid, signal.SIGSTOP)
        found: list[Outcome] = []
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                found.append(await answered(billing))

            for _ in range(5):
                nursery.start_soon(send)
            await trio.sleep(1.5)
            os.kill(pid, signal.SIGCONT)
        assert len(fake.calls) == 1, "what is over is not begun"
        assert [type(one) for one in found] == [RetryLater] * 5
        monkeypatch.undo()
        assert await answered(billing) == Delivered("req_1")


async def test_a_process_that_was_stopped_sends_nothing_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await run_stopped_too_long(monkeypatch)


async def test_canary_a_process_that_sends_late_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    await assert_found(run_stopped_too_long(monkeypatch, "stale"), "not begun")


async def test_a_process_that_was_stopped_for_a_moment_goes_on() -> None:
    async with fake_stripe(meter_event_reply) as fake, process_for(fake) as made:
        await answered(made.billing("main"))
        os.kill(pid_of(made), signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answered, made.billing("main"))
            await trio.sleep(0.5)
            os.kill(pid_of(made), signal.SIGCONT)
        assert len(fake.calls) == 2
        assert made.starts == 1


async def test_a_process_without_a_sign_of_life_is_replaced_and_its_calls_are_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "LIFE_SECONDS", 0.1)
    async with fake_stripe(meter_event_reply) as fake, process_for(fake) as made:
        await answered(made.billing("main"))
        await trio.sleep(1)
        assert made.starts == 1, "one that lives is left alone"
        os.kill(pid_of(made), signal.SIGSTOP)
        assert isinstance(await answered(made.billing("main")), Unknown)
        assert await answered(made.billing("main")) == Delivered("req_1")
        assert made.starts == 2


# It can't be there.


async def test_where_no_process_can_be_started_calls_are_made_here(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with fake_stripe(meter_event_reply) as fake:
        for command in (["/nonexistent/python"], [sys.executable, "-c", "raise SystemExit(3)"]):
            made = StripeProcess({"main": Way(KEY, fake.url, fake.url)}, command)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.run)
                with trio.fail_after(SECONDS_MAX):
                    assert await answered(made.billing("main")) == Delivered("req_1")
                assert made.is_here
                nursery.cancel_scope.cancel()
    said = caplog.text + capfd.readouterr().out
    assert said.count("stripe_process_off") == 2
    assert KEY not in said


async def test_a_defect_ends_the_process_and_is_told_without_a_value(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with fake_stripe(meter_event_reply) as fake, process_for(fake) as made:
        await answered(made.billing("main"))
        # Times that Stripe would refuse are a defect of who asks.
        assert isinstance(await made.billing("main").read(MTR, "cus_1", 1, 61, None), Unread)
        assert await answered(made.billing("main")) == Delivered("req_1")
    said = caplog.text + "".join(capfd.readouterr())
    assert "AssertionError at sender.py:" in said
    assert "billing.py:" in said
    assert "Traceback" not in said


async def test_more_calls_than_there_may_be_at_once_are_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "STRIPE_CALLS_MAX", 2)
    async with (
        fake_stripe(lambda _: Silence()) as fake,
        process_for(fake) as made,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(answered, made.billing("main"))
        nursery.start_soon(answered, made.billing("main"))
        await until(lambda: len(fake.calls) == 2)
        assert isinstance(await answered(made.billing("main")), RetryLater)
        assert not made.billing("main").begin_send(METER, 0, lambda _: pytest.fail("not begun"))
        nursery.cancel_scope.cancel()


# What others can see of it, and what it does to ingest.


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_key_is_nowhere_that_others_can_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_SECRET_KEY", KEY)
    monkeypatch.setenv("STRIPEMETER_ADMIN_KEY", "an-administrators-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-anchors")
    async with fake_stripe(meter_event_reply) as fake, process_for(fake) as made:
        await answered(made.billing("main"))
        proc = Path(f"/proc/{pid_of(made)}")
        for name in ("cmdline", "environ"):
            text = (proc / name).read_bytes().decode()
            assert text
            for secret in (KEY, KEY[8:20], "an-administrators-key", "of-the-anchors"):
                assert secret not in text, name
        assert KEY not in repr(Way(KEY, "a", "b"))
        listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        inodes = {line.split()[9] for line in listening.splitlines() if line.split()[3] == "0A"}
        sockets = {str(each.readlink()) for each in (proc / "fd").iterdir()}
        assert not {f"socket:[{inode}]" for inode in inodes} & sockets, "it listens on nothing"


def test_the_process_loads_nothing_that_it_does_not_need() -> None:
    code = "import sys, engine.drivers.sender; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    tops = {name.partition(".")[0] for name in done.stdout.split()}
    assert not tops & {"numpy", "lmdb", "quart", "hypercorn", "wal", "gateway", "cryptography"}
    assert "engine.actors" not in done.stdout
