"""The simulator's guide lists every kind of fault. tests/docs/test_docs_run.py runs its commands."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.simulator.faults import KINDS

GUIDE = (Path(__file__).parents[2] / "docs" / "stripe-simulator.md").read_text()


def test_the_guide_lists_every_kind_of_fault() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \| [^|]+\|$", GUIDE, re.MULTILINE))
    assert set(KINDS) <= listed
