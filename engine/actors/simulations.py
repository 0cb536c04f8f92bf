"""Price scenarios as a server keeps them: checked, stored in the log, run, and found again by their tenant alone.

Rules it keeps: a scenario is checked whole before it is kept; a run is computed by the pricing library from what is kept
or sent, and recorded with its result; a batch is one commit, all of its runs or none; what a tenant may keep is
bounded. Check and record are under the lock of all changes. It must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from engine.actors.administration import ID_RANDOM_BYTES, By
from engine.actors.supervisor import Meter
from engine.core.configured import Change
from engine.core.exact_json import decode_exactly, exact_json
from engine.core.simulation_records import (
    BATCH_RUNS_MAX,
    DOCUMENT_CHARS_MAX,
    RESULT_CHARS_MAX,
    SIMULATION_NAME_CHARS_MAX,
    BatchRow,
    Simulation,
)
from engine.core.simulations import SCENARIOS_CHARS_MAX, SCENARIOS_MAX, OfTenant
from engine.errors import Conflict, NotFound, Refused
from engine.pricing.documents import invoice_document
from engine.pricing.money import plain_text
from engine.pricing.scenarios import Outcome, read_scenario
from engine.pricing.scenarios import run as run_scenario


class ToRun(NamedTuple):
    """A scenario that is kept (by id) or was sent (as its JSON text); `name` is the run's, else the scenario's."""

    scenario_id: str = ""
    document: str = ""
    name: str = ""
    path: str = ""
    """Where it is in what was sent: what is wrong is named under it."""


class SimulationDesk:
    """What people ask of simulations."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def of(self, tenant: str) -> OfTenant:
        """What a tenant has, for reading."""
        return self._meter.registry.simulations.of(tenant)

    # Scenarios.

    def scenario(self, tenant: str, scenario_id: str) -> Simulation:
        """A tenant's scenario. Raises NotFound, also for another tenant's."""
        found = self.of(tenant).scenarios.get(scenario_id)
        if found is None:
            raise NotFound(f"there is no scenario {scenario_id}")
        return found

    async def create(self, tenant: str, document: str, by: By) -> Simulation:
        """Keep a scenario. Raises Refused or Conflict."""
        checked = self._checked(tenant, document, by)
        async with self._meter.change_lock:
            if len(self.of(tenant).scenarios) >= SCENARIOS_MAX:
                raise Conflict(f"the tenant has {SCENARIOS_MAX} scenarios, the most there may be")
            self._require_room(tenant, len(document))
            scenario_id = self._new_id("sim")
            record = msgspec.structs.replace(
                checked,
                id=scenario_id,
                created_at_us=checked.at_us,
                name=checked.name or scenario_id,
            )
            await self._meter.append_control(record)
        return record

    async def update(self, tenant: str, scenario_id: str, document: str, by: By) -> Simulation:
        """Replace a scenario. Raises NotFound, Refused or Conflict."""
        checked = self._checked(tenant, document, by)
        async with self._meter.change_lock:
            old = self.scenario(tenant, scenario_id)
            self._require_room(tenant, len(document) - len(old.document))
            record = msgspec.structs.replace(
                checked, id=old.id, created_at_us=old.created_at_us, name=checked.name or old.id
            )
            await self._meter.append_control(record)
        return record

    async def delete(self, tenant: str, scenario_id: str, by: By) -> None:
        """Delete a scenario; its runs stay. Raises NotFound."""
        async with self._meter.change_lock:
            old = self.scenario(tenant, scenario_id)
            await self._meter.append_control(
                Simulation(
                    action="delete",
                    id=old.id,
                    tenant_id=tenant,
                    change=_change(by),
                    at_us=self._meter.clock.now_us(),
                )
            )

    def _checked(self, tenant: str, document: str, by: By) -> Simulation:
        """A record without an id. Raises Refused that names every wrong field."""
        _require_length(document)
        scenario = read_scenario(decode_exactly(document))
        return Simulation(
            action="set",
            id="",
            tenant_id=tenant,
            change=_change(by),
            name=scenario.name[:SIMULATION_NAME_CHARS_MAX],
            customer_ref=scenario.inputs.customer_id,
            document=document,
            at_us=self._meter.clock.now_us(),
        )

    def _require_room(self, tenant: str, more_chars: int) -> None:
        if self.of(tenant).scenarios_chars + more_chars > SCENARIOS_CHARS_MAX:
            raise Conflict(
                f"the tenant's scenarios have {SCENARIOS_CHARS_MAX >> 20} MiB together, the most there may be: delete some"
            )

    # Runs.

    def run_of(self, tenant: str, run_id: str) -> Simulation:
        """A tenant's run. Raises NotFound, also for another tenant's and for one that is forgotten or erased."""
        found = self.of(tenant).runs.get(run_id)
        if found is None or not found.document:
            raise NotFound(f"there is no run {run_id}, or it is no longer kept")
        return found

    def batch_of(self, tenant: str, batch_id: str) -> Simulation:
        """A tenant's batch. Raises NotFound."""
        found = self.of(tenant).batches.get(batch_id)
        if found is None:
            raise NotFound(f"there is no batch {batch_id}, or it is no longer kept")
        return found

    async def run(self, tenant: str, wanted: ToRun, by: By) -> Simulation:
        """Run one scenario. Raises NotFound or Refused."""
        record, _outcome = self._run(tenant, wanted, by, "")
        await self._meter.append_control(record)
        return record

    async def run_all(
        self, tenant: str, wanted: Sequence[ToRun], name: str, by: By
    ) -> tuple[Simulation, list[Simulation]]:
        """Run several as one batch: the batch and its runs. Raises NotFound or Refused."""
        if not 1 <= len(wanted) <= BATCH_RUNS_MAX:
            message = f"must be 1 to {BATCH_RUNS_MAX}"
            raise Refused(f"the scenarios {message}", (("scenarios", message),))
        batch_id = self._new_id("batch")
        done = [self._run(tenant, one, by, batch_id) for one in wanted]
        runs = [record for record, _ in done]
        rows = tuple(
            BatchRow(
                record.id,
                record.scenario_id,
                outcome.passed,
                plain_text(outcome.invoice.total),
                outcome.invoice.currency,
            )
            for record, outcome in done
        )
        now_us = self._meter.clock.now_us()
        batch = Simulation(
            action="batch",
            id=batch_id,
            tenant_id=tenant,
            change=_change(by),
            name=name,
            passed=all(row.passed for row in rows),
            rows=rows,
            created_at_us=now_us,
            at_us=now_us,
        )
        await self._meter.append_controls([*runs, batch])
        return batch, runs

    def _run(self, tenant: str, wanted: ToRun, by: By, batch_id: str) -> tuple[Simulation, Outcome]:
        document = wanted.document
        if wanted.scenario_id:
            document = self.scenario(tenant, wanted.scenario_id).document
        _require_length(document)
        scenario = read_scenario(decode_exactly(document), wanted.path)
        outcome = run_scenario(scenario)
        result = result_text(outcome)
        if len(result) > RESULT_CHARS_MAX:
            message = f"has a result of more than {RESULT_CHARS_MAX} characters: split it"
            raise Refused(f"the scenario {message}", (("scenario", message),))
        run_id, now_us = self._new_id("run"), self._meter.clock.now_us()
        name = wanted.name or outcome.scenario.name or wanted.scenario_id or run_id
        record = Simulation(
            action="run",
            id=run_id,
            tenant_id=tenant,
            change=_change(by),
            name=name[:SIMULATION_NAME_CHARS_MAX],
            customer_ref=outcome.scenario.inputs.customer_id,
            document=document,
            scenario_id=wanted.scenario_id,
            result=result,
            passed=outcome.passed,
            batch_id=batch_id,
            chars=len(document) + len(result),
            created_at_us=now_us,
            at_us=now_us,
        )
        return record, outcome

    def _new_id(self, kind: str) -> str:
        return f"{kind}_{self._meter.ids.token(ID_RANDOM_BYTES).hex()}"


def result_text(outcome: Outcome) -> str:
    """The invoice and the comparison as JSON text, numbers with their digits."""
    differences = [
        {
            "field": one.field,
            "expected": one.expected,
            "actual": one.actual,
            "difference": one.delta,
        }
        for one in outcome.differences
    ]
    comparison = {
        "passed": outcome.passed,
        "compared": outcome.compared,
        "differences": differences,
    }
    content = {"result": invoice_document(outcome.invoice), "comparison": comparison}
    return exact_json(content).decode()


def _require_length(document: str) -> None:
    if len(document) > DOCUMENT_CHARS_MAX:
        message = f"must have at most {DOCUMENT_CHARS_MAX} characters"
        raise Refused(f"the scenario {message}", (("scenario", message),))


def _change(by: By) -> Change:
    return Change(actor=by.actor, request_id=by.request_id)
