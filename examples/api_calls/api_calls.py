"""A function whose calls are billed: `@metered` counts each that returns, by what it returned."""

from __future__ import annotations

import os

from stripemeter import StripeMeterClient, metered

with StripeMeterClient(
    os.environ.get("STRIPEMETER_URL", "http://127.0.0.1:3000"),
    "acme",
    api_key=os.environ.get("STRIPEMETER_API_KEY"),
) as meter:

    @metered(meter, "api_calls", customer=lambda customer, _: customer)
    def translate(customer: str, text: str) -> str:
        """A call is one unit, whatever it does."""
        return f"{text}, for {customer}"[::-1]

    @metered(meter, "words", customer=lambda customer, _: customer, quantity=len)
    def split(_customer: str, text: str) -> list[str]:
        """As many units as there are words in the result. A call that raises is not billed."""
        return text.split()

    for text in ("good morning", "good evening", "good night to you all"):
        translate("cus_anna", text)
        split("cus_anna", text)

    delivered = meter.flush()
    statistics = meter.statistics()

print(f"delivered: {delivered}, accepted: {statistics.accepted}, rejected: {statistics.rejected}")
