"""The events of a large request, many at a time: columns in, columns out, no object per event.

Rules it keeps: an event comes out as `engine.core.events.accept` makes it, for the tenant that it would count for one by
one; it refuses nothing. A request that holds anything but plainly right events is not taken at all, and goes the long
way, event by event. It must not know HTTP or the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.core.events import EventLimits, Refusal, SentEvent
from engine.core.row_columns import (
    Remembered,
    Sent,
    Taking,
    TenantRows,
    Unusual,
    columns_of,
    events_as_sent,
    put,
)


class Said(NamedTuple):
    """What a request says about events that don't say it themselves."""

    own_tenant: str | None
    """The only tenant whose events may be sent; None: any."""
    default_tenant: str | None
    key: str | None
    """Of its event; of several, the first is `key:0`."""
    source: int


class Taken(NamedTuple):
    """A tenant's rows."""

    columns: Sequence[Sequence[Any]]
    """In `engine.core.records.Row`'s order."""
    indexes: Sequence[int]
    """Where in the request each stands."""


class EventTaker:
    """Takes the events of requests; one for all of them, so that what they have in common is looked at once."""

    def __init__(self) -> None:
        self._remembered = Remembered()

    def take(
        self,
        events: Sequence[SentEvent | Refusal],
        said: Said,
        now_us: int,
        limits: EventLimits,
    ) -> dict[str, Taken] | None:
        """The rows of all events by tenant; None: they must go the long way.

        No name holds U+0000; there is at least one event.
        """
        if set(map(type, events)) != {SentEvent}:
            return None
        try:
            sent = events_as_sent(events)  # type: ignore[arg-type]
            names, tenants = _tenants_of(sent, said)
            if said.key is not None:
                sent = sent._replace(keys=_with_key(sent, said.key))
            taking = Taking(now_us, limits, said.source)
            columns = columns_of(sent, names, tenants, self._remembered, taking)
        except Unusual:
            return None
        finally:
            self._remembered.forget()
        if not tenants:
            (tenant,) = names
            return {tenant: Taken(columns, range(len(events)))}
        found: dict[str, TenantRows] = {}
        put(found, names, tenants, columns, range(len(events)))
        return {tenant: Taken(of.columns, of.lines) for tenant, of in found.items()}


def _tenants_of(sent: Sent, said: Said) -> tuple[set[str], Sequence[str]]:
    """(the tenants, each event's) of a request; of only one tenant, no event's."""
    own, default = said.own_tenant, said.default_tenant
    if sent.tenants is None:
        if default is None:
            raise Unusual
        return {default}, ()
    tenants = sent.tenants
    names = set(tenants)
    if None in names:
        tenants = [name or default for name in tenants]
        names = set(tenants)
    if None in names or (own is not None and names != {own}):
        raise Unusual
    return names, tenants if len(names) > 1 else ()  # type: ignore[return-value]


def _with_key(sent: Sent, key: str) -> Sequence[str]:
    """Each event's own key, else the one that the request gives it."""
    given = sent.keys or [None] * len(sent.metrics)
    if len(given) == 1:
        return [given[0] or key]
    return [own or f"{key}:{index}" for index, own in enumerate(given)]
