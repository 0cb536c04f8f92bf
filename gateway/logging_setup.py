"""Logs: named events with fields, one line each, the same for our code, Hypercorn and Quart.

Rules it keeps: what goes out passes one scrubber, so that no secret is in a line whoever wrote it; on a
terminal a line is for eyes, elsewhere it is one JSON object; logs go to stderr, since stdout belongs to a
command's result; where they can't be written the server goes on. It must not know which events there are.

Use: `log = structlog.get_logger()`, then `log.info("recovery_done", events=n, seconds=s)`. A request's id is
bound once, by `request_scope`, and is in every line written under it.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Literal, TextIO

import hypercorn
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from engine.core.times import format_instant
from engine.settings_table import MASK, SECRET_TEXT
from gateway.terminal.colour import is_plain

VALUE_CHARS_MAX: Final = 8192
"""A longer text is cut: a line must not be as large as a request's body."""
NESTING_MAX: Final = 4

_SECRET_FIELD: Final = re.compile(
    r"(?i)(authorization|cookie|password|passwd|pepper|secret|token|api_?key|admin_?key|x-api-key|^key)$"
)
_QUIET_LOGGERS: Final = (
    "hypercorn",
    "hypercorn.error",
    "hypercorn.access",
    "quart.app",
    "quart.serving",
)


def configure(
    level: Literal["debug", "info", "warning", "error"],
    output_format: Literal["auto", "console", "json"],
    stream: TextIO | None = None,
) -> None:
    """Send every log line to `stream` (default stderr) from `level` on; may be called again, and replaces.

    `auto` is `console` when the stream is a terminal, else `json`.
    """
    stream = stream or sys.stderr
    on_terminal = stream.isatty()
    console = is_console(output_format, stream)
    least_level = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(least_level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        # A cached logger would keep the first configuration, also after a second call.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                scrub,
                *_renderers(console=console, colors=on_terminal and not is_plain()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(least_level)
    for name in _QUIET_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


def is_console(output_format: str, stream: TextIO) -> bool:
    """Whether lines to this stream are for eyes."""
    return output_format == "console" or (output_format == "auto" and stream.isatty())


class RequestLines:
    """Lines about requests that worked, many times cheaper than a logger's: their form is fixed.

    The one text in them that a client chooses, the request id, passes the scrubber's pattern; the rest is ours.
    """

    def __init__(
        self, level: str, output_format: str, stream: TextIO | None = None, *, kept_max: int = 1
    ) -> None:
        """Of the same level, format and stream as `configure` was given.

        Lines go out when there are `kept_max` of them, or at `flush`: a write each would cost as much as all the rest.
        """
        self._stream = stream
        self._is_on = logging.getLevelNamesMapping()[level.upper()] <= logging.INFO
        self._format = output_format
        self._kept_max = kept_max
        self._kept: list[str] = []
        self._seen: TextIO | None = None
        self._line = _JSON_REQUEST
        self._second, self._second_text = -1, ""

    def write(
        self,
        *,
        method: str,
        route: str,
        status: int,
        milliseconds: float,
        request_id: str,
        now_us: int,
    ) -> None:
        """One line, if the level asks for it."""
        if not self._is_on:
            return
        stream = self._stream or sys.stderr
        if stream is not self._seen:
            self.flush()
            self._seen = stream
            self._line = _CONSOLE_REQUEST if is_console(self._format, stream) else _JSON_REQUEST
        second, fraction_us = divmod(now_us, 1_000_000)
        if second != self._second:
            self._second, self._second_text = second, format_instant(second * 1_000_000)[:19]
        if request_id.count("_") > 1 or not request_id.startswith("req_"):  # else it is our own
            request_id = SECRET_TEXT.sub(MASK, request_id)
        at = f"{self._second_text}.{fraction_us:06d}Z"
        self._kept.append(self._line % (at, method, milliseconds, request_id, route, status))
        if len(self._kept) >= self._kept_max:
            self.flush()

    def flush(self) -> None:
        """Write what is kept."""
        text = "".join(self._kept)
        self._kept.clear()
        if text and self._seen is not None:
            # A full disk, a reader that has gone: lines are lost, as `logging` loses its own, and nothing else.
            with suppress(OSError):
                self._seen.write(text)


def dropped_line(lines: int, *, console: bool, now_us: int) -> str:
    """What tells that so many lines are missing, where they are missing."""
    at = format_instant(now_us)
    return (_CONSOLE_DROPPED if console else _JSON_DROPPED) % (at, lines)


_CONSOLE_DROPPED: Final = "%s [warning  ] log_lines_dropped  [stripemeter.log] lines=%d\n"
_JSON_DROPPED: Final = (
    '{"timestamp": "%s", "lines": %d, "event": "log_lines_dropped", "level": "warning", '
    '"logger": "stripemeter.log"}\n'
)
_CONSOLE_REQUEST: Final = (
    "%s [info     ] request  [stripemeter.access] "
    "method=%s ms=%.3f request_id=%s route=%s status=%d\n"
)
_JSON_REQUEST: Final = (
    '{"timestamp": "%s", "method": "%s", "ms": %.3f, "request_id": "%s", "route": "%s", "status": %d, '
    '"event": "request", "level": "info", "logger": "stripemeter.access"}\n'
)


def adopt_hypercorn(config: hypercorn.Config) -> None:
    """Make a server of this configuration log through ours; without an access log (metrics count requests)."""
    config.errorlog = logging.getLogger("hypercorn.error")
    config.accesslog = None


@contextmanager
def request_scope(request_id: str, **fields: object) -> Iterator[None]:
    """Every line logged in the block, in this task and what it calls, has `request_id` and `fields`."""
    with structlog.contextvars.bound_contextvars(request_id=request_id, **fields):
        yield


def scrub(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Mask the values of fields that are named like a secret, and what looks like one in any text."""
    return {
        name: MASK if value is not None and _SECRET_FIELD.search(name) else _scrubbed(value, 0)
        for name, value in event.items()
    }


def _scrubbed(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth < NESTING_MAX:
        if isinstance(value, dict):
            return {
                str(key): MASK
                if item is not None and _SECRET_FIELD.search(str(key))
                else _scrubbed(item, depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [_scrubbed(item, depth + 1) for item in value]
    # Bytes, exceptions and whatever else would be rendered by its repr, out of the scrubber's reach.
    text = value if isinstance(value, str) else repr(value)
    if len(text) > VALUE_CHARS_MAX:
        # The middle goes: a message says most at its start, a traceback at its end.
        half = VALUE_CHARS_MAX // 2
        text = f"{text[:half]}... ({len(text)} characters) ...{text[-half:]}"
    return SECRET_TEXT.sub(MASK, text)


def _renderers(*, console: bool, colors: bool) -> list[Processor]:
    if console:
        return [structlog.dev.ConsoleRenderer(colors=colors)]
    return [structlog.processors.JSONRenderer()]
