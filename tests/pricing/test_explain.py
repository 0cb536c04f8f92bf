"""Explaining a line: its parts in words, and the sum of them, which is the line."""

from __future__ import annotations

from typing import Any

import pytest

from engine.pricing import InvoiceSimulator, LineItem
from engine.pricing.explain import explain_line

TIERS = [
    {"upTo": 10, "unitPrice": "0.333", "flatPrice": 1},
    {"upTo": None, "unitPrice": "0.1", "flatPrice": "2.5"},
]


def line(quantity: Any, price: dict[str, Any], **more: Any) -> LineItem:
    item = {
        "metric": "calls",
        "quantity": quantity,
        "priceConfig": {"currency": "USD", **price},
        **more,
    }
    invoice = InvoiceSimulator().simulate(
        customer_id="c", period_start="2026-01-01", period_end="2026-02-01", usage_items=[item]
    )
    return invoice.line_items[0]


@pytest.mark.parametrize(
    ("made", "parts"),
    [
        (
            line(12, {"model": "graduated", "tiers": TIERS}),
            [
                ("units", "10 calls at 0.333 in the tier above 0 to 10", "3.330"),
                ("flatFee", "flat fee in the tier above 0 to 10", "1"),
                ("units", "2 calls at 0.1 in the tier above 10 without end", "0.2"),
                ("flatFee", "flat fee in the tier above 10 without end", "2.5"),
            ],
        ),
        (
            line(1, {"model": "flat", "unitPrice": "0.005"}),
            [("units", "1 calls at 0.005", "0.005"), ("rounding", "half up to 0.01 USD", "0.005")],
        ),
        (
            line(7, {"model": "package", "unitPrice": 10, "packageSize": 5, "maximumCharge": 15}),
            [("units", "2 packages of 5 at 10", "20"), ("maximum", "cut to 15", "-5")],
        ),
        (
            line(1, {"model": "flat", "unitPrice": 1, "minimumCharge": 31}, startDate="2026-01-31"),
            [
                ("units", "1 calls at 1", "1"),
                ("minimum", "raised to 31", "30"),
                ("proration", "86400 of 2678400 seconds, rounded half up", "-30.00"),
            ],
        ),
    ],
)
def test_the_parts_of_a_line_are_told_and_sum_to_it_exactly(
    made: LineItem, parts: list[tuple[str, str, str]]
) -> None:
    found = explain_line(made)
    assert [(part.kind, part.text, f"{part.amount:f}") for part in found] == parts
    assert sum(part.amount for part in found) == made.subtotal
