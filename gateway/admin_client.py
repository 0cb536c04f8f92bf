"""A running server asked over HTTP by the command line: one request, its answer or one line that says what to do.

It must not know what is asked.
"""

from __future__ import annotations

import http.client
import select
import socket
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec

from engine.config import Settings
from engine.errors import EngineError
from gateway.problems import ProblemBody

HTTP_SECONDS_MAX: Final = 15
ANSWER_BYTES_MAX: Final = 16 << 20
AnswerT = TypeVar("AnswerT")


class ServerSilent(EngineError):
    """No answer came: the server may have done what was asked, or not."""


class ServerProblem(EngineError):
    """A server's refusal. `body` is the problem as it came."""

    def __init__(self, message: str, body: bytes) -> None:
        super().__init__(message)
        self.body = body


class Answered(NamedTuple):
    """A whole answer. Header names are lower case."""

    status: int
    headers: dict[str, str]
    content: bytes


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
        self._connection: http.client.HTTPConnection | None = None
        """Kept between exchanges; None when the next one has to make it."""

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._url

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

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
        data = None if body is None else msgspec.json.encode(body)
        answered = self.exchange(method, path, data, seconds_max=seconds_max)
        if answered.status >= 300:
            raise self.refusal(answered)
        try:
            return msgspec.json.decode(answered.content, type=answer)
        except msgspec.MsgspecError as error:
            raise self._odd(answered.status) from error

    def download(self, path: str, *, seconds_max: float = HTTP_SECONDS_MAX) -> bytes:
        """A file as it is. Raises EngineError with what the server says, or that it says nothing."""
        answered = self.exchange("GET", path, None, seconds_max=seconds_max)
        if answered.status >= 300:
            raise self.refusal(answered)
        return answered.content

    def exchange(
        self,
        method: str,
        path: str,
        data: bytes | None,
        *,
        seconds_max: float = HTTP_SECONDS_MAX,
        keep: bool = False,
    ) -> Answered:
        """One request and its whole answer, whatever its status; `data` is JSON. Raises ServerSilent.

        `keep`: the connection stays open for the next one, until `close`.
        """
        headers = {"accept": "application/json"}
        if data is not None:
            headers["content-type"] = "application/json"
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._api_key}"
        try:
            connection = self._connected(seconds_max)
            connection.request(
                method, f"{self._parts.path.rstrip('/')}{path}", body=data, headers=headers
            )
            response = connection.getresponse()
            # One byte more, so that a longer answer is told from a whole one.
            content = response.read(ANSWER_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ServerSilent(f"{self._url} does not answer: {_words(error)}") from error
        except BaseException:
            self.close()
            raise
        if not keep or response.will_close or len(content) > ANSWER_BYTES_MAX:
            self.close()
        if len(content) > ANSWER_BYTES_MAX:
            size = f"{ANSWER_BYTES_MAX >> 20} MiB"
            raise EngineError(f"{self._url} answers with more than {size}: ask for less")
        found = {name.lower(): text for name, text in response.getheaders()}
        return Answered(response.status, found, content)

    def _connected(self, seconds_max: float) -> http.client.HTTPConnection:
        """The connection, made anew if the server has ended it while it was not used."""
        if self._connection is not None and (
            self._connection.sock is None or _is_readable(self._connection.sock)
        ):
            self.close()
        if self._connection is None:
            is_tls = self._parts.scheme == "https"
            kind = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
            assert self._parts.hostname is not None
            self._connection = kind(self._parts.hostname, self._parts.port, timeout=seconds_max)
        if self._connection.sock is not None:
            self._connection.sock.settimeout(seconds_max)
        return self._connection

    def refusal(self, answered: Answered) -> EngineError:
        """An answer that is no success, as an error that says what the server says."""
        try:
            problem = msgspec.json.decode(answered.content, type=ProblemBody)
        except msgspec.MsgspecError:
            return self._odd(answered.status)
        return ServerProblem(_told(problem), answered.content)

    def _odd(self, status: int) -> EngineError:
        return EngineError(f"{self._url} answers {status}, but not as this server would")


def _is_readable(sock: socket.socket) -> bool:
    """Whether something came on an idle connection: its end, for a server says nothing unasked."""
    return bool(select.select([sock], [], [], 0)[0])


def _words(error: Exception) -> str:
    """What went wrong with a connection, for a person."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _told(problem: ProblemBody) -> str:
    hint = ""
    if problem.status in (401, 403):
        hint = " (--api-key, or STRIPEMETER_ADMIN_KEY, or STRIPEMETER_API_KEY)"
    fields = [f"{error.field} {error.message}" for error in problem.errors]
    # The detail often repeats the first of them.
    errors = "; ".join(one for one in fields if one not in problem.detail)
    return f"{problem.detail}{hint}{': ' + errors if errors else ''}"
