"""Which logical partition a customer belongs to, and which shard owns a partition.

The hash is part of the log: its name is pinned in the log's metadata, and a change of it moves every counter.
So it is built from a published algorithm only, never from Python's own `hash`, which differs per process.
Partitions are for ever; shards are a setting, and any number of them works on any log.

It must not know about counters or tasks: text in, numbers out.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Final

from engine.limits import PARTITIONS, SHARDS_MAX

HASH_NAME: Final = "blake2b-8/tenant-nul-customer/low6"
"""blake2b with an 8-byte digest of tenant, NUL, customerRef in UTF-8; the low 6 bits of its last byte."""

_CACHE_ENTRIES_MAX: Final = 65_536
_PARTITION_MASK: Final = PARTITIONS - 1

assert PARTITIONS == 1 << 6, "the hash's name says six bits"


@lru_cache(maxsize=_CACHE_ENTRIES_MAX)
def partition_of(tenant: str, customer_ref: str) -> int:
    """The customer's partition, 0..63, the same on every machine and for ever.

    Two customers whose names differ only in where a NUL stands share a partition, which harms nothing.
    """
    digest = blake2b(f"{tenant}\0{customer_ref}".encode(), digest_size=8).digest()
    return digest[-1] & _PARTITION_MASK


def shard_of(partition: int, shards: int) -> int:
    """The shard, 0..shards-1, that owns `partition` when there are `shards` of them (1..64)."""
    assert 0 <= partition < PARTITIONS
    assert 1 <= shards <= SHARDS_MAX
    return partition % shards
