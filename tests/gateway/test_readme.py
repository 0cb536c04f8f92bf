"""The README is true: its commands, run one by one in an empty directory, print what it says they print."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)( \w+)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
START_SECONDS_MAX = 60


def blocks() -> Iterator[tuple[str, str]]:
    """(kind, text) of each fenced block, in order; kinds: sh, server, demo, json."""
    for language, mark, text in BLOCK.findall((ROOT / "README.md").read_text()):
        kind = mark.strip() or language
        assert kind in ("sh", "server", "demo", "json"), (
            f"a block of kind {kind!r} is run by nobody"
        )
        yield kind, text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Terminal:
    """Runs the README's blocks in a directory, with its port replaced by a free one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.server: subprocess.Popen[bytes] | None = None
        bin_directory = Path(sys.executable).parent
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("STRIPE")}
        self.environ["PATH"] = f"{bin_directory}:{os.environ['PATH']}"
        (directory / ".venv").mkdir()
        (directory / ".venv" / "bin").symlink_to(bin_directory)

    def serve(self) -> None:
        """What `make run` does after its set-up."""
        with (self.directory / "server.log").open("ab") as log:
            self.server = subprocess.Popen(
                ["stripemeter", "serve", "--port", str(self.port)],
                cwd=self.directory,
                env=self.environ,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready"):
                    return
            except (urllib.error.URLError, ConnectionError):
                assert self.server.poll() is None, (self.directory / "server.log").read_text()
                time.sleep(0.05)
        pytest.fail("the server did not get ready")

    def run(self, text: str) -> str:
        """Run a block as typed; its standard output."""
        text = text.replace("127.0.0.1:3000", f"127.0.0.1:{self.port}")
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", text],
            cwd=self.directory,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def close(self) -> None:
        if self.server is not None and self.server.poll() is None:
            self.server.send_signal(signal.SIGTERM)
            self.server.wait(15)


def assert_within(wanted: Any, got: Any, path: str = "$") -> None:
    """Everything that is wanted is there; the answer may hold more fields."""
    if isinstance(wanted, dict):
        assert isinstance(got, dict), path
        for name, value in wanted.items():
            assert name in got, f"{path}.{name} is missing in {got}"
            assert_within(value, got[name], f"{path}.{name}")
    elif isinstance(wanted, list):
        assert len(got) == len(wanted), f"{path}: {got}"
        for index, value in enumerate(wanted):
            assert_within(value, got[index], f"{path}[{index}]")
    else:
        assert got == wanted, f"{path}: {got!r} instead of {wanted!r}"


@pytest.mark.slow
def test_every_block_of_the_readme_does_what_it_says(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    printed = ""
    try:
        for kind, text in blocks():
            if kind == "server":
                assert text.strip() == "make run"
                terminal.serve()
            elif kind == "demo":
                assert text.strip() == "make demo"  # tests/gateway/test_demo.py runs it
            elif kind == "sh":
                printed = terminal.run(text)
                if text.startswith("kill -9"):
                    assert terminal.server is not None
                    assert terminal.server.wait(5) == -signal.SIGKILL
                elif "curl" in text:
                    assert "urn:stripemeter:problem" not in printed
            else:
                assert_within(json.loads(text), json.loads(printed))
    finally:
        terminal.close()


def test_make_run_is_what_the_test_starts() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^run:.*\n\t@\$\(BIN\)/stripemeter serve", makefile, re.MULTILINE)
