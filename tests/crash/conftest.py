"""What the crash tests share: our own library in front of libc, compiled once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers import server


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler, or not Linux")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).parent / "shim.c"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run([compiler, *flags, "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture(autouse=True)
def no_simulator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that count a server's writes and syncs have none of the built-in Stripe simulator's among them."""
    if "parity" in request.node.nodeid:
        return
    usual = server.server_environment

    def quiet(extra: Mapping[str, str] | None = None) -> dict[str, str]:
        return usual({"STRIPEMETER_SIMULATOR": "off", **(extra or {})})

    monkeypatch.setattr(server, "server_environment", quiet)
