"""The client for threads does what every SDK must: all cases of sdk/conformance."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from stripemeter import StripeMeterClient
from tests.helpers.conformance import CASES, Run, run_without_loop
from tests.helpers.sdk_place import Place, place

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    with place() as found:
        yield found


async def sleep(seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case["name"] for case in CASES])
def test_the_client_for_threads_passes_every_case(here: Place, number: int) -> None:
    case: dict[str, Any] = CASES[number]
    run = Run(case, here, f"threads-{number}", sleep)
    with run.client(StripeMeterClient) as client:
        run_without_loop(run.check(client))
