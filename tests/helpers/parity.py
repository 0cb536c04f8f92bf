"""Certificates of logs in memory, and the ways to hold them against a log. No server, no Stripe unless one is given."""

from __future__ import annotations

from functools import partial
from typing import Any

from engine.actors.prefix_fold import PrefixFold, Wanted
from engine.core.parity import NO_PRICE, Parity, Projection, StripeSide, worst
from engine.core.parity_trail import ParityTrail
from engine.core.push_records import target_id
from engine.core.push_totals import PushTotals
from engine.core.times import format_instant, parse_instant
from engine.witness.arithmetic import Problem, check_document
from engine.witness.canonical import Document, Signer
from engine.witness.purposes import PARITY
from engine.witness.spans import month_of
from engine.witness.verify import check_against_log
from wal.archive import ArchiveStore
from wal.log import Log, StoredRecord, scan

SIGNER = Signer(bytes(range(32)))


def certificate_of(
    log: Log, tenant: str, month: str, customer_ref: str | None = None, end: int | None = None
) -> Document:
    """A signed certificate of a log's prefix, as a server that is not connected to Stripe makes it."""
    end = log.head().next_sequence if end is None else end
    trail = ParityTrail(tenant)
    fold = PrefixFold(log, end, wanted=Wanted(tenant), observer=trail)
    while fold.run_slice():
        pass
    totals = PushTotals(
        trail.push.routes,
        trail.push.ledger,
        resolution=lambda _role, _destination: None,
        proven=lambda _role: None,
        mapping=fold.registry.active_mapping,
    )
    since_us = parse_instant(f"{month}-01T00:00:00Z")
    parity = Parity(
        trail,
        totals,
        since_us=since_us,
        until_us=month_of(since_us).end_us,
        customer_ref=customer_ref,
    )
    parity.collect()
    last = log.read(end - 1, bytes_max=1)[0]
    nobody, unread = Projection(None, None, None, NO_PRICE), StripeSide(None, None, "not asked")
    targets = [
        parity.target(one, now_us=last.envelope.received_at_us, stripe=unread, projection=nobody)
        for one in parity.targets
    ]
    verdicts = {
        target_id(one): t["verdict"] for one, t in zip(parity.targets, targets, strict=True)
    }
    chains = [parity.chain(key, verdicts.__getitem__) for key in parity.keys]
    found = [one["verdict"] for one in (*chains, *targets)]
    counts = {name: found.count(name) for name in ("green", "waiting", "red", "unbilled")}
    genesis = log.read(0, bytes_max=1)[0]
    return SIGNER.sealed(
        PARITY,
        {
            "format": PARITY,
            "software": "test",
            "issuedAt": format_instant(last.envelope.received_at_us),
            "period": month,
            "scope": {"tenantId": tenant, "customerRef": customer_ref},
            "log": {
                "id": _log_id(genesis),
                "epoch": last.envelope.epoch,
                "position": end - 1,
                "headHash": last.hash.hex(),
                "receivedAt": format_instant(last.envelope.received_at_us),
            },
            "chains": chains,
            "targets": targets,
            "summary": {"chains": len(chains), "targets": len(targets)} | counts,
            "verdict": worst(found),
        },
    )


def _log_id(genesis: StoredRecord) -> str:
    from engine.core.records import Genesis, decode_control

    record = decode_control(genesis.envelope.record_type, genesis.parts[0].data)
    assert isinstance(record, Genesis)
    return record.log_id.hex()


def verified(
    document: Document, log: Log | None = None, archives: ArchiveStore | None = None
) -> list[Problem]:
    """Everything that is wrong with a certificate, by itself and, with a log, by that log."""
    found = check_document(document)
    if log is not None:
        bodies = archived(archives)
        found += check_against_log(document, partial(scan, log, 0), bodies.get)
    return found


def archived(archives: ArchiveStore | None) -> dict[int, StoredRecord]:
    """Every record of the archives, by its position."""
    if archives is None:
        return {}
    return {r.sequence: r for name in archives.names() for r in archives.read(name)}


def resigned(document: Document) -> Document:
    """The document sealed and signed anew: what somebody with the key, or another key, could make of it."""
    bare = {name: one for name, one in document.items() if name not in ("seals", "signature")}
    return SIGNER.sealed(PARITY, bare)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all single values in a document."""
    if isinstance(value, dict):
        return [leaf for name, one in value.items() for leaf in leaves(one, (*path, name))]
    if isinstance(value, list):
        return [leaf for index, one in enumerate(value) for leaf in leaves(one, (*path, index))]
    return [path]
