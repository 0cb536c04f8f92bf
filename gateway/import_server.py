"""An import through a running server: rows to ingest, by a few connections that stay open, each with its request.

Rules it keeps: a request that failed is sent again as it was, since keys make that harmless, for a bounded time;
every answer is matched with its rows; a server that says "later" is waited for as long as it says. Blocking HTTP runs
in threads. It must not know files.
"""

from __future__ import annotations

import base64
import http.client
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

import msgspec
import trio

from engine.actors.dry_run import KEYS_MAX
from engine.core.events import KEY_REUSED, EventLimits, Refusal, SentEvent
from engine.core.operations import ERROR_CHARS_MAX, Progress, RowError
from engine.core.sent_rows import Meant, SentRow, taken
from engine.errors import EngineError
from engine.limits import META_BYTES_MAX
from engine.ports import Clock
from gateway.importing import Begun, Outcome, Sending
from gateway.imports import CheckView, ImportView
from gateway.ingest import IngestResponse
from gateway.problems import ProblemBody

HTTP_SECONDS_MAX: Final = 60
ANSWER_BYTES_MAX: Final = 64 << 20
REQUEST_ROWS: Final = 500
REQUEST_BYTES: Final = 700 << 10
"""Below the server's usual bounds of a request."""
CONNECTIONS: Final = 4
RETRY_SECONDS_MAX: Final = 300
_AGAIN: Final = (429, 500, 502, 503, 504, 507)
_KEY, _FINGERPRINT = 5, 6  # columns of engine.core.records.Row
AnswerT = TypeVar("AnswerT")


class Connection:
    """One connection to a server that stays open; used by one thread at a time."""

    def __init__(self, url: str, api_key: str | None) -> None:
        """Raises EngineError when the address is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise EngineError(f"{url!r} is no server: give one like http://127.0.0.1:3000")
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._url = url.rstrip("/")
        self._path = parts.path.rstrip("/")
        self._connection = kind(parts.hostname, parts.port, timeout=HTTP_SECONDS_MAX)
        self._headers = {"content-type": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"

    def post(self, path: str, body: Any, answer: type[AnswerT], **headers: str) -> AnswerT:
        """The answer to a request, sent again while the server says later. Raises EngineError."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        sent = self._headers | {name.replace("_", "-"): value for name, value in headers.items()}
        until = time.monotonic() + RETRY_SECONDS_MAX
        pause = 0.1
        while True:
            status, content, retry_after, trouble = self._once(path, data, sent)
            if trouble is None and status < 300:
                try:
                    return msgspec.json.decode(content, type=answer)
                except msgspec.MsgspecError as error:
                    message = f"{self._url} answers {status}, but not as this server would"
                    raise EngineError(message) from error
            if trouble is None and status not in _AGAIN:
                raise EngineError(_told(self._url, status, content))
            if time.monotonic() > until:
                said = trouble or _told(self._url, status, content)
                raise EngineError(f"{said}; run the import again to go on where it stopped")
            time.sleep(max(pause, retry_after))
            pause = min(2 * pause, 5.0)

    def _once(
        self, path: str, data: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes, float, str | None]:
        try:
            self._connection.request("POST", self._path + path, body=data, headers=headers)
            response = self._connection.getresponse()
            content = response.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return 0, b"", 0.0, f"{self._url} does not answer: {error}"
        after = response.headers.get("retry-after", "")
        return response.status, content, float(after) if after.isdigit() else 0.0, None


def _told(url: str, status: int, content: bytes) -> str:
    try:
        problem = msgspec.json.decode(content, type=ProblemBody)
    except msgspec.MsgspecError:
        return f"{url} answers {status}, but not as this server would"
    hint = " (--api-key, or STRIPEMETER_API_KEY)" if status in (401, 403) else ""
    errors = "; ".join(f"{error.field} {error.message}" for error in problem.errors)
    return f"{problem.detail}{hint}{': ' + errors if errors else ''}"


_NO_META: Final = msgspec.Raw()


