"""How many events of a tenant lie in a range of event time, by metric, without reading them.

Rules it keeps: exact, late events too; whole minutes are counted by the index's cells, the range's two ends by the
blocks of events around them. Reads in slices in a thread. It must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np

from engine.actors.index_reader import Sources
from engine.core.extents import EventFilter, Extent, cells_of
from engine.core.summaries import ALL_CUSTOMERS
from engine.core.times import MINUTE_US

_SLICE_EXTENTS: Final = 16


async def count_events(
    tenant: str, metrics: frozenset[str] | None, start_us: int, end_us: int, sources: Sources
) -> dict[str, int]:
    """Events with start_us <= ts < end_us by metric (None: every metric); those without any are left out."""
    wanted = EventFilter(tenant, None, None, None, start_us, end_us)
    counts: dict[str, int] = {}
    for first in range(0, len(sources.extents), _SLICE_EXTENTS):
        extents = sources.extents[first : first + _SLICE_EXTENTS]
        await sources.run_blocking(partial(_count_extents, counts, wanted, metrics, extents))
    return counts


def _count_extents(
    counts: dict[str, int],
    wanted: EventFilter,
    metrics: frozenset[str] | None,
    extents: Sequence[Extent],
) -> None:
    first_minute = -(-wanted.start_us // MINUTE_US)
    end_minute = wanted.end_us // MINUTE_US
    if first_minute > end_minute:  # within one minute
        ends = [(wanted.start_us, wanted.end_us)]
    else:
        ends = [
            (wanted.start_us, first_minute * MINUTE_US),
            (end_minute * MINUTE_US, wanted.end_us),
        ]
    for extent in extents:
        if not wanted.may_match(extent.summary):
            continue
        scopes, _series = extent.series()
        meant = {
            number: metric
            for number, (tenant, metric) in enumerate(scopes)
            if tenant == wanted.tenant and (metrics is None or metric in metrics)
        }
        for metric in meant.values():
            cells = cells_of(extent, (wanted.tenant, metric), ALL_CUSTOMERS)
            if cells is not None:
                inside = (cells.minute >= first_minute) & (cells.minute < end_minute)
                _add(counts, metric, int(cells.events[inside].sum()))
        for from_us, until_us in ends:
            if from_us < until_us and extent.summary.overlaps(from_us, until_us):
                _count_rows(counts, meant, extent, from_us, until_us)


def _count_rows(
    counts: dict[str, int], meant: dict[int, str], extent: Extent, from_us: int, until_us: int
) -> None:
    """Count a part of a minute event by event."""
    summary = extent.summary
    _scopes, series = extent.series()
    blocks = np.flatnonzero((summary.last_ts_us >= from_us) & (summary.first_ts_us < until_us))
    for block in blocks.tolist():
        events = extent.events(block)
        inside = (events.ts_us >= from_us) & (events.ts_us < until_us)
        by_scope = np.bincount(series.scope[events.series[inside]])
        for number, metric in meant.items():
            if number < len(by_scope):
                _add(counts, metric, int(by_scope[number]))


def _add(counts: dict[str, int], metric: str, count: int) -> None:
    if count:
        counts[metric] = counts.get(metric, 0) + count
