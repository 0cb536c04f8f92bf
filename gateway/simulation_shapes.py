"""What scenarios, runs and batches look like over HTTP.

Rules it keeps: the parts of a scenario pass as the JSON they are, so that no number is read on the way. It must not
know what they mean (engine.pricing.scenarios).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from engine.core.simulation_records import BATCH_RUNS_MAX
from gateway.money_shapes import Money
from gateway.price_schemas import document
from gateway.shapes import Instant, TenantId

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


def _part(description: str) -> msgspec.Meta:
    return msgspec.Meta(description=description, extra_json_schema={"type": ["object"]})


_Inputs = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="What the invoice is made of.",
        extra_json_schema=document("ScenarioInputs", or_null=False),
    ),
]
_Model = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="The price of usage items that have none of their own.",
        extra_json_schema=document("PriceConfig"),
    ),
]
_Expected = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="Any part of the invoice; what it does not mention is not compared.",
        extra_json_schema=document("ScenarioExpected"),
    ),
]
_Tolerances = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="An amount, or `absolute`, `relative` and amounts for fields.",
        extra_json_schema=document("ScenarioTolerances"),
    ),
]
_Metadata = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="What people want to know of it.",
        extra_json_schema=document("ScenarioMetadata"),
    ),
]


class ScenarioBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """A scenario, as a file of `stripemeter simulate` has it. As an update: fields left out stay, null clears."""

    tenant_id: TenantId | None = None
    name: Name | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET
    metadata: _Metadata = msgspec.field(default_factory=msgspec.Raw)
    model: _Model = msgspec.field(default_factory=msgspec.Raw)
    inputs: _Inputs = msgspec.field(default_factory=msgspec.Raw)
    expected: _Expected = msgspec.field(default_factory=msgspec.Raw)
    tolerances: _Tolerances = msgspec.field(default_factory=msgspec.Raw)


class ScenarioView(msgspec.Struct, rename="camel", kw_only=True):
    """A scenario that is kept."""

    id: Annotated[str, msgspec.Meta(examples=["sim_0123456789abcdef"])]
    tenant_id: TenantId
    name: str
    description: str | None
    metadata: _Metadata
    model: _Model
    inputs: _Inputs
    expected: _Expected
    tolerances: _Tolerances
    created_at: Instant
    updated_at: Instant


class ScenarioList(msgspec.Struct, rename="camel", kw_only=True):
    """A page of scenarios, oldest first."""

    scenarios: list[ScenarioView]
    total: int
    next_cursor: str | None = None


class RunBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """What to run: a scenario that is kept, or one that is sent."""

    tenant_id: TenantId | None = None
    scenario_id: Name | None = None
    scenario: Annotated[
        msgspec.Raw,
        msgspec.Meta(
            description="A scenario, as `POST /v1/simulations/scenarios` takes it.",
            extra_json_schema=document("Scenario"),
        ),
    ] = msgspec.field(default_factory=msgspec.Raw)
    name: Annotated[Name, msgspec.Meta(description="Of the run; else the scenario's.")] | None = (
        None
    )


class BatchBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """What to run together: kept scenarios by their ids, then those that are sent."""

    tenant_id: TenantId | None = None
    name: Name | None = None
    scenario_ids: Annotated[list[Name], msgspec.Meta(max_length=BATCH_RUNS_MAX)] = []
    scenarios: Annotated[
        list[
            Annotated[
                msgspec.Raw, msgspec.Meta(extra_json_schema=document("Scenario", or_null=False))
            ]
        ],
        msgspec.Meta(max_length=BATCH_RUNS_MAX),
    ] = []


class RunView(msgspec.Struct, rename="camel", kw_only=True):
    """A run and what it came to."""

    id: Annotated[str, msgspec.Meta(examples=["run_0123456789abcdef"])]
    run_id: Annotated[str, msgspec.Meta(description="The same as id.")]
    tenant_id: TenantId
    status: Literal["completed"]
    name: str
    scenario_id: Annotated[
        str | None, msgspec.Meta(description="The kept scenario; null: it was sent.")
    ]
    batch_id: str | None
    result: Annotated[
        msgspec.Raw,
        _part(
            "The invoice: lineItems, subtotal, credits, adjustments, tax, total, currency.",
        ),
    ]
    comparison: Annotated[
        msgspec.Raw,
        _part("passed, how many fields were compared, and the differences."),
    ]
    passed: Annotated[
        bool, msgspec.Meta(description="Nothing differs; also when nothing was expected.")
    ]
    created_at: Instant


class RunSummary(msgspec.Struct, rename="camel", kw_only=True):
    """A run in a list."""

    id: str
    run_id: str
    status: Literal["completed"]
    name: str
    scenario_id: str | None
    batch_id: str | None
    passed: bool
    total: Money
    currency: str
    created_at: Instant


class RunList(msgspec.Struct, rename="camel", kw_only=True):
    """A page of runs, newest first."""

    runs: list[RunSummary]
    total: int
    next_cursor: str | None = None


class BatchRunView(msgspec.Struct, rename="camel", kw_only=True):
    """A run of a batch."""

    run_id: str
    scenario_id: str | None
    passed: bool
    total: Money
    currency: str


class BatchSummary(msgspec.Struct, rename="camel", kw_only=True):
    """How the runs of a batch went."""

    total: int
    passed: int
    failed: int


class BatchView(msgspec.Struct, rename="camel", kw_only=True):
    """Runs that were made together."""

    id: Annotated[str, msgspec.Meta(examples=["batch_0123456789abcdef"])]
    batch_id: Annotated[str, msgspec.Meta(description="The same as id.")]
    tenant_id: TenantId
    status: Literal["completed"]
    name: str
    runs: list[BatchRunView]
    summary: BatchSummary
    passed: bool
    created_at: Instant
