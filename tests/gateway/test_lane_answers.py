"""What the fast lane answers, counts and logs of a request is what the stock way does, to the byte."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway import lane_answers, lane_watch
from tests.gateway.lane_corpus import HOST, USAGE
from tests.gateway.test_lane import BYE, CLOSE, event, get, post, requests
from tests.helpers.listening import Listening, exchange, listening, normalised, statuses
from tests.helpers.served import ADMIN_KEY

COUNTED = re.compile(
    r"(http_requests_total|http_request_duration_seconds_count|events_|late_events|ingest_latency_ms_count)(?!.*health)"
)
"""Not those of `BYE`: after a request that closes, stock may read it or not."""


async def ask_one_by_one(server: Listening, asked: list[bytes]) -> list[bytes]:
    """The answers, each over a connection of its own, closed by the request after it."""
    return [normalised((await exchange(server, [one, BYE], silence=5)).data) for one in asked]


def closes(request: bytes) -> bool:
    """Whether the connection ends with its answer."""
    return CLOSE in request.partition(b"\r\n\r\n")[0] + b"\r\n"


def counted(server: Listening) -> list[str]:
    """What the metrics say of requests and events, without times."""
    text = server.served.gateway.metrics.exposition().decode()
    return sorted(line for line in text.splitlines() if COUNTED.match(line))


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The lines about requests that went well since the last call, without times and made-up ids."""
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line[:1] == "{"]
    assert found
    own = ("timestamp", "ms")
    for line in found:
        line["request_id"] = line["request_id"][:4].replace("req_", "")
    return [{name: value for name, value in line.items() if name not in own} for line in found]


@pytest.mark.parametrize("auth", ["off", "required"])
@pytest.mark.parametrize("origins", ["", "https://app.example.com"])
async def test_an_answer_of_the_lane_is_the_stock_way_s_to_the_byte(
    auth: str, origins: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so are what the metrics count of it, and its lines in the log."""
    asked = [one for one in requests() if not closes(one)]
    environ = {"auth": auth, "admin_key": ADMIN_KEY, "cors_origins": origins, "log_level": "info"}
    async with listening("off", **environ) as server:
        stock = await ask_one_by_one(server, asked)
        told = counted(server), lines_of(capsys)
    async with listening("on", **environ) as server:
        fast = await ask_one_by_one(server, asked)
        await trio.sleep(2 * lane_watch.LOOK_SECONDS)
        assert (counted(server), lines_of(capsys)) == told
        closing = [one for one in requests() if closes(one)]
        for request, ours in zip(closing, await ask_one_by_one(server, closing), strict=True):
            # Stock may lose this answer, or refuse, since another request follows it.
            assert b"Connection: close\r\n" in ours
            wanted = b"200" if ADMIN_KEY.encode() in request else b""
            assert ours.startswith(b"HTTP/1.1 " + wanted)
    for request, theirs, ours in zip(asked, stock, fast, strict=True):
        assert theirs == ours, request[:300]
    found = {statuses(one)[0] for one in fast}
    assert found >= {200, 400, 413, 415}
    assert (401 in found) == (auth == "required")


async def test_a_rate_limit_is_the_same_on_both_ways() -> None:
    answers = []
    for way in ("off", "on"):
        async with listening(way, tenant_rate_limit="1", max_batch="2") as server:
            asked = [post([event(f"k{n}")]) for n in range(5)]
            answers.append(await ask_one_by_one(server, asked))
            assert any(statuses(one)[0] == 429 and b"retry-after: " in one for one in answers[-1])
    assert answers[0] == answers[1]


async def test_metrics_count_what_the_lane_answers(capsys: pytest.CaptureFixture[str]) -> None:
    async with listening("on", log_level="info") as server:
        await exchange(server, [post([event("k")]), USAGE + HOST + b"\r\n", post(b"{"), BYE])
        text = server.served.gateway.metrics.exposition().decode()
    for labels in (
        'method="POST",route="/v1/events/ingest",status_code="200"',
        'method="POST",route="/v1/events/ingest",status_code="400"',
        'method="GET",route="/v1/usage/current",status_code="200"',
    ):
        assert f"http_requests_total{{{labels}}} 1.0" in text
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line[:1] == "{"]
    routes = [(line["route"], line["status"]) for line in lines if line.get("event") == "request"]
    assert ("/v1/events/ingest", 200) in routes
    assert ("/v1/usage/current", 200) in routes


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
@pytest.mark.parametrize("way", ["on", "off"])
async def test_a_log_that_can_not_be_written_costs_lines_and_no_answer(
    way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log's disk is full, or whoever read it has gone: many are answered, past every moment at which lines go out."""
    monkeypatch.setattr(lane_watch, "LOOK_SECONDS", 0.05)
    async with listening(way, log_level="info") as server:
        with monkeypatch.context() as patch, Path("/dev/full").open("w") as full:
            patch.setattr(sys, "stderr", full)
            for number in range(3):
                asked = [post([event(f"{number}-{n}")]) for n in range(lane_answers.LINES_KEPT_MAX)]
                found = await exchange(server, [*asked, get(b"/nope"), BYE], silence=5)
                assert found.statuses == (*[200] * len(asked), 404, 200)
                await trio.sleep(0.1)
            with contextlib.suppress(OSError):
                full.close()
        await exchange(server, [post([event("later")], b"X-Request-Id: later"), BYE], silence=5)
        await trio.sleep(0.1)
    text = capsys.readouterr().err
    assert '"later"' in text, "where there is room again lines are written again"
