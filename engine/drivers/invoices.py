"""What a final invoice has of a customer's metered usage: its lines, matched by item, price or meter, and summed.

Rules it keeps: a draft says nothing, since it still changes, and neither does a void one; lines are matched by what
Stripe says they are of and by the end of their period; half a list of lines counts as unanswered. A graduated price may
have a line a tier, so that quantities are summed. It must not know what was pushed, or what is made of the number.
Source: https://docs.stripe.com/api/invoice-line-item/object
"""

from __future__ import annotations

from typing import Final

from engine.core.billing import Invoiced, Resolved, Unread
from engine.drivers.calls import LEGACY_API_VERSION, LIBRARY_API_VERSION, StripeCalls
from engine.drivers.questions import Unanswered, ask, ask_list, is_id, unread
from engine.drivers.shapes import Invoice, InvoiceLine, Price

_FINAL: Final = frozenset({"open", "paid", "uncollectible"})
_LINE_PRICES_MAX: Final = 50
"""Prices of one invoice that are asked for their meter."""


async def read_invoiced(
    calls: StripeCalls,
    resolved: Resolved,
    customer: str,
    end_s: int,
    connect_account: str | None,
) -> Invoiced | Unread | None:
    """See `engine.ports.Billing.invoiced`."""
    is_legacy = resolved.event_name is None
    version = LEGACY_API_VERSION if is_legacy else LIBRARY_API_VERSION
    invoices = await ask_list(
        calls,
        "/v1/invoices",
        Invoice,
        {"customer": customer},
        connect_account=connect_account,
        api_version=version,
    )
    if isinstance(invoices, Unanswered):
        return unread(f"invoices of {customer}", invoices)
    meters: dict[str, str | None] = {}
    for invoice in invoices:
        if invoice.status not in _FINAL or invoice.period_end < end_s:
            continue
        lines = await _lines(calls, invoice, connect_account, version)
        if isinstance(lines, Unanswered):
            return unread(f"lines of {invoice.id}", lines)
        found: list[InvoiceLine] = []
        for line in lines:
            if line.period.end != end_s:
                continue
            is_ours = await _is_of(calls, line, resolved, connect_account, version, meters)
            if isinstance(is_ours, Unanswered):
                return unread(f"price of {line.id}", is_ours)
            if is_ours:
                found.append(line)
        if found:
            units = sum(line.quantity or 0 for line in found)
            finalized_s = invoice.status_transitions.finalized_at
            finalized_us = None if finalized_s is None else finalized_s * 1_000_000
            return Invoiced(str(units), finalized_us, invoice.id)
    return None


async def _lines(
    calls: StripeCalls, invoice: Invoice, connect_account: str | None, version: str
) -> list[InvoiceLine] | Unanswered:
    """All lines of an invoice; a listed invoice has the first ten."""
    if not invoice.lines.has_more:
        return invoice.lines.data
    if not is_id(invoice.id):
        return Unanswered(f"{invoice.id!r} is no id", is_temporary=False)
    return await ask_list(
        calls,
        f"/v1/invoices/{invoice.id}/lines",
        InvoiceLine,
        {},
        connect_account=connect_account,
        api_version=version,
    )


async def _is_of(  # noqa: PLR0917 - what a question needs
    calls: StripeCalls,
    line: InvoiceLine,
    resolved: Resolved,
    connect_account: str | None,
    version: str,
    meters: dict[str, str | None],
) -> bool | Unanswered:
    """Whether a line is of what was resolved."""
    if resolved.item is not None and line.item is not None:
        return line.item == resolved.item
    price = line.price_id
    if price is None or not is_id(price):
        return False
    if resolved.price is not None:
        return price == resolved.price
    if price not in meters:
        if len(meters) >= _LINE_PRICES_MAX:
            return Unanswered("the customer's invoices have too many prices", is_temporary=False)
        answer = await ask(
            calls,
            f"/v1/prices/{price}",
            Price,
            connect_account=connect_account,
            api_version=version,
        )
        if isinstance(answer, Unanswered):
            return answer
        meters[price] = None if answer.recurring is None else answer.recurring.meter
    return meters[price] == resolved.object_id
