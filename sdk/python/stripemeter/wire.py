"""Requests and answers over HTTP, on httpx's transports: the one place that knows httpx.

Rules it keeps: whatever a transport raises is "no answer", never an exception; an answer has bounds in size and time;
no redirect is followed. httpx's clients are not used, since they log every address (with customers' names in it) at
INFO. It must not know what a request is about.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional, Union
from urllib.parse import urlencode

import httpx

from stripemeter.answers import Answer, NoAnswer
from stripemeter.options import Options

VERSION = "0.1.0"
INGEST_PATH = "/v1/events/ingest"
ANSWER_BYTES_MAX = 16 * 1024 * 1024
_LIMITS = httpx.Limits(max_connections=20)


class Question(NamedTuple):
    """A request that is no ingest: parameters that are None are left out."""

    method: str
    path: str
    parameters: Mapping[str, Optional[str]]
    body: Optional[bytes] = None


class Address:
    """Makes a client's requests."""

    def __init__(self, options: Options) -> None:
        self._start = options.api_url.rstrip("/")
        self._ingest = httpx.URL(self._start + INGEST_PATH)
        self._headers = {
            "accept": "application/json",
            "content-type": "application/json",
            "user-agent": f"stripemeter-python/{VERSION}",
        }
        if options.api_key is not None:
            self._headers["authorization"] = f"Bearer {options.api_key}"

    def ingest(self, body: bytes, seconds_max: float) -> httpx.Request:
        """The request that carries events."""
        return httpx.Request(
            "POST",
            self._ingest,
            headers=self._headers,
            content=body,
            extensions=_timeouts(seconds_max),
        )

    def question(self, question: Question, seconds_max: float) -> httpx.Request:
        """The request that asks."""
        given = {name: text for name, text in question.parameters.items() if text is not None}
        query = f"?{urlencode(given)}" if given else ""
        return httpx.Request(
            question.method,
            self._start + question.path + query,
            headers=self._headers,
            content=question.body,
            extensions=_timeouts(seconds_max),
        )


def _timeouts(seconds_max: float) -> dict[str, Any]:
    return {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), seconds_max)}


def transport(options: Options) -> httpx.HTTPTransport:
    """A pool of connections for threads."""
    return httpx.HTTPTransport(verify=_verifies(options), limits=_LIMITS)


def async_transport(options: Options) -> httpx.AsyncHTTPTransport:
    """A pool of connections for asyncio or trio, whichever runs."""
    return httpx.AsyncHTTPTransport(verify=_verifies(options), limits=_LIMITS)


def _verifies(options: Options) -> bool:
    """Certificates are loaded, which takes a while, only where there is one to check: no redirect leads to https."""
    return not options.api_url.startswith("http://")


def send(
    over: httpx.BaseTransport, request: httpx.Request, seconds_max: float
) -> Union[Answer, NoAnswer]:
    """The answer; NoAnswer when there is none, or not all of it in time. Never raises."""
    until = time.monotonic() + seconds_max
    try:
        response = over.handle_request(request)
        try:
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if trouble := _trouble(body, until):
                    return NoAnswer(trouble)
        finally:
            response.close()
    except Exception as error:  # noqa: BLE001 - an app may pass any transport; an outcome is unknown, whatever it raises
        return no_answer(error)
    return answer_of(response, bytes(body))


async def send_async(
    over: httpx.AsyncBaseTransport, request: httpx.Request, seconds_max: float
) -> Union[Answer, NoAnswer]:
    """As `send`. Cancellation passes."""
    until = time.monotonic() + seconds_max
    try:
        response = await over.handle_async_request(request)
        try:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if trouble := _trouble(body, until):
                    return NoAnswer(trouble)
        finally:
            await response.aclose()
    except Exception as error:  # noqa: BLE001 - as in `send`
        return no_answer(error)
    return answer_of(response, bytes(body))


def _trouble(body: bytearray, until: float) -> str:
    if len(body) > ANSWER_BYTES_MAX:
        return f"the answer is larger than {ANSWER_BYTES_MAX} bytes"
    return "the answer did not end in time" if time.monotonic() > until else ""


def no_answer(error: Exception) -> NoAnswer:
    """The error's kind and words; a transport's words hold addresses at most, never headers."""
    return NoAnswer(f"{type(error).__name__}: {error}"[:300])


def answer_of(response: httpx.Response, body: bytes) -> Answer:
    """A response without its library."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, body)
