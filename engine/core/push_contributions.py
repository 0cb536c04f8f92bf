"""What a series adds to a target, and how such parts add up.

It must not know who adds them up, nor what was pushed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from engine.core.billing import Resolved
from engine.core.push_records import Lane, Role, Target
from engine.core.push_routes import Route
from engine.core.push_uses import PeriodUse

LONG_PAST: Final = "its period is too long past: how its use was cut over is not known any more"
"""As a `hold`; the plan then takes nothing for due, whatever the sum comes to."""


class Contribution(NamedTuple):
    """What a series adds to a target. `hold`: why the target must not be pushed because of it.

    `base`: its use less this is what it adds, now and later; None: what it adds no longer changes. `left`: the targets that
    all of it was moved away from.
    """

    target: Target
    micros: int
    newest_event_us: int
    route: Route
    resolved: Resolved
    role: Role
    hold: str | None
    base: int | None = 0
    left: tuple[Target, ...] = ()


def together(speaker: Contribution, parts: Collection[Contribution]) -> Contribution:
    """What many contribute, as one; of their holds the one that counts most."""
    holds = [part.hold for part in parts if part.hold is not None]
    hold = LONG_PAST if LONG_PAST in holds else next(iter(holds), None)
    return speaker._replace(
        micros=sum(part.micros for part in parts),
        newest_event_us=max(part.newest_event_us for part in parts),
        hold=hold,
    )


def left_by(parts: Iterable[Contribution]) -> dict[Target, None]:
    """Each target that some of these were moved away from, once: a whole team leaves the same one."""
    return {old: None for part in parts for old in part.left}


def newest(fresh: dict[Target, Contribution]) -> dict[tuple[Lane, str], Contribution]:
    """The first contribution to each lane and scale."""
    found: dict[tuple[Lane, str], Contribution] = {}
    for target, one in fresh.items():
        found.setdefault((target.lane, target.scale), one)
    return found


def both(one: Contribution, other: Contribution, use: PeriodUse) -> Contribution:
    """Two routes of a series that turned out to be the same target."""
    micros = one.micros + other.micros
    growing = other if one.base is None else one
    base = None if growing.base is None else use.micros - micros
    return growing._replace(micros=micros, base=base, hold=one.hold or other.hold)
