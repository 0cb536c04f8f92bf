"""The rows of the table of routes that are about erasure and retention.

Rules it keeps: those of `gateway.table`, which holds all rows. It must not know how a row is served.
"""

from __future__ import annotations

from typing import Final

from gateway import keeping, parameters
from gateway.routes import Route

KEEPING: Final = (
    Route(
        method="DELETE",
        path="/v1/customers/{customerRef}",
        handler=keeping.delete_customer,
        tag="customers",
        summary="Erase a customer's name, keys, resources and meta",
        description=(
            "No total changes: the usage stays under an id that takes the name's place at once. Log, archives, "
            "snapshots and index follow in the background; a retry of an erased event is still a duplicate. Bytes of "
            "the log's file that are free are overwritten by the compaction at the next start."
        ),
        scope="admin",
        tenancy="required",
        parameters=(parameters.TENANT, keeping.AS),
        response=keeping.ErasureView,
        status=202,
        errors=(404, 409),
    ),
    Route(
        method="POST",
        path="/v1/admin/erasures",
        handler=keeping.create_erasure,
        tag="erasures",
        summary="Erase a customer, or all customers of a departing tenant",
        scope="admin",
        tenancy="required",
        parameters=(parameters.TENANT,),
        request=keeping.ErasureBody,
        response=keeping.ErasureView,
        status=202,
        errors=(404, 409),
    ),
    Route(
        method="GET",
        path="/v1/admin/erasures/{id}",
        handler=keeping.get_erasure,
        tag="erasures",
        summary="How far an erasure has come",
        scope="admin",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        response=keeping.ErasureView,
        errors=(404,),
    ),
    Route(
        method="POST",
        path="/v1/admin/retention",
        handler=keeping.run_retention,
        tag="admin",
        summary="Archive and drop old events, or say which",
        description=(
            "Only events in closed periods, of every tenant: a tenant's own key is 403, whatever its scopes. They are "
            "archived to files of the data directory first; totals stay. From then on older events are refused, and "
            "questions about the time before answer 410."
        ),
        scope="admin",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        request=keeping.RetentionBody,
        response=keeping.RetentionView,
        errors=(409,),
    ),
)
