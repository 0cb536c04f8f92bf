"""The garbage collector: off while recovering, then back on, with what recovery built put aside."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from gateway import collector


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    gc.enable()


def test_it_is_off_from_pause_to_resume_and_then_on() -> None:
    collector.pause()
    assert not gc.isenabled()
    collector.resume()
    assert gc.isenabled()
    assert gc.get_threshold()[0] == collector.YOUNG_OBJECTS


def test_what_was_built_in_between_is_not_looked_at_again() -> None:
    collector.pause()
    built = [[number] for number in range(10_000)]
    collector.resume()
    assert gc.get_freeze_count() > len(built)
    assert not any(found is built for found in gc.get_objects())


def test_garbage_in_cycles_is_still_freed_afterwards() -> None:
    class Cycle:
        alive = 0

        def __init__(self) -> None:
            self.itself = self
            Cycle.alive += 1

        def __del__(self) -> None:
            Cycle.alive -= 1

    collector.pause()
    collector.resume()
    for _ in range(3 * collector.YOUNG_OBJECTS):
        Cycle()
    assert Cycle.alive <= collector.YOUNG_OBJECTS