def as_sent(event: SentEvent, tenant: str | None) -> dict[str, Any]:
    """The event as ingest takes it."""
    fields: dict[str, Any] = {
        "tenantId": event.tenant_id or tenant,
        "metric": event.metric,
        "customerRef": event.customer_ref,
        "quantity": event.quantity,
        "resourceId": event.resource_id,
        "ts": event.ts,
        "idempotencyKey": event.idempotency_key,
        "source": event.source,
    }
    made = {name: value for name, value in fields.items() if value is not None}
    if event.meta != _NO_META:
        made["meta"] = event.meta
    return made


class _Waited:
    """A chunk whose requests run beside others."""

    def __init__(self) -> None:
        self.outcome = Outcome()
        self.error: EngineError | None = None
        self.done = trio.Event()

    async def settled(self) -> Outcome:
        """See Sending."""
        await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.outcome


class _Requests(ABC):
    """What both kinds of target share: rows cut into requests, sent by a few connections."""

    at_once = CONNECTIONS

    def __init__(
        self, url: str, api_key: str | None, meant: Meant, clock: Clock, nursery: trio.Nursery
    ) -> None:
        self._meant = meant
        self._clock = clock
        self._nursery = nursery
        self._idle = [Connection(url, api_key) for _ in range(CONNECTIONS)]
        self._free = trio.Semaphore(CONNECTIONS)
        self._limits = EventLimits(max(META_BYTES_MAX, REQUEST_BYTES))
        """The server's own bound of meta holds; it says so row by row."""

    async def _ask(self, path: str, body: Any, answer: type[AnswerT], **headers: str) -> AnswerT:
        async with self._free:
            connection = self._idle.pop()
            try:
                call = partial(connection.post, path, body, answer, **headers)
                return await trio.to_thread.run_sync(call)
            finally:
                self._idle.append(connection)

    async def send(self, rows: Sequence[SentRow], *, nul: bool) -> Sending:  # noqa: ARG002 - it looks itself
        """See Target."""
        await trio.lowlevel.checkpoint()
        waited = _Waited()
        self._nursery.start_soon(self._send_all, rows, waited)
        return waited

    async def _send_all(self, rows: Sequence[SentRow], waited: _Waited) -> None:
        outcomes: list[Outcome] = []
        try:
            good, known = self._sorted_out(rows)
            outcomes.append(known)
            for lines, events in _requests_of(good):
                outcomes.append(await self._send_one(lines, events))
        except EngineError as error:
            waited.error = error
        waited.outcome = Outcome(
            sum(one.new for one in outcomes),
            sum(one.late for one in outcomes),
            sum(one.duplicates for one in outcomes),
            sorted((e for one in outcomes for e in one.errors), key=lambda error: error.line),
        )
        waited.done.set()

    def _sorted_out(self, rows: Sequence[SentRow]) -> tuple[list[tuple[int, bytes]], Outcome]:
        """(line, JSON) of the rows to send, and the fate of those that need no server for it."""
        good: list[tuple[int, bytes]] = []
        errors: list[RowError] = []
        duplicates = 0
        now_us = self._clock.now_us()
        for line, event in rows:
            made = taken(event, self._meant, now_us, self._limits)
            if isinstance(made, Refusal):
                errors.append(RowError(line, made.error[:ERROR_CHARS_MAX]))
                continue
            assert not isinstance(event, Refusal), "a refusal is not taken"
            key, fingerprint = cast("tuple[bytes, bytes]", made[1][_KEY : _FINGERPRINT + 1])
            before = self._fingerprint_before(key, fingerprint)
            if before is None:
                good.append((line, msgspec.json.encode(as_sent(event, self._meant.tenant))))
            elif before == fingerprint:
                duplicates += 1
            else:
                errors.append(RowError(line, KEY_REUSED))
        return good, Outcome(duplicates=duplicates, errors=errors)

    def _fingerprint_before(self, key: bytes, fingerprint: bytes) -> bytes | None:  # noqa: ARG002 - a dry run's
        """The fingerprint under which this key came earlier in the files, if that is to be known here."""
        return None

    @abstractmethod
    async def _send_one(self, lines: list[int], events: list[bytes]) -> Outcome:
        """One request and what became of its rows."""


