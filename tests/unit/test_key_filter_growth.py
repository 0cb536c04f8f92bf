"""The key index's filter grows in portions beside flushes: none waits for it, and no key is ever missing from it."""

from __future__ import annotations

import random

import pytest

from tests.helpers.filled_index import Keys, check_exact, fill, open_index, run_to_end, some_keys
from wal import key_merge
from wal.key_index import KeyIndex
from wal.key_merge import PlanKind
from wal.memory_runs import MemoryRuns

FIRST_KEYS_MAX = 4_096
"""What the smallest filter takes."""


def merge_and_add(index: KeyIndex, rng: random.Random, keys_each: int, upto: int) -> Keys:
    """Plans of one slice at a time, wherever a plan may stop, and a flush asked for after each."""
    added: Keys = {}
    kinds: list[PlanKind] = []
    while index.stored_keys < upto:
        while (plan := index.begin_merge()) is not None:
            if plan.kind in (PlanKind.COMPACT, PlanKind.GROW, PlanKind.COLLECT):
                plan._slices_left = 1
            run_to_end(plan)
            index.finish_merge(plan)
            kinds.append(plan.kind)
            if plan.kind is PlanKind.GROW:
                break
        more = some_keys(rng, keys_each)
        added |= more
        index.add(more, index.statistics().position + keys_each)
        index.seal()
    grown = [at for at, kind in enumerate(kinds) if kind is PlanKind.GROW]
    assert len(grown) > 10
    assert PlanKind.FLUSH in kinds[grown[0] : grown[-1]], "flushes go between the portions"
    assert PlanKind.COMPACT in kinds[grown[0] : grown[-1]]
    assert PlanKind.COLLECT in kinds[grown[0] : grown[-1]]
    return added


def test_a_flush_takes_as_long_when_the_filter_is_full_as_ever(rng: random.Random) -> None:
    index = open_index(MemoryRuns(), recent_keys_max=200)
    slices = []
    while index.stored_keys < 3 * FIRST_KEYS_MAX:
        index.add(some_keys(rng, 200), index.statistics().position + 200)
        index.seal()
        while (plan := index.begin_merge()) is not None:
            count = 1
            while plan.run_slice():
                count += 1
            index.finish_merge(plan)
            if plan.kind is PlanKind.FLUSH:
                slices.append(count)
    assert len(set(slices)) == 1, slices


def test_every_key_is_found_while_the_filter_grows_beside_flushes_and_merges(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many portions that runs it reads are merged away meanwhile.
    monkeypatch.setattr(key_merge, "SCAN_BLOCKS", 1)
    store = MemoryRuns()
    index = open_index(store, recent_keys_max=150)
    expected = fill(index, rng, flushes=20, keys_each=150)
    size = index.statistics().filter_bytes
    expected |= merge_and_add(index, rng, 150, upto=4 * FIRST_KEYS_MAX)
    check_exact(index, expected, rng)
    assert index.statistics().filter_bytes >= 4 * size
    index.settle()
    check_exact(index, expected, rng)
    assert store.run_ids() == sorted(run.run_id for run in index.statistics().runs)
    check_exact(open_index(store), expected, rng)


def test_a_filter_that_could_not_be_filled_is_begun_again(rng: random.Random) -> None:
    index = open_index(MemoryRuns(), recent_keys_max=150)
    expected = fill(index, rng, flushes=23, keys_each=150)
    more = some_keys(rng, 300)
    expected |= more
    index.add(more, index.statistics().position + 300)
    index.seal()
    while (plan := index.begin_merge()) is not None and plan.kind is not PlanKind.GROW:
        run_to_end(plan)
        index.finish_merge(plan)
    assert plan is not None
    plan.run_slice()
    plan.is_failed = True
    index.finish_merge(plan)
    check_exact(index, expected, rng)
    expected |= fill(index, rng, flushes=3, keys_each=150)
    assert index.statistics().filter_bytes == 2 * 8 * 1024
    check_exact(index, expected, rng)


@pytest.mark.parametrize("kind", [PlanKind.GROW, PlanKind.COLLECT])
def test_a_flush_need_not_wait_for_the_end_of_what_takes_long(
    kind: PlanKind, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_merge, "SCAN_BLOCKS", 1)
    monkeypatch.setattr(key_merge, "DELETE_BLOCKS", 1)
    index = open_index(MemoryRuns(), recent_keys_max=1_000)
    expected: Keys = {}
    plan = None
    while plan is None or plan.kind is not kind:
        if plan is not None:
            run_to_end(plan)
            index.finish_merge(plan)
        if (plan := index.begin_merge()) is None:
            more = some_keys(rng, 1_000)
            expected |= more
            index.add(more, index.statistics().position + 1_000)
            index.seal()
    run_to_end(plan)
    assert not plan.is_done, "it is over for now, and not done"
    index.finish_merge(plan)
    more = some_keys(rng, 10)
    expected |= more
    index.add(more, index.statistics().position + 10)
    index.seal()
    plan = index.begin_merge()
    assert plan is not None
    assert plan.kind is PlanKind.FLUSH
    run_to_end(plan)
    index.finish_merge(plan)
    index.settle()
    check_exact(index, expected, rng)
