"""Pages as they are read and pasted: their fenced blocks, and a terminal in which these are run one after the other.

Rules it keeps: a block is of a kind that something is done with, else it is an error; what a block says about itself
stands in its info string (`sh`, `sh server`, `sh simulator`, `sh demo`, `sh fails`, `sh no-run: REASON`); a terminal works in a directory of its own and on
ports that the system picked, and whatever it started is gone afterwards. It must not know what a page is about.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
START_SECONDS_MAX = 60
BLOCK_SECONDS_MAX = 180
ANYTHING = "..."
PRINTS = "# prints: "

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]+)(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_COMMAND = re.compile(
    r"^ {4,}(?:\$ )?(?:curl|stripemeter|make|python3?|pip|npm|node|docker|systemctl|kill|cat|zcat|export|\.venv/\S+"
    r"|[A-Z_]{4,}=\S*)(?:\s|$)"
)
_MARKS = {
    "sh": {"", "server", "simulator", "demo", "fails", "no-run"},
    "python": {"", "no-run"},
    "json": {"", "no-run"},
    "text": {"", "no-run"},
}
_SHOWN = {"yaml", "toml", "nginx", "ini", "ts", "typescript", "js", "javascript", "csv", "promql"}
"""Languages that are only shown: configuration, and programs whose own tests run them."""
_PORTS = re.compile(r"(?<=127\.0\.0\.1:)(3000|3001|12111)\b|(?<=--port )(3001)\b")


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    mark: str
    """What is done with it: empty (run, or compare), server, simulator, demo, fails, no-run."""
    reason: str
    """Why it is not run."""
    text: str
    line: int


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page's text, in order. An info string that nothing is done with fails the test."""
    found = []
    for match in _FENCE.finditer(page):
        mark, _, reason = match["info"].strip().partition(":")
        block = Block(
            match["language"],
            mark.strip(),
            reason.strip(),
            textwrap.dedent(match["text"]),
            page.count("\n", 0, match.start()) + 1,
        )
        allowed = _MARKS.get(block.language, {""} if block.language in _SHOWN else set())
        assert block.mark in allowed, f"line {block.line}: nothing is done with ```{match['info']}"
        assert (block.mark == "no-run") is bool(block.reason), f"line {block.line}: say why"
        found.append(block)
    return found


