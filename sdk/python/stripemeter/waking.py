"""What wakes the sender's thread: an event that a signal's handler may set in the middle of anything.

`threading.Event` has a lock that is not reentrant: a handler that runs while its own thread is in `set` would wait for itself for
ever. `queue.SimpleQueue` is made for that. Rules it keeps: `set` never waits; one thread waits and clears, any may set. It must not
know what is waited for.
"""

from __future__ import annotations

import queue
from contextlib import suppress


class Waking:
    """Set until it is cleared."""

    def __init__(self) -> None:
        self._is_set = False
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Wake whoever waits, or the next who does."""
        if not self._is_set:
            self._is_set = True
            self._tokens.put(None)

    def clear(self) -> None:
        """As if it had not been set. What is set meanwhile stays: the flag goes first, then its tokens."""
        self._is_set = False
        with suppress(queue.Empty):
            while True:
                self._tokens.get_nowait()

    def wait(self, seconds_max: float) -> bool:
        """Wait until it is set; whether it is. May return before the time is over though it is not."""
        if not self._is_set:
            with suppress(queue.Empty):
                self._tokens.get(timeout=max(seconds_max, 0))
        return self._is_set
