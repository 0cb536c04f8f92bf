"""Bounds brought down while a simulated world runs, so that few events cross them.

With the real ones a world's whole log is one slice, one page, one chunk, and what happens between two of them never would.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.actors import eraser, operations, retention

SMALL = (
    (operations, "CHUNK_ROWS", 4),
    (operations, "SLICE_ROWS", 2),
    (eraser, "SLICE_BYTES_MAX", 3000),
    (eraser, "PARTS_PER_RECORD_MAX", 3),
    (eraser, "NAMES_PER_RECORD_MAX", 2),
    (retention, "SLICE_BYTES_MAX", 2000),
    (retention, "PASS_BYTES_MAX", 6000),
    (retention, "_PAGE_BYTES", 1500),
    (retention, "SECTION_BYTES_MAX", 700),
)


@contextmanager
def small_bounds() -> Iterator[None]:
    """While in it the engine has the small ones."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in SMALL:
            patch.setattr(module, name, value)
        yield
