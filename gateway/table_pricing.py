"""Rows of the table of routes (gateway.table) about pricing: projections, scenarios, runs, backtests.

It must not know how a row is served.
"""

from __future__ import annotations

from typing import Final

from engine.core.simulation_records import DOCUMENT_CHARS_MAX
from engine.core.simulations import (
    RUNS_CHARS_MAX,
    RUNS_MAX,
    SCENARIOS_CHARS_MAX,
    SCENARIOS_MAX,
)
from gateway import backtests, parameters, projection, simulation_shapes, simulations
from gateway.routes import Route

PROJECTION: Final = (
    Route(
        method="POST",
        path="/v1/usage/projection",
        handler=projection.projection,
        tag="usage",
        summary="What the invoice would be now, and at the period's end",
        description=(
            "Each metric at the price that Stripe bills it by: that of the customer's own subscription item, else of the "
            "mapping's priceId, else (without a subscription) the mapping's priceConfig; `price` says which, and how old "
            "it is. A metric without a price has `total: null` and a reason; then the answer is not `complete`. "
            "`projected` extrapolates a running period and gives its range. Commitments, credits and taxes are not known here."
        ),
        scope="usage:read",
        tenancy="required",
        parameters=projection.PROJECTION_PARAMETERS,
        request=projection.ProjectionBody,
        response=projection.Projection,
        errors=(410,),
    ),
)

_LISTED: Final = (parameters.LIMIT, parameters.OFFSET, parameters.CURSOR)
_SCENARIOS: Final = "/v1/simulations/scenarios"
_BOUNDS: Final = (
    f"A tenant keeps {SCENARIOS_MAX} scenarios, {SCENARIOS_CHARS_MAX >> 20} MiB together; a scenario has at most "
    f"{DOCUMENT_CHARS_MAX} characters."
)
_KEPT: Final = (
    f"Of each tenant the newest {RUNS_MAX} are kept, {RUNS_CHARS_MAX >> 20} MiB together."
)

SCENARIOS: Final = (
    Route(
        method="GET",
        path=_SCENARIOS,
        handler=simulations.list_scenarios,
        tag="simulations",
        summary="List scenarios",
        scope="simulation:read",
        tenancy="required",
        parameters=(parameters.TENANT, *_LISTED),
        response=simulation_shapes.ScenarioList,
    ),
    Route(
        method="POST",
        path=_SCENARIOS,
        handler=simulations.create_scenario,
        tag="simulations",
        summary="Keep a scenario",
        description=f"Everything that is wrong in it is named, field by field. {_BOUNDS}",
        scope="simulation:write",
        tenancy="required",
        parameters=(parameters.TENANT,),
        request=simulation_shapes.ScenarioBody,
        response=simulation_shapes.ScenarioView,
        status=201,
        sends=("Location",),
        errors=(409,),
    ),
    Route(
        method="GET",
        path=f"{_SCENARIOS}/{{id}}",
        handler=simulations.get_scenario,
        tag="simulations",
        summary="One scenario",
        scope="simulation:read",
        tenancy="required",
        parameters=(parameters.TENANT,),
        response=simulation_shapes.ScenarioView,
        errors=(404,),
    ),
    Route(
        method="PUT",
        path=f"{_SCENARIOS}/{{id}}",
        handler=simulations.update_scenario,
        tag="simulations",
        summary="Change a scenario",
        description="Fields given replace, fields left out stay, null clears. Runs that were made stay as they are.",
        scope="simulation:write",
        tenancy="required",
        parameters=(parameters.TENANT,),
        request=simulation_shapes.ScenarioBody,
        response=simulation_shapes.ScenarioView,
        errors=(404, 409),
    ),
    Route(
        method="DELETE",
        path=f"{_SCENARIOS}/{{id}}",
        handler=simulations.delete_scenario,
        tag="simulations",
        summary="Delete a scenario; its runs stay",
        scope="simulation:write",
        tenancy="required",
        parameters=(parameters.TENANT,),
        status=204,
        errors=(404,),
    ),
)

RUNS: Final = (
    Route(
        method="GET",
        path="/v1/simulations/runs",
        handler=simulations.list_runs,
        tag="simulations",
        summary="List runs, the newest first",
        description=_KEPT,
        scope="simulation:read",
        tenancy="required",
        parameters=(
            parameters.TENANT,
            parameters.text("scenarioId", "Only of this scenario."),
            parameters.text("batchId", "Only of this batch."),
            parameters.choice("passed", "Only those that passed, or did not.", ("true", "false")),
            parameters.NUMBERS,
            *_LISTED,
        ),
        response=simulation_shapes.RunList,
    ),
    Route(
        method="POST",
        path="/v1/simulations/runs",
        handler=simulations.create_run,
        tag="simulations",
        summary="Compute a scenario's invoice and compare it with what is expected",
        description=_KEPT,
        scope="simulation:write",
        tenancy="required",
        parameters=(parameters.TENANT, parameters.NUMBERS),
        request=simulation_shapes.RunBody,
        response=simulation_shapes.RunView,
        status=201,
        sends=("Location",),
        errors=(404,),
    ),
    Route(
        method="GET",
        path="/v1/simulations/runs/{id}",
        handler=simulations.get_run,
        tag="simulations",
        summary="One run with its result",
        scope="simulation:read",
        tenancy="required",
        parameters=(parameters.TENANT, parameters.NUMBERS),
        response=simulation_shapes.RunView,
        errors=(404,),
    ),
    Route(
        method="POST",
        path="/v1/simulations/batch",
        handler=simulations.create_batch,
        tag="simulations",
        summary="Run several scenarios: all of them, or none",
        scope="simulation:write",
        tenancy="required",
        parameters=(parameters.TENANT, parameters.NUMBERS),
        request=simulation_shapes.BatchBody,
        response=simulation_shapes.BatchView,
        status=201,
        sends=("Location",),
        errors=(404,),
    ),
    Route(
        method="GET",
        path="/v1/simulations/batch/{id}",
        handler=simulations.get_batch,
        tag="simulations",
        summary="One batch and how its runs went",
        scope="simulation:read",
        tenancy="required",
        parameters=(parameters.TENANT, parameters.NUMBERS),
        response=simulation_shapes.BatchView,
        errors=(404,),
    ),
)

BACKTEST: Final = (
    Route(
        method="POST",
        path="/v1/simulations/backtest",
        handler=backtests.backtest,
        tag="simulations",
        summary="What recorded usage would have cost at another price",
        description=(
            "Every total of the periods that begin in the range, at the customer's price of today (as the projection has "
            "it) and at the candidate's: revenue by month, who would pay less or more, and by how much. Lines are "
            "compared, with minimum and maximum; commitments, credits and taxes are left out. What can't be compared is "
            "listed in `skipped`. Nothing is stored."
        ),
        scope="simulation:write",
        tenancy="required",
        parameters=backtests.BACKTEST_PARAMETERS,
        request=backtests.BacktestBody,
        response=backtests.BacktestView,
    ),
)

PRICING: Final = PROJECTION + SCENARIOS + RUNS + BACKTEST
