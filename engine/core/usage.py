"""What a customer has used, from a state: of the running meter, or of one folded for a question about the past.

It must not know where the state comes from.
"""

from __future__ import annotations

from engine.core.partitions import partition_of
from engine.core.registry import Registry
from engine.core.shard_state import MetricUsage, ShardState


def usage_at(
    registry: Registry,
    state: ShardState,
    tenant: str,
    customer_ref: str,
    at_us: int,
) -> list[MetricUsage]:
    """A customer's use of every metric it used or that is mapped, in the periods that hold `at_us`, by name."""
    partition = partition_of(tenant, customer_ref)
    mapped = set(registry.mapped_metrics(tenant))
    metrics = sorted(mapped | state.metrics.get(tenant, set()))
    return [
        used
        for used in state.usage(partition, tenant, customer_ref, metrics, at_us)
        if used.metric in mapped or used.counter is not None or used.pending_count or used.current
    ]
