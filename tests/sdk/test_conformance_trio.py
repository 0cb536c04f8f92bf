"""The client for tasks does what every SDK must, under trio: all cases of sdk/conformance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from stripemeter import AsyncStripeMeterClient
from tests.helpers.conformance import CASES, Run
from tests.helpers.sdk_place import Place, place

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    with place() as found:
        yield found


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case["name"] for case in CASES])
async def test_the_client_for_tasks_passes_every_case_under_trio(here: Place, number: int) -> None:
    case: dict[str, Any] = CASES[number]
    run = Run(case, here, f"trio-{number}", anyio.sleep)
    async with run.client(AsyncStripeMeterClient) as client:
        await run.check(client)
