"""The table of settings: one row for each environment variable, with how its text is read and what it means.

Rules it keeps: it is the only place that names a variable; a parser takes text that is not empty and raises
ValueError with what is wrong, in words that never hold the text of a secret; what is not exact is refused, not rounded.

It must not know where texts come from, nor the record they become (engine.config).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Final, NamedTuple

from engine import limits

US_PER_SECOND: Final = 1_000_000
US_PER_HOUR: Final = 3600 * US_PER_SECOND

# Bounds that only this file needs: beyond them a value is a slip, not a wish.
VALUE_CHARS_MAX: Final = 4096
VALUE_CHARS_SHOWN_MAX: Final = 60
LATENESS_HOURS_MAX: Final = 24 * 366
GRACE_SECONDS_MAX: Final = 600
RETENTION_DAYS_MIN: Final = 7
"""Below it retries of an outage of a week would meet a horizon."""
RETENTION_DAYS_MAX: Final = 36_500
CORS_ORIGINS_MAX: Final = 100
PUSH_INTERVAL_SECONDS_MIN: Final = Fraction(1, 100)
PUSH_INTERVAL_SECONDS_MAX: Final = 86_400
"""A target that is pushed less often than daily would meet an invoice with a day's usage missing."""
ANCHOR_INTERVAL_SECONDS_MIN: Final = Fraction(1, 10)
ANCHOR_INTERVAL_SECONDS_MAX: Final = 86_400
"""What was acknowledged since the last anchor can be cut off unseen: a day of it is the most one may want."""
RECONCILE_SECONDS_MIN: Final = Fraction(1, 100)
RECONCILE_INTERVAL_SECONDS_MAX: Final = 86_400
"""Less often than daily a period could end with a difference that nobody was told of."""
RECONCILE_LAG_SECONDS_MAX: Final = 86_400
WEBHOOK_SECRETS_MAX: Final = 10
"""Each endpoint at Stripe has its own: live and test, thin events and the others."""
BATCH_EVENTS_SETTING_MAX: Final = limits.QUEUE_EVENTS_MAX // 5
"""Several full batches fit into the queue, else one client could fill it with a single request."""
BODY_BYTES_SETTING_MAX: Final = limits.QUEUE_BYTES_MAX // 4
META_BYTES_SETTING_MAX: Final = 65_536
JSON_DEPTH_SETTING_MIN: Final = 4
"""A batch of events that have `meta` is four deep: {"events": [{"meta": {}}]}."""
JSON_DEPTH_SETTING_MAX: Final = 256
"""Far below the depth at which the decoder would run into Python's recursion limit."""

MASK: Final = "********"
SECRET_TEXT: Final = re.compile(
    r"(?i:bearer)\s+[^\s'\",]+"  # an Authorization header in a message or a traceback
    r"|\bsm_[A-Za-z0-9_\-]{8,}"  # our own API keys
    r"|\b(?:sk|rk|whsec)_[A-Za-z0-9_\-]{8,}"  # Stripe's
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user and password of a URL
)
"""What looks like a secret wherever it stands: also in a setting that holds none, and in a line of the log."""

_WHOLE_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_DECIMAL: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,12})?")
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*"
)
_SENDABLE_KEY: Final = re.compile(r"[\x21-\x7e]{12,255}")
_BASE_URL: Final = re.compile(
    r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?(/[a-z0-9._~-]+)*/?"
)
_BUCKET: Final = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()/-]*)?")
_ADDRESS: Final = re.compile(r"https?://[A-Za-z0-9.:\[\]_-]+(/[\x21-\x3f\x41-\x7e]*)?")
_ORIGIN: Final = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")


class Setting(NamedTuple):
    """One row of the table. `parse` takes text that is not empty and raises ValueError with what is wrong."""

    name: str
    field: str
    default: str
    """Parsed like a value from outside; empty: `absent`, or derived from the others (`auth`)."""
    parse: Callable[[str], object]
    allowed: str
    meaning: str
    secret: bool = False
    default_shown: str = ""
    """What the README says, where that is not `default` itself."""
    absent: object = None
    """The field's value when there is no text."""


