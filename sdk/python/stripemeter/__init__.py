"""Meter usage from Python: `StripeMeterClient` for threads, `AsyncStripeMeterClient` for asyncio and trio.

Knows the meter by its HTTP API alone. Start with docs/sdk-python.md. What is not named here is not for apps, and may change.
"""

from __future__ import annotations

from stripemeter.async_client import AsyncStripeMeterClient
from stripemeter.client import StripeMeterClient
from stripemeter.counts import Statistics
from stripemeter.decorator import metered
from stripemeter.errors import (
    ClientClosed,
    EventRejected,
    Failure,
    InvalidEvent,
    MeterUnavailable,
    QueueFull,
    RequestRefused,
    StripeMeterError,
)
from stripemeter.events import Event
from stripemeter.results import BatchResult, Tracked
from stripemeter.wire import VERSION

__version__ = VERSION

__all__ = [
    "AsyncStripeMeterClient",
    "BatchResult",
    "ClientClosed",
    "Event",
    "EventRejected",
    "Failure",
    "InvalidEvent",
    "MeterUnavailable",
    "QueueFull",
    "RequestRefused",
    "Statistics",
    "StripeMeterClient",
    "StripeMeterError",
    "Tracked",
    "__version__",
    "metered",
]
