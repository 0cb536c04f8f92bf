"""The meter event stream: sessions, their renewal, batches, and what one bad event means for the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing

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
from engine.drivers.wire import Answer, AnswerLost, NeverLeft
from tests.drivers.fake_stripe import KEY, Call, Reply, error_reply, json_reply

SESSION = "/v2/billing/meter_event_session"
STREAM = "/v2/billing/meter_event_stream"
EXPIRED = error_reply(
    400, "expired", kind="temporary_session_expired", code="billing_meter_event_session_expired"
)


class ScriptedWire:
    """A wire without a network, so that tests can let time jump. Sessions have numbered tokens."""

    name = "scripted"

    def __init__(self, on_stream: Callable[[Call], Reply | Exception]) -> None:
        self.on_stream = on_stream
        self.on_session: Callable[[Call], Reply | Exception] = self.new_session
        self.calls: list[tuple[str, Call]] = []
        self.sessions = 0
        self.lifetime = timedelta(minutes=15)

    def new_session(self, _: Call) -> Reply:
        """A session that lives a quarter of an hour by Stripe's clock, which is years off ours."""
        self.sessions += 1
        created = datetime(2031, 5, 1, tzinfo=UTC)
        return json_reply(
            {
                "authentication_token": f"token_number_{self.sessions}",
                "created": created.isoformat().replace("+00:00", "Z"),
                "expires_at": (created + self.lifetime).isoformat().replace("+00:00", ".000Z"),
            }
        )

    async def exchange(self, method: str, url: str, headers: dict[str, str], body: bytes) -> Answer:
        await trio.sleep(0.001)
        host, _, path = url.removeprefix("http://").partition("/")
        named = {name.lower(): text for name, text in headers.items()}
        call = Call(method, f"/{path}", {}, named, body)
        self.calls.append((host, call))
        reply = (self.on_session if call.path == SESSION else self.on_stream)(call)
        if isinstance(reply, Exception):
            raise reply
        return Answer(reply.status, reply.headers, reply.body)

    async def aclose(self) -> None:
        """Nothing is open."""

    def batches(self) -> list[list[str]]:
        """The identifiers of each batch that left."""
        return [
            [event["identifier"] for event in json.loads(call.body)["events"]]
            for _, call in self.calls
            if call.path == STREAM
        ]


def billing_over(wire: ScriptedWire) -> StripeBilling:
    return StripeBilling(
        KEY, api_base="http://api.test", meter_events_base="http://events.test", wire=wire
    )


def request(identifier: str, **changed: object) -> PushRequest:
    fields: dict[str, object] = {
        "driver": "stream",
        "identifier": identifier,
        "value": "5",
        "timestamp_s": 1_790_000_040,
        "api_version": "2026-10-28.endive",
        "event_name": "api_calls",
        "customer": "cus_1",
    }
    return PushRequest(**{**fields, **changed})  # type: ignore[arg-type]  # fields of it


def taken(_: Call) -> Reply:
    return json_reply({}, Request_Id="req_5")


async def test_a_batch_goes_to_its_own_host_with_the_sessions_token() -> None:
    wire = ScriptedWire(taken)
    billing = billing_over(wire)
    requests = [request("a"), request("b", value="-7", customer_key="who", value_key="n")]
    assert await billing.send(requests, [0, 0]) == [Delivered("req_5"), Delivered("req_5")]
    (api_host, opened), (events_host, batch) = wire.calls
    assert (api_host, opened.path) == ("api.test", SESSION)
    assert opened.headers["authorization"] == f"Bearer {KEY}"
    assert (events_host, batch.path) == ("events.test", STREAM)
    assert batch.headers["authorization"] == "Bearer token_number_1"
    assert batch.headers["stripe-version"] == "2026-10-28.endive"
    assert batch.headers["content-type"] == "application/json"
    assert json.loads(batch.body) == {
        "events": [
            {
                "event_name": "api_calls",
                "identifier": "a",
                "payload": {"stripe_customer_id": "cus_1", "value": "5"},
                "timestamp": "2026-09-21T14:14:00Z",
            },
            {
                "event_name": "api_calls",
                "identifier": "b",
                "payload": {"who": "cus_1", "n": "-7"},
                "timestamp": "2026-09-21T14:14:00Z",
            },
        ]
    }


async def test_the_same_batch_has_the_same_idempotency_key_and_another_one_another() -> None:
    wire = ScriptedWire(taken)
    billing = billing_over(wire)
    for identifiers, attempt in (("ab", 0), ("ab", 0), ("ba", 0), ("ab", 1), ("a", 0)):
        await billing.send([request(one) for one in identifiers], [attempt] * len(identifiers))
    keys = [call.headers["idempotency-key"] for _, call in wire.calls if call.path == STREAM]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


async def test_a_session_is_renewed_a_minute_before_its_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    wire = ScriptedWire(taken)
    billing = billing_over(wire)
    await billing.send([request("a")], [0])
    await trio.sleep(13 * 60 + 50)
    await billing.send([request("b")], [0])
    assert wire.sessions == 1
    await trio.sleep(20)
    await billing.send([request("c")], [0])
    assert wire.sessions == 2
    assert wire.calls[-1][1].headers["authorization"] == "Bearer token_number_2"


