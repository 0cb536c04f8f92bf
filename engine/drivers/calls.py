"""Calls of Stripe's API with one key, by stripe-python: names and shapes of requests are the library's, bytes the wire's.

Rules it keeps:
- **The library never holds the key.** It is given a placeholder; the real one is put into the header on the way out, and
  a text that comes back with it is masked before the library sees it. So no error, log line or `repr` of the library
  can show it, not even with STRIPE_LOG=debug.
- An answer that is no success leaves as `NotTaken`, whole: the library's own errors lose the headers of a body that is
  no JSON, give `code=None` for several classes and quote bodies.
- Nothing is retried here. Nothing is written to disk, nothing is sent but the call: telemetry is off.
- Answers are handed on as text, since the library's JSON makes floats of Stripe's decimals.

It must not know what is asked, nor what an answer means for a push.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, NamedTuple

import stripe
import trio

from engine.drivers.wire import Answer, AnswerLost, Wire, WireFailure

# Before any request: else the first one writes an id into the home directory, and each tells about the one before.
stripe.enable_telemetry = False
# Two INFO lines a request, and bodies at DEBUG. What matters is in our outcomes.
logging.getLogger("stripe").setLevel(logging.WARNING)

API_BASE: Final = stripe.DEFAULT_API_BASE
METER_EVENTS_BASE: Final = stripe.DEFAULT_METER_EVENTS_API_BASE
LIBRARY_API_VERSION: Final = stripe.api_version
"""What the installed library speaks: for everything but legacy usage records."""
LEGACY_API_VERSION: Final = "2025-02-24.acacia"
"""The last one with usage records; https://docs.stripe.com/changelog/basil removed them."""

MASK: Final = "[key]"
_KEYS: Final = re.compile(rb"\b(?:sk|rk|pk|ek|whsec)_(?:live_|test_|org_)?[A-Za-z0-9_*]{4,}")
"""Also partly masked ones: Stripe's own errors quote `sk_test_****1234`."""
_SENDABLE_KEY: Final = re.compile(r"[\x21-\x7e]{8,512}")

Base = Literal["api", "meter_events"]


class NotTaken(Exception):
    """Stripe, or something on the way, answered with another status than 2xx."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"HTTP {answer.status}")
        self.answer = answer


class Text(NamedTuple):
    """A successful answer."""

    body: str
    request_id: str | None
    is_replay: bool = False
    """It was kept under the idempotency key."""


class _Headers(dict[str, str]):
    """An answer's headers, found under any case, as the library asks for them; none that repeats the key."""

    def __init__(self, named: Mapping[str, str], secret: str) -> None:
        super().__init__(
            (name.lower(), value) for name, value in named.items() if secret not in value
        )

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


class KeyedClient(stripe.HTTPClient):
    """The library's HTTP client: adds the key, hides it in what comes back."""

    name = "stripemeter"

    def __init__(self, wire: Wire, secret: str) -> None:
        super().__init__()
        self._wire = wire
        self._authorization = f"Bearer {secret}"
        self._secret = secret
        self._secret_bytes = secret.encode("ascii")
        self._last_date = ""
        self._last_date_at = 0.0

    def __repr__(self) -> str:
        return f"KeyedClient({MASK})"

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """What the library calls. Raises NotTaken, NeverLeft, AnswerLost."""
        outgoing = {**headers, "Authorization": self._authorization}
        body = post_data.encode("utf-8") if isinstance(post_data, str) else b""
        answer = await self._wire.exchange(method.upper(), url, outgoing, body)
        named = _Headers(answer.headers, self._secret)
        if date := named.get("date"):
            self._last_date, self._last_date_at = date, trio.current_time()
        if 200 <= answer.status < 300:
            if self._secret_bytes in answer.body:
                raise AnswerLost("a successful answer repeats the key: it is not Stripe's")
            return answer.body, answer.status, named
        masked = _KEYS.sub(MASK.encode(), answer.body.replace(self._secret_bytes, MASK.encode()))
        raise NotTaken(Answer(answer.status, named, masked))

    def stripe_now_s(self) -> float | None:
        """Stripe's clock, from the last answer's `Date` and the time since; None before the first."""
        try:
            date = parsedate_to_datetime(self._last_date)
        except (TypeError, ValueError):
            return None
        return date.timestamp() + (trio.current_time() - self._last_date_at)


class StripeCalls:
    """One key's calls. `api_base` and `meter_events_base` are without a slash at the end."""

    def __init__(
        self,
        secret: str,
        wire: Wire,
        *,
        api_base: str = API_BASE,
        meter_events_base: str = METER_EVENTS_BASE,
    ) -> None:
        """Raises ValueError for a key that no header can carry; the message does not show it."""
        if not _SENDABLE_KEY.fullmatch(secret):
            raise ValueError(
                "a Stripe key is 8 to 512 visible ASCII characters, without white space around it"
            )
        self._http = KeyedClient(wire, secret)
        self._client = stripe.StripeClient(
            MASK,
            http_client=self._http,
            base_addresses={
                "api": api_base.rstrip("/"),
                "meter_events": meter_events_base.rstrip("/"),
            },
            max_network_retries=0,
        )

    def __repr__(self) -> str:
        return f"StripeCalls({MASK})"

    async def call(
        self,
        method: Literal["get", "post", "delete"],
        path: str,
        params: Mapping[str, Any],
        *,
        connect_account: str | None = None,
        api_version: str = LIBRARY_API_VERSION,
        idempotency_key: str | None = None,
        base: Base = "api",
    ) -> Text:
        """A successful answer's text. `params` is one of `stripe.params`' TypedDicts.

        `raw_request_async` and not the method made for the path: that one turns every answer into objects, which is a
        third of a push's processor time, and decimals into floats. The parameters' names and types are the same, and
        the tests hold each call to them (tests/drivers/contract.py).

        Raises NotTaken, NeverLeft, AnswerLost (also for a success whose body is no JSON).
        """
        try:
            answer = await self._client.raw_request_async(
                method,
                path,
                **params,
                base=base,
                stripe_account=connect_account,
                stripe_version=api_version,
                idempotency_key=idempotency_key,
            )
        except stripe.StripeError:
            # All that is left of its errors: a body that can't be read. Its message quotes the body.
            raise AnswerLost("the answer is no JSON") from None
        is_replay = answer.headers.get("idempotent-replayed") == "true"
        return Text(answer.body, answer.request_id, is_replay)

    def stripe_now_s(self) -> float | None:
        """Stripe's clock as of its last answer; None before the first."""
        return self._http.stripe_now_s()


__all__ = ["NotTaken", "StripeCalls", "Text", "WireFailure"]
