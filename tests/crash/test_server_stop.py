"""How a real server starts and stops: in order, in time, with one line when it can't.

A client sees a whole answer or a closed connection, never half an answer; nothing acknowledged is lost by stopping.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from random import Random

import pytest

from tests.crash.test_kill import PHASES, SMALL
from tests.helpers.http_client import CutOff
from tests.helpers.ledger import Ledger, Load, assert_balanced, new_batch, send
from tests.helpers.server import STOCK, Server, in_time, running

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]

EXIT_STOPPED, EXIT_REFUSED, EXIT_SETTINGS = 0, 1, 2
GRACE_SECONDS = 1.0
ASKS_MAX = 400_000
"""More than all buffers on the way hold."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_lets_every_request_be_answered_whole_and_exits_0(
    tmp_path: Path, seed: int, number: signal.Signals
) -> None:
    directory, ledger, halves = tmp_path / "data", Ledger(), []
    stop = threading.Event()

    def client_until_refused(rng: Random) -> None:
        with server.client() as client:
            while not stop.is_set():
                batch = new_batch(ledger, rng, 50)
                try:
                    if not send(client, ledger, batch):
                        ledger.without_answer(batch)
                        stop.wait(0.01)
                except CutOff as cut:
                    ledger.without_answer(batch)
                    if cut.received:
                        halves.append(cut.received)
                    stop.wait(0.01)
                except OSError:
                    ledger.without_answer(batch)
                    return

    with running(directory, environment=SMALL) as server:
        threads = [
            threading.Thread(target=client_until_refused, args=(Random(f"{seed} {n}"),))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        began = time.monotonic()
        server.process.send_signal(number)
        code = server.wait()
        seconds = time.monotonic() - began
        stop.set()
        for thread in threads:
            thread.join(30)
        assert code == EXIT_STOPPED, server.stderr[-2000:]
        assert in_time(seconds, 5), "nobody held it up"
        assert not server.complaints
    assert not halves, halves[0][:200]
    assert ledger.statuses[200] > 5
    assert_balanced(directory, ledger)


def stuck_readers(server: Server, count: int) -> list[socket.socket]:
    """Clients that ask for much and never read."""
    ask = b"GET /v1/events?tenantId=acme&limit=100 HTTP/1.1\r\nHost: x\r\n\r\n"
    sockets = []
    for _ in range(count):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect(("127.0.0.1", server.port))
        one.settimeout(0.5)
        sockets.append(one)
        try:
            for _ in range(ASKS_MAX):
                one.sendall(ask)
        except OSError:
            continue  # both directions are full: exactly what is wanted
    return sockets


def fill_with_events(server: Server, ledger: Ledger, rng: Random) -> None:
    with server.client() as client:
        for _ in range(10):
            assert send(client, ledger, ledger.fresh(rng, 50))


def exit_seconds_with_stuck_readers(directory: Path, seed: int, plant: dict[str, str]) -> float:
    ledger = Ledger()
    environment = {**SMALL, "STRIPEMETER_SHUTDOWN_GRACE_SECONDS": str(GRACE_SECONDS), **plant}
    with running(directory, environment=environment) as server:
        fill_with_events(server, ledger, Random(seed))
        sockets = stuck_readers(server, 3)
        began = time.monotonic()
        server.terminate()
        try:
            assert server.wait(GRACE_SECONDS + 2 if plant else 30) == EXIT_STOPPED
        finally:
            for one in sockets:
                one.close()
        seconds = time.monotonic() - began
    assert_balanced(directory, ledger)
    return seconds


def test_a_client_that_never_reads_can_not_hold_up_the_exit_beyond_the_grace(
    tmp_path: Path, seed: int
) -> None:
    seconds = exit_seconds_with_stuck_readers(tmp_path / "data", seed, {})
    assert in_time(seconds, GRACE_SECONDS + 1)


def test_canary_without_the_hard_exit_a_stuck_reader_holds_the_server(
    tmp_path: Path, seed: int
) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        exit_seconds_with_stuck_readers(tmp_path / "data", seed, {"PLANT": "no-hard-exit"})


def test_a_second_signal_exits_at_once(tmp_path: Path, seed: int) -> None:
    directory, ledger = tmp_path / "data", Ledger()
    environment = {**SMALL, "STRIPEMETER_SHUTDOWN_GRACE_SECONDS": "30"}
    with running(directory, environment=environment) as server:
        fill_with_events(server, ledger, Random(seed))
        sockets = stuck_readers(server, 2)
        server.terminate()
        time.sleep(0.3)
        began = time.monotonic()
        server.terminate()
        assert server.wait(25) == EXIT_STOPPED
        assert in_time(time.monotonic() - began, 2)
        for one in sockets:
            one.close()
    assert_balanced(directory, ledger)


def test_a_signal_during_recovery_exits_promptly_and_loses_nothing(
    tmp_path: Path, seed: int
) -> None:
    directory, ledger = tmp_path / "data", Ledger()
    slow = {**SMALL, **PHASES["recovery"], "SMALL_PAGE_BYTES": "300", "SLOW_MS": "20"}
    with (
        running(directory, environment={**SMALL, **PHASES["recovery"]}) as server,
        Load(server.port, ledger, seed),
    ):
        time.sleep(0.5)
        server.kill()
    environment = {**slow, "SLOW_PHASE": "recovery"}
    with running(directory, environment=environment, ready=False) as server:
        server.wait_listening()
        with server.client() as client:
            assert client.get("/health/live").status == 200
            assert client.get("/health/ready").status == 503
            assert not send(client, ledger, ledger.fresh(Random(seed), 1))
        began = time.monotonic()
        assert server.stop() == EXIT_STOPPED
        assert in_time(time.monotonic() - began, 2)
        assert not server.events("recovered"), "it was to be stopped while recovering"
    assert_balanced(directory, ledger)


def test_a_second_server_on_the_directory_is_refused_with_one_line_that_names_the_first(
    tmp_path: Path,
) -> None:
    with running(tmp_path / "data", module=STOCK) as first:
        second = Server(tmp_path / "data", module=STOCK)
        code = second.wait()
        assert code == EXIT_REFUSED
        (line,) = second.complaints
        assert f"in use by process {first.process.pid}" in line
        with first.client() as client:
            assert client.get("/health/ready").status == 200


def test_a_wrong_setting_stops_the_start_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    wrong = {"STRIPEMETER_SHARDS": "0", "STRIPEMETER_MAX_BATCH": "many"}
    for name, text in wrong.items():
        server = Server(tmp_path / "data", module=STOCK, environment={name: text})
        assert server.wait() == EXIT_SETTINGS
        (line,) = server.complaints
        assert name in line
        assert "allowed" in line
    assert not (tmp_path / "data").exists()


def test_a_taken_port_stops_the_start_with_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        server = Server(tmp_path / "data", module=STOCK, port=port)
        assert server.wait() == EXIT_REFUSED
    (line,) = server.complaints
    assert f"127.0.0.1:{port}" in line
    assert "STRIPEMETER_PORT" in line
