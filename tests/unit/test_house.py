"""What a newcomer, CI and the image rely on: Makefile, lock file, Dockerfile, changelog, reasons for dependencies.

There is no container engine here: the Dockerfile is parsed, and its health check is run against a server.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import gateway

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIREMENTS = [
    *PROJECT["project"]["dependencies"],
    *PROJECT["project"]["optional-dependencies"]["dev"],
]
NAMES = [re.split(r"[<>=!~\[ ]", requirement)[0] for requirement in REQUIREMENTS]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, continued lines joined, comments dropped."""
    text = "\n".join(
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")
    )
    joined = re.sub(r"\\\n\s*", " ", text)
    return [
        (name, rest.strip())
        for name, _, rest in (line.strip().partition(" ") for line in joined.splitlines() if line)
    ]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(index for index, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def arguments_of(name: str) -> list[str]:
    return [rest for found, rest in last_stage() if found == name]


def test_the_image_runs_as_a_user_of_its_own_who_owns_the_volume() -> None:
    stage = last_stage()
    order = [name for name, _ in stage]
    (user,) = arguments_of("USER")
    assert user not in {"root", "0"}
    assert order.index("USER") < order.index("ENTRYPOINT")
    (volume,) = arguments_of("VOLUME")
    made = next(rest for name, rest in stage if name == "RUN" and "useradd" in rest)
    assert f"--owner {user}" in made
    assert made.endswith(f"--mode 0700 {volume}")
    assert order.index("RUN") < order.index("VOLUME"), "what is done to a volume afterwards is lost"
    assert f"STRIPEMETER_DATA_DIR={volume}" in " ".join(arguments_of("ENV"))


def test_the_image_listens_beyond_loopback_on_the_documented_port_and_so_requires_keys() -> None:
    from engine.config import load

    environment = dict(
        pair.split("=", 1)
        for pair in arguments_of("ENV")[0].split()
        if pair.startswith("STRIPEMETER_")
    )
    settings = load(environment, None, {})
    assert settings.host == "0.0.0.0"
    assert settings.auth_required
    assert arguments_of("EXPOSE") == [str(settings.port)]


def test_the_server_is_process_1_and_gets_sigterm() -> None:
    assert json.loads(arguments_of("ENTRYPOINT")[0]) == ["stripemeter"]
    assert json.loads(arguments_of("CMD")[0]) == ["serve"]
    assert arguments_of("STOPSIGNAL") == ["SIGTERM"]


def test_the_image_copies_only_what_exists_and_is_not_ignored() -> None:
    ignored = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert ignored[0] == "*", "secrets and data stay out by default"
    copies = [rest for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    assert len(copies) >= 3
    for copy in copies:
        for source in copy.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, line[1:]) for line in ignored if line[0] == "!"), (
                source
            )
    copied = {source.rstrip("/") for copy in copies for source in copy.split()[:-1]}
    assert copied >= {*PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    assert PROJECT["project"]["readme"] in copied


def test_every_stage_is_of_the_tested_python_and_copies_from_a_stage_that_exists() -> None:
    stages = [rest.split() for name, rest in instructions() if name == "FROM"]
    assert {stage[0] for stage in stages} == {"python:3.11-slim"}
    names = {stage[2] for stage in stages if len(stage) == 3}
    for name, rest in instructions():
        if name == "COPY" and (match := re.match(r"--from=(\S+)", rest)):
            assert match[1] in names


@contextmanager
def server(status: int) -> Iterator[int]:
    """A server on a free port that answers /health/ready with `status`; yields the port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Answer) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield listener.server_port
        listener.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_is_true_only_when_the_server_is_ready(
    status: int, *, healthy: bool
) -> None:
    (check,) = arguments_of("HEALTHCHECK")
    command = json.loads(check[check.index("CMD ") + 4 :])
    assert command[0] == "python"
    with server(status) as port:
        result = subprocess.run(
            [sys.executable, *command[1:]],
            env={**os.environ, "STRIPEMETER_PORT": str(port)},
            capture_output=True,
            check=False,
        )
    assert (result.returncode == 0) is healthy


def test_every_dependency_has_a_reason_and_a_pin_in_the_lock() -> None:
    reasons = (ROOT / "docs/decisions/0001-dependencies.md").read_text()
    pins = re.findall(
        r"^([a-z0-9-]+)==([^ ;\n]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE
    )
    pinned = dict(pins)
    assert len(NAMES) > 15
    for requirement, name in zip(REQUIREMENTS, NAMES, strict=True):
        assert f"`{name}`" in reasons, f"{name}: a row in 0001-dependencies.md"
        assert name in pinned, f"{name}: run make lock"
        if "==" in requirement:
            assert pinned[name] == requirement.split("==")[1], f"{name}: run make lock"
    documented = set(re.findall(r"^\| (.*?) \|", reasons, re.MULTILINE))
    rows = {name for row in documented for name in re.findall(r"`([a-z0-9-]+)`", row)}
    assert rows == set(NAMES), "a row for what is no dependency any more"


def test_what_touches_the_insides_of_a_library_is_pinned_exactly() -> None:
    exact = {
        name for name, requirement in zip(NAMES, REQUIREMENTS, strict=True) if "==" in requirement
    }
    assert {"hypercorn", "quart-trio"} <= exact


def test_the_code_and_the_package_have_one_version() -> None:
    assert gateway.__version__ == PROJECT["project"]["version"]


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text
    headings = re.findall(r"^### (\w+)", text, re.MULTILINE)
    assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_every_make_target_is_listed_by_make_help() -> None:
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    documented = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert set(phony.split()) == documented
    assert {
        "setup",
        "run",
        "test",
        "check",
        "fix",
        "bench",
        "sim",
        "kill",
        "lock",
        "clean",
    } <= documented
    if shutil.which("make"):
        listing = subprocess.run(
            ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for target in documented:
            assert f"make {target}" in listing.stdout


def test_ci_stops_at_the_first_failure_and_ends_in_make_test() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert text.rstrip().endswith("make test")
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_decision_pages_have_a_number_of_their_own_and_a_status() -> None:
    pages = sorted((ROOT / "docs/decisions").glob("*.md"))
    numbers = [int(page.name[:4]) for page in pages]
    assert len(set(numbers)) == len(numbers) >= 2
    for page in pages:
        assert re.search(r"^Status: ", page.read_text(), re.MULTILINE), page.name
