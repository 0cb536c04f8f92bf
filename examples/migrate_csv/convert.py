"""Turns an old billing system's CSV into events that `stripemeter import` takes: `python convert.py old.csv > usage.jsonl`.

Two things matter. The key of an event is the old row's own number: the same row counts once, however often the file is
converted and imported. And names and numbers are translated here, exactly, by tables that somebody has checked.
"""

from __future__ import annotations

import csv
import json
import sys

METRICS = {"API": "api_calls", "Storage": "storage_gb"}
CUSTOMERS = {"anna@example.com": "cus_anna", "bert@example.com": "cus_bert"}


def quantity(text: str) -> str:
    """The old system wrote 1.200,5 for one thousand two hundred and a half. A text stays exact."""
    return text.replace(".", "").replace(",", ".")


with open(sys.argv[1], newline="") as old:  # noqa: PTH123 - an example for readers, not for us
    for row in csv.DictReader(old, delimiter=";"):
        event = {
            "metric": METRICS[row["product"]],
            "customerRef": CUSTOMERS[row["account"]],
            "quantity": quantity(row["units"]),
            "ts": f"{row['day']}T12:00:00Z",
            "idempotencyKey": f"old-billing-{row['row']}",
        }
        print(json.dumps(event))
