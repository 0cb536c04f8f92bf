"""The endpoints of products and prices.

Rules it keeps: a price that Stripe would not make is not made here: tiers end with `inf`, a transformation excludes
tiers, a metered price of today's API version has a meter. `tiers` show only when expanded. It must not know who
subscribes. Sources: https://docs.stripe.com/api/prices, https://docs.stripe.com/api/products
"""

from __future__ import annotations

import re
from typing import Final

from gateway.simulator.desk import FULL, Desk
from gateway.simulator.wire import Fields, Json, Refusal, page

TIERS_MAX: Final = 200
_DECIMAL: Final = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,12})?\Z")


def make_product(desk: Desk, name: str, product_id: str = "") -> Json:
    """A new product."""
    product: Json = {
        "id": product_id or desk.new_id("prod_", 14),
        "object": "product",
        "active": True,
        "created": desk.now_s,
        "description": None,
        "livemode": desk.settings.is_live,
        "metadata": {},
        "name": name,
        "unit_label": None,
        "updated": desk.now_s,
    }
    desk.keep("product", product)
    return product


def create_product(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v1/products`."""
    name, product_id = fields.text("name", required=True), fields.text("id")
    description, metadata = fields.text("description"), fields.texts("metadata")
    label = fields.text("unit_label")
    fields.unused("active", "type", "tax_code", "statement_descriptor", "url", "images")
    refused = fields.finish()
    if refused is not None:
        return refused
    if product_id and product_id in desk.ledger.objects:
        return Refusal(400, "Product already exists.", "resource_already_exists", "id")
    if desk.is_full():
        return FULL
    product = make_product(desk, name, product_id)
    product["description"], product["unit_label"] = description or None, label or None
    product["metadata"] = metadata
    return product


def retrieve_product(desk: Desk, fields: Fields, product_id: str) -> Json | Refusal:
    """`GET /v1/products/{id}`."""
    return fields.finish() or desk.find("product", product_id)


def list_products(desk: Desk, fields: Fields) -> Json | Refusal:
    """`GET /v1/products`."""
    fields.unused("active")
    return page("/v1/products", desk.newest("product"), fields)


def update_product(desk: Desk, fields: Fields, product_id: str) -> Json | Refusal:
    """`POST /v1/products/{id}`."""
    name, active = fields.text("name"), fields.flag("active", default=True)
    metadata = fields.texts("metadata")
    product = fields.finish() or desk.find("product", product_id)
    if isinstance(product, Refusal):
        return product
    product["name"], product["active"] = name or product["name"], active
    product["metadata"] = {**product["metadata"], **metadata}
    return product


def _amount(fields: Fields, name: str) -> str | None:
    """An amount in the smallest unit, of `name` or `name_decimal`, as plain decimal text; None: neither is there."""
    whole, text = fields.whole(name), fields.text(f"{name}_decimal")
    if text and _DECIMAL.match(text) is None:
        fields.refuse("Invalid decimal: at most 12 decimal places.", f"{name}_decimal")
        return None
    if text and whole is not None:
        fields.refuse(f"You may only specify one of {name}, {name}_decimal.", name)
    if text:
        return text.rstrip("0").rstrip(".") if "." in text else text
    return None if whole is None else str(whole)


def _whole(amount: str | None) -> int | None:
    return int(amount) if amount is not None and "." not in amount else None


def _read_tiers(fields: Fields) -> list[Json]:
    tiers: list[Json] = []
    rows = fields.rows("tiers")
    if not 1 <= len(rows) <= TIERS_MAX:
        fields.refuse(f"tiers: 1 to {TIERS_MAX} are needed.", "tiers", "parameter_missing")
    for row in rows:
        end = None if row.says("up_to", "inf") else row.whole("up_to", required=True)
        unit, flat = _amount(row, "unit_amount"), _amount(row, "flat_amount")
        if unit is None and flat is None:
            row.refuse(
                "A tier needs unit_amount or flat_amount.", "unit_amount", "parameter_missing"
            )
        tiers.append(
            {
                "flat_amount": _whole(flat),
                "flat_amount_decimal": flat,
                "unit_amount": _whole(unit),
                "unit_amount_decimal": unit,
                "up_to": end,
            }
        )
        fields.take(row)
    ends = [tier["up_to"] for tier in tiers]
    if fields.wrong is None and (
        ends[-1] is not None or None in ends[:-1] or ends[:-1] != sorted(set(ends[:-1]))
    ):
        fields.refuse("The tiers must rise, and only the last one must end with `inf`.", "tiers")
    return tiers


def _read_recurring(desk: Desk, fields: Fields) -> Json | None:
    inner = fields.inner("recurring")
    if inner is None:
        return None
    meter = inner.text("meter")
    recurring: Json = {
        "aggregate_usage": inner.choice(
            "aggregate_usage", ("sum", "last_during_period", "last_ever", "max"), ""
        )
        or None,
        "interval": inner.choice("interval", ("day", "week", "month", "year")),
        "interval_count": inner.whole("interval_count") or 1,
        "meter": meter or None,
        "trial_period_days": inner.whole("trial_period_days"),
        "usage_type": inner.choice("usage_type", ("licensed", "metered"), "licensed"),
    }
    is_metered = recurring["usage_type"] == "metered"
    if meter:
        found = desk.find("billing.meter", meter, "recurring[meter]")
        if isinstance(found, Refusal) and inner.wrong is None:
            inner.wrong = found
        elif not is_metered:
            inner.refuse("A price with a meter has usage_type=metered.", "usage_type")
        elif not isinstance(found, Refusal) and found["status"] != "active":
            inner.refuse("The meter is not active.", "meter", "archived_meter")
    elif is_metered and not desk.is_before_basil:
        inner.refuse(
            "Metered prices must be backed by a meter since API version 2025-03-31.basil.", "meter"
        )
    if is_metered and not meter and recurring["aggregate_usage"] is None:
        recurring["aggregate_usage"] = "sum"
    if not 1 <= recurring["interval_count"] <= 156:
        inner.refuse("Invalid interval_count", "interval_count")
    fields.take(inner)
    return recurring


def _read_transform(fields: Fields) -> Json | None:
    inner = fields.inner("transform_quantity")
    if inner is None:
        return None
    divide_by = inner.whole("divide_by", required=True) or 0
    if divide_by < 1:
        inner.refuse("divide_by must be at least 1.", "divide_by")
    transform = {"divide_by": divide_by, "round": inner.choice("round", ("up", "down"))}
    fields.take(inner)
    return transform


def create_price(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v1/prices`."""
    currency = fields.text("currency", required=True, chars_max=3).lower()
    scheme = fields.choice("billing_scheme", ("per_unit", "tiered"), "per_unit")
    unit, mode, tiers = None, None, None
    if scheme == "tiered":
        mode, tiers = fields.choice("tiers_mode", ("graduated", "volume")), _read_tiers(fields)
    else:
        unit = _amount(fields, "unit_amount")
        if unit is None:
            fields.refuse(
                "Missing required param: unit_amount.", "unit_amount", "parameter_missing"
            )
    recurring, transform = _read_recurring(desk, fields), _read_transform(fields)
    if transform is not None and tiers is not None:
        fields.refuse("transform_quantity can't be combined with tiers.", "transform_quantity")
    product_id, data = fields.text("product"), fields.inner("product_data")
    product_name = ""
    if data is not None:
        product_name = data.text("name", required=True)
        data.unused("metadata", "active", "unit_label", "tax_code", "statement_descriptor")
        fields.take(data)
    elif not product_id:
        fields.refuse("Missing required param: product.", "product", "parameter_missing")
    more = {name: fields.text(name) or None for name in ("nickname", "lookup_key")}
    metadata = fields.texts("metadata")
    active = fields.flag("active", default=True)
    fields.unused("tax_behavior", "transfer_lookup_key")
    refused = fields.finish()
    if refused is not None:
        return refused
    if desk.is_full():
        return FULL
    if data is not None:
        product_id = make_product(desk, product_name)["id"]
    elif isinstance(found := desk.find("product", product_id, "product"), Refusal):
        return found
    price: Json = {
        "id": desk.new_id("price_"),
        "object": "price",
        "active": active,
        "billing_scheme": scheme,
        "created": desk.now_s,
        "currency": currency,
        "livemode": desk.settings.is_live,
        "metadata": metadata,
        **more,
        "product": product_id,
        "recurring": recurring,
        "tax_behavior": "unspecified",
        "tiers": tiers,
        "tiers_mode": mode,
        "transform_quantity": transform,
        "type": "one_time" if recurring is None else "recurring",
        "unit_amount": _whole(unit),
        "unit_amount_decimal": unit,
    }
    desk.keep("price", price)
    return shape_price(price)


def shape_price(price: Json) -> Json:
    """A price as answers show it: without its tiers."""
    return {name: value for name, value in price.items() if name != "tiers"}


def retrieve_price(desk: Desk, fields: Fields, price_id: str) -> Json | Refusal:
    """`GET /v1/prices/{id}`."""
    price = fields.finish() or desk.find("price", price_id)
    return price if isinstance(price, Refusal) else shape_price(price)


def list_prices(desk: Desk, fields: Fields) -> Json | Refusal:
    """`GET /v1/prices`."""
    product, kind = fields.text("product"), fields.text("type")
    fields.unused("active", "currency", "lookup_keys", "recurring")
    found = [
        one
        for one in desk.newest("price")
        if (not product or one["product"] == product) and (not kind or one["type"] == kind)
    ]
    return page("/v1/prices", found, fields, shape_price)


def update_price(desk: Desk, fields: Fields, price_id: str) -> Json | Refusal:
    """`POST /v1/prices/{id}`: whether it is active, its name and metadata; amounts never change."""
    nickname, metadata = fields.text("nickname"), fields.texts("metadata")
    active = fields.flag("active", default=True)
    fields.unused("lookup_key", "tax_behavior", "transfer_lookup_key")
    price = fields.finish() or desk.find("price", price_id)
    if isinstance(price, Refusal):
        return price
    price["active"], price["nickname"] = active, nickname or price["nickname"]
    price["metadata"] = {**price["metadata"], **metadata}
    return shape_price(price)
