"""Scenarios: what is compared, within which tolerance, and that nothing misspelled can pass."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from engine.pricing import PricingError
from engine.pricing.scenarios import read_scenario, record, run

FLAT = {"model": "flat", "currency": "USD", "unitPrice": 1}
INPUTS: dict[str, Any] = {
    "customerId": "cus_anna",
    "periodStart": "2026-01-01",
    "periodEnd": "2026-02-01",
    "usageItems": [{"metric": "calls", "quantity": 100, "priceConfig": FLAT}],
    "taxRate": 10,
}


def differing(expected: Any, tolerances: Any = None, **more: Any) -> list[str]:
    document = {"inputs": INPUTS, "expected": expected, "tolerances": tolerances, **more}
    return [one.field for one in run(read_scenario(document)).differences]


@pytest.mark.parametrize(
    ("expected", "fields"),
    [
        ({}, []),
        ({"total": 110}, []),
        ({"total": "110.00", "tax": 10, "subtotal": Decimal(100), "currency": "usd"}, []),
        ({"total": "110.01"}, ["total"]),
        ({"total": 109, "tax": 9}, ["tax", "total"]),
        ({"currency": "EUR"}, ["currency"]),
        ({"customerId": "cus_bert"}, ["customerId"]),
        ({"periodStart": "2026-01-01", "periodEnd": "2026-02-01T01:00:00+01:00"}, []),
        ({"periodEnd": "2026-02-01T00:00:01Z"}, ["periodEnd"]),
        ({"lineItems": [{"metric": "calls", "subtotal": 100}]}, []),
        (
            {"lineItems": [{"metric": "mails", "subtotal": 99}]},
            ["lineItems[0].subtotal", "lineItems[0].metric"],
        ),
        ({"lineItems": []}, ["lineItems.length"]),
        ({"lineItems": [{}, {"subtotal": 0}]}, ["lineItems.length", "lineItems[1].subtotal"]),
    ],
)
def test_what_is_expected_is_compared_and_nothing_else(expected: Any, fields: list[str]) -> None:
    assert differing(expected) == fields


@pytest.mark.parametrize(
    ("tolerances", "passes"),
    [
        (None, False),
        ("0.49", False),
        ("0.5", True),
        ({"absolute": "0.5"}, True),
        ({"absolute": "0.49"}, False),
        ({"relative": "0.0046"}, True),  # of 109.50: 0.5037
        ({"relative": "0.0045"}, False),  # 0.49275
        ({"total": "0.5"}, True),
        ({"absolute": 5, "total": "0.1"}, False),  # a field's own stands alone
        ({"tax": 5}, False),
    ],
)
def test_a_number_may_be_off_by_its_tolerance_and_not_by_more(
    tolerances: Any, *, passes: bool
) -> None:
    assert (differing({"total": "109.5"}, tolerances) == []) is passes


def test_a_tolerance_can_be_of_all_lines_or_tiers() -> None:
    expected = {"lineItems": [{"subtotal": 99}]}
    assert differing(expected, {"lineItems.subtotal": 1}) == []
    assert differing(expected, {"lineItems.quantity": 1}) == ["lineItems[0].subtotal"]
    tiers = [{"upTo": 60, "unitPrice": 1}, {"upTo": None, "unitPrice": 2}]
    model = {"model": "tiered", "currency": "USD", "tiers": tiers}
    inputs = {**INPUTS, "usageItems": [{"metric": "calls", "quantity": 100}]}
    parts = [{"amount": 61, "upTo": 60}, {"amount": 80, "upTo": None, "from": 60}]
    expected = {"lineItems": [{"tiers": parts}]}
    assert differing(expected, model=model, inputs=inputs) == ["lineItems[0].tiers[0].amount"]
    assert differing(expected, {"lineItems.tiers.amount": 1}, model=model, inputs=inputs) == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"inputs": None}, "inputs"),
        ({"input": INPUTS}, "input"),
        ({"expected": {"totall": 1}}, "expected.totall"),
        ({"expected": {"total": "a lot"}}, "expected.total"),
        ({"expected": {"total": 0.1}}, "expected.total"),
        ({"expected": [1]}, "expected"),
        ({"expected": {"lineItems": [{"price": 1}]}}, "expected.lineItems[0].price"),
        (
            {"expected": {"lineItems": [{"tiers": [{"up": 1}]}]}},
            "expected.lineItems[0].tiers[0].up",
        ),
        ({"tolerances": {"everything": 1}}, "tolerances.everything"),
        ({"tolerances": {"absolute": -1}}, "tolerances.absolute"),
        ({"tolerances": -1}, "tolerances"),
        ({"name": 5}, "name"),
        ({"metadata": {"author": "x"}}, "metadata.author"),
        ({"model": {"model": "flat"}}, "model.currency"),
        ({"inputs": {**INPUTS, "taxRate": 101}}, "inputs.taxRate"),
    ],
)
def test_a_scenario_that_could_pass_by_mistake_is_refused(
    change: dict[str, Any], field: str
) -> None:
    with pytest.raises(PricingError) as caught:
        read_scenario({"inputs": INPUTS, **change})
    assert caught.value.field == field, caught.value.errors


def test_what_was_recorded_passes_and_finds_a_changed_price() -> None:
    invoice = run(read_scenario({"inputs": INPUTS})).invoice
    expected = record(invoice)
    assert differing(expected) == []
    dearer = [{**INPUTS["usageItems"][0], "priceConfig": {**FLAT, "unitPrice": "1.01"}}]
    found = differing(expected, inputs={**INPUTS, "usageItems": dearer})
    lines = {"lineItems[0].unitPrice", "lineItems[0].subtotal"}
    assert set(found) == {*lines, "subtotal", "tax", "total"}


def test_a_name_comes_from_the_scenario_its_metadata_or_its_file() -> None:
    assert read_scenario({"inputs": INPUTS}, default_name="file").name == "file"
    metadata = {"name": "about", "description": "d", "version": 1, "tags": ["x"]}
    scenario = read_scenario({"inputs": INPUTS, "metadata": metadata}, default_name="file")
    assert (scenario.name, scenario.description) == ("about", "d")
    assert read_scenario({"inputs": INPUTS, "metadata": metadata, "name": "own"}).name == "own"
