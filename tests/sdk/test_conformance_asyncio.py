"""The client for tasks does what every SDK must, under asyncio: the cases in which something fails, and some others.

What waits for long (backpressure, Retry-After), and what is checked before a loop is met, is the same code under trio, where
every case is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from stripemeter import AsyncStripeMeterClient
from tests.helpers.conformance import CASES, Run
from tests.helpers.sdk_place import Place, place

pytestmark = pytest.mark.slow
QUICK = [
    number
    for number, case in enumerate(CASES)
    if (
        case.get("faults")
        or "close" in case["name"]
        or (case["mode"] == "buffered" and number < 10)
    )
    and "Retry-After" not in case["name"]
    and case.get("options", {}).get("queueEventsMax") is None
]


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    with place() as found:
        yield found


@pytest.mark.parametrize("number", QUICK, ids=[CASES[number]["name"] for number in QUICK])
def test_the_client_for_tasks_passes_every_quick_case_under_asyncio(
    here: Place, number: int
) -> None:
    case: dict[str, Any] = CASES[number]

    async def main() -> None:
        run = Run(case, here, f"asyncio-{number}", anyio.sleep)
        async with run.client(AsyncStripeMeterClient) as client:
            await run.check(client)

    anyio.run(main, backend="asyncio")


def test_enough_cases_are_run() -> None:
    assert len(QUICK) > 60
