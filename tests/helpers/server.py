"""A real `stripemeter serve` in a process of its own: started, watched, stopped and killed by tests.

Rules it keeps: the server sees only the environment given here, works in a directory of its own, and listens on a port
that the system picked; whatever a test does, its process is gone afterwards. It must not know what is tested.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.http_client import Client, CutOff

ROOT = Path(__file__).parents[2]
START_SECONDS_MAX = 60.0
"""A start takes half a second; a machine that is shared may take its time."""
STOP_SECONDS_MAX = 30.0
_POLL_SECONDS = 0.005
_COMMAND_SECONDS = 0.5
"""What the command takes to start and end where nobody else has much to do."""
STOCK = "gateway.cli.main"
SMALL = "tests.helpers.serve_small"


class Server:
    """One life of a server on a directory. Use `running`, which ends it."""

    def __init__(
        self,
        directory: Path,
        *,
        module: str = SMALL,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        port: int = 0,
    ) -> None:
        """`prefix` is a command that runs the server: strace, say; it must leave the server as our own child."""
        self.directory = directory
        self.port = 0
        number = len(list(directory.parent.glob("stderr-*")))
        self._errors = directory.parent / f"stderr-{number}"
        arguments = ["serve"] if module == STOCK else []
        arguments += ["--port", str(port), "--data-dir", str(directory)]
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", module, *arguments],
                cwd=directory.parent,
                env=server_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    @property
    def stderr(self) -> str:
        """All it has said so far."""
        return self._errors.read_text(errors="replace")

    @property
    def complaints(self) -> list[str]:
        """Its lines that are no log entries: what an operator is told."""
        return [line for line in self.stderr.splitlines() if line and not line.startswith("{")]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its log entries of a name."""
        lines = [line for line in self.stderr.splitlines(keepends=True) if line.startswith("{")]
        entries = [json.loads(line) for line in lines if line.endswith("\n")]
        return [entry for entry in entries if entry.get("event") == name]

    def wait_for(self, event: str, seconds_max: float = START_SECONDS_MAX) -> dict[str, Any]:
        """The first log entry of that name, once it is there."""
        until = time.monotonic() + seconds_max
        while time.monotonic() < until:
            if f'"{event}"' in self.stderr and (found := self.events(event)):
                return found[0]
            if self.process.poll() is not None:
                break
            time.sleep(_POLL_SECONDS)
        message = f"no {event!r} from a server that ended with {self.process.poll()}: {self.stderr[-2000:]}"
        raise AssertionError(message)

    def wait_listening(self) -> int:
        """The port, once it listens."""
        url = self.wait_for("listening")["urls"][0]
        self.port = int(url.rpartition(":")[2])
        return self.port

    def wait_ready(self) -> Server:
        """Wait until /health/ready says 200."""
        self.wait_listening()
        until = time.monotonic() + START_SECONDS_MAX
        with self.client() as client:
            while time.monotonic() < until:
                try:
                    if client.get("/health/ready").status == 200:
                        return self
                except (CutOff, OSError):
                    if self.process.poll() is not None:
                        break
                time.sleep(_POLL_SECONDS)
        message = f"not ready; ended with {self.process.poll()}: {self.stderr[-2000:]}"
        raise AssertionError(message)

    def client(self, seconds_max: float = 20.0) -> Client:
        """A new connection to it."""
        assert self.port, "wait_listening first"
        return Client(self.port, seconds_max)

    def rss_bytes(self) -> int:
        """Its memory in RAM now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds_max: float = STOP_SECONDS_MAX) -> int:
        """Its exit code. Raises TimeoutExpired."""
        return self.process.wait(seconds_max)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.terminate()
        return self.wait()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()


def server_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a server under test sees: nothing of ours but what is said here."""
    kept = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ
    }
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "STRIPEMETER_VERIFY": "1",
        "STRIPEMETER_LOG_FORMAT": "json",
        **(extra or {}),
    }


@contextmanager
def running(
    directory: Path,
    *,
    module: str = SMALL,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    ready: bool = True,
) -> Iterator[Server]:
    """A server that is ready (else only started), killed at the end if the test has not ended it."""
    server = Server(directory, module=module, environment=environment, prefix=prefix)
    try:
        yield server.wait_ready() if ready else server
    finally:
        if server.process.poll() is None:
            server.kill()


def in_time(seconds: float, bound: float) -> bool:
    """Whether it took less than the bound; on a machine that others use, as much more as the command takes longer to start."""
    if seconds < bound:
        return True
    starts = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", STOCK, "--version"], cwd=ROOT, check=True)
        starts.append(time.monotonic() - began)
    return seconds < bound * max(starts) / _COMMAND_SECONDS


def strace(*arguments: str) -> tuple[str, ...]:
    """The prefix that runs a server under strace, as our own child. Skips the test where strace is missing."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    # -D: the tracer is the grandchild, so that signals and exit codes are the server's own.
    return ("strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", *arguments)


def command(arguments: Sequence[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run another sub-command of `stripemeter` to its end."""
    return subprocess.run(
        [sys.executable, "-m", STOCK, *arguments],
        cwd=directory.parent,
        env=server_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=START_SECONDS_MAX,
    )
