"""The cell store's port: where the listing index and the usage rollups keep their chunks. Docstrings are the contract.

Rules it keeps: a chunk and the manifest that speaks of it are one durable transaction, so a watermark never claims
what is not there; a value that is not what was written is found by its CRC, which covers its place too. It must not
know what the values mean: it stores bytes by (chunk, number). All of it is derived from the log and may be wiped.
`tests/contract/test_cells_contract.py` runs the same tests over every implementation.

Threads. `read`, `heads` and `manifest` may be called from any thread, also beside a write; one writer at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final, Protocol

from crc32c import crc32c


class CellStoreError(Exception):
    """Base of what a cell store can raise. `str(error)` says what to do next."""


class CellStoreFull(CellStoreError):
    """No space on the disk or in the map: nothing was written, reading works, a later write may succeed."""


class CellStoreFailed(CellStoreError):
    """The disk refused; whether a write is there is unknown, and doing it again is safe."""


class CellsDamaged(CellStoreError):
    """A stored value is not what was written, or is missing. Wipe the store and rebuild it from the log."""


class CellStore(Protocol):
    """Chunks, numbered 0, 1, 2, ...; each is a list of values, of which number 0 is its head."""

    @property
    def wiped_because(self) -> str | None:
        """Why opening threw away unreadable files (the manifest is None then); None if it did not."""
        ...

    def manifest(self) -> bytes | None:
        """The manifest of the last write, None if there is none. Raises CellsDamaged."""
        ...

    def heads(self, first_chunk: int, *, chunks_max: int) -> list[bytes]:
        """The heads of up to `chunks_max` chunks, in order, from `first_chunk` on. Raises CellsDamaged."""
        ...

    def read(self, chunk: int, first: int, count: int) -> list[bytes]:
        """Values `first` to `first + count - 1` of a chunk. Raises CellsDamaged, also if one is missing."""
        ...

    def write(self, chunk: int, values: Sequence[bytes], manifest: bytes) -> None:
        """Store a chunk's values (none: no chunk) and the manifest, in one durable transaction.

        Writing a chunk again replaces it. When it returns, all of it survives a power loss. Raises CellStoreFull
        (nothing was written) or CellStoreFailed.
        """
        ...

    def wipe(self) -> None:
        """Remove everything. Raises CellStoreFailed."""
        ...

    def size_bytes(self) -> int:
        """Bytes that the store takes on its disk."""
        ...

    def close(self) -> None:
        """Release the files. Any other call afterwards is a bug."""
        ...


PLACE: Final = Struct(">QI")
"""(chunk, number): where a value lies, and its key on disk."""
MANIFEST_PLACE: Final = b"m"
_CRC: Final = Struct("<I")


def sealed(place: bytes, value: bytes) -> bytes:
    """The value as it is stored: with a CRC over place and value."""
    return _CRC.pack(crc32c(value, crc32c(place))) + value


def opened(place: bytes, stored: bytes | None) -> bytes:
    """The value of `sealed`. Raises CellsDamaged when it is missing or not what was written there."""
    if stored is None:
        raise CellsDamaged(f"value {place.hex()} of the usage index is missing")
    value = stored[_CRC.size :]
    if len(stored) < _CRC.size or _CRC.unpack_from(stored)[0] != crc32c(value, crc32c(place)):
        raise CellsDamaged(f"value {place.hex()} of the usage index is damaged")
    return value
