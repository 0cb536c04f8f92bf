"""The library against a second implementation that counts unit by unit: random invoices must agree to the last digit."""

from __future__ import annotations

from decimal import Decimal
from random import Random
from typing import Any

import pytest

from engine.pricing import InvoiceSimulator
from engine.pricing.explain import explain_line
from tests.pricing import brute_force, random_cases


def minor(amount: Decimal, digits: int) -> int:
    shifted = amount.scaleb(digits)
    assert shifted == int(shifted), f"{amount} has more digits than its currency"
    return int(shifted)


def check(rng: Random, cases: int) -> None:
    simulator = InvoiceSimulator()
    for case in range(cases):
        inputs = random_cases.inputs(rng)
        invoice = simulator.simulate(inputs)
        digits = random_cases.DIGITS[invoice.currency]
        found: dict[str, Any] = {
            "lines": [minor(line.subtotal, digits) for line in invoice.line_items],
            "subtotal": minor(invoice.subtotal, digits),
            "credits": minor(invoice.credits, digits),
            "tax": minor(invoice.tax, digits),
            "total": minor(invoice.total, digits),
        }
        assert found == brute_force.invoice(inputs), f"case {case}: {inputs}"
        for line in invoice.line_items:
            assert sum(part.amount for part in explain_line(line)) == line.subtotal


def test_two_thousand_random_invoices_agree_with_counting_unit_by_unit(rng: Random) -> None:
    check(rng, 2_000)


@pytest.mark.slow
def test_twenty_thousand_random_invoices_agree_with_counting_unit_by_unit(rng: Random) -> None:
    check(rng, 20_000)


@pytest.mark.soak
def test_a_hundred_thousand_random_invoices_agree_with_counting_unit_by_unit(rng: Random) -> None:
    check(rng, 100_000)


def test_the_second_implementation_knows_a_case_that_was_worked_out_by_hand() -> None:
    tiers = [{"upTo": 5, "unitPrice": 7}, {"upTo": None, "unitPrice": Decimal("6.5")}]
    price = {"model": "tiered", "currency": "USD", "tiers": tiers}
    item = {"metric": "fonts", "quantity": 6, "priceConfig": price}
    period = {"periodStart": "2026-01-01T00:00:00Z", "periodEnd": "2026-02-01T00:00:00Z"}
    found = brute_force.invoice({**period, "usageItems": [item], "taxRate": 10})
    assert found == {"lines": [4150], "subtotal": 4150, "credits": 0, "tax": 415, "total": 4565}
