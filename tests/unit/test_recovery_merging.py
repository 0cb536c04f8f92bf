"""Recovery feeds the key index while it folds: merges go on beside it, and what is in memory keeps its bound."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import pytest
import trio
from trio.testing import MockClock

from engine.actors.recovery import genesis_drafts, read_genesis, recover
from engine.core.records import (
    PartKind,
    RecordType,
    SettingsChange,
    TenantEvents,
    encode_counting,
    encode_erasable,
)
from engine.ports import ResultT
from wal.key_index import RECENT_OVERRUN, KeyIndex
from wal.log import Draft, DraftPart
from wal.memory_log import MemoryLog
from wal.memory_runs import MemoryRuns
from wal.snapshot import MemorySnapshots

NOW_US = 1_769_853_600_000_000
GROUPS, GROUP_EVENTS, RECENT_KEYS = 120, 50, 100


class StandingClock:
    def now_us(self) -> int:
        return NOW_US

    def monotonic_us(self) -> int:
        return 0


def digest(number: int, purpose: str) -> bytes:
    return blake2b(f"{purpose}{number}".encode(), digest_size=16).digest()


def group(first: int) -> Draft:
    numbers = range(first, first + GROUP_EVENTS)
    nothing = [None] * GROUP_EVENTS
    events = TenantEvents(
        "t",
        ["m"] * GROUP_EVENTS,
        ["c"] * GROUP_EVENTS,
        [1] * GROUP_EVENTS,
        [NOW_US] * GROUP_EVENTS,
        [7] * GROUP_EVENTS,
        [digest(n, "key") for n in numbers],
        [digest(n, "fingerprint") for n in numbers],
        [0] * GROUP_EVENTS,
        [f"k{n}" for n in numbers],
        nothing,
        nothing,
        {},
    )
    parts = (
        DraftPart(PartKind.COUNTING, encode_counting(events)),
        DraftPart(PartKind.ERASABLE, encode_erasable(events)),
    )
    return Draft(RecordType.EVENTS, GROUP_EVENTS, NOW_US, parts)


def filled_log() -> MemoryLog:
    log = MemoryLog()
    settings = SettingsChange(lateness_us=0, late_policy="review", actor="system:start")
    genesis_drafts(log, bytes(16), "test", settings, StandingClock())
    log.append([group(index * GROUP_EVENTS) for index in range(GROUPS)])
    return log


@pytest.mark.parametrize("slice_seconds", [0, 0.001, 5])
async def test_keys_in_memory_keep_their_bound_and_none_is_lost_however_slow_merging_is(
    slice_seconds: float,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    log = filled_log()
    keys = KeyIndex.open(
        MemoryRuns(),
        log_id=read_genesis(log).log_id,
        epoch=1,
        head_sequence=log.head().next_sequence,
        recent_keys_max=RECENT_KEYS,
    )
    in_memory: list[int] = []
    real_add = keys.add

    def add(found: dict[bytes, bytes], next_position: int) -> None:
        real_add(found, next_position)
        in_memory.append(keys.recent_keys)

    async def run_slowly(function: Callable[[], ResultT]) -> ResultT:
        await trio.sleep(slice_seconds)
        return function()

    monkeypatch.setattr(keys, "add", add)
    recovered = await recover(
        log,
        keys,
        MemorySnapshots(),
        bytes(16),
        run_blocking=run_slowly,
        progress=lambda _: None,
    )
    assert recovered.events_folded == GROUPS * GROUP_EVENTS
    assert max(in_memory) <= RECENT_KEYS * RECENT_OVERRUN + GROUP_EVENTS
    if slice_seconds:
        assert max(in_memory) > RECENT_KEYS * 2, "folding goes on while keys are merged"
    assert keys.begin_merge() is None, "no merge is left half-way"
    for number in range(GROUPS * GROUP_EVENTS):
        assert keys.lookup(digest(number, "key")) == digest(number, "fingerprint")[:8]
