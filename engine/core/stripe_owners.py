"""Which customers share a Stripe customer or subscription item: so that one of them never bills two tenants.

Rules it keeps: a Stripe customer or item belongs to one tenant; customers that share a Stripe customer share its
billing anchor, since Stripe has one boundary for it. It follows the registry and can be rebuilt from it.
It must not know Stripe's API.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.core.configured import Customer

_Ref = tuple[str, str]


class StripeOwners:
    """An index from Stripe's ids to our customers; `take` must hear of every customer change."""

    def __init__(self, customers: Iterable[Customer]) -> None:
        self._customers: dict[str, dict[_Ref, Customer]] = {}
        self._items: dict[str, dict[_Ref, Customer]] = {}
        for customer in customers:
            self.take(None, customer)

    def take(self, old: Customer | None, new: Customer) -> None:
        """A customer is now `new`; it was `old`."""
        ref = (new.tenant_id, new.customer_ref)
        if old is not None:
            if old.stripe_customer_id is not None:
                self._customers[old.stripe_customer_id].pop(ref, None)
            for item in old.subscription_items.values():
                self._items[item].pop(ref, None)
        if new.stripe_customer_id is not None:
            self._customers.setdefault(new.stripe_customer_id, {})[ref] = new
        for item in new.subscription_items.values():
            self._items.setdefault(item, {})[ref] = new

    def objections(self, new: Customer) -> list[str]:
        """Why this customer would contradict another one; each is a sentence. Empty: it may be put.

        Another tenant is never named: whoever asks must not learn who it is.
        """
        found: list[str] = []
        ref = (new.tenant_id, new.customer_ref)
        if new.stripe_customer_id is not None:
            for (tenant, name), other in self._customers.get(new.stripe_customer_id, {}).items():
                if tenant != new.tenant_id:
                    found.append(f"{new.stripe_customer_id} belongs to another tenant")
                    break
                if (tenant, name) != ref and other.billing_anchor_us != new.billing_anchor_us:
                    found.append(
                        f"{new.stripe_customer_id} is also customer {name!r}, whose billingAnchor differs: "
                        "customers that share a Stripe customer share its billing anchor"
                    )
                    break
        return found

    def tenants_of_item(self, item: str) -> set[str]:
        """Whose customers have a subscription item."""
        return {tenant for tenant, _ in self._items.get(item, {})}
