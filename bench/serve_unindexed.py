"""The server without its indexer, to measure what the listing and the history cost ingest. Not for use.

Run like the command: `python bench/serve_unindexed.py serve ...`; `bench/indexer.py` does.
"""

from __future__ import annotations

import trio

from engine.actors.group import Group
from engine.actors.indexer import Indexer
from gateway.cli.main import main


def _take_nothing(_: Indexer, group: Group, next_sequence: int) -> None:
    assert next_sequence >= group.first_sequence


async def _follow_nothing(_: Indexer) -> None:
    await trio.sleep_forever()


if __name__ == "__main__":
    Indexer.feed = _take_nothing  # type: ignore[method-assign,assignment]
    Indexer.run = _follow_nothing  # type: ignore[method-assign,assignment]
    main()
