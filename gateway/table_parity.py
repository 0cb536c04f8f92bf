"""The rows of the table of routes that are about parity.

Rules it keeps: those of `gateway.table`, which holds all rows. It must not know how a row is served.
"""

from __future__ import annotations

from typing import Final

from gateway import parity
from gateway.routes import Route

PARITY: Final = (
    Route(
        method="GET",
        path="/v1/parity/{month}",
        handler=parity.certify,
        tag="parity",
        summary="A signed certificate: events, counters, adjustments, pushes, Stripe's summaries, projected lines",
        description=(
            "Each customer's chain from its events to what Stripe will bill, with log positions and a verdict, signed. "
            "`stripemeter parity verify` recounts it from the raw log. 410: retention dropped what it is about."
        ),
        scope="reconciliation:read",
        tenancy="required",
        parameters=parity.PARITY_PARAMETERS,
        response=parity.ParityCertificate,
        errors=(410,),
    ),
)
