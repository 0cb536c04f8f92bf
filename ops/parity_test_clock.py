"""Parity proven on a Stripe sandbox: the invoice that Stripe draws is what the certificate said before.

    STRIPE_TEST_SECRET_KEY=sk_test_... python ops/parity_test_clock.py

It makes a meter, a price, a customer and a subscription on a test clock; starts a StripeMeter of its own; uses, pushes,
certifies; turns the clock past the period's end; and holds the invoice's lines against the certificate. What it made is
put away at the end, however it ends. Ten minutes at Stripe, whose summaries and clocks take their time.

Rules it keeps: a live key is refused before anything is sent; only what has its own random mark is touched. It must not
know the engine. STRIPE_API_BASE names a simulator instead of Stripe.

Exit codes: 0 every number agrees; 1 one does not, or something could not be put away; 2 wrong usage.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import click

from gateway.demo.processes import DemoFailed, Processes, processes, wait_until
from gateway.demo.reckoning import cost, price_document, price_fields
from gateway.demo.shop import instant
from gateway.demo.wires import MeterWire, StripeWire

STRIPE: Final = "https://api.stripe.com"
POLL_SECONDS: Final = 2.0
CLOCK_SECONDS_MAX: Final = 600.0
TENANT: Final = "parity"
CUSTOMER: Final = "anna"
QUANTITIES: Final = (9_000, 15_000, 1_000)
"""25,000 in all, in two of three tiers: 220.00."""
_HOUR_S: Final = 3_600
Json = dict[str, Any]


class Sandbox:
    """What is made at Stripe, and how it is put away."""

    def __init__(self, stripe: StripeWire) -> None:
        self._stripe = stripe
        self.mark = f"sm_parity_{secrets.token_hex(4)}"
        self._put_away: list[tuple[str, Callable[[], object]]] = []
        self.clock = ""
        self.customer = ""
        self.item = ""
        self.subscription = ""
        self.start_s = 0
        self.end_s = 0

    def set_up(self) -> None:
        """A customer whose period began an hour ago and runs now, by the clock as by the wall."""
        post = self._stripe.post
        meter = post(
            "/v1/billing/meters",
            {
                "event_name": self.mark,
                "display_name": self.mark,
                "default_aggregation[formula]": "sum",
            },
        )
        meter_path = f"/v1/billing/meters/{meter['id']}/deactivate"
        self._put_away.append(("the meter", lambda: post(meter_path)))
        product = post("/v1/products", {"name": self.mark})
        off = {"active": "false"}
        self._put_away.append(("the product", lambda: post(f"/v1/products/{product['id']}", off)))
        recurring = {
            "recurring[interval]": "month",
            "recurring[usage_type]": "metered",
            "recurring[meter]": meter["id"],
        }
        fields = {"currency": "usd", "product": product["id"], **recurring, **price_fields()}
        price = post("/v1/prices", fields)
        self._put_away.append(("the price", lambda: post(f"/v1/prices/{price['id']}", off)))
        now_s = int(meter["created"])
        begin_s = (now_s - _HOUR_S) // 60 * 60
        clock = post("/v1/test_helpers/test_clocks", {"frozen_time": begin_s, "name": self.mark})
        self.clock = f"/v1/test_helpers/test_clocks/{clock['id']}"
        # The customer and the subscription go with their clock.
        self._put_away.append(("the clock", lambda: self._stripe.delete(self.clock)))
        person = {"name": self.mark, "test_clock": clock["id"]}
        self.customer = str(post("/v1/customers", person)["id"])
        made = post(
            "/v1/subscriptions",
            {
                "customer": self.customer,
                "items[0][price]": price["id"],
                "collection_method": "send_invoice",
                "days_until_due": 30,
            },
        )
        (item,) = made["items"]["data"]
        self.subscription, self.item = made["id"], item["id"]
        self.start_s, self.end_s = made["billing_cycle_anchor"], item["current_period_end"]
        self.turn_clock(now_s)

    def turn_clock(self, to_s: int) -> None:
        """Let the clock's time pass, and wait for what happens by it."""
        self._stripe.post(f"{self.clock}/advance", {"frozen_time": to_s})

        def is_ready() -> bool | None:
            return self._stripe.get(self.clock)["status"] == "ready" or None

        what = f"the test clock stands at {instant(to_s)}"
        wait_until(is_ready, CLOCK_SECONDS_MAX, what, POLL_SECONDS)

    def invoiced(self) -> tuple[int, Decimal]:
        """(units, dollars) of the period's final invoice."""

        def final() -> Json | None:
            found = self._stripe.get("/v1/invoices", subscription=self.subscription)["data"]
            done = [one for one in found if one["billing_reason"] == "subscription_cycle"]
            return next((one for one in done if one["status"] in ("open", "paid")), None)

        invoice = wait_until(final, CLOCK_SECONDS_MAX, "the invoice is final", POLL_SECONDS)
        lines = invoice["lines"]["data"]
        units = sum(int(line["quantity"]) for line in lines)
        return units, Decimal(invoice["total"]).scaleb(-2)

    def put_all_away(self) -> list[str]:
        """Everything, newest first; what could not be, in words."""
        failed = []
        for name, put_away in reversed(self._put_away):
            try:
                put_away()
            except DemoFailed as error:
                failed.append(f"{name} of {self.mark} is still there: {error}")
        return failed


