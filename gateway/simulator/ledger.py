"""What the simulator holds: one ledger per account, all that a restart must bring back, and the settings.

Rules it keeps: plain data that goes to JSON and back unchanged; quantities are whole numbers, never floats; ids and
draws are digests of the seed and a counter, so that the same requests at the same times give the same state.
It must not know HTTP, endpoints or clocks.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec

from gateway.simulator.wire import Json

MICROS: Final = 1_000_000
DAY_SECONDS: Final = 86_400
IDENTIFIERS_MAX: Final = 4_000_000
"""Events of the last 24 h that can be told apart. Forgetting one early would pass a duplicate, so it is full instead."""
REPLAYS_MAX: Final = 200_000
OBJECTS_MAX: Final = 500_000
MINUTES_MAX: Final = 10_000_000
EVENTS_MAX: Final = 20_000
"""Webhook events that can be read back; older ones are forgotten."""
_LETTERS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Limits(msgspec.Struct, frozen=True):
    """Calls a second; 0: no limit."""

    meter_events: int = 1000
    """Meter events on the account itself."""
    connect: int = 25
    """Each endpoint of a connected account."""
    other: int = 25
    """Each other endpoint of the account."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulator is made with."""

    seed: str = "0"
    account: str | None = None
    """`acct_...`; None: one made from the seed that begins with `acct_sim`."""
    is_live: bool = False
    lag_seconds_min: float = 0.0
    lag_seconds_max: float = 0.0
    """How long an accepted event stays out of summaries and invoices: evenly between the two."""
    auto_create: bool = False
    """Customers are made on first sight, and meters of the names in `meters` too (`*`: of every name)."""
    meters: tuple[str, ...] = ()
    """Event names of `sum` meters that are there from the start."""
    limits: Limits | None = None
    """None: no call is refused for its rate; in process, virtual time makes a thousand calls in one instant."""
    one_call_per_lane: bool = True
    """A meter event is refused while another of the same customer and meter is under way."""
    report_seconds: int = 10
    """How long rejected events are gathered before the error report goes out."""
    grace_seconds: int = 3600
    """From an invoice's draft to its finalization."""
    webhook_url: str | None = None
    webhook_secret: str = "whsec_simulator"


class Sent(msgspec.Struct, array_like=True, gc=False):
    """An accepted meter event, kept while its identifier is."""

    at_us: int
    meter: str
    customer: str
    timestamp_s: int
    value: int
    sequence: int
    state: str
    """`pending`, `counted`, `dropped`, `rejected`, `canceled`."""


class Minute(msgspec.Struct, array_like=True, gc=False):
    """What was aggregated in one minute (or one window of a meter that has them)."""

    total: int = 0
    count: int = 0
    last_timestamp_s: int = -1
    last_sequence: int = -1
    last_value: int = 0


class Stored(msgspec.Struct, array_like=True):
    """The answer that an idempotency key replays."""

    at_us: int
    fingerprint: str
    status: int
    headers: dict[str, str]
    body: str


class Rejected(msgspec.Struct):
    """Rejected events of one meter (or of none), gathered until their report goes out."""

    since_us: int
    codes: dict[str, list[str]] = {}
    """Error code to sample identifiers, at most `SAMPLES_MAX`."""
    counts: dict[str, int] = {}


class Agenda(msgspec.Struct, array_like=True, order=True):
    """Something that will happen by itself."""

    due_s: int
    number: int
    kind: str
    subject: str


class Ledger(msgspec.Struct):
    """Everything of one account."""

    account: str
    number: int = 0
    """Counts the ids given out."""
    objects: dict[str, Json] = {}
    kinds: dict[str, list[str]] = {}
    """Kind to ids, oldest first."""
    meters: dict[str, str] = {}
    """Event name to meter, active ones only."""
    usage: dict[str, dict[int, Minute]] = {}
    """`meter|customer` to minute (unix seconds // 60) to what was aggregated."""
    minutes: int = 0
    sent: dict[str, Sent] = {}
    """Identifier to event, oldest first."""
    pending: list[tuple[int, int, str, Sent]] = []
    """(counted from, sequence, identifier, event), a heap: accepted and not aggregated yet."""
    replays: dict[str, Stored] = {}
    records: dict[str, dict[int, int]] = {}
    """Legacy usage: item to timestamp to quantity."""
    sessions: dict[str, int] = {}
    """Stream token to when it ends, unix microseconds."""
    agendas: dict[str, list[Agenda]] = {}
    """Test clock ("": the real one) to a heap of what is due."""
    rejected: dict[str, Rejected] = {}
    events: dict[str, Json] = {}
    """Snapshot and thin events, oldest first."""
    errors: int = 0


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Something that goes wrong on purpose."""

    id: str = ""
    kind: str
    endpoint: str = "*"
    """A pattern of `METHOD /path`."""
    contains: str = ""
    """Only requests whose body has this text (an identifier, a customer)."""
    probability: float = 1.0
    count: int | None = None
    """How many more requests it meets; None: no bound."""
    for_seconds: float | None = None
    until_us: int | None = None
    seconds: float = 0.0
    """`slow`: the wait; `lag`: added to the aggregation's."""
    applied: bool = True
    """`error`, `reset`: whether the request takes effect."""
    retry_after: int | None = None
    code: str = "meter_event_invalid_value"
    """`reject`: the code in the error report."""


class Delivery(msgspec.Struct):
    """A webhook that has to be sent."""

    id: str
    url: str
    secret: str
    body: str
    due_us: int
    attempts: int = 0


class World(msgspec.Struct):
    """All that a restart must bring back."""

    account: str
    sequence: int = 0
    """Counts the requests that changed something."""
    offset_us: int = 0
    """How far simulated time runs ahead of the clock."""
    last_us: int = 0
    ledgers: dict[str, Ledger] = {}
    faults: dict[str, Fault] = {}
    deliveries: dict[str, Delivery] = {}


class Webhook(msgspec.Struct, frozen=True):
    """A webhook ready to go."""

    id: str
    url: str
    headers: dict[str, str]
    body: bytes


def digest_id(prefix: str, *parts: object, length: int = 24) -> str:
    """An id such as Stripe's, made of the parts."""
    number = int.from_bytes(
        blake2b("\0".join(map(str, parts)).encode(), digest_size=24).digest(), "big"
    )
    letters = []
    for _ in range(length):
        number, index = divmod(number, 62)
        letters.append(_LETTERS[index])
    return f"{prefix}{''.join(letters)}"


def draw(*parts: object) -> float:
    """A number in [0, 1), the same for the same parts."""
    data = blake2b("\0".join(map(str, parts)).encode(), digest_size=7).digest()
    return int.from_bytes(data, "big") / float(1 << 56)
