"""The client for threads, against a meter without sockets: keys, order, time, options, secrets, statistics, its end."""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
from collections import UserDict
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

import stripemeter
from stripemeter import Failure, StripeMeterClient
from stripemeter.options import Options, Tuning
from tests.sdk.fake_meter import FakeMeter

URL = "http://meter.invalid"
HELD: dict[str, Any] = {"flush_interval_seconds": 3600.0}
QUICK: dict[str, Any] = {"retry_seconds_first": 0.001, "retry_seconds_max": 0.002}


def client(meter: FakeMeter, **options: Any) -> StripeMeterClient:
    return StripeMeterClient(URL, "acme", transport=meter, **{**HELD, **QUICK, **options})


def test_a_key_is_made_once_and_survives_every_retry() -> None:
    meter = FakeMeter("lost", 503, httpx.ConnectError("down"), 429)
    with client(meter) as sdk:
        tracked = [sdk.track("calls", "cora", 1) for _ in range(3)]
        assert sdk.flush(5)
        assert sdk.statistics().retries == 4
        assert sdk.statistics().duplicates == 3
    assert len(set(meter.bodies())) == 1, "sent again with the same bytes"
    assert meter.sent_keys() == [[one.idempotency_key for one in tracked]] * 5
    assert meter.total == 3


def test_keys_of_many_clients_and_calls_are_all_different() -> None:
    meter = FakeMeter()
    keys = set()
    for _ in range(5):
        with client(meter, mode="direct") as sdk:
            keys |= {sdk.track("calls", "cora", 1).idempotency_key for _ in range(20)}
    assert len(keys) == 100
    assert all(len(key) < 40 for key in keys)


def test_a_buffered_event_has_the_time_of_its_call_and_one_with_an_own_key_none() -> None:
    meter = FakeMeter()
    now_ns = 1_767_225_599_999_999_999
    with client(meter, clock_ns=lambda: now_ns) as sdk:
        sdk.track("calls", "cora", 1)
        sdk.track("calls", "cora", 1, idempotency_key="mine")
        sdk.track("calls", "cora", 1, ts=datetime(2026, 1, 1, tzinfo=UTC), idempotency_key="both")
        assert sdk.flush(5)
    assert [event.get("ts") for event in meter.events] == [
        "2025-12-31T23:59:59.999999Z",
        None,
        "2026-01-01T00:00:00.000000Z",
    ]


def test_what_the_app_changes_after_the_call_changes_no_event() -> None:
    meter = FakeMeter()
    meta = {"tags": ["a"]}
    with client(meter) as sdk:
        sdk.track("calls", "cora", 1, meta=meta)
        meta["tags"].append("b")
        assert sdk.flush(5)
    assert meter.events[0]["meta"] == {"tags": ["a"]}


def test_the_key_of_the_api_is_sent_and_in_no_text() -> None:
    secret = "sm_very_secret"
    meter = FakeMeter(401)
    told: list[Failure] = []
    sdk = StripeMeterClient(
        URL, "acme", api_key=secret, mode="direct", transport=meter, on_error=told.append
    )
    with pytest.raises(stripemeter.EventRejected) as raised:
        sdk.track("calls", "cora", 1)
    assert meter.requests[0].headers["authorization"] == f"Bearer {secret}"
    for text in (repr(sdk), repr(sdk.options), str(raised.value), repr(told)):
        assert secret not in text
    with pytest.raises(ValueError, match="api_key") as wrong:
        StripeMeterClient(URL, "acme", api_key="sm_with\nnewline")
    assert "newline" not in str(wrong.value)


