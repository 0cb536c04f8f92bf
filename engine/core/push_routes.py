"""Where a customer's use of a metric is pushed, over time: a fold of mapping and customer changes.

Rules it keeps: a period keeps the destination it began with, unless a cutover says otherwise; a destination is never
forgotten when it is taken away, since what was pushed there must still be explained; shadow and main have
histories of their own. It must not know Stripe's objects, counters, or what was pushed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from engine.core.billing import Destination, DriverName
from engine.core.configured import (
    Customer,
    CustomerChange,
    Cutover,
    Mapping,
    MappingChange,
    PushEffect,
)
from engine.core.keeping import EraseChange
from engine.core.push_records import Role
from engine.core.times import INSTANT_US_MIN

STRIPE_CUSTOMER_PREFIX: Final = "cus_"


class MappingRoute(NamedTuple):
    """What a mapping says of where and how much."""

    driver: DriverName
    event_name: str | None
    item: str | None
    price: str | None
    connect_account: str | None
    scale: str

    @property
    def names_something(self) -> bool:
        """Whether it can be pushed to without a customer's own subscription item."""
        return not (self.event_name is None and self.item is None and self.price is None)


class CustomerRoute(NamedTuple):
    """What is known of a customer at Stripe: its id, and its subscription items by metric."""

    customer: str | None
    items: tuple[tuple[str, str], ...]


class Route(NamedTuple):
    """Where use goes, as far as it was configured."""

    destination: Destination
    scale: str
    customer: str | None
    """Whose usage it is; None: nobody said, so it is not pushed, except to an item of the customer's own."""
    is_own_item: bool = False


class Paying(NamedTuple):
    """What a customer's use of a metric is billed by."""

    route: MappingRoute | None
    """Where the metric is pushed; None: it was never mapped in that role."""
    item: str | None
    """The customer's own subscription item."""
    carried_us: int | None = None
    """The start of the running period, if a cutover left some of its use at another price."""


class Segment(NamedTuple):
    """A period's destination from an instant on. `cutover` says what became of the one before (None: the first)."""

    since_us: int
    route: Route
    cutover: Cutover | None


_Entry = tuple[int, Any, Cutover | None]
"""(since, route, cutover)."""
_NO_CUSTOMER: Final = CustomerRoute(None, ())


def mapping_route(mapping: Mapping) -> MappingRoute:
    """What a mapping says for its role: a shadow mapping speaks by its `shadow` fields alone."""
    driver: DriverName = mapping.driver  # type: ignore[assignment]
    if mapping.shadow:
        return MappingRoute(
            driver,
            mapping.shadow_meter_event_name,
            mapping.shadow_subscription_item_id,
            mapping.shadow_price_id,
            mapping.shadow_stripe_account,
            mapping.stripe_scale,
        )
    return MappingRoute(
        driver,
        mapping.meter_event_name,
        mapping.subscription_item_id,
        mapping.price_id,
        mapping.stripe_account,
        mapping.stripe_scale,
    )


def customer_route(customer: Customer) -> CustomerRoute:
    """What a customer's record says."""
    return CustomerRoute(
        customer.stripe_customer_id, tuple(sorted(customer.subscription_items.items()))
    )


