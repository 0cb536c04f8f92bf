"""Wrong configurations and inputs: each is an error that names the field, and none of them is ever a price."""

from __future__ import annotations

import copy
import subprocess
import sys
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.pricing import (
    Commitment,
    Credit,
    InvoiceSimulator,
    PriceConfig,
    PricingError,
    Tier,
    UsageItem,
    invoice_document,
    read_price,
)
from engine.pricing.scenarios import read_scenario, run

TIERS = [{"upTo": 10, "unitPrice": 1}, {"upTo": None, "unitPrice": 2}]
FLAT = {"model": "flat", "currency": "USD", "unitPrice": 1}
INPUTS: dict[str, Any] = {
    "customerId": "cus_anna",
    "periodStart": "2026-01-01",
    "periodEnd": "2026-02-01",
    "usageItems": [{"metric": "calls", "quantity": 1, "priceConfig": FLAT}],
}


@pytest.mark.parametrize(
    ("price", "field", "word"),
    [
        ({"model": "steps", "currency": "USD"}, "model", "must be one of"),
        ({"currency": "USD", "unitPrice": 1}, "model", "missing"),
        ({"model": "flat", "unitPrice": 1}, "currency", "missing"),
        ({"model": "flat", "currency": "dollar", "unitPrice": 1}, "currency", "three letters"),
        ({"model": "flat", "currency": "USD"}, "unitPrice", "needed"),
        ({**FLAT, "unitPrice": -1}, "unitPrice", "negative"),
        ({**FLAT, "unitPrice": "1e-16"}, "unitPrice", "15 digits"),
        ({**FLAT, "unitPrice": "1e30"}, "unitPrice", "below 10^30"),
        ({**FLAT, "unitPrice": "1e9999"}, "unitPrice", "below 10^30"),
        ({**FLAT, "unitPrice": 10**40}, "unitPrice", "below 10^30"),
        ({**FLAT, "unitPrice": 0.01}, "unitPrice", "binary"),
        ({**FLAT, "unitprice": 2}, "unitprice", "not a field"),
        ({**FLAT, "unit_price": 2}, "unitPrice", "twice"),
        ({**FLAT, "tiers": TIERS}, "tiers", "not used by the model flat"),
        ({**FLAT, "packageSize": 5}, "packageSize", "not used by the model flat"),
        ({"model": "package", "currency": "USD", "unitPrice": 1}, "packageSize", "needed"),
        ({"model": "package", "currency": "USD", "packageSize": 5}, "unitPrice", "needed"),
        ({**FLAT, "model": "package", "packageSize": 0}, "packageSize", "above 0"),
        (
            {**FLAT, "model": "package", "packageSize": 5, "packageRounding": "half"},
            "packageRounding",
            "up or down",
        ),
        ({"model": "tiered", "currency": "USD"}, "tiers", "needed"),
        ({"model": "tiered", "currency": "USD", "tiers": []}, "tiers", "empty"),
        (
            {"model": "tiered", "currency": "USD", "tiers": TIERS, "unitPrice": 1},
            "unitPrice",
            "not used",
        ),
        (
            {"model": "tiered", "currency": "USD", "tiers": TIERS[:1]},
            "tiers[0].upTo",
            "null in the last",
        ),
        (
            {"model": "volume", "currency": "USD", "tiers": TIERS[:1]},
            "tiers[0].upTo",
            "null in the last",
        ),
        (
            {"model": "tiered", "currency": "USD", "tiers": TIERS[::-1]},
            "tiers[0].upTo",
            "unreachable",
        ),
        (
            {"model": "tiered", "currency": "USD", "tiers": [*TIERS[:1], *TIERS]},
            "tiers[1].upTo",
            "above the tier before",
        ),
        (
            {"model": "tiered", "currency": "USD", "tiers": [{"upTo": 0, "unitPrice": 1}, *TIERS]},
            "tiers[0].upTo",
            "above 0",
        ),
        (
            {"model": "tiered", "currency": "USD", "tiers": [{"upTo": 9}, *TIERS]},
            "tiers[0].unitPrice",
            "missing",
        ),
        (
            {
                "model": "tiered",
                "currency": "USD",
                "tiers": [{"upTo": None, "unitPrice": 1, "flatPrice": 1}],
            },
            "tiers[0].flatPrice",
            "graduated",
        ),
        (
            {"model": "tiered", "currency": "USD", "tiers": [{"upTo": None, "price": 1}]},
            "tiers[0].price",
            "not a field",
        ),
        (
            {
                "model": "volume",
                "currency": "USD",
                "tiers": [{"upTo": n + 1, "unitPrice": 1} for n in range(101)],
            },
            "tiers",
            "at most 100",
        ),
        ({**FLAT, "minimumCharge": 5, "maximumCharge": 4}, "maximumCharge", "minimumCharge"),
        ({**FLAT, "minimumCharge": 5, "maximumCharge": 0}, "maximumCharge", "minimumCharge"),
        ([], "document", "object"),
    ],
)
def test_a_wrong_price_is_an_error_that_names_the_field(price: Any, field: str, word: str) -> None:
    with pytest.raises(PricingError) as caught:
        read_price(price)
    assert caught.value.field == field, caught.value.errors
    assert word in caught.value.errors[0][1]
    assert len(set(caught.value.errors)) == len(caught.value.errors), "each problem once"


