"""Settings: every environment variable the meter knows, as one table, and the record they become.

Rules it keeps: `SETTINGS` is the only place that names a variable; the README's table and `stripemeter
doctor` are rendered from it. All is parsed once, at start, into one frozen `Settings`; a wrong value, or
a name that is not in the table, stops the start with one line that names the variable, what is wrong and
what is allowed. A secret's value is never in a message, a `repr` or a table.

It must not know: the process's environment, the file system, the clock. It takes mappings and text, and
the gateway reads them (gateway/environment.py).
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from engine import limits
from engine.dotenv import parse_dotenv
from engine.errors import SettingsError

PREFIX: Final = "STRIPEMETER_"
MASK: Final = "********"
US_PER_HOUR: Final = 3_600_000_000

# Bounds that only this file needs: beyond them a value is a slip, not a wish.
VALUE_CHARS_MAX: Final = 4096
VALUE_CHARS_SHOWN_MAX: Final = 60
LATENESS_HOURS_MAX: Final = 24 * 366
GRACE_SECONDS_MAX: Final = 600
RETENTION_DAYS_MIN: Final = 7
"""Below it retries of an outage of a week would meet a horizon."""
RETENTION_DAYS_MAX: Final = 36_500
CORS_ORIGINS_MAX: Final = 100
BATCH_EVENTS_SETTING_MAX: Final = limits.QUEUE_EVENTS_MAX // 5
"""Several full batches fit into the queue, else one client could fill it with a single request."""
BODY_BYTES_SETTING_MAX: Final = limits.QUEUE_BYTES_MAX // 4
META_BYTES_SETTING_MAX: Final = 65_536
JSON_DEPTH_SETTING_MIN: Final = 4
"""A batch of events that have `meta` is four deep: {"events": [{"meta": {}}]}."""
JSON_DEPTH_SETTING_MAX: Final = 256
"""Far below the depth at which the decoder would run into Python's recursion limit."""

_WHOLE_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_DECIMAL: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,12})?")
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*"
)
_ORIGIN: Final = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator chose, parsed and checked. Field by field it is `SETTINGS`, in the same order."""

    host: str
    port: int
    """0: the system picks a free one (for tests)."""
    data_dir: str
    auth: Literal["off", "required"]
    admin_key: str | None
    key_pepper: str | None
    """None: the pepper kept in the data directory."""
    shards: int
    lateness_us: int
    late_policy: Literal["review", "auto"]
    max_batch: int
    max_body_bytes: int
    max_meta_bytes: int
    max_json_depth: int
    verify: bool
    tenant_rate_limit: int
    """Events per second and tenant; 0: no limit."""
    snapshot_every_events: int
    retention_days: int
    cors_origins: tuple[str, ...]
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["auto", "console", "json"]
    shutdown_grace_seconds: float
    fast_lane: Literal["on", "off"]

    @property
    def auth_required(self) -> bool:
        """Whether every request needs an API key."""
        return self.auth == "required"

    @property
    def data_path(self) -> Path:
        """The data directory as a path, relative to the working directory unless absolute."""
        return Path(self.data_dir)

    def __repr__(self) -> str:
        """All fields, secrets masked: a record ends up in tracebacks and test output."""
        shown = (
            f"{setting.field}={MASK if setting.secret and value is not None else repr(value)}"
            for setting in SETTINGS
            for value in (getattr(self, setting.field),)
        )
        return f"Settings({', '.join(shown)})"


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


class Source(NamedTuple):
    """The text of one setting and where it comes from: `flag`, `environment`, `.env` or `default`."""

    text: str
    origin: str


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host`. In doubt (any other name): False."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load(
    environ: Mapping[str, str], dotenv_text: str | None, overrides: Mapping[str, str]
) -> Settings:
    """The settings: flags (`overrides`, by variable name) win over the environment, that over `.env`.

    An empty value counts as absent, as compose files pass it. Raises SettingsError, one line.
    """
    fields, problems = _parse_all(sources(environ, dotenv_text, overrides))
    problems = unknown(environ, dotenv_text, overrides) + problems
    if problems:
        raise SettingsError(problems[0])
    return Settings(**fields)


def problems(
    environ: Mapping[str, str], dotenv_text: str | None, overrides: Mapping[str, str]
) -> list[str]:
    """Every reason why `load` would refuse, one line each; for `stripemeter doctor`."""
    try:
        found = sources(environ, dotenv_text, overrides)
    except SettingsError as error:
        return [str(error)]
    return unknown(environ, dotenv_text, overrides) + _parse_all(found)[1]


def sources(
    environ: Mapping[str, str], dotenv_text: str | None, overrides: Mapping[str, str]
) -> dict[str, Source]:
    """The text of every setting by variable name, in the table's order, and where it comes from.

    Raises SettingsError when `.env` cannot be parsed.
    """
    layers = (
        ("flag", overrides),
        ("environment", environ),
        (".env", parse_dotenv(dotenv_text or "")),
    )
    found: dict[str, Source] = {}
    for setting in SETTINGS:
        found[setting.name] = Source(setting.default, "default")
        for origin, values in layers:
            if text := values.get(setting.name, "").strip():
                found[setting.name] = Source(text, origin)
                break
    return found


RESERVED: Final = frozenset(
    PREFIX + name
    for name in (
        "SIMULATOR", "PUSH_INTERVAL_SECONDS", "RECONCILE_INTERVAL_SECONDS", "RECONCILE_LAG_SECONDS",
        "EPSILON", "SMTP_URL", "ALERT_FROM", "URL", "API_KEY",
    )
)  # fmt: skip
"""Names of the product that no part of this server reads: of its clients, or of parts that are not installed.

