"""The same wire by httpx, for where a proxy stands before Stripe, and as the other wire's test.

It must not know Stripe, keys, or what a status means.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping

import httpx
import trio

from engine import limits
from engine.drivers.wire import Answer, AnswerLost, NeverLeft, begin_by_us, ensure_in_time

# httpx and httpcore log a line a request at INFO: noise of the push's size.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)


class HttpxWire:
    """Fills `engine.drivers.wire.Wire`."""

    name = "httpx"

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        connections_max: int = limits.STRIPE_CONNECTIONS_MAX,
        connect_seconds: float = limits.STRIPE_CONNECT_SECONDS,
        answer_seconds: float = limits.STRIPE_ANSWER_SECONDS,
        slot_seconds: float = limits.STRIPE_SLOT_SECONDS,
    ) -> None:
        self._whole_seconds = slot_seconds + connect_seconds + answer_seconds
        self._client = httpx.AsyncClient(
            verify=tls or ssl.create_default_context(),
            timeout=httpx.Timeout(
                connect=connect_seconds,
                read=answer_seconds,
                write=answer_seconds,
                pool=slot_seconds,
            ),
            limits=httpx.Limits(
                max_connections=connections_max,
                max_keepalive_connections=connections_max,
                keepalive_expiry=limits.STRIPE_IDLE_SECONDS,
            ),
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )

    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """See the port. Of httpx's errors only these come before the request's first byte."""
        host = httpx.URL(url).host
        try:
            with trio.move_on_after(self._whole_seconds):
                return await self._read_whole(method, url, headers, body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise NeverLeft(f"no connection to {host}: {_cause_of(error)}") from None
        except httpx.ProxyError as error:
            raise NeverLeft(f"the proxy gave no way to {host}: {error}") from None
        except httpx.HTTPError as error:
            raise AnswerLost(f"no whole answer of {host}: {type(error).__name__}") from None
        raise AnswerLost(f"{host} gave no answer within {self._whole_seconds:g} s")

    async def _read_whole(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        chunks: list[bytes] = []
        size_bytes = 0
        more = {} if begin_by_us.get() is None else {"trace": _trace}
        async with self._client.stream(
            method, url, headers=headers, content=body, extensions=more
        ) as answer:
            # Read to the end also when it is too large, keeping nothing: httpx's generators do not bear to be left.
            async for chunk in answer.aiter_bytes():
                size_bytes += len(chunk)
                if size_bytes <= limits.STRIPE_ANSWER_BYTES_MAX:
                    chunks.append(chunk)
        if size_bytes > limits.STRIPE_ANSWER_BYTES_MAX:
            raise AnswerLost(f"the answer is larger than {limits.STRIPE_ANSWER_BYTES_MAX} bytes")
        return Answer(answer.status_code, dict(answer.headers), b"".join(chunks))

    async def aclose(self) -> None:
        """See the port."""
        await self._client.aclose()


async def _trace(name: str, _info: Mapping[str, object]) -> None:
    """What httpx calls at each step of a request."""
    if name.endswith(".send_request_headers.started"):
        ensure_in_time()


def _cause_of(error: BaseException) -> str:
    """The words of the first cause that has any: httpx's own error of a failed handshake is empty."""
    found: BaseException | None = error
    for _ in range(10):
        if found is None or str(found):
            break
        found = found.__cause__ or found.__context__
    return str(found or "") or type(error).__name__
