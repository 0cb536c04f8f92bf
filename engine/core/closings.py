"""Which period ends are due to be closed: pure arithmetic over the rules and an instant.

Rules it keeps: a period closes at its end plus the lateness of its scope, never before; a frontier only moves on.
Scopes: None is every metric without a lateness of its own, (tenant, metric) is one that has one. It must not know clocks: the instant is a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.core.periods import period_of
from engine.core.records import PeriodClosing
from engine.core.rules import Rules, Scope


def due_closing(rules: Rules, own: tuple[str, str] | None, now_us: int) -> PeriodClosing | None:
    """The closing of the latest month or day of the scope whose time is up and that is not closed yet."""
    scope = _scope(rules, own)
    limit_us = now_us - scope.lateness_us
    kinds = rules.kinds_in_use(own=own)
    best: tuple[int, int] | None = None
    for kind in ("calendar", "day"):
        # A subscription without an anchor falls back to the calendar, so that is always followed.
        if kind == "calendar" or kind in kinds:
            best = _later(best, _ended(kind, limit_us, None), scope.closed_until_us)
    return None if best is None else _closing(best, scope, own)


def anchored_end(
    rules: Rules,
    own: tuple[str, str] | None,
    now_us: int,
    anchors_us: Iterable[int],
    so_far: PeriodClosing | None,
) -> PeriodClosing | None:
    """`so_far`, or the closing of a later period end among these billing anchors."""
    scope = _scope(rules, own)
    limit_us = now_us - scope.lateness_us
    best = None if so_far is None else (so_far.start_us, so_far.end_us)
    for anchor_us in anchors_us:
        best = _later(best, _ended("subscription", limit_us, anchor_us), scope.closed_until_us)
    return None if best is None else _closing(best, scope, own)


def _scope(rules: Rules, own: tuple[str, str] | None) -> Scope:
    return rules.scope(*own) if own is not None else Scope(rules.lateness_us, rules.closed_until_us)


def _ended(kind: str, limit_us: int, anchor_us: int | None) -> tuple[int, int]:
    """The latest period of a kind that ended at or before `limit_us`."""
    start_us, _ = period_of(kind, limit_us, anchor_us)  # type: ignore[arg-type]
    return period_of(kind, start_us - 1, anchor_us)  # type: ignore[arg-type]


def _later(
    best: tuple[int, int] | None, period: tuple[int, int], closed_until_us: int
) -> tuple[int, int] | None:
    if period[1] <= closed_until_us or (best is not None and period[1] <= best[1]):
        return best
    return period


def _closing(period: tuple[int, int], scope: Scope, own: tuple[str, str] | None) -> PeriodClosing:
    return PeriodClosing(
        start_us=period[0],
        end_us=period[1],
        lateness_us=scope.lateness_us,
        tenant_id=own[0] if own else None,
        metric=own[1] if own else None,
    )
