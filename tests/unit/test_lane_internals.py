"""The fast lane goes only into the Hypercorn that it was written for; else the server says so and runs without it."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import structlog
from hypercorn.protocol.h11 import H11Protocol

from gateway import lane_internals, main
from gateway.lane_internals import PINNED, difference

ROOT = Path(__file__).parents[2]


def test_the_installed_hypercorn_is_the_one() -> None:
    assert difference() is None


def test_the_project_pins_the_same_versions() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name, pinned in PINNED.items():
        assert f"{name}=={pinned}" in wanted


def test_another_version_or_none_is_named() -> None:
    def other(name: str) -> str:
        return "0.19.0" if name == "hypercorn" else version(name)

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    assert difference(other) == "hypercorn is 0.19.0, not 0.18.0"
    assert difference(missing) == "hypercorn is missing, not 0.18.0"


def test_a_method_that_is_gone_or_takes_something_else_is_named() -> None:
    assert (
        difference(touched={H11Protocol: {"nothing": ("self",)}})
        == "H11Protocol.nothing is another"
    )
    assert difference(touched={H11Protocol: {"handle": ()}}) == "H11Protocol.handle is another"


def test_a_name_that_the_protocol_no_longer_uses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {H11Protocol.initiate: ("keep_alive_requests",)}
    monkeypatch.setattr(lane_internals, "_NAMES_USED", used)
    assert difference() == "H11Protocol.initiate does not use keep_alive_requests"


async def test_a_server_that_differs_says_so_in_one_line_and_runs_on_stock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gateway.lane_watch import Watch
    from tests.helpers.listening import exchange, listening

    def never(*_: object) -> None:
        raise AssertionError("the lane was put in")

    monkeypatch.setattr(main, "difference", lambda: "hypercorn is 9, not 0.18.0")
    monkeypatch.setattr(main, "put_in", never)
    monkeypatch.setattr(Watch, "__init__", never)
    with structlog.testing.capture_logs() as logs:
        monkeypatch.setattr("tests.helpers.listening.configure", lambda *_: None)
        async with listening("on") as server:
            request = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            assert (await exchange(server, [request])).statuses == (200,)
    lines = [line for line in logs if line["event"] == "fast_lane_off"]
    assert [line["reason"] for line in lines] == ["hypercorn is 9, not 0.18.0"]
