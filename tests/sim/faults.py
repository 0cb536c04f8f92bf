"""Faults of counting, correcting and recovering, planted one at a time: the seeds must find each of them.

Each is a mistake that someone could make in good faith.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.actors import recovery, snapshotter
from engine.actors.group import Group
from engine.actors.log_writer import LogWriter, Offer
from engine.actors.replays import Replays
from engine.core import adjustments
from engine.core.registry import Registry
from engine.core.shard_state import ShardState
from wal.log import LogStateUnknown, LogWriteFailed
from wal.memory_log import MemoryLog


def _acknowledge_before_commit(patch: pytest.MonkeyPatch) -> None:
    async def settled(_self: Offer) -> None:
        return

    patch.setattr(Offer, "settled", settled)


def _duplicate_does_not_wait_for_its_original(patch: pytest.MonkeyPatch) -> None:
    find = LogWriter._find
    patch.setattr(LogWriter, "_find", lambda self, key: (find(self, key)[0], None))


def _keys_of_a_failed_group_are_kept(patch: pytest.MonkeyPatch) -> None:
    fail = Group.fail

    def keep(self: Group, error: Any) -> None:
        LEAKED.update(self.keys)
        fail(self, error)

    known, lookup = LogWriter._known, LogWriter._lookup
    patch.setattr(Group, "fail", keep)
    patch.setattr(
        LogWriter,
        "_known",
        lambda self, keys: known(self, keys) | {k: LEAKED[k][:8] for k in keys if k in LEAKED},
    )
    patch.setattr(LogWriter, "_lookup", lambda self, key: lookup(self, key) or LEAKED.get(key))
    LEAKED.clear()


LEAKED: dict[bytes, bytes] = {}


def _recovery_folds_what_the_snapshot_holds(patch: pytest.MonkeyPatch) -> None:
    restore = recovery.Fold.restore

    def forget(self: Any, section_id: int, position: int, data: bytes) -> None:
        restore(self, section_id, position, data)
        self.partition_from = [0] * len(self.partition_from)

    patch.setattr(recovery.Fold, "restore", forget)


def _recovery_forgets_recent_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery, "add_keys", lambda keys, _parts, position: keys.add({}, position))


def _unknown_outcome_is_taken_for_a_failure(patch: pytest.MonkeyPatch) -> None:
    append = MemoryLog.append

    def lie(self: MemoryLog, drafts: Any) -> Any:
        try:
            return append(self, drafts)
        except LogStateUnknown as error:
            self.disk.broken = False
            raise LogWriteFailed(str(error)) from error

    patch.setattr(MemoryLog, "append", lie)


def _a_producers_fast_clock_moves_the_watermark(patch: pytest.MonkeyPatch) -> None:
    fold = ShardState.fold_events

    def fast(self: ShardState, *args: Any, received_at_us: int, **kwargs: Any) -> Any:
        return fold(self, *args, received_at_us=received_at_us + 1_000_000, **kwargs)

    patch.setattr(ShardState, "fold_events", fast)


def _late_events_are_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(adjustments.Adjustment, "add", lambda *_args: None)


def _a_snapshot_claims_more_than_it_holds(patch: pytest.MonkeyPatch) -> None:
    section = snapshotter.Section
    patch.setattr(
        snapshotter,
        "Section",
        lambda number, position, data: section(
            number, position + (1 if number >= recovery.PARTITION_SECTION else 0), data
        ),
    )


def _a_failed_commit_is_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Group, "fail", lambda self, _error: self.done.set())


def _settings_are_not_recorded(patch: pytest.MonkeyPatch) -> None:
    from engine.actors.supervisor import Meter

    async def skip(_self: Any, _writer: Any) -> None:
        return

    patch.setattr(Meter, "_record_settings", skip)
    real = Meter._start

    async def start(self: Meter, *nurseries: Any) -> Any:
        started = await real(self, *nurseries)
        for shard in self.shards:
            shard.state.rules.lateness_us = self.options.lateness_us
        return started

    patch.setattr(Meter, "_start", start)


def _a_revert_leaves_the_adjustment_counting(patch: pytest.MonkeyPatch) -> None:
    decide = adjustments.Adjustments.decide

    def keep(self: Any, adjustment_id: str, status: Any, **more: Any) -> None:
        if status == "reverted" and self.by_id[adjustment_id].status == "approved":
            return
        decide(self, adjustment_id, status, **more)

    patch.setattr(adjustments.Adjustments, "decide", keep)


def _a_replay_leaves_its_events_in_their_adjustment(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(adjustments.Adjustment, "remove", lambda _self, _sequences: None)


def _request_ids_are_forgotten_by_snapshots(patch: pytest.MonkeyPatch) -> None:
    restore = Registry.restore

    def forget(data: bytes) -> Registry:
        registry = restore(data)
        registry.adjustment_requests.clear()
        return registry

    patch.setattr(Registry, "restore", staticmethod(forget))


def _a_restored_value_is_not_fed(patch: pytest.MonkeyPatch) -> None:
    restore, watch = ShardState.restore_partition, ShardState._watch

    def unfed(self: ShardState, *args: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(ShardState, "_watch", lambda *_args: None)
            restore(self, *args)
        assert ShardState._watch is watch

    patch.setattr(ShardState, "restore_partition", unfed)


def _corrections_in_the_snapshot_are_folded_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        ShardState, "_concerns", lambda self, partition, *_args: partition in self.counters
    )


def _a_replay_applies_whatever_the_plan_is_now(patch: pytest.MonkeyPatch) -> None:
    apply = Replays.apply
    patch.setattr(
        Replays, "apply", lambda self, request, _expect, by: apply(self, request, None, by)
    )


def _late_events_after_a_decision_join_it(patch: pytest.MonkeyPatch) -> None:
    hold = adjustments.Adjustments.hold

    def join(self: Any, key: Any, end_us: int, event: Any, **more: Any) -> Any:
        for one in self.of_counter(key):
            if one.kind == "event" and one.status == "approved":
                one.add(event)
                return one
        return hold(self, key, end_us, event, **more)

    patch.setattr(adjustments.Adjustments, "hold", join)


FAULTS: list[Callable[[pytest.MonkeyPatch], None]] = [
    _acknowledge_before_commit,
    _duplicate_does_not_wait_for_its_original,
    _keys_of_a_failed_group_are_kept,
    _recovery_folds_what_the_snapshot_holds,
    _recovery_forgets_recent_keys,
    _unknown_outcome_is_taken_for_a_failure,
    _a_producers_fast_clock_moves_the_watermark,
    _late_events_are_dropped,
    _a_snapshot_claims_more_than_it_holds,
    _a_failed_commit_is_counted,
    _settings_are_not_recorded,
    _a_revert_leaves_the_adjustment_counting,
    _a_replay_leaves_its_events_in_their_adjustment,
    _request_ids_are_forgotten_by_snapshots,
    _a_restored_value_is_not_fed,
    _corrections_in_the_snapshot_are_folded_again,
    _a_replay_applies_whatever_the_plan_is_now,
    _late_events_after_a_decision_join_it,
]
