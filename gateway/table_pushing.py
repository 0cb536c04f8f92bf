"""The rows of the table of routes that are about pushing to Stripe.

Rules it keeps: those of `gateway.table`, which holds all rows. It must not know how a row is served.
"""

from __future__ import annotations

from typing import Final

from gateway import parameters, pushes, stripe_webhook
from gateway.push_shapes import PushView
from gateway.routes import Header, Route

PUSHING: Final = (
    Route(
        method="GET",
        path="/v1/pushes",
        handler=pushes.list_pushes,
        tag="pushes",
        summary="What was pushed to Stripe, target by target",
        description=(
            "`local` is what was used, `billable` its whole units, `pushed` what Stripe acknowledged, `confirmed` what "
            "its summary was found to hold. Mapped usage that goes nowhere is in `unroutable`, with the reason."
        ),
        scope="mappings:read",
        tenancy="optional",
        parameters=pushes.PUSH_PARAMETERS,
        response=pushes.PushList,
    ),
    Route(
        method="POST",
        path="/v1/pushes/flush",
        handler=pushes.flush_pushes,
        tag="pushes",
        summary="Push what is due now, and answer when Stripe has it",
        description=(
            "Call it before a subscription is cancelled or its plan changed. After `timeoutSeconds` it answers with what "
            "is still missing, and why; pushing goes on."
        ),
        scope="mappings:write",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        request=pushes.FlushBody,
        response=pushes.Flushed,
        errors=(409,),
    ),
    Route(
        method="POST",
        path="/v1/pushes/{id}/baseline",
        handler=pushes.decide_baseline,
        tag="pushes",
        summary="Decide what counts as pushed, where Stripe already held something",
        scope="mappings:write",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        request=pushes.BaselineBody,
        response=PushView,
        errors=(404, 409),
    ),
    Route(
        method="POST",
        path="/v1/pushes/{id}/carry-forward",
        handler=pushes.carry_forward,
        tag="pushes",
        summary="Settle what became due after an invoice was final",
        scope="mappings:write",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        request=pushes.CarryBody,
        response=PushView,
        errors=(404, 409),
    ),
    Route(
        method="POST",
        path="/v1/pushes/{id}/settle",
        handler=pushes.settle,
        tag="pushes",
        summary="Say whether a push in quarantine arrived",
        scope="mappings:write",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        request=pushes.SettleBody,
        response=PushView,
        errors=(404, 409),
    ),
    Route(
        method="POST",
        path="/v1/pushes/{id}/resume",
        handler=pushes.resume,
        tag="pushes",
        summary="Push again to what was stopped",
        description="After a customer or subscription that was gone at Stripe is there again.",
        scope="mappings:write",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        response=PushView,
        errors=(404, 409),
    ),
    Route(
        method="POST",
        path="/v1/webhooks/stripe",
        handler=stripe_webhook.receive,
        tag="webhooks",
        summary="What Stripe tells: rejected meter events, final invoices, customers that are gone",
        description=(
            "Signed by Stripe (STRIPE_WEBHOOK_SECRET); no API key. A repetition is answered 200 and does nothing. "
            "Types that mean nothing here are answered 200."
        ),
        response=stripe_webhook.Received,
        takes_raw_body=True,
        errors=(400, 413, 503),
        headers=(
            Header(
                "Stripe-Signature",
                "Time and signatures, as Stripe makes them.",
                {
                    "type": "string",
                    "pattern": "^t=[0-9]+(,v[0-9]+=[0-9a-f]+)+$",
                    "examples": ["t=1769853600,v1=5f1d0c9a"],
                },
            ),
        ),
    ),
)
