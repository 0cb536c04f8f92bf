"""The run store's port: where the key index keeps its sorted, immutable runs. Its docstrings are the contract.

Rules it keeps: a write is one durable transaction, all or nothing, so a manifest never speaks of blocks
that are not there; what was stored comes back or the codec (`wal.run_blocks`) finds that it did not. It
must not know what a block or a manifest means: it stores bytes in order of (run id, low key).
`tests/contract/test_runs_contract.py` runs the same tests over every implementation.

Threads. The *owner* is the thread that looks keys up; the *worker* is any one other thread at a time that
runs a merge. Each method names its side. Between `refresh()` calls the owner reads one unchanging view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class RunStoreError(Exception):
    """Base of what a run store can raise. `str(error)` says what to do next."""


class RunStoreFull(RunStoreError):
    """No space on the disk or in the map: nothing was written, lookups work, a later merge may succeed."""


class RunStoreFailed(RunStoreError):
    """The disk refused a write; whether it is there is unknown. Lookups work; merge again later."""


class IndexDamaged(RunStoreError):
    """Stored bytes are not what was written. Rebuild the index from the log: reopen it (or `reset`)."""


class Block(NamedTuple):
    """One stored block: the run it belongs to, the low end of its key range, its bytes (`wal.run_blocks`)."""

    run_id: int
    low: bytes
    data: bytes


class RunStore(Protocol):
    """Blocks of runs in order, and one manifest, under one durable transaction at a time."""

    @property
    def wiped_because(self) -> str | None:
        """Why opening threw away unreadable files (the manifest is None then); None if it did not."""
        ...

    def manifest(self) -> bytes | None:
        """Owner: the manifest of the present view, None if there is none. Raises IndexDamaged."""
        ...

    def find_block(self, run_id: int, key: bytes) -> Block | None:
        """Owner: the block of *any* run with the greatest (run id, low) <= (run_id, key), else None.

        The caller checks that it is of `run_id` and covers `key`. Raises IndexDamaged.
        """
        ...

    def run_ids(self) -> list[int]:
        """Owner: the ids of all runs that have a block, also of unfinished and retired ones, ascending."""
        ...

    def refresh(self) -> None:
        """Owner: look at the newest state from now on, and let go of the space that the old view held.

        Raises RunStoreFailed; lookups in the old view go on then.
        """
        ...

    def prepare(self, bytes_needed: int) -> None:
        """Owner, while no worker is in a call: make room for that many bytes of blocks, and `refresh`.

        Opens the files anew where a failed write has made that necessary. Raises RunStoreFailed or
        RunStoreFull.
        """
        ...

    def wipe(self) -> None:
        """Owner, while no worker is in a call: remove everything. Raises RunStoreFailed."""
        ...

    def scan(self, run_id: int, low: bytes, *, blocks_max: int) -> list[Block]:
        """Worker or owner: up to `blocks_max` blocks of the run in order, from the first low >= `low`.

        Sees the newest durable state. Raises IndexDamaged.
        """
        ...

    def write(self, blocks: Sequence[Block], manifest: bytes | None = None) -> None:
        """Worker: store the blocks and, if given, the manifest, in one durable transaction.

        When it returns, both survive a power loss. Raises RunStoreFull (nothing was written) or
        RunStoreFailed (all of it or nothing was: the next view tells).
        """
        ...

    def delete(self, run_id: int, *, blocks_max: int) -> int:
        """Worker: remove up to `blocks_max` blocks of the run, durably; returns how many (0: none left).

        Raises RunStoreFull or RunStoreFailed.
        """
        ...

    def size_bytes(self) -> int:
        """Bytes that the store takes on its disk."""
        ...

    def close(self) -> None:
        """Owner: release the files. Any other call afterwards is a bug."""
        ...
