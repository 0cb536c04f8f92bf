"""What was configured: settings, mappings, customers, API keys. A fold of the control records, for reading.

Rules it keeps: like every state it comes from the log alone; a tenant's things are found only through that tenant.
How the same records change counting is `engine.core.rules`. It must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from engine.core.configured import Customer, CustomerChange, Mapping, MappingChange
from engine.core.finding_records import Finding
from engine.core.keeping import CheckpointChange, EraseChange, RestoreChange
from engine.core.operations import Operation, Operations
from engine.core.periods import Interval, bucket_start, first_whole_bucket
from engine.core.push_records import PushDecision, PushIntent, PushOutcome
from engine.core.records import (
    AdjustmentChange,
    ApiKey,
    ApiKeyChange,
    ControlRecord,
    Genesis,
    OperationChange,
    PeriodClosing,
    ReplayApply,
    SettingsChange,
)
from engine.core.simulation_records import Simulation
from engine.core.simulations import SavedTenant, Simulations
from engine.core.times import INSTANT_US_MIN, format_instant
from engine.errors import Gone

APPLIED_PLANS_MAX: Final = 1_000
"""Hashes of applied replays kept per tenant: a retry comes within minutes, not a thousand replays later."""


ERASED_MAX: Final = 1_000


class Registry:
    """Everything configured, as of the records folded so far."""

    def __init__(self) -> None:
        self.genesis: Genesis | None = None
        self.settings: SettingsChange | None = None
        self.mappings: dict[str, Mapping] = {}
        self._active: dict[tuple[str, str], str] = {}
        self.customers: dict[str, dict[str, Customer]] = {}
        self.api_keys: dict[str, ApiKey] = {}
        self._by_prefix: dict[str, str] = {}
        self.operations = Operations()
        self.adjustment_requests: dict[tuple[str, str], tuple[int, str]] = {}
        """(tenant, the client's requestId) to the partition and id of the adjustment it made."""
        self._applied_plans: dict[str, dict[str, None]] = {}
        """Per tenant, hashes of the newest applied replays, oldest first."""
        self.erasures: dict[str, Erasure] = {}
        """Those that were begun and have not ended."""
        self.erased: dict[str, str] = {}
        """The newest ERASED_MAX that ended, oldest first, to their tenants."""
        self.simulations = Simulations()
        self.checkpoint: CheckpointChange | None = None
        """The newest committed one: bodies before its position may be gone."""

    def fold(self, record: ControlRecord) -> None:
        """Take one control record in."""
        match record:
            case Genesis():
                self.genesis = record
            case SettingsChange():
                self.settings = record
            case MappingChange():
                self._fold_mapping(record)
            case CustomerChange():
                customer = record.customer
                self.customers.setdefault(customer.tenant_id, {})[customer.customer_ref] = customer
            case ApiKeyChange():
                old = self.api_keys.get(record.key.id)
                if old is not None:
                    self._by_prefix.pop(old.prefix, None)
                self.api_keys[record.key.id] = record.key
                self._by_prefix[record.key.prefix] = record.key.id
            case OperationChange():
                self.operations.fold(record)
            case AdjustmentChange():
                made = record.adjustment
                if made is not None and made.request_id is not None:
                    key = (made.tenant_id, made.request_id)
                    self.adjustment_requests[key] = (record.partition, made.id)
            case ReplayApply():
                plans = self._applied_plans.setdefault(record.tenant_id, {})
                plans[record.plan_hash] = None
                if len(plans) > APPLIED_PLANS_MAX:
                    del plans[next(iter(plans))]
            case EraseChange():
                self._fold_erasure(record)
            case Simulation():
                self.simulations.fold(record)
            case CheckpointChange():
                if record.action == "commit":
                    self.checkpoint = record
            case PeriodClosing() | RestoreChange():
                pass  # counted by the shards; the epoch is in every envelope
            case PushIntent() | PushOutcome() | PushDecision() | Finding():
                pass  # the push ledger's, and reconciliation's

    @property
    def horizon_us(self) -> int:
        """Events older than it are refused: retention has dropped what they would be held against."""
        return INSTANT_US_MIN if self.checkpoint is None else self.checkpoint.horizon_us

    @property
    def kept_from(self) -> int:
        """The log position before which retention drops events: what an index still has of them is gone."""
        return 0 if self.checkpoint is None else self.checkpoint.position

    def dropped_before(self, since_us: int | None) -> int | None:
        """The instant before which events at or after another (None: any) may be missing; None: none is."""
        horizon_us = self.horizon_us
        reaches = horizon_us > INSTANT_US_MIN and (since_us is None or since_us < horizon_us)
        return horizon_us if reaches else None

    def must_hold(self, since_us: int) -> None:
        """Raises Gone when events at or after an instant were dropped: an answer without them would be wrong."""
        if since_us < self.horizon_us:
            horizon = format_instant(self.horizon_us)
            raise Gone(
                f"retention has dropped events before {horizon}: ask for the time since then"
            )

    def must_hold_bucket(self, interval: Interval, us: int) -> None:
        """Raises Gone when events of the bucket that holds an instant were dropped: it would show too little."""
        if max(bucket_start(interval, us), INSTANT_US_MIN) < self.horizon_us:
            horizon = format_instant(self.horizon_us)
            whole = format_instant(first_whole_bucket(interval, self.horizon_us))
            raise Gone(
                f"retention has dropped events before {horizon}, and the answer is of whole buckets ({interval}): "
                f"ask for the time since {whole}"
            )

    def _fold_erasure(self, record: EraseChange) -> None:
        match record.action:
            case "begin":
                erasure = self.erasures.setdefault(
                    record.erasure_id, Erasure(record.erasure_id, record.tenant_id, {})
                )
                erasure.names.update(record.names)
                self.rename(record.tenant_id, record.names)
            case "forget":
                if (forgetful := self.erasures.get(record.erasure_id)) is not None:
                    forgetful.names.clear()
            case "end":
                self.erasures.pop(record.erasure_id, None)
                self.erased[record.erasure_id] = record.tenant_id
                if len(self.erased) > ERASED_MAX:
                    del self.erased[next(iter(self.erased))]
            case "replace":
                pass  # changes bytes of the log and no state

    def rename(self, tenant: str, names: dict[str, str]) -> None:
        """Let customers go by their pseudonyms; of what is known of them only what cuts their periods stays."""
        of_tenant = self.customers.get(tenant, {})
        if not of_tenant.keys().isdisjoint(names):
            # In their places: whoever goes through the pages of a listing misses none.
            self.customers[tenant] = {
                names.get(ref, ref): _nameless(customer, names[ref]) if ref in names else customer
                for ref, customer in of_tenant.items()
            }
        self.operations.rename(tenant, names)
        self.simulations.rename(tenant, names)

    def _fold_mapping(self, record: MappingChange) -> None:
        mapping = record.mapping
        old = self.mappings.pop(mapping.id, None)
        if old is not None and self._active.get((old.tenant_id, old.metric)) == old.id:
            del self._active[old.tenant_id, old.metric]
        if record.deleted:
            return
        self.mappings[mapping.id] = mapping
        if mapping.active:
            self._active[mapping.tenant_id, mapping.metric] = mapping.id

    def active_mapping(self, tenant: str, metric: str) -> Mapping | None:
        """The one active mapping of a metric, if there is one."""
        found = self._active.get((tenant, metric))
        return None if found is None else self.mappings[found]

    def mappings_of(self, tenant: str | None) -> list[Mapping]:
        """A tenant's mappings (None: all tenants'), oldest first."""
        return [m for m in self.mappings.values() if tenant is None or m.tenant_id == tenant]

    def mapped_metrics(self, tenant: str) -> Iterator[str]:
        """Metrics of a tenant that have an active mapping."""
        return (metric for owner, metric in self._active if owner == tenant)

    def customer(self, tenant: str, customer_ref: str) -> Customer | None:
        """What is known of a customer."""
        return self.customers.get(tenant, {}).get(customer_ref)

    def was_applied(self, tenant: str, plan_hash: str) -> bool:
        """Whether a replay's plan is among the tenant's newest APPLIED_PLANS_MAX applied ones."""
        return plan_hash in self._applied_plans.get(tenant, ())

    def key_by_prefix(self, prefix: str) -> ApiKey | None:
        """The API key with this public prefix, revoked or not."""
        found = self._by_prefix.get(prefix)
        return None if found is None else self.api_keys[found]

    def state(self) -> bytes:
        """Everything as bytes for a snapshot; `restore` takes it back."""
        return msgspec.msgpack.encode(
            {
                "genesis": self.genesis,
                "settings": self.settings,
                "mappings": list(self.mappings.values()),
                "customers": [c for of in self.customers.values() for c in of.values()],
                "apiKeys": list(self.api_keys.values()),
                "adjustmentRequests": [(*k, *v) for k, v in self.adjustment_requests.items()],
                "appliedPlans": {tenant: list(of) for tenant, of in self._applied_plans.items()},
                "operations": self.operations.state(),
                "erasures": list(self.erasures.values()),
                "erased": self.erased,
                "checkpoint": self.checkpoint,
                "simulations": self.simulations.state(),
            }
        )

    @staticmethod
    def restore(data: bytes) -> Registry:
        """A registry from the bytes that `state` gave. Raises msgspec.MsgspecError on other bytes."""
        saved: Any = msgspec.msgpack.decode(data, type=_Saved)
        registry = Registry()
        registry.genesis = saved.genesis
        registry.settings = saved.settings
        for mapping in saved.mappings:
            registry.mappings[mapping.id] = mapping
            if mapping.active:
                registry._active[mapping.tenant_id, mapping.metric] = mapping.id
        for customer in saved.customers:
            of = registry.customers.setdefault(customer.tenant_id, {})
            of[customer.customer_ref] = customer
        registry.operations = Operations.restore(saved.operations)
        registry.simulations = Simulations.restore(saved.simulations)
        for key in saved.api_keys:
            registry.api_keys[key.id] = key
            registry._by_prefix[key.prefix] = key.id
        for tenant, request_id, partition, adjustment_id in saved.adjustment_requests:
            registry.adjustment_requests[tenant, request_id] = (partition, adjustment_id)
        registry.erasures = {erasure.id: erasure for erasure in saved.erasures}
        registry.checkpoint, registry.erased = saved.checkpoint, saved.erased
        registry._applied_plans = {t: dict.fromkeys(of) for t, of in saved.applied_plans.items()}
        return registry


def _nameless(customer: Customer, pseudonym: str) -> Customer:
    """What is kept of an erased customer."""
    return Customer(
        tenant_id=customer.tenant_id,
        customer_ref=pseudonym,
        billing_anchor_us=customer.billing_anchor_us,
        created_at_us=customer.created_at_us,
        updated_at_us=customer.updated_at_us,
    )


class Erasure(msgspec.Struct):
    """An erasure that has not ended: name to pseudonym, empty once the log holds the names no longer."""

    id: str
    tenant_id: str
    names: dict[str, str]


class _Saved(msgspec.Struct, rename="camel"):
    genesis: Genesis | None
    settings: SettingsChange | None
    mappings: list[Mapping]
    customers: list[Customer]
    api_keys: list[ApiKey]
    adjustment_requests: list[tuple[str, str, int, str]] = []
    applied_plans: dict[str, list[str]] = {}
    operations: list[Operation] = []
    erasures: list[Erasure] = []
    erased: dict[str, str] = {}
    checkpoint: CheckpointChange | None = None
    simulations: list[SavedTenant] = []
