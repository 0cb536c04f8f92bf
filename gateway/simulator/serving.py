"""The simulator on a socket: its own listener, HTTP/1.1 by h11, and the task that sends webhooks.

Rules it keeps: a connection's failure is its own; an answer that a fault loses is lost as a network loses it: the
connection is reset, or nothing ever comes; a webhook that is not answered with 2xx goes out again later. It runs
inside another server's process or alone. It must not know what is served.

Not Hypercorn: it spent three times the processor time on a request (docs/decisions/0008), which the embedded simulator
would take from the meter beside it, and ASGI has no word for resetting a connection.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import h11
import httpx
import structlog
import trio

from gateway.simulator.app import SimulatorApp
from gateway.simulator.journal import SimulatorRefused, open_journal
from gateway.simulator.ledger import Settings, Webhook
from gateway.simulator.state import answer_to_webhook
from gateway.simulator.wire import Refusal, Request, Response, encode

IDLE_SECONDS_MAX: Final = 75.0
SWALLOWED_SECONDS_MAX: Final = 600.0
HEAD_BYTES_MAX: Final = 64 << 10
BODY_BYTES_MAX: Final = 1 << 20
READ_BYTES_MAX: Final = 16 << 20
RECEIVE_BYTES: Final = 64 << 10
WEBHOOK_SECONDS_MAX: Final = 10.0
WEBHOOK_LOOK_SECONDS: Final = 0.25
_RESET: Final = struct.pack("ii", 1, 0)
_TOO_LARGE: Final = Refusal(413, "The request body is too large.")
_logger = structlog.get_logger("stripemeter.simulator")


class Simulator:
    """A simulator that is being served."""

    def __init__(self, app: SimulatorApp, base_url: str) -> None:
        self.app = app
        self.base_url = base_url
        """`http://host:port`, for a Stripe client's base address."""

    @property
    def account(self) -> str:
        """`acct_sim...`."""
        return self.app.state.account

    def ensure(self, *, customers: tuple[str, ...] = (), meters: tuple[str, ...] = ()) -> None:
        """Have these customers and `sum` meters, made where they are missing."""
        body = encode({"customers": customers, "meters": meters})
        self.serve(Request("POST", "/_sim/ensure", body=body))

    def serve(self, request: Request) -> Response:
        """Serve one request from inside the process, kept as those from outside are, though not waited for."""
        call = self.app.state.begin(request)
        if call.is_changed:
            self.app.keep(call.request, call.now_us)
        self.app.state.finish(call)
        return call.response


async def serve_simulator(
    directory: Path,
    host: str,
    port: int,
    settings: Settings,
    *,
    now_us: Callable[[], int],
    fresh_seed: Callable[[], str],
    task_status: trio.TaskStatus[Simulator] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the simulator of a directory until cancelled; port 0 picks a free one.

    Raises SimulatorRefused when the directory or the port can't be had.
    """
    state, journal = open_journal(directory, settings, now_us, fresh_seed)
    try:
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            message = f"the Stripe simulator can't listen on {host}:{port} ({error.strerror or error}): choose another port"
            raise SimulatorRefused(message) from error
        app = SimulatorApp(state, journal)
        number = listeners[0].socket.getsockname()[1]
        named = f"[{host}]" if ":" in host else host
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.committing)
            nursery.start_soon(_send_webhooks, app)
            nursery.start_soon(trio.serve_listeners, partial(_serve_connection, app), listeners)
            task_status.started(Simulator(app, f"http://{named}:{number}"))
    finally:
        journal.close()


class _Gone(Exception):
    """The connection can't go on: the other side has closed it, or never ends."""


async def _serve_connection(app: SimulatorApp, stream: trio.SocketStream) -> None:
    try:
        await _serve_requests(app, stream)
    except (_Gone, h11.RemoteProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    except Exception:  # a defect met by one client must not end the others' simulator
        _logger.exception("connection_failed")
    finally:
        await trio.aclose_forcefully(stream)


async def _serve_requests(app: SimulatorApp, stream: trio.SocketStream) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
    while True:
        head: h11.Event | None = None
        body = None
        with trio.move_on_after(IDLE_SECONDS_MAX) as idle:
            head = await _next_event(connection, stream)
            body = await _read_body(connection, stream)
        if idle.cancelled_caught:
            return
        assert isinstance(head, h11.Request), "a cycle of h11 begins with a request"
        if body is None:
            response = Response(413, {"connection": "close"}, _TOO_LARGE.body())
        else:
            response = await app.answer(_request(head, body))
        if response.lost:
            await _lose(stream, response.lost)
            return
        headers = [*response.headers.items(), ("content-length", str(len(response.body)))]
        begun = connection.send(h11.Response(status_code=response.status, headers=headers))
        sent = b"" if head.method == b"HEAD" else connection.send(h11.Data(data=response.body))
        ended = connection.send(h11.EndOfMessage())
        await stream.send_all((begun or b"") + (sent or b"") + (ended or b""))
        if connection.our_state is not h11.DONE:
            return
        connection.start_next_cycle()


async def _next_event(connection: h11.Connection, stream: trio.SocketStream) -> h11.Event:
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                await stream.send_all(connection.send(go_on) or b"")
            connection.receive_data(await stream.receive_some(RECEIVE_BYTES))
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            raise _Gone
        else:
            assert isinstance(event, h11.Event)
            return event


async def _read_body(connection: h11.Connection, stream: trio.SocketStream) -> bytes | None:
    """The whole body; None when it is longer than any that is taken.

    It is read to its end then too, since an answer to a body that nobody read is lost with the connection.
    """
    body = bytearray()
    length = 0
    while isinstance(event := await _next_event(connection, stream), h11.Data):
        length += len(event.data)
        if length > READ_BYTES_MAX:
            raise _Gone
        if length <= BODY_BYTES_MAX:
            body += event.data
    return bytes(body) if length <= BODY_BYTES_MAX else None


def _request(head: h11.Request, body: bytes) -> Request:
    path, _, query = head.target.decode("latin-1").partition("?")
    headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
    return Request(head.method.decode(), unquote(path), query, headers, body)


async def _lose(stream: trio.SocketStream, how: str) -> None:
    """Let the answer get lost: a reset says so at once, a swallowed one leaves the other side waiting."""
    if how == "reset":
        with suppress(OSError):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        return
    with trio.move_on_after(SWALLOWED_SECONDS_MAX):
        while await stream.receive_some(RECEIVE_BYTES):
            pass


async def _send_webhooks(app: SimulatorApp) -> None:
    async with httpx.AsyncClient(timeout=WEBHOOK_SECONDS_MAX, trust_env=False) as client:
        while True:
            for webhook in app.state.due_webhooks(app.state.now_us()):
                delivered = await _deliver(client, webhook)
                request = answer_to_webhook(webhook.id, delivered=delivered)
                call = app.state.begin(request)
                app.keep(request, call.now_us)
                app.state.finish(call)
            await trio.sleep(WEBHOOK_LOOK_SECONDS)


async def _deliver(client: httpx.AsyncClient, webhook: Webhook) -> bool:
    try:
        answer = await client.post(webhook.url, content=webhook.body, headers=webhook.headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _logger.warning("webhook_failed", webhook=webhook.id, reason=type(error).__name__)
        return False
    if not answer.is_success:
        _logger.warning("webhook_refused", webhook=webhook.id, status=answer.status_code)
    return answer.is_success
