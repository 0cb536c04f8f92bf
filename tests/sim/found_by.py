"""Which seed finds which planted fault first: a fault is looked for there, and then in all the others.

Rules it keeps: the search is whole, the seed named here is only its beginning, so a name or a seed that is out of date costs
time and proves nothing less. It must not know what a fault is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

FOUND_BY: dict[str, int] = {
    "duplicate_does_not_wait_for_its_original": 3,
    "unknown_outcome_is_taken_for_a_failure": 12,
    "a_replay_leaves_its_events_in_their_adjustment": 6,
    "a_restored_value_is_not_fed": 38,
    "corrections_in_the_snapshot_are_folded_again": 38,
    "a_replay_applies_whatever_the_plan_is_now": 6,
    "watermarks_at_the_start_are_forgotten_by_snapshots": 118,
    "a_backfill_begins_from_its_first_row_again": 63,
    "bodies_are_dropped_before_their_checkpoint": 6,
    "the_horizon_is_not_enforced": 6,
    "a_checkpoint_misses_its_last_record": 6,
    "younger_events_are_dropped_too": 3,
    "what_is_dropped_is_not_archived": 4,
    "archives_keep_the_names": 6,
    "who_comes_back_joins_the_erased_ones_adjustment": 18,
    "an_identifier_from_the_cumulative_total": 4,
    "a_breaker_that_mixes_targets": 8,
    "absence_is_taken_as_proof": 58,
    "a_refusal_after_an_unknown_attempt_is_taken_as_proof": 13,
    "a_stored_error_is_replayed_for_ever": 8,
    "a_rejection_is_not_undone": 14,
}
"""Those that the first two or three seeds find need no entry."""


def in_turn(plant: Callable[..., Any], seeds: Iterable[int]) -> Iterator[int]:
    """All the seeds, each once, that which found this fault before the others."""
    first = FOUND_BY.get(plant.__name__.strip("_"))
    rest = list(seeds)
    if first in rest:
        yield first
        print(f"{plant.__name__}: seed {first} finds it no more, the others are tried")
    yield from (seed for seed in rest if seed != first)
