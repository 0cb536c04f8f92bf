"""The endpoints of the account itself: who it is, what it holds.

It must not know what else an account has.
"""

from __future__ import annotations

from gateway.simulator.desk import Desk
from gateway.simulator.wire import Fields, Json, Refusal


def retrieve_account(desk: Desk, fields: Fields) -> Json | Refusal:
    """`GET /v1/account`."""
    return fields.finish() or {
        "id": desk.ledger.account,
        "object": "account",
        "business_profile": {"name": "StripeMeter's Stripe simulator"},
        "charges_enabled": True,
        "country": "US",
        "default_currency": "usd",
        "details_submitted": True,
        "email": None,
        "metadata": {"rate_limits": "off"} if desk.settings.limits is None else {},
        "payouts_enabled": True,
        "type": "standard",
    }


def retrieve_balance(desk: Desk, fields: Fields) -> Json | Refusal:
    """`GET /v1/balance`: what tells live from test is `livemode`."""
    nothing = [{"amount": 0, "currency": "usd", "source_types": {"card": 0}}]
    return fields.finish() or {
        "object": "balance",
        "available": nothing,
        "livemode": desk.settings.is_live,
        "pending": nothing,
    }
