"""Everything about pushing that is a fold of the log: destinations over time, the ledger, and findings about both.

Rules it keeps: all parts take every control record, in log order; a state of a version that did not push is made
from what was configured then, since nothing had been pushed. It must not know what the parts mean.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from engine.core.configured import Change, Customer, CustomerChange, Mapping, MappingChange
from engine.core.findings import Findings
from engine.core.push_ledger import PushLedger
from engine.core.push_routes import PushRoutes

_NOBODY = Change(actor="")


class PushState:
    """Destinations, ledger and findings, as of the records folded so far."""

    def __init__(
        self,
        routes: PushRoutes | None = None,
        ledger: PushLedger | None = None,
        findings: Findings | None = None,
    ) -> None:
        self.routes = routes or PushRoutes()
        self.ledger = ledger or PushLedger()
        self.findings = findings or Findings()

    def fold(self, record: object, received_at_us: int) -> None:
        """Take one control record in."""
        self.routes.fold(record)
        self.findings.fold(record, received_at_us, self.ledger)
        self.ledger.fold(record, received_at_us)

    def state(self) -> bytes:
        """Everything as bytes for a snapshot; `restore` takes it back."""
        return msgspec.msgpack.encode(
            (self.routes.state(), self.ledger.state(), self.findings.state())
        )

    @staticmethod
    def restore(data: bytes) -> PushState:
        """A state from the bytes that `state` gave. Raises msgspec.MsgspecError or ValueError on other bytes."""
        routes, ledger, *more = msgspec.msgpack.decode(data, type=list[bytes])
        findings = Findings.restore(more[0]) if more else Findings()
        return PushState(PushRoutes.restore(routes), PushLedger.restore(ledger), findings)

    @staticmethod
    def of_configuration(mappings: Iterable[Mapping], customers: Iterable[Customer]) -> PushState:
        """The state of a log that was never pushed from, with this configured."""
        made = PushState()
        for mapping in mappings:
            made.fold(MappingChange(mapping=mapping, change=_NOBODY), 0)
        for customer in customers:
            made.fold(CustomerChange(customer=customer, change=_NOBODY), 0)
        return made
