"""Everything about pushing that is a fold of the log: destinations over time, and the ledger.

Rules it keeps: both parts take every control record, in log order; a state of a version that did not push is made
from what was configured then, since nothing had been pushed. It must not know what the parts mean.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from engine.core.configured import Change, Customer, CustomerChange, Mapping, MappingChange
from engine.core.push_ledger import PushLedger
from engine.core.push_routes import PushRoutes

_NOBODY = Change(actor="")


class PushState:
    """Destinations and ledger, as of the records folded so far."""

    def __init__(self, routes: PushRoutes | None = None, ledger: PushLedger | None = None) -> None:
        self.routes = routes or PushRoutes()
        self.ledger = ledger or PushLedger()

    def fold(self, record: object, received_at_us: int) -> None:
        """Take one control record in."""
        self.routes.fold(record)
        self.ledger.fold(record, received_at_us)

    def state(self) -> bytes:
        """Everything as bytes for a snapshot; `restore` takes it back."""
        return msgspec.msgpack.encode((self.routes.state(), self.ledger.state()))

    @staticmethod
    def restore(data: bytes) -> PushState:
        """A state from the bytes that `state` gave. Raises msgspec.MsgspecError or ValueError on other bytes."""
        routes, ledger = msgspec.msgpack.decode(data, type=tuple[bytes, bytes])
        return PushState(PushRoutes.restore(routes), PushLedger.restore(ledger))

    @staticmethod
    def of_configuration(mappings: Iterable[Mapping], customers: Iterable[Customer]) -> PushState:
        """The state of a log that was never pushed from, with this configured."""
        made = PushState()
        for mapping in mappings:
            made.fold(MappingChange(mapping=mapping, change=_NOBODY), 0)
        for customer in customers:
            made.fold(CustomerChange(customer=customer, change=_NOBODY), 0)
        return made
