"""What is known of a run of the log without reading it: its positions, times, tenants, metrics, customers, sources.

Rules it keeps: a summary may say "perhaps" of what is not there, never "no" of what is; its size is bounded, however
many names a run holds; names are hashed with their tenant by blake2b, 128 bits, so that no two share a hash and no
summary holds a person's name. It must not know where runs are stored.

*Fences.* A run's events are sorted by (ts, sequence) and cut into blocks of EVENT_BLOCK_ROWS; a summary knows the
first and last key of each. So one late event in a run widens one block's range and not the run's, and a listing in
order of time has to look at no more than one block of each run for any one instant.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Uint64s = npt.NDArray[np.uint64]
Key = tuple[int, int]
"""(ts_us, sequence): the order of a listing."""

EVENT_BLOCK_ROWS: Final = 4_096
_FILTER_BITS_MIN: Final = 256
_FILTER_BITS_MAX: Final = 65_536
_FILTER_BITS_PER_NAME: Final = 8
"""At least; two probes then say "perhaps" of 5 % of what is not there."""
_HASHES_CACHED_MAX: Final = 4_096
_CUSTOMERS_CACHED_MAX: Final = 32_768
"""Each chunk asks for all of its customers again; 300 bytes each."""


class NameHash(NamedTuple):
    """128 bits of a name."""

    high: int
    low: int


@lru_cache(maxsize=_CUSTOMERS_CACHED_MAX)
def customer_digest(tenant: str, customer_ref: str) -> bytes:
    """The hash of a customer, as two little-endian numbers: high, low.

    NUL can't occur in a name, so the joined text has one reading. Costs half a microsecond.
    """
    return blake2b(f"c\0{tenant}\0{customer_ref}".encode(), digest_size=16).digest()


def customer_hash(tenant: str, customer_ref: str) -> NameHash:
    """The hash of a customer."""
    return _name_hash(customer_digest(tenant, customer_ref))


@lru_cache(maxsize=_HASHES_CACHED_MAX)
def metric_hash(tenant: str, metric: str) -> NameHash:
    """The hash of a tenant's metric."""
    text = f"m\0{tenant}\0{metric}"
    return _name_hash(blake2b(text.encode(), digest_size=16).digest())


@lru_cache(maxsize=_HASHES_CACHED_MAX)
def tenant_hash(tenant: str) -> NameHash:
    """The hash of a tenant."""
    return _name_hash(blake2b(f"t\0{tenant}".encode(), digest_size=16).digest())


def _name_hash(digest: bytes) -> NameHash:
    return NameHash(int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"))


ALL_CUSTOMERS: Final = NameHash(0, 0)
"""Not the hash of any name that can be found."""


class NameFilter:
    """A set of name hashes of bounded size, that may find what is not in it."""

    def __init__(self, bits: bytes) -> None:
        self.bits = bits
        self._mask = 8 * len(bits) - 1
        assert self._mask & (self._mask + 1) == 0, "a power of two"

    @staticmethod
    def of(lows: Uint64s) -> NameFilter:
        """The filter of the names whose hashes' low halves are `lows`."""
        wanted = max(_FILTER_BITS_MIN, _FILTER_BITS_PER_NAME * len(lows))
        size = min(_FILTER_BITS_MAX, 1 << (wanted - 1).bit_length())
        mask = np.uint64(size - 1)
        held = np.zeros(size, np.bool_)
        held[lows & mask] = True
        held[(lows >> np.uint64(32)) & mask] = True
        return NameFilter(np.packbits(held, bitorder="little").tobytes())

    def may_hold(self, name: NameHash) -> bool:
        """False: surely not."""
        first, second = name.low & self._mask, (name.low >> 32) & self._mask
        bits = self.bits
        return bool(bits[first >> 3] >> (first & 7) & 1 and bits[second >> 3] >> (second & 7) & 1)


class Summary(NamedTuple):
    """Of the log's positions [from_position, to_position). All arrays have one entry per block of events."""

    from_position: int
    to_position: int
    event_count: int
    first_ts_us: Int64s
    first_sequence: Int64s
    last_ts_us: Int64s
    last_sequence: Int64s
    sources: int
    """Bit n: an event of source code n is here."""
    names: NameFilter | None
    """None: not known, ask the run itself."""

    @property
    def blocks(self) -> int:
        """How many blocks of events there are."""
        return len(self.first_ts_us)

    def first_key(self, block: int) -> Key:
        """The key of a block's first event."""
        return int(self.first_ts_us[block]), int(self.first_sequence[block])

    def last_key(self, block: int) -> Key:
        """The key of a block's last event."""
        return int(self.last_ts_us[block]), int(self.last_sequence[block])

    def overlaps(self, start_us: int, end_us: int) -> bool:
        """Whether an event may have start_us <= ts < end_us."""
        return bool(
            self.blocks and self.last_ts_us[-1] >= start_us and self.first_ts_us[0] < end_us
        )

    def may_hold(self, *names: NameHash) -> bool:
        """Whether all these names may be here."""
        return self.names is None or all(map(self.names.may_hold, names))


def fences(ts_us: Int64s, sequences: Int64s) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """(first ts, first sequence, last ts, last sequence) of each block of events that are in order."""
    firsts = np.arange(0, len(ts_us), EVENT_BLOCK_ROWS)
    lasts = np.minimum(firsts + EVENT_BLOCK_ROWS, len(ts_us)) - 1
    return ts_us[firsts], sequences[firsts], ts_us[lasts], sequences[lasts]


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    from_position: int
    to_position: int
    event_count: int
    fences: tuple[bytes, bytes, bytes, bytes]
    sources: int
    names: bytes


_decoder = msgspec.msgpack.Decoder(_Stored)


def encode_summary(summary: Summary) -> bytes:
    """A summary that has a name filter, as bytes."""
    assert summary.names is not None
    columns = (
        summary.first_ts_us,
        summary.first_sequence,
        summary.last_ts_us,
        summary.last_sequence,
    )
    first_ts, first_sequence, last_ts, last_sequence = (c.astype("<i8").tobytes() for c in columns)
    stored = _Stored(
        summary.from_position,
        summary.to_position,
        summary.event_count,
        (first_ts, first_sequence, last_ts, last_sequence),
        summary.sources,
        summary.names.bits,
    )
    return msgspec.msgpack.encode(stored)


def decode_summary(data: bytes) -> Summary:
    """The summary back. Raises ValueError (also msgspec's) for other bytes."""
    stored = _decoder.decode(data)
    first_ts, first_sequence, last_ts, last_sequence = (
        np.frombuffer(column, "<i8").astype(np.int64) for column in stored.fences
    )
    return Summary(
        stored.from_position,
        stored.to_position,
        stored.event_count,
        first_ts,
        first_sequence,
        last_ts,
        last_sequence,
        stored.sources,
        NameFilter(stored.names),
    )
