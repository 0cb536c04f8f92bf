"""What destinations were found to be, remembered: a push must not ask Stripe three questions first.

Rules it keeps: bounded, the least used goes first; what is known ends with the item's billing period or after an hour,
whichever is sooner, but holds for a minute at least; what could not be asked is not remembered, what can't be pushed to
only for a minute, so that a mended mapping shows soon. One task asks, others who want the same wait for it. Whoever is
refused says `forget`, and who hears of a change at Stripe says `forget_naming`. It must not know pushes or mappings.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from engine import limits
from engine.core.billing import Destination, Resolved, Unresolved
from engine.ports import Billing

RESOLVED_US: Final = 3_600_000_000
UNRESOLVED_US: Final = 60_000_000
_US: Final = 1_000_000


class _Kept(NamedTuple):
    found: Resolved | Unresolved
    ends_us: int


class ResolutionCache:
    """Resolutions of one key's destinations."""

    def __init__(
        self,
        billing: Billing,
        now_us: Callable[[], int],
        entries_max: int = limits.STRIPE_RESOLUTIONS_MAX,
    ) -> None:
        assert entries_max > 0
        self._billing = billing
        self._now_us = now_us
        self._entries_max = entries_max
        self._kept: OrderedDict[Destination, _Kept] = OrderedDict()
        self._asking: dict[Destination, trio.Event] = {}
        self._outdated: set[Destination] = set()
        """Being asked about, and forgotten meanwhile: the answer may be older than the reason to forget."""

    def __len__(self) -> int:
        return len(self._kept)

    async def resolve(self, destination: Destination) -> Resolved | Unresolved:
        """What the destination is, asked for if it is not known."""
        while True:
            if (found := self.known(destination)) is not None:
                return found
            asking = self._asking.get(destination)
            if asking is None:
                return await self._ask(destination)
            await asking.wait()

    def known(self, destination: Destination) -> Resolved | Unresolved | None:
        """What is remembered and still holds."""
        kept = self._kept.get(destination)
        if kept is None:
            return None
        if kept.ends_us <= self._now_us():
            del self._kept[destination]
            return None
        self._kept.move_to_end(destination)
        return kept.found

    def forget(self, destination: Destination) -> None:
        """Ask anew next time: a push there was refused."""
        self._kept.pop(destination, None)
        if destination in self._asking:
            self._outdated.add(destination)

    def forget_naming(self, object_id: str) -> None:
        """Ask anew about all that concerns this customer, item, price or meter: it changed at Stripe."""
        for destination in [
            destination
            for destination, kept in self._kept.items()
            if object_id in destination
            or (isinstance(kept.found, Resolved) and object_id in kept.found)
        ]:
            del self._kept[destination]
        # What an answer under way will name is not known yet.
        self._outdated.update(self._asking)

    async def _ask(self, destination: Destination) -> Resolved | Unresolved:
        asked_us = self._now_us()
        asking = self._asking[destination] = trio.Event()
        try:
            found = await self._billing.resolve(destination)
            if destination not in self._outdated:
                self._keep(destination, found, asked_us)
            return found
        finally:
            del self._asking[destination]
            self._outdated.discard(destination)
            asking.set()

    def _keep(self, destination: Destination, found: Resolved | Unresolved, asked_us: int) -> None:
        if isinstance(found, Unresolved):
            if found.is_temporary:
                return
            ends_us = asked_us + UNRESOLVED_US
        else:
            ends_us = asked_us + RESOLVED_US
            if found.period_end_s is not None:
                # A test clock's period may lie in the past: not asked about at every push, all the same.
                at_least_us = asked_us + UNRESOLVED_US
                ends_us = max(min(ends_us, found.period_end_s * _US), at_least_us)
        self._kept[destination] = _Kept(found, ends_us)
        self._kept.move_to_end(destination)
        if len(self._kept) > self._entries_max:
            self._kept.popitem(last=False)