def test_nothing_about_customers_is_logged_by_the_libraries_below(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    meter = FakeMeter(httpx.Response(200, json={"metrics": []}))
    with client(meter, mode="direct") as sdk:
        sdk.get_usage("very-private-customer")
        sdk.track("calls", "very-private-customer", 1)
    assert len(meter.requests) == 2
    assert "very-private-customer" not in caplog.text


def test_without_a_hook_failures_are_logged_but_are_no_flood(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with client(FakeMeter(), queue_events_max=1) as sdk:
        for _ in range(50):
            sdk.track("calls", "cora", -1)
    lines = [record for record in caplog.records if record.name == "stripemeter"]
    assert len(lines) == 1
    assert "must not be negative" in lines[0].getMessage()


def test_a_hook_that_raises_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def hook(failure: Failure) -> None:
        raise RuntimeError(failure.kind)

    meter = FakeMeter(400)
    with client(meter, on_error=hook) as sdk:
        sdk.track("calls", "cora", float("nan"))
        sdk.track("calls", "cora", 1)
        assert sdk.flush(5)
        sdk.track("calls", "cora", 2)
        assert sdk.flush(5)
    assert meter.total == 2
    assert caplog.text.count("the on_error hook raised") == 2


def test_an_answer_for_another_number_of_events_is_no_answer() -> None:
    meter = FakeMeter(httpx.Response(200, json={"results": []}), httpx.Response(200, json=[]))
    with client(meter) as sdk:
        sdk.track("calls", "cora", 1)
        assert sdk.flush(5)
    assert len(meter.requests) == 3
    assert meter.total == 1


def test_large_batches_are_sent_in_requests_of_bounded_size() -> None:
    meter = FakeMeter()
    with client(meter, batch_bytes_max=10_000, batch_events_max=7) as sdk:
        for _ in range(20):
            sdk.track("calls", "cora", 1, meta={"text": "x" * 3000})
        assert sdk.flush(5)
    assert all(len(body) < 11_000 for body in meter.bodies())
    assert {len(keys) for keys in meter.sent_keys()} == {1, 3}
    assert meter.total == 20


def test_a_queue_is_bounded_by_bytes_too() -> None:
    gate = threading.Event()
    told: list[Failure] = []
    meter = FakeMeter(gate=gate)
    sdk = client(meter, queue_bytes_max=100_000, batch_events_max=1, on_error=told.append)
    sdk.track("calls", "cora", 1)
    assert meter.reached.wait(10), "what is on its way is not in the queue"
    for _ in range(50):
        sdk.track("calls", "cora", 1, meta={"text": "x" * 10_000})
    assert sdk.statistics().queued <= 11
    assert sdk.statistics().dropped == len(told) == 51 - sdk.statistics().queued
    gate.set()
    assert sdk.close()


@pytest.mark.slow
def test_a_close_that_can_not_deliver_is_bounded_and_tells_every_event_once() -> None:
    told: list[Failure] = []
    meter = FakeMeter(*[httpx.ConnectError("down")] * 10_000)
    sdk = client(meter, on_error=told.append, retry_seconds_max=30.0, retry_seconds_first=20.0)
    for _ in range(5):
        sdk.track("calls", "cora", 1)
    assert sdk.flush(0.05) is False
    began = time.monotonic()
    assert sdk.close(0.3) is False
    assert sdk.close(0.3) is False
    assert time.monotonic() - began < 2
    assert [failure.kind for failure in told] == ["closed"]
    assert len(told[0].events) == 5
    assert sdk.statistics().dropped == 5
    assert sdk.statistics().queued == 0
    assert len(meter.requests) >= 2, "closing tries once more, whatever the wait was"


@pytest.mark.slow
def test_a_transport_that_hangs_holds_up_close_by_no_more_than_its_bound() -> None:
    gate = threading.Event()
    told: list[Failure] = []
    sdk = client(FakeMeter(gate=gate), on_error=told.append, batch_events_max=1)
    sdk.track("calls", "cora", 1)
    time.sleep(0.05)
    began = time.monotonic()
    assert sdk.close(0.1) is False
    assert time.monotonic() - began < 3
    gate.set()
    assert [len(failure.events) for failure in told] == [1]


def test_close_may_be_called_before_anything_was_tracked_and_from_many_threads() -> None:
    meter = FakeMeter()
    sdk = client(meter)
    assert sdk.close() is True
    sdk = client(meter)
    sdk.track("calls", "cora", 1)
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(sdk.close())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 5
    assert len(meter.requests) == 1


def test_a_batch_is_checked_by_field_names() -> None:
    told: list[Failure] = []
    wrong: list[Any] = [{"metric": "m", "customerRef": "c", "quantity": 1}, 7, {}]
    with client(FakeMeter(), on_error=told.append) as sdk:
        result = sdk.track_batch(wrong)
    assert [one.status for one in result.results] == ["refused"] * 3
    assert ["customerRef" in told[0].detail, "mapping" in told[1].detail] == [True, True]
    with client(FakeMeter(), mode="direct") as direct, pytest.raises(stripemeter.InvalidEvent):
        direct.track_batch(wrong)


def test_a_direct_batch_returns_each_events_result() -> None:
    body = {
        "results": [
            {"status": "accepted", "late": True, "adjustmentId": "adj_1"},
            {"status": "error", "error": "no such thing"},
            {"status": "duplicate"},
        ]
    }
    told: list[Failure] = []
    meter = FakeMeter(httpx.Response(200, json=body))
    with client(meter, mode="direct", on_error=told.append) as sdk:
        result = sdk.track_batch(
            [{"metric": "m", "customer_ref": "c", "quantity": n} for n in (1, 2, 3)]
        )
        assert (result.accepted, result.duplicates) == (1, 1)
        assert result.results[0].late is True
        assert result.results[0].adjustment_id == "adj_1"
        assert [one.error for one in result.rejected] == ["no such thing"]
        assert told[0].events[0].quantity == "2"
        assert sdk.statistics() == stripemeter.Statistics(3, 1, 1, 1, 0, 0, 0)
        assert sdk.track_batch([]).results == ()


def test_unavailable_names_the_keys_that_may_be_tracked_again() -> None:
    meter = FakeMeter("lost", "lost")
    with client(meter, mode="direct", attempts_max=2) as sdk:
        with pytest.raises(stripemeter.MeterUnavailable) as raised:
            sdk.track("calls", "cora", 5)
        (key,) = raised.value.idempotency_keys
        assert sdk.track("calls", "cora", 5, idempotency_key=key).status == "duplicate"
    assert meter.total == 5


def test_answers_are_read_exactly_and_questions_asked_again() -> None:
    answer = b'{"metrics": [{"name": "m", "current": 0.1, "sum": 123456789012345678901}]}'
    meter = FakeMeter(503, httpx.ReadTimeout("slow"), httpx.Response(200, content=answer))
    with client(meter, mode="direct") as sdk:
        (metric,) = sdk.get_usage("cora")["metrics"]
        assert metric["current"] == Decimal("0.1")
        assert metric["sum"] == 123456789012345678901
        meter.failures = [404]
        with pytest.raises(stripemeter.RequestRefused, match="scripted") as raised:
            sdk.get_usage("cora")
        assert raised.value.status == 404
        meter.failures = [500] * 5
        with pytest.raises(stripemeter.MeterUnavailable):
            sdk.get_usage("cora")
        with pytest.raises(stripemeter.InvalidEvent, match="customer_ref"):
            sdk.get_usage()
    with pytest.raises(stripemeter.ClientClosed):
        sdk.get_usage("cora")


def test_the_clients_own_customer_is_meant_where_none_is_given() -> None:
    meter = FakeMeter()
    with client(meter, customer_id="me") as sdk:
        sdk.track("calls", None, 1)
        assert sdk.flush(5)
        meter.failures = [httpx.Response(200, json={"metrics": []})]
        sdk.get_usage()
    assert meter.events[0]["customerRef"] == "me"
    assert "customerRef=me" in str(meter.requests[-1].url)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"api_url": "ftp://x"}, "api_url"),
        ({"api_url": "http://user:secret@x"}, "api_url"),
        ({"api_url": "http://x?y=1"}, "api_url"),
        ({"api_url": "meter"}, "api_url"),
        ({"tenant_id": ""}, "tenant_id"),
        ({"mode": "fast"}, "mode"),
        ({"backpressure": "explode"}, "backpressure"),
        ({"batch_events_max": 0}, "batch_events_max"),
        ({"queue_events_max": 1.5}, "queue_events_max"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds"),
        ({"retry_seconds_first": 60.0, "retry_seconds_max": 1.0}, "retry_seconds_first"),
        ({"mode": "direct", "spool": "x.db"}, "spool"),
    ],
)
def test_a_wrong_option_is_an_error_where_the_client_is_made(
    options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named) as raised:
        StripeMeterClient(**{"api_url": URL, "tenant_id": "acme", **options})
    assert "secret" not in str(raised.value)