A deployment may set them for all its processes, so they don't stop the start; `ignored` names them.
"""


def ignored(
    environ: Mapping[str, str], dotenv_text: str | None, overrides: Mapping[str, str]
) -> list[str]:
    """Reserved names that are set, sorted: say once that they have no effect here."""
    given = {*environ, *overrides, *parse_dotenv(dotenv_text or "")}
    return sorted(given & RESERVED)


def unknown(
    environ: Mapping[str, str], dotenv_text: str | None, overrides: Mapping[str, str]
) -> list[str]:
    """One line for each variable that looks like ours and is not: a typo must not be silent."""
    known = [setting.name for setting in SETTINGS]
    given = {*environ, *overrides, *parse_dotenv(dotenv_text or "")}
    lines = []
    for name in sorted(given - set(known) - RESERVED):
        if name.upper().startswith(PREFIX):
            close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.6)
            hint = (
                f"did you mean {close[0]}?" if close else "`stripemeter doctor` lists all of them"
            )
            lines.append(f"{_shown(name)}: there is no such setting; {hint}")
    return lines


def masked(found: Mapping[str, Source]) -> dict[str, Source]:
    """`found` with every secret that is set replaced by a mask: for the operator's eyes."""
    secret = {setting.name for setting in SETTINGS if setting.secret}
    return {
        name: Source(MASK, source.origin) if name in secret and source.text else source
        for name, source in found.items()
    }


def markdown_table() -> str:
    """The settings as the README shows them: the text between its markers, ending in a newline."""
    rows = ["| name | default | meaning |", "|---|---|---|"]
    for setting in SETTINGS:
        default = setting.default_shown or (f"`{setting.default}`" if setting.default else "none")
        rows.append(
            f"| `{setting.name}` | {default} | {setting.meaning}. Allowed: {setting.allowed} |"
        )
    return "\n".join(rows) + "\n"


def _parse_all(found: Mapping[str, Source]) -> tuple[dict[str, Any], list[str]]:
    """The fields of `Settings` and the problems; the fields are complete only without any."""
    fields: dict[str, Any] = {}
    lines: list[str] = []
    for setting in SETTINGS:
        text = found[setting.name].text
        try:
            if len(text) > VALUE_CHARS_MAX:
                message = f"{len(text)} characters are more than {VALUE_CHARS_MAX}"
                raise ValueError(message)
            fields[setting.field] = setting.parse(text) if text else setting.absent
        except ValueError as error:
            value = "" if setting.secret else f"={_shown(text)}"
            lines.append(f"{setting.name}{value}: {error}; allowed: {setting.allowed}")
    if "host" in fields and "auth" in fields:
        loopback = is_loopback(fields["host"])
        if fields["auth"] is None:
            fields["auth"] = "off" if loopback else "required"
        if fields["auth"] == "off" and not loopback:
            lines.append(
                f"STRIPEMETER_AUTH=off: STRIPEMETER_HOST={_shown(fields['host'])} can be reached from "
                "other machines; allowed: required, or a loopback host such as 127.0.0.1"
            )
    return fields, lines


def _shown(text: str) -> str:
    """`text` fit for one line: control characters escaped, cut at a bound."""
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


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if len(origins) > CORS_ORIGINS_MAX:
        raise ValueError("too many origins")
    for origin in origins:
        if _ORIGIN.fullmatch(origin) is None:
            message = f"{_shown(origin)} is not an origin"
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
)  # fmt: skip
"""Every setting, in the order of the README."""

assert tuple(setting.field for setting in SETTINGS) == Settings.__struct_fields__
assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)
assert BATCH_EVENTS_SETTING_MAX >= limits.BATCH_EVENTS_MAX
