"""One line of a bill from a price's text: what a total of units costs in a whole period. Pure.

It must not know customers, credits or taxes: a line knows none either.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import NamedTuple

from engine.pricing.documents import read_price
from engine.pricing.invoice import InvoiceInput, UsageItem, make_invoice


class PricedLine(NamedTuple):
    """What would be billed, in the currency's digits."""

    amount: str
    currency: str


def priced_line(price_config: str, units: int, start_us: int, end_us: int) -> PricedLine:
    """The line of these units at a price given as JSON text. Raises PricingError or ValueError."""
    price = read_price(json.loads(price_config, parse_float=Decimal))
    item = UsageItem("usage", Decimal(units), price)
    invoice = make_invoice(
        InvoiceInput(
            customer_id="",
            period_start_us=start_us,
            period_end_us=end_us,
            usage_items=(item,),
        )
    )
    return PricedLine(f"{invoice.line_items[0].subtotal:f}", invoice.currency)
