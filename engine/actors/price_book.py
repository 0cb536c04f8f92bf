"""What usage costs: the price of a customer's subscription item, else the mapping's, as Stripe has it or had it last.

Rules it keeps: the customer's own item speaks first, then the mapping's price at Stripe; the mapping's own configuration
is used only where neither is known, and the answer says which it was; a change that holds from the next period on (see
engine.core.push_routes) prices nothing before; while Stripe can't be asked, the last known price
is given with its age, and without one there is a reason, never a guess; one task asks, others who want the same
wait for it; what is kept is bounded, the least used goes first. It must not know how usage is counted, nor HTTP.

A price at Stripe is for what Stripe is sent: whole billable units, floor(total x stripeScale). The mapping's own
configuration is for the usage as it is counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple

import msgspec
import trio

from engine.actors.push_connections import Connection
from engine.actors.supervisor import Meter
from engine.core.billing import Destination, DriverName, PricedItem, Resolved, Unread
from engine.core.configured import Mapping
from engine.core.periods import period_in
from engine.core.push_plan import billable_units
from engine.core.push_records import Role
from engine.core.push_routes import MappingRoute, mapping_route
from engine.core.quantities import format_micros
from engine.pricing.documents import read_price
from engine.pricing.errors import PricingError
from engine.pricing.prices import PriceConfig
from engine.pricing.stripe_prices import from_stripe

KEPT_MAX: Final = 50_000
"""Answers remembered: prices, and items of customers that the pusher has not met. Some kilobytes each at most."""
FRESH_US: Final = 3600 * 1_000_000
"""Amounts of a Stripe price never change; its currencies and whether it is there may."""
ITEM_FRESH_US: Final = 300 * 1_000_000
"""A customer changes plan, and wants to see it."""
MISSING_FRESH_US: Final = 60 * 1_000_000
RETRY_US: Final = 10 * 1_000_000
"""After a failure: who asks meanwhile gets the last known answer at once."""
ASK_SECONDS_MAX: Final = 5
"""An answer with an older price is better than one that comes when the reader has gone."""

_SILENT: Final = f"Stripe did not answer within {ASK_SECONDS_MAX} s"

PriceSource = Literal["subscriptionItem", "stripePrice", "mapping"]
_decode_config = msgspec.json.Decoder(float_hook=Decimal).decode


class KnownPrice(NamedTuple):
    """A price and where it comes from."""

    config: PriceConfig
    source: PriceSource
    scale: str | None
    """Billable units of one unit of use; None: priced as it is counted."""
    price_id: str | None = None
    item: str | None = None
    read_at_us: int | None = None
    """When Stripe said so; None: it is configured here."""
    stale_because: str | None = None
    """Why it is not as of now: Stripe could not be asked again."""

    def quantity(self, micros: int) -> Decimal:
        """What of a total the price is for: whole billable units of a price at Stripe. Exact."""
        if self.scale is None:
            return Decimal(format_micros(micros))
        return Decimal(billable_units(micros, self.scale))


class Payer(NamedTuple):
    """What decides the price of a metric: customers with an equal one pay alike."""

    metric: str
    item: str | None
    """The customer's own subscription item."""
    route: MappingRoute | None
    """Where the running period is billed; None: no mapping is active."""
    carried_us: int | None = None
    """The start of the one period that no one price is for: see CARRIED."""


class NoPrice(NamedTuple):
    """There is none, in words that say what to do."""

    reason: str


CARRIED: Final = NoPrice(
    "the period was carried over to another price: what was used before the cutover is billed at the old one, "
    "the rest at the new one; the next period has one price again"
)


class _Answer(NamedTuple):
    """What Stripe said last (None: nothing, ever), and why it could not be asked since."""

    value: Any
    read_at_us: int
    problem: Unread | None
    asked_at_us: int
    fresh_us: int

    def is_fresh(self, now_us: int) -> bool:
        """Also False when the clock stepped back."""
        return 0 <= now_us - self.asked_at_us < self.fresh_us


