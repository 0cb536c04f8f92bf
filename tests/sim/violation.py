"""What a simulated world raises when a promise of the meter did not hold."""

from __future__ import annotations


class Violation(AssertionError):
    """A promise of the meter did not hold."""
