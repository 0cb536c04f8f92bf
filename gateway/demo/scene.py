"""Where a step of the demo stands: the processes, what is said to them, the books, and what was found wrong.

Rules it keeps: it looks and says, it decides nothing. It must not know which steps there are.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final, NoReturn

from gateway.demo.processes import WEBHOOK_SECRET, DemoFailed, Processes
from gateway.demo.reckoning import Books, Row
from gateway.demo.shop import CUSTOMERS, TENANT, Shop, open_shop
from gateway.demo.telling import Teller
from gateway.demo.wires import MeterWire, StripeWire

KEY: Final = "sk_test_of_the_demo"


def _not_yet(what: str) -> NoReturn:
    raise AssertionError(f"{what} is there from the first step on")


class Scene:
    """One telling's state."""

    def __init__(self, running: Processes, teller: Teller) -> None:
        self.running = running
        self.teller = teller
        self.books = Books(CUSTOMERS)
        self.meter = MeterWire(running.meter_url, TENANT)
        self._stripe: StripeWire | None = None
        self._shop: Shop | None = None
        self.certificate: dict[str, Any] = {}
        self.wrong: list[str] = []
        """What the end will not hide."""
        self.rows: list[Row] = []

    @property
    def stripe(self) -> StripeWire:
        """The Stripe simulator."""
        return self._stripe or _not_yet("Stripe")

    @property
    def shop(self) -> Shop:
        """What is sold."""
        return self._shop or _not_yet("the shop")

    def close(self) -> None:
        """Close the connections."""
        self.meter.close()
        if self._stripe is not None:
            self._stripe.close()

    def start_stripe(self, lag: str) -> None:
        """Start the simulator."""
        self.running.start_stripe(lag)
        self._stripe = StripeWire(self.running.stripe_url, KEY)

    def start_meter(self) -> int:
        """Start the meter, for the first time or again; milliseconds until it was ready."""
        settings = {
            "STRIPE_SECRET_KEY": KEY,
            "STRIPE_API_BASE": self.running.stripe_url,
            "STRIPE_METER_EVENTS_BASE": self.running.stripe_url,
            "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "STRIPEMETER_PUSH_INTERVAL_SECONDS": "0.2",
            "STRIPEMETER_RECONCILE_LAG_SECONDS": "1.5",
        }
        return self.running.start_meter(self.meter.is_ready, settings)

    def open_shop(self) -> None:
        """Set up what is sold."""
        self._shop = open_shop(self.stripe, self.meter)

    # What happens.

    def uses(self, key: str, customer: str, quantity: int, **more: Any) -> tuple[str, int]:
        """(status, milliseconds) of one event."""
        answer = self.meter.ingest([self.books.event(key, customer, quantity, **more)])
        (result,) = answer.body["results"]
        return str(result["status"]), answer.milliseconds

    def fault(self, kind: str, **fields: Any) -> None:
        """Let the simulator misbehave."""
        self.stripe.control("faults", kind=kind, **fields)

    # What is seen.

    def counted(self, customer: str) -> Decimal:
        """The meter's total."""
        found = self.meter.get("/v1/usage/current", customerRef=customer)
        return sum((Decimal(one["current"]) for one in found["metrics"]), Decimal(0))

    def target(self, customer: str) -> dict[str, Any]:
        """How pushing the customer's total stands."""
        (found,) = self.meter.get("/v1/pushes", customerRef=customer)["pushes"]
        return dict(found)

    def of_all(self, field: str) -> dict[str, int]:
        """A field of every customer's target."""
        return {name: int(self.target(name)[field]) for name in self.books.used}

    def open_intent(self, customer: str) -> str | None:
        """The identifier of a push without an outcome."""
        intent = self.target(customer)["openIntent"]
        return None if intent is None else str(intent["identifier"])

    def findings(self) -> list[tuple[str, dict[str, Any]]]:
        """(customer, cause) of every open difference, after a run of reconciliation."""
        report = self.meter.reconcile(self.shop.month)
        rows = report["reports"]
        return [(row["customerRef"], cause) for row in rows for cause in row["causes"]]

    def expect(self, found: object, wanted: object, what: str) -> None:
        """Raises DemoFailed unless they are the same."""
        if found != wanted:
            message = f"{what}: {found} instead of {wanted}"
            raise DemoFailed(message)
