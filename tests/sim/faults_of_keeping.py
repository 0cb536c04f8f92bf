"""Faults of retention and erasure, planted one at a time: the seeds must find each of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from engine.actors import recovery, retention
from engine.actors.eraser import Eraser, _step
from engine.actors.retention import Retention
from engine.actors.snapshotter import Snapshotter
from engine.core.adjustments import Adjustments
from engine.core.keeping import CheckpointChange
from engine.core.registry import Registry
from engine.core.times import INSTANT_US_MIN
from wal.archive import MemoryArchives


def _bodies_are_dropped_before_their_checkpoint(patch: pytest.MonkeyPatch) -> None:
    write = Retention.write_checkpoint

    async def late(self: Retention, fold: Any, position: int, *args: Any) -> None:
        known = self._registry.checkpoint
        self._registry.checkpoint = CheckpointChange(
            action="commit", checkpoint_id="early", position=position
        )
        try:
            await self.drop()
        finally:
            self._registry.checkpoint = known
        await write(self, fold, position, *args)

    patch.setattr(Retention, "write_checkpoint", late)


def _the_horizon_is_not_enforced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Registry, "horizon_us", INSTANT_US_MIN)


def _a_checkpoint_misses_its_last_record(patch: pytest.MonkeyPatch) -> None:
    folded_to = Retention._folded_to
    patch.setattr(Retention, "_folded_to", lambda self, position: folded_to(self, position - 1))


def _younger_events_are_dropped_too(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(retention, "newest_us", lambda _counting, _received_at_us: INSTANT_US_MIN)


def _what_is_dropped_is_not_archived(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryArchives, "write", lambda *_args: None)


def _archives_keep_the_names(patch: pytest.MonkeyPatch) -> None:
    async def skip(*_args: Any) -> None:
        return

    patch.setattr(Eraser, "_rewrite_archives", skip)


def _a_part_is_replaced_before_it_is_named(patch: pytest.MonkeyPatch) -> None:
    async def replace(self: Eraser, erasure: Any, action: str, copies: Any) -> None:
        for copy in copies:
            await self._alone(partial(self._log.replace, [copy.replacement]))
            await self._writer.append_control(_step(erasure, action, copy.named))

    patch.setattr(Eraser, "_replace", replace)


def _half_an_erasure_makes_one_customer_two(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery, "with_aliases", lambda events, _aliases, _sequence: events)


def _snapshots_older_than_an_erasure_stay(patch: pytest.MonkeyPatch) -> None:
    async def stay(_self: Snapshotter) -> None:
        return

    patch.setattr(Snapshotter, "renew", stay)


def _who_comes_back_joins_the_erased_ones_adjustment(patch: pytest.MonkeyPatch) -> None:
    rename = Adjustments.rename

    def keep(self: Adjustments, tenant: str, names: dict[str, str]) -> None:
        collecting = dict(self._collecting)
        rename(self, tenant, names)
        self._collecting = collecting

    patch.setattr(Adjustments, "rename", keep)


FAULTS_OF_KEEPING: list[Callable[[pytest.MonkeyPatch], None]] = [
    _bodies_are_dropped_before_their_checkpoint,
    _the_horizon_is_not_enforced,
    _a_checkpoint_misses_its_last_record,
    _younger_events_are_dropped_too,
    _what_is_dropped_is_not_archived,
    _archives_keep_the_names,
    _a_part_is_replaced_before_it_is_named,
    _half_an_erasure_makes_one_customer_two,
    _snapshots_older_than_an_erasure_stay,
    _who_comes_back_joins_the_erased_ones_adjustment,
]
