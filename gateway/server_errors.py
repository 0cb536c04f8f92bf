"""What can go wrong with asking a server over HTTP. Light: who only shows an error loads no HTTP client.

It must not know how a server is asked.
"""

from __future__ import annotations

from engine.errors import EngineError


class ServerSilent(EngineError):
    """No answer came: the server may have done what was asked, or not."""


class ServerProblem(EngineError):
    """A server's refusal. `body` is the problem as it came."""

    def __init__(self, message: str, body: bytes) -> None:
        super().__init__(message)
        self.body = body
