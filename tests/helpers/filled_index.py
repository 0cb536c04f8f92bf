"""Key indexes for tests: opened, filled, and checked against a dict that holds the same keys."""

from __future__ import annotations

import random
from typing import Any

from wal.key_index import KeyIndex
from wal.key_merge import MergePlan
from wal.runs import RunStore

LOG_ID = b"0123456789abcdef"
HEAD = 10**9
Keys = dict[bytes, bytes]


def open_index(store: RunStore, **changes: Any) -> KeyIndex:
    arguments = {"log_id": LOG_ID, "epoch": 3, "head_sequence": HEAD, "recent_keys_max": 100}
    return KeyIndex.open(store, **{**arguments, **changes})


def some_keys(rng: random.Random, count: int) -> Keys:
    return {rng.randbytes(16): rng.randbytes(8) for _ in range(count)}


def fill(index: KeyIndex, rng: random.Random, flushes: int, keys_each: int = 100) -> Keys:
    """Add and merge; positions are one for each key. Returns what was added."""
    added: Keys = {}
    for _ in range(flushes):
        more = some_keys(rng, keys_each)
        added |= more
        index.add(more, index.statistics().position + keys_each)
        assert index.seal()
        index.settle()
    return added


def run_to_end(plan: MergePlan) -> None:
    while plan.run_slice():
        pass


def check_exact(index: KeyIndex, expected: Keys, rng: random.Random) -> None:
    keys = list(expected)
    assert [index.lookup(key) for key in keys] == list(expected.values())
    assert index.known(keys) == expected
    strangers = list(some_keys(rng, 500))
    assert not any(index.lookup(key) for key in strangers)
    assert index.known([*strangers, *keys]) == expected
    # No false negative: what is in the runs is always suspected.
    joined = b"".join(keys)
    stored = {at for at, key in enumerate(keys) if index._lookup_stored(key) is not None}
    assert stored <= set(index.suspects(joined))