async def test_many_batches_open_one_session() -> None:
    wire = ScriptedWire(taken)
    billing = billing_over(wire)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(billing.send, [request(f"i{number}")], [0])
    assert wire.sessions == 1
    assert len(wire.batches()) == 20


@pytest.mark.parametrize(
    "refusal", [EXPIRED, error_reply(401, "bad token")], ids=["expired", "401"]
)
async def test_a_session_that_ended_unforeseen_is_renewed_and_the_batch_sent_again(
    refusal: Reply,
) -> None:
    def answer(call: Call) -> Reply:
        return refusal if call.headers["authorization"].endswith("_1") else taken(call)

    wire = ScriptedWire(answer)
    billing = billing_over(wire)
    assert await billing.send([request("a"), request("b")], [0, 0]) == [Delivered("req_5")] * 2
    assert wire.sessions == 2
    assert wire.batches() == [["a", "b"], ["a", "b"]]


async def test_a_session_that_is_refused_twice_is_no_doubt_about_the_events() -> None:
    wire = ScriptedWire(lambda _: EXPIRED)
    [outcome] = await billing_over(wire).send([request("a")], [0])
    assert isinstance(outcome, RetryLater)
    assert len(wire.batches()) == 2


async def test_a_connected_account_has_a_session_of_its_own() -> None:
    wire = ScriptedWire(taken)
    billing = billing_over(wire)
    requests = [request("a"), request("b", connect_account="acct_7"), request("c")]
    assert await billing.send(requests, [0, 0, 0]) == [Delivered("req_5")] * 3
    assert wire.batches() == [["a", "c"], ["b"]]
    accounts = [
        call.headers.get("stripe-account") for _, call in wire.calls if call.path == SESSION
    ]
    assert accounts == [None, "acct_7"]


async def test_a_flawed_event_stays_here_and_the_others_go() -> None:
    wire = ScriptedWire(taken)
    outcomes = await billing_over(wire).send(
        [request("a"), request("b", value="1.5"), request("c")], [0, 0, 0]
    )
    assert [type(outcome) for outcome in outcomes] == [Delivered, Refused, Delivered]
    assert wire.batches() == [["a", "c"]]


async def test_a_refused_batch_is_asked_about_event_by_event() -> None:
    def answer(call: Call) -> Reply:
        identifiers = [event["identifier"] for event in json.loads(call.body)["events"]]
        if "bad" in identifiers:
            return error_reply(400, "wrong value", code="meter_event_invalid_value")
        if "seen" in identifiers:
            return error_reply(400, "seen", code="duplicate_meter_event")
        return taken(call)

    wire = ScriptedWire(answer)
    requests = [request(one) for one in ("a", "bad", "b", "seen")]
    outcomes = await billing_over(wire).send(requests, [0] * 4)
    assert [type(outcome) for outcome in outcomes] == [
        Delivered,
        Refused,
        Delivered,
        AlreadyDelivered,
    ]
    assert wire.batches() == [["a", "bad", "b", "seen"], ["a"], ["bad"], ["b"], ["seen"]]


@pytest.mark.parametrize(
    ("reply", "kind", "batches"),
    [
        (error_reply(500, "boom"), Unknown, 1),
        (error_reply(429, "slow"), RetryLater, 1),
        (error_reply(403, "may not"), Refused, 1),
        (AnswerLost("gone"), Unknown, 1),
        (NeverLeft("no way"), RetryLater, 1),
        (Reply(200, b"<html>"), Unknown, 1),
    ],
    ids=range(6),
)
async def test_what_is_not_about_an_event_is_the_outcome_of_all(
    reply: Reply | Exception, kind: type[Outcome], batches: int
) -> None:
    wire = ScriptedWire(lambda _: reply)
    outcomes = await billing_over(wire).send([request("a"), request("b")], [0, 0])
    assert [type(outcome) for outcome in outcomes] == [kind, kind]
    assert len(wire.batches()) == batches


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (error_reply(500, "boom"), RetryLater),
        (error_reply(401, "bad key"), Refused),
        (AnswerLost("gone"), RetryLater),
        (NeverLeft("no way"), RetryLater),
        (Reply(200, b"<html>"), RetryLater),
        (json_reply({"authentication_token": "token_number", "created": "x", "expires_at": "y"}), RetryLater),
        (json_reply({"authentication_token": 7}), RetryLater),
        (json_reply({"authentication_token": "a b", "created": "2026-01-01T00:00:00Z",
                     "expires_at": "2026-01-01T00:15:00Z"}), RetryLater),
        (json_reply({"authentication_token": "token_number", "created": "2026-01-01T00:00:00Z",
                     "expires_at": "2026-01-01T00:00:00Z"}), RetryLater),
    ],
    ids=range(9),
)  # fmt: skip
async def test_without_a_session_no_event_has_left(
    reply: Reply | Exception, kind: type[Outcome]
) -> None:
    wire = ScriptedWire(taken)
    wire.on_session = lambda _: reply
    outcomes = await billing_over(wire).send([request("a"), request("b")], [0, 0])
    assert [type(outcome) for outcome in outcomes] == [kind, kind]
    assert wire.batches() == []
