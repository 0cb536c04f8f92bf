"""Fills a data directory with a log of many events, fast, so that a benchmark can start from a large store.

Rules it keeps: the records are what the server would have written (envelopes, parts, chain), made by the same
encoders; only the columns that don't matter to a benchmark repeat: keys are random, texts of a group are those of
the group before. Indexes and snapshots are not written: the server's own recovery builds them.
It must not know HTTP.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.actors.recovery import genesis_drafts
from engine.core.partitions import partition_of
from engine.core.records import (
    FINGERPRINT_BYTES,
    KEY_BYTES,
    PartKind,
    RecordType,
    SettingsChange,
    TenantEvents,
    encode_counting,
    encode_erasable,
)
from gateway.data_directory import DataDirectory
from gateway.system import SystemClock
from wal.lmdb_log import LmdbLog
from wal.log import Draft, DraftPart

TENANT: Final = "bench"
GROUP_EVENTS: Final = 10_000
DRAFTS_PER_APPEND: Final = 8
LATENESS_US: Final = 48 * 3600 * 1_000_000


@dataclass(frozen=True)
class Content:
    """What the events are about: `metrics * customers` counters."""

    events: int
    customers: int
    metrics: int
    age_us: int = 0
    """How long ago all of them happened and were received."""

    @property
    def counters(self) -> int:
        """Counters that the events make, if there are enough of them."""
        return min(self.events, self.customers * self.metrics)


def preload(directory: Path, content: Content) -> float:
    """Write the log; the data directory must be new. Returns the seconds it took."""
    began = time.perf_counter()
    data = DataDirectory(directory)
    data.create()
    clock = SystemClock()
    log = LmdbLog(data.log_path)
    settings = SettingsChange(lateness_us=LATENESS_US, late_policy="review", actor="system:start")
    genesis_drafts(log, os.urandom(16), "bench", settings, clock)
    drafts: list[Draft] = []
    for draft in _drafts(content, clock.now_us() - content.age_us):
        drafts.append(draft)
        if len(drafts) == DRAFTS_PER_APPEND:
            log.append(drafts)
            drafts = []
    if drafts:
        log.append(drafts)
    log.close()
    return time.perf_counter() - began


def _drafts(content: Content, now_us: int) -> Iterator[Draft]:
    made = 0
    texts: list[str] = []
    while made < content.events:
        count = min(GROUP_EVENTS, content.events - made)
        if len(texts) != count:
            texts = [f"preloaded-{number:08d}" for number in range(count)]
        part = _group(content, made, count, texts, now_us)
        parts = (
            DraftPart(PartKind.COUNTING, encode_counting(part)),
            DraftPart(PartKind.ERASABLE, encode_erasable(part)),
        )
        yield Draft(RecordType.EVENTS, count, now_us, parts)
        made += count


def _group(content: Content, first: int, count: int, texts: list[str], now_us: int) -> TenantEvents:
    counters = range(first, first + count)
    customers = [f"customer-{n // content.metrics % content.customers:07d}" for n in counters]
    nothing = [None] * count
    return TenantEvents(
        TENANT,
        [f"metric-{n % content.metrics}" for n in counters],
        customers,
        [1_000_000] * count,
        [now_us - 1000] * count,
        [partition_of(TENANT, customer) for customer in customers],
        [
            os.urandom(KEY_BYTES * count)
        ],  # joined on encoding: one random column is as good as many values
        [os.urandom(FINGERPRINT_BYTES * count)],
        [0] * count,
        texts,
        nothing,
        nothing,
        {},
    )
