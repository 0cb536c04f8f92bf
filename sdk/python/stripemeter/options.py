"""How a client behaves: every option with its default and its bounds, checked once.

Rules it keeps: everything has a bound; a wrong option is an error where the client is made, not in a request. The API key
is in no text that can be printed. It must not know how an option is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Optional, Union
from urllib.parse import urlsplit

NAME_CHARS_MAX = 255
_API_KEY = re.compile(r"[!-~]{1,1000}")
POLICIES = ("drop_oldest", "block", "raise")
MODES = ("buffered", "direct")


@dataclass(frozen=True)
class Options:
    """What `StripeMeterClient` and `AsyncStripeMeterClient` take. Seconds and counts; see docs/sdk-python.md."""

    api_url: str
    tenant_id: str
    customer_id: Optional[str] = None
    api_key: Optional[str] = field(default=None, repr=False)
    mode: str = "buffered"
    batch_events_max: int = 500
    batch_bytes_max: int = 512 * 1024
    queue_events_max: int = 50_000
    queue_bytes_max: int = 64 * 1024 * 1024
    flush_interval_seconds: float = 1.0
    backpressure: str = "drop_oldest"
    block_seconds_max: float = 5.0
    timeout_seconds: float = 10.0
    retry_seconds_first: float = 0.1
    retry_seconds_max: float = 30.0
    attempts_max: int = 5
    close_seconds_max: float = 10.0
    spool: Union[str, PathLike[str], None] = None
    spool_events_max: int = 1_000_000
    spool_sync: bool = False
    spool_lease_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Raises ValueError with the option's name first."""
        self._check_where()
        _check_choice("mode", self.mode, MODES)
        _check_choice("backpressure", self.backpressure, POLICIES)
        for name, least, most in _BOUNDS:
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not least <= value <= most:
                message = f"{name} must be {least} to {most}, not {value!r}"
                raise ValueError(message)
        if self.retry_seconds_first > self.retry_seconds_max:
            message = "retry_seconds_first must not be above retry_seconds_max"
            raise ValueError(message)
        if self.spool is not None and self.mode == "direct":
            message = 'spool needs mode="buffered": a direct call answers when the server did'
            raise ValueError(message)

    def _check_where(self) -> None:
        try:
            url = urlsplit(self.api_url)
            usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except (ValueError, AttributeError, TypeError):
            usable = False
        else:
            usable = usable and not (url.query or url.fragment or url.username or url.password)
        if not usable:
            message = "api_url must be like http://127.0.0.1:3000, without query, user or password"
            raise ValueError(message)
        for name, value in (("tenant_id", self.tenant_id), ("customer_id", self.customer_id)):
            if value is None and name == "customer_id":
                continue
            if not isinstance(value, str) or not 0 < len(value) <= NAME_CHARS_MAX:
                message = f"{name} must be a text of 1 to {NAME_CHARS_MAX} characters"
                raise ValueError(message)
        if self.api_key is not None and not (
            isinstance(self.api_key, str) and _API_KEY.fullmatch(self.api_key)
        ):
            message = "api_key must be printable ASCII without blanks"
            raise ValueError(message)

    @property
    def spool_path(self) -> Optional[str]:
        """Where the spool is, if there is one."""
        return None if self.spool is None else fspath(self.spool)

    @property
    def destination(self) -> str:
        """Whom an event is for: another process sends a crashed one's events only with the same."""
        return f"{self.api_url.rstrip('/')} {self.tenant_id}"


_BOUNDS = (
    ("batch_events_max", 1, 10_000),
    ("batch_bytes_max", 1024, 16 * 1024 * 1024),
    ("queue_events_max", 1, 10_000_000),
    ("queue_bytes_max", 1024, 1 << 40),
    ("flush_interval_seconds", 0.01, 3600),
    ("block_seconds_max", 0, 3600),
    ("timeout_seconds", 0.01, 600),
    ("retry_seconds_first", 0.001, 3600),
    ("retry_seconds_max", 0.001, 3600),
    ("attempts_max", 1, 1000),
    ("close_seconds_max", 0, 3600),
    ("spool_events_max", 1, 1_000_000_000),
    ("spool_lease_seconds", 0.1, 3600),
)


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        message = f"{name} must be one of {', '.join(allowed)}, not {value!r}"
        raise ValueError(message)