def test_every_option_is_known_to_type_checkers() -> None:
    positional = {"api_url", "tenant_id", "customer_id", "api_key", "mode", "backpressure", "spool"}
    names = {option.name for option in fields(Options)}
    assert names - positional == set(Tuning.__annotations__)


def test_a_base_path_is_kept() -> None:
    meter = FakeMeter()
    with StripeMeterClient(f"{URL}/meter/", "acme", mode="direct", transport=meter) as sdk:
        sdk.track("calls", "cora", 1)
    assert meter.requests[0].url.path == "/meter/v1/events/ingest"
    assert json.loads(meter.requests[0].content)["events"][0]["source"] == "sdk"


def test_an_unexpected_error_in_the_thread_is_told_and_metering_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Failure] = []
    meter = FakeMeter()
    sdk = client(meter, on_error=told.append)
    assert sdk._buffer is not None
    settle, calls = sdk._buffer.settle, []

    def once(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            message = "a bug"
            raise ZeroDivisionError(message)
        settle(*arguments)

    monkeypatch.setattr(sdk._buffer, "settle", once)
    monkeypatch.setattr("stripemeter.sender.CLOSING_WAIT_SECONDS_MAX", 0.01)
    sdk.track("calls", "cora", 1)
    sdk.flush(0.2)
    sdk.track("calls", "cora", 2)
    sdk.close(2)
    assert told[0].kind == "internal"
    assert meter.total == 3


def test_a_wait_of_an_hour_that_the_server_asks_for_is_not_slept_by_a_direct_call() -> None:
    later = {"retry-after": "3600"}
    meter = FakeMeter(httpx.Response(503, headers=later), httpx.Response(503, headers=later))
    began = time.monotonic()
    with client(meter, mode="direct") as sdk:
        with pytest.raises(stripemeter.MeterUnavailable):
            sdk.track("calls", "cora", 1)
        with pytest.raises(stripemeter.MeterUnavailable):
            sdk.get_usage("cora")
    assert time.monotonic() - began < 5


def test_what_is_no_batch_is_told_and_breaks_nothing() -> None:
    told: list[Failure] = []
    wrong: Any = None
    with client(FakeMeter(), on_error=told.append) as sdk:
        assert [one.status for one in sdk.track_batch(wrong).results] == ["refused"]
    assert [failure.kind for failure in told] == ["invalid"]


def test_an_instant_that_utc_has_no_year_for_is_refused() -> None:
    told: list[Failure] = []
    early = datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))
    with client(FakeMeter(), on_error=told.append) as sdk:
        assert sdk.track("calls", "cora", 1, ts=early).status == "refused"
    assert "ts" in told[0].detail


