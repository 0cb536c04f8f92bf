"""Records of price simulations: scenarios that were kept, runs of them and what they came to, batches of runs.

Rules it keeps: a document is the JSON text that the pricing library takes, its numbers as they were written; a run holds
its scenario and its result whole, so that it says the same whatever becomes of the scenario; the customer whom a
document is about is named in a field of its own, where erasing finds it. It must not know what a document means.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from engine.core.configured import Change

SimulationAction = Literal["set", "delete", "run", "batch"]
DOCUMENT_CHARS_MAX: Final = 65_536
"""Of a scenario: some 400 usage items with a price of five tiers each."""
RESULT_CHARS_MAX: Final = 262_144
BATCH_RUNS_MAX: Final = 100
SIMULATION_NAME_CHARS_MAX: Final = 255


class BatchRow(msgspec.Struct, frozen=True, array_like=True):
    """A run of a batch: amounts as text, so that a batch is readable when its runs are forgotten."""

    run_id: str
    scenario_id: str
    passed: bool
    total: str
    currency: str


class Simulation(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """A scenario was kept, changed (`set`) or deleted, or was run; `batch`: these runs belong together."""

    action: SimulationAction
    id: str
    tenant_id: str
    change: Change
    name: str = ""
    customer_ref: str = ""
    """`inputs.customerId` of the document."""
    document: str = ""
    """The scenario; empty: it was erased."""
    scenario_id: str = ""
    """Of a run: the kept scenario it is of."""
    result: str = ""
    """Of a run: the invoice and the comparison, as JSON."""
    passed: bool = True
    batch_id: str = ""
    rows: tuple[BatchRow, ...] = ()
    """Of a batch, BATCH_RUNS_MAX."""
    chars: int = 0
    """Of a run: how long its document and result are, or were before they were erased: what is forgotten goes by it."""
    created_at_us: int = 0
    at_us: int = 0


SIMULATION_TYPES: Final[dict[int, type[Simulation]]] = {19: Simulation}
"""By the numbers of `engine.core.records.RecordType`, which knows this module."""
