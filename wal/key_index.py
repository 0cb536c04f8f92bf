"""The key index: which keys the log has ever held, exactly, and each one's fingerprint.

Rules it keeps:
- It follows the log. `watermark` is a log position: every key of a record below it is in the runs, and it
  changes in the same transaction as the run that moved it. Keys after it are in memory and are fed again by
  recovery. So it may lag, and be deleted, and never be wrong.
- A lookup is exact: the filter only says where not to look, and a damaged block is an error, not "unknown".
- No call of the owner waits for a disk write. Merging is a `MergePlan`, whose slices run in a worker thread.
- Recovery *feeds* columns of many keys instead of adding them one by one; between the first feeding and `end_feed`
  nothing is looked up or added.
It must not know what a key or a fingerprint is made of, nor the log: positions are numbers.

Where a key is: *recent* (a dict that grows), *sealed* (the recent one before it, being flushed), the *runs*
(sorted, immutable, in tiers: four runs of a tier are merged into one of the next). One thread owns an index:

    index.add(keys, next_position)
    while (plan := index.begin_merge()) is not None:
        try:
            while plan.run_slice(): pass          # each in a worker thread
        finally:
            index.finish_merge(plan)              # after an error: installs nothing; try again later

Alternatives rejected (numbers: `bench/key_index.py`): inserting keys into a B+tree costs 20 µs each at ten
million; all keys in a dict cost 170 bytes each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from wal.key_filter import KeyFilter
from wal.key_merge import (
    FedKeys,
    Merged,
    MergePlan,
    PlanKind,
    Steps,
    collect_steps,
    compact_steps,
    drain_steps,
    filter_steps,
    flush_steps,
    take_entries,
)
from wal.run_blocks import (
    ENTRY_BYTES,
    LOG_ID_BYTES,
    RUN_ID_MAX,
    Manifest,
    RunInfo,
    decode_manifest,
    find_in_block,
)
from wal.runs import IndexDamaged, RunStore, RunStoreError

RECENT_KEYS_MAX: Final = 163_840
"""When recent is full. About 170 bytes each in memory. A dict grows at 174,763 entries, which stops its thread for
12 ms; at the step before, 87,382, it is 5 ms."""
RECENT_OVERRUN: Final = 4
"""`has_room` is False beyond this many times the maximum: merging can't keep up, and memory has a bound."""
TIER_RUNS: Final = 4
RUNS_CROWDED: Final = 24
"""With more runs than this, merging them goes before flushing: each is one more place to look."""
FED_PER_RECENT: Final = 4
"""A fed key takes less than a quarter of a recent one's memory, sorting it included: so many more make a run."""
PORTION_SLICES: Final = 8
"""Slices of a merge between which a flush may go first."""
PORTION_BYTES: Final = PORTION_SLICES * (2 << 20)
"""A slice writes about one MiB; twice that at the most."""


class IndexStatistics(NamedTuple):
    """A frozen picture, for metrics. `filter_bytes` and `store_bytes` are in bytes, `position`s in the log."""

    stored_keys: int
    recent_keys: int
    sealed_keys: int
    watermark: int
    position: int
    runs: tuple[RunInfo, ...]
    filter_bytes: int
    store_bytes: int
    flushes_done: int
    compactions_done: int
    merges_failed: int


class _Compaction(NamedTuple):
    """A merge of runs under way; portions of it alternate with flushes."""

    output_id: int
    steps: Steps


class _Growth(NamedTuple):
    """A larger filter being filled, a portion at a time; what is flushed meanwhile goes into both."""

    key_filter: KeyFilter
    run_ids: frozenset[int]
    """What it reads: not to be deleted before it is done."""
    steps: Steps


