"""What all tests share: Hypothesis profiles, costly assertions on, seeds that are printed, markers.

Variables that tests read, none of them a setting of the server:
HYPOTHESIS_PROFILE  dev (default), ci (default under CI=true), soak
TEST_SEED           the seed of `seed`, to repeat a failed run
SIM_SEEDS           how many seeds a simulation runs, from SIM_FIRST on (`make sim`)
KILL_ROUNDS         how often a server is killed (`make kill`)
CORPUS_CUTS         `all`: every cut of the hostile corpus against stock Hypercorn too, in place of a sixteenth
"""

from __future__ import annotations

import logging
import os
import random
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

# Before anything of ours is imported: the costly assertions are on in every test.
os.environ["STRIPEMETER_VERIFY"] = "1"

SEEDS = 120
"""In every test run."""
SEEDS_AT_ONCE = 24
"""In one test: half a minute, so that two workers share them evenly."""
MOMENT_SEEDS = 20
"""Of each `SEEDS`, for worlds of one moment."""

# The machine is shared and a deadline would fail on its load, not on our code.
_SHARED = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=50, **_SHARED)
settings.register_profile("ci", max_examples=100, **_SHARED)
settings.register_profile("soak", max_examples=10_000, **_SHARED)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") == "true" else "dev")
)


def pytest_report_header() -> str:
    """Say which profile runs."""
    return f"hypothesis profile in force: {settings.get_current_profile_name()}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out soak tests, minutes each, unless `-m` speaks of them: a plain `pytest` must end soon."""
    if "soak" in config.getoption("markexpr"):
        return
    left_out = [item for item in items if item.get_closest_marker("soak")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


@pytest.fixture
def seed() -> int:
    """A seed for one random test: printed, so that a failure shows it, and repeatable by TEST_SEED."""
    text = os.environ.get("TEST_SEED")
    value = int(text) if text else secrets.randbits(32)
    print(f"seed {value}: repeat with TEST_SEED={value}")
    return value


@pytest.fixture
def rng(seed: int) -> random.Random:
    """A random source of that seed."""
    return random.Random(seed)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A test that sets logging up, as a server does, leaves nothing of it to the next one."""
    before = structlog.get_config()
    processors = list(before["processors"])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.configure(**(before | {"processors": processors}))
    root.handlers[:], root.level = handlers, level


def _no_url(*_: object) -> str:
    raise AssertionError("the server makes no URL of its routes")


@pytest.fixture(scope="session", autouse=True)
def no_url_builders() -> Iterator[None]:
    """Half of a server's start in memory is to compile, for each route, what would make its URL; thousands are started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("werkzeug.routing.rules.Rule._compile_builder", lambda *_: _no_url)
        yield


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`sim_seeds`, a range: 120 in every test run; as many as asked for by `make sim`, in blocks that tell of progress.

    `moment_seeds` are the first 20 of each 120 of them. SIM_FIRST moves the range on, so that many nights are not one
    night many times.
    """
    first = int(os.environ.get("SIM_FIRST") or "0")
    seeds = range(first, first + int(os.environ.get("SIM_SEEDS") or SEEDS))
    for name, step, length in (
        ("sim_seeds", SEEDS_AT_ONCE, SEEDS_AT_ONCE),
        ("moment_seeds", SEEDS, MOMENT_SEEDS),
    ):
        if name in metafunc.fixturenames:
            blocks = [seeds[at : at + length] for at in range(0, len(seeds), step)]
            metafunc.parametrize(name, blocks, ids=[f"{b.start}-{b.stop - 1}" for b in blocks])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Who gives the tests to several workers."""
    from tests.helpers.work_order import scheduler_of

    return scheduler_of(config, log)


@pytest.fixture
def kill_rounds() -> int:
    """How often a test is to kill its server: 50 times here, as often as asked for by `make kill`."""
    return int(os.environ.get("KILL_ROUNDS") or "50")
