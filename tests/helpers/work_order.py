"""In which order the tests are given to the workers of pytest-xdist: what takes long first, so that none is left to work alone.

Rules it keeps: a file stays on one worker, since what its tests share is made once there; of the files in `BY_TEST`, whose tests
share nothing and take long, each test goes to whoever is free. What runs is not changed by it, only where and when.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

BY_TEST = (
    "tests/sim/test_seeds.py",
    "tests/sim/test_push_seeds.py",
    "tests/crash/test_kill.py",
    "tests/crash/test_push_kill.py",
)
LONGEST = (
    *BY_TEST,
    "tests/gateway/test_lane_corpus.py",
    "tests/gateway/test_demo.py",
    "tests/crash/test_imports.py",
    "tests/crash/test_keeping_kill.py",
    "tests/crash/test_kill_corrections.py",
    "tests/property/test_key_index_model.py",
    "tests/sim/test_reconciled_seeds.py",
    "tests/sim/test_parity_of_worlds.py",
    "tests/pricing/test_brute_force.py",
    "tests/gateway/test_schemathesis.py",
)
"""Files of half a minute and more. One that is missing here costs at most its own time at the end."""


class LongestFirst(LoadFileScheduling):
    """Files as `--dist=loadfile` gives them out, the longest before all others."""

    def _split_scope(self, nodeid: str) -> str:
        path: str = super()._split_scope(nodeid)
        return nodeid if path in BY_TEST else path

    def _assign_work_unit(self, node: Any) -> None:
        self.workqueue.move_to_end(min(self.workqueue, key=turn_of), last=False)
        super()._assign_work_unit(node)


def turn_of(scope: str) -> int:
    """Its place in the order; those that are not named come last, as they were: the most tests first."""
    path = scope.partition("::")[0]
    return LONGEST.index(path) if path in LONGEST else len(LONGEST)


def scheduler_of(config: pytest.Config, log: Any) -> LongestFirst | None:
    """Ours for `--dist=loadfile`, else whatever was asked for."""
    return LongestFirst(config, log) if config.getoption("dist") == "loadfile" else None
