"""The key merger: writes the key index's recent keys into sorted runs, off the acknowledgement path.

Rules it keeps: it works in slices in a thread; a failure is kept and shown, and tried again later with backoff; the
log is not touched. Damage found here ends the process: the next start rebuilds the index from the log. At a start
merges go on beside the folding.
It must not know what a run looks like.
"""

from __future__ import annotations

import trio

from engine.errors import StartRefused
from engine.ports import Fatal, RunBlocking
from wal.key_index import KeyIndex
from wal.runs import IndexDamaged, RunStoreError

_RETRY_SECONDS_MIN = 1.0
_RETRY_SECONDS_MAX = 60.0


class KeyMerger:
    """One task: woken when keys were added, merges when there are enough."""

    def __init__(self, keys: KeyIndex, run_blocking: RunBlocking) -> None:
        self._keys = keys
        self._run_blocking = run_blocking
        self._wake = trio.Event()
        self.last_error: str | None = None
        """Why merging fails now; None while it works. Shown in readiness."""

    def keys_added(self) -> None:
        """A group was committed: merge if that was enough. Cheap."""
        if self._keys.is_full:
            self._wake.set()

    async def run(self) -> None:
        """Merge until cancelled."""
        delay_seconds = _RETRY_SECONDS_MIN
        while True:
            self._keys.seal() if self._keys.is_full else None
            try:
                await merge_keys(self._keys, self._run_blocking)
                self.last_error, delay_seconds = None, _RETRY_SECONDS_MIN
            except IndexDamaged as error:
                message = f"the key index is damaged ({error}); the next start rebuilds it"
                raise Fatal(message) from error
            except RunStoreError as error:
                self.last_error = str(error)
                await trio.sleep(delay_seconds)
                delay_seconds = min(_RETRY_SECONDS_MAX, 2 * delay_seconds)
                continue
            while not self._keys.is_full:
                self._wake = trio.Event()
                await self._wake.wait()


async def merge_keys(keys: KeyIndex, run_blocking: RunBlocking) -> None:
    """Do the key index's pending work, in slices, each in a thread. Raises RunStoreError."""
    while (plan := keys.begin_merge()) is not None:
        try:
            while await run_blocking(plan.run_slice):
                pass
        finally:
            keys.finish_merge(plan)


class Merging:
    """Merges the index's keys beside the folding, which waits only when too many are in memory.

    On a failing disk the folding goes on while memory has room: reading must work then too.
    """

    def __init__(
        self, keys: KeyIndex, run_blocking: RunBlocking, nursery: trio.Nursery, notes: list[str]
    ) -> None:
        self.keys = keys
        self._run_blocking = run_blocking
        self._nursery = nursery
        self._notes = notes
        self._failed: RunStoreError | None = None
        self._idle = trio.Event()
        self._idle.set()

    async def keys_added(self) -> None:
        """A record's keys were given to the index. Raises StartRefused."""
        self._begin()
        while self._failed is None and not self.keys.has_room(0):
            await self._idle.wait()
            self._begin()
        if self._failed is not None and not self.keys.fits_as_recent:
            message = f"the key index can't be brought up to the log: {self._failed}"
            raise StartRefused(message) from self._failed

    async def end(self) -> None:
        """The last keys were added: when it returns, no merge is under way, and what is left is little."""
        await self._idle.wait()
        if self._failed is None and self.keys.feeds_a_run:
            self.keys.seal()
            await self._merge()

    def _begin(self) -> None:
        if self.keys.is_full and self._idle.is_set() and self._failed is None:
            self._idle = trio.Event()
            self._nursery.start_soon(self._merge)

    async def _merge(self) -> None:
        try:
            await merge_keys(self.keys, self._run_blocking)
        except RunStoreError as error:
            self._failed = error
            self._notes.append(f"the key index lags behind: {error}")
        self._idle.set()
