"""Operating failures and refusals that cross the engine's border. Each says what to do next.

Expected refusals of one event are values (`engine.core.events.Verdict`), not exceptions; bugs are asserts.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base: `str(error)` is for the operator or the client, and says what to do."""


class Unavailable(EngineError):
    """The engine can't take work now (recovering, overloaded, stopping, the disk failed): retry later.

    `retry_after_seconds` is a hint for the client. Nothing of the request may be assumed.
    """

    def __init__(self, message: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class StorageFull(EngineError):
    """The disk is full (507). The same process goes on when there is space."""

    retry_after_seconds = 10


class Conflict(EngineError):
    """The change contradicts the present state (409)."""


class NotFound(EngineError):
    """No such thing, or it is another tenant's (404)."""


class Gone(EngineError):
    """It was there and is no longer kept (410): retention dropped it."""


class Refused(EngineError):
    """The input is wrong (400). `errors` lists (field, message)."""

    def __init__(self, message: str, errors: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.errors = errors


class SettingsError(EngineError):
    """A setting stops the start: one line that names the variable, what is wrong and what is allowed."""


class StartRefused(EngineError):
    """The start is refused for another reason: the directory is in use, the log is damaged or newer."""
