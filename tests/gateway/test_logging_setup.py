"""The logs: one line per event, JSON or for eyes, from every library, and never a secret."""

from __future__ import annotations

import io
import json
import logging
import os
import queue
import sys
from collections.abc import Iterator
from typing import Any

import hypercorn
import hypercorn.logging
import pytest
import structlog
import trio
from quart_trio import QuartTrio

from engine.settings_table import MASK
from gateway import main as composition
from gateway.logging_setup import (
    VALUE_CHARS_MAX,
    RequestLines,
    adopt_hypercorn,
    configure,
    request_scope,
)

SECRETS = [
    "sm_live_abcdefgh12345678",
    "sk_live_abcdefgh12345678",
    "rk_test_abcdefgh12345678",
    "whsec_abcdefgh12345678",
    "Bearer abc.def-ghi",
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_elsewhere_than_on_a_terminal_each_event_is_one_json_object() -> None:
    stream = io.StringIO()
    configure("info", "auto", stream)
    structlog.get_logger("engine").info("recovery_done", events=3, seconds=0.25, text="a\nb")
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "recovery_done",
        "events": 3,
        "seconds": 0.25,
        "text": "a\nb",
        "level": "info",
        "logger": "engine",
    }


def test_on_a_terminal_a_line_is_for_eyes() -> None:
    stream = Terminal()
    configure("info", "auto", stream)
    structlog.get_logger().warning("disk_low", free_bytes=7)
    text = stream.getvalue()
    assert "disk_low" in text
    assert not text.startswith("{")
    other = Terminal()
    configure("info", "json", other)
    structlog.get_logger().info("started")
    assert lines(other)[0]["event"] == "started"
    assert stream.getvalue() == text, "a second call replaces the first"


def test_console_without_a_terminal_has_no_escape_codes() -> None:
    stream = io.StringIO()
    configure("info", "console", stream)
    structlog.get_logger().info("started", port=3000)
    assert "started" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_below_the_level_nothing_is_written() -> None:
    stream = io.StringIO()
    configure("warning", "json", stream)
    structlog.get_logger().info("no")
    logging.getLogger("any.library").info("no")
    structlog.get_logger().warning("yes")
    logging.getLogger("any.library").warning("yes too: %d", 1)
    assert [line["event"] for line in lines(stream)] == ["yes", "yes too: 1"]


async def test_hypercorn_and_quart_write_the_same_lines() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    config = hypercorn.Config()
    adopt_hypercorn(config)
    logger = hypercorn.logging.Logger(config)
    await logger.info("Running on %s", "http://127.0.0.1:3000")
    assert logger.access_logger is None
    app = QuartTrio("quart.app")
    app.logger.error("boom")
    with trio.fail_after(1):
        events = [(line["logger"], line["level"], line["event"]) for line in lines(stream)]
    assert events == [
        ("hypercorn.error", "info", "Running on http://127.0.0.1:3000"),
        ("quart.app", "error", "boom"),
    ]


async def test_a_request_id_is_in_every_line_of_its_task_and_in_no_other() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    log = structlog.get_logger()

    async def request(request_id: str) -> None:
        with request_scope(request_id, route="/v1/events"):
            await trio.sleep(0)
            log.info("inside")
            logging.getLogger("library").warning("inside too")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request, "one")
        nursery.start_soon(request, "two")
    log.info("outside")
    found = lines(stream)
    ids = [(line["event"], line.get("request_id")) for line in found]
    assert sorted(ids[:-1]) == [
        ("inside", "one"),
        ("inside", "two"),
        ("inside too", "one"),
        ("inside too", "two"),
    ]
    assert ids[-1] == ("outside", None)
    assert found[0]["route"] == "/v1/events"


@pytest.mark.parametrize("output_format", ["json", "console"])
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_in_no_line_whoever_writes_it(secret: str, output_format: Any) -> None:
    stream = io.StringIO()
    configure("debug", output_format, stream)
    log = structlog.get_logger()
    log.info("key " + secret + " refused")  # noqa: G003 - as a careless caller would
    log.info("nested", data={"list": [{"deep": secret}], "bytes": secret.encode()}, thing={secret})
    log.info("deeper", data=[[[[[[[secret]]]]]]], error=ValueError(secret))
    logging.getLogger("library").warning("refused %s", secret)
    logging.getLogger("library").warning("extra", extra={"field": secret})
    try:
        raise ValueError(f"bad key {secret}")
    except ValueError:
        log.exception("failed")
        logging.getLogger("library").exception("failed too")
    text = stream.getvalue()
    assert secret not in text
    assert secret.rsplit(maxsplit=1)[-1] not in text
    assert text.count(MASK) >= 9
    assert "bad key" in text, "the rest of a message stays"


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "Cookie",
        "api_key",
        "apiKey",
        "admin_key",
        "pepper",
        "webhook_secret",
        "key",
    ],
)
def test_a_field_named_like_a_secret_is_masked_whatever_it_holds(name: str) -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    structlog.get_logger().info("x", **{name: "plain", "inner": {name: "plain"}, "empty": None})
    (line,) = lines(stream)
    assert line[name] == MASK
    assert line["inner"] == {name: MASK}
    assert "plain" not in stream.getvalue()


def test_names_that_only_look_alike_are_shown() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    structlog.get_logger().info("x", idempotency_key="k1", keys=3, tokens=4)
    (line,) = lines(stream)
    assert (line["idempotency_key"], line["keys"], line["tokens"]) == ("k1", 3, 4)


def test_a_password_in_a_url_is_masked() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    structlog.get_logger().info("x", url="smtp://user:hunter2@mail.example:25/")
    assert lines(stream)[0]["url"] == f"smtp://{MASK}@mail.example:25/"


def test_a_long_text_loses_its_middle() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    structlog.get_logger().info("x", text="a" + "-" * 1_000_000 + "z")
    text = lines(stream)[0]["text"]
    assert len(text) < VALUE_CHARS_MAX + 100
    assert (text[0], text[-1]) == ("a", "z")


class Gone(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError


def test_the_hard_exit_after_the_grace_period_does_not_hang_on_who_reads_the_complaint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setattr(os, "_exit", ended.put)
    composition._exit_hard_after(0.01)
    assert ended.get(timeout=5) == composition.EXIT_STOPPED


def test_lines_without_a_stream_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    kept = RequestLines("info", "json", kept_max=2)
    for _ in range(5):
        kept.write(
            method="GET", route="/x", status=200, milliseconds=1, request_id="req_1", now_us=0
        )
    assert len(kept._kept) < 2
