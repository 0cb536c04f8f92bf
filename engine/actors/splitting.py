"""Deals a durable group out to the shards: to each the control records that judge events, and its own customers' events.

Rules it keeps: every event goes to the owner of its partition, once, under its position in the log; a shard without a
share gets nothing. It must not know how a shard counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.actors.group import Group
from engine.actors.shard import FoldWork, Shard
from engine.core.records import UNCOUNTED, TenantEvents
from wal.log import Envelope


def split(
    group: Group, envelopes: Sequence[Envelope], shards: Sequence[Shard], owner: Sequence[int]
) -> list[tuple[Shard, FoldWork]]:
    """Who gets what of a group; `owner[partition]` is a shard's number. The group knows how many it waits for."""
    group.first_sequence = envelopes[-1].sequence
    work: dict[int, FoldWork] = {}
    controls = [
        (record, envelope.sequence)
        for record, envelope in zip(group.controls, envelopes, strict=False)
        if type(record) not in UNCOUNTED
    ]
    if controls:
        work = {n: FoldWork(group, controls, []) for n in range(len(shards))}
    sequence = group.first_sequence
    for part in group.parts:
        for number, indexes in _buckets(part, len(shards), owner).items():
            share = work.get(number)
            if share is None:
                share = work[number] = FoldWork(group, (), [])
            share.shares.append((part, indexes, sequence))
        sequence += part.event_count
    group.shards_left = len(work)
    return [(shards[number], share) for number, share in work.items()]


def _buckets(part: TenantEvents, shards: int, owner: Sequence[int]) -> dict[int, Sequence[int]]:
    """The indexes of a part's events by the number of the shard that owns their partition."""
    if shards == 1:
        return {0: range(part.event_count)}
    buckets: dict[int, list[int]] = {}
    for index, partition in enumerate(part.partitions):
        number = owner[partition]
        bucket = buckets.get(number)
        if bucket is None:
            buckets[number] = [index]
        else:
            bucket.append(index)
    return {**buckets}