@pytest.mark.parametrize(
    ("change", "field", "word"),
    [
        ({"customerId": ""}, "customerId", "empty"),
        ({"customerId": None}, "customerId", "missing"),
        ({"periodEnd": "2026-01-01"}, "periodEnd", "after periodStart"),
        ({"periodEnd": "2026-01-01T00:00:00.9Z"}, "periodEnd", "one second"),
        ({"periodStart": "2026-01-01T00:00:00"}, "periodStart", "offset"),
        ({"periodStart": "2026-02-30"}, "periodStart", "does not exist"),
        ({"periodStart": "January"}, "periodStart", "must be a date"),
        ({"periodStart": "0001-01-01T00:00:00+00:01"}, "periodStart", "years 1 to 9999"),
        ({"periodEnd": "9999-12-31T23:59:59-23:59"}, "periodEnd", "years 1 to 9999"),
        ({"usageItems": None}, "usageItems", "missing"),
        ({"usageItems": {}}, "usageItems", "list"),
        ({"usageItems": []}, "currency", "needed when there are no"),
        ({"usageItems": [{}] * 1_001}, "usageItems[0].metric", "missing"),
        ({"taxRate": -1}, "taxRate", "negative"),
        ({"taxRate": 101}, "taxRate", "0 to 100"),
        ({"taxRate": "8.1234567"}, "taxRate", "6 digits"),
        ({"currency": "EUR"}, "usageItems[0].priceConfig.currency", "one currency"),
        ({"discounts": []}, "discounts", "not a field"),
        ({"credits": [{"amount": -1, "reason": "x"}]}, "credits[0].amount", "negative"),
        ({"credits": [{"amount": "1.005", "reason": "x"}]}, "credits[0].amount", "2 digits"),
        ({"credits": [{"reason": "x"}]}, "credits[0].amount", "missing"),
        (
            {"credits": [{"amount": 1, "expires": "2026-01-01"}]},
            "credits[0].expires",
            "not a field",
        ),
        (
            {"commitments": [{"amount": 1, "startDate": "2026-01-02", "endDate": "2026-01-01"}]},
            "commitments[0].endDate",
            "after startDate",
        ),
        (
            {"commitments": [{"amount": 1, "startDate": "2026-01-02"}]},
            "commitments[0].endDate",
            "missing",
        ),
    ],
)
def test_a_wrong_input_is_an_error_that_names_the_field(
    change: dict[str, Any], field: str, word: str
) -> None:
    with pytest.raises(PricingError) as caught:
        InvoiceSimulator().simulate({**INPUTS, **change})
    assert caught.value.field == field, caught.value.errors
    assert word in caught.value.errors[0][1]


def test_an_item_without_a_price_is_an_error_and_not_free() -> None:
    inputs = copy.deepcopy(INPUTS)
    del inputs["usageItems"][0]["priceConfig"]
    with pytest.raises(PricingError, match="would be free") as caught:
        InvoiceSimulator().simulate(inputs)
    assert caught.value.field == "usageItems[0].priceConfig"


