"""Settings: what the operator chose, from flags, environment and `.env` to one frozen record.

Rules it keeps: `SETTINGS` (engine.settings_table) is the only place that names a variable; the README's table and
`stripemeter doctor` are rendered from it. All is parsed once, at start, into one frozen `Settings`; a wrong value, or
a name that is not in the table, stops the start with one line that names the variable, what is wrong and
what is allowed. A secret's value is never in a message, a `repr` or a table.

It must not know: the process's environment, the file system, the clock. It takes mappings and text, and
the gateway reads them (gateway/environment.py).
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from engine.dotenv import parse_dotenv
from engine.errors import SettingsError
from engine.settings_table import MASK, SECRET_TEXT, SETTINGS, VALUE_CHARS_MAX, shown

PREFIX: Final = "STRIPEMETER_"


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
    stripe_secret_key: str | None
    stripe_test_secret_key: str | None
    stripe_webhook_secrets: tuple[str, ...]
    stripe_api_base: str | None
    """None: Stripe's own."""
    stripe_meter_events_base: str | None
    simulator: Literal["auto", "on", "off"]
    stripe_process: Literal["auto", "on", "off"]
    push_interval_us: int
    reconcile_interval_us: int
    reconcile_lag_us: int
    epsilon: Fraction
    """Of a total: the difference that is tolerated in an open period."""
    anchor: str | None
    """A file, a web address or a bucket; None: there are no anchors."""
    anchor_interval_us: int

    @property
    def auth_required(self) -> bool:
        """Whether every request needs an API key."""
        return self.auth == "required"

    @property
    def uses_simulator(self) -> bool:
        """Whether usage is pushed to the built-in Stripe simulator; then no key is used, whichever is set."""
        if self.simulator == "auto":
            has_key = self.stripe_secret_key is not None or self.stripe_test_secret_key is not None
            return not has_key and is_loopback(self.host)
        return self.simulator == "on"

    @property
    def data_path(self) -> Path:
        """The data directory as a path, relative to the working directory unless absolute."""
        return Path(self.data_dir)

    def __repr__(self) -> str:
        """All fields, secrets masked: a record ends up in tracebacks and test output."""
        fields = (
            f"{setting.field}={MASK if setting.secret and value != setting.absent else repr(value)}"
            for setting in SETTINGS
            for value in (getattr(self, setting.field),)
        )
        return f"Settings({', '.join(fields)})"


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
        "SMTP_URL", "ALERT_FROM", "URL", "API_KEY", "TENANT",
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
            lines.append(f"{shown(name)}: there is no such setting; {hint}")
    return lines


def masked(found: Mapping[str, Source]) -> dict[str, Source]:
    """`found` with every secret that is set replaced by a mask, also one that stands in the wrong place."""
    secret = {setting.name for setting in SETTINGS if setting.secret}
    return {
        name: source._replace(
            text=MASK if name in secret and source.text else SECRET_TEXT.sub(MASK, source.text)
        )
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
            value = "" if setting.secret else f"={shown(text)}"
            lines.append(f"{setting.name}{value}: {error}; allowed: {setting.allowed}")
    if "host" in fields and "auth" in fields:
        loopback = is_loopback(fields["host"])
        if fields["auth"] is None:
            fields["auth"] = "off" if loopback else "required"
        if fields["auth"] == "off" and not loopback:
            lines.append(
                f"STRIPEMETER_AUTH=off: STRIPEMETER_HOST={shown(fields['host'])} can be reached from "
                "other machines; allowed: required, or a loopback host such as 127.0.0.1"
            )
    return fields, lines


assert tuple(setting.field for setting in SETTINGS) == Settings.__struct_fields__