_Key = tuple[Role, str, str, str | None, str | None]
"""(role, kind, id, currency, connected account)."""
_Question = Callable[[], Awaitable[Any]]


class PriceBook:
    """The prices of a running meter."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._kept: OrderedDict[_Key, _Answer] = OrderedDict()
        self._asking: dict[_Key, trio.Event] = {}
        self._silent_until_us: dict[tuple[Role, str | None], int] = {}
        """Accounts that let somebody wait in vain: the next ones, of many metrics, are not made to wait too."""

    async def price_of(
        self, tenant: str, metric: str, customer_ref: str, start_us: int
    ) -> KnownPrice | NoPrice:
        """What a customer pays for a metric's use in the period that begins then, as of now. Takes at most some seconds."""
        payer = self.payer(tenant, metric, customer_ref)
        return CARRIED if payer.carried_us == start_us else await self.price_for(tenant, payer)

    def payer(self, tenant: str, metric: str, customer_ref: str) -> Payer:
        """What the customer's running period of a metric is billed by."""
        mapping = self._meter.registry.active_mapping(tenant, metric)
        if mapping is None:
            return Payer(metric, None, None)
        series, now_us = (tenant, metric, customer_ref), self._meter.clock.now_us()

        def period_start_us() -> int:
            return period_in(self._meter.rules.schedule(*series), now_us)[0]

        routes = self._meter.push.routes
        route, item, carried_us = routes.paying(series, _role_of(mapping), now_us, period_start_us)
        assert route is not None, "an active mapping has a route"
        return Payer(metric, item, route, carried_us)

    async def price_for(self, tenant: str, payer: Payer) -> KnownPrice | NoPrice:
        """What whoever is billed by this pays."""
        mapping = self._meter.registry.active_mapping(tenant, payer.metric)
        if mapping is None or payer.route is None:
            return NoPrice("no active mapping says what it costs: create one with a price")
        return await self._price_of(mapping, payer.item, payer.route)

    async def _price_of(
        self, mapping: Mapping, own_item: str | None, route: MappingRoute
    ) -> KnownPrice | NoPrice:
        role = _role_of(mapping)
        item, price_id, account = own_item or route.item, route.price, route.connect_account
        if item is None and price_id is None:
            return _configured(mapping)
        connection = self._meter.started.push.connections.get(role)
        if connection is None:
            asked = item or price_id
            return NoPrice(f"the price of {asked} is at Stripe, and no key is set to ask with")
        currency, stale_because = mapping.currency if item is None else None, None
        if item is not None:
            found = await self._item(connection, route.driver, item, account)
            if isinstance(found, NoPrice):
                return found
            (priced, stale_because) = found
            price_id, currency = priced.price, priced.currency
        assert price_id is not None, "an item has a price"

        async def ask() -> dict[str, object] | Unread:
            return await connection.billing.price(price_id, currency, account)

        key: _Key = (role, "price", price_id, currency, account)
        answer = await self._ask(key, connection, ask, FRESH_US)
        return _known(
            answer,
            scale=route.scale,
            price_id=price_id,
            item=item,
            currency=currency,
            stale_because=stale_because,
        )

    async def _item(
        self, connection: Connection, driver: DriverName, item: str, account: str | None
    ) -> tuple[PricedItem, str | None] | NoPrice:
        """The item's price, and why that is not as of now. What the pusher found out is not asked again."""
        resolved = connection.known(Destination(driver, item=item, connect_account=account))
        if isinstance(resolved, Resolved) and resolved.price and resolved.currency:
            return PricedItem(resolved.price, resolved.currency, resolved.customer or ""), None

        async def ask() -> PricedItem | Unread:
            return await connection.billing.priced_item(item, account)

        key: _Key = (connection.role, "item", item, None, account)
        answer = await self._ask(key, connection, ask, ITEM_FRESH_US)
        problem = answer.problem
        if answer.value is None:
            assert problem is not None, "either an answer or why there is none"
            return NoPrice(f"the subscription item's price is not known: {problem.reason}")
        return answer.value, None if problem is None else problem.reason

    async def _ask(
        self, key: _Key, connection: Connection, question: _Question, fresh_us: int
    ) -> _Answer:
        """The answer that is kept, else a new one."""
        while True:
            kept = self._kept.get(key)
            if kept is not None and kept.is_fresh(self._meter.clock.now_us()):
                self._kept.move_to_end(key)
                return kept
            asking = self._asking.get(key)
            if asking is None:
                break
            await asking.wait()
        done = self._asking[key] = trio.Event()
        try:
            said = await self._say(connection, question, key[-1])
            return self._keep(key, said, fresh_us)
        finally:
            del self._asking[key]
            done.set()

    async def _say(self, connection: Connection, question: _Question, account: str | None) -> Any:
        """What Stripe says, at the pace of the account; Unread when it may not be asked, or takes too long."""
        if connection.proven is None:
            return Unread(connection.error or "Stripe has not said yet whose key it is")
        pace = connection.pace(account)
        whose = (connection.role, account)
        silence_us = self._silent_until_us.get(whose, 0) - self._meter.clock.now_us()
        if 0 < silence_us <= RETRY_US:
            return Unread(_SILENT)
        with trio.move_on_after(ASK_SECONDS_MAX):
            if pace.breaker.wait_us(self._meter.clock.now_us()):
                return Unread(pace.breaker.reason or "Stripe asked for a pause")
            await trio.sleep(pace.resolves.reserve(self._meter.clock.now_us()) / 1e6)
            return await question()
        self._silent_until_us[whose] = self._meter.clock.now_us() + RETRY_US
        return Unread(_SILENT)

    def _keep(self, key: _Key, said: Any, fresh_us: int) -> _Answer:
        now_us = self._meter.clock.now_us()
        old = self._kept.get(key)
        if not isinstance(said, Unread):
            answer = _Answer(said, now_us, None, now_us, fresh_us)
        elif said.is_missing or old is None:
            lasts_us = MISSING_FRESH_US if said.is_missing else RETRY_US
            answer = _Answer(None, now_us, said, now_us, lasts_us)
        else:
            answer = old._replace(problem=said, asked_at_us=now_us, fresh_us=RETRY_US)
        self._kept[key] = answer
        self._kept.move_to_end(key)
        if len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return answer


