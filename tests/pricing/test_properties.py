"""What holds for every price and every quantity, whatever the numbers are."""

from __future__ import annotations

from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.pricing import (
    InvoiceSimulator,
    PriceConfig,
    PricingError,
    Tier,
    charge,
    price_document,
    read_inputs,
    read_price,
)
from engine.pricing.explain import explain_line
from tests.pricing import random_cases

amounts = st.decimals(0, 1000, places=6)
quantities = st.one_of(st.integers(0, 300).map(Decimal), st.decimals(0, 10**15, places=6))


@st.composite
def tier_tables(draw: st.DrawFn, *, with_fees: bool) -> tuple[Tier, ...]:
    ends = sorted(draw(st.sets(st.integers(1, 250), max_size=5)))
    fees = amounts if with_fees else st.just(Decimal(0))
    tiers = [Tier(Decimal(end), draw(amounts), draw(fees)) for end in ends]
    return (*tiers, Tier(None, draw(amounts), draw(fees)))


@given(amounts, quantities)
def test_one_tier_without_end_is_a_flat_price(unit_price: Decimal, quantity: Decimal) -> None:
    flat = PriceConfig(model="flat", currency="USD", unit_price=unit_price)
    for model in ("tiered", "graduated", "volume"):
        one = PriceConfig(model=model, currency="USD", tiers=(Tier(None, unit_price),))
        assert charge(one, quantity).amount == charge(flat, quantity).amount


@given(tier_tables(with_fees=False), quantities)
def test_graduated_without_fees_is_tiered(tiers: tuple[Tier, ...], quantity: Decimal) -> None:
    graduated = PriceConfig(model="graduated", currency="USD", tiers=tiers)
    tiered = PriceConfig(model="tiered", currency="USD", tiers=tiers)
    assert charge(graduated, quantity) == charge(tiered, quantity)


@given(tier_tables(with_fees=True), quantities, quantities)
def test_more_usage_never_costs_less_except_in_volume(
    tiers: tuple[Tier, ...], one: Decimal, other: Decimal
) -> None:
    price = PriceConfig(model="graduated", currency="USD", tiers=tiers)
    less, more = sorted((one, other))
    assert charge(price, less).amount <= charge(price, more).amount


def test_in_volume_more_usage_can_cost_less() -> None:
    tiers = (Tier(Decimal(5), Decimal(7)), Tier(None, Decimal(1)))
    price = PriceConfig(model="volume", currency="USD", tiers=tiers)
    assert charge(price, Decimal(6)).amount < charge(price, Decimal(5)).amount


@given(tier_tables(with_fees=True), quantities, st.sampled_from(["graduated", "volume"]))
def test_the_parts_sum_to_the_charge_and_their_units_to_the_quantity(
    tiers: tuple[Tier, ...], quantity: Decimal, model: Any
) -> None:
    found = charge(PriceConfig(model=model, currency="USD", tiers=tiers), quantity)
    assert sum(part.quantity for part in found.parts) == quantity
    for part in found.parts:
        assert part.amount == part.quantity * part.unit_price + part.flat_price
    assert sum(part.amount for part in found.parts) == found.amount


@pytest.mark.slow
def test_an_invoices_parts_add_up_whatever_it_holds(rng: Random) -> None:
    for _ in range(500):
        invoice = InvoiceSimulator().simulate(random_cases.inputs(rng))
        assert sum(line.subtotal for line in invoice.line_items) == invoice.subtotal
        taken = sum(draw.amount for draw in invoice.draws)
        assert taken == invoice.credits == invoice.commitments_applied + invoice.credits_applied
        rest = invoice.subtotal - invoice.credits + invoice.adjustments
        assert rest + invoice.tax == invoice.total
        assert rest >= 0
        for line in invoice.line_items:
            assert sum(part.amount for part in explain_line(line)) == line.subtotal


@pytest.mark.slow
def test_the_order_of_items_commitments_and_credits_changes_no_amount(rng: Random) -> None:
    for _ in range(500):
        inputs = random_cases.inputs(rng)
        before = InvoiceSimulator().simulate(inputs)
        for field in ("usageItems", "commitments", "credits"):
            if field in inputs:
                rng.shuffle(inputs[field])
        after = InvoiceSimulator().simulate(inputs)
        amounts_of = [
            (one.subtotal, one.commitments_applied, one.credits_applied, one.tax, one.total)
            for one in (before, after)
        ]
        assert amounts_of[0] == amounts_of[1], inputs
        taken = [sorted((draw.kind, draw.amount) for draw in one.draws) for one in (before, after)]
        assert taken[0] == taken[1], inputs


def test_a_configuration_written_as_a_document_reads_back_equal(rng: Random) -> None:
    for _ in range(300):
        price = read_price(random_cases.price(rng, "USD"))
        assert read_price(price_document(price)) == price


def test_snake_case_and_camel_case_are_the_same_document(rng: Random) -> None:
    for _ in range(50):
        inputs = random_cases.inputs(rng)
        assert read_inputs(_snake(inputs)) == read_inputs(inputs)


def _snake(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            "".join(f"_{char.lower()}" if char.isupper() else char for char in name): _snake(one)
            for name, one in value.items()
        }
    return [_snake(one) for one in value] if isinstance(value, list) else value


@given(st.integers(1, 10**15).map(Decimal), st.decimals(0, 10**6, places=12))
def test_the_callers_own_decimal_context_changes_nothing(quantity: Decimal, unit: Decimal) -> None:
    from decimal import ROUND_DOWN, localcontext

    price = PriceConfig(model="flat", currency="USD", unit_price=unit)
    inputs = {
        "customerId": "c",
        "periodStart": "2026-01-01",
        "periodEnd": "2026-02-01",
        "usageItems": [{"metric": "m", "quantity": quantity, "priceConfig": price}],
        "taxRate": "7.25",
    }
    usual = InvoiceSimulator().simulate(inputs)
    with localcontext(prec=3, rounding=ROUND_DOWN):
        strange = InvoiceSimulator().simulate(inputs)
    assert usual == strange


@pytest.mark.parametrize(
    "value", [0.1, 1.0, float("nan"), True, None, [], b"1", "1,5", "0x10", "٣"]
)
def test_what_is_not_an_exact_number_is_refused_and_never_guessed(value: Any) -> None:
    item = {
        "metric": "m",
        "quantity": value,
        "priceConfig": {"model": "flat", "currency": "USD", "unitPrice": 1},
    }
    inputs = {
        "customerId": "c",
        "periodStart": "2026-01-01",
        "periodEnd": "2026-02-01",
        "usageItems": [item],
    }
    with pytest.raises(PricingError) as caught:
        InvoiceSimulator().simulate(inputs)
    assert caught.value.field == "usageItems[0].quantity"
