"""What is signed, by name: the first member of every signed document, and the first line of what its signature covers."""

from __future__ import annotations

from typing import Final

PARITY: Final = "stripemeter-parity-1"
ANCHOR: Final = "stripemeter-anchor-1"
