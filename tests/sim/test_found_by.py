"""Where the search for a planted fault begins is no part of whether it is found."""

from __future__ import annotations

from tests.sim import found_by
from tests.sim.faults import FAULTS
from tests.sim.faults_of_keeping import FAULTS_OF_KEEPING
from tests.sim.faults_of_operations import FAULTS_OF_OPERATIONS
from tests.sim.test_push_seeds import GREAT, REMOTE

PLANTS = [*FAULTS, *FAULTS_OF_OPERATIONS, *FAULTS_OF_KEEPING, *GREAT, *REMOTE]


def test_every_seed_is_tried_once_and_the_one_that_is_known_first() -> None:
    for plant in PLANTS:
        tried = list(found_by.in_turn(plant, range(300)))
        assert sorted(tried) == list(range(300))
        assert tried[0] == found_by.FOUND_BY.get(plant.__name__.strip("_"), 0)
    assert found_by.FOUND_BY.keys() <= {plant.__name__.strip("_") for plant in PLANTS}
    first = min(found_by.FOUND_BY.values())
    assert list(found_by.in_turn(PLANTS[0], range(first))) == list(range(first))
