"""What a final invoice has of metered usage, read from the simulator's rules and from answers made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import trio

from engine.core.billing import Destination, Invoiced, Resolved, Unread
from engine.drivers.billing import StripeBilling
from engine.drivers.wire import Answer
from tests.drivers.fake_stripe import KEY
from tests.helpers.simulator_wire import BASE, SimulatorWire
from tests.helpers.stripe_sim import LEGACY, START_S, Sim

END_S = START_S + 86_400
HOUR = 3600
METER = Resolved("mtr_1", None, event_name="calls")


class Pages:
    """Answers by path, as JSON."""

    name = "pages"

    def __init__(self, pages: Mapping[str, Any]) -> None:
        self.pages = pages
        self.asked: list[str] = []

    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        del method, headers, body
        await trio.lowlevel.checkpoint()
        path = urlsplit(url).path
        self.asked.append(path)
        found = self.pages.get(path)
        if found is None:
            return Answer(500, {}, b'{"error": {"type": "api_error", "message": "no"}}')
        return Answer(200, {"content-type": "application/json"}, json.dumps(found).encode())

    async def aclose(self) -> None:
        """Nothing is open."""


def page(*data: Any, has_more: bool = False) -> dict[str, Any]:
    return {"object": "list", "data": list(data), "has_more": has_more}


def line(quantity: int, price: str = "price_1", end_s: int = END_S, **more: Any) -> dict[str, Any]:
    pricing = {"price_details": {"price": price}}
    period = {"start": START_S, "end": end_s}
    return {
        "id": f"il_{quantity}",
        "period": period,
        "quantity": quantity,
        "pricing": pricing,
    } | more


def invoice(*lines: Any, status: str = "paid", has_more: bool = False) -> dict[str, Any]:
    return {
        "id": "in_1",
        "status": status,
        "period_end": END_S,
        "lines": page(*lines, has_more=has_more),
        "status_transitions": {"finalized_at": END_S + HOUR},
    }


def price(meter: str | None) -> dict[str, Any]:
    recurring = {"usage_type": "metered", "meter": meter}
    return {"id": "price_1", "currency": "usd", "recurring": recurring}


async def asked(pages: Mapping[str, Any], resolved: Resolved = METER) -> Invoiced | Unread | None:
    billing = StripeBilling(KEY, api_base=BASE, meter_events_base=BASE, wire=Pages(pages))
    return await billing.invoiced(resolved, "cus_1", END_S, None)


async def test_lines_of_the_meters_prices_are_summed_and_no_others() -> None:
    found = await asked(
        {
            "/v1/invoices": page(
                invoice(line(7), line(5), line(100, "price_2"), line(9, end_s=END_S + 86_400))
            ),
            "/v1/prices/price_1": price("mtr_1"),
            "/v1/prices/price_2": price("mtr_2"),
        }
    )
    assert found == Invoiced("12", (END_S + HOUR) * 1_000_000, "in_1")


async def test_a_draft_and_a_void_invoice_say_nothing() -> None:
    for status in ("draft", "void"):
        pages = {"/v1/invoices": page(invoice(line(7), status=status))}
        assert await asked(pages) is None


async def test_all_lines_are_read_or_none_count() -> None:
    pages = {
        "/v1/invoices": page(invoice(line(7), has_more=True)),
        "/v1/prices/price_1": price("mtr_1"),
    }
    assert isinstance(await asked(pages), Unread)
    found = await asked(pages | {"/v1/invoices/in_1/lines": page(line(7), line(4))})
    assert isinstance(found, Invoiced)
    assert found.units == "11"


async def test_an_item_speaks_for_itself() -> None:
    def parent(item: str) -> dict[str, Any]:
        return {"parent": {"subscription_item_details": {"subscription_item": item}}}

    pages = {"/v1/invoices": page(invoice(line(7) | parent("si_1"), line(5) | parent("si_2")))}
    found = await asked(pages, METER._replace(item="si_1"))
    assert isinstance(found, Invoiced)
    assert found.units == "7", "no price had to be asked for"


async def test_what_stripe_does_not_answer_is_unread() -> None:
    assert isinstance(await asked({}), Unread)
    pages = {"/v1/invoices": page(invoice(line(7)))}
    assert isinstance(await asked(pages), Unread), "its price can't be asked for"


async def test_the_simulators_invoices_are_read_by_meter_and_by_legacy_item() -> None:
    sim = Sim()
    billing = StripeBilling(KEY, api_base=BASE, meter_events_base=BASE, wire=wire_of(sim))
    meter = sim.meter("api_calls")
    customer = sim.customer(name="Ada")
    fields = {
        "currency": "usd",
        "unit_amount": "10",
        "product_data[name]": "Calls",
        "recurring[interval]": "month",
        "recurring[usage_type]": "metered",
    }
    metered = sim.made("/v1/prices", fields | {"recurring[meter]": meter["id"]})
    legacy = sim.made("/v1/prices", fields, version=LEGACY)
    items: dict[str, Any] = {}
    for name, one in (("meter", metered), ("usage_record", legacy)):
        made = sim.made("/v1/subscriptions", {"customer": customer, "items[0][price]": one["id"]})
        items[name] = (made["items"]["data"][0]["id"], made["items"]["data"][0])
    end_s = items["meter"][1]["current_period_end"]
    sim.event(customer, 12, event_name="api_calls")
    sim.made(
        f"/v1/subscription_items/{items['usage_record'][0]}/usage_records",
        {"quantity": "5", "timestamp": str(START_S + 60), "action": "set"},
        version=LEGACY,
    )
    meter_id, record_id = items["meter"][0], items["usage_record"][0]
    by_meter = await billing.resolve(Destination("meter", item=meter_id))
    by_record = await billing.resolve(Destination("usage_record", item=record_id))
    assert isinstance(by_meter, Resolved)
    assert isinstance(by_record, Resolved)
    assert await billing.invoiced(by_meter, customer, end_s, None) is None
    sim.wait(end_s - sim.now_s + 2 * HOUR)
    final_us = (end_s + HOUR) * 1_000_000
    for resolved, units in ((by_meter, "12"), (by_record, "5")):
        found = await billing.invoiced(resolved, customer, end_s, None)
        assert isinstance(found, Invoiced), found
        assert (found.units, found.finalized_at_us) == (units, final_us)
    assert await billing.invoiced(by_meter, "cus_other", end_s, None) is None


def wire_of(sim: Sim) -> SimulatorWire:
    return SimulatorWire(sim.state)
