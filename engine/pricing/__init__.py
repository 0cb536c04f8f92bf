"""The pricing library: what usage costs, to the cent that Stripe would bill. Pure, and importable alone.

    from engine.pricing import InvoiceSimulator

    invoice = InvoiceSimulator().simulate(
        customer_id="cus_anna",
        period_start="2026-01-01",
        period_end="2026-02-01",
        usage_items=[
            {
                "metric": "api_calls",
                "quantity": 25_000,
                "price_config": {
                    "model": "tiered",
                    "currency": "USD",
                    "tiers": [
                        {"up_to": 10_000, "unit_price": "0.01"},
                        {"up_to": 50_000, "unit_price": "0.008"},
                        {"up_to": None, "unit_price": "0.005"},
                    ],
                },
            }
        ],
    )
    assert str(invoice.total) == "220.00"

It serves the simulator, the projection, the reconciliation and backtests, so that all of them say the same number. It
must not know the rest of the engine (only engine.errors), any clock, file, network or Stripe's client. docs/pricing.md
is its guide, docs/decisions/0010-pricing.md gives the reasons.
"""

from __future__ import annotations

from engine.pricing.charges import Charge, TierPart, charge
from engine.pricing.documents import (
    invoice_document,
    price_document,
    read_inputs,
    read_price,
)
from engine.pricing.errors import PricingError
from engine.pricing.invoice import (
    Commitment,
    Credit,
    Invoice,
    InvoiceInput,
    LineItem,
    UsageItem,
    make_invoice,
)
from engine.pricing.prices import PriceConfig, Tier
from engine.pricing.simulator import InvoiceSimulator

__all__ = [
    "Charge",
    "Commitment",
    "Credit",
    "Invoice",
    "InvoiceInput",
    "InvoiceSimulator",
    "LineItem",
    "PriceConfig",
    "PricingError",
    "Tier",
    "TierPart",
    "UsageItem",
    "charge",
    "invoice_document",
    "make_invoice",
    "price_document",
    "read_inputs",
    "read_price",
]