def certified(
    running: Processes, sandbox: Sandbox, settings: dict[str, str], wait_seconds: float
) -> tuple[str, str]:
    """(units, dollars) of a green certificate that the raw log bears out."""
    meter = MeterWire(running.meter_url, TENANT)
    try:
        running.start_meter(meter.is_ready, settings)
        mapping = {"metric": "api_calls", "meterEventName": sandbox.mark, "period": "subscription"}
        meter.send("/v1/mappings", {**mapping, "priceConfig": price_document()})
        known = {
            "stripeCustomerId": sandbox.customer,
            "subscriptionItems": {"api_calls": sandbox.item},
            "billingAnchor": instant(sandbox.start_s),
        }
        meter.send(f"/v1/customers/{CUSTOMER}", known, method="PUT")
        for number, quantity in enumerate(QUANTITIES):
            event = {"metric": "api_calls", "customerRef": CUSTOMER, "quantity": quantity}
            for _ in range(2):  # the second is a duplicate
                meter.ingest([{**event, "idempotencyKey": f"{sandbox.mark}-{number}"}])
        meter.flush()
        click.echo("used, twice as sent, and pushed; waiting for Stripe's summary")
        month = instant(sandbox.start_s)[:7]
        seen: list[str] = []

        def settled() -> str | None:
            found = meter.get(f"/v1/parity/{month}", maxAgeSeconds=0)
            seen.append(", ".join(one["reason"] or "" for one in found["targets"]))
            return None if found["verdict"] == "waiting" else str(found["verdict"])

        try:
            verdict = wait_until(settled, wait_seconds, "the certificate settles", POLL_SECONDS)
        except DemoFailed as error:
            message = f"{error}: {seen[-1]}"
            raise DemoFailed(message) from error
        if verdict != "green":
            message = f"the certificate is {verdict}: {seen[-1]}"
            raise DemoFailed(message)
        path = running.directory / "parity.json"
        arguments = ("parity", "--tenant", TENANT, "--period", month, "--output", str(path))
        code, said = running.command(*arguments, "--json", "--url", running.meter_url)
        if code:
            message = f"stripemeter parity ends with {code}: {said}"
            raise DemoFailed(message)
    finally:
        meter.close()
    running.stop_meter()
    code, said = running.command("parity", "verify", str(path), "--log", str(running.data_path))
    if code:
        message = f"stripemeter parity verify ends with {code}: {said}"
        raise DemoFailed(message)
    certificate = json.loads(path.read_text())
    (chain,), (target,) = certificate["chains"], certificate["targets"]
    return str(chain["total"]), str(target["projected"]["amount"])


def prove(sandbox: Sandbox, settings: dict[str, str], wait_seconds: float) -> list[str]:
    """All that does not agree."""
    sandbox.set_up()
    click.echo(f"{sandbox.mark}: subscribed from {instant(sandbox.start_s)}")
    with (
        tempfile.TemporaryDirectory(prefix="stripemeter-parity-") as name,
        processes(Path(name)) as running,
    ):
        total, amount = certified(running, sandbox, settings, wait_seconds)
    click.echo(f"certified, and verified from the raw log: {total} units, ${amount}")
    sandbox.turn_clock(sandbox.end_s + 60)
    sandbox.turn_clock(sandbox.end_s + 2 * _HOUR_S)
    units, dollars = sandbox.invoiced()
    click.echo(f"invoiced by Stripe: {units} units, ${dollars}")
    return differences(Decimal(total), Decimal(amount), Decimal(units), dollars)


def differences(
    total: Decimal, amount: Decimal, invoiced_units: Decimal, invoiced_dollars: Decimal
) -> list[str]:
    """Each number that is not what was used, or what that costs."""
    used, price = Decimal(sum(QUANTITIES)), cost(sum(QUANTITIES))
    pairs = (
        ("certified units", total, used),
        ("certified dollars", amount, price),
        ("invoiced units", invoiced_units, used),
        ("invoiced dollars", invoiced_dollars, price),
    )
    return [f"{what}: {found} instead of {due}" for what, found, due in pairs if found != due]


@click.command(help=__doc__.partition("\n")[0] if __doc__ else "")
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0),
    default=900.0,
    show_default=True,
    help="Seconds that Stripe's summary may take to show what was pushed.",
)
def command(*, wait_seconds: float) -> None:
    """Run the proof and exit with its code."""
    key = os.environ.get("STRIPE_TEST_SECRET_KEY", "")
    if key[2:8] != "_test_":
        message = "set STRIPE_TEST_SECRET_KEY to a key of a sandbox (sk_test_..., rk_test_...)"
        raise click.UsageError(message)
    url = os.environ.get("STRIPE_API_BASE") or STRIPE
    settings = {"STRIPE_SECRET_KEY": key, "STRIPEMETER_PUSH_INTERVAL_SECONDS": "1"}
    if url == STRIPE:
        proxies = (name for name in os.environ if name.lower().endswith("_proxy"))
        settings |= {name: os.environ[name] for name in proxies}
    else:
        events_url = os.environ.get("STRIPE_METER_EVENTS_BASE") or url
        settings |= {"STRIPE_API_BASE": url, "STRIPE_METER_EVENTS_BASE": events_url}
    stripe = StripeWire(url, key, by_proxy=url == STRIPE)
    sandbox = Sandbox(stripe)
    wrong: list[str] = []
    try:
        wrong += prove(sandbox, settings, wait_seconds)
    except DemoFailed as error:
        wrong.append(str(error))
    finally:
        wrong += sandbox.put_all_away()
        stripe.close()
    for line in wrong:
        click.echo(f"wrong: {line}", err=True)
    if not wrong:
        click.echo("every number agrees; what was made is put away")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    command()