def commands_outside_of_blocks(page: str) -> list[str]:
    """Indented lines that look like commands: nobody runs them."""
    return [line for line in _FENCE.sub("", page).splitlines() if _COMMAND.match(line)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Terminal:
    """Runs blocks in a directory, each port of theirs replaced by a free one. Variables live on from block to block."""

    def __init__(self, directory: Path, environment: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.ports = {name: free_port() for name in ("3000", "3001", "12111")}
        self.server: subprocess.Popen[bytes] | None = None
        self.simulator: subprocess.Popen[bytes] | None = None
        self.printed = ""
        self._groups: list[int] = []
        bin_directory = Path(sys.executable).parent
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("STRIPE")}
        self.environ |= {
            "PATH": f"{bin_directory}:{os.environ['PATH']}",
            "STRIPEMETER_PORT": str(self.port),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk' / 'python'}",
            "STRIPEMETER_URL": f"http://127.0.0.1:{self.port}",
        } | (environment or {})
        (directory / ".venv").mkdir()
        (directory / ".venv" / "bin").symlink_to(bin_directory)
        (directory / "examples").symlink_to(ROOT / "examples")

    @property
    def port(self) -> int:
        """Where the server of port 3000 really listens."""
        return self.ports["3000"]

    def ported(self, text: str) -> str:
        """The text with its ports replaced."""
        return _PORTS.sub(lambda match: str(self.ports[match[0]]), text)

    def serve(self, text: str = "make run") -> None:
        """What `make run` does after its set-up, with the settings before it. A server that runs is stopped first."""
        self.stop()
        command = self.ported(text.strip()).replace("make run", "exec stripemeter serve")
        self.server = self._background(command)
        self._wait(f"http://127.0.0.1:{self.port}/health/ready", self.server)

    def simulate_stripe(self) -> None:
        """A Stripe simulator alone, where blocks say 127.0.0.1:12111."""
        port = self.ports["12111"]
        self.simulator = self._background(f"exec stripemeter stripe-sim --port {port}")
        self._wait(f"http://127.0.0.1:{port}/_sim/state", self.simulator)

    def _background(self, command: str) -> subprocess.Popen[bytes]:
        with (self.directory / "server.log").open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        # Takes note of its end at once: else a page's own `kill -0` would go on seeing a process.
        threading.Thread(target=process.wait, daemon=True).start()
        return process

    def _wait(self, url: str, process: subprocess.Popen[bytes]) -> None:
        """Wait until it answers 200."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(url):
                    return
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (self.directory / "server.log").read_text()
                time.sleep(0.02)
        pytest.fail("the server did not get ready")

    def run(self, text: str, *, fails: bool = False) -> str:
        """Run a block as typed; its standard output. `fails`: it must end with an error, which is in the output too."""
        text = self.ported(text)
        script = f"set -a\n[ -f .variables ] && . ./.variables\n{text}\ndeclare -px >.variables\n"
        process = subprocess.Popen(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=self.directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if fails else subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._groups.append(process.pid)
        output, errors = process.communicate(timeout=BLOCK_SECONDS_MAX)
        assert (process.returncode != 0) is fails, f"{text}\n{output}\n{errors}"
        self.printed = output
        for words in re.findall(f"^{PRINTS}(.*)$", text, re.MULTILINE):
            assert words in output, f"{text}\nprints\n{output}"
        return output

    def run_python(self, text: str) -> str:
        """Run a program as a file of its own; its standard output."""
        (self.directory / "block.py").write_text(self.ported(text))
        return self.run("python -W error::SyntaxWarning block.py")

    def do(self, block: Block) -> None:
        """Do with a block what it is there for."""
        if block.mark in {"no-run", "demo"} or block.language in _SHOWN:
            return
        if block.mark == "server":
            self.serve(block.text)
        elif block.mark == "simulator":
            assert block.text == "stripemeter stripe-sim\n"
            self.simulate_stripe()
        elif block.language == "sh":
            self.run(block.text, fails=block.mark == "fails")
            if block.text.startswith("kill -9"):
                assert self.server is not None
                assert self.server.wait(5) == -signal.SIGKILL
            elif "curl" in block.text and block.mark != "fails":
                assert "urn:stripemeter:problem" not in self.printed, self.printed
        elif block.language == "python":
            self.run_python(block.text)
        elif block.language == "json":
            assert_within(json.loads(block.text), last_json(self.printed))
        else:
            assert_shown(block.text, self.ported(self.printed))

    def stop(self) -> None:
        """End the server, if one runs."""
        _end(self.server)

    def close(self) -> None:
        """End the server, the simulator and whatever blocks left running."""
        self.stop()
        _end(self.simulator)
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None and process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def last_json(printed: str) -> Any:
    """The JSON that an output ends with; what other commands of a block printed before it is passed over.

    curl ends no answer with a new line, so several answers may stand in one line.
    """
    decoder = json.JSONDecoder()
    for match in re.finditer(r"^[\[{]", printed, re.MULTILINE):
        rest = printed[match.start() :].strip()
        value = None
        with contextlib.suppress(json.JSONDecodeError):
            while rest:
                value, end = decoder.raw_decode(rest)
                rest = rest[end:].lstrip()
            return value
    pytest.fail(f"no JSON at the end of {printed!r}")


def assert_within(wanted: Any, got: Any, path: str = "$") -> None:
    """Everything that is wanted is there, "..." stands for anything; the answer may hold more fields."""
    if wanted == ANYTHING:
        return
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


def assert_shown(wanted: str, got: str) -> None:
    """Every line that is wanted was printed, in that order; blanks count once, "..." stands for anything."""
    lines = iter([" ".join(line.split()) for line in got.splitlines()])
    for line in wanted.splitlines():
        if not line.strip() or line.strip() == ANYTHING:
            continue
        pattern = re.escape(" ".join(line.split())).replace(re.escape(ANYTHING), ".*")
        assert any(re.fullmatch(pattern, printed) for printed in lines), (
            f"{line!r} is not in its place in\n{got}"
        )
