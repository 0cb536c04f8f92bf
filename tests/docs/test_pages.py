"""What pages say of the code is what the code has: scopes, statuses, limits, names of settings and commands."""

from __future__ import annotations

import re

from click import Context

from engine import limits
from engine.config import SETTINGS
from engine.core.api_keys import SCOPES
from gateway.cli.main import cli
from gateway.table import ROUTES
from tests.docs.test_docs_run import PAGES
from tests.helpers.documents import ROOT

NO_SETTINGS = {"STRIPEMETER_URL", "STRIPEMETER_API_KEY", "STRIPEMETER_TENANT"}
"""Variables of the command line and of examples; the server's settings are engine.config's."""


def page(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_security_page_names_every_scope_that_an_endpoint_needs() -> None:
    text = page("docs/security.md")
    needed = {route.scope for route in ROUTES if route.scope}
    assert len(needed) > 8
    for scope in needed:
        assert f"`{scope}`" in text, scope
    named = set(re.findall(r"`([a-z]+:(?:read|write|\*))`", text))
    assert named <= SCOPES


def test_the_security_page_names_all_that_is_open_to_everybody() -> None:
    text = page("docs/security.md")
    for route in ROUTES:
        if route.scope is None and route.path != "/":
            assert f"`{route.path}`" in text or route.path.startswith(("/health", "/docs/")), (
                route.path
            )


def test_the_ingest_page_explains_every_status_of_ingest() -> None:
    text = page("docs/ingest.md")
    (route,) = [route for route in ROUTES if route.path == "/v1/events/ingest"]
    # 404 and 409 are what any path may answer for a name that is not there; they ask for nothing of a client here.
    for status in set(route.statuses) - {404, 409}:
        assert f"`{status}`" in text, status
    for named in re.findall(r"^\| `(\d{3})`", text, re.MULTILINE):
        assert int(named) in route.statuses, named


def test_the_limits_on_the_ingest_page_are_those_of_the_code() -> None:
    text = page("docs/ingest.md")
    assert f"1 to {limits.METRIC_CHARS_MAX} characters" in text
    assert f"1 to {limits.NAME_CHARS_MAX} characters" in text
    assert f"at most {limits.META_BYTES_MAX:,} bytes" in text
    assert f"Up to {limits.BATCH_EVENTS_MAX:,} events" in text
    assert f"at most {limits.FRACTION_DIGITS_MAX} decimals" in text
    sizing = page("docs/sizing.md")
    assert f"{limits.QUEUE_EVENTS_MAX:,} events and {limits.QUEUE_BYTES_MAX >> 20} MiB" in sizing


def test_no_page_names_a_setting_or_a_command_that_is_not_there() -> None:
    settings = {one.name for one in SETTINGS}
    commands = set(cli.list_commands(Context(cli)))
    assert len(settings) > 30
    assert len(commands) > 20
    for name in PAGES:
        text = page(name)
        for setting in re.findall(r"\bSTRIPE(?:METER)?_[A-Z_]*[A-Z]\b", text):
            assert setting in settings | NO_SETTINGS, f"{name}: {setting}"
        for command in re.findall(r"`stripemeter ([a-z][a-z-]+)", text):
            assert command in commands, f"{name}: stripemeter {command}"
