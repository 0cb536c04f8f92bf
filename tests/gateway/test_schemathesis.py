"""Schemathesis reads the OpenAPI document of a real server and asks it everything that follows from it.

No 5xx; statuses, content types, headers and bodies as described; bad input refused; keys needed where it is said; no
other methods. What it is not to ask is in schemathesis.toml, with the reason. Nothing is left out as destructive: the
server is this test's own.

TEST_SEED             the seed, to repeat a run
SCHEMATHESIS_EXAMPLES how many random requests each operation gets: all of them are asked then, which takes minutes.
                      Without it a random half of the operations is asked, with 3 random requests each beside what
                      follows from each schema: every few runs ask all.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from gateway.openapi import operation_id
from gateway.table import ROUTES
from tests.helpers.server import STOCK, server_environment
from tests.helpers.server import running as running_server

CONFIG = Path(__file__).with_name("schemathesis.toml")
ALL = os.environ.get("SCHEMATHESIS_EXAMPLES")
EXAMPLES = ALL or "3"
KEY = "an-administrators-key-0123456789"
SECONDS_MAX = 600 + 60 * int(EXAMPLES)
pytestmark = pytest.mark.slow


def asked(
    directory: Path, seed: int, environment: Mapping[str, str], options: Sequence[str]
) -> int:
    """How many requests it made of a server of its own; it found nothing wrong."""
    (directory / "data").mkdir()
    with running_server(directory / "data", module=STOCK, environment=environment) as server:
        url = f"http://127.0.0.1:{server.port}/openapi.json"
        command = [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "--config-file",
            str(CONFIG),
            "run",
            url,
        ]
        command += [
            "--seed",
            str(seed),
            "--max-examples",
            EXAMPLES,
            "--generation-database",
            "none",
        ]
        command += ["--no-color", "--continue-on-failure", "--warnings", "off", *options]
        done = subprocess.run(
            command,
            cwd=directory,
            env=server_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS_MAX,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-20_000:]
        assert not server.events("request_failed"), "no defect was answered with a 500 in between"
        assert server.stop() == 0, server.stderr[-2000:]
    made = re.search(r"(\d+) generated", said)
    assert made, said[-2000:]
    return int(made[1])


def test_a_server_without_keys_answers_as_it_is_described(
    tmp_path: Path, seed: int, rng: random.Random
) -> None:
    ids = [operation_id(route) for route in ROUTES]
    chosen = ids if ALL else rng.sample(ids, len(ids) // 2)
    options = [f"--include-operation-id={one}" for one in chosen]
    options += ["--phases", "coverage,fuzzing"]
    assert asked(tmp_path, seed, {}, options) > 500, "the document gives it much to ask"


def test_a_server_with_keys_answers_as_it_is_described(tmp_path: Path, seed: int) -> None:
    environment = {"STRIPEMETER_AUTH": "required", "STRIPEMETER_ADMIN_KEY": KEY}
    # What may be sent was asked above; here it is who may: each example again, without a key and with a wrong one.
    options = ["--header", f"Authorization: Bearer {KEY}", "--phases", "examples"]
    assert asked(tmp_path, seed, environment, options) > 100
