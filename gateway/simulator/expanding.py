"""Stripe's `expand`: ids in an answer replaced by the objects they stand for.

Rules it keeps: only what can be expanded is; at most 4 levels. It must not know endpoints.
Source: https://docs.stripe.com/expand
"""

from __future__ import annotations

from typing import Any, Final

from gateway.simulator.catalog import shape_price
from gateway.simulator.desk import Desk
from gateway.simulator.invoices import shape_invoice
from gateway.simulator.subscriptions import shape_item, shape_subscription
from gateway.simulator.wire import Json, Refusal

LEVELS_MAX: Final = 4
PATHS_MAX: Final = 20


def _shape(desk: Desk, one: Json) -> Json:
    kind = one["object"]
    if kind == "price":
        return shape_price(one)
    if kind == "subscription":
        return shape_subscription(desk, one)
    if kind == "subscription_item":
        return shape_item(desk, one)
    if kind == "invoice":
        return shape_invoice(desk, one)
    return dict(one)


def expand(desk: Desk, answer: Json, paths: list[str]) -> Json | Refusal:
    """The answer with these paths expanded."""
    if len(paths) > PATHS_MAX:
        return Refusal(400, f"You can expand at most {PATHS_MAX} properties.", param="expand")
    # A copy, since answers share their parts with what is kept.
    answer = dict(answer)
    for path in paths:
        steps = path.split(".")
        levels = [step for step in steps if step != "data"]
        is_found = len(levels) <= LEVELS_MAX and _expand(desk, answer, steps)
        if not is_found:
            message = f"This property cannot be expanded ({path:.100})."
            return Refusal(400, message, param="expand", is_kept=False)
    return answer


def _expand(desk: Desk, holder: Json, steps: list[str]) -> bool:
    step, rest = steps[0], steps[1:]
    if step == "tiers" and holder.get("object") == "price" and not rest:
        holder["tiers"] = desk.ledger.objects[holder["id"]]["tiers"]
        return True
    if step == "currency_options" and holder.get("object") == "price":
        return _expand_currencies(desk, holder, rest)
    if step not in holder:
        return False
    value: Any = holder[step]
    if isinstance(value, str):
        found = desk.ledger.objects.get(value)
        if found is None:
            return False
        value = holder[step] = _shape(desk, found)
    if value is None:
        return True
    if isinstance(value, list):
        copied = holder[step] = [dict(one) for one in value]
        return all(_expand(desk, one, rest) for one in copied) if rest else True
    if not isinstance(value, dict):
        return False
    inner = holder[step] = dict(value)
    return _expand(desk, inner, rest) if rest else True


def _expand_currencies(desk: Desk, price: Json, rest: list[str]) -> bool:
    """Prices have their own currency alone here; it is an option as any other would be, its tiers when asked for."""
    own = price["currency"]
    options: Json = price.setdefault(
        "currency_options",
        {own: {name: price[name] for name in ("unit_amount", "unit_amount_decimal")}},
    )
    if not rest:
        return True
    if rest != [own, "tiers"]:
        return False
    options[own]["tiers"] = desk.ledger.objects[price["id"]]["tiers"]
    return True
