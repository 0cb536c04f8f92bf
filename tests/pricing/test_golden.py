"""Worked cases, each by hand: every model at, one below and one above each tier's end, and each step of an invoice."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from engine.pricing import Invoice, InvoiceSimulator

JANUARY = {"periodStart": "2026-01-01", "periodEnd": "2026-02-01"}
THREE_TIERS = [
    {"upTo": 10_000, "unitPrice": "0.01"},
    {"upTo": 50_000, "unitPrice": "0.008"},
    {"upTo": None, "unitPrice": "0.005"},
]
WITH_FEES = [
    {"upTo": 10, "unitPrice": 2, "flatPrice": 5},
    {"upTo": 20, "unitPrice": 1, "flatPrice": 3},
    {"upTo": None, "unitPrice": "0.5", "flatPrice": 1},
]
FONTS = [
    {"upTo": 5, "unitPrice": 7},
    {"upTo": 10, "unitPrice": "6.5"},
    {"upTo": None, "unitPrice": 6},
]


def invoice(items: list[dict[str, Any]], **more: Any) -> Invoice:
    inputs = {"customerId": "cus_anna", **JANUARY, "usageItems": items, **more}
    return InvoiceSimulator().simulate(inputs)


def item(quantity: Any, model: str, currency: str = "USD", **price: Any) -> dict[str, Any]:
    config = {"model": model, "currency": currency, **price}
    return {"metric": "units", "quantity": quantity, "priceConfig": config}


def total(quantity: Any, model: str, currency: str = "USD", **price: Any) -> str:
    return str(invoice([item(quantity, model, currency, **price)]).total)


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        (0, "0.00"),
        (1, "0.01"),
        (9_999, "99.99"),
        (10_000, "100.00"),
        (10_001, "100.01"),  # 100.008
        (25_000, "220.00"),
        (49_999, "419.99"),  # 419.992
        (50_000, "420.00"),
        (50_001, "420.01"),  # 420.005, half up
        (60_000, "470.00"),
    ],
)
def test_tiered_prices_each_unit_in_its_own_tier(quantity: int, expected: str) -> None:
    assert total(quantity, "tiered", tiers=THREE_TIERS) == expected


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        (0, "5.00"),  # the first tier is always reached
        (1, "7.00"),
        (9, "23.00"),
        (10, "25.00"),
        (11, "29.00"),  # 25 + 3 + 1
        (19, "37.00"),
        (20, "38.00"),
        (21, "39.50"),  # 38 + 1 + 0.5
        (100, "79.00"),
    ],
)
def test_graduated_adds_the_fee_of_every_tier_that_is_reached(quantity: int, expected: str) -> None:
    assert total(quantity, "graduated", tiers=WITH_FEES) == expected


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        (0, "5.00"),
        (1, "7.00"),
        (9, "23.00"),
        (10, "25.00"),
        (11, "14.00"),  # 11 x 1 + 3
        (19, "22.00"),
        (20, "23.00"),
        (21, "11.50"),  # 21 x 0.5 + 1
        (100, "51.00"),
    ],
)
def test_volume_prices_all_units_at_the_reached_tier_with_its_fee(
    quantity: int, expected: str
) -> None:
    assert total(quantity, "volume", tiers=WITH_FEES) == expected


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        (1, "7.00"),
        (5, "35.00"),
        (6, "39.00"),
        (10, "65.00"),
        (11, "66.00"),
        (20, "120.00"),
        (25, "150.00"),
    ],
)
def test_stripes_own_table_of_volume_pricing(quantity: int, expected: str) -> None:
    assert total(quantity, "volume", tiers=FONTS) == expected


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [(1, "7.00"), (5, "35.00"), (6, "41.50"), (10, "67.50"), (20, "127.50"), (25, "157.50")],
)
def test_stripes_own_table_of_graduated_pricing(quantity: int, expected: str) -> None:
    assert total(quantity, "graduated", tiers=FONTS) == expected


@pytest.mark.parametrize(
    ("quantity", "size", "rounding", "expected"),
    [
        (0, 5, "up", "0.00"),
        (1, 5, "up", "10.00"),
        (3, 5, "up", "10.00"),
        (5, 5, "up", "10.00"),
        (6, 5, "up", "20.00"),
        (7, 5, "up", "20.00"),
        (150, 60, "up", "30.00"),
        ("60.000001", 60, "up", "20.00"),
        (4, 5, "down", "0.00"),
        (5, 5, "down", "10.00"),
        (9, 5, "down", "10.00"),
        (10, 5, "down", "20.00"),
    ],
)
def test_packages_are_whole_and_a_started_one_counts_unless_rounded_down(
    quantity: Any, size: int, rounding: str, expected: str
) -> None:
    assert (
        total(quantity, "package", unitPrice=10, packageSize=size, packageRounding=rounding)
        == expected
    )


def test_a_package_is_rounded_up_when_nothing_is_said() -> None:
    assert total(6, "package", unitPrice=10, packageSize=5) == "20.00"


@pytest.mark.parametrize(
    ("quantity", "price", "currency", "expected"),
    [
        (30, "0.0005", "USD", "0.02"),  # Stripe's case: 1.5 cents
        (25, "0.0005", "USD", "0.01"),  # 1.25 cents
        (50, "0.0005", "USD", "0.03"),  # 2.5 cents: half even would say 2
        (5, "0.1", "JPY", "1"),  # half a yen
        (25, "0.1", "JPY", "3"),
        (4, "0.1", "JPY", "0"),
        (1, "0.0005", "KWD", "0.001"),
        (5, "0.0005", "KWD", "0.003"),
        (1, "12.34", "KWD", "12.340"),
        (7, "1.5", "ISK", "11"),
        ("999999999999999.999999", "0.000000000001", "USD", "1000.00"),
    ],
)
def test_money_is_rounded_half_up_to_the_currencys_minor_unit(
    quantity: Any, price: str, currency: str, expected: str
) -> None:
    assert total(quantity, "flat", currency, unitPrice=price) == expected


def test_a_line_is_rounded_once_and_not_tier_by_tier() -> None:
    tiers = [
        {"upTo": 1, "unitPrice": "0.004"},
        {"upTo": 2, "unitPrice": "0.004"},
        {"unitPrice": 0, "upTo": None},
    ]
    assert total(2, "tiered", tiers=tiers) == "0.01"  # 0.008; each tier alone would be 0.00


def test_lines_are_rounded_before_they_are_summed() -> None:
    lines = [item(1, "flat", unitPrice="0.005")] * 2
    assert str(invoice(lines).subtotal) == "0.02"  # the exact sum is 0.01


@pytest.mark.parametrize(
    ("quantity", "minimum", "maximum", "expected"),
    [
        (0, 50, None, "50.00"),
        (49, 50, None, "50.00"),
        (51, 50, None, "51.00"),
        (99, None, 100, "99.00"),
        (101, None, 100, "100.00"),
        (10, None, 0, "0.00"),
        (10, 0, 0, "0.00"),
        (10, 20, 20, "20.00"),
    ],
)
def test_a_line_is_raised_to_its_minimum_and_cut_to_its_maximum(
    quantity: int, minimum: int | None, maximum: int | None, expected: str
) -> None:
    limits = {"minimumCharge": minimum, "maximumCharge": maximum}
    assert total(quantity, "flat", unitPrice=1, **limits) == expected


def test_the_minimum_charge_is_of_the_line_and_credits_pay_it_too() -> None:
    items = [item(1, "flat", unitPrice=1, minimumCharge=50)]
    found = invoice(items, credits=[{"amount": 30, "reason": "x"}])
    assert (str(found.subtotal), str(found.total)) == ("50.00", "20.00")


@pytest.mark.parametrize(
    ("commitment", "applied", "total_left"),
    [
        ({"amount": 60, "applied": 0}, "60.00", "40.00"),
        ({"amount": 100}, "100.00", "0.00"),
        ({"amount": 500}, "100.00", "0.00"),  # larger than the bill: no charge is added
        ({"amount": 500, "applied": 470}, "30.00", "70.00"),
        ({"amount": 500, "applied": 500}, "0.00", "100.00"),
        ({"amount": 500, "applied": 700}, "0.00", "100.00"),  # never a charge
    ],
)
def test_a_commitment_draws_down_what_is_left_of_it_and_of_the_bill(
    commitment: dict[str, Any], applied: str, total_left: str
) -> None:
    dates = {"startDate": "2026-01-01", "endDate": "2027-01-01"}
    found = invoice([item(100, "flat", unitPrice=1)], commitments=[{**commitment, **dates}])
    assert (str(found.commitments_applied), str(found.total)) == (applied, total_left)


@pytest.mark.parametrize(
    ("start", "end", "counts"),
    [
        ("2025-01-01", "2026-01-01", False),  # ended when the period began
        ("2025-01-01", "2026-01-01T00:00:01Z", True),
        ("2026-02-01", "2027-01-01", False),
        ("2026-01-31T23:59:59Z", "2027-01-01", True),
    ],
)
def test_a_commitment_counts_while_it_overlaps_the_period(
    start: str, end: str, *, counts: bool
) -> None:
    commitment = {"amount": 10, "startDate": start, "endDate": end}
    found = invoice([item(100, "flat", unitPrice=1)], commitments=[commitment])
    assert (found.credits == 10) is counts


@pytest.mark.parametrize(
    ("expires", "counts"),
    [
        (None, True),
        ("2026-01-31T23:59:59Z", False),
        ("2026-02-01", True),
        ("2026-02-01T01:00:00+01:00", True),
        ("2026-02-01T00:59:59+01:00", False),
    ],
)
def test_a_credit_counts_unless_it_expired_before_the_periods_end(
    expires: str | None, *, counts: bool
) -> None:
    credit = {"amount": 10, "reason": "x", "expiresAt": expires}
    found = invoice([item(100, "flat", unitPrice=1)], credits=[credit])
    assert (found.credits == 10) is counts


def test_commitments_pay_first_then_credits_then_comes_tax_on_the_rest() -> None:
    found = invoice(
        [item(100, "flat", unitPrice=1)],
        commitments=[{"amount": 40, "startDate": "2026-01-01", "endDate": "2027-01-01"}],
        credits=[{"amount": 25, "reason": "x"}],
        taxRate="8.5",
    )
    amounts = (found.subtotal, found.credits, found.adjustments, found.tax, found.total)
    # 35 x 8.5 % = 2.975
    assert [str(amount) for amount in amounts] == ["100.00", "65.00", "0.00", "2.98", "37.98"]
    assert [(draw.kind, str(draw.amount)) for draw in found.draws] == [
        ("commitment", "40.00"),
        ("credit", "25.00"),
    ]


def test_credits_are_never_paid_out() -> None:
    found = invoice(
        [item(10, "flat", unitPrice=1)], credits=[{"amount": 25, "reason": "x"}], taxRate=20
    )
    assert (str(found.credits), str(found.tax), str(found.total)) == ("10.00", "0.00", "0.00")


def test_what_expires_first_is_used_first() -> None:
    credits_ = [
        {"amount": 10, "reason": "forever"},
        {"amount": 10, "reason": "later", "expiresAt": "2026-06-01"},
        {"amount": 10, "reason": "soon", "expiresAt": "2026-03-01"},
    ]
    found = invoice([item(15, "flat", unitPrice=1)], credits=credits_)
    assert [(draw.place, str(draw.amount)) for draw in found.draws] == [(2, "10.00"), (1, "5.00")]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, "31.00"),
        ("2026-01-31", None, "1.00"),
        (None, "2026-01-02", "1.00"),
        ("2025-06-01", "2026-01-11", "10.00"),
        ("2026-01-31T12:00:00Z", None, "0.50"),
        ("2026-01-31T23:00:00Z", None, "0.04"),  # an hour of a day's 1.00: 0.0416...
        ("2026-01-31T23:59:00Z", None, "0.00"),
        ("2026-02-01", None, "0.00"),
        (None, "2026-01-01", "0.00"),
    ],
)
def test_a_line_is_prorated_by_the_second(
    start: str | None, end: str | None, expected: str
) -> None:
    one = {**item(1, "flat", unitPrice=31), "startDate": start, "endDate": end}
    assert str(invoice([one]).total) == expected


def test_a_minimum_charge_is_prorated_with_its_line() -> None:
    one = {**item(0, "flat", unitPrice=1, minimumCharge=31), "startDate": "2026-01-31"}
    assert str(invoice([one]).total) == "1.00"


def test_proration_rounds_a_half_of_the_exact_share_up() -> None:
    # A cent for one of two seconds is exactly half a cent.
    one = {**item(1, "flat", unitPrice="0.01"), "startDate": "2026-01-01T00:00:01Z"}
    period = {"periodStart": "2026-01-01", "periodEnd": "2026-01-01T00:00:02Z"}
    assert str(invoice([one], **period).total) == "0.01"


def test_a_negative_total_is_billed_as_nothing_and_says_so() -> None:
    found = invoice([item(-5, "flat", unitPrice=1)])
    assert str(found.total) == "0.00"
    assert "below zero: billed as 0" in found.line_items[0].description


@pytest.mark.parametrize(
    ("quantity", "price", "expected"),
    [
        (25_000, {"model": "tiered", "tiers": THREE_TIERS}, "0.0088"),
        (0, {"model": "tiered", "tiers": THREE_TIERS}, "0.01"),
        (3, {"model": "flat", "unitPrice": "0.001"}, "0.001"),
        (3, {"model": "package", "unitPrice": 10, "packageSize": 5}, "10"),
        (11, {"model": "volume", "tiers": WITH_FEES}, "1"),
        (3, {"model": "graduated", "tiers": WITH_FEES}, "3.666666666667"),
    ],
)
def test_a_lines_unit_price_is_the_configured_one_or_the_average(
    quantity: int, price: dict[str, Any], expected: str
) -> None:
    one = {"metric": "units", "quantity": quantity, "priceConfig": {"currency": "USD", **price}}
    assert invoice([one]).line_items[0].unit_price == Decimal(expected)
