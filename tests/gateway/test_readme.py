"""The README starts the same server as `make run`. Its blocks are run by tests/docs/test_docs_run.py."""

from __future__ import annotations

import re

from tests.helpers.documents import ROOT


def test_make_run_is_what_the_test_starts() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^run:.*\n\t@\$\(BIN\)/stripemeter serve", makefile, re.MULTILINE)


def test_a_readme_starts_with_nothing_but_make_run() -> None:
    blocks = re.findall(
        r"^```sh server\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert blocks
    assert set(blocks) == {"make run\n"}
