"""The rows of the table of routes that are about corrections: adjustments, replay, the audit trail.

Rules it keeps: those of `gateway.table`, which holds all rows. It must not know how a row is served.
"""

from __future__ import annotations

from typing import Final

from gateway import adjustments, audit, parameters, replay
from gateway.routes import Route

ADJUSTMENTS: Final = (
    Route(
        method="GET",
        path="/v1/adjustments",
        handler=adjustments.list_adjustments,
        tag="adjustments",
        summary="List adjustments, newest first",
        description="Late events of one counter are in one adjustment of kind `event` until it is decided.",
        scope="adjustments:read",
        tenancy="optional",
        parameters=adjustments.ADJUSTMENTS_PARAMETERS,
        response=adjustments.AdjustmentList,
    ),
    Route(
        method="POST",
        path="/v1/adjustments",
        handler=adjustments.create_adjustment,
        tag="adjustments",
        summary="Correct a counter",
        description=(
            "A `delta` is added to a sum and may be negative; a `value` replaces a max or last up to now, later events "
            "count on top. It waits until it is approved. Sent again with the same `requestId` it answers the first "
            "one, with 200."
        ),
        scope="adjustments:write",
        tenancy="required",
        parameters=(parameters.TENANT, parameters.NUMBERS),
        request=adjustments.AdjustmentBody,
        response=adjustments.AdjustmentView,
        status=201,
        sends=("Location",),
        other_statuses=(200,),
        errors=(409,),
    ),
    Route(
        method="POST",
        path="/v1/adjustments/approve",
        handler=adjustments.approve_many,
        tag="adjustments",
        summary="Approve all pending adjustments that match",
        description="One decision for a flood of late events: all of them in one commit, or none.",
        scope="adjustments:write",
        tenancy="required",
        parameters=(parameters.TENANT,),
        request=adjustments.DecisionBody,
        response=adjustments.DecisionView,
    ),
    Route(
        method="POST",
        path="/v1/adjustments/revert",
        handler=adjustments.revert_many,
        tag="adjustments",
        summary="Revert all adjustments that match",
        description=(
            "Pending ones are rejected, approved ones no longer count; `status` narrows it to one of the two. "
            "All of them in one commit, or none."
        ),
        scope="adjustments:write",
        tenancy="required",
        parameters=(parameters.TENANT,),
        request=adjustments.DecisionBody,
        response=adjustments.DecisionView,
    ),
    Route(
        method="GET",
        path="/v1/adjustments/{id}",
        handler=adjustments.get_adjustment,
        tag="adjustments",
        summary="One adjustment, with its events",
        scope="adjustments:read",
        tenancy="optional",
        parameters=adjustments.ADJUSTMENT_PARAMETERS,
        response=adjustments.AdjustmentView,
        errors=(404,),
    ),
    Route(
        method="POST",
        path="/v1/adjustments/{id}/approve",
        handler=adjustments.approve_adjustment,
        tag="adjustments",
        summary="Let an adjustment count",
        description="Approving twice changes nothing the second time.",
        scope="adjustments:write",
        tenancy="optional",
        parameters=(parameters.TENANT, parameters.NUMBERS),
        response=adjustments.AdjustmentView,
        errors=(404, 409),
    ),
    Route(
        method="POST",
        path="/v1/adjustments/{id}/revert",
        handler=adjustments.revert_adjustment,
        tag="adjustments",
        summary="Undo or reject an adjustment, for good",
        description="Reverting twice changes nothing the second time.",
        scope="adjustments:write",
        tenancy="optional",
        parameters=(parameters.TENANT, parameters.NUMBERS),
        response=adjustments.AdjustmentView,
        errors=(404, 409),
    ),
)

REPLAY: Final = (
    Route(
        method="POST",
        path="/v1/replay",
        handler=replay.replay,
        tag="adjustments",
        summary="Count late events after all, previewed first",
        description=(
            "A dry run changes nothing and answers a `planHash`; apply with `expect` set to it does exactly that, or "
            "answers 409. Only late events whose adjustment waits are counted, only in open periods. With `watermark` "
            "or `latenessHours` only those that would not have been late by them. Applying twice changes nothing the "
            "second time."
        ),
        scope="adjustments:write",
        tenancy="required",
        parameters=(parameters.TENANT, parameters.NUMBERS),
        request=replay.ReplayBody,
        response=replay.ReplayAnswer,
        errors=(409, 410),
    ),
)

AUDIT: Final = (
    Route(
        method="GET",
        path="/v1/audit",
        handler=audit.list_audit,
        tag="admin",
        summary="Who changed what, when, and what was before",
        description=(
            "Newest first: settings, mappings, customers, API keys, period closings, adjustments, replays, operations."
        ),
        scope="admin",
        tenancy="optional",
        parameters=audit.AUDIT_PARAMETERS,
        response=audit.AuditList,
    ),
)
