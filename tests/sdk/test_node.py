"""The Node SDK: built from its lock file, its own tests run by node's runner, and the example app as a process.

The tests themselves are sdk/node/test/*.test.mjs; they start the place of sdk/conformance with this Python. Where there
is no node or npm, or no way to the registry, these tests are skipped and say so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SDK = ROOT / "sdk" / "node"
NODE_MAJOR_MIN = 18
INSTALL_SECONDS_MAX = 300
TESTS_SECONDS_MAX = 600
OUTPUT_CHARS_SHOWN = 8000
FAILURE = re.compile(r"^ *not ok .*?^ *\.\.\.$", re.MULTILINE | re.DOTALL)
"""A failed test in TAP, with what it says."""
NO_WAY = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ECONNRESET|ENETUNREACH|E40[37]")


def run(
    *command: str, seconds_max: float = TESTS_SECONDS_MAX, directory: Path = SDK
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output is one text."""
    return subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "STRIPEMETER_PYTHON": sys.executable, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=seconds_max,
    )


@pytest.fixture(scope="module")
def built() -> Path:
    """The SDK's directory, installed and built."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    version = run("node", "--version").stdout.strip()
    if int(version.lstrip("v").partition(".")[0]) < NODE_MAJOR_MIN:
        pytest.skip(f"node is {version}; the SDK needs {NODE_MAJOR_MIN} or newer")
    installed = run("npm", "ci", seconds_max=INSTALL_SECONDS_MAX)
    if installed.returncode != 0 and NO_WAY.search(installed.stdout):
        pytest.skip(f"npm can't reach its registry: {installed.stdout[-300:]}")
    assert installed.returncode == 0, installed.stdout[-OUTPUT_CHARS_SHOWN:]
    compiled = run("npm", "run", "build")
    assert compiled.returncode == 0, compiled.stdout[-OUTPUT_CHARS_SHOWN:]
    return SDK


@pytest.mark.slow
def test_every_test_of_the_node_sdk_passes_and_none_is_skipped(built: Path) -> None:
    result = run("npm", "test", directory=built)
    print(re.findall(r"SEED=\d+", result.stdout))
    failed = "\n".join(FAILURE.findall(result.stdout))
    assert result.returncode == 0, failed or result.stdout[-OUTPUT_CHARS_SHOWN:]
    counts = dict(re.findall(r"^# (\w+) (\d+)$", result.stdout, re.MULTILINE))
    assert int(counts["pass"]) == int(counts["tests"]) > 200