def _role_of(mapping: Mapping) -> Role:
    return "shadow" if mapping.shadow else "main"


def _configured(mapping: Mapping) -> KnownPrice | NoPrice:
    """The mapping's own configuration, where the running period has no price at Stripe."""
    if mapping.price_config is None:
        due = mapping_route(mapping)
        if named := due.item or due.price:
            return NoPrice(f"{named} holds from the next period on, and this one has no price")
        return NoPrice(
            "the mapping names no price: give it priceId or priceConfig, or the customer a subscription item"
        )
    return KnownPrice(read_price(_decode_config(mapping.price_config)), "mapping", None)


def _known(
    answer: _Answer,
    *,
    scale: str,
    price_id: str,
    item: str | None,
    currency: str | None,
    stale_because: str | None,
) -> KnownPrice | NoPrice:
    problem = answer.problem
    if answer.value is None:
        assert problem is not None, "either an answer or why there is none"
        return NoPrice(f"the price is not known: {problem.reason}")
    try:
        config = from_stripe(answer.value, currency)
    except PricingError as error:
        return NoPrice(f"price {price_id} can't be computed here: {error}")
    return KnownPrice(
        config,
        "stripePrice" if item is None else "subscriptionItem",
        scale,
        price_id,
        item,
        answer.read_at_us,
        stale_because if problem is None else problem.reason,
    )