def test_two_currencies_on_one_invoice_are_an_error() -> None:
    inputs = copy.deepcopy(INPUTS)
    euro = {**FLAT, "currency": "EUR"}
    inputs["usageItems"].append({"metric": "other", "quantity": 1, "priceConfig": euro})
    with pytest.raises(PricingError) as caught:
        InvoiceSimulator().simulate(inputs)
    assert caught.value.field == "usageItems[1].priceConfig.currency"


def test_all_problems_of_a_document_are_told_at_once() -> None:
    tiers = [{"upTo": "x", "unitPrice": 1}, {"upTo": None, "unitPrice": -1}]
    price = {"model": "tiered", "currency": "USD", "tiers": tiers}
    item = {"metric": "", "quantity": "many", "priceConfig": price}
    with pytest.raises(PricingError) as caught:
        InvoiceSimulator().simulate({**INPUTS, "usageItems": [item], "taxRate": "x"})
    assert [field for field, _ in caught.value.errors] == [
        "usageItems[0].metric",
        "usageItems[0].quantity",
        "usageItems[0].priceConfig.tiers[0].upTo",
        "usageItems[0].priceConfig.tiers[1].unitPrice",
        "taxRate",
    ]


def test_either_a_document_or_keywords_and_not_both() -> None:
    with pytest.raises(TypeError, match="either"):
        InvoiceSimulator().simulate(INPUTS, customer_id="x")
    with pytest.raises(TypeError, match="either"):
        InvoiceSimulator().simulate()


def test_the_library_is_imported_alone() -> None:
    code = (
        "import sys, engine.pricing, engine.pricing.stripe_prices, engine.pricing.scenarios,"
        " engine.pricing.backtest, engine.pricing.explain;"
        "wrong = {'trio', 'lmdb', 'stripe', 'msgspec', 'numpy', 'engine.core', 'wal', 'gateway'};"
        "sys.exit(', '.join(wrong & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


_NAMES = st.sampled_from(
    [
        "inputs",
        "expected",
        "tolerances",
        "model",
        "currency",
        "tiers",
        "upTo",
        "unitPrice",
        "flatPrice",
        "packageSize",
        "usageItems",
        "metric",
        "quantity",
        "priceConfig",
        "customerId",
        "periodStart",
        "periodEnd",
        "commitments",
        "amount",
        "credits",
        "taxRate",
        "lineItems",
        "startDate",
        "x",
    ]
)
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.decimals(),
    st.floats(),
    st.sampled_from(
        [
            "flat",
            "volume",
            "USD",
            "2026-01-01",
            "0001-01-01",
            "9999-12-31T23:59:59-23:59",
            "1e999",
            "",
        ]
    ),
    st.text(max_size=5),
)
_DOCUMENTS = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_NAMES, inner, max_size=6)
    ),
    max_leaves=25,
)


@given(_DOCUMENTS, st.sampled_from(sorted(INPUTS)))
def test_no_document_whatsoever_raises_anything_but_a_refusal(document: Any, field: str) -> None:
    for tried in (document, {"inputs": document}, {"inputs": {**INPUTS, field: document}}):
        try:
            run(read_scenario(tried))
        except PricingError as error:
            assert error.errors


def test_programs_give_dates_and_the_librarys_own_objects() -> None:
    price = PriceConfig(model="flat", currency="USD", unit_price=Decimal(1))
    zone = timezone(timedelta(hours=1))
    invoice = InvoiceSimulator().simulate(
        customer_id="cus_anna",
        period_start=date(2026, 1, 1),
        period_end=datetime(2026, 2, 1, 1, tzinfo=zone),
        usage_items=[UsageItem("calls", Decimal(100), price)],
        commitments=[Commitment(Decimal(10), 0, 1 << 60)],
        credits=[Credit(Decimal(5))],
    )
    assert str(invoice.total) == "85.00"
    assert invoice_document(invoice)["periodEnd"] == "2026-02-01T00:00:00Z"
    with pytest.raises(PricingError, match="time zone"):
        InvoiceSimulator().simulate({**INPUTS, "periodEnd": datetime(2026, 2, 1)})  # noqa: DTZ001
    with pytest.raises(PricingError):
        Tier(None, None)  # type: ignore[arg-type]
