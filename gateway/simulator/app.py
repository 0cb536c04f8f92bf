"""The simulator's desk: a request in, an answer out, with the journal in between.

Rules it keeps: what a request changed is on disk before its answer leaves, many in one sync; nobody reads what is not
on disk yet; who is under way stays so until the answer may leave. API keys are asked for, never kept or shown. It must
not know Stripe's rules, those are the state's, nor sockets.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import structlog
import trio

from gateway.simulator import page
from gateway.simulator.journal import Journal, line_of
from gateway.simulator.state import StripeState
from gateway.simulator.wire import Refusal, Request, Response

RETRY_SECONDS: Final = 0.25
_logger = structlog.get_logger("stripemeter.simulator")
_FULL: Final = Refusal(503, "The simulator's disk is full: free some space.", type="api_error")
_NO_KEY: Final = Refusal(
    401,
    "You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY'). The simulator takes any key.",
)
_FOREIGN: Final = Refusal(403, "Pages of other origins can't use the simulator.")
_PAGE_HEADERS: Final = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "cache-control": "no-store",
}


class SimulatorApp:
    """Answers requests over one state and its journal."""

    def __init__(self, state: StripeState, journal: Journal) -> None:
        self.state = state
        self._journal = journal
        self._is_dirty = trio.Event()
        self._durable = trio.Event()
        """Set when all that was appended so far is on disk; replaced by each change after a sync began."""
        self._durable.set()

    async def answer(self, request: Request) -> Response:
        """Serve one request; `lost` of the answer is the connection's to carry out."""
        refused = _refused_before(request)
        if refused is not None:
            return Response(refused.status, {"content-type": "application/json"}, refused.body())
        if self._journal.is_behind:
            return Response(_FULL.status, {"content-type": "application/json"}, _FULL.body())
        is_page = request.path == "/"
        call = self.state.begin(request._replace(path="/_sim/state") if is_page else request)
        response = call.response
        try:
            if call.is_changed:
                self.keep(call.request, call.now_us)
            # Also when it only read: an answer must not show what a kill could still undo.
            if not self._durable.is_set():
                await self._durable.wait()
            if response.delay_seconds:
                await trio.sleep(response.delay_seconds)
        finally:
            self.state.finish(call)
        if is_page and response.status == 200:
            return Response(200, _PAGE_HEADERS, page.render(response.json()))
        return response

    def keep(self, request: Request, now_us: int) -> None:
        """Append a request to the journal; `committing` puts it on disk."""
        self._journal.append(line_of(request, now_us))
        if self._durable.is_set():
            self._durable = trio.Event()
        self._is_dirty.set()

    async def committing(self) -> None:
        """Put what was appended on disk, again and again; runs as long as the application."""
        while True:
            await self._is_dirty.wait()
            self._is_dirty = trio.Event()
            # Who comes while this sync runs may have been written too late for it, and waits for the next.
            waiting, self._durable = self._durable, trio.Event()
            while (error := await self._put_on_disk()) is not None:
                _logger.warning("journal_waits_for_the_disk", reason=error)
                await trio.sleep(RETRY_SECONDS)
            waiting.set()
            if not self._is_dirty.is_set():
                self._durable.set()
                if self._journal.is_long:
                    self._compact()

    def _compact(self) -> None:
        try:
            self._journal.compact(self.state)
        except OSError as error:
            # A start that takes longer is all it costs.
            _logger.warning("journal_not_compacted", reason=error.strerror)

    async def _put_on_disk(self) -> str | None:
        """None, or why it can't be done now. Whose answers wait for it go on waiting; nobody else is ended by it."""
        try:
            self._journal.write()
            await trio.to_thread.run_sync(self._journal.sync)
        except OSError as error:
            return str(error.strerror)
        return None


def _refused_before(request: Request) -> Refusal | None:
    """What is refused without a look at the state."""
    origin = request.headers.get("origin")
    if origin and urlsplit(origin).netloc != request.headers.get("host"):
        return _FOREIGN
    is_open = request.path.startswith("/_sim/") or (request.path, request.method) == ("/", "GET")
    if "authorization" not in request.headers and not is_open:
        return _NO_KEY
    return None