class KeyIndex:
    """See the module. Not thread-safe: one owner; only `MergePlan.run_slice` runs elsewhere."""

    def __init__(self, store: RunStore, manifest: Manifest, recent_keys_max: int) -> None:
        self.reset_because: str | None = None
        self._store = store
        self._manifest = manifest
        self._recent_keys_max = recent_keys_max
        self._filter: KeyFilter | None = None
        self._recent: dict[bytes, bytes] = {}
        self._sealed: dict[bytes, bytes] | None = None
        self._retired: dict[bytes, bytes] = {}
        self._fed = FedKeys()
        self._sealed_fed: FedKeys | None = None
        self._position = self._sealed_position = manifest.watermark
        self._newest_first = [run.run_id for run in reversed(manifest.runs)]
        self._next_run_id = manifest.next_run_id
        self._plan: MergePlan | None = None
        self._compaction: _Compaction | None = None
        self._growth: _Growth | None = None
        self._garbage_unknown = True
        self._failed_last = False
        self._flushes_done = self._compactions_done = self._merges_failed = 0

    @classmethod
    def open(
        cls,
        store: RunStore,
        *,
        log_id: bytes,
        epoch: int,
        head_sequence: int,
        recent_keys_max: int = RECENT_KEYS_MAX,
    ) -> KeyIndex:
        """The index of this log. Feed it the keys of all records from `watermark` on before using it.

        Reads and checks every block to build the filter. What cannot be used (no manifest, another log or
        epoch, damage, a watermark beyond the log's end `head_sequence`) is wiped: then the watermark is 0
        and `reset_because` says why. Raises RunStoreFailed or RunStoreFull.
        """
        assert len(log_id) == LOG_ID_BYTES
        assert recent_keys_max >= 1
        fresh = Manifest(log_id, epoch, 0, 1, ())
        store.refresh()
        try:
            manifest, because = _usable_manifest(store, fresh, head_sequence)
            index = cls(store, manifest or fresh, recent_keys_max)
            if manifest is not None:
                index._build_filter()
                index._next_run_id = max([manifest.next_run_id, *(i + 1 for i in store.run_ids())])
        except IndexDamaged as error:
            manifest, because = None, str(error)
            index = cls(store, fresh, recent_keys_max)
        if manifest is None:
            store.wipe()
            index.reset_because = because
        return index

    @property
    def watermark(self) -> int:
        """The log position below which every record's keys are stored: recovery feeds from here."""
        return self._manifest.watermark

    @property
    def stored_keys(self) -> int:
        """Keys in the runs."""
        return sum(run.entries for run in self._manifest.runs)

    @property
    def recent_keys(self) -> int:
        """Keys in memory: recent and sealed."""
        return len(self._recent) + len(self._sealed or ()) + self._fed_keys

    @property
    def _fed_keys(self) -> int:
        return self._fed.count + (self._sealed_fed.count if self._sealed_fed is not None else 0)

    @property
    def is_full(self) -> bool:
        """Whether it is time to `seal`."""
        most = self._recent_keys_max
        return len(self._recent) >= most or self._fed.count >= most * FED_PER_RECENT

    @property
    def feeds_a_run(self) -> bool:
        """Whether more was fed than may become recent."""
        return self._fed.count >= self._recent_keys_max

    @property
    def fits_as_recent(self) -> bool:
        """Whether what was fed may become recent: up to twice what `has_room` allows, which then says False."""
        return self.recent_keys <= self._recent_keys_max * RECENT_OVERRUN * 2

    def has_room(self, keys: int) -> bool:
        """Whether that many more keys may be added. Ask before committing them; False: refuse for now."""
        fed = self._fed_keys
        one_by_one = self.recent_keys - fed + keys
        return one_by_one + fed // FED_PER_RECENT <= self._recent_keys_max * RECENT_OVERRUN

    def lookup(self, key: bytes) -> bytes | None:
        """The fingerprint of a key that was added, else None. Raises IndexDamaged."""
        fingerprint = self._recent.get(key)
        if fingerprint is None and self._sealed is not None:
            fingerprint = self._sealed.get(key)
        if fingerprint is not None or self._filter is None or not self._filter.may_hold(key):
            return fingerprint
        return self._lookup_stored(key)

    def suspects(self, keys: bytes) -> list[int]:
        """Of concatenated 16-byte keys, the indexes of those that are perhaps in the runs.

        The others are surely not there; they may be in memory (`known` looks at both).
        """
        return self._filter.suspects(keys) if self._filter is not None else []

    def known(self, keys: Collection[bytes]) -> dict[bytes, bytes]:
        """Of many keys those that were added, with their fingerprints. Raises IndexDamaged."""
        assert not self._fed_keys, "end the feeding first"
        found: dict[bytes, bytes] = {}
        for memory in (self._sealed, self._recent):
            if memory and not memory.keys().isdisjoint(keys):
                found.update((key, memory[key]) for key in memory.keys() & keys)
        suspects = self.suspects(b"".join(keys))
        if not suspects:
            return found
        in_order = list(keys)
        for at in suspects:
            key = in_order[at]
            if key not in found and (stored := self._lookup_stored(key)) is not None:
                found[key] = stored
        return found

    def add(
        self,
        keys_to_fingerprints: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]],
        next_position: int,
    ) -> None:
        """Take in the keys of records that are durable in the log up to `next_position`.

        Of a fingerprint the runs keep the first FINGERPRINT_BYTES, so that a lookup may give all of it or those.
        """
        assert next_position >= self._position, "the log only grows"
        assert not self._fed.count, "end the feeding first"
        self._recent.update(keys_to_fingerprints)
        self._position = next_position

    def feed(self, keys: bytes, fingerprints: bytes, next_position: int) -> None:
        """As `add`, of concatenated keys and as many fingerprints of one length: no object per key is made.

        For recovery: call `end_feed` before keys are looked up or added.
        """
        assert not self._recent, "keys are fed to an index before any is added"
        assert next_position >= self._position, "the log only grows"
        self._fed.add(keys, fingerprints)
        self._position = next_position

    def end_feed(self) -> None:
        """What was fed and is in no run yet becomes recent (and sealed, if a flush of it did not succeed)."""
        assert self._plan is None, "finish the last plan first"
        if self._sealed_fed is not None:
            self._sealed, self._sealed_fed = self._sealed_fed.as_recent(), None
        if self._fed.count:
            self._recent, self._fed = self._fed.as_recent(), FedKeys()

    def seal(self) -> bool:
        """Set the recent keys aside for the next flush. False: there is nothing, or one is waiting."""
        is_waiting = self._sealed is not None or self._sealed_fed is not None
        if is_waiting or self._position == self._sealed_position:
            return False
        if self._fed.count:
            self._sealed_fed, self._fed = self._fed, FedKeys()
        else:
            self._sealed, self._recent = self._recent, {}
        self._sealed_position = self._position
        return True

    def begin_merge(self) -> MergePlan | None:
        """The next piece of work, or None. Only one at a time: `finish_merge` it before the next.

        Seals the recent keys if they are full. Raises RunStoreFailed, RunStoreFull or IndexDamaged.
        """
        assert self._plan is None, "finish the last plan first"
        if self.is_full:
            self.seal()  # here too: else keys would pile up behind a long merge, portion after portion
        if self._failed_last:
            self._store.prepare(0)  # shows what a failed write left, and mends the store
        garbage = self._find_garbage()
        inputs = self._compaction_inputs()
        compacts = self._compaction is not None or inputs is not None
        crowded = len(self._manifest.runs) > RUNS_CROWDED
        is_sealed = self._sealed is not None or self._sealed_fed is not None
        if self._retired:
            self._plan = MergePlan(PlanKind.DRAIN, drain_steps(self._retired))
        elif garbage and (self._failed_last or not is_sealed):
            # After a failure before all else: on a full disk it makes the room that a flush needs.
            self._store.prepare(0)
            slices_max = None if self._failed_last else PORTION_SLICES
            self._plan = MergePlan(
                PlanKind.COLLECT, collect_steps(self._store, garbage), slices_max
            )
        elif is_sealed and not (crowded and compacts):
            self._plan = self._plan_flush()
        elif not (crowded and compacts) and self._is_filter_to_grow():
            self._plan = self._plan_growth()
        elif compacts:
            self._plan = self._plan_compaction(inputs)
        return self._plan

    def finish_merge(self, plan: MergePlan) -> None:
        """Install what the plan has done; a plan that failed or was stopped early installs nothing.

        Raises RunStoreFailed: nothing is installed, the work is done again by a later plan.
        """
        assert self._plan is plan
        self._plan = None
        self._failed_last = plan.is_failed
        self._garbage_unknown = self._garbage_unknown or plan.kind is not PlanKind.DRAIN
        if plan.kind is PlanKind.COMPACT and (plan.is_done or plan.is_failed):
            self._compaction = None
        if plan.kind is PlanKind.GROW and (plan.is_done or plan.is_failed):
            growth, self._growth = self._growth, None
            if plan.is_done and growth is not None:
                self._filter = growth.key_filter
        if plan.is_failed:
            self._merges_failed += 1
            return
        try:
            # First the view, then what relies on it.
            self._store.refresh()
        except RunStoreError:
            self._failed_last = True
            self._merges_failed += 1
            raise
        if plan.merged is not None:
            self._install(plan.kind, plan.merged)

    def settle(self) -> None:
        """Do all pending work here and now. For recovery and tools, not beside traffic. Raises like a plan."""
        while (plan := self.begin_merge()) is not None:
            try:
                while plan.run_slice():
                    pass
            finally:
                self.finish_merge(plan)

    def reset(self) -> KeyIndex:
        """After IndexDamaged: an empty index on the emptied store. Feed it the whole log; drop this one."""
        assert self._plan is None, "finish the last plan first"
        self._store.wipe()
        fresh = Manifest(self._manifest.log_id, self._manifest.epoch, 0, 1, ())
        return KeyIndex(self._store, fresh, self._recent_keys_max)

    def statistics(self) -> IndexStatistics:
        """A picture of now."""
        return IndexStatistics(
            stored_keys=self.stored_keys,
            recent_keys=len(self._recent) + self._fed.count,
            sealed_keys=self.recent_keys - len(self._recent) - self._fed.count,
            watermark=self.watermark,
            position=self._position,
            runs=self._manifest.runs,
            filter_bytes=self._filter.size_bytes if self._filter is not None else 0,
            store_bytes=self._store.size_bytes(),
            flushes_done=self._flushes_done,
            compactions_done=self._compactions_done,
            merges_failed=self._merges_failed,
        )

    def close(self) -> None:
        """Release the store. Keys in memory are in the log."""
        self._store.close()

    def _lookup_stored(self, key: bytes) -> bytes | None:
        find_block = self._store.find_block
        for run_id in self._newest_first:
            fingerprint = find_in_block(run_id, key, find_block(run_id, key))
            if fingerprint is not None:
                return fingerprint
        return None

    def _plan_flush(self) -> MergePlan:
        if self._sealed_fed is not None:
            count, parts = self._sealed_fed.count, self._sealed_fed.sorted_parts()
        else:
            assert self._sealed is not None
            count, parts = len(self._sealed), take_entries(self._sealed)
        self._store.prepare(count * ENTRY_BYTES)
        steps = flush_steps(
            self._store,
            self._manifest,
            parts,
            count,
            self._sealed_position,
            run_id=self._new_run_id(),
            key_filter=self._filter,
            growing=None if self._growth is None else self._growth.key_filter,
        )
        return MergePlan(PlanKind.FLUSH, steps)

    def _plan_compaction(self, inputs: tuple[RunInfo, ...] | None) -> MergePlan:
        self._store.prepare(PORTION_BYTES)
        if self._compaction is None:
            assert inputs is not None
            run_id = self._new_run_id()
            # Flushes go on between the portions: the manifest to change is the one at the end.
            steps = compact_steps(self._store, inputs, run_id, lambda: self._manifest)
            self._compaction = _Compaction(run_id, steps)
        return MergePlan(PlanKind.COMPACT, self._compaction.steps, PORTION_SLICES)

    def _is_filter_to_grow(self) -> bool:
        if self._growth is not None:
            return True
        return self._filter is not None and _with_room(self.stored_keys) > self._filter.keys_max

    def _plan_growth(self) -> MergePlan:
        """Not when it is full: to read all keys takes a second for every few millions, and flushes can't wait for that."""
        if self._growth is None:
            runs, larger = self._manifest.runs, KeyFilter(_with_room(self.stored_keys))
            steps = filter_steps(self._store, runs, larger)
            self._growth = _Growth(larger, frozenset(run.run_id for run in runs), steps)
        return MergePlan(PlanKind.GROW, self._growth.steps, PORTION_SLICES)

    def _compaction_inputs(self) -> tuple[RunInfo, ...] | None:
        """The oldest runs of the lowest tier that has enough of them. Tiers never rise with age's order."""
        for tier in sorted({run.tier for run in self._manifest.runs}):
            runs = [run for run in self._manifest.runs if run.tier == tier]
            if len(runs) >= TIER_RUNS:
                return tuple(runs[:TIER_RUNS])
        return None

    def _find_garbage(self) -> list[int]:
        """Runs that neither the manifest in memory nor the one on disk names, nor the merge under way.

        They differ when a write failed but took effect; a run that either names must stay.
        """
        if not self._garbage_unknown:
            return []
        live = {run.run_id for run in self._manifest.runs}
        on_disk = self._store.manifest()
        if on_disk is not None:
            live |= {run.run_id for run in decode_manifest(on_disk).runs}
        if self._compaction is not None:
            live.add(self._compaction.output_id)
        if self._growth is not None:
            live |= self._growth.run_ids
        garbage = [run_id for run_id in self._store.run_ids() if run_id not in live]
        self._garbage_unknown = bool(garbage)
        return garbage

    def _install(self, kind: PlanKind, merged: Merged) -> None:
        self._manifest = merged.manifest
        self._newest_first = [run.run_id for run in reversed(merged.manifest.runs)]
        if kind is PlanKind.FLUSH:
            self._retired, self._sealed = self._sealed or {}, None
            self._sealed_fed = None
            self._filter = merged.key_filter
            self._flushes_done += 1
        else:
            self._compactions_done += 1

    def _build_filter(self) -> None:
        """Fill a new filter from all runs, which checks every block of them."""
        if not self._manifest.runs:
            return
        self._filter = KeyFilter(_with_room(self.stored_keys))
        for _ in filter_steps(self._store, self._manifest.runs, self._filter):
            pass

    def _new_run_id(self) -> int:
        run_id = self._next_run_id
        assert 1 <= run_id <= RUN_ID_MAX
        self._next_run_id += 1
        return run_id


def _usable_manifest(
    store: RunStore, fresh: Manifest, head_sequence: int
) -> tuple[Manifest | None, str | None]:
    """The stored manifest if it belongs to this log as `fresh` describes it, else why not."""
    data = store.manifest()
    if data is None:
        return None, store.wiped_because
    manifest = decode_manifest(data)
    if (manifest.log_id, manifest.epoch) != (fresh.log_id, fresh.epoch):
        return None, "the key index belongs to another log, or to the log before a restore"
    if manifest.watermark > head_sequence:
        return None, (
            f"the key index knows the log up to {manifest.watermark}, but it ends at {head_sequence}"
        )
    return manifest, None


def _with_room(keys: int) -> int:
    """How many keys a filter of so many is to have room for; from there on a larger one is begun."""
    return keys + keys // 7 + 1
