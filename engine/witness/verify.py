"""Holds a certificate against a log: recounts every chain and every target from raw records and says where they differ.

Rules it keeps: the recount and the certificate meet only here; the log's own chain of hashes is checked before, by
whoever opens it (`wal.check`); what can't be recounted is a finding, never passed over. It must not know files, nor how
the engine counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from engine.witness import raw_records as raw
from engine.witness.arithmetic import PROBLEMS_MAX, Problem, instant_us, quantity_of
from engine.witness.canonical import Document
from engine.witness.pushes import Pushed, PushRecount, TargetKey
from engine.witness.recount import Line, Recount
from engine.witness.spans import month_of
from wal.log import StoredRecord

_UNREADABLE: Final = (KeyError, TypeError, ValueError, IndexError, AttributeError)
Scan = Callable[[], Iterable[StoredRecord]]
"""Every record of the log, from its start, in order; called twice."""


def check_against_log(document: Document, scan: Scan, archived: raw.Archived) -> list[Problem]:
    """All that a log says otherwise than a certificate; empty: every number of it follows from these records."""
    try:
        return list(_compare(document, scan, archived))[:PROBLEMS_MAX]
    except raw.Unusable as error:
        return [Problem(f"log: record {error.position}", str(error))]
    except _UNREADABLE as error:
        return [Problem("certificate", f"can't be held against the log: {error!r}")]


def _compare(document: Document, scan: Scan, archived: raw.Archived) -> Iterator[Problem]:
    place, scope = document["log"], document["scope"]
    tenant, position = scope["tenantId"], place["position"]
    names = raw.Names()
    for record in scan():
        names.hear(record)
    recount, pushes = Recount(tenant, names, archived), PushRecount()
    last: StoredRecord | None = None
    for record in scan():
        if record.sequence > position:
            break
        if record.sequence == 0:
            yield from _log_id(place, record)
        recount.feed(record)
        pushes.feed(record)
        last = record
    if last is None or last.next_sequence != position + 1 or last.hash.hex() != place["headHash"]:
        yield Problem(
            "log.headHash",
            f"the log's record at position {position} is not the one that the certificate ends in: the log was cut or "
            "rewritten, or the certificate is of another one",
        )
        return
    yield from _expect("log.epoch", place["epoch"], last.envelope.epoch)
    start_us = instant_us(f"{document['period']}-01T00:00:00.000Z")
    lines = recount.lines(start_us, month_of(start_us).end_us)
    yield from _chains(document, lines, names, tenant)
    yield from _targets(document, pushes, recount, (start_us, month_of(start_us).end_us))


def _log_id(place: Document, record: StoredRecord) -> Iterator[Problem]:
    genesis = raw.control_of(record)
    if genesis is None or genesis["logId"].hex() != place["id"]:
        yield Problem("log.id", "the certificate is of another log")


def _expect(where: str, said: object, recounted: object, of: str = "") -> Iterator[Problem]:
    if said != recounted or type(said) is not type(recounted):
        about = f" ({of})" if of else ""
        yield Problem(where, f"says {said!r}, the log says {recounted!r}{about}")


# Chains.


def _chains(
    document: Document, lines: list[Line], names: raw.Names, tenant: str
) -> Iterator[Problem]:
    position, only = document["log"]["position"], document["scope"]["customerRef"]
    by_key = {(*line.series, line.span.start_us): line for line in lines}
    seen = set()
    for index, chain in enumerate(document["chains"]):
        where = f"chains[{index}]"
        # Whoever was erased since goes by the pseudonym in the log.
        customer = names.known_as(tenant, chain["customerRef"], position)
        key = (chain["metric"], customer, instant_us(chain["start"]))
        of = f"{tenant} / {chain['customerRef']} / {chain['metric']}"
        line = by_key.get(key)
        if chain["tenantId"] != tenant:
            yield Problem(f"{where}.tenantId", f"is not the certificate's tenant, {tenant}")
        if key in seen:
            yield Problem(where, f"is there twice ({of})")
        seen.add(key)
        if line is None:
            yield Problem(
                where, f"the log has no such use, or the customer was erased since ({of})"
            )
            continue
        yield from _chain(where, chain, line, of)
    wanted = None if only is None else names.known_as(tenant, only, position)
    for key in sorted(by_key.keys() - seen):
        if wanted in (None, key[1]):
            what = f"a chain is missing: {tenant} / {key[1]} / {key[0]} has use in the log"
            yield Problem("chains", what)


def _chain(where: str, chain: Document, line: Line, of: str) -> Iterator[Problem]:
    for name, value in _chain_fields(line).items():
        section, _, field = name.rpartition(".")
        holder = chain[section] if section else chain
        yield from _expect(f"{where}.{name}", holder[field], value, of)
    yield from _expect(f"{where}.end", instant_us(chain["end"]), line.span.end_us, of)


def _chain_fields(line: Line) -> dict[str, Any]:
    seen, counted, held = line.seen, line.counted, line.held
    positions = [one.position for one in held]
    late = [event for one in held for event in one.events]
    fields: dict[str, Any] = {
        "aggregation": line.aggregation,
        "events.count": seen.count,
        "events.sum": quantity_of(seen.sum),
        "events.late": seen.late,
        "events.firstPosition": seen.first if seen.count else None,
        "events.lastPosition": seen.last if seen.count else None,
        "counter.count": counted.count,
        "counter.sum": quantity_of(counted.sum),
        "counter.max": quantity_of(counted.max),
        "counter.last": quantity_of(counted.last),
        "adjustments.heldCount": len(late),
        "adjustments.heldSum": quantity_of(sum(event.micros for event in late)),
        "adjustments.firstPosition": min(positions, default=None),
        "adjustments.lastPosition": max(positions, default=None),
        "total": quantity_of(line.total),
        "notPushed": quantity_of(line.historic if line.aggregation == "sum" else 0),
    }
    own = {"sum": counted.sum, "max": counted.max, "last": counted.last}[line.aggregation]
    fields["adjustments.amount"] = quantity_of(line.total - own)
    for status in ("approved", "pending", "reverted", "superseded"):
        fields[f"adjustments.{status}"] = sum(one.status == status for one in held)
    return fields


# Targets.


def _targets(
    document: Document, pushes: PushRecount, recount: Recount, month: tuple[int, int]
) -> Iterator[Problem]:
    tenant = document["scope"]["tenantId"]
    seen = set()
    for index, target in enumerate(document["targets"]):
        where = f"targets[{index}]"
        key = TargetKey(
            target["account"],
            target["mode"],
            target["object"],
            target["stripeCustomer"],
            target["stripeScale"],
            instant_us(target["start"]),
            instant_us(target["end"]),
        )
        seen.add(key)
        of = f"{tenant} / {target['stripeCustomer']} / {target['metric']}"
        owners = pushes.tenants.get(key[:4], {tenant})
        if tenant not in owners:
            yield Problem(where, f"the log has it pushed on behalf of another tenant ({of})")
        pushed = pushes.targets.get(key, Pushed())
        for name, value in _target_fields(key, pushed, pushes).items():
            section, _, field = name.rpartition(".")
            holder = target[section] if section else target
            yield from _expect(f"{where}.{name}", holder[field], value, of)
        if target["metric"] is not None:
            price = recount.price_of(target["metric"])
            yield from _expect(f"{where}.projected.price", target["projected"]["price"], price, of)
    if document["scope"]["customerRef"] is not None:
        return
    for key in pushes.targets:
        is_own = tenant in pushes.tenants.get(key[:4], ())
        if is_own and month[0] <= key.start_us < month[1] and key not in seen:
            what = f"one is missing: {key.customer} on {key.object_id} was pushed to in the log"
            yield Problem("targets", what)


def _target_fields(key: TargetKey, pushed: Pushed, pushes: PushRecount) -> dict[str, Any]:
    is_known = pushed.first >= 0
    opened = pushes.open.get(key[:4])
    shown = None
    if opened is not None and opened.key == key:
        shown = {
            "number": opened.number,
            "from": str(opened.from_units),
            "to": str(opened.to_units),
            "identifier": opened.identifier,
        }
    beyond = pushes.beyond(key)
    return {
        "intents.count": pushed.count,
        "intents.delivered": pushed.delivered,
        "intents.baselineUnits": str(pushed.baseline_units),
        "intents.deliveredUnits": str(pushed.delivered_units),
        "intents.takenBackUnits": str(pushed.taken_back_units),
        "intents.firstPosition": pushed.first if is_known else None,
        "intents.lastPosition": pushed.last if is_known else None,
        "intents.open": shown,
        "pushed": str(pushed.units),
        "carriedIn": str(pushed.carried_in),
        "carriedOut": str(pushed.carried_out),
        "kept": quantity_of(pushed.kept_micros),
        "stripe.beside": str(pushes.beside(key)),
        "stripe.beyond": _units_text(beyond),
    }


def _units_text(units: Any) -> str:
    """The decimal text of a fraction that came of decimals."""
    scaled, places = units, 0
    while scaled.denominator != 1:
        scaled, places = scaled * 10, places + 1
        if places > 40:
            raise ValueError("a reading of Stripe's that is no decimal")
    digits = f"{abs(scaled.numerator):0{places + 1}d}"
    text = f"{digits[:-places]}.{digits[-places:]}" if places else digits
    return f"-{text}" if units < 0 else text
