"""The rows of the table of routes that are about events of the past: backfills and imports.

Rules it keeps: those of `gateway.table`, which holds all rows. It must not know how a row is served.
"""

from __future__ import annotations

from typing import Final

from engine.core.operations import STATUSES
from gateway import backfills, imports, parameters
from gateway.routes import Route

BACKFILLS: Final = (
    Route(
        method="POST",
        path="/v1/events/backfill",
        handler=backfills.create_backfill,
        tag="backfills",
        summary="Count events of the past, in the background",
        description=(
            "All rows are judged by the watermarks at its start, so their order does not matter; what lies in a closed "
            "period waits in a pending adjustment. The key of a row is its `idempotencyKey`, else a hash over all its "
            "fields: two equal rows without keys are one event. It survives a restart and never runs twice. Larger "
            "files: `stripemeter import`."
        ),
        scope="events:write",
        tenancy="required",
        parameters=(parameters.TENANT,),
        request=backfills.BackfillBody,
        response=backfills.BackfillAsked,
        status=202,
        sends=("Location",),
    ),
    Route(
        method="GET",
        path="/v1/events/backfill",
        handler=backfills.list_backfills,
        tag="backfills",
        summary="List backfills, newest first",
        scope="events:read",
        tenancy="optional",
        parameters=(
            parameters.TENANT,
            parameters.choice("status", "Only with this status.", STATUSES),
            parameters.LIMIT,
            parameters.OFFSET,
        ),
        response=backfills.BackfillList,
    ),
    Route(
        method="GET",
        path="/v1/events/backfill/{id}",
        handler=backfills.get_backfill,
        tag="backfills",
        summary="How far a backfill is, and which rows failed",
        scope="events:read",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        response=backfills.BackfillView,
        errors=(404,),
    ),
    Route(
        method="POST",
        path="/v1/events/backfill/{id}/cancel",
        handler=backfills.cancel_backfill,
        tag="backfills",
        summary="End a backfill early",
        description="What was counted stays counted. Of one that has ended nothing changes.",
        scope="events:write",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        response=backfills.BackfillView,
        errors=(404,),
    ),
)

IMPORTS: Final = (
    Route(
        method="POST",
        path="/v1/events/imports",
        handler=imports.start_import,
        tag="imports",
        summary="Begin an import, or go on with one",
        description=(
            "For `stripemeter import` on a running server. Rows are sent to ingest with the header StripeMeter-Import "
            "and this operation's id, and are all judged by the watermarks at its start. An import that nobody goes on "
            "with for a day is ended."
        ),
        scope="events:write",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        request=imports.ImportBody,
        response=imports.ImportView,
        status=201,
        sends=("Location",),
        errors=(409,),
    ),
    Route(
        method="GET",
        path="/v1/events/imports",
        handler=imports.list_imports,
        tag="imports",
        summary="List imports, newest first",
        scope="events:read",
        tenancy="optional",
        parameters=(parameters.TENANT, parameters.LIMIT, parameters.OFFSET),
        response=imports.ImportList,
    ),
    Route(
        method="GET",
        path="/v1/events/imports/{id}",
        handler=imports.get_import,
        tag="imports",
        summary="How far an import is",
        scope="events:read",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        response=imports.ImportView,
        errors=(404,),
    ),
    Route(
        method="POST",
        path="/v1/events/imports/{id}/progress",
        handler=imports.note_progress,
        tag="imports",
        summary="Note how far an import has come",
        scope="events:write",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        request=imports.ImportProgress,
        response=imports.ImportView,
        errors=(404, 409),
    ),
    Route(
        method="POST",
        path="/v1/events/imports/{id}/finish",
        handler=imports.finish_import,
        tag="imports",
        summary="End an import",
        description="Of one that has ended nothing changes.",
        scope="events:write",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        request=imports.ImportEnd,
        response=imports.ImportView,
        errors=(404,),
    ),
    Route(
        method="POST",
        path="/v1/events/imports/check",
        handler=imports.check_import,
        tag="imports",
        summary="What would become of rows if they were imported now",
        description="Changes nothing.",
        scope="events:read",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        request=imports.CheckBody,
        response=imports.CheckView,
    ),
)
