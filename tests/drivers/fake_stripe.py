"""A server that answers as a test says, byte by byte: what the drivers meet when Stripe or the network fails.

It is no Stripe: it knows no rules, only what came and what is to be answered. The simulator is for the rest.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import trio

KEY = "sk_test_51FakeFakeFakeFakeSecretKey0042"
"""In no answer, message, log or repr: tests look for it, and for its parts."""


class Call(NamedTuple):
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        """A v1 body."""
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True))


class Reply(NamedTuple):
    """What goes back. `cut`: so many bytes of it and then the end; `ends` closes after it."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = {}
    cut: int | None = None
    ends: bool = False
    raw: bytes | None = None


class Silence(NamedTuple):
    """No answer: the connection stays open, or ends at once."""

    ends: bool = False


Answering = Callable[[Call], Reply | Silence]


def json_reply(value: Any, status: int = 200, **headers: str) -> Reply:
    """A JSON answer; header names with `_` for `-`."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(status, json.dumps(value).encode(), {"content-type": "application/json", **named})


def error_reply(
    status: int,
    message: str = "",
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    **headers: str,
) -> Reply:
    """Stripe's error object."""
    error: dict[str, Any] = {"type": kind, "message": message}
    if code:
        error["code"] = code
    return json_reply({"error": error}, status, Request_Id="req_1", **headers)


def meter_event_reply(call: Call) -> Reply:
    """The receipt of a v1 meter event."""
    form = call.form
    return json_reply(
        {
            "object": "billing.meter_event",
            "identifier": form.get("identifier"),
            "event_name": form.get("event_name"),
            "created": 1_700_000_000,
            "timestamp": int(form.get("timestamp", "0")),
            "livemode": False,
            "payload": {
                name[8:-1]: value for name, value in form.items() if name.startswith("payload[")
            },
        },
        Request_Id="req_1",
    )


@dataclass
class FakeStripe:
    """What it was asked, and how it answers next."""

    answering: Answering
    url: str = ""
    calls: list[Call] = field(default_factory=list)
    connections: int = 0
    gate: trio.Event | None = None
    """What all answers wait for."""
    answered: int = 0

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection."""
        self.connections += 1
        received = b""
        try:
            async with stream:
                while True:
                    while (end := _request_end(received)) is None:
                        data = await stream.receive_some(65_536)
                        if not data:
                            return
                        received += data
                    call, received = _parse(received[:end]), received[end:]
                    self.calls.append(call)
                    reply = self.answering(call)
                    if self.gate is not None:
                        await self.gate.wait()
                    goes_on = await _answer(stream, reply)
                    self.answered += 1
                    if not goes_on:
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


async def _answer(stream: trio.abc.Stream, reply: Reply | Silence) -> bool:
    """Send it; whether the connection goes on."""
    if isinstance(reply, Silence):
        if not reply.ends:
            await trio.sleep_forever()
        return False
    data = reply.raw
    if data is None:
        fields = {"Content-Length": str(len(reply.body)), **reply.headers}
        lines = [
            f"HTTP/1.1 {reply.status} X",
            *(f"{name}: {text}" for name, text in fields.items()),
        ]
        data = "\r\n".join([*lines, "", ""]).encode() + reply.body
    await stream.send_all(data if reply.cut is None else data[: reply.cut])
    return not reply.ends and reply.cut is None


def _request_end(received: bytes) -> int | None:
    head, mark, _ = received.partition(b"\r\n\r\n")
    if not mark:
        return None
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, text = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(text)
    end = len(head) + 4 + length
    return end if len(received) >= end else None


def _parse(data: bytes) -> Call:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, target, _ = first.split(" ")
    parts = urlsplit(target)
    headers = {}
    for line in lines:
        name, _, text = line.partition(":")
        headers[name.lower()] = text.strip()
    return Call(method, parts.path, dict(parse_qsl(parts.query)), headers, body)


@asynccontextmanager
async def fake_stripe(
    answering: Answering, tls: ssl.SSLContext | None = None
) -> AsyncIterator[FakeStripe]:
    """A fake on a free port of 127.0.0.1."""
    fake = FakeStripe(answering)

    async def serve(stream: trio.SocketStream) -> None:
        if tls is None:
            await fake.serve(stream)
            return
        try:
            await fake.serve(trio.SSLStream(stream, tls, server_side=True, https_compatible=True))
        except trio.BrokenResourceError:
            return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: trio.serve_tcp(serve, 0, host="127.0.0.1", task_status=task_status)
        )
        port = listeners[0].socket.getsockname()[1]
        scheme = "https" if tls else "http"
        fake.url = f"{scheme}://127.0.0.1:{port}"
        yield fake
        nursery.cancel_scope.cancel()
