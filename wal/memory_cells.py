"""A cell store in memory, for tests and simulations: the contract of `wal.cells` without a disk.

Rules it keeps: values are stored sealed, as on disk, so tests may damage `data`; the object outlives the indexer
that uses it, so a crash is a new indexer on the same store. Faults: `fail_next_writes` makes coming writes raise,
before or after they took effect. It must not know what the values mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from wal.cells import MANIFEST_PLACE, PLACE, CellStoreError, opened, sealed


class MemoryCells:
    """Sealed values in a dict by place. `data` is the "disk"."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.wiped_because: str | None = None
        self._faults: deque[tuple[CellStoreError, bool] | None] = deque()

    def fail_next_writes(self, *faults: tuple[CellStoreError, bool] | None) -> None:
        """For each coming write: None lets it pass, (error, took_effect) raises."""
        self._faults.extend(faults)

    def manifest(self) -> bytes | None:
        """See `CellStore.manifest`."""
        stored = self.data.get(MANIFEST_PLACE)
        return None if stored is None else opened(MANIFEST_PLACE, stored)

    def heads(self, first_chunk: int, *, chunks_max: int) -> list[bytes]:
        """See `CellStore.heads`."""
        heads = []
        for chunk in range(first_chunk, first_chunk + chunks_max):
            place = PLACE.pack(chunk, 0)
            if (stored := self.data.get(place)) is None:
                break
            heads.append(opened(place, stored))
        return heads

    def read(self, chunk: int, first: int, count: int) -> list[bytes]:
        """See `CellStore.read`."""
        places = [PLACE.pack(chunk, number) for number in range(first, first + count)]
        return [opened(place, self.data.get(place)) for place in places]

    def write(self, chunk: int, values: Sequence[bytes], manifest: bytes) -> None:
        """See `CellStore.write`."""
        fault = self._faults.popleft() if self._faults else None
        if fault is None or fault[1]:
            for number, value in enumerate(values):
                place = PLACE.pack(chunk, number)
                self.data[place] = sealed(place, value)
            self.data[MANIFEST_PLACE] = sealed(MANIFEST_PLACE, manifest)
        if fault is not None:
            raise fault[0]

    def wipe(self) -> None:
        """See `CellStore.wipe`."""
        self.data.clear()

    def size_bytes(self) -> int:
        """See `CellStore.size_bytes`."""
        return sum(map(len, self.data.values()))

    def close(self) -> None:
        """See `CellStore.close`: the data stays for the next indexer."""
