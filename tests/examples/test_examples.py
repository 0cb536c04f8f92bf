"""Every example is whole: a README that runs its script, and a script that is short. tests/docs/test_docs_run.py runs the READMEs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.test_docs_run import ELSEWHERE, RUN
from tests.helpers.documents import ROOT, blocks_of

SCRIPT_LINES_MAX = 80
EXAMPLES = sorted(
    path for path in (ROOT / "examples").iterdir() if path.is_dir() and path.name[0] != "."
)
NAMES = {"asgi_app", "seats", "api_calls", "llm_tokens", "migrate_csv", "pricing"}


def test_the_examples_are_there() -> None:
    assert {path.name for path in EXAMPLES} >= NAMES


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda path: path.name)
def test_the_readme_of_an_example_is_run_and_runs_all_of_its_files(folder: Path) -> None:
    readme = folder / "README.md"
    page = readme.relative_to(ROOT).as_posix()
    assert page in RUN or page in ELSEWHERE
    commands = "".join(
        block.text for block in blocks_of(readme.read_text()) if block.language == "sh"
    )
    for script in folder.glob("*.py"):
        assert f"examples/{folder.name}/{script.name}" in commands
        assert len(script.read_text().splitlines()) < SCRIPT_LINES_MAX
