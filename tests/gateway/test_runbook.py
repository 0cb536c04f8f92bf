"""RECONCILIATION.md has a section for each cause, and for nothing else. tests/docs/test_docs_run.py runs its commands."""

from __future__ import annotations

import re
from typing import get_args

from engine.core.finding_records import Cause
from tests.helpers.documents import ROOT, blocks_of

PAGE = (ROOT / "RECONCILIATION.md").read_text()


def test_the_runbook_has_a_section_for_each_cause_and_for_nothing_else() -> None:
    part = PAGE[PAGE.index("## By cause") : PAGE.index("## When it does not run")]
    assert sorted(re.findall(r"^### (\w+)$", part, re.MULTILINE)) == sorted(get_args(Cause))
    assert len([block for block in blocks_of(PAGE) if block.language == "sh"]) >= 8
