"""Seats: the most that were taken at any time in the month are billed.

A metric with aggregation `max`. The product tells how many seats are taken whenever that changes; order and repetition do
not matter. The key is made of what happened, so that a job that runs twice says nothing new.
"""

from __future__ import annotations

import os

from stripemeter import StripeMeterClient

CHANGES = [("anna joins", 1), ("five more join", 6), ("bert joins", 7), ("three leave", 4)]

with StripeMeterClient(
    os.environ.get("STRIPEMETER_URL", "http://127.0.0.1:3000"),
    "acme",
    api_key=os.environ.get("STRIPEMETER_API_KEY"),
    mode="direct",
) as meter:
    for number, (what, seats) in enumerate(CHANGES):
        tracked = meter.track(
            "seats", "cus_anna", seats, meta={"why": what}, idempotency_key=f"seats-{number}"
        )
        print(f"{what}: {seats} ({tracked.status})")
