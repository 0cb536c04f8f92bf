"""A request with one event: the way of `gateway.ingest`, without what only many events need.

Apps send events one by one, and then lists, tables by tenant and objects per result cost as much as the event itself.

Rules it keeps: only what is plainly right goes this way; all else, every refusal above all, is the general way's, so
that answers are the same to the byte. It must not know how events are stored.
"""

from __future__ import annotations

from typing import Any, Final

from engine.actors.group import Group
from engine.actors.log_writer import Offer
from engine.core.events import EventLimits, Refusal, SentEvent, accept
from gateway.auth import Identity
from gateway.context import Gateway
from gateway.ingest_headers import IngestHeaders

_KEY_TEXT: Final = 8
"""Column of engine.core.records.Row."""


class LoneCounting:
    """An event that was offered, and whose answer is due when it is durable and counted."""

    __slots__ = ("offer", "request_id", "row", "started_us")

    def __init__(
        self, row: tuple[Any, ...], offer: Offer, request_id: str, started_us: int
    ) -> None:
        self.row = row
        self.offer = offer
        self.request_id = request_id
        self.started_us = started_us

    @property
    def groups(self) -> list[Group]:
        """What must be done before the answer is true."""
        return self.offer.groups


def begin_lone(  # noqa: PLR0917 - on the hot path
    gateway: Gateway,
    sent: SentEvent | Refusal,
    identity: Identity,
    headers: IngestHeaders,
    limits: EventLimits,
    size_bytes: int,
    started_us: int,
) -> LoneCounting | None:
    """Offer an event; None: it goes the general way, and nothing was offered. Raises EngineError."""
    if isinstance(sent, Refusal) or gateway.limiter is not None:
        return None
    own = identity.tenant
    tenant = sent.tenant_id or own or headers.query_tenant
    if tenant is None or (own is not None and tenant != own):
        return None
    row = accept(sent, tenant, headers.idempotency_key, gateway.clock.now_us(), limits)
    if isinstance(row, Refusal):
        return None
    offer = gateway.meter.taking.offer_one(tenant, row, size_bytes)
    return LoneCounting(row, offer, headers.request_id, started_us)


def accepted_lone(counting: LoneCounting) -> bytes | None:
    """The body of nearly every answer: accepted, in time, under a key that needs no escapes. None: another one."""
    offer = counting.offer
    group = offer.own_group
    if group is None or (group.late and (offer.part, offer.positions[0]) in group.late):
        return None
    key: str = counting.row[_KEY_TEXT]
    if not (key.isascii() and key.isprintable()) or '"' in key or "\\" in key:
        return None
    return (
        f'{{"accepted":1,"duplicates":0,"requestId":"{counting.request_id}",'
        f'"results":[{{"idempotencyKey":"{key}","status":"accepted"}}],"errors":[]}}'
    ).encode()
