"""Recovery feeds the key index while it folds: merges go on beside it, and what is in memory keeps its bound."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import pytest
import trio
from trio.testing import MockClock

from engine.actors.recovery import Recovered, genesis_drafts, read_genesis, recover
from engine.core.records import (
    PartKind,
    RecordType,
    SettingsChange,
    TenantEvents,
    encode_counting,
    encode_erasable,
)
from engine.errors import StartRefused
from engine.ports import ResultT
from tests.helpers.event_log import run_inline
from wal.key_index import FED_PER_RECENT, RECENT_OVERRUN, KeyIndex
from wal.log import Draft, DraftPart, StoredRecord
from wal.memory_log import MemoryLog
from wal.memory_runs import MemoryRuns
from wal.runs import RunStoreFull
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


def filled_log(groups: int = GROUPS) -> MemoryLog:
    log = MemoryLog()
    settings = SettingsChange(lateness_us=0, late_policy="review", actor="system:start")
    genesis_drafts(log, bytes(16), "test", settings, StandingClock())
    log.append([group(index * GROUP_EVENTS) for index in range(groups)])
    return log


def open_index(log: MemoryLog, store: MemoryRuns) -> KeyIndex:
    return KeyIndex.open(
        store,
        log_id=read_genesis(log).log_id,
        epoch=1,
        head_sequence=log.head().next_sequence,
        recent_keys_max=RECENT_KEYS,
    )


def check_every_key(keys: KeyIndex, groups: int = GROUPS) -> None:
    for number in range(groups * GROUP_EVENTS):
        assert keys.lookup(digest(number, "key")) == digest(number, "fingerprint")[:8]


async def recovered(log: MemoryLog, keys: KeyIndex) -> Recovered:
    return await recover(
        log,
        keys,
        MemorySnapshots(),
        bytes(16),
        run_blocking=run_inline,
        progress=lambda _: None,
    )


@pytest.mark.parametrize("slice_seconds", [0, 0.001, 5])
async def test_keys_in_memory_keep_their_bound_and_none_is_lost_however_slow_merging_is(
    slice_seconds: float,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    log = filled_log()
    keys = open_index(log, MemoryRuns())
    in_memory: list[int] = []
    real_feed = keys.feed

    def feed(columns: bytes, fingerprints: bytes, next_position: int) -> None:
        real_feed(columns, fingerprints, next_position)
        in_memory.append(keys.recent_keys)

    async def run_slowly(function: Callable[[], ResultT]) -> ResultT:
        await trio.sleep(slice_seconds)
        return function()

    monkeypatch.setattr(keys, "feed", feed)
    recovered = await recover(
        log,
        keys,
        MemorySnapshots(),
        bytes(16),
        run_blocking=run_slowly,
        progress=lambda _: None,
    )
    assert recovered.events_folded == GROUPS * GROUP_EVENTS
    fed_max = RECENT_KEYS * RECENT_OVERRUN * FED_PER_RECENT
    assert max(in_memory) <= fed_max + GROUP_EVENTS
    if slice_seconds:
        assert max(in_memory) > fed_max / 2, "folding goes on while keys are merged"
    assert keys.recent_keys < RECENT_KEYS, "what is left costs a dict's memory each"
    assert keys.begin_merge() is None, "no merge is left half-way"
    check_every_key(keys)


@pytest.mark.parametrize("writes_before", [0, 1, 2])
async def test_a_disk_that_fails_leaves_the_keys_in_memory_and_the_next_start_writes_them(
    writes_before: int,
) -> None:
    groups = 14  # 700 keys: more than make a run, and fewer than fit
    log, store = filled_log(groups), MemoryRuns()
    store.fail_next_writes(*[None] * writes_before, (RunStoreFull("no space left"), False))
    keys = open_index(log, store)
    found = await recovered(log, keys)
    assert any("no space left" in note for note in found.notes)
    check_every_key(keys, groups)
    keys = open_index(log, store)
    assert (await recovered(log, keys)).notes == ()
    check_every_key(keys, groups)
    assert keys.watermark > 0


async def test_a_disk_that_fails_refuses_the_start_when_memory_has_no_room_for_the_keys() -> None:
    log, store = filled_log(), MemoryRuns()
    store.fail_next_writes((RunStoreFull("no space left"), False))
    with pytest.raises(StartRefused, match=r"can't be brought up to the log: no space left"):
        await recovered(log, open_index(log, store))


async def test_a_start_after_a_start_feeds_only_what_no_run_holds() -> None:
    log, store = filled_log(), MemoryRuns()
    await recovered(log, open_index(log, store))
    log.append([group(GROUPS * GROUP_EVENTS)])
    keys = open_index(log, store)
    assert keys.watermark > (GROUPS - 3) * GROUP_EVENTS
    await recovered(log, keys)
    check_every_key(keys, GROUPS + 1)


async def test_a_record_that_is_lost_between_two_pages_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = filled_log(groups=6)
    read = log.read
    lost = 2 + 3 * GROUP_EVENTS

    def read_without_it(from_sequence: int, *, bytes_max: int) -> list[StoredRecord]:
        assert bytes_max > 1
        page = read(from_sequence, bytes_max=1)
        return read(page[0].next_sequence, bytes_max=1) if from_sequence == lost else page

    keys = open_index(log, MemoryRuns())
    monkeypatch.setattr(log, "read", read_without_it)
    with pytest.raises(StartRefused, match=f"record {lost + GROUP_EVENTS} does not follow"):
        await recovered(log, keys)