class PushRoutes:
    """Destinations as of the records folded so far."""

    def __init__(self) -> None:
        self._mappings: dict[tuple[str, str, Role], tuple[_Entry, ...]] = {}
        self._customers: dict[tuple[str, str], tuple[_Entry, ...]] = {}
        self._speaking: dict[tuple[str, str], tuple[str, Role]] = {}
        """(tenant, metric) to the id and role of the active mapping."""
        self.attached: dict[tuple[str, str], bool] = {}
        """(tenant, customerRef) to whether its newest record still names a Stripe customer."""
        self._claims: dict[str, dict[tuple[str, str], None]] = {}
        """Stripe customer to who names it now; all are of one tenant."""
        self.version = 0
        """Grows with every change: who looked before can tell whether it still holds. Not part of `state`."""

    def fold(self, record: object) -> None:
        """Take a record in; those that move no destination are passed over."""
        match record:
            case MappingChange():
                self.version += 1
                self._fold_mapping(record)
            case CustomerChange():
                self.version += 1
                self._fold_customer(record)
            case EraseChange():
                self.version += 1
                self.rename(record.tenant_id, record.names)
            case _:
                pass

    def rename(self, tenant: str, names: dict[str, str]) -> None:
        """Forget what customers are at Stripe: with their names goes who they were."""
        for name in names:
            self._claim((tenant, name), None)
            self._customers.pop((tenant, name), None)
            self.attached.pop((tenant, name), None)

    def _claim(self, key: tuple[str, str], customer: str | None) -> None:
        entries = self._customers.get(key)
        before = None if entries is None else entries[-1][1].customer
        if before is not None and (claims := self._claims.get(before)) is not None:
            claims.pop(key, None)
            if not claims:
                del self._claims[before]
        if customer is not None:
            self._claims.setdefault(customer, {})[key] = None

    def claimed_by(self, customer: str) -> str | None:
        """The tenant whose customer a Stripe customer was said to be; None: nobody said."""
        claims = self._claims.get(customer)
        return None if claims is None else next(iter(claims))[0]

    def _fold_mapping(self, record: MappingChange) -> None:
        mapping = record.mapping
        key = (mapping.tenant_id, mapping.metric)
        speaking = self._speaking.get(key)
        if record.deleted or not mapping.active:
            if speaking is not None and speaking[0] == mapping.id:
                del self._speaking[key]
            return
        role: Role = "shadow" if mapping.shadow else "main"
        self._speaking[key] = (mapping.id, role)
        own = (*key, role)
        self._mappings[own] = _changed(self._mappings.get(own), mapping_route(mapping), record.push)

    def _fold_customer(self, record: CustomerChange) -> None:
        customer = record.customer
        key = (customer.tenant_id, customer.customer_ref)
        route = customer_route(customer)
        is_named = route.customer is not None or bool(route.items)
        self._claim(key, route.customer)
        self.attached[key] = is_named
        if is_named or key not in self._customers:
            entries = self._customers.get(key)
            if entries is None and isinstance(record.push, PushEffect):
                # It was pushed before anything was put: by a reference that is Stripe's own id.
                entries = ((INSTANT_US_MIN, _NO_CUSTOMER, None),)
            self._customers[key] = _changed(entries, route, record.push)

    def role(self, tenant: str, metric: str) -> Role | None:
        """For which account a metric is pushed now; None: for none, it has no active mapping."""
        speaking = self._speaking.get((tenant, metric))
        return None if speaking is None else speaking[1]

    def roles_known(self, tenant: str, metric: str) -> tuple[Role, ...]:
        """The roles in which a metric was ever pushed."""
        both: tuple[Role, Role] = ("main", "shadow")
        return tuple(role for role in both if (tenant, metric, role) in self._mappings)

    def metrics(self) -> set[tuple[str, str]]:
        """(tenant, metric) that are or were pushed."""
        return {(tenant, metric) for tenant, metric, _role in self._mappings}

    def mapping_route(self, tenant: str, metric: str, role: Role) -> MappingRoute | None:
        """The newest destination of a metric, in force or due at the next period."""
        entries = self._mappings.get((tenant, metric, role))
        return None if entries is None else entries[-1][1]

    def mapping_entry(
        self, tenant: str, metric: str, role: Role
    ) -> tuple[MappingRoute | None, int]:
        """The newest destination of a metric and since when it holds, which may lie ahead."""
        entries = self._mappings.get((tenant, metric, role))
        return (None, INSTANT_US_MIN) if entries is None else (entries[-1][1], entries[-1][0])

    def customer_entry(self, tenant: str, customer_ref: str) -> tuple[CustomerRoute | None, int]:
        """The newest that is known of a customer at Stripe and since when it holds, which may lie ahead."""
        entries = self._customers.get((tenant, customer_ref))
        return (None, INSTANT_US_MIN) if entries is None else (entries[-1][1], entries[-1][0])

    def customer_history(self, tenant: str, customer_ref: str) -> tuple[CustomerRoute, ...]:
        """All that a customer was at Stripe, oldest first: periods go on with what they began with."""
        return tuple(route for _, route, _ in self._customers.get((tenant, customer_ref), ()))

    def customer_route(self, tenant: str, customer_ref: str) -> CustomerRoute | None:
        """The newest that is known of a customer at Stripe, in force or due."""
        entries = self._customers.get((tenant, customer_ref))
        return None if entries is None else entries[-1][1]

    def segments(
        self, series: tuple[str, str, str], role: Role, *, start_us: int, end_us: int
    ) -> list[Segment]:
        """Where a customer's use in a period goes, in order; empty: the metric was never mapped in this role."""
        tenant, metric, customer_ref = series
        of_mapping = self._mappings.get((tenant, metric, role))
        if of_mapping is None:
            return []
        of_customer = self._customers.get((tenant, customer_ref), ())
        mapping_cuts = _cuts(of_mapping, start_us, end_us)
        customer_cuts = _cuts(of_customer, start_us, end_us)
        # A cutover of the one does not bring forward what the other is to change at the next period.
        mapped = _in_force(of_mapping, start_us) or of_mapping[0][1]
        known = _in_force(of_customer, start_us)
        found = [Segment(start_us, _joined(metric, customer_ref, mapped, known), None)]
        for since_us in sorted(mapping_cuts.keys() | customer_cuts.keys()):
            if since_us in mapping_cuts:
                mapped = _in_force(of_mapping, since_us)
            if since_us in customer_cuts:
                known = _in_force(of_customer, since_us)
            route = _joined(metric, customer_ref, mapped, known)
            if route != found[-1].route:
                # To move wins over to carry: it leaves nothing behind.
                both = (mapping_cuts.get(since_us), customer_cuts.get(since_us))
                found.append(Segment(since_us, route, "move" if "move" in both else "carry"))
        return found

    def paying(
        self,
        series: tuple[str, str, str],
        role: Role,
        now_us: int,
        period_start_us: Callable[[], int],
    ) -> Paying:
        """What a customer's running period is billed by. What holds from the next period on is not in it.

        `period_start_us` is asked only where something changed.
        """
        tenant, metric, customer_ref = series
        of_mapping = self._mappings.get((tenant, metric, role), ())
        of_customer: tuple[_Entry, ...] = ()
        if self.attached.get((tenant, customer_ref)):
            of_customer = self._customers[tenant, customer_ref]
        first = of_mapping[0][1] if of_mapping else None
        if len(of_mapping) < 2 and all(since == INSTANT_US_MIN for since, _, _ in of_customer):
            known = of_customer[-1][1] if of_customer else _NO_CUSTOMER
            return Paying(first, dict(known.items).get(metric))
        start_us = period_start_us()
        # As the period began, and now.
        (was, is_now) = (
            Paying(
                _at(of_mapping, start_us, at_us) or first,
                dict((_at(of_customer, start_us, at_us) or _NO_CUSTOMER).items).get(metric),
            )
            for at_us in (start_us, now_us)
        )
        cuts = [_cuts(entries, start_us, now_us + 1) for entries in (of_mapping, of_customer)]
        is_carried = any("carry" in one.values() for one in cuts)
        if is_carried and _priced_by(was) != _priced_by(is_now):
            return is_now._replace(carried_us=start_us)
        return is_now

    def state(self) -> bytes:
        """Everything as bytes for a snapshot; `restore` takes it back."""
        return msgspec.msgpack.encode(
            (
                [(*key, entries) for key, entries in self._mappings.items()],
                [(*key, entries) for key, entries in self._customers.items()],
                [(*key, *value) for key, value in self._speaking.items()],
                [(*key, value) for key, value in self.attached.items()],
            )
        )

    @staticmethod
    def restore(data: bytes) -> PushRoutes:
        """Routes from the bytes that `state` gave. Raises msgspec.MsgspecError or ValueError on other bytes."""
        routes = PushRoutes()
        mappings, customers, speaking, attached = msgspec.msgpack.decode(data)
        for tenant, metric, role, entries in mappings:
            routes._mappings[tenant, metric, role] = tuple(
                (since, MappingRoute(*route), cutover) for since, route, cutover in entries
            )
        for tenant, customer_ref, entries in customers:
            routes._customers[tenant, customer_ref] = tuple(
                (since, CustomerRoute(route[0], tuple(map(tuple, route[1]))), cutover)
                for since, route, cutover in entries
            )
        routes._speaking = {(t, m): (mapping, role) for t, m, mapping, role in speaking}
        routes.attached = {(tenant, ref): value for tenant, ref, value in attached}
        for key, entries in routes._customers.items():
            if routes.attached.get(key):
                routes._claim(key, entries[-1][1].customer)
        return routes


