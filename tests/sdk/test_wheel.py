"""The thin wheel: what is in it, and that it meters from an empty environment without the server's dependencies."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers.sdk_place import ROOT, place

pytestmark = pytest.mark.slow
SECONDS_MAX = 240
UNREACHABLE = (
    "No matching distribution",
    "Could not find a version",
    "Temporary failure in name resolution",
    "Connection refused",
    "Read timed out",
    "ConnectTimeoutError",
)
SCRIPT = """
import importlib.util, sys
from stripemeter import StripeMeterClient
for absent in ("trio", "lmdb", "quart", "engine", "gateway", "wal"):
    assert importlib.util.find_spec(absent) is None, absent
with StripeMeterClient(sys.argv[1], "wheel") as meter:
    meter.track("calls", "cora", "0.5")
assert meter.statistics().accepted == 1, meter.statistics()
"""


def pip(python: Path, *arguments: str) -> None:
    """Run pip; skips the test where it can't reach a registry."""
    done = subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
    )
    if done.returncode != 0 and any(words in done.stderr for words in UNREACHABLE):
        pytest.skip(f"pip reaches no registry: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def test_the_thin_wheel_meters_from_an_empty_environment(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        ROOT / "sdk" / "python", source, ignore=shutil.ignore_patterns("__pycache__", ".*")
    )
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / "bin" / "python"
    pip(python, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(source))
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("stripemeter_sdk-")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {"stripemeter"}
    assert "stripemeter/py.typed" in names
    pip(python, "install", str(wheel))
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with place() as here:
        done = subprocess.run(
            [str(python), "-I", "-c", SCRIPT, here.proxy],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=SECONDS_MAX,
        )
        assert done.returncode == 0, done.stderr
        assert here.total("wheel", "cora", "calls") == "0.5"


def test_the_versions_of_the_package_and_its_wheel_are_one() -> None:
    import stripemeter

    text = (ROOT / "sdk" / "python" / "pyproject.toml").read_text()
    assert f'version = "{stripemeter.__version__}"' in text
