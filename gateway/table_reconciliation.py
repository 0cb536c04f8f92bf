"""The rows of the table of routes that are about reconciliation.

Rules it keeps: those of `gateway.table`, which holds all rows. It must not know how a row is served.
"""

from __future__ import annotations

from typing import Final

from gateway import parameters, reconciliation
from gateway.reconciliation_shapes import (
    ApplyAnswer,
    ApplyBody,
    JobView,
    ReconciliationRunBody,
    Report,
    Summary,
)
from gateway.routes import Route

RECONCILIATION: Final = (
    Route(
        method="POST",
        path="/v1/reconciliation/run",
        handler=reconciliation.run,
        tag="reconciliation",
        summary="Compare Stripe, what was pushed and what was used now",
        description=(
            "Looks at every total of the tenant, at Stripe's pace. What seems to differ is looked at again after the lag "
            "(STRIPEMETER_RECONCILE_LAG_SECONDS) before it is told; the run ends after that. Runs are forgotten at a "
            "restart; what they found is not."
        ),
        scope="reconciliation:write",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        request=ReconciliationRunBody,
        response=JobView,
        status=202,
        errors=(409,),
    ),
    Route(
        method="GET",
        path="/v1/reconciliation/jobs/{id}",
        handler=reconciliation.get_job,
        tag="reconciliation",
        summary="How far a run has come",
        scope="reconciliation:read",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        response=JobView,
        errors=(404,),
    ),
    Route(
        method="GET",
        path="/v1/reconciliation/summary",
        handler=reconciliation.summary,
        tag="reconciliation",
        summary="Totals per metric over some months",
        scope="reconciliation:read",
        tenancy="optional",
        parameters=reconciliation.SUMMARY_PARAMETERS,
        response=Summary,
        sends=("Content-Disposition",),
        other_content_types=("text/csv",),
    ),
    Route(
        method="POST",
        path="/v1/reconciliation/adjustments",
        handler=reconciliation.apply,
        tag="reconciliation",
        summary="Apply suggestions of reconciliation",
        description=(
            "Each by itself: what one refuses is in its result. A repair is made once; its finding ends when the numbers "
            "agree. `action: accept` leaves the difference as it is, knowingly."
        ),
        scope="reconciliation:write",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        request=ApplyBody,
        response=ApplyAnswer,
    ),
    Route(
        method="GET",
        path="/v1/reconciliation/{period}",
        handler=reconciliation.report,
        tag="reconciliation",
        summary="A month's totals: used, pushed, at Stripe, and why they differ",
        description=(
            "Periods that begin in the month, the worst first. Used and pushed are of now, Stripe's side is of the last "
            "look (`lookedAt`). `investigate`: there is a difference with a cause; `resolved`: there was one."
        ),
        scope="reconciliation:read",
        tenancy="optional",
        parameters=reconciliation.REPORT_PARAMETERS,
        response=Report,
        sends=("Content-Disposition",),
        other_content_types=("text/csv",),
    ),
)
