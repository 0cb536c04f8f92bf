"""Starts the server under test in a process of its own, on one core and a free loopback port, and stops it.

Rules it keeps: the server is the real command with its default settings; what differs is said by the caller; a server
that does not become ready, or ends by itself, is an error with its last words. It must not know what is measured.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Final

from common import BENCH, ROOT, cpu_seconds, pin_to, server_core

READY_SECONDS_MAX: Final = 900
STOP_SECONDS_MAX: Final = 30
FOLLOWING_SECONDS_MAX: Final = 900
IDLE_CPU_SECONDS_MAX: Final = 0.05
"""Within a second; asking costs nothing of it."""
_OUTPUT_CHARS_SHOWN: Final = 3000


class Server:
    """`with Server(directory) as server:` a running, ready server; `url` is where."""

    def __init__(
        self, directory: Path, *, root: Path = ROOT, entry: str | None = None, **environment: str
    ) -> None:
        """`entry`: a script of bench/ to run in place of the command. `environment`: settings."""
        self.directory = directory
        self.ready_seconds = 0.0
        self._entry = ["-m", "gateway.cli.main"] if entry is None else [str(BENCH / entry)]
        self._root = root
        self._environment = environment
        self._log_path = directory.parent / f"{directory.name}.server.log"

    def __enter__(self) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("STRIPEMETER_")}
        self._log = self._log_path.open("wb")
        flags = ["--host", "127.0.0.1", "--port", str(port), "--data-dir", str(self.directory)]
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, *self._entry, "serve", *flags],
            env={**kept, "PYTHONPATH": str(self._root), **self._environment},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: pin_to({server_core()}),  # noqa: PLW1509
            cwd=self.directory.parent,
        )
        try:
            self._wait_until_ready(began)
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._log.close()
            raise
        return self

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def _wait_until_ready(self, began: float) -> None:
        while time.perf_counter() - began < READY_SECONDS_MAX:
            if self._process.poll() is not None:
                break
            try:
                self.get("/health/ready")
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
            else:
                self.ready_seconds = time.perf_counter() - began
                return
        message = (
            f"the server did not become ready:\n{self._log_path.read_text()[-_OUTPUT_CHARS_SHOWN:]}"
        )
        raise RuntimeError(message)

    def wait_until_idle(self) -> float:
        """Wait for what follows the log after a start (the indexer, merges); the seconds it took.

        Raises RuntimeError when the server is still busy after FOLLOWING_SECONDS_MAX.
        """
        began = time.perf_counter()
        while time.perf_counter() - began < FOLLOWING_SECONDS_MAX:
            before = cpu_seconds(self.pid)
            time.sleep(1)
            if cpu_seconds(self.pid) - before < IDLE_CPU_SECONDS_MAX:
                return time.perf_counter() - began
        message = f"the server is still busy {FOLLOWING_SECONDS_MAX} s after its start"
        raise RuntimeError(message)

    def get(self, path: str) -> bytes:
        """The body of a GET. Raises urllib.error.URLError for any status but 200."""
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            body: bytes = response.read()
            return body

    def metric(self, name: str) -> float:
        """The sum of a metric's lines in `/metrics`."""
        line = re.compile(rf"^{name}(?:\{{.*\}})? (\S+)$", re.MULTILINE)
        return sum(float(value) for value in line.findall(self.get("/metrics").decode()))

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._log.close()
        if exc is None and code != 0:
            message = f"the server ended with {code}:\n{self._log_path.read_text()[-_OUTPUT_CHARS_SHOWN:]}"
            raise RuntimeError(message)
