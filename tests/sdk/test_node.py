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

from tests.helpers.documents import ROOT, Terminal, blocks_of
from tests.unit.test_tidy import FILE_LINES_MAX, FUNCTION_LINES_MAX, LEFTOVERS

SDK = ROOT / "sdk" / "node"
NODE_MAJOR_MIN = 18
INSTALL_SECONDS_MAX = 300
TESTS_SECONDS_MAX = 300
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


def sources() -> list[Path]:
    """What is written by hand of the SDK and its example."""
    folders = [SDK / "src", SDK / "test", SDK / "scripts", ROOT / "examples" / "node_app"]
    found = [path for folder in folders for path in folder.rglob("*.*ts")]
    found += [path for folder in folders for path in folder.rglob("*.mjs")]
    return sorted(path for path in found if "node_modules" not in path.parts)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_a_node_source_says_what_it_is_for_and_keeps_to_the_house_rules(path: Path) -> None:
    text = path.read_text()
    comment = re.match(r"/\*\*\n( \*.*\n)+? \*/\n", text)
    assert comment, "a file opens with what it is for"
    assert len(text.splitlines()) <= FILE_LINES_MAX
    assert LEFTOVERS.search(text) is None
    if path.parent.name == "src":
        words = " ".join(comment[0].replace("*", " ").split())
        assert "Rules it keeps:" in words
        assert "must not know" in words
        assert re.search(r"[:<|] ?any\b|as any\b|@ts-(ignore|nocheck)", code_of(text)) is None
    for start, end in function_spans(text):
        assert end - start < FUNCTION_LINES_MAX, f"lines {start + 1} to {end + 1}"


def code_of(text: str) -> str:
    """The text without its comments."""
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)


def function_spans(text: str) -> list[tuple[int, int]]:
    """First and last line of functions and methods, by their indentation: they end where it comes back."""
    lines = text.splitlines()
    spans = []
    for start, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if not line.endswith("{") or not re.search(r"\)[^=]*\{$|=> \{$", line):
            continue
        closing = (
            n for n in range(start + 1, len(lines)) if lines[n][: indent + 1] == " " * indent + "}"
        )
        if (end := next(closing, None)) is not None and "describe(" not in line:
            spans.append((start, end))
    return spans


def test_the_rules_for_node_sources_find_what_they_are_for() -> None:
    assert len(sources()) > 30
    assert function_spans("a(\n) {\n  b();\n}\n") == [(1, 3)]
    assert function_spans("it(x, () => {\n  if (y) {\n  }\n});\n") == [(0, 3), (1, 2)]


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
    files = [f"test/{path.name}" for path in sorted((built / "test").glob("*.test.mjs"))]
    result = run("node", "--test", "--test-reporter=tap", "--test-concurrency=3", *files)
    print(re.findall(r"SEED=\d+", result.stdout))
    failed = "\n".join(FAILURE.findall(result.stdout))
    assert result.returncode == 0, failed or result.stdout[-OUTPUT_CHARS_SHOWN:]
    counts = dict(re.findall(r"^# (\w+) (\d+)$", result.stdout, re.MULTILINE))
    assert int(counts["pass"]) == int(counts["tests"]) > 200


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/sdk-node.md", "examples/node_app/README.md"])
def test_every_block_of_a_page_about_node_does_what_it_says(
    built: Path, page: str, tmp_path: Path
) -> None:
    terminal = Terminal(tmp_path)
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "stripemeter-sdk").symlink_to(built)
    ran = 0
    try:
        terminal.serve()
        for block in blocks_of((ROOT / page).read_text()):
            if block.language == "js":
                (tmp_path / "block.mjs").write_text(terminal.ported(block.text))
                terminal.run("node block.mjs")
            else:
                terminal.check_block(block)
            ran += block.mark != "no-run"
    finally:
        terminal.close()
    assert ran > 4