def _requests_of(rows: Sequence[tuple[int, bytes]]) -> list[tuple[list[int], list[bytes]]]:
    """Rows cut into requests, each within the bounds."""
    requests: list[tuple[list[int], list[bytes]]] = []
    size = 0
    for line, data in rows:
        if not requests or len(requests[-1][0]) >= REQUEST_ROWS or size + len(data) > REQUEST_BYTES:
            requests.append(([], []))
            size = 0
        requests[-1][0].append(line)
        requests[-1][1].append(data)
        size += len(data) + 1
    return requests


class ServerTarget(_Requests):
    """A running server takes the rows."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        meant: Meant,
        clock: Clock,
        nursery: trio.Nursery,
        *,
        historic: bool,
    ) -> None:
        super().__init__(url, api_key, meant, clock, nursery)
        self._historic = historic
        self._operation_id = ""

    async def begin(self, identity: str) -> Begun:
        """See Target."""
        body: dict[str, Any] = {"historic": self._historic, "identity": identity}
        if self._meant.tenant is not None:
            body["tenantId"] = self._meant.tenant
        view = await self._ask("/v1/events/imports", body, ImportView)
        self._operation_id = view.operation_id
        cursor = base64.b64decode(view.cursor)
        errors = [RowError(one.line, one.error) for one in view.errors]
        return Begun(view.operation_id, cursor, view.processed_events, view.failed_events, errors)

    async def _send_one(self, lines: list[int], events: list[bytes]) -> Outcome:
        body = b'{"events":[' + b",".join(events) + b"]}"
        answer = await self._ask(
            "/v1/events/ingest", body, IngestResponse, stripemeter_import=self._operation_id
        )
        errors = [RowError(lines[one.index], one.error[:ERROR_CHARS_MAX]) for one in answer.errors]
        late = sum(result.late for result in answer.results)
        return Outcome(answer.accepted, late, answer.duplicates, errors)

    async def note(self, progress: Progress) -> None:
        """See Target."""
        await self._tell("progress", progress)

    async def finish(self, progress: Progress) -> None:
        """See Target."""
        await self._tell("finish", progress)

    async def _tell(self, what: str, progress: Progress) -> None:
        body = {
            "processedEvents": progress.processed,
            "failedEvents": progress.failed,
            "cursor": base64.b64encode(progress.cursor).decode(),
            "errors": [{"line": one.line, "error": one.error} for one in progress.errors],
        }
        path = f"/v1/events/imports/{self._operation_id}/{what}"
        await self._ask(path, body, ImportView)


class ServerDryTarget(_Requests):
    """A running server says what would become of the rows; a key that came earlier in the files is a duplicate."""

    at_once = 1

    def __init__(
        self,
        url: str,
        api_key: str | None,
        meant: Meant,
        clock: Clock,
        nursery: trio.Nursery,
        *,
        historic: bool,
    ) -> None:
        super().__init__(url, api_key, meant, clock, nursery)
        self._historic = historic
        self._seen: dict[bytes, bytes] = {}

    async def begin(self, identity: str) -> Begun:  # noqa: ARG002 - nothing is begun
        """See Target."""
        await trio.lowlevel.checkpoint()
        return Begun("", b"", 0, 0)

    def _fingerprint_before(self, key: bytes, fingerprint: bytes) -> bytes | None:
        before = self._seen.get(key)
        if before is None and len(self._seen) < KEYS_MAX:
            self._seen[key] = fingerprint
        return before

    async def _send_one(self, lines: list[int], events: list[bytes]) -> Outcome:
        head = b'{"historic":%b,' % (b"true" if self._historic else b"false")
        body = head + b'"events":[' + b",".join(events) + b"]}"
        answer = await self._ask("/v1/events/imports/check", body, CheckView)
        fates = Counter(answer.fates)
        errors = [RowError(lines[one.line - 1], one.error) for one in answer.errors]
        new, late = fates["new"] + fates["late"], fates["late"]
        return Outcome(new, late, fates["duplicate"], errors)

    async def note(self, progress: Progress) -> None:
        """See Target."""

    async def finish(self, progress: Progress) -> None:
        """See Target."""
