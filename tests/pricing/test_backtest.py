"""Backtests: today's prices change nothing, a candidate is weighed customer by customer, and the sums agree."""

from __future__ import annotations

from decimal import Decimal

import pytest

from engine.pricing import PriceConfig, PricingError, Tier
from engine.pricing.backtest import Band, UsageOfMonth, backtest


def flat(unit_price: str, currency: str = "USD") -> PriceConfig:
    return PriceConfig(model="flat", currency=currency, unit_price=Decimal(unit_price))


USAGE = [
    UsageOfMonth("anna", "2026-01", "calls", Decimal(100)),
    UsageOfMonth("anna", "2026-02", "calls", Decimal(300)),
    UsageOfMonth("bert", "2026-01", "calls", Decimal(10)),
    UsageOfMonth("bert", "2026-01", "mails", Decimal(50)),
    UsageOfMonth("carl", "2026-02", "calls", Decimal(0)),
]
TODAY = {"calls": flat("0.10"), "mails": flat("0.02")}
# From the 200th call on they cost half; below, a tenth more.
TIERS = (Tier(Decimal(200), Decimal("0.11")), Tier(None, Decimal("0.05")))
CANDIDATE = {"calls": PriceConfig(model="volume", currency="USD", tiers=TIERS)}


def test_todays_prices_against_themselves_change_nothing() -> None:
    found = backtest(USAGE, TODAY, TODAY)
    assert (found.winners, found.losers, found.same) == ((), (), 3)
    assert found.total.difference == 0
    assert str(found.total.today) == "42.00"


def test_a_candidate_has_winners_losers_and_months_that_sum_to_the_total() -> None:
    found = backtest(USAGE, TODAY, CANDIDATE)
    assert [(one.name, str(one.today), str(one.candidate)) for one in found.months] == [
        ("2026-01", "12.00", "13.10"),
        ("2026-02", "30.00", "15.00"),
    ]
    assert [(one.name, str(one.difference)) for one in found.winners] == [("anna", "-14.00")]
    assert [(one.name, str(one.difference)) for one in found.losers] == [("bert", "0.10")]
    assert found.same == 1
    assert str(found.total.difference) == "-13.90"
    assert sum(one.candidate for one in found.months) == found.total.candidate


def test_the_distribution_counts_every_customer_who_pays_once() -> None:
    found = backtest(USAGE, TODAY, CANDIDATE)
    # anna pays 26.00 instead of 40.00 (-35 %), bert 2.10 instead of 2.00 (+5 %), carl nothing.
    counted = {
        (band.above_percent, band.up_to_percent): band.customers for band in found.distribution
    }
    assert counted[-50, -20] == 1
    assert counted[0, 5] == 1
    assert sum(counted.values()) == 2
    assert found.distribution[-1] == Band(None, None, 0)


def test_a_customer_who_paid_nothing_is_in_a_band_of_their_own() -> None:
    usage = [UsageOfMonth("dora", "2026-01", "calls", Decimal(5))]
    found = backtest(usage, {"calls": flat("0")}, {"calls": flat("1")})
    assert found.distribution[-1] == Band(None, None, 1)
    assert sum(band.customers for band in found.distribution) == 1


def test_each_line_is_rounded_and_limited_as_on_an_invoice() -> None:
    usage = [
        UsageOfMonth("anna", f"2026-{month:02d}", "calls", Decimal(1)) for month in range(1, 11)
    ]
    assert str(backtest(usage, {"calls": flat("0.005")}, {}).total.today) == "0.10"
    capped = PriceConfig(
        model="flat", currency="USD", unit_price=Decimal(9), maximum_charge=Decimal(4)
    )
    assert str(backtest(usage, {"calls": capped}, {}).total.today) == "40.00"


def test_a_metric_without_a_price_and_a_second_currency_are_errors() -> None:
    with pytest.raises(PricingError) as caught:
        backtest(USAGE, {"calls": flat("1")}, {})
    assert caught.value.field == "prices.mails"
    with pytest.raises(PricingError) as caught:
        backtest(USAGE, TODAY, {"calls": flat("1", "EUR")})
    assert caught.value.field == "candidate.calls.currency"
    with pytest.raises(PricingError) as caught:
        backtest(USAGE, {}, {})
    assert caught.value.field == "today"
