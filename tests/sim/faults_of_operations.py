"""Faults of backfills and imports, planted one at a time: the seeds must find each of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest

from engine.actors import operations
from engine.core.shard_state import ShardState


def _an_operations_rows_are_judged_by_the_present_watermark(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        ShardState,
        "_watermark",
        lambda _self, _partition, _series, counter, _operation: counter.watermark_us,
    )


def _watermarks_at_the_start_are_forgotten_by_snapshots(patch: pytest.MonkeyPatch) -> None:
    restore = ShardState.restore_partition

    def forget(self: ShardState, *args: Any) -> None:
        partition, rows, held, marks, *more = args
        kept: list[Any] = [(operation, [], counted) for operation, _, counted in marks]
        restore(self, partition, rows, held, kept, *more)

    patch.setattr(ShardState, "restore_partition", forget)


def _historic_rows_wait_like_late_ones(patch: pytest.MonkeyPatch) -> None:
    fold = ShardState.fold_events

    def plain(self: ShardState, events: Any, *args: Any, **kwargs: Any) -> Any:
        extra = {name: value for name, value in events.extra.items() if name != "historic"}
        return fold(self, events._replace(extra=extra), *args, **kwargs)

    patch.setattr(ShardState, "fold_events", plain)


def _a_backfill_begins_from_its_first_row_again(patch: pytest.MonkeyPatch) -> None:
    def from_the_first(rows: Any, *bounds: Any) -> Any:
        return islice(rows, *bounds) if len(bounds) == 1 else rows

    patch.setattr(operations, "islice", from_the_first)


def _rows_taken_are_counted_since_the_start_alone(patch: pytest.MonkeyPatch) -> None:
    restore = ShardState.restore_partition

    def forget(self: ShardState, *args: Any) -> None:
        partition, rows, held, marks, *more = args
        kept = [(operation, of, None) for operation, of, _ in marks]
        restore(self, partition, rows, held, kept, *more)

    patch.setattr(ShardState, "restore_partition", forget)


FAULTS_OF_OPERATIONS: list[Callable[[pytest.MonkeyPatch], None]] = [
    _an_operations_rows_are_judged_by_the_present_watermark,
    _watermarks_at_the_start_are_forgotten_by_snapshots,
    _historic_rows_wait_like_late_ones,
    _a_backfill_begins_from_its_first_row_again,
    _rows_taken_are_counted_since_the_start_alone,
]
