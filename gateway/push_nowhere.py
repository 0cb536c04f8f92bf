"""Usage that ought to be pushed and goes nowhere, with the reason.

Rules it keeps: a metric whose mapping names nothing at Stripe is not pushed on purpose, and its usage is no finding;
unless some customer has a subscription item for it, or its driver needs one: then those without are. It must not know
how usage is routed.
"""

from __future__ import annotations

from engine.actors.supervisor import Meter
from engine.core.push_routes import mapping_route
from gateway.push_shapes import Unroutable


def usage_that_goes_nowhere(meter: Meter, tenant: str | None) -> list[Unroutable]:
    """Of a tenant or (None) of all, sorted."""
    registry = meter.registry
    with_items: dict[str, set[str]] = {}
    meant: dict[tuple[str, str], bool] = {}
    found = []
    for of, metric, ref, reason in meter.started.pusher.unroutable(tenant):
        if (of, metric) not in meant:
            mapping = registry.active_mapping(of, metric)
            if of not in with_items:
                customers = registry.customers.get(of, {}).values()
                with_items[of] = {name for one in customers for name in one.subscription_items}
            meant[of, metric] = mapping is not None and (
                mapping_route(mapping).names_something
                or mapping.driver == "usage_record"
                or metric in with_items[of]
            )
        if meant[of, metric]:
            found.append(Unroutable(tenant_id=of, metric=metric, customer_ref=ref, reason=reason))
    return found
