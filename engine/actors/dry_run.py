"""What would become of rows if they were imported now: new, late, duplicate, conflict or invalid. Changes nothing.

Rules it keeps: the same checks, the same key look-up and the same rule of lateness as the real thing; a key that came
earlier in the same dry run is a duplicate. It must not know where rows come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Final, Literal, NamedTuple

from engine.actors.supervisor import Meter
from engine.core.events import KEY_REUSED, EventLimits, Refusal
from engine.core.row_columns import TenantRows
from engine.core.rows_in_bulk import Taker
from engine.core.rules import Scope
from engine.core.sent_rows import Meant, SentRow, taken

_KEY, _FINGERPRINT = 5, 6  # columns of engine.core.records.Row
Fate = Literal["new", "late", "duplicate", "conflict", "invalid"]
FATES: Final[tuple[Fate, ...]] = ("new", "late", "duplicate", "conflict", "invalid")
KEYS_MAX: Final = 20_000_000
"""Keys of one dry run in memory, some 3 GB; later ones are told apart from the log's only."""


class Judged(NamedTuple):
    """A row's fate; `error` of a conflict or an invalid row."""

    line: int
    fate: Fate
    error: str | None = None


class Fates(NamedTuple):
    """What would become of many rows: how many of each kind, and (line, error) of those that would fail."""

    new: int
    late: int
    """Not among the new ones."""
    duplicates: int
    errors: list[tuple[int, str]]


class DryRun:
    """Judges rows in their order, one by one or many at a time."""

    def __init__(
        self, meter: Meter, meant: Meant, limits: EventLimits, *, historic: bool = False
    ) -> None:
        self._meter = meter
        self._meant = meant
        self._limits = limits
        self._taker = Taker(meant, limits)
        self._historic = historic
        self._seen: dict[bytes, bytes] = {}

    def judge(self, row: SentRow) -> Judged:
        """The fate of a row. Raises Unavailable while recovering, or when the key index is damaged."""
        now_us = self._meter.clock.now_us()
        made = taken(row.event, self._meant, now_us, self._limits)
        if isinstance(made, Refusal):
            return Judged(row.line, "invalid", made.error)
        tenant, (metric, customer, _micros, ts_us, partition, key, fingerprint, *_texts) = made
        known = self._before(key, fingerprint)
        if known is not None:
            return Judged(row.line, known, KEY_REUSED if known == "conflict" else None)
        if self._historic:
            return Judged(row.line, "new")
        state = self._meter.shards[self._meter.owner[partition]].state
        at_us = now_us if ts_us is None else ts_us
        is_late = state.is_late(partition, (tenant, metric, customer), at_us)
        return Judged(row.line, "late" if is_late else "new")

    def judge_all(self, rows: Sequence[SentRow], *, nul: bool) -> Fates:
        """The fates of rows, as `judge` has them. Raises like it. `nul`: a name may hold U+0000."""
        now_us = self._meter.clock.now_us()
        tenants, refused = self._taker.take(rows, now_us, nul=nul)
        errors = [(line, why.error) for line, why in refused]
        new = late = duplicates = 0
        for tenant, of in tenants.items():
            fates = self._repeats(of)
            late_of = 0 if self._historic else self._late(tenant, of, fates, now_us)
            fresh = fates.count(None) if fates else len(of.lines)
            new += fresh - late_of
            late += late_of
            duplicates += fates.count("duplicate")
            errors += [
                (line, KEY_REUSED)
                for line, fate in zip(of.lines, fates, strict=False)
                if fate == "conflict"
            ]
        return Fates(new, late, duplicates, sorted(errors))

    def _before(self, key: bytes, fingerprint: bytes) -> Literal["duplicate", "conflict"] | None:
        """Whether the key came before, in this dry run or in the log; if not, it has now."""
        known = self._seen.get(key) or self._meter.started.writer.known_fingerprint(key)
        if known is not None:
            return "duplicate" if fingerprint[: len(known)] == known else "conflict"
        if len(self._seen) < KEYS_MAX:
            self._seen[key] = fingerprint
        return None

    def _repeats(self, of: TenantRows) -> list[Literal["duplicate", "conflict"] | None]:
        """What each row is by its key, None: new; nothing at all if all are new."""
        keys, fingerprints = of.columns[_KEY], of.columns[_FINGERPRINT]
        fresh: dict[bytes, bytes] = dict(zip(keys, fingerprints, strict=True))
        if (
            len(fresh) == len(keys) <= KEYS_MAX - len(self._seen)
            and self._seen.keys().isdisjoint(fresh)
            and self._meter.started.writer.are_all_new(fresh)
        ):
            self._seen.update(fresh)
            return []
        return list(map(self._before, keys, fingerprints))

    def _late(self, tenant: str, of: TenantRows, fates: Sequence[str | None], now_us: int) -> int:
        """How many of the new rows would be late: those whose period is closed, or that the watermark left behind."""
        metrics, customers, _, times_us, partitions = of.columns[:_KEY]
        shards, owner, late = self._meter.shards, self._meter.owner, 0
        scopes: dict[str, Scope] = {}
        for metric, customer, time_us, partition, fate in zip(
            metrics,
            customers,
            times_us,
            partitions,
            fates or repeat(None, len(metrics)),
            strict=True,
        ):
            if fate is not None:
                continue
            ts_us = now_us if time_us is None else time_us
            state = shards[owner[partition]].state
            scope = scopes.get(metric)
            if scope is None:
                scope = scopes[metric] = state.rules.scope(tenant, metric)
            series = (tenant, metric, customer)
            counter = state.counters[partition].get(series)
            if ts_us < scope.closed_until_us or (counter is not None and ts_us < counter.start_us):
                late += state.is_late(partition, series, ts_us)
            elif counter is not None and ts_us < counter.end_us:
                # A period that holds a time after all closings is open: only the watermark is left to ask.
                late += ts_us < counter.watermark_us - scope.lateness_us
        return late
