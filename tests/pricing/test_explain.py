"""Explaining a line: its parts in words, and the sum of them, which is the line."""

from __future__ import annotations

from decimal import Decimal
from random import Random
from typing import Any

import pytest

from engine.pricing import (
    InvoiceInput,
    InvoiceSimulator,
    LineItem,
    PriceConfig,
    UsageItem,
    make_invoice,
    read_price,
)
from engine.pricing.explain import Share, explain_line, spread_line

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


@pytest.mark.parametrize("seed", range(300))
def test_what_filled_a_tier_sums_to_it_whatever_the_order_and_the_corrections(seed: int) -> None:
    print(f"seed {seed}")
    rng = Random(seed)
    price = random_price(rng)
    steps = [Decimal(rng.randint(-300, 1000)).scaleb(-rng.randint(0, 2)) for _ in range(9)]
    after = [sum(steps[: index + 1], Decimal(0)) for index in range(len(steps))]
    line = line_of_price(price, after[-1])
    shares = spread_line(line, after)
    assert len(shares) == len(line.tiers)
    flat_fees = sum((tier.flat_price for tier in line.tiers), Decimal(0))
    total = sum((share.amount for of in shares for share in of), Decimal(0))
    assert total + flat_fees == line.charge
    for tier, of in zip(line.tiers, shares, strict=True):
        assert sum((share.quantity for share in of), Decimal(0)) == tier.quantity
        assert [share.step for share in of] == sorted({share.step for share in of})
    if price.model in ("flat", "volume") and all(step >= 0 for step in steps):
        assert {share.step: share.quantity for share in shares[0]} == {
            index: step for index, step in enumerate(steps) if step
        }


def test_units_fill_the_tiers_in_the_order_in_which_they_came() -> None:
    tiers = [{"upTo": 10, "unitPrice": 3}, {"upTo": None, "unitPrice": 1, "flatPrice": 7}]
    price = read_price({"model": "graduated", "currency": "USD", "tiers": tiers})
    line = line_of_price(price, Decimal(14))
    first, second = spread_line(line, [Decimal(6), Decimal(6), Decimal(18), Decimal(14)])
    assert first == (Share(0, Decimal(6), Decimal(18)), Share(2, Decimal(4), Decimal(12)))
    assert second == (Share(2, Decimal(8), Decimal(8)), Share(3, Decimal(-4), Decimal(-4)))
    packages = read_price(
        {"model": "package", "currency": "USD", "unitPrice": 2, "packageSize": 10}
    )
    (of,) = spread_line(line_of_price(packages, Decimal(25)), [Decimal(4), Decimal(9), Decimal(25)])
    assert of == (Share(0, Decimal(1), Decimal(2)), Share(2, Decimal(2), Decimal(4)))
    assert spread_line(line_of_price(price, Decimal(0)), []) == ((),)


def random_price(rng: Random) -> PriceConfig:
    model = rng.choice(["flat", "package", "tiered", "graduated", "volume"])
    document: dict[str, Any] = {"model": model, "currency": rng.choice(["USD", "JPY", "KWD"])}
    if model in ("flat", "package"):
        document["unitPrice"] = f"0.{rng.randint(0, 9999):04d}"
    if model == "package":
        document |= {
            "packageSize": rng.randint(1, 90),
            "packageRounding": rng.choice(["up", "down"]),
        }
    if "unitPrice" not in document:
        ends = sorted(rng.sample(range(1, 2000), rng.randint(0, 4)))
        document["tiers"] = [
            {"upTo": end, "unitPrice": f"0.{rng.randint(0, 9999):04d}"}
            | ({} if model == "tiered" else {"flatPrice": rng.randint(0, 5)})
            for end in [*ends, None]
        ]
    return read_price(document)


def line_of_price(price: PriceConfig, quantity: Decimal) -> LineItem:
    inputs = InvoiceInput(
        customer_id="c",
        period_start_us=0,
        period_end_us=10**9,
        usage_items=[UsageItem("calls", quantity, price)],
    )
    return make_invoice(inputs).line_items[0]
