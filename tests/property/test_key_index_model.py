"""The key index against a dict: any order of adding, sealing, slices, failures, crashes and reopening.

A crash keeps what the store holds and loses what is in memory; then the keys from the watermark on are fed
again, as recovery does from the log. Memory stores make thousands of steps cheap; the contract tests make them
equal to the real one, and one short run here uses LMDB itself. Blocks and slices are made tiny, so that a few
dozen keys have many of each.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.helpers.filled_index import Keys, open_index
from wal import key_index, key_merge
from wal.key_index import KeyIndex
from wal.key_merge import MergePlan
from wal.lmdb_runs import LmdbRuns
from wal.memory_runs import MemoryRuns
from wal.runs import RunStore, RunStoreFailed, RunStoreFull

RECENT_KEYS_MAX = 20
PROBES = 25


class KeyIndexModel(RuleBasedStateMachine):
    """`log` is the truth: groups of keys with the position after them."""

    uses_lmdb = False

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(key_merge, "BLOCK_ENTRIES_MAX", 3)
        self.patches.setattr(key_merge, "READ_BLOCKS", 2)
        self.patches.setattr(key_merge, "SORT_KEYS_MAX", 7)
        self.patches.setattr(key_merge, "JOIN_KEYS_MAX", 2)
        self.patches.setattr(key_merge, "DELETE_BLOCKS", 2)
        self.patches.setattr(key_merge, "DRAIN_KEYS", 5)
        self.patches.setattr(key_index, "PORTION_SLICES", 3)
        self.log: list[tuple[int, Keys]] = []
        self.keys: Keys = {}
        self.position = 0
        self.plan: MergePlan | None = None
        self.watermark = 0
        self.serial = 0
        self.memory = MemoryRuns()
        self.directory = tempfile.TemporaryDirectory() if self.uses_lmdb else None
        self.store: RunStore = self.memory

    def teardown(self) -> None:
        self.patches.undo()
        self.store.close()
        if self.directory is not None:
            self.directory.cleanup()

    @initialize()
    def start(self) -> None:
        self.index = self._open()
        assert self.index.watermark == 0

    def _open(self) -> KeyIndex:
        self.store.close()
        if self.directory is not None:
            self.store = LmdbRuns(Path(self.directory.name) / "runs", map_bytes_min=256 << 10)
        return open_index(self.store, head_sequence=self.position, recent_keys_max=RECENT_KEYS_MAX)

    @rule(
        count=st.integers(0, 2 * RECENT_KEYS_MAX),
        leading=st.sampled_from([b"", b"\0" * 8, b"\xff" * 8, b"\xff" * 14, b"same-key"]),
        gap=st.integers(0, 3),
    )
    def add(self, count: int, leading: bytes, gap: int) -> None:
        more: Keys = {}
        for _ in range(count):
            self.serial += 1
            key = (leading + (self.serial * 2654435761 % 2**32).to_bytes(4, "big") * 4)[:16]
            if key not in self.keys:
                more[key] = self.serial.to_bytes(8, "big")
        self.position += count + gap
        self.log.append((self.position, more))
        self.keys |= more
        self.index.add(more, self.position)

    @rule()
    def seal(self) -> None:
        self.index.seal()

    @precondition(lambda self: self.plan is None)
    @rule(count=st.integers(1, RECENT_KEYS_MAX), times=st.integers(1, 4))
    def flush_several(self, count: int, times: int) -> None:
        """Runs enough that a merge of them is due, and not done."""
        for _ in range(times):
            self.add(count, b"", 0)
            self.index.seal()
            while self.plan is None and self.index.statistics().sealed_keys:
                self.begin()
                self.slices(1000)

    @precondition(lambda self: self.plan is None)
    @rule()
    def begin(self) -> None:
        self.plan = self.index.begin_merge()

    @precondition(lambda self: self.plan is not None)
    @rule(slices=st.integers(1, 20))
    def slices(self, slices: int) -> None:
        if self.plan is None:
            return
        try:
            while slices and self.plan.run_slice():
                slices -= 1
        except (RunStoreFull, RunStoreFailed):
            assert self.plan.is_failed
        if slices or self.plan.is_failed:
            self.finish()

    @precondition(lambda self: self.plan is not None)
    @rule()
    def finish(self) -> None:
        """Also of a plan that is not over: the owner stops early when the process is to end."""
        assert self.plan is not None
        self.index.finish_merge(self.plan)
        self.plan = None
        assert self.index.watermark >= self.watermark
        self.watermark = self.index.watermark

    @precondition(lambda self: self.plan is None)
    @rule()
    def settle(self) -> None:
        try:
            self.index.settle()
        except (RunStoreFull, RunStoreFailed):
            return
        named = sorted(run.run_id for run in self.index.statistics().runs)
        assert self.store.run_ids() == named
        assert self.index.statistics().sealed_keys == 0
        self.watermark = self.index.watermark

    @rule(
        passing=st.integers(0, 3),
        error=st.sampled_from([RunStoreFull("full"), RunStoreFailed("failed")]),
        took_effect=st.booleans(),
    )
    def a_write_will_fail(self, passing: int, error: RunStoreFull, took_effect: bool) -> None:
        took_effect = took_effect and isinstance(error, RunStoreFailed)
        self.memory.fail_next_writes(*[None] * passing, (error, took_effect))

    @rule(feeds=st.booleans(), merges=st.booleans(), stops=st.booleans())
    def crash_and_recover(self, feeds: bool, merges: bool, stops: bool) -> None:
        """`feeds`: as recovery does, in columns, perhaps with merges beside it, the last of them unfinished."""
        self.plan = None
        self.index = self._open()
        assert self.index.reset_because is None
        assert self.index.watermark >= self.watermark
        self.watermark = self.index.watermark
        assert self.watermark == 0 or self.watermark in {position for position, _ in self.log}
        for position, keys in self.log:
            if position <= self.watermark:
                continue
            if not feeds:
                self.index.add(keys, position)
                continue
            # The log has longer fingerprints than the index keeps.
            fingerprints = b"".join(fingerprint + b"the rest" for fingerprint in keys.values())
            self.index.feed(b"".join(keys), fingerprints, position)
            if merges:
                self.index.seal()
                self.merge_beside(stops)
        self.index.end_feed()
        self.watermark = self.index.watermark

    def merge_beside(self, stops: bool) -> None:
        plan = self.index.begin_merge()
        if plan is None:
            return
        try:
            while plan.run_slice():
                if stops:
                    break
        except (RunStoreFull, RunStoreFailed):
            pass
        self.index.finish_merge(plan)

    @invariant()
    def every_key_is_known_with_its_fingerprint_and_no_other_is(self) -> None:
        if not self.keys:
            return
        keys = list(self.keys)
        strangers = [bytes(reversed(key[1:])) + b"?" for key in keys[:PROBES]]
        strangers = [key for key in strangers if key not in self.keys]
        assert self.index.known([*keys, *strangers]) == self.keys
        step = max(1, len(keys) // PROBES)
        for key in keys[::step]:
            assert self.index.lookup(key) == self.keys[key]
        for key in strangers:
            assert self.index.lookup(key) is None


class LmdbKeyIndexModel(KeyIndexModel):
    """The same on the real store, whose writes are not made to fail here."""

    uses_lmdb = True


TestKeyIndexInMemory = KeyIndexModel.TestCase
TestKeyIndexInMemory.settings = settings(stateful_step_count=60)


@pytest.mark.slow
@pytest.mark.lmdb
def test_the_index_on_lmdb_agrees_with_a_dict() -> None:
    run_state_machine_as_test(
        LmdbKeyIndexModel,
        settings=settings(
            max_examples=8, stateful_step_count=30, suppress_health_check=list(HealthCheck)
        ),
    )
