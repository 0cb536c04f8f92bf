"""Middleware, decorator and token helpers: what they meter, and that they never break what they meter."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import anyio
import pytest

from stripemeter import AsyncStripeMeterClient, Failure, StripeMeterClient, asgi, metered, wsgi
from stripemeter.llm import token_events, tokens_of, track_tokens, track_tokens_async
from tests.sdk.fake_meter import FakeMeter

URL = "http://meter.invalid"
HELD: dict[str, Any] = {"flush_interval_seconds": 3600.0, "retry_seconds_first": 0.001}


def buffered(meter: FakeMeter, **options: Any) -> StripeMeterClient:
    return StripeMeterClient(URL, "acme", transport=meter, **{**HELD, **options})


def metered_events(meter: FakeMeter) -> list[tuple[str, str, str]]:
    return [(event["metric"], event["customerRef"], event["quantity"]) for event in meter.events]


async def asgi_app(scope: Any, _receive: Any, send: Any) -> None:
    """Answers the status that the path names; 999 raises."""
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.startup.complete"})
        return
    status = int(scope["path"].strip("/"))
    if status == 999:
        message = "the app's own error"
        raise LookupError(message)
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def customer_of(scope: Any) -> str | None:
    found = dict(scope["headers"]).get(b"x-customer")
    return None if found is None else found.decode()


async def ask(app: Any, path: str, customer: str | None = "cora") -> list[Any]:
    sent: list[Any] = []
    headers = [] if customer is None else [(b"x-customer", customer.encode())]

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "path": path, "headers": headers}, None, send)
    return sent


async def test_asgi_middleware_meters_answered_requests_and_leaves_the_answer_alone() -> None:
    meter = FakeMeter()
    with buffered(meter) as client:
        app = asgi.MeterMiddleware(asgi_app, client, customer=customer_of)
        sent = await ask(app, "/200")
        assert [message["type"] for message in sent] == [
            "http.response.start",
            "http.response.body",
        ]
        await ask(app, "/404", "bert")
        await ask(app, "/503")
        await ask(app, "/200", None)
        with pytest.raises(LookupError):
            await ask(app, "/999")
    assert metered_events(meter) == [("requests", "cora", "1"), ("requests", "bert", "1")]


async def test_asgi_middleware_passes_other_scopes_through() -> None:
    meter = FakeMeter()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    with buffered(meter, customer_id="me") as client:
        await asgi.MeterMiddleware(asgi_app, client)({"type": "lifespan"}, None, send)  # type: ignore[arg-type]
        await ask(asgi.MeterMiddleware(asgi_app, client, metric="hits"), "/200")
    assert sent == [{"type": "lifespan.startup.complete"}]
    assert metered_events(meter) == [("hits", "me", "1")]


async def test_asgi_middleware_takes_a_quantity_and_may_meter_before_the_app() -> None:
    meter = FakeMeter()

    def quantity(scope: Any, status: int) -> str | None:
        return None if scope["path"] == "/201" else f"{status}.5"

    with buffered(meter) as client:
        app = asgi.MeterMiddleware(asgi_app, client, customer=customer_of, quantity=quantity)
        await ask(app, "/200")
        await ask(app, "/201")
        early = asgi.MeterMiddleware(asgi_app, client, customer=customer_of, when="request")
        with pytest.raises(LookupError):
            await ask(early, "/999")
        with pytest.raises(ValueError, match="when"):
            asgi.MeterMiddleware(asgi_app, client, when="later")
    assert metered_events(meter) == [("requests", "cora", "200.5"), ("requests", "cora", "1")]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_asgi_middleware_works_with_every_client_on_every_loop(backend: str) -> None:
    meter = FakeMeter()

    async def main() -> None:
        async with AsyncStripeMeterClient(URL, "acme", transport=meter, **HELD) as tasks:
            await ask(asgi.MeterMiddleware(asgi_app, tasks, customer=customer_of), "/200")
        for options in ({"mode": "direct"}, {"backpressure": "block"}):
            with buffered(meter, **options) as client:
                await ask(asgi.MeterMiddleware(asgi_app, client, customer=customer_of), "/200")

    anyio.run(main, backend=backend)
    assert meter.total == 3


async def test_a_customer_function_that_raises_is_told_and_the_request_goes_on() -> None:
    told: list[Failure] = []

    def broken(scope: Any) -> str:
        raise KeyError(scope["path"])

    meter = FakeMeter(400)
    with buffered(meter, on_error=told.append) as client:
        sent = await ask(asgi.MeterMiddleware(asgi_app, client, customer=broken), "/200")
    with buffered(meter, on_error=told.append, mode="direct") as direct:
        app = asgi.MeterMiddleware(asgi_app, direct, customer=customer_of)
        sent += await ask(app, "/200")
        sent += await ask(
            asgi.MeterMiddleware(asgi_app, direct, customer=lambda _: "x" * 999), "/200"
        )
    assert len(sent) == 6
    assert [failure.kind for failure in told] == ["invalid", "rejected", "invalid"]


def wsgi_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response(environ["PATH_INFO"].strip("/") + " Said", [("Content-Type", "text/plain")])
    return [b"hello"]


def call(app: Any, path: str) -> bytes:
    environ: dict[str, Any] = {"PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": ""}
    environ["HTTP_X_CUSTOMER"] = "cora"
    setup_testing_defaults(environ)
    body = validator(app)(environ, lambda *_: lambda _: None)  # type: ignore[arg-type, return-value]
    try:
        return b"".join(body)
    finally:
        body.close()  # type: ignore[attr-defined]


def test_wsgi_middleware_meters_a_request_once_its_body_is_done() -> None:
    meter = FakeMeter()
    with buffered(meter) as client:
        app = wsgi.MeterMiddleware(
            wsgi_app, client, customer=lambda environ: environ["HTTP_X_CUSTOMER"]
        )
        assert call(app, "/200") == b"hello"
        assert call(app, "/500") == b"hello"
        early = wsgi.MeterMiddleware(
            wsgi_app, client, "early", lambda _: "bert", lambda _, status: status, when="request"
        )
        assert call(early, "/500") == b"hello"
        with pytest.raises(ValueError, match="when"):
            wsgi.MeterMiddleware(wsgi_app, client, when="later")
    assert metered_events(meter) == [("requests", "cora", "1"), ("early", "bert", "0")]


async def test_the_decorator_meters_calls_that_return() -> None:
    meter = FakeMeter()
    with buffered(meter, customer_id="me") as client:

        @metered(client, "calls", customer=lambda name, **_: name, quantity=len)
        def work(name: str, *, fail: bool = False) -> str:
            if fail:
                raise LookupError(name)
            return name * 2

        @metered(client, "jobs")
        async def job() -> int:
            return 7

        assert work("cora") == "coracora"
        assert work.__name__ == "work"
        with pytest.raises(LookupError):
            work("cora", fail=True)
        assert await job() == 7
    assert metered_events(meter) == [("calls", "cora", "8"), ("jobs", "me", "1")]


async def test_the_decorator_works_with_an_async_client_and_refuses_what_can_not_wait() -> None:
    meter = FakeMeter()
    async with AsyncStripeMeterClient(URL, "acme", transport=meter, **HELD) as client:

        @metered(client, "jobs", customer="cora")
        async def job() -> int:
            return 7

        assert await job() == 7
        with pytest.raises(TypeError, match="StripeMeterClient"):
            metered(client, "calls")(len)
    assert metered_events(meter) == [("jobs", "cora", "1")]


OPENAI_CHAT = {
    "model": "m",
    "usage": {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 60},
        "completion_tokens_details": {"reasoning_tokens": 5},
    },
}
OPENAI_RESPONSES = SimpleNamespace(
    model="m",
    usage=SimpleNamespace(
        input_tokens=100,
        output_tokens=20,
        input_tokens_details=SimpleNamespace(cached_tokens=60),
    ),
)
ANTHROPIC = SimpleNamespace(
    model="m",
    usage=SimpleNamespace(
        input_tokens=40,
        output_tokens=20,
        cache_read_input_tokens=60,
        cache_creation_input_tokens=None,
    ),
)


@pytest.mark.parametrize("response", [OPENAI_CHAT, OPENAI_RESPONSES, ANTHROPIC])
def test_each_token_counts_in_one_metric_whoever_the_provider_is(response: Any) -> None:
    assert tokens_of(response) == {
        "llm_input_tokens": 40,
        "llm_cached_tokens": 60,
        "llm_output_tokens": 20,
    }


def test_tokens_written_to_a_cache_are_apart_and_usage_alone_is_enough() -> None:
    usage = {"input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 3}
    assert tokens_of(usage) == {
        "llm_input_tokens": 1,
        "llm_cache_write_tokens": 3,
        "llm_output_tokens": 2,
    }
    assert tokens_of({"prompt_tokens": 5}) == {"llm_input_tokens": 5}
    for unknown in ({}, {"usage": None}, 7, {"input_tokens": True}):
        with pytest.raises(ValueError, match="usage"):
            tokens_of(unknown)


async def test_tokens_are_tracked_with_their_model_and_a_key_of_the_response() -> None:
    meter = FakeMeter()
    with buffered(meter) as client:
        track_tokens(client, "cora", OPENAI_CHAT, idempotency_key="r1")
    async with AsyncStripeMeterClient(URL, "acme", transport=meter, **HELD) as tasks:
        await track_tokens_async(tasks, "cora", OPENAI_CHAT, idempotency_key="r1")
        await track_tokens_async(tasks, "bert", {"prompt_tokens": 5}, model="x", meta={"n": 1})
    assert meter.total == 125
    assert meter.events[0]["meta"] == {"model": "m"}
    assert meter.events[0]["idempotencyKey"] == "r1:llm_input_tokens"
    assert meter.events[-1]["meta"] == {"n": 1, "model": "x"}
    assert token_events("cora", {"prompt_tokens": 5})[0]["meta"] is None


async def test_metering_that_is_set_up_wrong_fails_no_request() -> None:
    """A buffered async client whose `async with` was forgotten: told, and the app answers."""
    told: list[Failure] = []
    sdk = AsyncStripeMeterClient(URL, "acme", "cora", transport=FakeMeter(), on_error=told.append)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    for when in ("response", "request"):
        middleware = asgi.MeterMiddleware(app, sdk, when=when)
        await middleware({"type": "http"}, None, send)  # type: ignore[arg-type]
    assert len(sent) == 2
    assert [failure.kind for failure in told] == ["internal", "internal"]
    assert "async with" in told[0].detail
    await sdk.close()
