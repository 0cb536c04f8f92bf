"""Runs the cases of sdk/conformance with the Python clients; what a case means is said in its README.

Rules it keeps: one driver for both clients: the sync one's calls are wrapped, so that a case is told once; totals and
what arrived are asked of the place, never of the client. It must not know what is inside a client.
"""

from __future__ import annotations

import inspect
import json
import math
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import stripemeter
from stripemeter import Failure
from tests.helpers.sdk_place import CONFORMANCE, Place

CASES: list[dict[str, Any]] = json.loads((CONFORMANCE / "cases.json").read_text())
NAMES = {
    "batchEventsMax": "batch_events_max",
    "queueEventsMax": "queue_events_max",
    "flushIntervalSeconds": "flush_interval_seconds",
    "timeoutSeconds": "timeout_seconds",
    "retrySecondsFirst": "retry_seconds_first",
    "retrySecondsMax": "retry_seconds_max",
    "attemptsMax": "attempts_max",
    "backpressure": "backpressure",
    "blockSecondsMax": "block_seconds_max",
    "closeSecondsMax": "close_seconds_max",
}
KINDS = {
    stripemeter.InvalidEvent: "invalid",
    stripemeter.EventRejected: "rejected",
    stripemeter.MeterUnavailable: "unavailable",
    stripemeter.QueueFull: "queue_full",
    stripemeter.ClientClosed: "closed",
}
FLUSH_SECONDS = 30
Sleep = Callable[[float], Awaitable[None]]
Make = Callable[..., Any]


def quantity_of(value: Any) -> Any:
    """A case's quantity as Python has it."""
    if isinstance(value, dict):
        ((kind, text),) = value.items()
        return {"float": float, "integer": int, "decimal": Decimal}[kind](text)
    return value


def instant_of(value: Any) -> Any:
    """A case's ts as Python has it."""
    if not isinstance(value, dict):
        return value
    now = datetime.now(UTC) - timedelta(seconds=value["secondsAgo"])
    form = value["form"]
    if form == "native":
        return now
    if form == "naive":
        return now.strftime("%Y-%m-%dT%H:%M:%S")
    if form == "offset":
        return now.astimezone(timezone(timedelta(hours=2))).isoformat()
    fraction = f"{now.microsecond:06d}" + ("789" if form == "nanoseconds" else "")
    return now.strftime("%Y-%m-%dT%H:%M:%S.") + fraction + "Z"


def fields_of(event: dict[str, Any]) -> dict[str, Any]:
    """A case's event as `track` takes it."""
    names = {"customerRef": "customer_ref", "resourceId": "resource_id"}
    names |= {"idempotencyKey": "idempotency_key"}
    given = {names.get(name, name): value for name, value in event.items()}
    return {
        name: quantity_of(value)
        if name == "quantity"
        else instant_of(value)
        if name == "ts"
        else value
        for name, value in given.items()
        if name not in ("do", "times")
    }


def text_of(number: int | Decimal) -> str:
    """A number of an answer as decimal text, which only an exact one has."""
    assert type(number) is not float
    return str(number) if isinstance(number, int) else format(number, "f")


class Run:
    """One case with one client."""

    def __init__(self, case: dict[str, Any], here: Place, tenant: str, sleep: Sleep) -> None:
        self.case = case
        self.here = here
        self.tenant = tenant
        self.sleep = sleep
        self.told: list[Failure] = []
        self.raised: list[str] = []
        here.fail(case.get("faults", []))

    def client(self, make: Make) -> Any:
        options = {NAMES[name]: value for name, value in self.case.get("options", {}).items()}
        return make(
            self.here.proxy,
            self.tenant,
            mode=self.case["mode"],
            on_error=self.told.append,
            **options,
        )

    async def check(self, client: Any) -> None:
        """Do them, and check what came of it all."""
        for step in self.case["steps"]:
            for _ in range(step.get("times", 1)):
                try:
                    await self._do(client, step)
                except stripemeter.StripeMeterError as error:
                    self.raised.append(KINDS[type(error)])
        self._check(client)

    async def _do(self, client: Any, step: dict[str, Any]) -> None:
        do = step["do"]
        if do == "track":
            await _called(client.track(**fields_of(step)))
        elif do == "trackBatch":
            await _called(client.track_batch([fields_of(event) for event in step["events"]]))
        elif do == "flush":
            settled = await _called(client.flush(step.get("seconds", FLUSH_SECONDS)))
            assert settled is step.get("settled", True)
        elif do == "close":
            await _called(client.close())
        elif do == "wait":
            await self.sleep(step["seconds"])
        elif do == "calm":
            self.here.calm()
        else:
            await self._read(client, step)

    async def _read(self, client: Any, step: dict[str, Any]) -> None:
        do, customer = step["do"], step["customerRef"]
        if do == "getUsage":
            found = await _called(client.get_usage(customer))
            current = {metric["name"]: text_of(metric["current"]) for metric in found["metrics"]}
            assert current == step["current"]
        elif do == "getUsageHistory":
            # The index follows the log: what was just acknowledged is there a moment later.
            until = time.monotonic() + 10
            total = ""
            while total != step["total"] and time.monotonic() < until:
                found = await _called(
                    client.get_usage_history(step["metric"], customer, since="-PT1H")
                )
                total = text_of(found["totals"]["value"])
                await self.sleep(0.02)
            assert total == step["total"]
        elif do == "getProjection":
            found = await _called(client.get_projection(customer))
            lines = {line["metric"]: text_of(line["quantity"]) for line in found["lineItems"]}
            assert lines == step["quantities"]
        else:
            assert do == "getEvents", f"a step of a kind that is unknown here: {do}"
            found = await _called(client.get_events(customer_ref=customer))
            assert found["total"] == step["total"] == len(found["events"])

    def _check(self, client: Any) -> None:
        expected = self.case["expect"]
        told = sum(len(failure.events) for failure in self.told)
        assert told == expected["onError"], self.told
        assert (self.raised[0] if self.raised else None) == expected["raises"], self.raised
        for total in expected["totals"]:
            counted = self.here.total(self.tenant, total["customerRef"], total["metric"])
            assert counted == total["total"], total
        self._check_seen(expected)
        statistics = client.statistics()
        for name, count in expected.get("statistics", {}).items():
            assert getattr(statistics, name) == count, statistics

    def _check_seen(self, expected: dict[str, Any]) -> None:
        seen = self.here.seen()
        if "requestsSeen" in expected:
            assert len(seen) == expected["requestsSeen"], seen
        if "distinctKeys" in expected:
            assert (
                len({key for request in seen for key in request["keys"]})
                == (expected["distinctKeys"])
            )
        if expected.get("keysRepeatInOrder"):
            numbers: dict[str, int] = {}
            for request in seen:
                found = [numbers.setdefault(key, len(numbers)) for key in request["keys"]]
                assert found == list(range(found[0], found[0] + len(found))) if found else True
        gap = seen[1]["atMs"] - seen[0]["atMs"] if len(seen) > 1 else math.inf
        assert gap >= expected.get("gapMsMin", 0)


async def _called(result: Any) -> Any:
    """The result of either client's call."""
    return await result if inspect.isawaitable(result) else result


def run_without_loop(steps: Any) -> None:
    """Run a coroutine that never waits for a loop: the sync client's."""
    try:
        steps.send(None)
    except StopIteration:
        return
    message = "a sync client's step waited for a loop"
    raise AssertionError(message)
