"""What decides how an event counts: lateness, late policy, periods, closings. A fold of the control records.

Rules it keeps: it reads records and nothing else, so that a replay judges as the first time; a change of period or
anchor holds from the instant its record says, so the past keeps its boundaries; what a closing closed stays
closed, whatever lateness or mapping comes later. It must not know counters.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeVar

import msgspec

from engine.core.configured import CustomerChange, MappingChange
from engine.core.keeping import EraseChange
from engine.core.periods import PeriodKind, Schedule, Segment
from engine.core.records import ControlRecord, PeriodClosing, SettingsChange
from engine.core.times import INSTANT_US_MIN

ALWAYS_US: Final = INSTANT_US_MIN
"""Where a schedule begins."""
DEFAULT_LATENESS_US: Final = 48 * 3600 * 1_000_000
ValueT = TypeVar("ValueT")
_ONLY_CALENDAR: Final = ((ALWAYS_US, "calendar"),)
_CALENDAR: Final = (Segment(ALWAYS_US, "calendar", None),)


class Scope(NamedTuple):
    """How a metric of a tenant is judged now. Periods that end at or before `closed_until_us` are closed."""

    lateness_us: int
    closed_until_us: int


class _Metric:
    """What a mapping says, or said once: its own lateness, its frontier, its periods and aggregations over time."""

    __slots__ = ("aggregations", "closed_until_us", "kinds", "lateness_us", "mapping_id")

    def __init__(self, closed_until_us: int) -> None:
        self.mapping_id: str | None = None
        """The active mapping that speaks for the metric; None: nobody does."""
        self.lateness_us: int | None = None
        self.closed_until_us = closed_until_us
        self.kinds: tuple[tuple[int, PeriodKind], ...] = ((ALWAYS_US, "calendar"),)
        self.aggregations: tuple[tuple[int, str], ...] = ((ALWAYS_US, "sum"),)


class Rules:
    """The rules in force after the records applied so far."""

    def __init__(self) -> None:
        self.lateness_us = DEFAULT_LATENESS_US
        self.late_policy = "review"
        self.closed_until_us = ALWAYS_US
        self._metrics: dict[tuple[str, str], _Metric] = {}
        self.anchors: dict[tuple[str, str], tuple[tuple[int, int | None], ...]] = {}

    def apply(self, record: ControlRecord) -> None:
        """Fold one control record; those that don't change how events count are passed over."""
        match record:
            case SettingsChange():
                self.lateness_us = record.lateness_us
                self.late_policy = record.late_policy
            case MappingChange():
                self._apply_mapping(record)
            case CustomerChange():
                customer = record.customer
                key = (customer.tenant_id, customer.customer_ref)
                old = self.anchors.get(key, ((ALWAYS_US, None),))
                anchor, since = customer.billing_anchor_us, record.change.effective_from_us
                if anchor is not None or key in self.anchors:
                    self.anchors[key] = changed(old, anchor, since)
            case PeriodClosing():
                self._apply_closing(record)
            case EraseChange():
                self.rename(record.tenant_id, record.names)
            case _:
                pass  # changes no judgement

    def _apply_mapping(self, record: MappingChange) -> None:
        mapping = record.mapping
        key = (mapping.tenant_id, mapping.metric)
        metric = self._metrics.get(key)
        if metric is None:
            metric = self._metrics[key] = _Metric(self.closed_until_us)
        gone = record.deleted or not mapping.active
        if gone and metric.mapping_id not in (None, mapping.id):
            return  # an inactive one beside the one that speaks
        metric.mapping_id = None if gone else mapping.id
        if metric.lateness_us is None:
            # Up to here the common closings spoke of it; what they closed stays closed.
            metric.closed_until_us = max(metric.closed_until_us, self.closed_until_us)
        metric.lateness_us = None if gone else mapping.lateness_us
        since = record.change.effective_from_us
        kind: PeriodKind = "calendar" if gone else mapping.period  # type: ignore[assignment]
        metric.kinds = changed(metric.kinds, kind, since)
        metric.aggregations = changed(
            metric.aggregations, "sum" if gone else mapping.aggregation, since
        )

    def rename(self, tenant: str, names: dict[str, str]) -> None:
        """Let customers go by their pseudonyms: their periods stay as they are."""
        for name, pseudonym in names.items():
            if (history := self.anchors.pop((tenant, name), None)) is not None:
                self.anchors[tenant, pseudonym] = history

    def _apply_closing(self, record: PeriodClosing) -> None:
        if record.tenant_id is None or record.metric is None:
            self.closed_until_us = max(self.closed_until_us, record.end_us)
            return
        metric = self._metrics.get((record.tenant_id, record.metric))
        if metric is not None:
            metric.closed_until_us = max(metric.closed_until_us, record.end_us)

    def scope(self, tenant: str, metric: str) -> Scope:
        """Lateness and frontier of a metric."""
        own = self._metrics.get((tenant, metric))
        if own is None:
            return Scope(self.lateness_us, self.closed_until_us)
        if own.lateness_us is None:
            return Scope(self.lateness_us, max(own.closed_until_us, self.closed_until_us))
        return Scope(own.lateness_us, own.closed_until_us)

    def aggregation(self, tenant: str, metric: str, at_us: int) -> str:
        """The aggregation in force at an instant."""
        own = self._metrics.get((tenant, metric))
        if own is None:
            return "sum"
        return next(value for since, value in reversed(own.aggregations) if since <= at_us)

    def is_by_calendar(self, tenant: str, metric: str) -> bool:
        """Whether all its customers' periods are, and always were, calendar months."""
        own = self._metrics.get((tenant, metric))
        return own is None or own.kinds == _ONLY_CALENDAR

    def schedule(self, tenant: str, metric: str, customer_ref: str) -> Schedule:
        """The periods of a customer's use of a metric, over all time."""
        own = self._metrics.get((tenant, metric))
        if own is None or own.kinds == _ONLY_CALENDAR:
            return _CALENDAR
        anchors = self.anchors.get((tenant, customer_ref), ((ALWAYS_US, None),))
        segments: list[Segment] = []
        for index, (since, kind) in enumerate(own.kinds):
            until = own.kinds[index + 1][0] if index + 1 < len(own.kinds) else 1 << 62
            if kind != "subscription":
                segments.append(Segment(since, kind, None))
                continue
            for anchor_index, (anchor_since, anchor) in enumerate(anchors):
                anchor_until = (
                    anchors[anchor_index + 1][0] if anchor_index + 1 < len(anchors) else 1 << 62
                )
                start = max(since, anchor_since)
                if start < min(until, anchor_until):
                    segments.append(Segment(start, kind, anchor))
        return tuple(segments)

    def state(self) -> bytes:
        """Everything as bytes for a snapshot; `restore` takes it back."""
        metrics = [
            (
                tenant,
                metric,
                own.mapping_id,
                own.lateness_us,
                own.closed_until_us,
                own.kinds,
                own.aggregations,
            )
            for (tenant, metric), own in self._metrics.items()
        ]
        anchors = [(*key, history) for key, history in self.anchors.items()]
        return msgspec.msgpack.encode(
            (self.lateness_us, self.late_policy, self.closed_until_us, metrics, anchors)
        )

    @staticmethod
    def restore(data: bytes) -> Rules:
        """Rules from the bytes that `state` gave. Raises msgspec.MsgspecError or ValueError on other bytes."""
        rules = Rules()
        lateness_us, late_policy, closed_until_us, metrics, anchors = msgspec.msgpack.decode(data)
        rules.lateness_us, rules.late_policy = lateness_us, late_policy
        rules.closed_until_us = closed_until_us
        for (
            tenant,
            name,
            mapping_id,
            own_lateness_us,
            own_closed_us,
            kinds,
            aggregations,
        ) in metrics:
            metric = rules._metrics[tenant, name] = _Metric(own_closed_us)
            metric.mapping_id, metric.lateness_us = mapping_id, own_lateness_us
            metric.kinds = tuple(map(tuple, kinds))
            metric.aggregations = tuple(map(tuple, aggregations))
        for tenant, customer_ref, history in anchors:
            rules.anchors[tenant, customer_ref] = tuple(map(tuple, history))
        return rules

    def own_scopes(self) -> list[tuple[str, str, Scope]]:
        """Metrics that are closed on their own, because a mapping gives them their own lateness."""
        return [
            (tenant, metric, self.scope(tenant, metric))
            for (tenant, metric), own in self._metrics.items()
            if own.lateness_us is not None
        ]

    def kinds_in_use(self, *, own: tuple[str, str] | None) -> frozenset[PeriodKind]:
        """Period kinds that closings of a scope must follow; `own` None is the common scope."""
        if own is not None:
            return frozenset(kind for _, kind in self._metrics[own].kinds)
        common = {
            kind for m in self._metrics.values() if m.lateness_us is None for _, kind in m.kinds
        }
        return frozenset(common | {"calendar"})


def changed(
    history: tuple[tuple[int, ValueT], ...], value: ValueT, since_us: int | None
) -> tuple[tuple[int, ValueT], ...]:
    """A history of (since, value) with `value` in force from `since_us` on (None: it always was)."""
    if history[-1][1] == value and (since_us is None or history[-1][0] <= since_us):
        return history
    if since_us is None:
        return ((ALWAYS_US, value),)
    kept = tuple(entry for entry in history if entry[0] < since_us)
    if kept and kept[-1][1] == value:
        return kept
    return (*kept, (since_us, value))
