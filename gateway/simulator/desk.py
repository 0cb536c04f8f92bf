"""Where one request is served: the ledger it is about, the time, the API version, and what all endpoints need.

Rules it keeps: an object is kept as the JSON that answers show; everything that is made gets its id from the ledger's
counter; a bound that is reached is a refusal that says what to do. It must not know any endpoint.
"""

from __future__ import annotations

import heapq
from datetime import UTC, datetime
from typing import Final

import msgspec

from gateway.simulator.ledger import (
    EVENTS_MAX,
    MICROS,
    OBJECTS_MAX,
    Agenda,
    Delivery,
    Ledger,
    Settings,
    World,
    digest_id,
)
from gateway.simulator.wire import Json, Refusal, encode, missing

API_VERSION: Final = "2026-10-28.endive"
BASIL: Final = "2025-03-31"
"""From this version on there are no usage records, and periods belong to items."""
DESTINATION: Final = "v2.core.event_destination"
FULL: Final = Refusal(
    503,
    "The simulator holds as much as it can: POST /_sim/reset empties it.",
    type="api_error",
    is_kept=False,
)


class Effects(msgspec.Struct):
    """What faults make of one request that goes through."""

    lag_seconds: float = 0.0
    is_dropped: bool = False
    reject_code: str | None = None


class Desk:
    """One request's view of one ledger."""

    __slots__ = (
        "effects",
        "idempotency_key",
        "is_changed",
        "ledger",
        "now_us",
        "request_id",
        "settings",
        "token",
        "version",
        "world",
    )

    def __init__(self, world: World, ledger: Ledger, settings: Settings, now_us: int) -> None:
        self.world = world
        self.ledger = ledger
        self.settings = settings
        self.now_us = now_us
        self.version = API_VERSION
        self.effects = Effects()
        self.idempotency_key: str | None = None
        self.request_id: str | None = None
        self.token = ""
        """A meter event session's, of who streams."""
        self.is_changed = False
        """Whether a reading request changed something after all."""

    @property
    def now_s(self) -> int:
        """Unix seconds."""
        return self.now_us // MICROS

    @property
    def is_before_basil(self) -> bool:
        """Whether the request speaks an API version that still has usage records."""
        return self.version < BASIL

    def number(self) -> int:
        """The next of the ledger's counter."""
        self.ledger.number += 1
        return self.ledger.number

    def new_id(self, prefix: str, length: int = 24) -> str:
        """An id that nothing else has."""
        return digest_id(
            prefix, self.settings.seed, self.ledger.account, self.number(), length=length
        )

    # Objects.

    def keep(self, kind: str, one: Json) -> None:
        """Put an object into the ledger."""
        self.is_changed = True
        self.ledger.objects[one["id"]] = one
        self.ledger.kinds.setdefault(kind, []).append(one["id"])

    def is_full(self) -> bool:
        """Whether no more objects can be made."""
        return len(self.ledger.objects) >= OBJECTS_MAX

    def find(self, kind: str, object_id: str, param: str = "id") -> Json | Refusal:
        """The object of that kind and id."""
        found = self.ledger.objects.get(object_id)
        if found is None or found["object"] != kind:
            return missing(kind.rpartition(".")[2].replace("_", " "), object_id, param)
        return found

    def newest(self, kind: str) -> list[Json]:
        """All objects of a kind, newest first."""
        ids = self.ledger.kinds.get(kind, [])
        return [self.ledger.objects[one] for one in reversed(ids) if one in self.ledger.objects]

    def clock_of(self, customer: str) -> str:
        """The test clock a customer lives on; "": real time."""
        found = self.ledger.objects.get(customer) or {}
        return found.get("test_clock") or ""

    def time_on(self, clock: str) -> int:
        """Unix seconds on a test clock, or now."""
        if not clock:
            return self.now_s
        frozen: int = self.ledger.objects[clock]["frozen_time"]
        return frozen

    def schedule(self, clock: str, due_s: int, kind: str, subject: str) -> None:
        """Have something happen by itself."""
        agenda = self.ledger.agendas.setdefault(clock, [])
        heapq.heappush(agenda, Agenda(due_s, self.number(), kind, subject))

    # Events.

    def publish(self, event_type: str, one: Json) -> None:
        """A snapshot event (`/v1/events`): it carries the object as it is now."""
        event: Json = {
            "id": self.new_id("evt_"),
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now_s,
            "data": {"object": msgspec.json.decode(encode(one))},
            "livemode": self.settings.is_live,
            "pending_webhooks": 0,
            "request": {"id": self.request_id, "idempotency_key": self.idempotency_key},
            "type": event_type,
        }
        if self.ledger.account != self.world.account:
            event["account"] = self.ledger.account
        self._send(event, event)

    def publish_thin(self, event_type: str, related: Json | None, data: Json) -> None:
        """A thin event (`/v2/core/events`): the webhook names it, the report is to be fetched."""
        thin: Json = {
            "id": self.new_id("evt_"),
            "object": "v2.core.event",
            "type": event_type,
            "livemode": self.settings.is_live,
            "created": instant(self.now_us),
            "related_object": related,
        }
        if self.ledger.account != self.world.account:
            thin["context"] = self.ledger.account
        self._send(thin, {**thin, "data": data})

    def _send(self, notice: Json, event: Json) -> None:
        events = self.ledger.events
        events[event["id"]] = event
        while len(events) > EVENTS_MAX:
            del events[next(iter(events))]
        for url, secret, wanted in self._endpoints(event["object"]):
            if "*" in wanted or event["type"] in wanted:
                number = digest_id("whd_", event["id"], url)
                self.world.deliveries[number] = Delivery(
                    number, url, secret, encode(notice).decode(), self.now_us
                )
        while len(self.world.deliveries) > EVENTS_MAX:
            del self.world.deliveries[next(iter(self.world.deliveries))]

    def _endpoints(self, event_object: str) -> list[tuple[str, str, list[str]]]:
        kind = "webhook_endpoint" if event_object == "event" else DESTINATION
        found = [
            (one["url"], one["secret"], one["enabled_events"])
            for one in self.newest(kind)
            if one["status"] == "enabled"
        ]
        if self.settings.webhook_url is not None:
            found.append((self.settings.webhook_url, self.settings.webhook_secret, ["*"]))
        return found


def instant(us: int) -> str:
    """RFC 3339 with milliseconds, as v2 of the API writes times."""
    moment = datetime.fromtimestamp(us // MICROS, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{us % MICROS // 1000:03d}Z"
