"""In every test here each outgoing call is held to Stripe's own types."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.drivers.contract import contract_check


@pytest.fixture(autouse=True)
def checked_calls() -> Iterator[list[tuple[str, str]]]:
    """(method, path) of the calls that were checked."""
    with contract_check() as checked:
        yield checked
