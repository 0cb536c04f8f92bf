"""The key merger: writes the key index's recent keys into sorted runs, off the acknowledgement path.

Rules it keeps: it works in slices in a thread; a failure is kept and shown, and tried again later with backoff; the
log is not touched. Damage found here ends the process: the next start rebuilds the index from the log.
It must not know what a run looks like.
"""

from __future__ import annotations

import trio

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
