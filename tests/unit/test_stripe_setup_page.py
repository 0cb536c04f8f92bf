"""docs/stripe-setup.md speaks of every standing and every decision there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from engine.core.push_plan import Standing
from engine.core.push_records import BaselineChoice, CarryInto
from gateway.stripe_webhook import REJECTIONS

PAGE = (Path(__file__).parents[2] / "docs" / "stripe-setup.md").read_text()


def test_every_standing_is_explained() -> None:
    explained = re.findall(
        r"^\| `(\w+)` \|", PAGE.partition("## What each standing")[2], re.MULTILINE
    )
    assert sorted(explained) == sorted(get_args(Standing))


def test_every_choice_and_event_is_named() -> None:
    for word in (*get_args(BaselineChoice), *get_args(CarryInto), *REJECTIONS):
        assert word in PAGE