def _changed(
    entries: tuple[_Entry, ...] | None, route: Any, push: PushEffect | msgspec.UnsetType
) -> tuple[_Entry, ...]:
    if entries is None or isinstance(push, msgspec.UnsetType):
        return ((INSTANT_US_MIN, route, None),)
    if entries[-1][1] == route and entries[-1][0] <= push.from_us:
        return entries
    kept = tuple(entry for entry in entries if entry[0] < push.from_us)
    if kept and kept[-1][1] == route:
        return kept
    return (*kept, (push.from_us, route, push.cutover))


def _in_force(entries: tuple[_Entry, ...], at_us: int) -> Any:
    return next((route for since, route, _ in reversed(entries) if since <= at_us), None)


def _priced_by(paying: Paying) -> tuple[str | None, str | None]:
    """(item or price at Stripe, scale) that decide an amount; a scale means nothing to a price that is configured here."""
    assert paying.route is not None, "what changed was mapped"
    at_stripe = paying.item or paying.route.item or paying.route.price
    return at_stripe, None if at_stripe is None else paying.route.scale


def _at(entries: tuple[_Entry, ...], start_us: int, now_us: int) -> Any:
    """What holds now in a period that began then: what it began with, or the last cutover since."""
    return _in_force(entries, max(_cuts(entries, start_us, now_us + 1), default=start_us))


def _cuts(entries: tuple[_Entry, ...], start_us: int, end_us: int) -> dict[int, Cutover]:
    """Instants within a period at which a cutover takes effect, and which."""
    return {
        since: cutover
        for since, _route, cutover in entries
        if cutover is not None and start_us < since < end_us
    }


def _joined(
    metric: str, customer_ref: str, mapped: MappingRoute, known: CustomerRoute | None
) -> Route:
    """A mapping's and a customer's route as one."""
    known = known or _NO_CUSTOMER
    customer = known.customer
    if customer is None and customer_ref.startswith(STRIPE_CUSTOMER_PREFIX):
        customer = customer_ref
    # The most exact name speaks: an item says customer, meter and billing period; a price only the meter.
    own_item = dict(known.items).get(metric)
    item = own_item or mapped.item
    event_name = mapped.event_name if item is None else None
    destination = Destination(
        driver=mapped.driver,
        event_name=event_name,
        item=item,
        price=mapped.price if item is None and event_name is None else None,
        # Not the customer: who shares a meter shares what is known of it.
        connect_account=mapped.connect_account,
    )
    return Route(destination, mapped.scale, customer, own_item is not None)
