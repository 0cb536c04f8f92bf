"""The scan that exports are made of: every event of its stretches once, in log order, page by page."""

from __future__ import annotations

from itertools import pairwise

import pytest

from engine.actors import event_scan
from engine.actors.event_scan import EventScan, ScanFilter, Stretch
from tests.helpers.past import TENANTS, Past


def scanned(past: Past, stretches: list[Stretch], wanted: ScanFilter) -> list[int]:
    scan = EventScan(past.log, stretches, wanted)
    found = []
    while (page := scan.next_page()) is not None:
        found += [event.sequence for event in page]
    return found


@pytest.mark.parametrize("page_bytes", [1, 700, 1 << 20])
def test_every_event_comes_once_in_log_order_however_the_log_is_cut(
    page_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_scan, "PAGE_BYTES", page_bytes)
    for seed in range(5):
        print("seed", seed)
        past = Past(seed)
        past.grow(40)
        end = past.log.head().next_sequence
        every = [one.sequence for one in past.events.logged]
        assert scanned(past, [Stretch(0, end)], ScanFilter()) == every
        cuts = sorted(past.random.sample(range(end), 4))
        stretches = [Stretch(cuts[0], cuts[1]), Stretch(cuts[2], cuts[3])]
        inside = [s for s in every if any(first <= s < last for first, last in stretches)]
        assert scanned(past, stretches, ScanFilter()) == inside
        edges = [0, *cuts, end]  # an extent of the index may end within a group
        adjacent = [Stretch(*pair) for pair in pairwise(edges)]
        assert scanned(past, adjacent, ScanFilter()) == every
        for tenant in TENANTS:
            own = [one.sequence for one in past.events.logged if one.sent.tenant == tenant]
            assert scanned(past, [Stretch(0, end)], ScanFilter(tenant)) == own


def test_without_a_stretch_there_is_nothing() -> None:
    assert scanned(Past(0), [], ScanFilter()) == []
