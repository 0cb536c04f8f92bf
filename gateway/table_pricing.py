"""Routes of pricing: what usage costs and will cost. Rows of the table (gateway.table); it must not know how they are served."""

from __future__ import annotations

from typing import Final

from gateway import projection
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

PRICING: Final = PROJECTION
