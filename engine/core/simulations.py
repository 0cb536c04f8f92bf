"""Price scenarios, their runs and batches, tenant by tenant: a fold of their records.

Rules it keeps: a tenant's things are found only through that tenant; runs and batches are bounded in number and bytes,
the oldest are forgotten first (the log still has them); scenarios are never forgotten by themselves, so their bounds
are for whoever adds one. It must not know what a scenario means.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engine.core.simulation_records import Simulation

SCENARIOS_MAX: Final = 1_000
"""Of a tenant."""
SCENARIOS_CHARS_MAX: Final = 4 << 20
RUNS_MAX: Final = 1_000
RUNS_CHARS_MAX: Final = 8 << 20
"""Their scenarios and results together: they are in memory and in every snapshot."""
BATCHES_MAX: Final = 100
_Records = dict[str, Simulation]


class OfTenant:
    """One tenant's, each by id in order of its first record."""

    def __init__(self) -> None:
        self.scenarios: _Records = {}
        self.runs: _Records = {}
        """Those that were erased are there without a document: they are forgotten in their turn."""
        self.batches: _Records = {}
        self.scenarios_chars = 0
        self.runs_chars = 0

    def customers(self) -> set[str]:
        """Whom the scenarios and runs are about, those without a document left out."""
        every = (*self.scenarios.values(), *self.runs.values())
        return {one.customer_ref for one in every if one.document}


class Simulations:
    """All tenants'."""

    def __init__(self) -> None:
        self._tenants: dict[str, OfTenant] = {}

    def of(self, tenant: str) -> OfTenant:
        """A tenant's; empty for one that has none."""
        return self._tenants.get(tenant) or OfTenant()

    def tenants(self) -> list[str]:
        """Tenants that have any."""
        return list(self._tenants)

    def fold(self, record: Simulation) -> None:
        """Take one record in."""
        own = self._tenants.setdefault(record.tenant_id, OfTenant())
        match record.action:
            case "set":
                self._drop(own, record.id)
                if record.document:
                    own.scenarios[record.id] = record
                    own.scenarios_chars += len(record.document)
            case "delete":
                self._drop(own, record.id)
            case "run":
                own.runs[record.id] = record
                own.runs_chars += record.chars
                while len(own.runs) > RUNS_MAX or own.runs_chars > RUNS_CHARS_MAX:
                    own.runs_chars -= own.runs.pop(next(iter(own.runs))).chars
            case "batch":
                own.batches[record.id] = record
                if len(own.batches) > BATCHES_MAX:
                    del own.batches[next(iter(own.batches))]

    @staticmethod
    def _drop(own: OfTenant, scenario_id: str) -> None:
        old = own.scenarios.pop(scenario_id, None)
        if old is not None:
            own.scenarios_chars -= len(old.document)

    def rename(self, tenant: str, names: dict[str, str]) -> None:
        """Forget what is about customers who are erased: a made-up bill with a name in it is about that person."""
        own = self._tenants.get(tenant)
        if own is None:
            return
        for one in [one for one in own.scenarios.values() if one.customer_ref in names]:
            self._drop(own, one.id)
        for one in [one for one in own.runs.values() if one.customer_ref in names]:
            own.runs[one.id] = msgspec.structs.replace(
                one, customer_ref=names[one.customer_ref], name="", document="", result=""
            )

    def state(self) -> list[Any]:
        """Everything as plain rows for a snapshot; `restore` takes it back."""
        return [
            (
                tenant,
                list(own.scenarios.values()),
                list(own.runs.values()),
                list(own.batches.values()),
            )
            for tenant, own in self._tenants.items()
        ]

    @staticmethod
    def restore(rows: list[SavedTenant]) -> Simulations:
        """From the rows that `state` gave, decoded as SavedTenant."""
        found = Simulations()
        for saved in rows:
            own = found._tenants[saved.tenant] = OfTenant()
            own.scenarios = {one.id: one for one in saved.scenarios}
            own.runs = {one.id: one for one in saved.runs}
            own.batches = {one.id: one for one in saved.batches}
            own.scenarios_chars = sum(len(one.document) for one in saved.scenarios)
            own.runs_chars = sum(one.chars for one in saved.runs)
        return found


class SavedTenant(msgspec.Struct, array_like=True):
    """A tenant's rows in a snapshot."""

    tenant: str
    scenarios: list[Simulation]
    runs: list[Simulation]
    batches: list[Simulation]