def shown(text: str) -> str:
    """`text` fit for one line: control characters escaped, what looks like a secret masked, cut at a bound."""
    text = SECRET_TEXT.sub(MASK, text)
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return text if len(text) <= VALUE_CHARS_SHOWN_MAX else text[:VALUE_CHARS_SHOWN_MAX] + "..."


def _whole(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if _WHOLE_NUMBER.fullmatch(text) is None:
            raise ValueError("not a whole number")
        if not lowest <= (value := int(text)) <= highest:
            raise ValueError("out of range")
        return value

    return parse


def _zero_or(lowest: int, highest: int) -> Callable[[str], int]:
    return lambda text: 0 if text == "0" else _whole(lowest, highest)(text)


def _one_of(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if (value := text.lower()) not in values:
            raise ValueError("not one of the allowed words")
        return value

    return parse


def _lateness(text: str) -> int:
    """Hours as text to microseconds, exact: what is not a whole microsecond is refused, not rounded."""
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError("not a number of hours")
    lateness_us = Fraction(text) * US_PER_HOUR
    if lateness_us.denominator != 1:
        raise ValueError("not a whole number of microseconds")
    if lateness_us > LATENESS_HOURS_MAX * US_PER_HOUR:
        raise ValueError("out of range")
    return int(lateness_us)


def _seconds(text: str) -> float:
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError("not a number of seconds")
    if not 0 < (value := float(text)) <= GRACE_SECONDS_MAX:
        raise ValueError("out of range")
    return value


def _interval_us(lowest: Fraction, highest: int) -> Callable[[str], int]:
    """Seconds as text to microseconds; digits beyond them are refused, not rounded."""

    def parse(text: str) -> int:
        if _DECIMAL.fullmatch(text) is None:
            raise ValueError("not a number of seconds")
        if not lowest <= (seconds := Fraction(text)) <= highest:
            raise ValueError("out of range")
        interval_us = seconds * US_PER_SECOND
        if interval_us.denominator != 1:
            raise ValueError("not a whole number of microseconds")
        return int(interval_us)

    return parse


def _epsilon(text: str) -> Fraction:
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError("not a decimal number")
    if not 0 <= (epsilon := Fraction(text)) <= Fraction(1, 2):
        raise ValueError("out of range")
    return epsilon


def _switch(text: str) -> bool:
    if text not in {"0", "1"}:
        raise ValueError("neither 0 nor 1")
    return text == "1"


def _host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        if _HOST_NAME.fullmatch(text) is None:
            raise ValueError("neither an IP address nor a host name") from None
    return text


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError("a path has no NUL")
    return text


def _secret(chars_min: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise ValueError("has blanks, or characters beyond printable ASCII")
        if not chars_min <= len(text) <= 255:
            raise ValueError("too short or too long")
        return text

    return parse


def _stripe_key(*starts: str) -> Callable[[str], str]:
    """A key of Stripe's that begins with one of `starts`; nothing of another one is ever in a message."""

    def parse(text: str) -> str:
        if _SENDABLE_KEY.fullmatch(text) is None:
            raise ValueError(
                "has blanks, is too short or long, or has characters beyond printable ASCII"
            )
        if not text.startswith(starts):
            raise ValueError("not a secret or restricted key of this kind")
        return text

    return parse


def _webhook_secrets(text: str) -> tuple[str, ...]:
    secrets = tuple(part.strip() for part in text.split(",") if part.strip())
    if not 1 <= len(secrets) <= WEBHOOK_SECRETS_MAX:
        raise ValueError("too many secrets, or none")
    for secret in secrets:
        if _SENDABLE_KEY.fullmatch(secret) is None or not secret.startswith("whsec_"):
            raise ValueError("not an endpoint's signing secret")
    return secrets


def _base_url(text: str) -> str:
    if _BASE_URL.fullmatch(text.lower()) is None:
        raise ValueError("not a base URL")
    return text.rstrip("/")


def _anchor(text: str) -> str:
    """A bucket, a web address, or else a file."""
    if text.startswith("s3:"):
        if _BUCKET.fullmatch(text) is None:
            raise ValueError("not a bucket and a prefix")
        return text
    if text.startswith(("http:", "https:")):
        if _ADDRESS.fullmatch(text) is None:
            raise ValueError("not a URL without user and password")
        return text
    if "://" in text:
        raise ValueError("neither a file nor an address of a known kind")
    return _path(text)


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if len(origins) > CORS_ORIGINS_MAX:
        raise ValueError("too many origins")
    for origin in origins:
        if _ORIGIN.fullmatch(origin) is None:
            message = f"{shown(origin)} is not an origin"
            raise ValueError(message)
    return origins


def _numbers(lowest: int, highest: int) -> str:
    return f"{lowest} to {highest}"


SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        "STRIPEMETER_HOST", "host", "127.0.0.1", _host,
        "an IP address or a host name, without a port",
        "Where HTTP listens",
    ),
    Setting(
        "STRIPEMETER_PORT", "port", "3000", _whole(0, 65_535),
        f"{_numbers(0, 65_535)} (0 picks a free one)",
        "The port of HTTP",
    ),
    Setting(
        "STRIPEMETER_DATA_DIR", "data_dir", "./data", _path,
        "a directory of a local disk",
        "The log, its indexes, snapshots; one server at a time (a second one refuses to start)",
    ),
    Setting(
        "STRIPEMETER_AUTH", "auth", "", _one_of("off", "required"),
        "`off` (on a loopback host only), `required`",
        "Whether requests need an API key",
        default_shown="`off` on loopback, else `required`",
    ),
    Setting(
        "STRIPEMETER_ADMIN_KEY", "admin_key", "", _secret(12),
        "12 to 255 printable ASCII characters without blanks",
        "A first key with scope `admin`, for set-up by machines; else `stripemeter keys create`",
        secret=True,
    ),
    Setting(
        "STRIPEMETER_KEY_PEPPER", "key_pepper", "", _secret(16),
        "16 to 255 printable ASCII characters without blanks",
        "Secret mixed into the hashes of API keys; another one makes all keys invalid",
        secret=True,
        default_shown="made once in the data directory",
    ),
    Setting(
        "STRIPEMETER_SHARDS", "shards", "8", _whole(1, limits.SHARDS_MAX),
        _numbers(1, limits.SHARDS_MAX),
        "Shard actors; any value works on any data directory",
    ),
    Setting(
        "STRIPEMETER_LATENESS_HOURS", "lateness_us", "48", _lateness,
        f"{_numbers(0, LATENESS_HOURS_MAX)}, fractions too",
        "Lateness window; a change is recorded in the log and judges what arrives after it",
    ),
    Setting(
        "STRIPEMETER_LATE_POLICY", "late_policy", "review", _one_of("review", "auto"),
        "`review`, `auto`",
        "`review`: adjustments of late events wait for a decision; `auto`: they are approved at once",
    ),
    Setting(
        "STRIPEMETER_MAX_BATCH", "max_batch", str(limits.BATCH_EVENTS_MAX),
        _whole(1, BATCH_EVENTS_SETTING_MAX),
        _numbers(1, BATCH_EVENTS_SETTING_MAX),
        "Events in one ingest request",
    ),
    Setting(
        "STRIPEMETER_MAX_BODY_BYTES", "max_body_bytes", str(limits.BODY_BYTES_MAX),
        _whole(1024, BODY_BYTES_SETTING_MAX),
        _numbers(1024, BODY_BYTES_SETTING_MAX),
        "Bytes of a request's body, unpacked",
    ),
    Setting(
        "STRIPEMETER_MAX_META_BYTES", "max_meta_bytes", str(limits.META_BYTES_MAX),
        _whole(0, META_BYTES_SETTING_MAX),
        _numbers(0, META_BYTES_SETTING_MAX),
        "Bytes of an event's `meta`",
    ),
    Setting(
        "STRIPEMETER_MAX_JSON_DEPTH", "max_json_depth", str(limits.JSON_DEPTH_MAX),
        _whole(JSON_DEPTH_SETTING_MIN, JSON_DEPTH_SETTING_MAX),
        _numbers(JSON_DEPTH_SETTING_MIN, JSON_DEPTH_SETTING_MAX),
        "Nesting of a JSON body; a deeper one is `400`",
    ),
    Setting(
        "STRIPEMETER_VERIFY", "verify", "0", _switch,
        "`0`, `1`",
        "`1` runs the costly assertions too",
    ),
    Setting(
        "STRIPEMETER_TENANT_RATE_LIMIT", "tenant_rate_limit", "0", _whole(0, 10_000_000),
        f"{_numbers(0, 10_000_000)} (0 is off)",
        "Events per second and tenant; over it the answer is `429`",
    ),
    Setting(
        "STRIPEMETER_SNAPSHOT_EVERY_EVENTS", "snapshot_every_events", "1000000",
        _whole(1000, 1_000_000_000),
        _numbers(1000, 1_000_000_000),
        "How often state is snapshotted",
    ),
    Setting(
        "STRIPEMETER_RETENTION_DAYS", "retention_days", "0",
        _zero_or(RETENTION_DAYS_MIN, RETENTION_DAYS_MAX),
        f"0 (for ever), {_numbers(RETENTION_DAYS_MIN, RETENTION_DAYS_MAX)}",
        "Events older than this, in closed periods only, are archived to files and dropped from the log; "
        "later ones that old are refused",
    ),
    Setting(
        "STRIPEMETER_CORS_ORIGINS", "cors_origins", "", _origins,
        "comma separated, each like `https://app.example.com`",
        "Web origins whose pages may call the API",
        absent=(),
    ),
    Setting(
        "STRIPEMETER_LOG_LEVEL", "log_level", "info", _one_of("debug", "info", "warning", "error"),
        "`debug`, `info`, `warning`, `error`",
        "The least level that is logged",
    ),
    Setting(
        "STRIPEMETER_LOG_FORMAT", "log_format", "auto", _one_of("auto", "console", "json"),
        "`auto`, `console`, `json`",
        "`auto`: readable on a terminal, JSON elsewhere",
    ),
    Setting(
        "STRIPEMETER_SHUTDOWN_GRACE_SECONDS", "shutdown_grace_seconds", "10", _seconds,
        f"above 0, to {GRACE_SECONDS_MAX}, fractions too",
        "How long a stop may take; then a hard exit, which loses nothing",
    ),
    Setting(
        "STRIPEMETER_FAST_LANE", "fast_lane", "on", _one_of("on", "off"),
        "`on`, `off`",
        "Ingest and current usage answered inside the server, ahead of Quart; `off` for stock Hypercorn",
    ),
    Setting(
        "STRIPE_SECRET_KEY", "stripe_secret_key", "", _stripe_key("sk_", "rk_"),
        "a secret or restricted key, `sk_...` or `rk_...`",
        "Stripe's key that usage is pushed with; its account and mode are asked of Stripe at start",
        secret=True,
    ),
    Setting(
        "STRIPE_TEST_SECRET_KEY", "stripe_test_secret_key", "", _stripe_key("sk_test_", "rk_test_"),
        "a key of a sandbox or of test mode, `sk_test_...` or `rk_test_...`",
        "Key that shadow mappings are pushed with; without it they are skipped",
        secret=True,
    ),
    Setting(
        "STRIPE_WEBHOOK_SECRET", "stripe_webhook_secrets", "", _webhook_secrets,
        f"`whsec_...`, up to {WEBHOOK_SECRETS_MAX} with commas between (each endpoint at Stripe has its own)",
        "Checks `POST /v1/webhooks/stripe`; without it every webhook is refused",
        secret=True,
        absent=(),
    ),
    Setting(
        "STRIPE_API_BASE", "stripe_api_base", "", _base_url,
        "a URL without query, such as `http://127.0.0.1:12111`",
        "Where Stripe's API is, for simulators and proxies",
        default_shown="Stripe's",
    ),
    Setting(
        "STRIPE_METER_EVENTS_BASE", "stripe_meter_events_base", "", _base_url,
        "a URL without query",
        "Where Stripe's meter event streams are",
        default_shown="Stripe's",
    ),
    Setting(
        "STRIPEMETER_SIMULATOR", "simulator", "auto", _one_of("auto", "on", "off"),
        "`auto`, `on`, `off`",
        "The built-in Stripe simulator in Stripe's place. `auto`: without any key, on a loopback host; "
        "`on`: whatever keys there are, which are then not used",
    ),
    Setting(
        "STRIPEMETER_STRIPE_PROCESS", "stripe_process", "auto", _one_of("auto", "on", "off"),
        "`auto`, `on`, `off`",
        "A process of its own for speaking with Stripe, so that pushing takes little from ingest. "
        "`auto`: with a Stripe key; the built-in simulator needs none",
    ),
    Setting(
        "STRIPEMETER_PUSH_INTERVAL_SECONDS", "push_interval_us", "60",
        _interval_us(PUSH_INTERVAL_SECONDS_MIN, PUSH_INTERVAL_SECONDS_MAX),
        f"{float(PUSH_INTERVAL_SECONDS_MIN)} to {PUSH_INTERVAL_SECONDS_MAX}, fractions too",
        "At most one push per target at Stripe and interval",
    ),
    Setting(
        "STRIPEMETER_RECONCILE_INTERVAL_SECONDS", "reconcile_interval_us", "3600",
        _interval_us(RECONCILE_SECONDS_MIN, RECONCILE_INTERVAL_SECONDS_MAX),
        f"{float(RECONCILE_SECONDS_MIN)} to {RECONCILE_INTERVAL_SECONDS_MAX}, fractions too",
        "How often all that Stripe holds is compared with what was pushed and used",
    ),
    Setting(
        "STRIPEMETER_RECONCILE_LAG_SECONDS", "reconcile_lag_us", "300",
        _interval_us(RECONCILE_SECONDS_MIN, RECONCILE_LAG_SECONDS_MAX),
        f"{float(RECONCILE_SECONDS_MIN)} to {RECONCILE_LAG_SECONDS_MAX}, fractions too",
        "How long Stripe may take to show what it accepted; a difference is told when it is seen twice, so long apart",
    ),
    Setting(
        "STRIPEMETER_EPSILON", "epsilon", "0.005", _epsilon,
        "0 to 0.5, a fraction of the total",
        "The difference that is tolerated in a period that still runs; in one that is over it is nothing",
    ),
    Setting(
        "STRIPEMETER_ANCHOR", "anchor", "", _anchor,
        "a file, `https://...` (gets a POST), `s3://bucket/prefix` (with the usual `AWS_` variables); on another machine",
        "Where the log's head hash is written on an interval, signed, so that a cut tail is found (`check --anchor`)",
    ),
    Setting(
        "STRIPEMETER_ANCHOR_INTERVAL_SECONDS", "anchor_interval_us", "300",
        _interval_us(ANCHOR_INTERVAL_SECONDS_MIN, ANCHOR_INTERVAL_SECONDS_MAX),
        f"{float(ANCHOR_INTERVAL_SECONDS_MIN)} to {ANCHOR_INTERVAL_SECONDS_MAX}, fractions too",
        "How often, while the log grows",
    ),
)  # fmt: skip
"""Every setting, in the order of the README."""

assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)
assert BATCH_EVENTS_SETTING_MAX >= limits.BATCH_EVENTS_MAX
