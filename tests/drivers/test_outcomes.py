"""What each answer of Stripe's, and each failure of the network, means for a push: over both wires, to the last word."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from engine.core.billing import (
    AlreadyDelivered,
    Delivered,
    Outcome,
    PushRequest,
    Refused,
    RetryLater,
    Unknown,
)
from engine.drivers.billing import StripeBilling
from engine.drivers.h11_wire import H11Wire
from engine.drivers.httpx_wire import HttpxWire
from engine.drivers.wire import Wire
from tests.drivers.fake_stripe import (
    KEY,
    Call,
    Reply,
    Silence,
    error_reply,
    fake_stripe,
    meter_event_reply,
)
from tests.drivers.test_stripe_billing import METER, RECORD

WIRES: list[Callable[..., Wire]] = [H11Wire, HttpxWire]
both_wires = pytest.mark.parametrize("make_wire", WIRES, ids=["h11", "httpx"])
CONNECT = PushRequest(
    driver="meter",
    identifier="i-3",
    value="1",
    timestamp_s=60,
    api_version="v",
    event_name="api_calls",
    customer="cus_1",
    connect_account="acct_7",
)
DUPLICATE = "An event already exists with identifier i-1."
LEGACY = (
    "Cannot create a usage record for `si_1` because it is not on the legacy metered billing system. "
    "Call /v1/billing/meter_events instead."
)
HTML = Reply(502, b"<html><body>bad gateway</body></html>", {"content-type": "text/html"})


async def outcome_of(reply: Reply | Silence, request: PushRequest = METER) -> Outcome:
    """One send that is answered so."""
    async with (
        fake_stripe(lambda _: reply) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        [outcome] = await billing.send([request], [0])
        assert len(fake.calls) == 1, "a driver never sends twice"
        return outcome


# fmt: off
ANSWERS: list[tuple[str, Reply, PushRequest, Outcome]] = [
    ("v1 duplicate, by its message alone",
     error_reply(400, DUPLICATE, Stripe_Should_Retry="false"), METER,
     AlreadyDelivered(f"{DUPLICATE} (invalid_request_error, req_1)", "req_1")),
    ("v2 duplicate, by its code",
     error_reply(400, "seen", code="duplicate_meter_event"), METER,
     AlreadyDelivered("seen (duplicate_meter_event, req_1)", "req_1")),
    ("a rate limit is the account's",
     error_reply(429, "slow down", code="rate_limit"), METER,
     RetryLater("Stripe's limit: slow down (rate_limit, req_1)", None, True)),
    ("Retry-After is heeded",
     error_reply(429, "slow down", Retry_After="3"), METER,
     RetryLater("Stripe's limit: slow down (invalid_request_error, req_1)", 3_000_000, True)),
    ("Retry-After has a bound",
     error_reply(429, "slow down", Retry_After="999999"), METER,
     RetryLater("Stripe's limit: slow down (invalid_request_error, req_1)", 3_600_000_000, True)),
    ("a date in Retry-After is another clock's",
     error_reply(429, "slow down", Retry_After="Thu, 26 Nov 2026 10:00:00 GMT"), METER,
     RetryLater("Stripe's limit: slow down (invalid_request_error, req_1)", None, True)),
    ("a 400 may be a rate limit",
     error_reply(400, "slow down", code="rate_limit"), METER,
     RetryLater("Stripe's limit: slow down (rate_limit, req_1)", None, True)),
    ("a limit on one resource is the lane's",
     error_reply(429, "slow down", Stripe_Rate_Limited_Reason="resource-specific"), METER,
     RetryLater("Stripe's limit: slow down (invalid_request_error, req_1)", None, False)),
    ("a lock is the lane's",
     error_reply(429, "locked", code="lock_timeout"), METER,
     RetryLater("Stripe's limit: locked (lock_timeout, req_1)", None, False)),
    ("a limit without JSON is a limit",
     Reply(429, b"<html>", {"Retry-After": "2"}), METER,
     RetryLater("Stripe's limit: HTTP 429 without a message", 2_000_000, True)),
    ("a concurrent call is the lane's",
     error_reply(409, "another request is in progress"), METER,
     RetryLater("busy at Stripe: another request is in progress (invalid_request_error, req_1)")),
    ("an idempotency key in use is the lane's",
     error_reply(409, "in use", kind="idempotency_error", code="idempotency_key_in_use"), METER,
     RetryLater("busy at Stripe: in use (idempotency_key_in_use, req_1)")),
    ("Stripe may ask to retry",
     error_reply(400, "try again", Stripe_Should_Retry="true"), METER,
     RetryLater("busy at Stripe: try again (invalid_request_error, req_1)")),
    ("a stored 500",
     error_reply(500, "boom", kind="api_error"), METER,
     Unknown("Stripe answered 500: boom (api_error, req_1)", True)),
    ("a 503 that asks to retry proves nothing",
     error_reply(503, "down", kind="api_error", Stripe_Should_Retry="true"), METER,
     Unknown("Stripe answered 503: down (api_error, req_1)", True)),
    ("a gateway's page", HTML, METER,
     Unknown("Stripe answered 502: HTTP 502 without a message", True)),
    ("HTML with a 403 is no word of Stripe's",
     Reply(403, b"<html>blocked</html>"), METER,
     Unknown("HTTP 403 and no word of Stripe's: something between here and Stripe answered; "
             "check STRIPE_API_BASE and proxies")),
    ("a redirect is no word of Stripe's",
     Reply(302, b"", {"Location": "https://login.example/"}), METER,
     Unknown("HTTP 302 and no word of Stripe's: something between here and Stripe answered; "
             "check STRIPE_API_BASE and proxies")),
    ("an error that is no object",
     Reply(400, b'{"error": "invalid_grant"}'), METER,
     Unknown("HTTP 400 and no word of Stripe's: something between here and Stripe answered; "
             "check STRIPE_API_BASE and proxies")),
    ("half an error",
     Reply(400, b'{"error": {"message": "An event already ex'), METER,
     Unknown("HTTP 400 and no word of Stripe's: something between here and Stripe answered; "
             "check STRIPE_API_BASE and proxies")),
    ("a page with a success", Reply(200, b"<html>welcome</html>"), METER,
     Unknown("the answer is no JSON")),
    ("a success with half a body", Reply(200, b'{"object": "billing.meter_ev'), METER,
     Unknown("the answer is no JSON")),
    ("an idempotency key with other parameters",
     error_reply(400, "Keys for idempotent requests", kind="idempotency_error"), METER,
     Refused("an idempotency key was used before with other parameters: this intent is not the one first sent. "
             "Stripe: Keys for idempotent requests (idempotency_error, req_1)",
             "idempotency_error", "request", "req_1")),
    ("a wrong key",
     error_reply(401, "Invalid API Key provided: sk_test_****0042"), METER,
     Refused("Stripe refuses the key: set a valid one and restart. "
             "Stripe: Invalid API Key provided: [key] (invalid_request_error, req_1)",
             "invalid_request_error", "account", "req_1")),
    ("an expired key",
     error_reply(401, "Expired API Key provided: sk_test_****0042", code="api_key_expired"), CONNECT,
     Refused("Stripe refuses the key: set a valid one and restart. "
             "Stripe: Expired API Key provided: [key] (api_key_expired, req_1)",
             "api_key_expired", "account", "req_1")),
    ("a key that may not",
     error_reply(403, "no permission"), METER,
     Refused("the key may not do this: give the restricted key write access to billing meter events "
             "and read access to meters, customers, subscriptions and prices. "
             "Stripe: no permission (invalid_request_error, req_1)",
             "invalid_request_error", "account", "req_1")),
    ("a connected account that left",
     error_reply(403, "The provided key 'sk_test_****0042' does not have access", code="account_invalid"), CONNECT,
     Refused("the key has no access to the connected account acct_7: was it disconnected? "
             "correct the customer's or mapping's Stripe account. "
             "Stripe: The provided key '[key]' does not have access (account_invalid, req_1)",
             "account_invalid", "target", "req_1")),
    ("a connected account that is unknown",
     error_reply(400, "no such account", code="account_invalid"), CONNECT,
     Refused("the key has no access to the connected account acct_7: was it disconnected? "
             "correct the customer's or mapping's Stripe account. "
             "Stripe: no such account (account_invalid, req_1)",
             "account_invalid", "target", "req_1")),
    ("a customer that is gone",
     error_reply(400, "No such customer: 'cus_1'", code="resource_missing"), METER,
     Refused("meter event api_calls or customer cus_1 is gone at Stripe or was never there: "
             "correct the mapping or the customer. Stripe: No such customer: 'cus_1' (resource_missing, req_1)",
             "resource_missing", "target", "req_1")),
    ("a meter that is archived",
     error_reply(400, "This meter is archived", code="archived_meter"), METER,
     Refused("meter event api_calls or customer cus_1 is gone at Stripe or was never there: "
             "correct the mapping or the customer. Stripe: This meter is archived (archived_meter, req_1)",
             "archived_meter", "target", "req_1")),
    ("no meter, by words",
     error_reply(400, "No active meter found for event name api_calls"), METER,
     Refused("meter event api_calls or customer cus_1 is gone at Stripe or was never there: correct the mapping "
             "or the customer. Stripe: No active meter found for event name api_calls (invalid_request_error, req_1)",
             "invalid_request_error", "target", "req_1")),
    ("an item on a meter price",
     error_reply(400, LEGACY), RECORD,
     Refused(f"the price of si_1 is on a billing meter: set `driver` of its mapping to `meter`. "
             f"Stripe: {LEGACY} (invalid_request_error, req_1)",
             "invalid_request_error", "target", "req_1")),
    ("usage records that are no more",
     error_reply(404, "Unrecognized request URL (POST: /v1/...)"), RECORD,
     Refused("Stripe no longer has usage records for this account: move the price to a billing meter. "
             "Stripe: Unrecognized request URL (POST: /v1/...) (invalid_request_error, req_1)",
             "invalid_request_error", "target", "req_1")),
    ("another server",
     error_reply(404, "Unrecognized request URL (POST: /v1/...)"), METER,
     Refused("the base URL is not Stripe's API: check STRIPE_API_BASE. "
             "Stripe: Unrecognized request URL (POST: /v1/...) (invalid_request_error, req_1)",
             "invalid_request_error", "account", "req_1")),
    ("a timestamp that is too old",
     error_reply(400, "timestamp too old", code="timestamp_too_far_in_past"), METER,
     Refused("Stripe: timestamp too old (timestamp_too_far_in_past, req_1)",
             "timestamp_too_far_in_past", "request", "req_1")),
    ("a message without end is cut",
     error_reply(400, "x" * 5000), METER,
     Refused(f"Stripe: {'x' * 500} (invalid_request_error, req_1)", "invalid_request_error", "request", "req_1")),
    ("a success is not sent again, whatever it asks for",
     Reply(200, b'{"identifier": "i-1"}', {"Stripe-Should-Retry": "true"}), METER,
     Delivered(None)),
    ("a notice does not hide a success",
     Reply(200, b'{"identifier": "i-1"}', {"Stripe-Notice": "look here", "Request-Id": "req_2"}), METER,
     Delivered("req_2")),
]
# fmt: on


@pytest.mark.parametrize(
    ("reply", "request_", "expected"),
    [row[1:] for row in ANSWERS],
    ids=[row[0] for row in ANSWERS],
)
async def test_each_answer_means_one_thing(
    reply: Reply, request_: PushRequest, expected: Outcome
) -> None:
    assert await outcome_of(reply, request_) == expected


async def send_over(make_wire: Callable[..., Wire], url: str, **bounds: float) -> Outcome:
    """One send over a wire of its own."""
    wire = make_wire(**bounds)
    try:
        [outcome] = await StripeBilling(KEY, api_base=url, wire=wire).send([METER], [0])
        return outcome
    finally:
        await wire.aclose()


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@both_wires
async def test_a_refused_connection_never_left(make_wire: Callable[..., Wire]) -> None:
    outcome = await send_over(make_wire, f"http://127.0.0.1:{free_port()}")
    assert isinstance(outcome, RetryLater)
    assert outcome.is_account_wide
    assert "connect" in outcome.reason


@both_wires
async def test_an_unknown_host_never_left(make_wire: Callable[..., Wire]) -> None:
    outcome = await send_over(make_wire, "http://stripe.invalid")
    assert isinstance(outcome, RetryLater)
    assert "stripe.invalid" in outcome.reason


@both_wires
async def test_a_connection_that_is_not_taken_in_time_never_left(
    make_wire: Callable[..., Wire],
) -> None:
    # A full backlog: the kernel lets further connections wait.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = []
        for _ in range(8):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            waiting.append(one)
        outcome = await send_over(make_wire, f"http://127.0.0.1:{port}", connect_seconds=0.2)
        for one in waiting:
            one.close()
    assert isinstance(outcome, RetryLater)


@both_wires
async def test_no_free_connection_means_never_left(make_wire: Callable[..., Wire]) -> None:
    async with fake_stripe(lambda _: Silence()) as fake:
        wire = make_wire(connections_max=1, slot_seconds=0.1)
        billing = StripeBilling(KEY, api_base=fake.url, wire=wire)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(billing.send, [METER], [0])
            while not fake.calls:
                await trio.sleep(0.01)
            [outcome] = await billing.send([METER], [0])
            nursery.cancel_scope.cancel()
        await wire.aclose()
    assert isinstance(outcome, RetryLater)
    assert len(fake.calls) == 1


@both_wires
async def test_a_server_without_tls_never_got_the_request(make_wire: Callable[..., Wire]) -> None:
    async with fake_stripe(meter_event_reply) as fake:
        outcome = await send_over(
            make_wire, fake.url.replace("http:", "https:"), connect_seconds=0.5
        )
        assert isinstance(outcome, RetryLater)
        assert fake.calls == []


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate of its own, for 127.0.0.1; `folder/cert.pem` is to be trusted."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-days", "2",
         "-subj", "/CN=stripe", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


@both_wires
async def test_a_certificate_that_nobody_vouches_for_is_known_before_the_request_leaves(
    make_wire: Callable[..., Wire], tmp_path: Path
) -> None:
    async with fake_stripe(meter_event_reply, certificate(tmp_path)) as fake:
        outcome = await send_over(make_wire, fake.url)
        assert isinstance(outcome, RetryLater)
        assert "certificate" in outcome.reason
        assert fake.calls == []


@both_wires
async def test_a_certificate_that_is_vouched_for_carries_requests(
    make_wire: Callable[..., Wire], tmp_path: Path
) -> None:
    async with fake_stripe(meter_event_reply, certificate(tmp_path)) as fake:
        wire = make_wire(tls=ssl.create_default_context(cafile=tmp_path / "cert.pem"))
        billing = StripeBilling(KEY, api_base=fake.url, wire=wire)
        for _ in range(3):
            assert await billing.send([METER], [0]) == [Delivered("req_1")]
        await wire.aclose()


@both_wires
async def test_no_answer_in_time_is_unknown(make_wire: Callable[..., Wire]) -> None:
    async with fake_stripe(lambda _: Silence()) as fake:
        outcome = await send_over(make_wire, fake.url, answer_seconds=0.2)
        assert isinstance(outcome, Unknown)
        assert not outcome.is_stored
        assert len(fake.calls) == 1


ENDINGS = [
    Silence(ends=True),
    Reply(200, b'{"identifier": "i-1"}', cut=10),
    Reply(200, b'{"identifier": "i-1"}', cut=45),
    Reply(raw=b"SSH-2.0-OpenSSH_9\r\n", ends=True),
    Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", ends=True),
    Reply(raw=b"HTTP/1.1 100 Continue\r\n\r\n", ends=True),
    Reply(raw=b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000, ends=True),
    Reply(200, b'{"identifier": "i-1", "more": "' + b"x" * (5 << 20) + b'"}'),
]


@both_wires
@pytest.mark.parametrize("ending", ENDINGS, ids=range(len(ENDINGS)))
async def test_an_answer_that_is_not_whole_is_unknown(
    make_wire: Callable[..., Wire], ending: Reply | Silence
) -> None:
    async with fake_stripe(lambda _: ending) as fake:
        outcome = await send_over(make_wire, fake.url)
        assert isinstance(outcome, Unknown)
        assert not outcome.is_stored
        assert len(fake.calls) == 1


@both_wires
async def test_a_send_that_is_cancelled_ends_at_once_and_leaves_no_half_connection(
    make_wire: Callable[..., Wire],
) -> None:
    is_silent = True

    def answer(call: Call) -> Reply | Silence:
        return Silence() if is_silent else meter_event_reply(call)

    async with fake_stripe(answer) as fake:
        wire = make_wire(connections_max=1)
        billing = StripeBilling(KEY, api_base=fake.url, wire=wire)
        with trio.move_on_after(0.2) as scope:
            await billing.send([METER], [0])
        assert scope.cancelled_caught
        is_silent = False
        # The one connection allowed is free again, and it is a new one.
        assert await billing.send([METER], [0]) == [Delivered("req_1")]
        assert fake.connections == 2
        await wire.aclose()


@both_wires
async def test_a_connection_that_ended_while_idle_is_not_used_again(
    make_wire: Callable[..., Wire],
) -> None:
    def answer(call: Call) -> Reply:
        return meter_event_reply(call)._replace(ends=True)

    async with fake_stripe(answer) as fake:
        wire = make_wire()
        billing = StripeBilling(KEY, api_base=fake.url, wire=wire)
        for _ in range(5):
            assert await billing.send([METER], [0]) == [Delivered("req_1")]
            await trio.sleep(0.02)
        assert fake.connections == 5
        await wire.aclose()


async def test_connections_are_bounded_and_kept() -> None:
    async with fake_stripe(meter_event_reply) as fake:
        wire = H11Wire(connections_max=4)
        billing = StripeBilling(KEY, api_base=fake.url, wire=wire)
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(billing.send, [METER], [0])
        assert len(fake.calls) == 100
        assert fake.connections <= 4
        assert wire.opened == fake.connections
        await wire.aclose()


def test_every_rule_of_the_table_has_an_example() -> None:
    kinds = {type(row[3]) for row in ANSWERS}
    assert kinds == {Delivered, AlreadyDelivered, RetryLater, Refused, Unknown}
    scopes = {row[3].scope for row in ANSWERS if isinstance(row[3], Refused)}
    assert scopes == {"request", "target", "account"}
    for row in ANSWERS:
        reason = getattr(row[3], "reason", "")
        assert not re.search(r"sk_|0042", reason)
