"""How many invoices a second does the pricing library compute, and how long does a backtest take?

    python bench/pricing.py [--seconds 2] [--counters 100000]

Results: `flat`, `tiered`, `mixed` (three lines, a commitment, a credit, tax), each from ready inputs (`inputs`), with the
inputs made anew for each invoice (`objects`), and from documents as the API receives them (`documents`): invoices a
second, one thread. `backtest`: seconds for so many counters of 12 months, each priced twice.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

from common import progress, publish, report

from engine.pricing import InvoiceInput, InvoiceSimulator, UsageItem, read_inputs, read_price
from engine.pricing.backtest import UsageOfMonth, backtest

TIERS = [
    {"upTo": 10_000, "unitPrice": "0.01"},
    {"upTo": 50_000, "unitPrice": "0.008"},
    {"upTo": None, "unitPrice": "0.005"},
]
FLAT = {"model": "flat", "currency": "USD", "unitPrice": "0.0005"}
TIERED = {"model": "tiered", "currency": "USD", "tiers": TIERS}
VOLUME = {"model": "volume", "currency": "USD", "tiers": TIERS, "minimumCharge": 5}
PERIOD = {"customerId": "cus_bench", "periodStart": "2026-01-01", "periodEnd": "2026-02-01"}
MORE = {
    "commitments": [
        {"amount": 100, "startDate": "2026-01-01", "endDate": "2027-01-01", "applied": 30}
    ],
    "credits": [{"amount": 20, "reason": "launch"}],
    "taxRate": "8.875",
}
QUANTITY = 25_000


def document(*prices: dict[str, Any], **more: Any) -> dict[str, Any]:
    items = [
        {"metric": f"metric_{index}", "quantity": QUANTITY, "priceConfig": price}
        for index, price in enumerate(prices)
    ]
    return {**PERIOD, "usageItems": items, **more}


CASES = {
    "flat": document(FLAT),
    "tiered": document(TIERED),
    "mixed": document(FLAT, TIERED, VOLUME, **MORE),
}


def made_anew(inputs: InvoiceInput) -> InvoiceInput:
    """The same inputs with new items, as for a customer whose usage was just read."""
    items = [UsageItem(item.metric, item.quantity, item.price) for item in inputs.usage_items]
    return InvoiceInput(
        customer_id=inputs.customer_id,
        period_start_us=inputs.period_start_us,
        period_end_us=inputs.period_end_us,
        usage_items=items,
        commitments=inputs.commitments,
        credits=inputs.credits,
        tax_rate=inputs.tax_rate,
    )


def rate(call: Callable[[], object], seconds: float) -> int:
    """Calls a second of processor time."""
    calls, began = 0, time.thread_time()
    while (passed := time.thread_time() - began) < seconds:
        for _ in range(500):
            call()
        calls += 500
    return round(calls / passed)


def invoices(name: str, seconds: float) -> dict[str, Any]:
    simulate = InvoiceSimulator().simulate
    inputs = read_inputs(CASES[name])
    result = {
        "case": name,
        "inputs_per_second": rate(lambda: simulate(inputs), seconds),
        "objects_per_second": rate(lambda: simulate(made_anew(inputs)), seconds),
        "documents_per_second": rate(lambda: simulate(CASES[name]), seconds),
    }
    progress(f"{name}: {result}")
    return result


def of_backtest(counters: int) -> dict[str, Any]:
    rng = Random(6)
    usage = [
        UsageOfMonth(
            f"cus_{number // 12}",
            f"2026-{number % 12 + 1:02d}",
            "calls",
            Decimal(rng.randint(0, 10**5)),
        )
        for number in range(counters)
    ]
    began = time.thread_time()
    found = backtest(usage, {"calls": read_price(TIERED)}, {"calls": read_price(VOLUME)})
    seconds = time.thread_time() - began
    assert found.total.today > 0
    return {"case": "backtest", "counters": counters, "seconds": round(seconds, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--counters", type=int, default=100_000)
    parser.add_argument("--to", type=Path)
    arguments = parser.parse_args()
    results = [invoices(name, arguments.seconds) for name in CASES]
    results.append(of_backtest(arguments.counters))
    publish(report("pricing", results), arguments.to)


if __name__ == "__main__":
    main()
