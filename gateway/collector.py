"""When Python's garbage collector runs: not while recovering, seldom afterwards, never over what recovery built.

Rules it keeps: reference counting frees nearly all that this program drops, the collector is for cycles (tasks,
tracebacks), so it stays on while requests are served. But it looks at every container that is alive: a start from a
snapshot of a million counters takes three times as long with it (bench/recovery.py), and with its default threshold
of 700 new objects it runs for every batch of events, whose rows are alive until their commit is done.
It must not know what is running.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG_OBJECTS: Final = 2_000
"""A look at so many takes a millisecond, in which nobody is answered; at 50,000 it took thirty."""
YOUNG_LOOKS: Final = 250
"""Looks at the young before one at the middle-aged too: after half a million containers more, as what survives is large."""


def pause() -> None:
    """Before recovery: what it builds stays, so looking for garbage in it finds nothing."""
    gc.collect()
    gc.disable()


def resume() -> None:
    """After recovery: put aside what will live as long as the process, and watch what comes."""
    gc.freeze()
    _, _, old = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_LOOKS, old)
    gc.enable()
