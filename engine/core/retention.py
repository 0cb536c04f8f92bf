"""Which events retention may take: pure arithmetic over the rules and an instant.

Rules it keeps: only what lies in periods that are closed for good, whatever their kind; so an event that is refused
for being older than the horizon could only have been late. It must not know clocks: the instant is a parameter.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engine.core.periods import period_of
from engine.core.records import RecordError
from engine.core.rules import Rules
from engine.core.times import DAY_US, INSTANT_US_MIN

SUBSCRIPTION_US_MAX: Final = 32 * DAY_US
"""No subscription period is longer: one that holds an instant this far behind a frontier ended before it."""


def horizon_of(rules: Rules, now_us: int, days: int) -> int:
    """The instant before which every event is older than `days` and in a closed period; INSTANT_US_MIN: none is."""
    assert days >= 1, "retention of no days is none"
    horizon_us = now_us - days * DAY_US
    frontiers = [rules.closed_until_us]
    frontiers += [scope.closed_until_us for _, _, scope in rules.own_scopes()]
    kinds = set(rules.kinds_in_use(own=None))
    for tenant, metric, _ in rules.own_scopes():
        kinds |= rules.kinds_in_use(own=(tenant, metric))
    frontier_us = min(frontiers)
    if frontier_us <= INSTANT_US_MIN:
        return INSTANT_US_MIN
    # A frontier that a day or a subscription set lies within a month that is open still.
    closed_us = period_of("calendar", frontier_us, None)[0]
    if "subscription" in kinds:
        closed_us = min(closed_us, frontier_us - SUBSCRIPTION_US_MAX)
    return max(INSTANT_US_MIN, min(horizon_us, closed_us))


class _Times(msgspec.Struct, array_like=True):
    """A counting part up to its times."""

    tenant: msgspec.Raw
    metric_names: msgspec.Raw
    metric_indexes: msgspec.Raw
    customer_indexes: msgspec.Raw
    micros: msgspec.Raw
    times_us: list[int | None]


_decode_times = msgspec.msgpack.Decoder(_Times).decode


def newest_us(counting: bytes, received_at_us: int) -> int:
    """The time of a part's newest event. Raises RecordError."""
    try:
        times_us = _decode_times(counting).times_us
    except msgspec.MsgspecError as error:
        raise RecordError(f"an event group can't be read: {error}") from error
    return max(received_at_us if ts_us is None else ts_us for ts_us in times_us)
