"""The partition of a customer never changes: golden values, made by `b2sum -l 64` and not by the code under test."""

from __future__ import annotations

from collections import Counter

import pytest

from engine.core.partitions import HASH_NAME, partition_of, shard_of
from engine.limits import PARTITIONS

GOLDEN = [
    # printf 'acme\0cus_1' | b2sum -l 64  ->  cde9663f3e1df781, and 0x81 & 63 = 1
    ("acme", "cus_1", 0xCDE9663F3E1DF781),
    ("acme", "cus_2", 0x2B7C6552F57CFB9C),
    ("default", "cus_NffrFeUfNV2Hib", 0x282C6FC9B54629C5),
    ("münchen", "kunde-ß-😀", 0xFC2C6A00CB7E63BA),
    ("acme", "", 0x499F61F2EDDF0A28),
    ("", "", 0x94F6D9CDD1EA8248),
]


@pytest.mark.parametrize(("tenant", "customer_ref", "digest"), GOLDEN)
def test_the_hash_is_the_one_its_name_describes(
    tenant: str, customer_ref: str, digest: int
) -> None:
    assert HASH_NAME == "blake2b-8/tenant-nul-customer/low6"
    assert partition_of(tenant, customer_ref) == digest % 64
    assert partition_of(tenant, customer_ref) == digest % 64, "the remembered one is the same"


def test_customers_spread_evenly_over_all_partitions() -> None:
    counts = Counter(partition_of("acme", f"cus_{number}") for number in range(32_000))
    assert sorted(counts) == list(range(PARTITIONS))
    assert min(counts.values()) > 400
    assert max(counts.values()) < 600


def test_what_is_remembered_is_bounded() -> None:
    assert partition_of.cache_info().maxsize == 65_536


def test_every_partition_has_one_shard_and_every_shard_a_partition() -> None:
    for shards in range(1, PARTITIONS + 1):
        owners = [shard_of(partition, shards) for partition in range(PARTITIONS)]
        assert set(owners) == set(range(shards))
    for partition, shards in ((64, 8), (-1, 8), (0, 0), (0, 65)):
        with pytest.raises(AssertionError):
            shard_of(partition, shards)
