"""A run store in memory, for tests and simulations: the contract of `wal.runs` without a disk.

Rules it keeps: the owner sees only what was there at the last `refresh`, as with a real one, so that a
forgotten refresh fails in tests; the object outlives the index that uses it, so a crash is a new index on
the same store. It must not know what blocks mean. Faults: `fail_next_writes` makes coming writes raise, before or after they took effect.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence

from wal.runs import Block, RunStoreError


class MemoryRuns:
    """Blocks in a dict. `data` is the "disk": tests may damage it."""

    def __init__(self) -> None:
        self.data: dict[tuple[int, bytes], bytes] = {}
        self.manifest_data: bytes | None = None
        self.wiped_because: str | None = None
        self.writes_done = 0
        self._faults: deque[tuple[RunStoreError, bool] | None] = deque()
        self._view: dict[tuple[int, bytes], bytes] = {}
        self._view_order: list[tuple[int, bytes]] = []
        self._view_manifest: bytes | None = None

    def fail_next_writes(self, *faults: tuple[RunStoreError, bool] | None) -> None:
        """For each coming write or delete: None lets it pass, (error, took_effect) raises."""
        self._faults.extend(faults)

    def manifest(self) -> bytes | None:
        """See `RunStore.manifest`."""
        return self._view_manifest

    def find_block(self, run_id: int, key: bytes) -> Block | None:
        """See `RunStore.find_block`."""
        at = bisect_right(self._view_order, (run_id, key))
        if at == 0:
            return None
        found = self._view_order[at - 1]
        return Block(*found, self._view[found])

    def run_ids(self) -> list[int]:
        """See `RunStore.run_ids`."""
        return sorted({run_id for run_id, _ in self._view})

    def refresh(self) -> None:
        """See `RunStore.refresh`."""
        self._view = dict(self.data)
        self._view_order = sorted(self._view)
        self._view_manifest = self.manifest_data

    def prepare(self, bytes_needed: int) -> None:
        """See `RunStore.prepare`: memory has room."""
        assert bytes_needed >= 0
        self.refresh()

    def wipe(self) -> None:
        """See `RunStore.wipe`."""
        self.data.clear()
        self.manifest_data = None
        self.refresh()

    def scan(self, run_id: int, low: bytes, *, blocks_max: int) -> list[Block]:
        """See `RunStore.scan`."""
        order = sorted(key for key in self.data if key[0] == run_id)
        start = bisect_left(order, (run_id, low))
        return [Block(*key, self.data[key]) for key in order[start : start + blocks_max]]

    def write(self, blocks: Sequence[Block], manifest: bytes | None = None) -> None:
        """See `RunStore.write`."""
        changed = {(run_id, low): data for run_id, low, data in blocks}
        fault = self._next_fault()
        if fault is None or fault[1]:
            self.data.update(changed)
            self.manifest_data = manifest if manifest is not None else self.manifest_data
            self.writes_done += 1
        if fault is not None:
            raise fault[0]

    def delete(self, run_id: int, *, blocks_max: int) -> int:
        """See `RunStore.delete`."""
        doomed = sorted(key for key in self.data if key[0] == run_id)[:blocks_max]
        fault = self._next_fault()
        if fault is None or fault[1]:
            for key in doomed:
                del self.data[key]
        if fault is not None:
            raise fault[0]
        return len(doomed)

    def size_bytes(self) -> int:
        """See `RunStore.size_bytes`."""
        return sum(map(len, self.data.values()))

    def close(self) -> None:
        """See `RunStore.close`: the data stays for the next index, the view goes."""
        self._view, self._view_order, self._view_manifest = {}, [], None

    def _next_fault(self) -> tuple[RunStoreError, bool] | None:
        return self._faults.popleft() if self._faults else None
