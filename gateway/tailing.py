"""Follows a server's log: every event that matches, once and in log order, as it is accepted.

Rules it keeps: the position goes on only after a whole answer was handed over, so an answer that is cut off, a restart
or a lost connection neither skips an event nor gives one twice; a log that is another one (a restore from a backup) is
said and followed from its end, since its positions mean something else. It must not know how an event is shown, nor read
a clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final
from urllib.parse import urlencode

from engine.errors import EngineError
from gateway.admin_client import AdminClient, Answered
from gateway.server_errors import ServerSilent

PATH: Final = "/v1/events"
POLL_SECONDS: Final = 0.5
AWAY_SECONDS_MAX: Final = 600.0
"""A server that does not answer for so long is not waited for any longer."""
WAIT_SECONDS_MAX: Final = 5.0
END_OF_LOG: Final = 10**18 - 1
"""A position after every other: what follows it is nothing, and the answer names the end."""
_RETRIED: Final = frozenset((408, 425, 429))


class Tail:
    """One follower. `position`: everything that matches up to it was given."""

    def __init__(
        self,
        client: AdminClient,
        query: Mapping[str, str],
        position: int | str | None,
        *,
        monotonic: Callable[[], float],
        wait: Callable[[float], None],
        tell: Callable[[str], None],
    ) -> None:
        """`query` filters; `position`: begin after it; a text: after that time; None: at the end of the log; `tell` is told what a person should know."""
        self._client = client
        self._query = dict(query)
        self.position: int | str = END_OF_LOG if position is None else position
        self._log: str | None = None
        self._dropped: str | None = None
        """Before which time events may be missing, as was told."""
        self._monotonic = monotonic
        self._wait = wait
        self._tell = tell

    def follow(self) -> Iterator[list[bytes]]:
        """The lines of events, a piece at a time, perhaps empty; for ever.

        A piece counts as given when the next one is asked for. Raises EngineError when the server refuses, is not there
        at the start, or stays away.
        """
        while True:
            lines, position, is_all = self._piece()
            yield lines
            self.position = position
            if is_all:
                self._wait(POLL_SECONDS)

    def _piece(self) -> tuple[list[bytes], int, bool]:
        """(lines, the position up to which they are all, whether that is the log's end)."""
        answered = self._answer()
        try:
            position = int(answered.headers["x-stripemeter-position"])
            end = int(answered.headers["x-stripemeter-end"])
            log = answered.headers["x-stripemeter-log"]
        except (KeyError, ValueError) as error:
            message = (
                f"{self._client.url} is an older server, or none of this kind: it can't be followed"
            )
            raise EngineError(message) from error
        if self._log not in (None, log):
            self._log = log
            self._tell("the server has another log now, as after a restore: going on from its end")
            return [], end, True
        first = self.position
        if self._log is None and isinstance(first, int) and END_OF_LOG > first > end:
            raise EngineError(f"the log ends at position {end}: there is no {first} in it")
        self._log = log
        dropped = answered.headers.get("x-stripemeter-dropped-before")
        if dropped not in (None, self._dropped):
            self._tell(f"retention has dropped events before {dropped}: they are not among these")
            self._dropped = dropped
        return answered.content.splitlines(), position, position >= end

    def _answer(self) -> Answered:
        """The next piece, waited for while the server is away. Raises EngineError."""
        path = f"{PATH}?{urlencode({**self._query, 'format': 'jsonl', 'after': self.position})}"
        away_since: float | None = None
        delay = POLL_SECONDS
        while True:
            error: EngineError
            try:
                answered = self._client.exchange("GET", path, None, keep=True)
            except ServerSilent as silent:
                error = silent
            else:
                if answered.status == 200:
                    if away_since is not None:
                        self._tell("the server is back")
                    return answered
                error = self._client.refusal(answered)
                if answered.status < 500 and answered.status not in _RETRIED:
                    raise error
            if self._log is None:
                raise error
            now = self._monotonic()
            if away_since is None:
                away_since = now
                self._tell(f"waiting for the server: {error}")
            if now - away_since > AWAY_SECONDS_MAX:
                message = f"{error}; go on later with --after {self.position}"
                raise EngineError(message) from error
            self._wait(delay)
            delay = min(2 * delay, WAIT_SECONDS_MAX)
