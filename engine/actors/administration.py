"""Administration: changes of mappings, customers and API keys, each checked and then made durable as one record.

Rules it keeps: check and record are under one lock, so that no two changes pass each other's checks; a change is
answered when it is on disk and folded; a change of what was counted by (period, aggregation, billing anchor) takes
effect at the end of the running period once there is usage, since the past keeps its boundaries; so does a change of
where or how much is pushed (engine.actors.push_effects), unless a cutover is asked for. A dry run checks and records
nothing. It must not know HTTP.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from engine.actors import push_effects
from engine.actors.supervisor import Meter
from engine.core import api_keys
from engine.core.api_keys import NewKey
from engine.core.configured import (
    Change,
    Customer,
    CustomerChange,
    Cutover,
    Mapping,
    MappingChange,
)
from engine.core.configured_checks import check_customer, check_mapping
from engine.core.periods import next_boundary
from engine.core.push_records import PushDecision
from engine.core.records import ApiKeyChange, ControlRecord
from engine.core.stripe_owners import StripeOwners
from engine.core.times import INSTANT_US_END
from engine.errors import Conflict, NotFound

MAPPINGS_OF_A_TENANT_MAX: Final = 10_000
ID_RANDOM_BYTES: Final = 8


class By(NamedTuple):
    """Who asks for a change, and under which request."""

    actor: str
    request_id: str | None


class Wanted(NamedTuple):
    """How a change of where or how much is pushed is to be made."""

    cutover: Cutover | None = None
    is_dry_run: bool = False
    """Check everything, record nothing."""


class Recorded(NamedTuple):
    """What a change wrote, or (dry run) would have."""

    change: MappingChange | CustomerChange
    freezes: list[PushDecision]


class Changed(NamedTuple):
    """A mapping after its change."""

    value: Mapping
    effective_from_us: int | None
    """From when its periods hold; None: at once."""
    push_from_us: int | None
    """From when its destination holds, if that changed; None: at once, or always."""
    records: Recorded


class ChangedCustomer(NamedTuple):
    """A customer after its change."""

    value: Customer
    effective_from_us: int | None
    """From when its billing anchor holds; None: at once."""
    push_from_us: int | None
    was_new: bool
    records: Recorded


_AS_USUAL: Final = Wanted()
_COUNTING: Final = ("pending", "approved")
"""Corrections of these states count, or may yet."""


class Administration:
    """The changes that people make. One per meter."""

    def __init__(self, meter: Meter, pepper: bytes) -> None:
        """`pepper` is mixed into the hashes of API keys."""
        self._meter = meter
        self._pepper = pepper
        self._owners: StripeOwners | None = None

    # Mappings.

    def mapping(self, mapping_id: str, tenant: str | None) -> Mapping:
        """A mapping by id, of a tenant or (None) of any. Raises NotFound, also for another tenant's."""
        found = self._meter.registry.mappings.get(mapping_id)
        if found is None or (tenant is not None and found.tenant_id != tenant):
            raise NotFound(f"there is no mapping {mapping_id}")
        return found

    async def create_mapping(self, draft: Mapping, by: By, wanted: Wanted = _AS_USUAL) -> Changed:
        """Record a new mapping; its id and times are given here. Raises Refused or Conflict."""
        check_mapping(draft)
        await push_effects.refuse_unfit(self._meter, draft)
        async with self._meter.change_lock:
            self._require_ready()
            now_us = self._meter.clock.now_us()
            mapping = msgspec.structs.replace(
                draft,
                id=f"map_{self._meter.ids.token(ID_RANDOM_BYTES).hex()}",
                created_at_us=now_us,
                updated_at_us=now_us,
            )
            if len(self._meter.registry.mappings_of(mapping.tenant_id)) >= MAPPINGS_OF_A_TENANT_MAX:
                raise Conflict(
                    f"the tenant has {MAPPINGS_OF_A_TENANT_MAX} mappings, the most there may be"
                )
            self._check_one_active(mapping)
            return await self._record_mapping(mapping, by, now_us, wanted)

    async def update_mapping(self, mapping: Mapping, by: By, wanted: Wanted = _AS_USUAL) -> Changed:
        """Record what a mapping is now. Raises Refused, Conflict (id, tenant and metric never change), NotFound."""
        check_mapping(mapping)
        await push_effects.refuse_unfit(self._meter, mapping)
        async with self._meter.change_lock:
            self._require_ready()
            old = self.mapping(mapping.id, mapping.tenant_id)
            if old.metric != mapping.metric:
                raise Conflict("a mapping's metric can't change: delete it and create another one")
            now_us = self._meter.clock.now_us()
            mapping = msgspec.structs.replace(
                mapping, created_at_us=old.created_at_us, updated_at_us=now_us
            )
            self._check_one_active(mapping)
            return await self._record_mapping(mapping, by, now_us, wanted)

    async def delete_mapping(self, mapping_id: str, tenant: str | None, by: By) -> Mapping:
        """Record that a mapping is gone; its metric counts by the defaults again. Raises NotFound."""
        async with self._meter.change_lock:
            self._require_ready()
            old = self.mapping(mapping_id, tenant)
            defaults = msgspec.structs.replace(old, active=False)
            now_us = self._meter.clock.now_us()
            effective_from_us = self._mapping_effect_us(defaults, now_us)
            await self._append(
                MappingChange(mapping=old, change=_change(by, effective_from_us), deleted=True)
            )
            return old

    def _check_one_active(self, mapping: Mapping) -> None:
        active = self._meter.registry.active_mapping(mapping.tenant_id, mapping.metric)
        if active is not None and active.id != mapping.id and mapping.active:
            raise Conflict(
                f"metric {mapping.metric!r} has an active mapping, {active.id}: change that one, or make it inactive"
            )

    async def _record_mapping(
        self, mapping: Mapping, by: By, now_us: int, wanted: Wanted
    ) -> Changed:
        for item in (mapping.subscription_item_id, mapping.shadow_subscription_item_id):
            if item is not None and self._is_anothers_item(item, mapping.tenant_id):
                raise Conflict(f"{item} belongs to another tenant")
        effective_from_us = self._mapping_effect_us(mapping, now_us)
        pushing = push_effects.of_mapping(self._meter, mapping, wanted.cutover, now_us)
        change = _change(by, effective_from_us)
        record = MappingChange(mapping=mapping, change=change, push=pushing.effect)
        recorded = await self._append_push_change(record, pushing, by, wanted)
        return Changed(mapping, effective_from_us, pushing.from_us, recorded)

    async def _append_push_change(
        self,
        record: MappingChange | CustomerChange,
        pushing: push_effects.PushChange,
        by: By,
        wanted: Wanted,
    ) -> Recorded:
        freezes = await push_effects.frozen(self._meter, pushing, by.actor)
        if not wanted.is_dry_run:
            # One append: a cutover without what it was cut at would leave everything where it was.
            await self._meter.append_controls((*freezes, record))
        return Recorded(record, freezes)

    def _is_anothers_item(self, item: str, tenant: str) -> bool:
        """Whether another tenant has a subscription item, as a customer's or a mapping's."""
        if any(of != tenant for of in self._owners_now().tenants_of_item(item)):
            return True
        return any(
            item in (mapping.subscription_item_id, mapping.shadow_subscription_item_id)
            and mapping.tenant_id != tenant
            for mapping in self._meter.registry.mappings.values()
        )

    def _mapping_effect_us(self, mapping: Mapping, now_us: int) -> int | None:
        """From when the mapping's period and aggregation hold; None: always, nothing contradicts it.

        The boundary is that of a customer without an anchor: there is none that fits every customer's.
        """
        tenant, metric = mapping.tenant_id, mapping.metric
        rules = self._meter.rules
        schedule = rules.schedule(tenant, metric, "")
        period = mapping.period if mapping.active else "calendar"
        aggregation = mapping.aggregation if mapping.active else "sum"
        last = rules.aggregation(tenant, metric, INSTANT_US_END - 1)
        if (period, aggregation) == (schedule[-1].kind, last):
            return None
        if not self._meter.has_usage(tenant, metric):
            return None
        return next_boundary(schedule, now_us)

    # Customers.

    def customer(self, tenant: str, customer_ref: str) -> Customer:
        """What is known of a customer. Raises NotFound."""
        found = self._meter.registry.customer(tenant, customer_ref)
        if found is None:
            raise NotFound(f"nothing was put for customer {customer_ref!r}")
        return found

    def _owners_now(self) -> StripeOwners:
        if self._owners is None:
            registry = self._meter.registry
            self._owners = StripeOwners(
                one for of in registry.customers.values() for one in of.values()
            )
        return self._owners

    async def put_customer(
        self, draft: Customer, by: By, wanted: Wanted = _AS_USUAL
    ) -> ChangedCustomer:
        """Record what is known of a customer, in place of what was. Raises Refused or Conflict."""
        check_customer(draft)
        async with self._meter.change_lock:
            self._require_ready()
            registry = self._meter.registry
            owners = self._owners_now()
            old = registry.customer(draft.tenant_id, draft.customer_ref)
            now_us = self._meter.clock.now_us()
            customer = msgspec.structs.replace(
                draft,
                created_at_us=now_us if old is None else old.created_at_us,
                updated_at_us=now_us,
            )
            objections = owners.objections(customer) + [
                f"{item} belongs to another tenant"
                for item in dict.fromkeys(customer.subscription_items.values())
                if self._is_anothers_item(item, customer.tenant_id)
            ]
            objections += self._pushed_by_others(customer)
            if objections:
                raise Conflict("; ".join(objections))
            effective_from_us = self._anchor_effect_us(customer, now_us)
            pushing = push_effects.of_customer(self._meter, customer, wanted.cutover, now_us)
            change = _change(by, effective_from_us)
            record = CustomerChange(customer=customer, change=change, push=pushing.effect)
            recorded = await self._append_push_change(record, pushing, by, wanted)
            if not wanted.is_dry_run:
                owners.take(old, customer)
            push_from_us = pushing.from_us
            return ChangedCustomer(customer, effective_from_us, push_from_us, old is None, recorded)

    def _pushed_by_others(self, customer: Customer) -> list[str]:
        """A customer that another tenant's usage was pushed to, by a reference that is Stripe's own id."""
        wanted = customer.stripe_customer_id
        owners = self._meter.push.ledger.owners
        is_anothers = any(
            of == wanted and tenant != customer.tenant_id
            for (_account, of), tenant in owners.items()
        )
        return [f"{wanted} belongs to another tenant"] if is_anothers else []

    def _anchor_effect_us(self, customer: Customer, now_us: int) -> int | None:
        """From when the anchor holds; None: always, since nothing was counted by another one.

        The boundary is the latest end of the running periods that the customer's usage is counted in. Corrections that
        count, or may yet, belong to their period as usage does; so does what is on its way to be counted.
        """
        meter = self._meter
        tenant, ref = customer.tenant_id, customer.customer_ref
        history = meter.rules.anchors.get((tenant, ref))
        if (history[-1][1] if history else None) == customer.billing_anchor_us:
            return None
        shard, partition = meter.shard_of_customer(tenant, ref)
        counters, adjustments = shard.state.counters[partition], shard.state.adjustments[partition]
        used = {
            metric
            for metric in shard.state.metrics.get(tenant, ())
            if (tenant, metric, ref) in counters
            or any(one.status in _COUNTING for one in adjustments.of_series((tenant, metric, ref)))
        }
        ends_us = []
        for metric in used.union(
            *(of.metrics_of(tenant, ref) for of in meter.started.writer.ahead)
        ):
            schedule = meter.rules.schedule(tenant, metric, ref)
            if any(part.kind == "subscription" for part in schedule):
                ends_us.append(next_boundary(schedule, now_us))
        return max(ends_us, default=None)

    # API keys.

    async def create_key(
        self, *, name: str, tenant: str, scopes: tuple[str, ...], expires_at_us: int | None, by: By
    ) -> NewKey:
        """Make an API key; its text is in the result and nowhere else. Raises Refused or Conflict."""
        async with self._meter.change_lock:
            self._require_ready()
            made = api_keys.created(
                self._meter.registry,
                name=name,
                tenant=tenant,
                scopes=scopes,
                expires_at_us=expires_at_us,
                pepper=self._pepper,
                token=self._meter.ids.token,
                now_us=self._meter.clock.now_us(),
                change=_change(by, None),
            )
            await self._append(made.change)
            return made

    async def rotate_key(self, key_id: str, tenant: str | None, by: By) -> NewKey:
        """Give a key another text; the old one ends at once. Raises NotFound or Conflict."""
        async with self._meter.change_lock:
            self._require_ready()
            made = api_keys.rotated(
                self._meter.registry,
                key_id,
                tenant,
                pepper=self._pepper,
                token=self._meter.ids.token,
                now_us=self._meter.clock.now_us(),
                change=_change(by, None),
            )
            await self._append(made.change)
            return made

    async def revoke_key(self, key_id: str, tenant: str | None, by: By) -> ApiKeyChange | None:
        """End a key for good; None when it had ended before. Raises NotFound."""
        async with self._meter.change_lock:
            self._require_ready()
            change = api_keys.revoked(
                self._meter.registry,
                key_id,
                tenant,
                now_us=self._meter.clock.now_us(),
                change=_change(by, None),
            )
            if change is not None:
                await self._append(change)
            return change

    def forget_owners(self) -> None:
        """Customers were erased: whose a Stripe customer is must be read anew."""
        self._owners = None

    def _require_ready(self) -> None:
        """Raises Unavailable while recovering: what is checked against would not be all there."""
        assert self._meter.started is not None

    async def _append(self, record: ControlRecord) -> None:
        await self._meter.append_control(record)


def _change(by: By, effective_from_us: int | None) -> Change:
    return Change(actor=by.actor, request_id=by.request_id, effective_from_us=effective_from_us)
