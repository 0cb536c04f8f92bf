"""A running server asked over HTTP by the command line: one request, its answer or one line that says what to do.

It must not know what is asked.
"""

from __future__ import annotations

import http.client
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from engine.config import Settings
from engine.errors import EngineError
from gateway.problems import ProblemBody

HTTP_SECONDS_MAX: Final = 15
ANSWER_BYTES_MAX: Final = 16 << 20
AnswerT = TypeVar("AnswerT")


def url_of(settings: Settings) -> str:
    """Where the settings say that the server listens."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


class AdminClient:
    """One server and the key to ask it with."""

    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise EngineError(f"{url!r} is no server: give one like http://127.0.0.1:3000")
        self._url = url.rstrip("/")
        self._parts = parts
        self._api_key = api_key

    def ask(
        self,
        method: str,
        path: str,
        answer: type[AnswerT],
        body: dict[str, Any] | None = None,
        *,
        seconds_max: float = HTTP_SECONDS_MAX,
    ) -> AnswerT:
        """The answer of one request. Raises EngineError with what the server says, or that it says nothing."""
        status, content = self._exchange(method, path, body, seconds_max)
        try:
            if status < 300:
                return msgspec.json.decode(content, type=answer)
        except msgspec.MsgspecError as error:
            raise self._odd(status) from error
        raise self._refused(status, content)

    def download(self, path: str, *, seconds_max: float = HTTP_SECONDS_MAX) -> bytes:
        """A file as it is. Raises EngineError with what the server says, or that it says nothing."""
        status, content = self._exchange("GET", path, None, seconds_max)
        if status < 300:
            return content
        raise self._refused(status, content)

    def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None, seconds_max: float
    ) -> tuple[int, bytes]:
        headers = {"accept": "application/json"}
        if body is not None:
            headers["content-type"] = "application/json"
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._api_key}"
        is_tls = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
        host = self._parts.hostname
        assert host is not None
        connection = kind(host, self._parts.port, timeout=seconds_max)
        data = None if body is None else msgspec.json.encode(body)
        try:
            path = f"{self._parts.path.rstrip('/')}{path}"
            connection.request(method, path, body=data, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"{self._url} does not answer: {error}") from error
        finally:
            connection.close()

    def _refused(self, status: int, content: bytes) -> EngineError:
        try:
            return EngineError(_told(msgspec.json.decode(content, type=ProblemBody)))
        except msgspec.MsgspecError:
            return self._odd(status)

    def _odd(self, status: int) -> EngineError:
        return EngineError(f"{self._url} answers {status}, but not as this server would")


def _told(problem: ProblemBody) -> str:
    hint = " (--api-key, or STRIPEMETER_ADMIN_KEY)" if problem.status in (401, 403) else ""
    errors = "; ".join(f"{error.field} {error.message}" for error in problem.errors)
    return f"{problem.detail}{hint}{': ' + errors if errors else ''}"
