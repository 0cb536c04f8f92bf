"""The simulator's guide: its commands work and print what it says; its tables are complete."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.simulator.faults import KINDS

GUIDE = (Path(__file__).parents[2] / "docs" / "stripe-simulator.md").read_text()
PROMISE = "# prints: "


def test_the_guide_lists_every_kind_of_fault() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \| [^|]+\|$", GUIDE, re.MULTILINE))
    assert set(KINDS) <= listed


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the guide's commands are curl's")
def test_the_guides_commands_print_what_it_says(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gateway.cli.main", "stripe-sim"),
            *("--port", "0", "--data-dir", str(tmp_path)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split(" ready on ")[1].split(" ")[0]
        blocks = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
        assert len(blocks) == 2
        for block in blocks:
            script = block.replace("http://127.0.0.1:12111", url)
            promised = [
                line.removeprefix(PROMISE)
                for line in script.splitlines()
                if line.startswith(PROMISE)
            ]
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            assert promised
            for words in promised:
                assert words in done.stdout
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()
