"""The processes of the demo: a Stripe simulator, a meter that is killed and started again, single commands.

Rules it keeps: all of them listen on 127.0.0.1 only and are gone when the block ends, however it ends; they see no
setting of the caller's, and no proxy. It must not know what is done with them.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

START_SECONDS_MAX: Final = 30.0
STOP_SECONDS_MAX: Final = 15.0
COMMAND_SECONDS_MAX: Final = 60.0
POLL_SECONDS: Final = 0.05
LOG_CHARS_SHOWN: Final = 1_000
WEBHOOK_SECRET: Final = "whsec_of_the_demo"
_ADDRESS: Final = re.compile(r"ready on (http://127\.0\.0\.1:[0-9]+)")
FoundT = TypeVar("FoundT")


class DemoFailed(Exception):
    """The story can't go on as it must; the message says what was found instead."""


def wait_until(
    look: Callable[[], FoundT | None],
    seconds_max: float,
    what: str,
    poll_seconds: float = POLL_SECONDS,
) -> FoundT:
    """What `look` finds, once it finds something. Raises DemoFailed after `seconds_max`."""
    until = time.monotonic() + seconds_max
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > until:
            message = f"{what}: not within {seconds_max:.0f} s"
            raise DemoFailed(message)
        time.sleep(poll_seconds)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now. The webhooks' address has to be known before the meter starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    """What runs in one directory. Use `processes`, which ends it all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data_path = directory / "data"
        self.meter_url = f"http://127.0.0.1:{free_port()}"
        self.stripe_url = ""
        self._meter: subprocess.Popen[bytes] | None = None
        self._stripe: subprocess.Popen[bytes] | None = None

    def start_stripe(self, lag: str) -> None:
        """Start the simulator; its webhooks go to the meter."""
        self._stripe = self._start(
            "stripe.log",
            *("stripe-sim", "--port", "0", "--data-dir", str(self.directory / "stripe")),
            *("--lag", lag, "--webhook-url", f"{self.meter_url}/v1/webhooks/stripe"),
            *("--webhook-secret", WEBHOOK_SECRET),
        )
        log = self.directory / "stripe.log"

        def address() -> str | None:
            found = _ADDRESS.search(log.read_text(errors="replace"))
            return None if found is None else found[1]

        self.stripe_url = self._wait(self._stripe, log, address, "the Stripe simulator starts")

    def start_meter(self, is_ready: Callable[[], bool], settings: dict[str, str]) -> int:
        """Start the meter on its port and directory; milliseconds until it was ready."""
        begun = time.monotonic()
        port = self.meter_url.rpartition(":")[2]
        arguments = ("serve", "--port", port, "--data-dir", str(self.data_path))
        self._meter = self._start("meter.log", *arguments, settings=settings)
        log = self.directory / "meter.log"
        self._wait(self._meter, log, lambda: is_ready() or None, "the meter starts")
        return int((time.monotonic() - begun) * 1000)

    def kill_meter(self) -> int:
        """SIGKILL; the process id that is no more."""
        assert self._meter is not None, "it was started"
        self._meter.kill()
        self._meter.wait(STOP_SECONDS_MAX)
        return self._meter.pid

    def stop_meter(self) -> int:
        """SIGTERM; the exit code."""
        assert self._meter is not None, "it was started"
        self._meter.terminate()
        return self._meter.wait(STOP_SECONDS_MAX)

    def command(self, *arguments: str) -> tuple[int, str]:
        """Run `stripemeter ...` to its end: (exit code, what it printed)."""
        done = subprocess.run(
            [*_STRIPEMETER, *arguments],
            cwd=self.directory,
            env=_environment({}),
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS_MAX,
        )
        return done.returncode, done.stdout + done.stderr

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The meter's log entries of a name, in all its lives."""
        text = (self.directory / "meter.log").read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
        return [entry for line in lines if (entry := json.loads(line)).get("event") == event]

    def close(self) -> None:
        """End what still runs, the meter first."""
        for process in (self._meter, self._stripe):
            if process is None or process.poll() is not None:
                continue
            process.terminate()
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(
        self, log: str, *arguments: str, settings: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.directory / log).open("ab") as output:
            return subprocess.Popen(
                [*_STRIPEMETER, *arguments],
                cwd=self.directory,
                env=_environment(settings or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @staticmethod
    def _wait(
        process: subprocess.Popen[bytes], log: Path, look: Callable[[], FoundT | None], what: str
    ) -> FoundT:
        def look_while_it_lives() -> FoundT | None:
            if process.poll() is not None:
                said = log.read_text(errors="replace")[-LOG_CHARS_SHOWN:]
                message = f"{what}: it ended with {process.returncode}: {said}"
                raise DemoFailed(message)
            return look()

        return wait_until(look_while_it_lives, START_SECONDS_MAX, what)


_STRIPEMETER: Final = (sys.executable, "-m", "gateway.cli.main")


def _environment(settings: dict[str, str]) -> dict[str, str]:
    """The caller's, without settings and keys of theirs, and without a proxy between processes of one machine."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("STRIPE") and not name.lower().endswith("_proxy")
    }
    return kept | {"PYTHONUNBUFFERED": "1", "STRIPEMETER_LOG_FORMAT": "json"} | settings


@contextmanager
def processes(directory: Path) -> Iterator[Processes]:
    """Processes that work in a directory, until the block ends."""
    running = Processes(directory)
    try:
        yield running
    finally:
        running.close()
