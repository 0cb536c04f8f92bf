"""A recount of what was pushed: intents, outcomes and decisions of the raw log, added up per target.

Rules it keeps: acknowledged units move only by `delivered`, `rejected`, `cancelled` and baselines, as docs/LOG_FORMAT.md
says; what Stripe held beside them is what a baseline's reading left over. It must not know the engine's ledger, plans,
or certificates.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, NamedTuple

from engine.witness import raw_records as raw
from wal.log import StoredRecord

RECORD_TYPES: Final = (raw.INTENT, raw.OUTCOME, raw.DECISION, raw.FINDING)


class TargetKey(NamedTuple):
    """A target, as its records name it."""

    account: str
    mode: str
    object_id: str
    customer: str
    scale: str
    start_us: int
    end_us: int


@dataclass
class Pushed:
    """One target. Units are whole."""

    count: int = 0
    """Intents."""
    delivered: int = 0
    baseline_units: int = 0
    """What the newest baseline took for pushed."""
    delivered_units: int = 0
    """Since then."""
    taken_back_units: int = 0
    """Since then: rejected or cancelled."""
    carried_in: int = 0
    carried_out: int = 0
    kept_micros: int = 0
    first: int = -1
    last: int = -1

    @property
    def units(self) -> int:
        """Acknowledged now."""
        return self.baseline_units + self.delivered_units - self.taken_back_units


class _Open(NamedTuple):
    key: TargetKey
    number: int
    from_units: int
    to_units: int
    is_total: bool
    identifier: str


class PushRecount:
    """Feed it every record of a log, in order; then look at `targets`."""

    def __init__(self) -> None:
        self.targets: dict[TargetKey, Pushed] = {}
        self.open: dict[tuple[str, ...], _Open] = {}
        """By lane, the intent without an outcome."""
        self.tenants: dict[tuple[str, ...], set[str]] = {}
        """By lane, those on whose behalf it is pushed."""
        self._delivered: dict[tuple[TargetKey, int], int] = {}
        """Acknowledged intents that nobody took back, with their units."""
        self._beyond: dict[TargetKey, Fraction] = {}
        """What Stripe is expected to hold beside what counts as pushed: by baselines, and by what people accepted."""
        self._findings: dict[str, dict[str, Any]] = {}
        """By id, the newest word of those that are open about what Stripe holds."""

    def feed(self, record: StoredRecord) -> None:
        """Take one record in; all others are passed over."""
        kind = record.envelope.record_type
        if kind not in RECORD_TYPES or (said := raw.control_of(record)) is None:
            return
        if kind == raw.INTENT:
            self._hear_intent(said, record.sequence)
        elif kind == raw.OUTCOME:
            self._hear_outcome(said, record.sequence)
        elif kind == raw.DECISION:
            self._hear_decision(said, record.sequence)
        else:
            self._hear_finding(said)

    def beyond(self, key: TargetKey) -> Fraction:
        """What Stripe is expected to hold in the target's summary that does not count as pushed."""
        return sum((self._beyond.get(one, Fraction(0)) for one in self._book(key)), Fraction(0))

    def beside(self, key: TargetKey) -> int:
        """Units pushed to the other targets that the same summary tells of."""
        return sum(self.targets[one].units for one in self._book(key) if one != key)

    def _book(self, key: TargetKey) -> list[TargetKey]:
        """The targets of a lane and period: one summary tells of them all."""
        return [one for one in self.targets if one[:4] == key[:4] and one.start_us == key.start_us]

    def _own(self, key: TargetKey, said: dict[str, Any]) -> None:
        if said.get("tenantId"):
            self.tenants.setdefault(key[:4], set()).add(said["tenantId"])

    def _at(self, key: TargetKey, position: int) -> Pushed:
        found = self.targets.setdefault(key, Pushed(first=position))
        found.first = position if found.first < 0 else found.first
        found.last = position
        return found

    def _hear_intent(self, said: dict[str, Any], position: int) -> None:
        key, request = _key(said["target"]), said["request"]
        self._at(key, position).count += 1
        self._own(key, said)
        self.open[key[:4]] = _Open(
            key,
            said["number"],
            int(said["fromUnits"]),
            int(said["toUnits"]),
            request["driver"] == "usage_record",
            request["identifier"],
        )

    def _hear_outcome(self, said: dict[str, Any], position: int) -> None:
        key, number, result = _key(said["target"]), said["number"], said["result"]
        found = self._at(key, position)
        if result in ("rejected", "cancelled"):
            found.taken_back_units += self._delivered.pop((key, number), 0)
            return
        if result == "quarantined":
            return
        intent = self.open.pop(key[:4])
        if result == "delivered":
            units = intent.to_units - intent.from_units
            self._delivered[key, number] = units
            found.delivered += 1
            found.delivered_units += intent.to_units - found.units if intent.is_total else units

    def _hear_decision(self, said: dict[str, Any], position: int) -> None:
        kind = said["kind"]
        if said.get("target") is None:
            return
        key, units = _key(said["target"]), int(said.get("units", "0"))
        found = self._at(key, position)
        if kind in ("baseline", "await"):
            self._own(key, said)
        if kind == "baseline":
            found.baseline_units, found.delivered_units, found.taken_back_units = units, 0, 0
            if said.get("reading") is not None:
                others = self.beyond(key) - self._beyond.get(key, Fraction(0))
                beyond = Fraction(said["reading"]) - units - self.beside(key) - others
                # Less than was pushed before is a summary that lags, not one that holds less.
                is_lag = said.get("choice") == "period" and beyond < 0
                self._beyond[key] = Fraction(0) if is_lag else beyond
        elif kind == "carry":
            found.carried_out += units
            if said["into"] == "current":
                into = key._replace(start_us=said["atUs"], end_us=said["untilUs"])
                self._at(into, position).carried_in += units
        elif kind == "keep":
            found.kept_micros += int(said.get("micros", "0"))

    def _hear_finding(self, said: dict[str, Any]) -> None:
        action, name = said["action"], said.get("id", "")
        if action in ("open", "change"):
            self._findings[name] = said
        elif action in ("accept", "resolve"):
            known = self._findings.pop(name, None)
            if action == "accept" and known is not None and known.get("target") is not None:
                key = _key(known["target"])
                if known.get("gap") == "stripe":
                    before = self._beyond.get(key, Fraction(0))
                    self._beyond[key] = before - Fraction(known.get("units", "0"))


def _key(target: list[Any]) -> TargetKey:
    lane, scale, start_us, end_us = target
    account, mode, object_id, customer = lane
    return TargetKey(account, mode, object_id, customer, scale, start_us, end_us)
