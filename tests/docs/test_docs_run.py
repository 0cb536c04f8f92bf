"""The documentation is true: every block of every page does what it says, in the order of the page, in a fresh directory.

Whole pages are run, as a reader pastes them, against a real server with the Stripe simulator. What can't be run here says so in
its info string, with a reason; this file counts those.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.documents import (
    ROOT,
    Block,
    Terminal,
    blocks_of,
    commands_outside_of_blocks,
)

NOT_RUN_MAX = 12
"""Blocks that need what is not here: Stripe, systemd, a container engine. A limit, so that it stays the exception."""
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "RECONCILIATION.md", "docs/*.md", "examples/**/README.md")
    for path in ROOT.glob(pattern)
    if "node_modules" not in path.parts
)
RUN = [
    page
    for page in PAGES
    if any(block.mark != "no-run" for block in blocks_of((ROOT / page).read_text()))
]
ELSEWHERE = {
    "docs/sdk-node.md": "tests/sdk/test_node.py, which has Node and the built package",
    "examples/node_app/README.md": "tests/sdk/test_node.py",
}
QUICK = {
    "STRIPEMETER_PUSH_INTERVAL_SECONDS": "0.05",
    "STRIPEMETER_RECONCILE_LAG_SECONDS": "0.2",
}
"""A reader waits a minute for a push; this test does not."""


def page_blocks(page: str) -> list[Block]:
    return blocks_of((ROOT / page).read_text())


@pytest.mark.slow
@pytest.mark.lmdb
@pytest.mark.parametrize("page", [page for page in RUN if page not in ELSEWHERE])
def test_every_block_of_a_page_does_what_it_says(page: str, tmp_path: Path) -> None:
    blocks = page_blocks(page)
    terminal = Terminal(tmp_path, QUICK)
    try:
        if blocks[0].mark not in {"server", "simulator"}:
            terminal.serve()
        for block in blocks:
            try:
                terminal.do(block)
            except AssertionError as error:
                raise AssertionError(f"{page}, line {block.line}: {error}") from error
    finally:
        terminal.close()


def test_what_is_not_run_says_why_and_is_little() -> None:
    not_run = [
        (page, block.line, block.reason)
        for page in PAGES
        for block in page_blocks(page)
        if block.mark == "no-run"
    ]
    for page, line, reason in not_run:
        print(f"{page}:{line}: {reason}")
        assert len(reason.split()) >= 2, f"{page}:{line}: a reason that helps"
    assert len(not_run) <= NOT_RUN_MAX


@pytest.mark.parametrize("page", PAGES)
def test_no_command_stands_outside_of_a_block(page: str) -> None:
    assert commands_outside_of_blocks((ROOT / page).read_text()) == []


def test_the_pages_that_matter_are_found() -> None:
    assert {"README.md", "RECONCILIATION.md", "docs/operations.md"} <= set(RUN)
    assert set(ELSEWHERE) & set(PAGES) <= set(PAGES)