def test_tracking_after_close_starts_no_thread() -> None:
    before = threading.active_count()
    told: list[Failure] = []
    sdk = client(FakeMeter(), on_error=told.append)
    sdk.close()
    assert sdk.track("calls", "cora", 1).status == "refused"
    assert threading.active_count() == before
    assert [failure.kind for failure in told] == ["closed"]


def test_a_system_without_threads_is_told_and_the_next_event_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_thread(_: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    told: list[Failure] = []
    meter = FakeMeter()
    sdk = client(meter, on_error=told.append)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        assert sdk.track("calls", "cora", 1).status == "queued"
    assert [failure.kind for failure in told] == ["internal"]
    sdk.track("calls", "cora", 1)
    assert sdk.close()
    assert meter.total == 2


def test_a_client_in_the_child_of_a_fork_has_nothing_of_its_parents() -> None:
    meter = FakeMeter()
    sdk = client(meter)
    mine = sdk.track("calls", "cora", 1).idempotency_key
    left = sdk.begin_after_fork()
    assert meter in left
    assert meter.closed == 0, "closing would speak on the parent's connections"
    assert sdk.statistics().queued == 0
    theirs = sdk.track("calls", "cora", 2).idempotency_key
    assert theirs.rpartition("-")[0] != mine.rpartition("-")[0]
    assert sdk.close()
    assert meter.counted == {theirs: 2}


def test_a_client_that_is_forgotten_delivers_what_it_has_and_its_thread_ends() -> None:
    before = threading.active_count()
    meter = FakeMeter(503)
    sdk = client(meter)
    sdk.track("calls", "cora", 1)
    assert threading.active_count() == before + 1
    del sdk
    gc.collect()
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert meter.total == 1
    assert meter.closed == 1


def test_arguments_that_raise_when_they_are_read_break_nothing() -> None:
    class Trap(dict[str, Any]):
        def keys(self) -> Any:
            raise ZeroDivisionError

        def __repr__(self) -> str:
            raise ZeroDivisionError

        def __index__(self) -> int:
            raise ZeroDivisionError

    told: list[Failure] = []
    trap: Any = Trap(a=1)
    with client(FakeMeter(), on_error=told.append) as sdk:
        assert sdk.track("calls", "cora", trap).status == "refused"
        assert sdk.track("calls", "cora", 1, meta=UserDict(a=object())).status == "refused"
        assert sdk.track(trap, "cora", 1).status == "refused"
    assert [failure.kind for failure in told] == ["invalid"] * 3
    assert "ZeroDivisionError" in told[0].detail


def test_a_queue_that_is_full_by_bytes_leaves_at_once() -> None:
    meter = FakeMeter()
    with client(meter, queue_bytes_max=50_000, backpressure="block", block_seconds_max=10) as sdk:
        began = time.monotonic()
        for _ in range(40):
            assert sdk.track("calls", "cora", 1, meta={"a": "x" * 10_000}).status == "queued"
        assert time.monotonic() - began < 5


def test_a_hook_that_flushes_does_not_wait_for_its_own_thread() -> None:
    answers: list[bool] = []
    meter = FakeMeter(400)
    sdk = client(meter, on_error=lambda _: answers.append(sdk.flush(10)))
    sdk.track("calls", "cora", 1)
    began = time.monotonic()
    assert sdk.close()
    assert time.monotonic() - began < 5
    assert len(answers) == 1


def test_a_flush_that_meets_the_end_says_that_not_all_is_settled(tmp_path: Path) -> None:
    gate = threading.Event()
    sdk = client(FakeMeter(gate=gate), spool=tmp_path / "spool.db")
    sdk.track("calls", "cora", 1)
    answers: list[bool] = []
    flushing = threading.Thread(target=lambda: answers.append(sdk.flush(20)))
    flushing.start()
    assert sdk.close(0.05) is False
    flushing.join(5)
    gate.set()
    assert answers == [False]
