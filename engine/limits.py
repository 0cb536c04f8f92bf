"""Every bound of the meter in one place, with the assertions that relate them.

Settings (engine.config) may lower or raise the ones marked *setting*; the others are fixed by a format or by
what the machine can take. A bound without a reason beside it is a defect. It must not know who keeps to a bound.
"""

from __future__ import annotations

from typing import Final

# Names, in characters (Unicode code points), as the HTTP contract has them.
METRIC_CHARS_MAX: Final = 100
NAME_CHARS_MAX: Final = 255
"""tenantId, customerRef, resourceId, idempotencyKey."""

# Ingest.
BATCH_EVENTS_MAX: Final = 1000  # setting STRIPEMETER_MAX_BATCH
BODY_BYTES_MAX: Final = 1 << 20  # setting STRIPEMETER_MAX_BODY_BYTES
META_BYTES_MAX: Final = 4096  # setting STRIPEMETER_MAX_META_BYTES
JSON_DEPTH_MAX: Final = 32  # setting STRIPEMETER_MAX_JSON_DEPTH
FUTURE_US_MAX: Final = 3_600_000_000
"""An event may be one hour ahead of the server's clock."""

# Quantities: millionths, |value| < 10^15 in a request; totals have no bound.
FRACTION_DIGITS_MAX: Final = 6
MICROS_PER_UNIT: Final = 10**FRACTION_DIGITS_MAX
QUANTITY_INTEGER_DIGITS_MAX: Final = 15
QUANTITY_MICROS_LIMIT: Final = 10 ** (QUANTITY_INTEGER_DIGITS_MAX + FRACTION_DIGITS_MAX)

# Partitions: pinned in the log's first record; shards own partitions.
PARTITIONS: Final = 64
SHARDS_MAX: Final = PARTITIONS

# The log writer's queue: over it ingest answers 503, it never grows. It is also the largest group.
QUEUE_EVENTS_MAX: Final = 50_000
QUEUE_BYTES_MAX: Final = 64 << 20
GROUP_PARTS_MAX: Final = 0xFFFF // 2
"""Tenants (and operations of theirs) with events in one group: its record counts their parts, two each, in 16 bits."""
WRITE_US_MAX: Final = 10 * 1_000_000
"""A write to the log that takes longer is a disk that is stuck: it shows in readiness, and ingest is refused at once until
it ends. A healthy disk takes milliseconds, a rotating one under load tenths of a second."""
SHARD_INBOX_MAX: Final = 64
"""Groups that wait for a shard; the writer waits beyond it."""

LISTING_SORT_MATCHES_MAX: Final = 10_000
LISTING_LIMIT_MAX: Final = 100

CLOCK_JUMP_US_MAX: Final = 300 * 1_000_000
"""A wall clock that moves more than 5 minutes against the monotonic one holds all period closings."""

# Calls to Stripe. An answer that does not come is not a refusal: what is unknown is asked again, so waits may be short.
STRIPE_CONNECTIONS_MAX: Final = 64
"""Sockets to Stripe at once. At 100 ms an answer they carry 640 calls/s."""
STRIPE_CONNECT_SECONDS: Final = 10
STRIPE_ANSWER_SECONDS: Final = 30
"""From the request's first byte to the answer's last. Stripe's own library waits 80 s, and a lane with it."""
STRIPE_SLOT_SECONDS: Final = 10
"""How long a call waits for a free connection."""
STRIPE_BEGIN_SECONDS: Final = STRIPE_SLOT_SECONDS + STRIPE_CONNECT_SECONDS
"""What is handed to the process that sends must begin to leave within: as long as it could wait without one."""
STRIPE_CALLS_MAX: Final = 512
"""Calls under way at once in that process: lanes, resolutions, readings. More are told to come again."""
STRIPE_FRAME_BYTES_MAX: Final = 16 << 20
"""Of what is said between it and the server: the largest answer, decoded, with room."""
STRIPE_IDLE_SECONDS: Final = 30
"""A connection unused for longer is not trusted."""
STRIPE_ANSWER_BYTES_MAX: Final = 4 << 20
"""A page of 100 prices with tiers is below 1 MiB."""
STRIPE_RETRY_AFTER_SECONDS_MAX: Final = 3600
"""A longer `Retry-After` is a slip, or an outage that ends sooner."""
STRIPE_PAGES_MAX: Final = 100
"""Pages of 100 that are followed in one list."""
STRIPE_STREAM_EVENTS_MAX: Final = 100
"""Events in one request to the meter event stream: Stripe's own bound."""
STRIPE_SESSIONS_MAX: Final = 64
"""Stream sessions kept at once, one a connected account."""
STRIPE_RESOLUTIONS_MAX: Final = 50_000
"""Destinations whose resolution is remembered; about 600 bytes each."""
STRIPE_REASON_CHARS_MAX: Final = 500
"""Of Stripe's words in a reason: it is kept in the log."""

assert QUEUE_EVENTS_MAX >= BATCH_EVENTS_MAX, "a whole batch must fit into an empty queue"
assert GROUP_PARTS_MAX >= BATCH_EVENTS_MAX, "each event of a batch may have a tenant of its own"
assert QUEUE_BYTES_MAX >= 4 * BODY_BYTES_MAX
assert SHARDS_MAX <= PARTITIONS, "a shard without a partition has nothing to do"
assert QUANTITY_MICROS_LIMIT > 2**63 - 1, "hence the wide quantity of the log format"
